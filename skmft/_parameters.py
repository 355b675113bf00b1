"""What the parameters of all classifiers may be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from skorch.callbacks import Callback

from ._engine.training import OUR_CALLBACKS
from ._typing import Params

EPOCHS: list[Any] = [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")]
CONSTRAINTS: dict[str, list] = {  # of the parameters that all classifiers have
    "model": [str, os.PathLike],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "domain_column": [str, Integral, None],
    "random_state": ["random_state"],
    "max_length": [Interval(Integral, 2, None, closed="left")],
    "pooling": [StrOptions({"mean", "cls"})],
    "pair_encoding": [StrOptions({"auto", "bi", "cross"})],
    "class_weight": [StrOptions({"balanced"}), dict, None],
    "unknown_domain": [StrOptions({"ignore", "error"})],
    "optimizer_params": [dict, None],
    "callbacks": [list, tuple, None],
    "device": [str, torch.device],
    "precision": [StrOptions({"auto", "float32", "bfloat16"})],
    "memory": [str, os.PathLike, HasMethods(["cache"]), None],
    "distributed": ["boolean"],
    "verbose": ["verbose"],
}
OPTIMIZER_DEFAULTS: Params = {"weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0}
_OPTIMIZER_RANGES = {
    "weight_decay": Interval(Real, 0, None, closed="left"),
    "warmup_ratio": Interval(Real, 0, 1, closed="both"),
    "max_grad_norm": Interval(Real, 0, None, closed="neither"),
}


def check_optimizer_params(given: Mapping[str, Any] | None) -> None:
    """Raise a ValueError where `optimizer_params` has an unknown key or a value out of range."""
    for name, value in (given or {}).items():
        if name not in _OPTIMIZER_RANGES:
            raise ValueError(f"optimizer_params has the key {name!r}; expected some of {list(_OPTIMIZER_RANGES)}.")
        accepted = _OPTIMIZER_RANGES[name]
        none = name == "max_grad_norm"
        if not (accepted.is_satisfied_by(value) or (none and value is None)):
            raise ValueError(f"optimizer_params[{name!r}]={value!r}; expected {accepted}{' or None' if none else ''}.")


def check_callbacks(callbacks: Sequence[Any] | None) -> None:
    """Raise a ValueError where `callbacks` holds something else, or names one twice."""
    for callback in callbacks or []:
        if not isinstance(callback[-1] if isinstance(callback, tuple) else callback, Callback):
            raise ValueError(
                f"callbacks has {callback!r}; expected instances of skorch.callbacks.Callback, or (name, callback)."
            )
    names = [callback[0] for callback in callbacks or [] if isinstance(callback, tuple)]
    if taken := [n for i, n in enumerate(names) if n in names[:i] or n in OUR_CALLBACKS]:
        raise ValueError(
            f"callbacks names {taken[0]!r} twice, or as one of {list(OUR_CALLBACKS)}, which are skmft's own; give another name."
        )
