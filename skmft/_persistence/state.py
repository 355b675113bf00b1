"""A fitted classifier as plain data: what saving, loading and export get in place of the estimator."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .._engine.encoder import EncoderSource
from .._engine.model import TextClassifier
from .._typing import Array, Name, Params, Record, Tokenizer

STAGE_1 = ("prototypes_", "prototype_shares_", "typicality_", "own_similarity_", "cross_similarity_")


@dataclass(frozen=True)
class FittedState:
    """What `fit` and `adapt` have left; names as those of the fitted attributes, less the underscore.

    `params` are those of the constructor, and `settings` those that the fitted model depends on, as they were in fit.
    `arrays` are the fitted attributes of stage 1, where there was one. `unknown` says what answers a
    row whose domain is not known.
    """

    class_name: str
    params: Params
    settings: Params
    classes: Array
    domains: Array
    class_counts: NDArray[np.int64]
    arrays: dict[str, NDArray[np.float64]]
    history: list[Record]
    meta_learner: TextClassifier
    tokenizer: Tokenizer
    adapted_weights: Mapping[Name, Mapping[str, torch.Tensor]]
    encoder_source: EncoderSource
    is_pair: bool
    pair_encoding: str | None
    seed: int
    unknown: str
    n_features_in: int | None
    feature_names_in: list[Hashable] | None
