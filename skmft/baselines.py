"""The classifiers that the paper compares Meta Fine-Tuning with: each is a recipe with a name.

They differ from `MetaFineTunedClassifier` in their heads and in what is trained on which rows, and in nothing else: encoder,
batches, optimiser, schedule, precision and prediction are its own. None of them weights rows by typicality, draws corrupted
domains or adapts to domains afterwards.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from skorch.callbacks import Callback

from ._base import BaseTextClassifier
from ._engine.cache import Memory
from ._engine.encoder import DEFAULT_MODEL
from ._parameters import CONSTRAINTS, EPOCHS
from ._typing import Name
from .classifier import MetaFineTunedClassifier
from .recipes import DomainAdversarial, MultiTask, Recipe, SingleDomain

__all__ = [
    "DomainAdversarialClassifier",
    "MixedDomainClassifier",
    "MultiTaskClassifier",
    "SingleDomainClassifier",
]

T = TypeVar("T")

_AUTO = """``"auto"`` is 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``; the ``meta_epochs`` of `MetaFineTunedClassifier`."""
_ATTRIBUTES = "classes_ domains_ class_counts_ seed_ n_features_in_ feature_names_in_".split()


def _documented(
    *, epochs: str = _AUTO, unknown: str, recipe: str, history: str = "", model: str = "The network."
) -> Callable[[type[T]], type[T]]:
    """Fill a class's docstring: what all classifiers share comes from that of `MetaFineTunedClassifier`."""

    def fill(cls: type[T]) -> type[T]:
        blocks = {  # by name: the entry of a parameter or attribute
            found[1]: found[0]
            for found in re.finditer(
                r"^    (\w+) : .*\n(?:        .*\n|\n(?=        ))+", MetaFineTunedClassifier.__doc__ or "", re.M
            )
        }
        blocks |= {
            "pair_encoding": blocks.get("pair_encoding", "").replace('default="auto"', 'default="cross"'),
            "epochs": f'    epochs : int or "auto", default="auto"\n        {epochs}\n',
            "recipe": f"    recipe : skmft.recipes.Recipe, default=None\n        {recipe}\n",
            "unknown_domain": f'    unknown_domain : {{"ignore", "error"}}, default="ignore"\n        {unknown}\n',
        }
        parameters = "".join(blocks.get(name, "") for name in inspect.signature(cls).parameters)
        attributes = "".join(blocks.get(name, "") for name in _ATTRIBUTES) + (
            "    adapted_domains_ : ndarray of shape (n_adapted,)\n"
            "        Names of the domains that have a model or a head of their own.\n"
            "    history_ : list of dict\n"
            f'        One entry per epoch{history}, as `MetaFineTunedClassifier` has them; its ``stage`` is "meta".\n'
            f"    meta_learner_ : torch.nn.Module\n        {model}"
        )
        text = cls.__doc__ or ""
        text = text.replace("{parameters}", f"Parameters\n    ----------\n{parameters}".rstrip())
        cls.__doc__ = text.replace("{attributes}", f"Attributes\n    ----------\n{attributes}")
        return cls

    return fill


class _Baseline(BaseTextClassifier):
    """What all share: the parameters."""

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        epochs: int | str = "auto",
        domain_column: Hashable | None = None,
        random_state: int | np.random.RandomState | None = None,
        max_length: int = 128,
        pooling: str = "mean",
        pair_encoding: str = "cross",
        class_weight: str | dict[Name, float] | None = None,
        recipe: Recipe | None = None,
        unknown_domain: str = "ignore",
        optimizer_params: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        memory: Memory = None,
        distributed: bool = False,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.domain_column = domain_column
        self.random_state = random_state
        self.max_length = max_length
        self.pooling = pooling
        self.pair_encoding = pair_encoding
        self.class_weight = class_weight
        self.recipe = recipe
        self.unknown_domain = unknown_domain
        self.optimizer_params = optimizer_params
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.memory = memory
        self.distributed = distributed
        self.verbose = verbose

    _parameter_constraints: dict[str, list] = {**CONSTRAINTS, "epochs": EPOCHS, "recipe": [Recipe, None]}

    @property
    def meta_epochs(self) -> int | str:  # type: ignore[override]
        """The name that the stage has for `epochs`."""
        return self.epochs


