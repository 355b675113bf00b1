"""What all classifiers share: reading the data, the order of the stages, prediction, routing of domains."""

from __future__ import annotations

import copy
import math
import os
import warnings
from dataclasses import replace
from typing import Any, Self

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ._engine.encoder import Encoder, EncoderSource, find_encoder, load_encoder, load_tokenizer
from ._engine.inference import PretrainedEmbedder
from ._engine.model import TextClassifier, layer_indices, reads_token_types
from ._engine.pooling import embedding_width
from ._engine.runtime import Runtime, draw_seed
from ._engine.tokens import TokenizedTexts, tokenize
from ._engine.training import TrainingSettings
from ._inputs.domains import read_domains, unknown_rows
from ._inputs.rows import LabelledTexts, Rows, read_labelled_texts
from ._inputs.texts import column_hint, order_columns, read_texts
from ._method.adaptation import AdaptationSettings, Adapted, adapt_to_domain, domain_logits
from ._method.lora import check_settings
from ._method.probe import probe_rows
from ._method.typicality import Scored, embed_for_probe, score_typicality
from ._parameters import OPTIMIZER_DEFAULTS, check_callbacks, check_optimizer_params
from ._persistence.state import STAGE_1, FittedState
from ._saving_methods import SavingMixin
from ._stage import Stage
from ._typing import Array, Domains, Name, Params, Tensors, Texts
from .recipes import MissingRecipe, Recipe

MOST_PAIRS_BI = 5000  # training rows up to which pair_encoding="auto" is "bi"; benchmarks/NOTES.md, 2 and 11


