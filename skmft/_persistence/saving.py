"""Save a fitted classifier to a folder: safetensors and JSON, never pickle.

manifest.json             sha256 of every file below, and the format's version
README.md                 model card
estimator.json            parameters, classes, domains, history, library versions
arrays.safetensors        prototypes and what stage 1 found for the training rows
encoder/                  the meta-learner's encoder and its tokenizer, as Hugging Face libraries write them
heads.safetensors         label head
domains/0.safetensors     for each domain with a model of its own, in the order of estimator.json, the tensors that differ
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from .._engine.encoder import quiet
from .._typing import Name, Params
from .folder import FORMAT, MANIFEST, flush, mend, sha256_of, swap, write_json
from .state import FittedState
from .values import decode, decode_names, encode, encode_names

_LIBRARIES = ("skmft", "scikit-learn", "torch", "transformers", "skorch", "numpy")
_NO_RESULTS = (
    "No held-out results were given when the model was saved (`save(path, results=...)` takes them). The table above counts "
    "training rows; how good the model is on others is not known here."
)


def save(
    state: FittedState,
    check: Callable[[Params], object],
    path: str | os.PathLike,
    *,
    notes: str = "",
    results: Mapping[Name, Mapping[str, float]] | None = None,
) -> None:
    """Write a fitted classifier to a folder.

    `check` makes an estimator of parameters, and raises where they are not valid; for the rest see the method of this name.
    """
    notes = "\n\n".join(part for part in (_results_table({} if results is None else results), notes.strip()) if part)
    target = Path(path).expanduser().resolve()  # a link stays, and what it leads to is replaced
    mend(target)
    _refuse_place(target)
    params = _params_as_json(state.params)
    try:
        check({name: decode(value, lambda name, params: state.params["recipe"]) for name, value in params.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the parameters as they are now could not be loaded again ({error}); set_params first."
        ) from error
    names = {"classes": encode_names(state.classes), "domains": encode_names(state.domains)}
    for content in names.values():
        decode_names(content)  # what could not be read is not written
    target.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        _write_weights(state, new)
        source = state.encoder_source
        versions = {name: version(name) for name in _LIBRARIES}
        columns = state.feature_names_in
        write_json(
            new / "estimator.json",
            {
                "class": state.class_name,
                "versions": versions,
                "params": params,
                "settings": {name: encode(value) for name, value in state.settings.items()},
                **names,
                "adapted_domains": [encode(d) for d in state.adapted_weights],
                "unknown": state.unknown,
                "is_pair": state.is_pair,
                "pair_encoding": state.pair_encoding,
                "seed": state.seed,
                "feature_names_in": None if columns is None else [encode(n) for n in columns],
                "n_features_in": state.n_features_in,
                "encoder_source": {"name": source.name, "revision": source.revision, "sha256": source.sha256},
                "history": [{k: encode(v) for k, v in entry.items()} for entry in state.history],
            },
        )
        (new / "README.md").write_text(_model_card(state, versions, notes), encoding="utf-8")
        files = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        write_json(new / MANIFEST, {"format": FORMAT, "files": {name: sha256_of(new / name) for name in files}})
        modes = {True: (new / "domains").stat().st_mode, False: (new / MANIFEST).stat().st_mode}
        for file in [*new.rglob("*"), new]:
            os.chmod(file, modes[file.is_dir()])  # as the user's umask has it; some writers keep files to themselves
            flush(file)
        swap(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _refuse_place(target: Path) -> None:
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        raise ValueError(
            f"path={str(target)!r} is a mount point, or the working directory or a folder around it; save puts a new folder in "
            "its place, which these do not allow. Name a folder inside it."
        )
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"path={str(target)!r} exists and is no saved estimator; expected a new or empty folder.")


def _params_as_json(given: Mapping[str, Any]) -> Params:
    params, lost = {}, []
    for name, value in {**given, "memory": None}.items():  # memory is a place on this machine
        try:
            params[name] = encode(value)
        except TypeError:
            params[name] = None
            lost.append(name)
    if lost:
        warnings.warn(
            f"parameters {lost} cannot be kept in JSON and are saved as None: predictions are not affected, but set them "
            "again before fit or adapt.",
            UserWarning,
            stacklevel=4,
        )
    return params


def _write_weights(state: FittedState, new: Path) -> None:
    module = state.meta_learner
    with quiet():
        module.encoder.save_pretrained(new / "encoder")
        state.tokenizer.save_pretrained(new / "encoder")
    heads = {n: t.detach().cpu().contiguous() for n, t in module.state_dict().items() if not n.startswith("encoder.")}
    save_file(heads, new / "heads.safetensors")
    arrays = {n: torch.from_numpy(np.ascontiguousarray(array)) for n, array in state.arrays.items()}
    arrays["class_counts_"] = torch.from_numpy(state.class_counts)
    save_file(arrays, new / "arrays.safetensors")
    (new / "domains").mkdir()
    for number, domain in enumerate(state.adapted_weights):
        tensors = {n: t.detach().cpu().contiguous() for n, t in state.adapted_weights[domain].items()}
        save_file(tensors, new / "domains" / f"{number}.safetensors")


def _results_table(results: Mapping[Name, Mapping[str, float]]) -> str:
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


def _model_card(state: FittedState, versions: dict[str, str], notes: str) -> str:
    counts, is_ours = state.class_counts, state.class_name == "MetaFineTunedClassifier"
    classes, domains = state.classes.tolist(), state.domains.tolist()
    lines = [
        "---",
        "library_name: skmft",
        "pipeline_tag: text-classification",
        "---",
        "",
        "# Text classifier for several domains" + (", by Meta Fine-Tuning" if is_ours else ""),
        "",
        f"Fitted with skmft's `{state.class_name}` from the encoder `{state.encoder_source.name}` on {int(counts.sum())} "
        f"{'text pairs' if state.is_pair else 'texts'}.",
        "",
        "```python",
        f"from skmft{'' if is_ours else '.baselines'} import {state.class_name}",
        "",
        f'clf = {state.class_name}.load("path/of/this/folder")',
        "clf.predict(X, domains=d)",
        "```",
        "",
        "## Training rows",
        "",
        "| domain | " + " | ".join(map(str, classes)) + " | adapted |",
        "| --- " * (len(classes) + 2) + "|",
    ]
    for name, row in zip(domains, counts):
        has = "yes" if name in state.adapted_weights else "no"
        lines.append(f"| {name} | " + " | ".join(map(str, row.tolist())) + f" | {has} |")
    later = [str(d) for d in state.adapted_weights if d not in domains]
    if later:
        lines += ["", f"Adapted to later: {', '.join(later)}."]
    lines += ["", "## Results", "", notes or _NO_RESULTS, "", "## Parameters", ""]
    lines += [f"- `{name}`: `{value!r}`" for name, value in state.params.items() if name != "memory"]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in versions.items()), ""]
    return "\n".join(lines)
