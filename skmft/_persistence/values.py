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

RecipeMaker = Callable[[str, Params | None], object]
LORA_NAMES = ("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules")


def encode(value: Json) -> Any:
    """A value of a parameter as JSON that remembers tuples and the keys of dicts; other sequences become lists."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    elif isinstance(value, (os.PathLike, torch.device)):
        value = str(value)
    elif isinstance(value, (set, frozenset)):
        value = sorted(value)
    elif type(value).__name__ == "LoraConfig":
        value = {name: inner for name, inner in value.to_dict().items() if name in LORA_NAMES}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Sequence):  # such as a range
        return {"tuple" if isinstance(value, tuple) else "list": [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, BaseEstimator):
        about = value.about() if hasattr(value, "about") else (name_of(value), value.get_params(deep=False))
        return {"recipe": [encode(part) for part in about]}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def name_of(recipe: BaseEstimator) -> str:
    """Name of a recipe's class, its module's before it."""
    return f"{type(recipe).__module__}.{type(recipe).__qualname__}"


def decode(value: Json, recipe: RecipeMaker | None = None) -> Any:
    """What `encode` made JSON of; `recipe` makes a recipe of a class's name and parameters (None: they were not kept)."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "dict":
        return {decode(k): decode(v, recipe) for k, v in content}
    if kind == "recipe" and recipe is not None:
        name, params = content[0], decode(content[1], recipe)
        if not isinstance(name, str) or not isinstance(params, (dict, type(None))):
            raise TypeError(f"a recipe is {name!r} with {params!r}; expected a class's name and a dict of parameters")
        return recipe(name, params)
    return {"list": list, "tuple": tuple}[kind](decode(v, recipe) for v in content)


def encode_names(names: Array) -> Params:
    """Names of classes or domains, with their dtype."""
    return {"dtype": names.dtype.str if names.dtype.kind in "Uiufb" else "object", "values": names.tolist()}


def decode_names(content: Params) -> Array:
    """What `encode_names` made JSON of."""
    dtype, values = content["dtype"], content["values"]
    plain = isinstance(values, list) and all(isinstance(v, (str, bool, int, float)) for v in values)
    known = plain and re.fullmatch(r"object|[<>|=](U[0-9]{1,6}|[iuf][1248]|b1)", dtype)
    if not known or np.array(values, dtype).tolist() != values or len(set(values)) < len(values):
        told = f"names are {values!r:.100} of dtype {dtype!r}"
        raise ValueError(f"{told}; expected a list of str, bool or numbers that fit it, each once")
    return np.array(values, dtype)