class BaseTextClassifier(SavingMixin, ClassifierMixin, BaseEstimator):
    """The face of an estimator around a recipe; subclasses have the parameters and name the recipe."""

    __metadata_request__fit = {"domains": True}
    __metadata_request__predict = {"domains": True}
    __metadata_request__predict_proba = {"domains": True}
    __metadata_request__decision_function = {"domains": True}
    __metadata_request__score = {"domains": True}

    # what a classifier without these parameters has
    head_init = "random"
    weight_interpolation = 1.0
    typicality_weighting = False
    typicality_balance = 0.5
    n_prototypes = 1
    adaptation: str | None = None
    adaptation_epochs: int | str = "auto"
    adaptation_learning_rate: float | str | None = "auto"
    lora_config: Any = None
    meta_epochs: int | str = "auto"

    _without_domains: str | None = None  # what to warn of where domains are not given

    recipe: Recipe | None
    _default_recipe: type[Recipe] = Recipe

    def _make_recipe(self) -> Recipe:
        """The recipe that `fit` follows: a copy of the user's, or the class's own."""
        recipe = self._default_recipe() if self.recipe is None else copy.copy(self.recipe)
        if isinstance(recipe, MissingRecipe):
            recipe.refuse()
        recipe._validate_params()
        return recipe

    # ------------------------------------------------------------------ fit

    def fit(self, X: Texts, y: ArrayLike, domains: Domains = None, sample_weight: ArrayLike | None = None) -> Self:
        """Fine-tune the pre-trained encoder.

        Parameters
        ----------
        X : list, tuple, 1-D array or Series of str, two-column array or DataFrame, or list of (str, str)
            Texts or text pairs; with `domain_column`, a DataFrame of that column and one or two of text. Or what need not be
            in memory, and is read a few thousand rows at a time: a Hugging Face dataset (or a column of one), an Arrow table
            or array, a memory-mapped array of fixed-width str, or any sequence of str or of (str, str).
        y : array-like of str, int or bool, shape (n_samples,)
            Labels; at least two classes.
        domains : array-like of str, int or bool, shape (n_samples,), default=None
            Domain of every row; a scalar stands for all. Without domains all rows are one domain, with a warning.
        sample_weight : array-like, shape (n_samples,), default=None
            Weights of 0 or more. They multiply the other weights; a row of weight 0 trains nothing.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError, TypeError
            If a parameter or an argument is not as described; the estimator stays as it was. If fitting fails later than that,
            it is left unfitted.
        torch.OutOfMemoryError, FloatingPointError, ImportError
            If a batch does not fit in the device's memory; the loss or a trained weight is no number, as at too large a
            `learning_rate`; the extra that ``adaptation="lora"`` or ``distributed=True`` needs is not installed.
        """
        self._check_parameters()
        recipe = self._make_recipe()
        data = read_labelled_texts(
            X, y, domains, sample_weight, domain_column=self.domain_column, class_weight=self.class_weight
        )
        source = find_encoder(os.fspath(self.model))
        runtime = self._runtime(draw_seed(self.random_state), training=True)
        if runtime.verbose:  # in a search this tells the candidate
            n_rows, n_domains = np.count_nonzero(data.used), len(data.domain_names)
            print(f"{' '.join(repr(self).split())}: {n_rows:,} rows, {n_domains} domains")
        tokenizer = load_tokenizer(source, self.max_length)
        with runtime.generators("encoder"):
            encoder = load_encoder(source)
        pair_encoding = self._pair_encoding_of(data)
        if self.adaptation == "lora":
            with runtime.generators("check"):
                check_settings(encoder, self.lora_config)
        # tokenizing also checks the texts of an X that is read slice by slice, so it comes before anything is changed
        token_types, bi = reads_token_types(encoder), pair_encoding == "bi"
        tokens = tokenize(tokenizer, data.texts, self.max_length, token_types, bi)
        rows = Rows(
            tokens, data.labels, data.domains, data.sample_weight, data.classes, data.domain_names, self.class_weight
        )
        named = "corruption_layers" if hasattr(recipe, "corruption_layers") else f"{type(recipe).__name__}.layers"
        layer_indices(recipe.layers(rows), encoder.config.num_hidden_layers, named)
        self._check_same(rows, runtime)
        if not data.has_domains and self._without_domains is not None:
            found = f"domains= was not given, so all rows are one domain: {self._without_domains}"
            mend = f"Pass domains= (or set domain_column) to fit.{column_hint(X, self.domain_column)}"
            warnings.warn(f"{found} {mend}", stacklevel=2)

        for name in [n for n in vars(self) if n.endswith("_") and not n.startswith("__")]:
            delattr(self, name)  # from here on a failure leaves nothing fitted
        self.__dict__.pop("_n_features_out", None)  # by which get_feature_names_out tells whether there was a fit
        scored, used = self._score(rows, encoder, source, runtime)
        how = (self.pooling, self.meta_epochs, self.weight_interpolation, self._training_settings())
        trained = recipe.train(Stage(encoder.cpu(), *how, runtime, self._max_tokens()), used)
        own, history = {**trained.own}, [*scored.history, *trained.history]
        if self.adaptation is not None and data.has_domains:
            plain = rows.where(data.used)
            for k, name in enumerate(data.domain_names.tolist()):
                mine = plain.where(plain.domains == k)
                adapted = self._adapt_domain(trained.model, mine, name, runtime, own.get(name))
                history += adapted.history
                if adapted.tensors is not None:
                    own[name] = adapted.tensors

        self.__dict__.update(scored.attributes)
        if data.columns is not None or getattr(X, "ndim", 1) == 2:
            self.n_features_in_ = 2 if data.is_pair else 1
        if data.columns is not None:
            self.feature_names_in_ = np.array(data.columns, dtype=object)
        self.classes_, self.domains_ = data.classes, data.domain_names
        self.class_counts_ = np.zeros((len(data.domain_names), len(data.classes)), dtype=np.int64)
        np.add.at(self.class_counts_, (data.domains[data.used], data.labels[data.used]), 1)
        self.is_pair_, self.pair_encoding_ = data.is_pair, pair_encoding
        self.encoder_source_, self.tokenizer_, self.seed_ = source, tokenizer, runtime.seed
        self.meta_learner_, self.adapted_weights_, self.history_ = trained.model, own, history
        self._n_features_out = embedding_width(trained.model.encoder, pair_encoding == "bi")
        self._fitted_with = {name: getattr(self, name) for name in ("max_length", "n_prototypes", "pooling")}
        self._unknown = recipe.unknown
        return self

    @staticmethod
    def _check_same(rows: Rows, runtime: Runtime) -> None:
        """Refuse rows that differ between the processes that train together."""
        if runtime.processes.size > 1:
            arrays = (rows.tokens.ids, rows.tokens.offsets, rows.labels, rows.domains, rows.sample_weight)
            told = (
                "distributed=True: the processes were given different rows; pass all rows, in the same order, in each."
            )
            runtime.processes.require_same(joblib.hash(arrays), told)

    def _pair_encoding_of(self, data: LabelledTexts) -> str | None:
        if not data.is_pair or self.pair_encoding != "auto":
            return self.pair_encoding if data.is_pair else None
        return "bi" if np.count_nonzero(data.used) <= MOST_PAIRS_BI else "cross"

    def _score(self, rows: Rows, encoder: Encoder, source: EncoderSource, runtime: Runtime) -> tuple[Scored, Rows]:
        """Stage 1, and the rows of weight above 0 with what it found of them."""
        used = rows.sample_weight > 0
        probe = probe_rows(int(np.count_nonzero(used)), runtime.derive("probe")) if self.head_init == "probe" else None
        embedder = self._embedder(encoder, source, runtime)
        if self.typicality_weighting:
            balance, n, seed = self.typicality_balance, self.n_prototypes, runtime.derive("prototypes")
            scored = score_typicality(embedder, rows, probe, balance=balance, n_prototypes=n, seed=seed)
        else:
            scored = embed_for_probe(embedder, rows, probe)
        found = replace(rows, typicality=scored.attributes.get("typicality_")).where(used)
        if probe is not None and scored.probe is not None:
            found = replace(found, probe=(probe, scored.probe))
        return scored, found

    def _adapt_domain(
        self, model: TextClassifier, rows: Rows, name: Name, runtime: Runtime, own: Tensors | None
    ) -> Adapted:
        epochs, rate = self.adaptation_epochs, self.adaptation_learning_rate
        settings = AdaptationSettings(str(self.adaptation), epochs, rate, self.lora_config)
        return adapt_to_domain(model, rows, name, settings, self._training_settings(), runtime, own)

    def _training_settings(self) -> TrainingSettings:
        params = {**OPTIMIZER_DEFAULTS, **(self.optimizer_params or {})}
        return TrainingSettings(self.learning_rate, self.batch_size, callbacks=self.callbacks or (), **params)

    def _max_tokens(self) -> int:
        return self.batch_size * self.max_length

    def _runtime(self, seed: int, training: bool = False) -> Runtime:
        distributed = training and self.distributed
        return Runtime.start(self.device, self.precision, seed, verbose=int(self.verbose), distributed=distributed)

    def _embedder(self, encoder: Encoder, source: EncoderSource, runtime: Runtime) -> PretrainedEmbedder:
        return PretrainedEmbedder(encoder, source, self.pooling, self._max_tokens(), runtime, self.memory)

    # ------------------------------------------------------------ prediction

    @property
    def adapted_domains_(self) -> Array:
        """Names of the domains that have a model of their own, those of `adapt` included."""
        return np.array(list(self.adapted_weights_))

    def decision_function(self, X: Texts, domains: Domains = None) -> NDArray[np.float64]:
        """Logits of every row: of its domain's own model where `domains` names one, else of the shared model.

        Parameters
        ----------
        X : as in `fit`
        domains : array-like of shape (n_samples,), scalar, or None, default=None
            Rows without a domain (None, NaN), and those of unseen domains under ``unknown_domain="ignore"``, are answered by
            the shared model. A scalar stands for all rows.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes, the logit of ``classes_[1]`` less that of ``classes_[0]``.

        Raises
        ------
        ValueError, TypeError
            If X or domains are not as described, a domain is unknown under ``unknown_domain="error"``, or all are and of
            another type than those of `fit`.
        """
        logits = self._logits(X, domains)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Texts, domains: Domains = None) -> NDArray[np.float64]:
        """Probability of every class: softmax of the logits.

        Parameters
        ----------
        X, domains : as in `decision_function`

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
            Columns in the order of `classes_`.
        """
        return softmax(self._logits(X, domains), axis=1)

    def predict(self, X: Texts, domains: Domains = None) -> Array:
        """The most probable class of every row.

        Parameters
        ----------
        X, domains : as in `decision_function`

        Returns
        -------
        ndarray, shape (n_samples,)
            Members of `classes_`.
        """
        best = self._logits(X, domains).argmax(axis=1)  # says so where there was no fit, so before classes_
        return self.classes_[best]

    def score(self, X: Texts, y: ArrayLike, domains: Domains = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy of ``predict(X, domains)``.

        Parameters
        ----------
        X, domains : as in `decision_function`
        y : array-like, shape (n_samples,)
        sample_weight : array-like, shape (n_samples,), default=None

        Returns
        -------
        float
        """
        return accuracy_score(y, self.predict(X, domains), sample_weight=sample_weight)

    def _logits(self, X: Texts, domains: Domains) -> NDArray[np.float64]:
        check_is_fitted(self)
        tokens, column = self._tokenize(X)
        given = read_domains(domains, column, X, len(tokens), self.domain_column, allow_missing=True)
        own: list[Name] = [None] * len(tokens)
        if given is not None:
            known = [*dict.fromkeys([*self.domains_.tolist(), *self.adapted_weights_])]
            unknown = unknown_rows(given, known)
            if len(unknown) and self.unknown_domain == "error":
                name = given.tolist()[unknown[0]]
                found = f"domains: row {unknown[0]} is {name!r}, which is none of the known {known}"
                raise ValueError(f"{found}; set unknown_domain='ignore' to have it answered as rows without one are.")
            own = [d if d in self.adapted_weights_ else None for d in given.tolist()]
        runtime = self._runtime(self.seed_)
        model = self.meta_learner_.to(runtime.device)

        def answer(rows: NDArray[np.int64], names: list[Name]) -> NDArray[np.float64]:
            some = tokens.subset(rows)
            return domain_logits(model, some, names, self.adapted_weights_, runtime, self._max_tokens())

        lost = np.array([d is None for d in own])
        if self._unknown != "mean" or not self.adapted_weights_ or not lost.any():
            return answer(np.arange(len(tokens)), own)
        out = np.empty((len(tokens), len(self.classes_)))
        if not lost.all():
            out[~lost] = answer(np.flatnonzero(~lost), [d for d in own if d is not None])
        each = [log_softmax(answer(np.flatnonzero(lost), [d] * lost.sum()), axis=1) for d in self.adapted_weights_]
        out[lost] = logsumexp(each, axis=0) - math.log(len(each))  # the mean of probabilities, as logarithms
        return out

    def _tokenize(self, X: Texts) -> tuple[TokenizedTexts, Array | None]:
        self._check_parameters()
        self._check_unchanged()
        X = order_columns(X, getattr(self, "feature_names_in_", None), self.domain_column)
        texts, column, _ = read_texts(X, self.domain_column)
        if isinstance(texts[0], tuple) != self.is_pair_:
            now, then = ("pairs", "single texts") if not self.is_pair_ else ("single texts", "pairs")
            found = f"X holds {now}, but the estimator was fitted on {then}; pass {then}."
            raise ValueError(found + column_hint(X, self.domain_column))
        token_types, bi = reads_token_types(self.meta_learner_.encoder), self.pair_encoding_ == "bi"
        return tokenize(self.tokenizer_, texts, self.max_length, token_types, bi), column

    # ------------------------------------------------------ state and checks

    def _check_unchanged(self) -> None:
        """Refuse parameters that the fitted model cannot follow; the next `fit` may."""
        for name, then in self._fitted_with.items():
            if (now := getattr(self, name)) != then:
                raise ValueError(f"{name}={now!r} was set after fit, which had {then!r}; set it back, or fit again.")

    def _check_parameters(self) -> None:
        self._validate_params()
        check_optimizer_params(self.optimizer_params)
        check_callbacks(self.callbacks)

    def _fitted_state(self) -> FittedState:
        check_is_fitted(self)
        self._check_unchanged()
        return FittedState(
            params=self.get_params(deep=False),
            settings=self._fitted_with,
            arrays={name: getattr(self, name) for name in STAGE_1 if hasattr(self, name)},
            unknown=self._unknown,
            n_features_in=getattr(self, "n_features_in_", None),
            feature_names_in=self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
            **{name: getattr(self, f"{name}_") for name in _SAME_NAMES},
        )

    @classmethod
    def _checked(cls, params: Params) -> Self:
        self = cls(**params)
        if lacking := set(self.get_params(deep=False)) - set(params):
            raise ValueError(f"params lack {sorted(lacking)}")
        self._check_parameters()
        return self

    @classmethod
    def _from_state(cls, state: FittedState) -> Self:
        self = cls(**state.params)
        self.__dict__.update({f"{name}_": getattr(state, name) for name in _SAME_NAMES}, **state.arrays)
        if state.n_features_in is not None:
            self.n_features_in_ = state.n_features_in
        if state.feature_names_in is not None:
            self.feature_names_in_ = np.array(state.feature_names_in, dtype=object)
        self._fitted_with, self._unknown = state.settings, state.unknown
        self._n_features_out = embedding_width(state.meta_learner.encoder, state.meta_learner.bi_encoded)
        return self

    def __getstate__(self) -> Params:
        """The meta-learner on the CPU, so that a pickle loads where the device that trained it is missing."""
        state = super().__getstate__()
        model = state.get("meta_learner_")
        if model is not None and any(p.device.type != "cpu" for p in model.parameters()):
            state = {**state, "meta_learner_": copy.deepcopy(model).cpu()}
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False  # pairs are two columns of text; numbers are not accepted
        return tags


_SAME_NAMES = (
    "classes domains class_counts history meta_learner tokenizer adapted_weights encoder_source is_pair pair_encoding seed"
).split()
