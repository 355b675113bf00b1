"""The classifiers that the paper compares Meta Fine-Tuning with, each a setting of the same engine.

They differ from stage 2 of `MetaFineTunedClassifier` in their heads and in what is trained on which rows, and in nothing
else: encoder, batches, optimiser, schedule, precision and prediction are its own. None of them weights rows by typicality,
draws corrupted domains or adapts to domains afterwards.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback
from torch import nn

from .adversarial import AdversarialLoss, AdversarialRamp, DomainDiscriminator
from .classifier import MetaFineTunedClassifier
from .corruption import MetaFineTuningLoss
from .inputs import balance_classes, missing, order_columns, positions, read_domains, read_texts, refuse_other_types
from .networks import DEFAULT_MODEL, Encoder, TextClassifier, embedding_width
from .stages import Rows, Run, meta_epochs, train_stage_2
from .training import FineTuningNet

__all__ = [
    "DomainAdversarialClassifier",
    "MixedDomainClassifier",
    "MultiTaskClassifier",
    "SingleDomainClassifier",
]

_PARAMETERS = """Parameters
    ----------
    model : str, default="sentence-transformers/all-MiniLM-L6-v2"
        Hugging Face name or local folder of a pre-trained encoder, as in `MetaFineTunedClassifier`; so are all others.
    pooling : {"mean", "cls"}, default="mean"
        How token vectors become one vector a text: mean over real tokens, or the first token.
    pair_encoding : {"cross", "bi", "auto"}, default="cross"
        Whether the texts of a pair are encoded together, as one row of tokens, or each for itself, or the latter for up to
        5,000 rows.
    max_length : int, default=128
        Most tokens a row, special tokens included; longer ones are cut.
    epochs : int or "auto", default="auto"
        {epochs}
    learning_rate : float, default=1e-4
        Peak learning rate of AdamW, reached after the warm-up, then falling linearly to 0.
    batch_size : int, default=32
        Most rows a batch in training; all batches of an epoch are of one size, but for a row.
    weight_decay : float, default=0.01
        Decoupled weight decay; not on biases and norms.
    warmup_ratio : float in [0, 1], default=0.1
        Share of the steps over which the learning rate rises.
    max_grad_norm : float, default=1.0
        Gradients are clipped to this norm; None clips nothing.
    class_weight : "balanced", dict or None, default=None
        As in scikit-learn, over the rows that a model is trained on.
    callbacks : list of skorch.callbacks.Callback, default=None
        Copies are called in every training.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is a device, else the CPU; or any device that torch knows.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Forward passes are autocast to this type; ``"auto"`` is bfloat16 where the device multiplies it natively.
    random_state : int, RandomState instance or None, default=None
        Seeds heads, order and dropout.
    verbose : int, default=0
        1 shows the parameters that are not the defaults, and a bar a training; 2 adds skorch's own messages.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain.
    unknown_domain : {"ignore", "error"}, default="ignore"
        {unknown}
    memory : str, path or joblib.Memory, default=None
        Folder where token ids are kept, one a text, so that each is computed only once.
    distributed : bool, default=False
        Whether `fit` trains in all processes that ``accelerate launch`` or ``torchrun`` started."""
_AUTO = """``"auto"`` is 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``; the ``meta_epochs`` of `MetaFineTunedClassifier`."""
_ATTRIBUTES = """Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    domains_ : ndarray of shape (n_domains,)
        Domain names of `fit`, sorted.
    class_counts_ : ndarray of int, shape (n_domains, n_classes)
        Training rows (of weight above 0) of every domain and class.
    history_ : list of dict
        One entry an epoch{history}, in the form of `MetaFineTunedClassifier.history_`; its ``stage`` is "meta".
    classifier_ : MetaFineTunedClassifier
        The fitted engine{engine}.
    seed_ : int
        The seed that all others derive from.
    n_features_in_ : int
        Text columns, 1 or 2; only if X was two-dimensional.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the text columns; only if X was a DataFrame."""


def _documented(*, epochs: str = _AUTO, unknown: str, history: str = "", engine: str = "") -> Any:
    """Put the shared sections into a class's docstring."""

    def fill(cls: type) -> type:
        text = cls.__doc__ or ""  # without docstrings under python -OO
        text = text.replace("{parameters}", _PARAMETERS).replace("{attributes}", _ATTRIBUTES)
        for name, value in {"epochs": epochs, "unknown": unknown, "history": history, "engine": engine}.items():
            text = text.replace(f"{{{name}}}", value)
        cls.__doc__ = text
        return cls

    return fill


