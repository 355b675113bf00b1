"""The classifiers that the paper compares Meta Fine-Tuning with: each is a recipe with a name.

They differ from `MetaFineTunedClassifier` in their heads and in what is trained on which rows, and in nothing else: encoder,
batches, optimiser, schedule, precision and prediction are its own. None of them weights rows by typicality, draws corrupted
domains or adapts to domains afterwards.
"""

from __future__ import annotations

import os
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
from .recipes import DomainAdversarial, MultiTask, Recipe, SingleDomain

__all__ = [
    "DomainAdversarialClassifier",
    "MixedDomainClassifier",
    "MultiTaskClassifier",
    "SingleDomainClassifier",
]

T = TypeVar("T")

_PARAMETERS = """Parameters
    ----------
    model : str or path, default="sentence-transformers/all-MiniLM-L6-v2"
        Hugging Face name or local folder of a pre-trained encoder, as in `MetaFineTunedClassifier`; so are all others.
    learning_rate : float, default=1e-4
        Peak learning rate of AdamW, reached after the warm-up, then falling linearly to 0.
    batch_size : int, default=32
        Most rows of a batch in training; all batches of an epoch are of one size, but for a row.
    epochs : int or "auto", default="auto"
        {epochs}
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain.
    random_state : int, RandomState instance or None, default=None
        Seeds heads, order and dropout.
    max_length : int, default=128
        Most tokens of a row, special tokens included; longer ones are cut.
    pooling : {"mean", "cls"}, default="mean"
        How token vectors become one vector per text: mean over real tokens, or the first token.
    pair_encoding : {"cross", "bi", "auto"}, default="cross"
        Whether the texts of a pair are encoded together, as one row of tokens, or each by itself, or the latter for up to
        5,000 rows.
    class_weight : "balanced", dict or None, default=None
        As in scikit-learn, over the rows that a model is trained on.
    recipe : skmft.recipes.Recipe, default=None
        {recipe}
    unknown_domain : {"ignore", "error"}, default="ignore"
        {unknown}
    optimizer_params : dict, default=None
        Some of ``{"weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0}``, whose values are the defaults.
    callbacks : list of skorch.callbacks.Callback, default=None
        Copies are called in every training.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA where there is a device, else the CPU; or any device that torch knows.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Forward passes are autocast to this type; ``"auto"`` is bfloat16 where the device multiplies it natively.
    memory : str, path or joblib.Memory, default=None
        Folder where token ids are kept, one per text, so that each is computed only once.
    distributed : bool, default=False
        Whether `fit` trains in all processes that ``accelerate launch`` or ``torchrun`` started.
    verbose : int, default=0
        1 shows the parameters that are not the defaults, and a bar per training; 2 adds skorch's own messages."""
_AUTO = """``"auto"`` is 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``; the ``meta_epochs`` of `MetaFineTunedClassifier`."""
_ATTRIBUTES = """Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    domains_ : ndarray of shape (n_domains,)
        Domain names of `fit`, sorted.
    adapted_domains_ : ndarray of shape (n_adapted,)
        Names of the domains that have a model or a head of their own.
    class_counts_ : ndarray of int, shape (n_domains, n_classes)
        Training rows (of weight above 0) of every domain and class.
    history_ : list of dict
        One entry per epoch{history}, in the form of `MetaFineTunedClassifier.history_`; its ``stage`` is "meta".
    meta_learner_ : torch.nn.Module
        {model}
    seed_ : int
        The seed that all others derive from.
    n_features_in_ : int
        Text columns, 1 or 2; only if X was two-dimensional.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the text columns; only if X was a DataFrame."""


def _documented(
    *,
    epochs: str = _AUTO,
    unknown: str,
    recipe: str,
    history: str = "",
    model: str = "The network.",
) -> Callable[[type[T]], type[T]]:
    """Put the shared sections into a class's docstring."""

    def fill(cls: type[T]) -> type[T]:
        text = cls.__doc__ or ""  # without docstrings under python -OO
        text = text.replace("{parameters}", _PARAMETERS).replace("{attributes}", _ATTRIBUTES)
        for name, value in {
            "epochs": epochs,
            "unknown": unknown,
            "recipe": recipe,
            "history": history,
            "model": model,
        }.items():
            text = text.replace(f"{{{name}}}", value)
        cls.__doc__ = text
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
