"""What the parameters of all classifiers may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, validate_parameter_constraints
from skorch.callbacks import Callback

from ._engine.training import OUR_CALLBACKS
from ._typing import Params

EPOCHS: list = [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")]
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
_OPTIMIZER_CONSTRAINTS: dict[str, list] = {
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
    "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
}


def check_optimizer_params(given: Params | None) -> None:
    """Raise a ValueError where `optimizer_params` has an unknown key or a value out of range."""
    if unknown := [name for name in given or {} if name not in OPTIMIZER_DEFAULTS]:
        raise ValueError(f"optimizer_params has the key {unknown[0]!r}; expected some of {list(OPTIMIZER_DEFAULTS)}.")
    validate_parameter_constraints(_OPTIMIZER_CONSTRAINTS, given or {}, "optimizer_params")


def check_callbacks(callbacks: Sequence | None) -> None:
    """Raise a ValueError where `callbacks` holds something else, or names one twice."""
    taken = [*OUR_CALLBACKS]
    for given in callbacks or []:
        *name, callback = given if isinstance(given, tuple) else (given,)
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks has {given!r}; expected skorch.callbacks.Callback, or (name, callback).")
        if name and name[0] in taken:
            raise ValueError(f"callbacks names {name[0]!r} twice, or as one of {OUR_CALLBACKS}; give another name.")
        taken += name
