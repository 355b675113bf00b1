"""Save a fitted classifier to a folder and load it again: safetensors and JSON, never pickle.

manifest.json             sha256 of every file below, and the format's version
README.md                 model card
estimator.json            parameters, classes, domains, history, library versions
arrays.safetensors        prototypes and what stage 1 found for the training rows
encoder/                  the meta-learner's encoder and its tokenizer, as Hugging Face libraries write them
heads.safetensors         label head and corruption head
domains/0.safetensors     for each adapted domain, in the order of estimator.json, the tensors that differ
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .folders import (
    FORMAT,
    MANIFEST,
    PersistenceError,
    flush,
    kept_aside,
    mend,
    read_json,
    read_tensors,
    reading,
    sha256_of,
    swap,
    verified_files,
    write_json,
)

__all__ = ["PersistenceError", "StoredWeights", "load", "save"]

_ARRAYS = ("prototypes_", "prototype_shares_", "typicality_", "own_similarity_", "cross_similarity_")
_NEVER = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".safetensors", ".py", ".pyc", ".so"}
_CODE_KEYS = {"auto_map", "transformers_weights", "quantization_config"}
_LIBRARIES = ("skmft", "scikit-learn", "torch", "transformers", "skorch", "numpy")
_NO_RESULTS = (
    "No held-out results were given when the model was saved (`save(path, results=...)` takes them). The table above counts "
    "training rows; how good the model is on others is not known here."
)


# --------------------------------------------------------- values with their types


def _encode(value: Any) -> Any:
    """A value of a parameter as JSON that remembers tuples and the keys of dicts; other sequences become lists."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (Sequence, np.ndarray)):  # such as a range
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k), _encode(v)] for k, v in value.items()]}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {_decode(k): _decode(v) for k, v in content}
    return {"list": list, "tuple": tuple}[kind](_decode(v) for v in content)


def _encode_names(names: NDArray[Any]) -> dict[str, Any]:
    dtype = names.dtype.str if names.dtype.kind in "Uiufb" else "object"
    return {"dtype": dtype, "values": [_encode(value) for value in names.tolist()]}


def _decode_names(content: dict[str, Any]) -> NDArray[Any]:
    dtype, values = content["dtype"], content["values"]
    if dtype != "object" and not re.fullmatch(r"[<>|=](U[0-9]{1,6}|[iuf][1248]|b1)", dtype):
        raise ValueError(f"dtype {dtype!r}")
    if not isinstance(values, list) or not all(isinstance(v, (str, bool, int, float)) for v in values):
        raise ValueError("values are not all str, bool or numbers")
    out = np.empty(len(values), dtype=dtype)
    out[:] = values
    if out.tolist() != values or len(set(values)) < len(values):
        raise ValueError(f"values do not fit dtype {dtype!r} or repeat")
    return out


# ------------------------------------------------------------- domains on demand


class StoredWeights(Mapping):
    """Adapted tensors of every domain, read from a saved folder when they are first asked for.

    Parameters
    ----------
    files : dict
        Domain -> (path, sha256).
    check : callable
        Called with the path and the tensors; raises where they do not fit the meta-learner.
    """

    def __init__(self, files: dict[Any, tuple[Path, str]], check: Callable[[Path, Mapping], None]) -> None:
        self._files, self._check = files, check
        self._held: dict[Any, dict[str, torch.Tensor]] = {}

    def __getitem__(self, domain: Any) -> dict[str, torch.Tensor]:
        if domain not in self._held:
            path, sha256 = self._files[domain]
            tensors = read_tensors(path, sha256)
            self._check(path, tensors)
            self._held[domain] = tensors
        return self._held[domain]

    def __or__(self, other: Mapping[Any, dict[str, torch.Tensor]]) -> StoredWeights:
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

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a pickle does not depend on the folder


# ----------------------------------------------------------------------- save


