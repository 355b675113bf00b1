"""Values of parameters and names as JSON that remembers their types."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from .._typing import Array, Json, Params

LORA_NAMES = ("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules")


def encode(value: Json) -> Any:
    """A value of a parameter as JSON that remembers tuples and the keys of dicts; other sequences become lists."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    if isinstance(value, BaseEstimator):  # a recipe
        about = value.about() if hasattr(value, "about") else (_name_of(value), value.get_params(deep=False))
        return {"recipe": [about[0], encode(about[1])]}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if hasattr(value, "to_dict") and type(value).__name__ == "LoraConfig":
        content = value.to_dict()
        value = {name: content[name] for name in LORA_NAMES}
    if isinstance(value, (Sequence, np.ndarray)):  # such as a range
        return {"tuple" if isinstance(value, tuple) else "list": [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def decode(value: Json, recipe: Callable[[str, Params], Any] | None = None) -> Any:
    """What `encode` made JSON of; `recipe` makes a recipe of a class's name and parameters."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {decode(k): decode(v, recipe) for k, v in content}
    if kind == "recipe" and recipe is not None:
        name, params = content
        params = decode(params, recipe)
        if not isinstance(name, str) or not isinstance(params, dict):
            raise TypeError(
                f"a recipe is {name!r} with {params!r}; expected a class's name and a dict of its parameters"
            )
        return recipe(name, params)
    return {"list": list, "tuple": tuple}[kind](decode(v, recipe) for v in content)


def _name_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def encode_names(names: Array) -> Params:
    """Names of classes or domains, with their dtype."""
    dtype = names.dtype.str if names.dtype.kind in "Uiufb" else "object"
    return {"dtype": dtype, "values": [encode(value) for value in names.tolist()]}


def decode_names(content: Params) -> Array:
    """What `encode_names` made JSON of."""
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
