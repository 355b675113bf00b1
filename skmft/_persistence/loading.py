"""Load a folder that `save` wrote, of this version or the one before, here or on the hub; all is checked before it is used."""

from __future__ import annotations

import os
import warnings
from collections import UserDict
from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.utils._param_validation import validate_parameter_constraints

from .._engine.encoder import EncoderSource, load_encoder, load_tokenizer
from .._engine.model import TextClassifier
from .._engine.pooling import embedding_width
from .._engine.runtime import isolated_generators, resolve_device
from .._method.lora import LORA_A, LORA_B
from .._typing import Name, Params, Tensors
from .folder import PersistenceError, kept_aside, read_json, read_tensors, reading, verified_files
from .state import PLAIN, SETTINGS, SOURCE, STAGE_1, FittedState, ParamsCheck, RecipeMaker, decode, decode_names

Kinds = dict[str, tuple[tuple[int, ...], torch.dtype]]  # shapes and dtypes of tensors
_LISTS: dict[str, list] = {"adapted_domains": [list], "feature_names_in": [list, None], "versions": [dict]}
_MOVED_SINCE_1 = {  # parameter of today -> what is in it -> parameter of format 1
    "lora_config": {"r": "lora_rank", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"},
    "optimizer_params": {name: name for name in ("weight_decay", "warmup_ratio", "max_grad_norm")},
    "recipe": {name: name for name in ("corruption_layers", "corruption_labels", "contrastive_temperature")},
}
_NEVER = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".safetensors", ".py", ".pyc", ".so"}
_NEVER_KEYS = {"auto_map", "transformers_weights", "quantization_config"}
_MOST_LAYERS = 1000


class StoredWeights(UserDict):
    """Adapted tensors of every domain; until a domain is first asked for, a function that reads them stands in their place."""

    def __getitem__(self, domain: Name) -> Tensors:
        found = self.data[domain]  # once: another thread may put the tensors in its place
        if callable(found):
            found = self.data[domain] = found()
        return found

    def __repr__(self) -> str:
        return f"StoredWeights({list(self)})"

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)  # a pickle does not depend on the folder


def load(kind: type, check: ParamsCheck, recipe: RecipeMaker, path: str | os.PathLike) -> FittedState:
    """Read a folder that an estimator of class `kind` wrote."""
    folder = Path(path).expanduser().resolve()
    if not folder.exists() and kept_aside(folder).is_dir():
        folder = kept_aside(folder)  # a save was cut off between two renames
    version, files = verified_files(folder)
    with reading(about := folder / "estimator.json"):
        content = read_json(about)
        if version == 1:
            content = _from_format_1(content)
        if content["class"] != kind.__name__:
            raise PersistenceError(f"{about} is of a {content['class']}; load it by {content['class']}.load.")
        params: Params = {n: None if n == "memory" else decode(v, recipe) for n, v in content["params"].items()}
        try:
            resolve_device(params["device"])
        except ValueError:
            warnings.warn(f"device={params['device']!r} is not here; loaded with device='auto'.", stacklevel=3)
            params["device"] = "auto"
        check(params)
        fields = _read_fields(content)
        domains = {d: f"domains/{number}.safetensors" for number, d in enumerate(content["adapted_domains"])}
        stored = sorted(name for name in files if name.startswith("domains/"))
        if any(type(d) not in (str, int, bool) for d in domains) or sorted(domains.values()) != stored:
            told = f"adapted_domains is {content['adapted_domains']}, and the files are {stored}"
            raise ValueError(f"{told}; expected a str, int or bool for each, each once")
    with reading(path := folder / "encoder"):
        _check_encoder(path)
        source, settings = EncoderSource(str(path), str(path), None, ""), fields["settings"]
        with isolated_generators(0, torch.device("cpu")):
            tokenizer, encoder = load_tokenizer(source, settings["max_length"]), load_encoder(source)
            is_bi = fields["pair_encoding"] == "bi"
            module = TextClassifier(encoder, len(fields["classes"]), settings["pooling"], is_bi).eval()
    with reading(path := folder / "heads.safetensors"):
        heads = read_tensors(path, files[path.name])
        heads = {n.removeprefix("label_head."): t for n, t in heads.items() if not n.startswith("corruption_head.")}
        module.label_head.load_state_dict(heads)  # in format 1 there was a corruption head beside it
    with reading(path := folder / "arrays.safetensors"):
        arrays = read_tensors(path, files[path.name])
        _check_arrays(path, arrays, fields, embedding_width(encoder, is_bi))
    readers = {domain: partial(_own_tensors, folder / name, files[name], module) for domain, name in domains.items()}
    return FittedState(
        params=params,
        class_counts=arrays.pop("class_counts_").numpy(),
        arrays={name: tensor.numpy() for name, tensor in arrays.items()},
        meta_learner=module,
        tokenizer=tokenizer,
        adapted_weights=StoredWeights(readers),
        **fields,
    )


def fetch(path: str | os.PathLike, revision: str | None) -> Path:
    """The folder itself, or the local snapshot of a repository of the hub."""
    folder = Path(path).expanduser().resolve()
    if revision is None and (folder.is_dir() or kept_aside(folder).is_dir()):  # `load` takes the latter after a crash
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(path), revision=revision))
    except Exception as error:
        told = f"path={str(path)!r}, revision={revision!r}: no folder here (which has no revision), nor on the hub"
        raise PersistenceError(f"{told} ({type(error).__name__}: {error}).") from error


