"""A fitted classifier as plain data: what saving, loading and export get in place of the estimator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from .._engine.encoder import EncoderSource
from .._engine.model import TextClassifier
from .._typing import Array, Floats, Ints, Name, Params, Record, Tensors, Tokenizer

STAGE_1 = ("prototypes_", "prototype_shares_", "typicality_", "own_similarity_", "cross_similarity_")
# What estimator.json says in JSON's own types: fields of the state, settings, and fields of the encoder's source.
PLAIN = ("history", "is_pair", "pair_encoding", "seed", "unknown", "n_features_in")
SETTINGS = ("max_length", "n_prototypes", "pooling")
SOURCE = ("name", "revision", "sha256")


@dataclass(frozen=True)
class FittedState:
    """What `fit` and `adapt` have left; names as those of the fitted attributes, less the underscore.

    `params` are those of the constructor, and `settings` those that the fitted model depends on, as they were in fit.
    `arrays` are the fitted attributes of stage 1, where there was one. `unknown` says what answers a row whose domain is not
    known.
    """

    params: Params
    settings: Params
    classes: Array
    domains: Array
    class_counts: Ints
    arrays: dict[str, Floats]
    history: list[Record]
    meta_learner: TextClassifier
    tokenizer: Tokenizer
    adapted_weights: Mapping[Name, Tensors]
    encoder_source: EncoderSource
    is_pair: bool
    pair_encoding: str | None
    seed: int
    unknown: str
    n_features_in: int | None
    feature_names_in: list[Hashable] | None
