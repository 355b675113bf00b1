"""Load a folder that `save` wrote, of this version or the one before."""

from __future__ import annotations

import os
import warnings
from collections import UserDict
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints

from .._engine.encoder import EncoderSource, load_encoder, load_tokenizer
from .._engine.model import TextClassifier, embedding_width
from .._engine.runtime import isolated_generators, resolve_device
from .._typing import Name, Params, Tensors, Tokenizer
from .checks import adapter_shapes, check_encoder, same_shapes
from .folder import MANIFEST, PersistenceError, kept_aside, read_json, read_tensors, reading, verified_files
from .state import PLAIN, SETTINGS, SOURCE, STAGE_1, FittedState
from .values import RecipeMaker, decode, decode_names

_NEEDED = (
    "estimator.json",
    "arrays.safetensors",
    "heads.safetensors",
    "encoder/config.json",
    "encoder/model.safetensors",
)
_CONSTRAINTS: dict[str, list] = {
    **{"versions": [dict], "history": [list], "adapted_domains": [list], "feature_names_in": [list, None]},
    **{"is_pair": ["boolean"], "seed": [Integral], "unknown": [StrOptions({"model", "mean"})]},
    **{"pair_encoding": [StrOptions({"bi", "cross"}), None], "pooling": [StrOptions({"mean", "cls"})]},
    **{
        name: [Interval(Integral, least, None, closed="left")]
        for name, least in (("max_length", 2), ("n_prototypes", 1))
    },
    **{"name": [str], "revision": [str, None], "sha256": [str]},
}
_STAGES = ("typicality", "meta", "adaptation")
_MOVED_SINCE_1 = {  # parameter of today -> what is in it -> parameter of format 1
    "lora_config": {"r": "lora_rank", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"},
    "optimizer_params": {name: name for name in ("weight_decay", "warmup_ratio", "max_grad_norm")},
    "recipe": {name: name for name in ("corruption_layers", "corruption_labels", "contrastive_temperature")},
}


class StoredWeights(UserDict):
    """Adapted tensors of every domain; until a domain is first asked for, a function that reads them stands in their place."""

    def __getitem__(self, domain: Name) -> Tensors:
        if callable(self.data[domain]):
            self.data[domain] = self.data[domain]()
        return self.data[domain]

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)  # a pickle does not depend on the folder


def load(kind: type, check: Callable[[Params], object], recipe: RecipeMaker, path: str | os.PathLike) -> FittedState:
    """Read a folder that an estimator of this class wrote; `check` and `recipe` as in `saving.save` and `decode`."""
    folder = Path(path).expanduser().resolve()
    if not folder.exists() and kept_aside(folder).is_dir():
        folder = kept_aside(folder)  # a save was cut off between two renames
    if not folder.is_dir():
        raise PersistenceError(f"path={str(folder)!r} is no folder; expected one that {kind.__name__}.save wrote.")
    version, files = verified_files(folder)
    if missing := [name for name in _NEEDED if name not in files]:
        raise PersistenceError(f"{folder / missing[0]} is not in {MANIFEST}; the folder is not complete.")
    about = folder / "estimator.json"
    content = read_json(about)
    with reading(about):
        if version == 1:
            content = _from_format_1(content)
        if content["class"] != kind.__name__:
            raise PersistenceError(f"{about} is of a {content['class']}; load it by {content['class']}.load.")
        params = {n: None if n == "memory" else decode(v, recipe) for n, v in content["params"].items()}
        try:
            resolve_device(params["device"])
        except ValueError:
            told = f"device={params['device']!r} is not here; the estimator was loaded with device='auto'."
            warnings.warn(told, stacklevel=3)
            params["device"] = "auto"
        check(params)
        fields = _read_fields(content)
        adapted = content["adapted_domains"]
        own_files = [f"domains/{number}.safetensors" for number in range(len(adapted))]
        if (stored := sorted(name for name in files if name.startswith("domains/"))) != sorted(own_files):
            raise ValueError(
                f"adapted_domains has {len(adapted)} names, but the files are {stored}; expected one a name"
            )
    module, tokenizer = _read_networks(folder, files, fields)
    with reading(path := folder / "arrays.safetensors"):
        width = embedding_width(module.encoder, module.bi_encoded)
        arrays = _read_arrays(path, files[path.name], fields, width)

    def own_tensors(name: str) -> Tensors:
        with reading(path := folder / name):
            tensors = read_tensors(path, files[name])
            adapters = adapter_shapes(tensors, module)
            same_shapes(path, tensors, {**module.state_dict(), **adapters}, adapters)
            return tensors

    return FittedState(
        params=params,
        class_counts=arrays.pop("class_counts_"),
        arrays=arrays,
        meta_learner=module,
        tokenizer=tokenizer,
        adapted_weights=StoredWeights({d: partial(own_tensors, name) for d, name in zip(adapted, own_files)}),
        **fields,
    )