class _Baseline(ClassifierMixin, BaseEstimator):
    """What all share: the face of an estimator around a `MetaFineTunedClassifier` with another stage 2."""

    __metadata_request__fit = {"domains": True}
    __metadata_request__predict = {"domains": True}
    __metadata_request__predict_proba = {"domains": True}
    __metadata_request__decision_function = {"domains": True}
    __metadata_request__score = {"domains": True}

    _reads_domains = True  # whether training depends on the domains

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        pooling: str = "mean",
        pair_encoding: str = "cross",
        max_length: int = 128,
        epochs: int | str = "auto",
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        max_grad_norm: float | None = 1.0,
        class_weight: str | dict | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        domain_column: Hashable | None = None,
        unknown_domain: str = "ignore",
        memory: Any = None,
        distributed: bool = False,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.pair_encoding = pair_encoding
        self.max_length = max_length
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.max_grad_norm = max_grad_norm
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
        self.domain_column = domain_column
        self.unknown_domain = unknown_domain
        self.memory = memory
        self.distributed = distributed

    _shared = (
        "model pooling pair_encoding max_length learning_rate batch_size weight_decay warmup_ratio max_grad_norm "
        "class_weight callbacks device precision random_state verbose domain_column memory distributed"
    ).split()
    _parameter_constraints: dict = {
        **{name: MetaFineTunedClassifier._parameter_constraints[name] for name in _shared},
        "epochs": MetaFineTunedClassifier._parameter_constraints["meta_epochs"],
        "unknown_domain": [StrOptions({"ignore", "error"})],
    }

    def _stage_2(
        self,
        own_tensors: dict[Any, Mapping[str, torch.Tensor]],
        run: Run,
        encoder: Encoder,
        rows: Rows,
        t: NDArray[np.float64],
        classes: NDArray[Any],
        names: NDArray[Any],
        layers: list[int],
        history: list[dict[str, Any]],
    ) -> FineTuningNet:
        """What this classifier has in place of `skmft.stages.meta_fine_tune`.

        For every domain with a model of its own, `own_tensors` gets what that has in place of the net's tensors.
        """
        raise NotImplementedError

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        domains: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """Fine-tune the pre-trained encoder.

        Parameters
        ----------
        X : list, tuple, 1-D array or Series of str, two-column array or DataFrame, or list of (str, str)
            Texts or text pairs, in all forms that `MetaFineTunedClassifier.fit` takes.
        y : array-like of str, int or bool, shape (n_samples,)
            Labels; at least two classes.
        domains : array-like of str, int or bool, shape (n_samples,), default=None
            Domain of every row; a scalar stands for all rows. Without domains all rows are one domain, with a warning
            where that makes a difference.
        sample_weight : array-like, shape (n_samples,), default=None
            Weights of 0 or more, scaled to mean 1 over the rows that a model is trained on.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError, TypeError
            If a parameter or an argument is not as described. Whatever fails, the estimator stays as it was.
        """
        self._validate_params()
        settings = {name: getattr(self, name) for name in self._shared}
        clf = MetaFineTunedClassifier(
            **settings,
            typicality_weighting=False,
            corruption_weight=0.0,
            contrastive_weight=0.0,
            head_init="random",
            adaptation=None,
            meta_epochs=self.epochs,
            unknown_domain="error" if self.unknown_domain == "error" else "meta",
        )
        if domains is None and self.domain_column is None:
            if self._reads_domains:
                warnings.warn(
                    f"domains were not given, so all rows are one domain, and {type(self).__name__} is a "
                    "MixedDomainClassifier. Pass domains= (or set domain_column) to fit.",
                    UserWarning,
                    stacklevel=2,
                )
            domains = "all"
        own_tensors: dict[Any, Mapping[str, torch.Tensor]] = {}
        clf._fit(X, y, domains, sample_weight, partial(self._stage_2, own_tensors), self)
        clf.adapted_weights_ = own_tensors
        for name in [n for n in vars(self) if n.endswith("_") and not n.startswith("__")]:
            delattr(self, name)
        self.classifier_ = clf
        for name in (
            "classes_",
            "domains_",
            "class_counts_",
            "history_",
            "seed_",
            "n_features_in_",
            "feature_names_in_",
        ):
            if hasattr(clf, name):
                setattr(self, name, getattr(clf, name))
        return self

    def _engine(self) -> MetaFineTunedClassifier:
        """The fitted engine with the parameters of now: those of prediction may be set after `fit`."""
        check_is_fitted(self)
        self._validate_params()
        clf = copy.copy(self.classifier_)
        clf._unknown_hint = "set unknown_domain='ignore' to have it answered all the same"
        return clf.set_params(
            **{name: getattr(self, name) for name in self._shared},
            unknown_domain="error" if self.unknown_domain == "error" else "meta",
        )

    def _logits(self, X: Any, domains: Any) -> NDArray[np.float64]:
        return self._engine()._logits(X, domains)

    def decision_function(self, X: Any, domains: Any = None) -> NDArray[np.float64]:
        """Logits of every row.

        Parameters
        ----------
        X : as in `fit`
        domains : array-like of shape (n_samples,), scalar, or None, default=None
            A scalar stands for all rows; None and NaN mean "not known".

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes, the logit of ``classes_[1]`` less that of ``classes_[0]``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X or domains are not as described, or a domain is unknown under ``unknown_domain="error"``.
        """
        logits = self._logits(X, domains)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    predict_proba = MetaFineTunedClassifier.predict_proba  # all of them by way of `_logits`
    predict = MetaFineTunedClassifier.predict
    score = MetaFineTunedClassifier.score

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = MetaFineTunedClassifier().__sklearn_tags__().input_tags
        return tags


