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
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.base import BaseEstimator

from .._engine.encoder import quiet
from .._typing import Params
from .folder import FORMAT, MANIFEST, mend, sha256_of, swap, write_json
from .state import PLAIN, SOURCE, FittedState, ParamsCheck, decode, decode_names, encode, encode_names, name_of

_LIBRARIES = ("skmft", "scikit-learn", "torch", "transformers", "skorch", "numpy")
_CARD = """\
---
library_name: skmft
pipeline_tag: text-classification
---

# Text classifier for several domains

Fitted with skmft's `{name}` from the encoder `{encoder}` on {n_rows} {texts}. Domains with a model of their own: {adapted}.

```python
from {module} import {name}
clf = {name}.load("path/of/this/folder")
clf.predict(X, domains=d)
```

## Training rows

{table}

## Results on held-out rows

{results}

## Parameters

{params}
"""


def save(state: FittedState, kind: type, check: ParamsCheck, path: str | os.PathLike, notes: str) -> None:
    """Write a fitted classifier of class `kind` to a folder, with `notes` in its model card."""
    target = Path(path).expanduser().resolve()  # a link stays, and what it leads to is replaced
    if os.path.ismount(target) or Path.cwd().is_relative_to(target):
        told = f"path={str(target)!r} is a mount point, or the working directory or a folder around it"
        raise ValueError(f"{told}, which save cannot replace. Name a folder inside it.")
    mend(target)
    params = _as_json(state.params)
    try:
        check({name: decode(value, lambda name, params: state.params["recipe"]) for name, value in params.items()})
        for names in (state.classes, state.domains):
            decode_names(encode_names(names))
    except (TypeError, ValueError) as error:
        raise ValueError(f"load would refuse names or parameters ({error}); set_params, or fit again.") from error
    about = {
        "class": kind.__name__,
        "versions": {name: version(name) for name in _LIBRARIES},
        "params": params,
        "settings": state.settings,
        "classes": encode_names(state.classes),
        "domains": encode_names(state.domains),
        "adapted_domains": list(state.adapted_weights),
        "feature_names_in": [encode(name) for name in state.feature_names_in or ()] or None,
        "encoder_source": {name: getattr(state.encoder_source, name) for name in SOURCE},
        **{name: getattr(state, name) for name in PLAIN},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".new", f".{target.name}.", target.parent, ignore_cleanup_errors=True) as folder:
        new = Path(folder) / "new"
        _write_weights(state, new)
        write_json(new / "estimator.json", about)
        (new / "README.md").write_text(_model_card(state, kind, notes.strip()), encoding="utf-8")
        files = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        write_json(new / MANIFEST, {"format": FORMAT, "files": {name: sha256_of(new / name) for name in files}})
        mode = (new / MANIFEST).stat().st_mode  # as the user's umask has it; some writers keep files to themselves
        for name in files:
            (new / name).chmod(mode)
        swap(new, target)


def _as_json(given: Params) -> Params:
    params, lost = {}, []
    for name, value in {**given, "memory": None}.items():  # memory is a place on this machine
        try:
            params[name] = encode(value)
        except TypeError:
            lost.append(name)  # a recipe's name is kept, so that fit does not follow another one
            params[name] = {"recipe": [name_of(value), None]} if isinstance(value, BaseEstimator) else None
    if lost:
        warnings.warn(f"parameters {lost} cannot be kept in JSON; set them again before fit or adapt.", stacklevel=4)
    return params


def _write_weights(state: FittedState, new: Path) -> None:
    (new / "domains").mkdir(parents=True)
    with quiet():
        state.meta_learner.encoder.save_pretrained(new / "encoder")
        state.tokenizer.save_pretrained(new / "encoder")
    arrays = {**state.arrays, "class_counts_": state.class_counts}
    weights = {
        "heads": {n: t for n, t in state.meta_learner.state_dict().items() if not n.startswith("encoder.")},
        "arrays": {name: torch.tensor(array) for name, array in arrays.items()},
        **{f"domains/{number}": tensors for number, tensors in enumerate(state.adapted_weights.values())},
    }
    for name, tensors in weights.items():
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, new / f"{name}.safetensors")


def _model_card(state: FittedState, kind: type, notes: str) -> str:
    counts = [[d, *n] for d, n in zip(state.domains.tolist(), state.class_counts.tolist())]
    table = [["domain", *state.classes.tolist()], ["---"] * (len(state.classes) + 1), *counts]
    return _CARD.format(
        name=kind.__name__,
        module="skmft" if kind.__module__ == "skmft.classifier" else kind.__module__,
        encoder=state.encoder_source.name,
        n_rows=state.class_counts.sum(),
        texts="text pairs" if state.is_pair else "texts",
        table="\n".join(f"| {' | '.join(map(str, row))} |" for row in table),
        adapted=", ".join(map(str, state.adapted_weights)) or "none",
        results=notes or "None were given when the model was saved; the table above counts training rows.",
        params="\n".join(f"- `{name}`: `{value!r}`" for name, value in state.params.items() if name != "memory"),
    )
