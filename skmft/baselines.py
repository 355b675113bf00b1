"""The classifiers that the paper compares Meta Fine-Tuning with: each is a recipe with a name.

They differ from `MetaFineTunedClassifier` in their heads and in what is trained on which rows, and in nothing else. None of
them weights rows by typicality, draws corrupted domains or adapts to domains afterwards (paper, section 4).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from skorch.callbacks import Callback

from ._base import BaseTextClassifier
from ._engine.cache import Memory
from ._engine.encoder import DEFAULT_MODEL
from ._parameters import CONSTRAINTS, EPOCHS
from ._typing import Name
from .recipes import DomainAdversarial, MultiTask, Recipe, SingleDomain

__all__ = ["DomainAdversarialClassifier", "MixedDomainClassifier", "MultiTaskClassifier", "SingleDomainClassifier"]

T = TypeVar("T")

_SHARED = """Parameters
    ----------
    model, learning_rate, batch_size : str or path, float, int
        These and all that are not described here are those of `skmft.MetaFineTunedClassifier`.
    epochs : int or "auto", default="auto"
        ``"auto"`` is the `meta_epochs` of `MetaFineTunedClassifier`{epochs}.
    domain_column, random_state, max_length, pooling, pair_encoding, class_weight
        The default of `pair_encoding` is "cross".
    recipe : skmft.recipes.Recipe, default=None
        None is `skmft.recipes.{recipe}()`.
    unknown_domain : {{"ignore", "error"}}, default="ignore"
        For a domain that `fit` has not seen {unknown} answers, or there is an error.
    optimizer_params, callbacks, device, precision, memory, distributed, verbose
        As above; `memory` has nothing to keep.

    Attributes
    ----------
    classes_, domains_, class_counts_, seed_, n_features_in_, feature_names_in_
        As `MetaFineTunedClassifier` has them.
    adapted_domains_ : ndarray of shape (n_adapted,)
        Names of the domains that have a model or a head of their own.
    history_ : list of dict
        An entry an epoch{history}; its ``stage`` is "meta".
    meta_learner_ : torch.nn.Module
        The network{model}."""


def _documented(**about: str) -> Callable[[type[T]], type[T]]:
    """Put what all classifiers share into a class's docstring."""
    shared = _SHARED.format(**{"unknown": "the one model", "epochs": "", "history": "", "model": "", **about})

    def fill(cls: type[T]) -> type[T]:
        cls.__doc__ = (cls.__doc__ or "").replace("{shared}", shared)
        return cls

    return fill


@dataclass(repr=False, eq=False)  # which makes __init__
class _Baseline(BaseTextClassifier):
    """What all share: the parameters."""

    model: str | os.PathLike[str] = DEFAULT_MODEL
    _: KW_ONLY
    learning_rate: float = 1e-4
    batch_size: int = 32
    epochs: int | str = "auto"
    domain_column: Hashable | None = None
    random_state: int | np.random.RandomState | None = None
    max_length: int = 128
    pooling: str = "mean"
    pair_encoding: str = "cross"
    class_weight: str | dict[Name, float] | None = None
    recipe: Recipe | None = None
    unknown_domain: str = "ignore"
    optimizer_params: Mapping[str, Any] | None = None
    callbacks: Sequence[Callback] | None = None
    device: str | torch.device = "auto"
    precision: str = "auto"
    memory: Memory = None
    distributed: bool = False
    verbose: int = 0

    _parameter_constraints: ClassVar[dict[str, list]] = {**CONSTRAINTS, "epochs": EPOCHS, "recipe": [Recipe, None]}

    @property
    def meta_epochs(self) -> int | str:  # type: ignore[override]
        """The name that the stage has for `epochs`."""
        return self.epochs


@_documented(recipe="Recipe")
class MixedDomainClassifier(_Baseline):
    """Plain fine-tuning of one model on all domains together ("Mix" in the paper).

    It is a `MetaFineTunedClassifier` with ``typicality_weighting=False, corruption_weight=0, contrastive_weight=0,
    head_init="random", pair_encoding="cross", adaptation=None``, bit for bit. Domains are read and checked, and change nothing.

    {shared}

    Examples
    --------
    >>> from skmft.baselines import MixedDomainClassifier
    >>> X, y = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4, ["good", "bad"] * 8
    >>> clf = MixedDomainClassifier(epochs=4, random_state=0).fit(X, y)
    >>> clf.predict(["a dull story", "a sharp knife"])
    array(['bad', 'good'], dtype='<U4')
    """


@_documented(
    recipe="SingleDomain",
    unknown="the mean of the probabilities of all domains' models",
    epochs=""" of all rows, as optimiser steps: each domain's model
        passes over its own rows as often as makes their number""",
    history=" of each domain's model, with its ``domain``",
    model=" of the first domain",
)
class SingleDomainClassifier(_Baseline):
    """Plain fine-tuning of a model for each domain, on that domain's rows alone ("S" in the paper).

    Nothing is shared but the pre-trained encoder that each model starts from. A domain whose rows are all of one class learns
    to answer that class. Every model is as large as the encoder.

    {shared}

    Examples
    --------
    >>> from skmft.baselines import SingleDomainClassifier
    >>> X, y = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4, ["good", "bad"] * 8
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = SingleDomainClassifier(epochs=8, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = SingleDomain
    _without_domains = "it trains one model, as a MixedDomainClassifier does."


@_documented(recipe="MultiTask", unknown="the mean of all heads' logits", model=", with the mean of the domains' heads")
class MultiTaskClassifier(_Baseline):
    """One encoder shared by all domains, with a label head for each ("MTL" in the paper).

    A row trains the encoder and its own domain's head; all heads tell the same classes. A domain whose rows are all of one
    class learns to answer that class.

    {shared}

    References
    ----------
    X. Liu, P. He, W. Chen, J. Gao, "Multi-Task Deep Neural Networks for Natural Language Understanding", ACL 2019.

    Examples
    --------
    >>> from skmft.baselines import MultiTaskClassifier
    >>> X, y = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4, ["good", "bad"] * 8
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = MultiTaskClassifier(epochs=8, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = MultiTask
    _without_domains = "it trains one head, as a MixedDomainClassifier does."


@_documented(recipe="DomainAdversarial", history=", with ``domain_loss`` and ``domain_accuracy`` of the discriminator")
class DomainAdversarialClassifier(_Baseline):
    """One model for all domains, whose encoder is trained against a discriminator of domains ("Adv" in the paper).

    The discriminator learns to tell the true domain from the pooled embedding; its gradient is reversed on the way into the
    encoder, which so learns the classes and is pushed to unlearn the domains.

    {shared}

    References
    ----------
    Y. Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17, 2016, sections 4.2 and 5.2.2.

    Examples
    --------
    >>> from skmft.baselines import DomainAdversarialClassifier
    >>> X, y = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4, ["good", "bad"] * 8
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = DomainAdversarialClassifier(epochs=4, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = DomainAdversarial
    _without_domains = "it trains without a discriminator, as a MixedDomainClassifier does."