def save(
    clf: Any, path: str | os.PathLike, *, notes: str = "", results: Mapping[Any, Mapping[str, float]] | None = None
) -> None:
    """Write a fitted classifier to a folder; see `MetaFineTunedClassifier.save`."""
    from importlib.metadata import version

    from safetensors.torch import save_file
    from sklearn.utils.validation import check_is_fitted

    from .corruption import CorruptionHead
    from .networks import quiet

    check_is_fitted(clf)
    clf._check_unchanged()
    notes = "\n\n".join(part for part in (_results_table({} if results is None else results), notes.strip()) if part)
    target = Path(path).expanduser().resolve()  # a link stays, and what it leads to is replaced
    mend(target)
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        raise ValueError(
            f"path={str(target)!r} is a mount point, or the working directory or a folder around it; save puts a new folder in "
            "its place, which these do not bear. Name a folder inside it."
        )
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"path={str(target)!r} exists and is no saved estimator; expected a new or empty folder.")
    params, lost = {}, []
    for name, value in {**clf.get_params(deep=False), "memory": None}.items():  # memory is a place on this machine
        try:
            params[name] = _encode(value)
        except TypeError:
            params[name] = None
            lost.append(name)
    if lost:
        warnings.warn(
            f"parameters {lost} cannot be kept in JSON and are saved as None: predictions are not affected, but set them "
            "again before fit or adapt.",
            UserWarning,
            stacklevel=3,
        )
    try:
        type(clf)(**{name: _decode(value) for name, value in params.items()})._check_parameters()
    except (TypeError, ValueError) as error:
        raise ValueError(f"the parameters of now could not be loaded again ({error}); set_params first.") from error
    names = {"classes": _encode_names(clf.classes_), "domains": _encode_names(clf.domains_)}
    for content in names.values():
        _decode_names(content)  # what could not be read is not written
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        module = clf.net_.module_
        with quiet():
            module.encoder.save_pretrained(new / "encoder")
            clf.tokenizer_.save_pretrained(new / "encoder")
        corruption = module.corruption_head if isinstance(module.corruption_head, CorruptionHead) else None
        parts = ("label_head.",) if corruption is None else ("label_head.", "corruption_head.")
        heads = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items() if n.startswith(parts)}
        save_file(heads, new / "heads.safetensors")
        arrays = {n: torch.from_numpy(np.ascontiguousarray(getattr(clf, n))) for n in _ARRAYS if hasattr(clf, n)}
        arrays["class_counts_"] = torch.from_numpy(clf.class_counts_)
        save_file(arrays, new / "arrays.safetensors")
        (new / "domains").mkdir()
        for number, domain in enumerate(clf.adapted_weights_):
            tensors = {n: t.detach().cpu().contiguous() for n, t in clf.adapted_weights_[domain].items()}
            save_file(tensors, new / "domains" / f"{number}.safetensors")
        source = clf.encoder_source_
        versions = {name: version(name) for name in _LIBRARIES}
        write_json(
            new / "estimator.json",
            {
                "versions": versions,
                "params": params,
                **names,
                "adapted_domains": [_encode(d) for d in clf.adapted_weights_],
                "corruption_layers": None if corruption is None else list(corruption.layers),
                "is_pair": clf.is_pair_,
                "pair_encoding": clf.pair_encoding_,
                "seed": clf.seed_,
                "feature_names_in": [_encode(n) for n in clf.feature_names_in_]
                if hasattr(clf, "feature_names_in_")
                else None,
                "n_features_in": getattr(clf, "n_features_in_", None),
                "encoder_source": {"name": source.name, "revision": source.revision, "sha256": source.sha256},
                "history": [{k: _encode(v) for k, v in entry.items()} for entry in clf.history_],
            },
        )
        (new / "README.md").write_text(_model_card(clf, versions, notes), encoding="utf-8")
        files = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        write_json(new / MANIFEST, {"format": FORMAT, "files": {name: sha256_of(new / name) for name in files}})
        modes = {True: (new / "domains").stat().st_mode, False: (new / MANIFEST).stat().st_mode}
        for file in [*new.rglob("*"), new]:
            os.chmod(file, modes[file.is_dir()])  # as the user's umask has it; some writers keep files to themselves
            flush(file)
        swap(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _results_table(results: Mapping[Any, Mapping[str, float]]) -> str:
    """Markdown of what `domain_report` gives with ``output_dict=True``; empty for no results."""
    lines = results.values() if isinstance(results, Mapping) else [None]
    if not all(isinstance(line, Mapping) and all(isinstance(v, Real) for v in line.values()) for line in lines):
        raise ValueError(
            f"results is {results!r:.100}; expected a dict of dicts of numbers, as domain_report(..., output_dict=True) gives "
            "it; text goes into notes."
        )
    columns = list(dict.fromkeys(column for line in results.values() for column in line))
    rows = [["domain", *columns], ["---"] * (len(columns) + 1)] if results else []
    for name, line in results.items():
        rows.append([str(name), *(f"{line[c]:.4g}" if c in line else "" for c in columns)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _model_card(clf: Any, versions: dict[str, str], notes: str) -> str:
    counts = clf.class_counts_
    classes, domains = clf.classes_.tolist(), clf.domains_.tolist()
    lines = [
        "---",
        "library_name: skmft",
        "pipeline_tag: text-classification",
        "---",
        "",
        "# Text classifier for several domains, by Meta Fine-Tuning",
        "",
        f"Fitted with skmft from the encoder `{clf.encoder_source_.name}` on {int(counts.sum())} "
        f"{'text pairs' if clf.is_pair_ else 'texts'}.",
        "",
        "```python",
        "from skmft import MetaFineTunedClassifier",
        "",
        'clf = MetaFineTunedClassifier.load("path/of/this/folder")',
        "clf.predict(X, domains=d)",
        "```",
        "",
        "## Training rows",
        "",
        "| domain | " + " | ".join(map(str, classes)) + " | adapted |",
        "| --- " * (len(classes) + 2) + "|",
    ]
    for name, row in zip(domains, counts):
        has = "yes" if name in clf.adapted_weights_ else "no"
        lines.append(f"| {name} | " + " | ".join(map(str, row.tolist())) + f" | {has} |")
    later = [str(d) for d in clf.adapted_weights_ if d not in domains]
    if later:
        lines += ["", f"Adapted to later: {', '.join(later)}."]
    lines += [
        "",
        "## Results",
        "",
        notes or _NO_RESULTS,
        "",
        "## Parameters",
        "",
    ]
    lines += [f"- `{name}`: `{value!r}`" for name, value in clf.get_params(deep=False).items() if name != "memory"]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in versions.items()), ""]
    return "\n".join(lines)


# ----------------------------------------------------------------------- load


def fetch(path: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder itself, or the local snapshot of a repository of the hub."""
    folder = Path(path).expanduser().resolve()
    if folder.is_dir() or kept_aside(folder).is_dir():  # `load` takes the latter where a save was cut off
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(path), revision=revision))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PersistenceError(
            f"path={os.fspath(path)!r} is neither a folder nor a repository of the hub ({type(error).__name__}: {reason})."
        ) from error


def load(cls: type, path: str | os.PathLike) -> Any:
    """Read a folder that `save` wrote; see `MetaFineTunedClassifier.load`."""
    folder = Path(path).expanduser().resolve()
    if not folder.exists() and kept_aside(folder).is_dir():
        folder = kept_aside(folder)  # a save was cut off between two renames
    if not folder.is_dir():
        raise PersistenceError(
            f"path={str(folder)!r} is no folder; expected one that MetaFineTunedClassifier.save wrote."
        )
    files = verified_files(folder)
    for name in ("estimator.json", "arrays.safetensors", "heads.safetensors", "encoder/config.json"):
        if name not in files:
            raise PersistenceError(f"{folder / name} is not in {MANIFEST}; the folder is not complete.")
    about = folder / "estimator.json"
    content = read_json(about)
    with reading(about):
        _typed(content["versions"], dict, "versions")
        params = {name: _decode(value) for name, value in content["params"].items()}
        clf = cls(**{**params, "memory": None})  # a folder from elsewhere does not say where to write
        if missing := set(clf.get_params(deep=False)) - set(params):
            raise ValueError(f"params lack {sorted(missing)}")
        clf._check_parameters()
        _fall_back_to_a_device(clf)
        clf.classes_, clf.domains_ = _decode_names(content["classes"]), _decode_names(content["domains"])
        if len(clf.classes_) < 2 or not len(clf.domains_):
            raise ValueError("fewer than two classes, or no domain")
        clf.is_pair_, clf.seed_ = _typed(content["is_pair"], bool, "is_pair"), _typed(content["seed"], int, "seed")
        clf.pair_encoding_ = content["pair_encoding"]
        if clf.pair_encoding_ not in (("bi", "cross") if clf.is_pair_ else (None,)):
            raise ValueError(f"pair_encoding is {clf.pair_encoding_!r}")
        clf.history_ = _read_history(content["history"])
        _read_columns(clf, content["n_features_in"], content["feature_names_in"])
        adapted = [_decode(d) for d in _typed(content["adapted_domains"], list, "adapted_domains")]
        if any(type(d) not in (str, int, bool) for d in adapted) or len(set(adapted)) < len(adapted):
            raise ValueError(f"adapted_domains is {adapted}; expected str, int or bool, each once")
        stored = sorted(name for name in files if name.startswith("domains/"))
        own_files = [f"domains/{number}.safetensors" for number in range(len(adapted))]
        if stored != sorted(own_files):
            raise ValueError(
                f"adapted_domains has {len(adapted)} names, but the files are {stored}; expected one a name"
            )
        layers = content["corruption_layers"]
        if layers is not None:
            layers = [_typed(n, int, "a corruption layer") for n in _typed(layers, list, "corruption_layers")]
        source = {k: content["encoder_source"][k] for k in ("name", "revision", "sha256")}
    _read_networks(clf, folder, layers, files["heads.safetensors"])
    _read_arrays(clf, folder / "arrays.safetensors", files["arrays.safetensors"])
    _read_source(clf, source, about)

    def check(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        module = clf.net_.module_
        own = {**module.state_dict(), **_adapter_shapes(path, tensors, module)}
        _same_shapes(path, tensors, own, all_names=False)

    clf.adapted_weights_ = StoredWeights(
        {d: (folder / name, files[name]) for d, name in zip(adapted, own_files)}, check
    )
    return clf


def _fall_back_to_a_device(clf: Any) -> None:
    from .training import resolve_device

    try:
        resolve_device(clf.device)
    except ValueError:
        warnings.warn(f"device={clf.device!r} is not here; the estimator was loaded with device='auto'.", stacklevel=5)
        clf.device = "auto"


def _typed(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}; expected a value of type {kind.__name__}")
    return value


def _read_source(clf: Any, source: dict[str, Any], about: Path) -> None:
    from .networks import EncoderSource

    with reading(about):
        revision = source["revision"]
        clf.encoder_source_ = EncoderSource(
            name=_typed(source["name"], str, "the encoder's name"),
            folder="",  # found again when typicality asks for it
            revision=None if revision is None else _typed(revision, str, "the encoder's revision"),
            sha256=_typed(source["sha256"], str, "the encoder's sha256"),
        )


def _read_history(history: Any) -> list[dict[str, Any]]:
    stages = ("typicality", "meta", "adaptation")
    for entry in _typed(history, list, "history"):
        if _typed(entry, dict, "an entry of history").get("stage") not in stages:
            raise ValueError(f"an entry of history has the stage {entry.get('stage')!r}; expected one of {stages}")
    return [{k: _decode(v) for k, v in entry.items()} for entry in history]


def _read_columns(clf: Any, n_features_in: Any, feature_names_in: Any) -> None:
    most = 2 if clf.is_pair_ else 1
    if n_features_in is not None:
        if type(n_features_in) is not int or n_features_in != most:
            raise ValueError(f"n_features_in is {n_features_in!r}; expected {most}")
        clf.n_features_in_ = n_features_in
    if feature_names_in is not None:
        names = [_decode(n) for n in _typed(feature_names_in, list, "feature_names_in")]
        # one column of a dataset may hold both texts of a pair
        if n_features_in is None or not 1 <= len(set(names)) == len(names) <= most:
            raise ValueError(f"feature_names_in is {names}; expected names of {most} columns, as n_features_in")
        clf.feature_names_in_ = np.array(names, dtype=object)


def _read_arrays(clf: Any, path: Path, sha256: str) -> None:
    with reading(path):
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(path, sha256).items()}
        grid = (len(clf.domains_), len(clf.classes_))
        counts = arrays.get("class_counts_")
        if counts is None or counts.dtype != np.int64 or counts.shape != grid or counts.min() < 0:
            raise ValueError(
                f"class_counts_ is not one int64 of 0 or more for each of {grid[0]} domains, {grid[1]} classes"
            )
        scored = any(entry["stage"] == "typicality" for entry in clf.history_)  # the parameter may have been set since
        expected = {"class_counts_", *(_ARRAYS if scored else ())}
        if set(arrays) != expected:
            told = "has" if scored else "lacks"
            raise ValueError(f"it holds {sorted(arrays)}; expected {sorted(expected)}, as history {told} stage 1")
        if scored:
            n_rows, n_prototypes = arrays["typicality_"].shape[:1], clf.n_prototypes
            several = (n_prototypes,) if n_prototypes > 1 else ()
            shapes = [(*grid, *several, clf._n_features_out), (*grid, n_prototypes), n_rows, n_rows, n_rows]
            for name, shape in zip(_ARRAYS, shapes, strict=True):
                if arrays[name].dtype != np.float64 or arrays[name].shape != shape:
                    got = f"{arrays[name].dtype} of shape {arrays[name].shape}"
                    raise ValueError(f"{name} is {got}; expected float64 of shape {shape}")
            if n_rows < (counts.sum(),):
                raise ValueError(f"typicality_ has {n_rows} rows, but class_counts_ counts {counts.sum()}")
        for name, array in arrays.items():
            setattr(clf, name, array)


def _read_networks(clf: Any, folder: Path, layers: list[int] | None, heads_sha256: str) -> None:
    from .corruption import CorruptionHead
    from .networks import EncoderSource, TextClassifier, embedding_width, layer_indices, load_tokenizer
    from .stages import Run

    encoder_folder = folder / "encoder"
    _check_encoder(encoder_folder)
    source = EncoderSource(str(encoder_folder), str(encoder_folder), None, "")
    run = Run.start(clf, clf.seed_)
    with reading(encoder_folder):
        clf.tokenizer_ = load_tokenizer(source, clf.max_length)
        encoder = run.load(source)
    if layers is not None:
        with reading(folder / "estimator.json"):
            layers = layer_indices(layers, encoder.config.num_hidden_layers)
    path = folder / "heads.safetensors"
    heads = read_tensors(path, heads_sha256)
    with reading(path), run.generators("label head"):
        apart = clf.pair_encoding_ == "bi"
        width = embedding_width(encoder, apart)
        module = TextClassifier(encoder, len(clf.classes_), clf.pooling, apart)
        if layers is not None:
            module.corruption_head = CorruptionHead(width, len(clf.domains_), layers)
    own = {n: t for n, t in module.state_dict().items() if not n.startswith("encoder.")}
    _same_shapes(path, heads, own, all_names=True)
    module.load_state_dict(heads, strict=False)
    clf.net_ = run.net(module)
    clf._n_features_out = width
    clf._keep_settings()


def _check_encoder(folder: Path) -> None:
    """Compare the weights with what config.json asks for, before anything of that size is made."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    _check_names(folder)
    config_path = folder / "config.json"
    raw = read_json(config_path)
    with reading(config_path):
        _refuse_keys(raw)
        for name in ("num_hidden_layers", "n_layers", "num_layers"):
            if name in raw and not 0 < _typed(raw[name], int, name) <= 1000:
                raise ValueError(f"{name} is {raw[name]}")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            empty = AutoModel.from_config(config, trust_remote_code=False)
    expected = {n: tuple(t.shape) for n, t in empty.state_dict().items() if not n.startswith("pooler.")}
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with reading(path), safe_open(path, framework="pt") as file:
            found.update({n: tuple(file.get_slice(n).get_shape()) for n in file.keys()})
    if found != expected:
        odd = sorted({n for n in {*found, *expected} if found.get(n) != expected.get(n)})[0]
        raise PersistenceError(
            f"{folder} is not one model: {odd!r} has shape {found.get(odd)} in the weights and {expected.get(odd)} by "
            "config.json; save again."
        )


def _check_names(folder: Path) -> None:
    """No weights and code but the weights that `save` writes (beside a tokenizer's files): transformers would look further."""
    shards = []
    for path in sorted(folder.iterdir()):
        is_weights = bool(re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name))
        if is_weights:
            shards.append(path.name)
        elif path.is_dir() or path.suffix in _NEVER or path.name.startswith("adapter_"):
            raise PersistenceError(f"{path} is no file that save writes; remove it, or save again.")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or sorted(set(map(str, weight_map.values()))) != shards:
            raise PersistenceError(f"{index} does not name the files that are there, {shards}; save again.")
    elif shards != ["model.safetensors"]:
        raise PersistenceError(f"{folder} has the weights {shards}; expected model.safetensors, or {index.name} too.")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        content = read_json(tokenizer)
        with reading(tokenizer):
            _refuse_keys(content)


def _refuse_keys(content: Any) -> None:
    """Refuse what has transformers run code, read other files or fetch kernels; at any depth."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _CODE_KEYS or str(key).endswith("_implementation"):
                raise ValueError(f"{key} names code or other files, which are never read")
            _refuse_keys(value)


def _adapter_shapes(path: Path, tensors: Mapping[str, torch.Tensor], module: torch.nn.Module) -> dict[str, Any]:
    """Tensors of the shapes that the adapters in a domain's file must have: those of their layers, and one rank a pair."""
    from .lora import A, B

    layers = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("encoder.")}
    expected = {}
    for name in {name.removesuffix(end) for name in tensors for end in (A, B) if name.endswith(end)}:
        if name not in layers or not {name + A, name + B} <= set(tensors) or not tensors[name + A].numel():
            raise PersistenceError(f"{path} does not fit the meta-learner: the adapter of {name!r}; save again.")
        weight, rank = layers[name].weight, len(tensors[name + A])
        expected[name + A] = weight.new_empty((rank, weight.shape[1]), device="meta")
        expected[name + B] = weight.new_empty((weight.shape[0], rank), device="meta")
    return expected


def _same_shapes(path: Path, got: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], all_names: bool) -> None:
    wrong = {n for n in got if n not in own or own[n].shape != got[n].shape or own[n].dtype != got[n].dtype}
    if all_names:
        wrong |= set(own) - set(got)
    if wrong or not got:
        raise PersistenceError(
            f"{path} does not fit the meta-learner: {sorted(wrong)[:3] or 'it is empty'}; save again."
        )
