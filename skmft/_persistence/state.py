"""A fitted classifier as plain data: what saving, loading and export get in place of the estimator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from numbers import Integral

from sklearn.utils._param_validation import Interval, StrOptions

from .._engine.encoder import EncoderSource
from .._engine.model import TextClassifier
from .._typing import Array, Floats, Ints, Name, Params, Record, Tensors, Tokenizer

ParamsCheck = Callable[[Params], object]  # makes an estimator of them, and raises where they are not valid
STAGE_1 = ("prototypes_", "prototype_shares_", "typicality_", "own_similarity_", "cross_similarity_")
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