def _from_format_1(content: Params) -> Params:
    """What estimator.json of skmft 0.1 says, in the names of today."""
    params = dict(content["params"])
    for name, inner in _MOVED_SINCE_1.items():
        params[name] = {"dict": [[new, params.pop(old)] for new, old in inner.items()]}
    params["recipe"] = {"recipe": ["skmft.recipes.MetaFineTuning", params["recipe"]]}
    params["unknown_domain"] = params["unknown_domain"].replace("meta", "ignore")
    settings = {name: params[name] for name in SETTINGS}
    return {**content, "params": params, "settings": settings, "class": "MetaFineTunedClassifier", "unknown": "model"}


def _valid(content: Params, constraints: dict[str, list]) -> Params:
    found = {name: content[name] for name in constraints}
    validate_parameter_constraints(constraints, found, "estimator.json")
    return found


def _read_fields(content: Params) -> Params:
    """Those of the state's fields that estimator.json has, all but the parameters."""
    plain, columns = _valid(content, PLAIN), _valid(content, _LISTS)["feature_names_in"]
    if odd := {entry["stage"] for entry in plain["history"]} - {"typicality", "meta", "adaptation"}:
        raise ValueError(f"history has the stages {odd}; expected typicality, meta and adaptation")
    given, most = plain["n_features_in"], 2 if plain["is_pair"] else 1
    names = [decode(name) for name in columns or ()]
    fits = columns is None or (given and 1 <= len(set(names)) == len(names) <= most)  # one may hold both of a pair
    if repr(given) not in ("None", str(most)) or not fits:
        told = f"n_features_in is {given!r}, and feature_names_in is {columns}"
        raise ValueError(f"{told}; expected {most}, and names of as many columns at most")
    return {
        **plain,
        "settings": _valid(content["settings"], SETTINGS),
        "classes": decode_names(content["classes"]),
        "domains": decode_names(content["domains"]),
        "encoder_source": EncoderSource(folder="", **_valid(content["encoder_source"], SOURCE)),  # found when needed
        "feature_names_in": names or None,
    }


def _check_encoder(folder: Path) -> None:
    """Compare the weights with what config.json asks for, before anything of that size is made."""
    from transformers import AutoConfig, AutoModel

    _check_names(folder)
    for name in ("config.json", "tokenizer_config.json"):
        read_json(folder / name, _refuse_keys)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=False)
    empty.pooler = None
    empty.load_state_dict(load_file(folder / "model.safetensors"), assign=True)


def _check_names(folder: Path) -> None:
    """No weights but those that `save` writes, and no code: transformers would look further."""
    for path in sorted(folder.iterdir()):
        odd = path.suffix in _NEVER or path.name.startswith("adapter_") or path.name.endswith(".index.json")
        if path.is_dir() or (odd and path.name != "model.safetensors"):
            raise PersistenceError(f"{path} is no file that save writes; remove it, or save again.")


def _refuse_keys(content: Params) -> Params:
    """Refuse what has transformers run code, read other files, fetch kernels or make layers without end."""
    for key, value in content.items():
        if key in _NEVER_KEYS or key.endswith("_implementation"):
            raise ValueError(f"{key} names code or other files, which are never read")
        if "layers" in key and isinstance(value, int) and value > _MOST_LAYERS:
            raise ValueError(f"{key} is {value}; expected at most {_MOST_LAYERS}")
    return content


def _check_arrays(path: Path, arrays: Tensors, fields: Params, width: int) -> None:
    """``class_counts_``, and the attributes of stage 1 where there was one."""
    grid, k = (len(fields["domains"]), len(fields["classes"])), fields["settings"]["n_prototypes"]
    expected: Kinds = {"class_counts_": (grid, torch.int64)}
    n_rows = arrays.get("typicality_", torch.empty(0)).shape[:1]
    if any(entry["stage"] == "typicality" for entry in fields["history"]):
        shapes = ((*grid, k, width) if k > 1 else (*grid, width), (*grid, k), n_rows, n_rows, n_rows)
        expected |= {name: (shape, torch.float64) for name, shape in zip(STAGE_1, shapes)}
    _check_kinds(path, arrays, expected, expected)
    if "typicality_" in arrays and n_rows[0] < arrays["class_counts_"].sum():
        raise ValueError(f"typicality_ has {n_rows[0]} rows, fewer than class_counts_ counts")


def _own_tensors(path: Path, sha256: str, module: TextClassifier) -> Tensors:
    """A domain's tensors: some of the module's, and adapters of its linear layers, one rank a pair."""
    with reading(path):
        tensors = read_tensors(path, sha256)
        adapters: Kinds = {}
        for name, layer in module.encoder.named_modules(prefix="encoder"):
            rank = len(tensors.get(name + LORA_A, ()))
            if rank and isinstance(layer, torch.nn.Linear):
                adapters[name + LORA_A] = ((rank, layer.in_features), layer.weight.dtype)
                adapters[name + LORA_B] = ((layer.out_features, rank), layer.weight.dtype)
        own: Kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
        _check_kinds(path, tensors, own | adapters, adapters)
        return tensors


def _check_kinds(path: Path, got: Tensors, allowed: Kinds, needed: Collection[str]) -> None:
    wrong = {name for name, tensor in got.items() if allowed.get(name) != (tensor.shape, tensor.dtype)}
    wrong |= {*needed} - {*got}
    if wrong or not got:
        told = sorted(wrong)[:3] or "it is empty"
        raise PersistenceError(f"{path} does not fit the rest of the folder: {told}; save again.")
