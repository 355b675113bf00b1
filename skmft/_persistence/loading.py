"""Load a folder that `save` wrote, of this version or the one before."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._engine.encoder import EncoderSource, load_encoder, load_tokenizer
from .._engine.model import TextClassifier
from .._engine.pooling import embedding_width
from .._engine.runtime import isolated_generators, resolve_device
from .._typing import Json, Name, Params, Record
from .checks import adapter_shapes, check_encoder, same_shapes, typed
from .folder import MANIFEST, PersistenceError, kept_aside, read_json, read_tensors, reading, verified_files
from .state import STAGE_1, FittedState
from .values import decode, decode_names

RecipeMaker = Callable[[str, Params], Any]


class StoredWeights(Mapping):
    """Adapted tensors of every domain, read from a saved folder when they are first asked for.

    Parameters
    ----------
    files : dict
        Domain -> (path, sha256).
    check : callable
        Called with the path and the tensors; raises where they do not fit the meta-learner.
    """

    def __init__(self, files: dict[Name, tuple[Path, str]], check: Callable[[Path, Mapping], None]) -> None:
        self._files, self._check = files, check
        self._held: dict[Name, dict[str, torch.Tensor]] = {}

    def __getitem__(self, domain: Name) -> dict[str, torch.Tensor]:
        if domain not in self._held:
            path, sha256 = self._files[domain]
            tensors = read_tensors(path, sha256)
            self._check(path, tensors)
            self._held[domain] = tensors
        return self._held[domain]

    def __or__(self, other: Mapping[Name, dict[str, torch.Tensor]]) -> StoredWeights:
        both = StoredWeights(self._files, self._check)
        both._held = {**self._held, **other}
        return both

    def __contains__(self, domain: object) -> bool:
        return domain in self._files or domain in self._held

    def __iter__(self) -> Iterator[Any]:
        return iter(dict.fromkeys([*self._files, *self._held]))

    def __len__(self) -> int:
        return len({*self._files, *self._held})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)  # a pickle does not depend on the folder


def load(
    class_name: str, check: Callable[[Params], object], recipe: RecipeMaker, path: str | os.PathLike
) -> FittedState:
    """Read a folder."""
    folder = Path(path).expanduser().resolve()
    if not folder.exists() and kept_aside(folder).is_dir():
        folder = kept_aside(folder)  # a save was cut off between two renames
    if not folder.is_dir():
        raise PersistenceError(f"path={str(folder)!r} is no folder; expected one that {class_name}.save wrote.")
    version, files = verified_files(folder)
    for name in ("estimator.json", "arrays.safetensors", "heads.safetensors", "encoder/config.json"):
        if name not in files:
            raise PersistenceError(f"{folder / name} is not in {MANIFEST}; the folder is not complete.")
    about = folder / "estimator.json"
    content = read_json(about)
    with reading(about):
        if version == 1:
            content = _from_format_1(content)
        if content["class"] != class_name:
            raise PersistenceError(f"{about} is of a {content['class']}; load it by {content['class']}.load.")
        typed(content["versions"], dict, "versions")
        params = {name: decode(value, recipe) for name, value in content["params"].items()}
        params = _with_a_device(
            {n: v if n != "memory" else None for n, v in params.items()}
        )  # no folder says where to write
        check(params)
        settings = {name: decode(value) for name, value in typed(content["settings"], dict, "settings").items()}
        least = {"max_length": 2, "n_prototypes": 1}
        if set(settings) != {*least, "pooling"} or settings["pooling"] not in ("mean", "cls"):
            raise ValueError(f"settings are {settings}; expected max_length, n_prototypes and pooling")
        if any(not isinstance(settings[name], int) or settings[name] < low for name, low in least.items()):
            raise ValueError(f"settings are {settings}; expected numbers of at least {least}")
        classes, domains = decode_names(content["classes"]), decode_names(content["domains"])
        if len(classes) < 2 or not len(domains):
            raise ValueError("fewer than two classes, or no domain")
        is_pair, seed = typed(content["is_pair"], bool, "is_pair"), typed(content["seed"], int, "seed")
        pair_encoding = content["pair_encoding"]
        if pair_encoding not in (("bi", "cross") if is_pair else (None,)):
            raise ValueError(f"pair_encoding is {pair_encoding!r}")
        if content["unknown"] not in ("model", "mean"):
            raise ValueError(f"unknown is {content['unknown']!r}; expected 'model' or 'mean'")
        history = _read_history(content["history"])
        columns = _read_columns(content["n_features_in"], content["feature_names_in"], 2 if is_pair else 1)
        adapted = [decode(d) for d in typed(content["adapted_domains"], list, "adapted_domains")]
        if any(type(d) not in (str, int, bool) for d in adapted) or len(set(adapted)) < len(adapted):
            raise ValueError(f"adapted_domains is {adapted}; expected str, int or bool, each once")
        stored = sorted(name for name in files if name.startswith("domains/"))
        own_files = [f"domains/{number}.safetensors" for number in range(len(adapted))]
        if stored != sorted(own_files):
            raise ValueError(
                f"adapted_domains has {len(adapted)} names, but the files are {stored}; expected one a name"
            )
        source = _read_source(content["encoder_source"])
    module, tokenizer = _read_networks(folder, settings, len(classes), pair_encoding, files["heads.safetensors"])
    arrays = _read_arrays(
        folder / "arrays.safetensors",
        files["arrays.safetensors"],
        grid=(len(domains), len(classes)),
        n_prototypes=settings["n_prototypes"],
        width=embedding_width(module.encoder, module.bi_encoded),
        scored=any(entry["stage"] == "typicality" for entry in history),
    )

    def fits(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        same_shapes(path, tensors, {**module.state_dict(), **adapter_shapes(path, tensors, module)}, all_names=False)

    return FittedState(
        class_name=class_name,
        params=params,
        settings=settings,
        classes=classes,
        domains=domains,
        class_counts=arrays.pop("class_counts_"),
        arrays=arrays,
        history=history,
        meta_learner=module,
        tokenizer=tokenizer,
        adapted_weights=StoredWeights({d: (folder / n, files[n]) for d, n in zip(adapted, own_files)}, fits),
        encoder_source=source,
        is_pair=is_pair,
        pair_encoding=pair_encoding,
        seed=seed,
        unknown=content["unknown"],
        n_features_in=columns[0],
        feature_names_in=columns[1],
    )


def _from_format_1(content: Params) -> Params:
    """What estimator.json of skmft 0.1 says, in the names of today."""
    params = dict(typed(content["params"], dict, "params"))
    lora = {"r": "lora_rank", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"}
    recipe = ("corruption_layers", "corruption_labels", "contrastive_temperature")
    optimizer = ("weight_decay", "warmup_ratio", "max_grad_norm")
    pick = {new: params.pop(old) for new, old in lora.items()}
    params["lora_config"] = {"dict": [[name, value] for name, value in pick.items()]}
    params["optimizer_params"] = {"dict": [[name, params.pop(name)] for name in optimizer]}
    details = {"dict": [[name, params.pop(name)] for name in recipe]}
    params["recipe"] = {"recipe": ["skmft.recipes.MetaFineTuning", details]}
    params["unknown_domain"] = {"meta": "ignore"}.get(params["unknown_domain"], params["unknown_domain"])
    settings = {name: params[name] for name in ("max_length", "n_prototypes", "pooling")}
    return {**content, "params": params, "settings": settings, "class": "MetaFineTunedClassifier", "unknown": "model"}


def _with_a_device(params: Params) -> Params:
    try:
        resolve_device(params["device"])
    except ValueError:
        warnings.warn(
            f"device={params['device']!r} is not here; the estimator was loaded with device='auto'.", stacklevel=4
        )
        return {**params, "device": "auto"}
    return params


def _read_source(source: Params) -> EncoderSource:
    revision = source["revision"]
    return EncoderSource(
        name=typed(source["name"], str, "the encoder's name"),
        folder="",  # found again when typicality asks for it
        revision=None if revision is None else typed(revision, str, "the encoder's revision"),
        sha256=typed(source["sha256"], str, "the encoder's sha256"),
    )


def _read_history(history: Json) -> list[Record]:
    stages = ("typicality", "meta", "adaptation")
    for entry in typed(history, list, "history"):
        if typed(entry, dict, "an entry of history").get("stage") not in stages:
            raise ValueError(f"an entry of history has the stage {entry.get('stage')!r}; expected one of {stages}")
    return [{k: decode(v) for k, v in entry.items()} for entry in history]


def _read_columns(n_features_in: Any, feature_names_in: Any, most: int) -> tuple[int | None, list[Any] | None]:
    if n_features_in is not None and (type(n_features_in) is not int or n_features_in != most):
        raise ValueError(f"n_features_in is {n_features_in!r}; expected {most}")
    if feature_names_in is None:
        return n_features_in, None
    names = [decode(n) for n in typed(feature_names_in, list, "feature_names_in")]
    # one column of a dataset may hold both texts of a pair
    if n_features_in is None or not 1 <= len(set(names)) == len(names) <= most:
        raise ValueError(f"feature_names_in is {names}; expected names of {most} columns, as n_features_in")
    return n_features_in, names


def _read_arrays(
    path: Path, sha256: str, *, grid: tuple[int, int], n_prototypes: int, width: int, scored: bool
) -> Params:
    """``class_counts_``, and the attributes of stage 1 where there was one."""
    with reading(path):
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(path, sha256).items()}
        counts = arrays.get("class_counts_")
        if counts is None or counts.dtype != np.int64 or counts.shape != grid or counts.min() < 0:
            raise ValueError(
                f"class_counts_ is not one int64 of 0 or more for each of {grid[0]} domains, {grid[1]} classes"
            )
        expected = {"class_counts_", *(STAGE_1 if scored else ())}
        if set(arrays) != expected:
            told = "has" if scored else "lacks"
            raise ValueError(f"it holds {sorted(arrays)}; expected {sorted(expected)}, as history {told} stage 1")
        if scored:
            n_rows = arrays["typicality_"].shape[:1]
            several = (n_prototypes,) if n_prototypes > 1 else ()
            shapes = [(*grid, *several, width), (*grid, n_prototypes), n_rows, n_rows, n_rows]
            for name, shape in zip(STAGE_1, shapes, strict=True):
                if arrays[name].dtype != np.float64 or arrays[name].shape != shape:
                    got = f"{arrays[name].dtype} of shape {arrays[name].shape}"
                    raise ValueError(f"{name} is {got}; expected float64 of shape {shape}")
            if n_rows < (counts.sum(),):
                raise ValueError(f"typicality_ has {n_rows} rows, but class_counts_ counts {counts.sum()}")
        return arrays


def _read_networks(
    folder: Path, settings: Params, n_classes: int, pair_encoding: str | None, heads_sha256: str
) -> tuple[TextClassifier, Any]:
    encoder_folder = folder / "encoder"
    check_encoder(encoder_folder)
    source = EncoderSource(str(encoder_folder), str(encoder_folder), None, "")
    path = folder / "heads.safetensors"
    with isolated_generators(0, torch.device("cpu")):
        with reading(encoder_folder):
            tokenizer = load_tokenizer(source, settings["max_length"])
            encoder = load_encoder(source)
        module = TextClassifier(encoder, n_classes, settings["pooling"], pair_encoding == "bi")
    heads = read_tensors(path, heads_sha256)
    heads = {n: t for n, t in heads.items() if not n.startswith("corruption_head.")}  # format 1 kept it
    own = {n: t for n, t in module.state_dict().items() if not n.startswith("encoder.")}
    same_shapes(path, heads, own, all_names=True)
    module.load_state_dict(heads, strict=False)
    return module.eval(), tokenizer