@_documented(
    recipe="None is `skmft.recipes.Recipe()`, plain fine-tuning; another loss is another recipe.",
    unknown="The one model answers for a domain that `fit` has not seen, or an error.",
)
class MixedDomainClassifier(_Baseline):
    """Plain fine-tuning of one model on all domains together ("Mix" in the paper).

    It is a `MetaFineTunedClassifier` with ``typicality_weighting=False, corruption_weight=0, contrastive_weight=0,
    head_init="random", pair_encoding="cross", adaptation=None``, bit for bit. Domains are read and checked, and change nothing.

    {parameters}

    {attributes}

    References
    ----------
    C. Wang, M. Qiu, J. Huang, X. He, "Meta Fine-Tuning Neural Language Models for Multi-Domain Text Mining", EMNLP 2020,
    section 4.

    Examples
    --------
    >>> from skmft.baselines import MixedDomainClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> clf = MixedDomainClassifier(epochs=4, random_state=0).fit(X, y)
    >>> clf.predict(["a dull story", "a sharp knife"])
    array(['bad', 'good'], dtype='<U4')
    """


@_documented(
    recipe="None is `skmft.recipes.SingleDomain()`.",
    epochs="""Passes over its own rows of each domain's model. ``"auto"`` gives it the optimisation budget that
        `MixedDomainClassifier` spends on all rows: as many as make that number of optimiser steps,
        ``ceil(steps / ceil(n_own_rows / batch_size))`` with ``steps = max(2, ceil(60 / b)) * b`` and
        ``b = ceil(n_rows / batch_size)``.""",
    unknown="""For a domain that `fit` has not seen, and where a row's domain is not known, no model is at hand.
        ``"ignore"`` answers by the mean of the probabilities of all domains' models, ``"error"`` raises an error for a domain
        that is given and unknown.""",
    history=" of each domain's model, with its ``domain``",
    model="The first domain's network; it has no meta-learner.",
)
class SingleDomainClassifier(_Baseline):
    """Plain fine-tuning of a model for each domain, on that domain's rows alone ("S" in the paper).

    Nothing is shared but the pre-trained encoder that each model starts from. A domain whose rows are all of one class learns
    to answer that class. Every model is as large as the encoder.

    {parameters}

    {attributes}

    References
    ----------
    C. Wang, M. Qiu, J. Huang, X. He, "Meta Fine-Tuning Neural Language Models for Multi-Domain Text Mining", EMNLP 2020,
    section 4.

    Examples
    --------
    >>> from skmft.baselines import SingleDomainClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = SingleDomainClassifier(epochs=8, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = SingleDomain
    _without_domains = "it trains one model, as a MixedDomainClassifier does."


@_documented(
    recipe="None is `skmft.recipes.MultiTask()`.",
    unknown="""For a domain that `fit` has not seen, and where a row's domain is not known, no head is at hand. ``"ignore"``
        answers by the mean of all heads' logits, ``"error"`` raises an error for a domain that is given and unknown.""",
    model="The shared network, with the mean of the domains' heads.",
)
class MultiTaskClassifier(_Baseline):
    """One encoder shared by all domains, with a label head for each ("MTL" in the paper).

    A row trains the encoder and its own domain's head; all heads tell the same classes. A domain whose rows are all of one
    class learns to answer that class.

    {parameters}

    {attributes}

    References
    ----------
    X. Liu, P. He, W. Chen, J. Gao, "Multi-Task Deep Neural Networks for Natural Language Understanding", ACL 2019: the form
    of multi-task fine-tuning that the paper of Meta Fine-Tuning compares with.

    Examples
    --------
    >>> from skmft.baselines import MultiTaskClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = MultiTaskClassifier(epochs=8, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = MultiTask
    _without_domains = "it trains one head, as a MixedDomainClassifier does."


@_documented(
    recipe="None is `skmft.recipes.DomainAdversarial()`; its weight and schedule are parameters of the recipe.",
    unknown="The one model answers for a domain that `fit` has not seen, or an error.",
    history=", with ``domain_loss`` and ``domain_accuracy`` of the discriminator",
)
class DomainAdversarialClassifier(_Baseline):
    """One model for all domains, whose encoder is trained against a discriminator of domains ("Adv" in the paper).

    The discriminator learns to tell the true domain from the pooled embedding; its gradient is reversed on the way into the
    encoder, which so learns the classes and is pushed to unlearn the domains. With one domain there is nothing to unlearn,
    and it is a `MixedDomainClassifier`.

    {parameters}

    {attributes}

    References
    ----------
    Y. Ganin, E. Ustinova, H. Ajakan, P. Germain, H. Larochelle, F. Laviolette, M. Marchand, V. Lempitsky, "Domain-Adversarial
    Training of Neural Networks", JMLR 17, 2016: the reversal in section 4.2, the schedule in section 5.2.2.

    Examples
    --------
    >>> from skmft.baselines import DomainAdversarialClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = DomainAdversarialClassifier(epochs=4, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"])
    array(['bad', 'good'], dtype='<U4')
    """

    _default_recipe = DomainAdversarial
    _without_domains = "it trains without a discriminator, as a MixedDomainClassifier does."