def _classifier(run: Run, encoder: Encoder, n_outputs: int, rows: Rows) -> TextClassifier:
    with run.generators("label head"):
        return TextClassifier(encoder, n_outputs, run.params.pooling, rows.tokens.apart)


@_documented(unknown="The one model answers for a domain that `fit` has not seen, or an error.")
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

    _reads_domains = False

    def _stage_2(self, own_tensors, run, encoder, rows, t, classes, names, layers, history):  # type: ignore[no-untyped-def]
        module = _classifier(run, encoder, len(classes), rows)
        return train_stage_2(run, module, rows, t, classes, MetaFineTuningLoss, history, description="fine-tuning")


@_documented(
    epochs="""Passes over its own rows of each domain's model. ``"auto"`` gives it the optimisation budget that
        `MixedDomainClassifier` spends on all rows: as many as make that number of optimiser steps,
        ``ceil(steps / ceil(n_own_rows / batch_size))`` with ``steps = max(2, ceil(60 / b)) * b`` and
        ``b = ceil(n_rows / batch_size)``.""",
    unknown="""For a domain that `fit` has not seen, and where a row's domain is not known, no model is at hand.
        ``"ignore"`` answers by the mean of the probabilities of all domains' models, ``"error"`` raises an error for a domain
        that is given and unknown.""",
    history=" of each domain's model, with its ``domain``",
    engine="; its ``adapted_weights_`` are the domains' models, and it has no meta-learner",
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

    def _stage_2(self, own_tensors, run, encoder, rows, t, classes, names, layers, history):  # type: ignore[no-untyped-def]
        batch_size = self.batch_size
        steps = meta_epochs(run.params, len(rows.labels)) * math.ceil(len(rows.labels) / batch_size)
        first = None
        for k, name in enumerate(names.tolist()):
            own = rows.where(rows.domains == k)
            if not balance_classes(run.params.class_weight, own.labels, own.sample_weight, classes).any():
                raise ValueError(
                    f"domains: {name!r} has no row of class_weight above 0, so that nothing trains its model; leave its rows "
                    "out, or raise class_weight."
                )
            epochs = (
                math.ceil(steps / math.ceil(len(own.labels) / batch_size)) if self.epochs == "auto" else self.epochs
            )
            entries = []
            net = train_stage_2(
                run,
                _classifier(run, copy.deepcopy(encoder), len(classes), own),
                own,
                np.ones(len(own.labels)),
                classes,
                MetaFineTuningLoss,
                entries,
                epochs=epochs,
                description=f"fine-tuning, domain {name!r}",
            )
            history.extend({**entry, "domain": name} for entry in entries)
            own_tensors[name] = {n: p.detach().cpu() for n, p in net.module_.named_parameters()}
            first = first or net
        return first

    def _logits(self, X: Any, domains: Any) -> NDArray[np.float64]:
        engine = self._engine()
        X = order_columns(X, getattr(self, "feature_names_in_", None), self.domain_column)
        texts, column, _ = read_texts(X, self.domain_column)
        given = read_domains(domains, column, X, len(texts), self.domain_column, allow_missing=True)
        where = np.full(len(texts), -1) if given is None else positions(given, self.domains_)
        if given is not None:
            refuse_other_types(given, np.flatnonzero((where < 0) & ~missing(given)), self.domains_.tolist())
        unknown = np.flatnonzero(where < 0)
        if not len(unknown) or (
            self.unknown_domain == "error" and given is not None and not missing(given)[unknown].all()
        ):
            return engine._logits(X, domains)
        texts, out = list(texts), np.empty((len(texts), len(self.classes_)))
        known = np.flatnonzero(where >= 0)
        if len(known):
            out[known] = engine._logits([texts[i] for i in known], self.domains_[where[known]])
        others = [texts[i] for i in unknown]
        each = [log_softmax(engine._logits(others, name), axis=1) for name in self.domains_.tolist()]
        out[unknown] = logsumexp(each, axis=0) - math.log(len(each))  # the mean of probabilities, as logarithms
        return out


class OwnHeadLoss:
    """Label loss of every row at its own domain's head.

    Parameters
    ----------
    n_classes : int
    """

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    def __call__(
        self,
        output: Sequence[Any],
        y: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As `MetaFineTuningLoss`, of logits (batch, n_domains * n_classes), one head's after another's."""
        heads = output[0].view(len(y), -1, self.n_classes)
        own = heads[torch.arange(len(y), device=y.device), batch["domain"]]
        return MetaFineTuningLoss()((own, None), y, batch)


@_documented(
    unknown="""For a domain that `fit` has not seen, and where a row's domain is not known, no head is at hand. ``"ignore"``
        answers by the mean of all heads' logits, ``"error"`` raises an error for a domain that is given and unknown.""",
    engine="; its ``adapted_weights_`` are the domains' heads, and its meta-learner has the mean of them",
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

    def _stage_2(self, own_tensors, run, encoder, rows, t, classes, names, layers, history):  # type: ignore[no-untyped-def]
        module = _classifier(run, encoder, len(names) * len(classes), rows)
        net = train_stage_2(
            run,
            module,
            rows,
            t,
            classes,
            partial(OwnHeadLoss, len(classes)),
            history,
            {"domain": rows.domains},
            description="fine-tuning",
        )
        heads = net.module_.label_head
        weights = heads.weight.detach().view(len(names), len(classes), -1)
        biases = heads.bias.detach().view(len(names), len(classes))
        mean = nn.Linear(weights.shape[2], len(classes), device="meta").to_empty(device=weights.device)
        mean.load_state_dict({"weight": weights.mean(0), "bias": biases.mean(0)})
        net.module_.label_head = mean
        for name, weight, bias in zip(names.tolist(), weights, biases):
            own_tensors[name] = {"label_head.weight": weight.cpu().clone(), "label_head.bias": bias.cpu().clone()}
        return net


@_documented(
    unknown="The one model answers for a domain that `fit` has not seen, or an error.",
    history=", with ``domain_loss`` and ``domain_accuracy`` of the discriminator",
)
class DomainAdversarialClassifier(_Baseline):
    """One model for all domains, whose encoder is trained against a discriminator of domains ("Adv" in the paper).

    The discriminator learns to tell the true domain from the pooled embedding; its gradient is reversed on the way into the
    encoder, which so learns the classes and is pushed to unlearn the domains. With one domain there is nothing to unlearn,
    and it is a `MixedDomainClassifier`.

    {parameters}
    adversarial_weight : float, default=0.1
        Factor of the reversed gradient, 0 or more (lambda of the reference, at the end of its schedule); the discriminator's
        own learning does not depend on it. At 0 there is no discriminator.
    adversarial_schedule : {"ramp", "constant"}, default="ramp"
        Whether the factor rises over training by ``2 / (1 + exp(-10 p)) - 1``, p being the share of steps done, as in the
        reference, or is the same from the first step on.

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

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        pooling: str = "mean",
        pair_encoding: str = "cross",
        max_length: int = 128,
        epochs: int | str = "auto",
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        max_grad_norm: float | None = 1.0,
        class_weight: str | dict | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        domain_column: Hashable | None = None,
        unknown_domain: str = "ignore",
        memory: Any = None,
        distributed: bool = False,
        adversarial_weight: float = 0.1,
        adversarial_schedule: str = "ramp",
    ) -> None:
        super().__init__(
            model,
            pooling=pooling,
            pair_encoding=pair_encoding,
            max_length=max_length,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
            warmup_ratio=warmup_ratio,
            max_grad_norm=max_grad_norm,
            class_weight=class_weight,
            callbacks=callbacks,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
            domain_column=domain_column,
            unknown_domain=unknown_domain,
            memory=memory,
            distributed=distributed,
        )
        self.adversarial_weight = adversarial_weight
        self.adversarial_schedule = adversarial_schedule

    _parameter_constraints = {
        **_Baseline._parameter_constraints,
        "adversarial_weight": [Interval(Real, 0, None, closed="left")],
        "adversarial_schedule": [StrOptions({"ramp", "constant"})],
    }

    def _stage_2(self, own_tensors, run, encoder, rows, t, classes, names, layers, history):  # type: ignore[no-untyped-def]
        module = _classifier(run, encoder, len(classes), rows)
        columns, callbacks, criterion = {}, [], MetaFineTuningLoss
        if self.adversarial_weight > 0 and len(names) > 1:
            config = encoder.config
            with run.generators("domain discriminator"):
                module.corruption_head = DomainDiscriminator(
                    embedding_width(encoder, rows.tokens.apart),
                    len(names),
                    config.num_hidden_layers - 1,
                    self.adversarial_weight,
                )
            columns["domain"], criterion = rows.domains, AdversarialLoss
            if self.adversarial_schedule == "ramp":
                callbacks.append(AdversarialRamp(self.adversarial_weight))
        return train_stage_2(
            run,
            module,
            rows,
            t,
            classes,
            criterion,
            history,
            columns,
            callbacks=callbacks,
            description="fine-tuning",
        )
