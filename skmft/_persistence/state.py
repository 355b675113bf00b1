"""A fitted classifier as plain data, which saving, loading and export get in place of the estimator; and as JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from .._engine.encoder import EncoderSource
from .._engine.model import TextClassifier
from .._typing import Array, Floats, Ints, Json, Name, Params, Record, Tensors, Tokenizer

ParamsCheck = Callable[[Params], object]  # makes an estimator of them, and raises where they are not valid
RecipeMaker = Callable[[str, Params | None], object]  # of a class's name and parameters (None: they were not kept)
STAGE_1 = ("prototypes_", "prototype_shares_", "typicality_", "own_similarity_", "cross_similarity_")
LORA_NAMES = ("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "target_modules")
# What estimator.json says in JSON's own types, and what it may be: fields of the state, settings, the encoder's source.
PLAIN: dict[str, list] = {
    **{"history": [list], "is_pair": ["boolean"], "pair_encoding": [StrOptions({"bi", "cross"}), None]},
    **{"seed": [Integral], "unknown": [StrOptions({"model", "mean"})], "n_features_in": [Integral, None]},
}
SETTINGS: dict[str, list] = {
    "max_length": [Interval(Integral, 2, None, closed="left")],
    "n_prototypes": [Interval(Integral, 1, None, closed="left")],
    "pooling": [StrOptions({"mean", "cls"})],
}
SOURCE: dict[str, list] = {"name": [str], "revision": [str, None], "sha256": [str]}


@dataclass(frozen=True)
class FittedState:
    """What `fit` and `adapt` have left; names as those of the fitted attributes, less the underscore."""

    params: Params
    settings: Params  # parameters that the fitted model depends on, as they were in fit
    classes: Array
    domains: Array
    class_counts: Ints
    arrays: dict[str, Floats]  # attributes of stage 1, where there was one
    history: list[Record]
    meta_learner: TextClassifier
    tokenizer: Tokenizer
    adapted_weights: Mapping[Name, Tensors]
    encoder_source: EncoderSource
    is_pair: bool
    pair_encoding: str | None
    seed: int
    unknown: str  # what answers a row whose domain is not known
    n_features_in: int | None
    feature_names_in: list[Hashable] | None


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
    """What `encode` made JSON of."""
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
    dtype = names.dtype.str if names.dtype.kind in "Uiufb" else "object"
    return {"dtype": dtype, "values": [encode(name) for name in names.tolist()]}


def decode_names(content: Params) -> Array:
    """What `encode_names` made JSON of."""
    dtype, values = content["dtype"], content["values"]
    plain = isinstance(values, list) and all(isinstance(v, (str, bool, int, float)) for v in values)
    known = plain and re.fullmatch(r"object|[<>|=](U[0-9]{1,6}|[iuf][1248]|b1)", dtype)
    if not known or np.array(values, dtype).tolist() != values or len(set(values)) < len(values):
        told = f"names are {values!r:.100} of dtype {dtype!r}"
        raise ValueError(f"{told}; expected a list of str, bool or numbers that fit it, each once")
    return np.array(values, dtype)