def _from_format_1(content: Params) -> Params:
    """What estimator.json of skmft 0.1 says, in the names of today."""
    params = dict(content["params"])
    for name, inner in _MOVED_SINCE_1.items():
        params[name] = {"dict": [[new, params.pop(old)] for new, old in inner.items()]}
    params["recipe"] = {"recipe": ["skmft.recipes.MetaFineTuning", params["recipe"]]}
    params["unknown_domain"] = params["unknown_domain"].replace("meta", "ignore")
    settings = {name: params[name] for name in SETTINGS}
    return {**content, "params": params, "settings": settings, "class": "MetaFineTunedClassifier", "unknown": "model"}


def _read_fields(content: Params) -> Params:
    """Those of the state's fields that estimator.json has, all but the parameters."""
    plain = {name: content[name] for name in PLAIN}
    settings = {name: content["settings"][name] for name in SETTINGS}
    source = {name: content["encoder_source"][name] for name in SOURCE}
    adapted, columns = content["adapted_domains"], content["feature_names_in"]
    others = {"adapted_domains": adapted, "feature_names_in": columns, "versions": content["versions"]}
    validate_parameter_constraints(_CONSTRAINTS, {**plain, **settings, **source, **others}, "estimator.json")
    if unknown := [entry["stage"] for entry in plain["history"] if entry["stage"] not in _STAGES]:
        raise ValueError(f"history has the stages {unknown}; expected {_STAGES}")
    if any(type(d) not in (str, int, bool) for d in adapted) or _repeats(adapted):
        raise ValueError(f"adapted_domains is {adapted}; expected str, int or bool, each once")
    n_columns, given = 2 if plain["is_pair"] else 1, plain["n_features_in"]
    if repr(given) not in ("None", str(n_columns)):
        raise ValueError(f"n_features_in is {given!r}; expected {n_columns}")
    if columns is not None:
        columns = [decode(name) for name in columns]
        # one column of a dataset may hold both texts of a pair
        if not given or not 1 <= len(columns) <= n_columns or _repeats(columns):
            raise ValueError(f"feature_names_in is {columns}; expected names of {n_columns} columns, as n_features_in")
    return {
        **plain,
        "settings": settings,
        "classes": decode_names(content["classes"]),
        "domains": decode_names(content["domains"]),
        "encoder_source": EncoderSource(folder="", **source),  # found again when typicality asks for it
        "feature_names_in": columns,
    }


def _repeats(names: list) -> bool:
    return len(set(names)) < len(names)


def _read_arrays(path: Path, sha256: str, fields: Params, width: int) -> Params:
    """``class_counts_``, and the attributes of stage 1 where there was one."""
    tensors = read_tensors(path, sha256)
    grid, n_prototypes = (len(fields["domains"]), len(fields["classes"])), fields["settings"]["n_prototypes"]
    expected = {"class_counts_": torch.empty(grid, dtype=torch.int64, device="meta")}
    if any(entry["stage"] == "typicality" for entry in fields["history"]):
        n_rows = tensors.get("typicality_", torch.empty(0)).shape[:1]
        several = (n_prototypes,) if n_prototypes > 1 else ()
        shapes = [(*grid, *several, width), (*grid, n_prototypes), n_rows, n_rows, n_rows]
        expected |= {
            n: torch.empty(s, dtype=torch.float64, device="meta") for n, s in zip(STAGE_1, shapes, strict=True)
        }
    same_shapes(path, tensors, expected, expected)
    counted = int(tensors["class_counts_"].sum())
    if "typicality_" in tensors and len(tensors["typicality_"]) < counted:
        raise ValueError(f"typicality_ has {len(tensors['typicality_'])} rows, but class_counts_ counts {counted}")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _read_networks(folder: Path, files: Mapping[str, str], fields: Params) -> tuple[TextClassifier, Tokenizer]:
    encoder_folder, path, settings = folder / "encoder", folder / "heads.safetensors", fields["settings"]
    check_encoder(encoder_folder)
    source = EncoderSource(str(encoder_folder), str(encoder_folder), None, "")
    with isolated_generators(0, torch.device("cpu")):
        with reading(encoder_folder):
            tokenizer = load_tokenizer(source, settings["max_length"])
            encoder = load_encoder(source)
        bi_encoded = fields["pair_encoding"] == "bi"
        module = TextClassifier(encoder, len(fields["classes"]), settings["pooling"], bi_encoded)
    heads = read_tensors(path, files[path.name])
    heads = {n: t for n, t in heads.items() if not n.startswith("corruption_head.")}  # format 1 kept it
    own = {n: t for n, t in module.state_dict().items() if not n.startswith("encoder.")}
    same_shapes(path, heads, own, own)
    module.load_state_dict(heads, strict=False)
    return module.eval(), tokenizer
