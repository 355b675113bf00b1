"""What a fitted meta-learner can do besides predicting: adapt to a domain, embed rows, score how typical they are."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ._base import BaseTextClassifier
from ._engine.encoder import find_encoder, load_encoder
from ._engine.inference import PretrainedEmbedder, embed
from ._inputs.domains import NAME_TYPES, kind_of, positions, read_domains, unknown_rows
from ._inputs.rows import Rows, read_labels
from ._method.typicality import similarities, typicality
from ._typing import Domains, Name, Texts


class BaseMetaLearner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseTextClassifier):
    """`adapt`, `transform` and `typicality` of `skmft.MetaFineTunedClassifier`."""

    prototypes_: NDArray[np.float64]
    prototype_shares_: NDArray[np.float64]

    def adapt(self, X: Texts, y: ArrayLike, domain: Name) -> Self:
        """Adapt the fitted meta-learner to a new domain, or again to a known one, from a few examples.

        Stage 3 alone: other models stay as they are. With the rows that `fit` had for a domain it gives the model that `fit`
        gave, unless the recipe gave the domain tensors of its own: `adapt` starts from the meta-learner.

        The defaults of stage 3 change little, as they are made for rows that stage 2 has seen. Whether more of it, such as
        ``set_params(adaptation_learning_rate=1e-4, adaptation_epochs=6)``, helps a new domain depends on the rows: keep some to
        see which answers better.

        Parameters
        ----------
        X : as in `fit`
            Texts or pairs of the domain; a domain column in it is not read.
        y : array-like, shape (n_samples,)
            Labels among `classes_`, of at least two classes.
        domain : str, int or bool
            Name under which `predict` finds the new model.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError, FloatingPointError
            If `adaptation` is None, `y` has an unknown label or one class only, `domain` is no name, or the loss or a trained
            weight is no number. Whatever fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        self._check_parameters()
        if self.adaptation is None:
            raise ValueError("adaptation=None leaves out stage 3; set it to 'full', 'head' or 'lora' before adapt.")
        self._make_recipe()  # says what it lacks
        tokens, _ = self._tokenize(X)
        labels = self._known_labels(y, len(tokens))
        if not isinstance(domain, NAME_TYPES):
            raise ValueError(f"domain={domain!r}; expected one name (str, int or bool) for all rows.")
        name = np.asarray(domain).item()
        for known in [*self.domains_.tolist(), *self.adapted_weights_]:
            if name == known and kind_of(name) != kind_of(known):  # True == 1, and would take its model's place
                raise ValueError(
                    f"domain={name!r} equals the known domain {known!r}; expected a name of the same type."
                )
        ones = np.ones(len(labels))
        rows = Rows(tokens, labels, np.zeros_like(labels), ones, self.classes_, np.array([name]), self.class_weight)
        if not rows.can_train:
            found = set(self.classes_[labels[rows.class_balance > 0]].tolist())
            raise ValueError(f"y has the classes {found} of class_weight above 0; adapting needs two or more.")
        runtime = self._runtime(self.seed_, training=True)
        self._check_same(rows, runtime)
        adapted = self._adapt_domain(self.meta_learner_, rows, name, runtime, None)
        assert adapted.tensors is not None  # the rows can train
        self.adapted_weights_ = self.adapted_weights_ | {name: adapted.tensors}
        self.history_ = [*self.history_, *adapted.history]
        return self

    # ------------------------------------------------------------ embeddings and typicality

    def transform(self, X: Texts, *, pretrained: bool = False) -> NDArray[np.float32]:
        """Pooled embeddings of the meta-learner, or of the pre-trained encoder.

        Parameters
        ----------
        X : as in `fit`
            A domain column in it is not read.
        pretrained : bool, default=False
            Whether to embed by the pre-trained encoder, which is loaded again, its sha256 compared with that of `fit`.

        Returns
        -------
        ndarray of float32, shape (n_samples, hidden)
            For pairs under ``pair_encoding="bi"``, of shape (n_samples, 3 * hidden).
        """
        check_is_fitted(self)
        tokens, _ = self._tokenize(X)
        if pretrained:
            chunks = self._pretrained().chunks(tokens, np.arange(len(tokens)))
            return np.concatenate([E for _, E in chunks])
        runtime = self._runtime(self.seed_)
        return embed(self.meta_learner_.encoder, tokens, self.pooling, runtime, self._max_tokens())

    def typicality(self, X: Texts, y: ArrayLike, domains: Domains = None) -> NDArray[np.float64]:
        """Typicality of labelled rows against the fitted prototypes (paper, section 3.2).

        The pre-trained encoder is loaded again for it. A row of the training set gets its value in `typicality_`.

        Parameters
        ----------
        X : as in `fit`
        y : array-like, shape (n_samples,)
            Labels among `classes_`.
        domains : array-like of shape (n_samples,), scalar, or None, default=None
            For a domain without prototypes (None among them) the similarities to all domains count alike.

        Returns
        -------
        ndarray of float64, shape (n_samples,)
            In [-1, 1].

        Raises
        ------
        ValueError
            Under ``typicality_weighting=False``, or if the encoder's weights are no longer those of `fit`.
        """
        check_is_fitted(self)
        if not hasattr(self, "prototypes_"):
            raise ValueError("typicality_weighting=False leaves out stage 1; fit with typicality_weighting=True.")
        tokens, column = self._tokenize(X)
        if domains is None and column is None:
            domains = np.full(len(tokens), None)
        given = np.asarray(read_domains(domains, column, X, len(tokens), self.domain_column, allow_missing=True))
        labels, where = self._known_labels(y, len(tokens)), positions(given, self.domains_)
        unknown_rows(given, self.domains_.tolist())  # refuses those of another type
        prototypes = self.prototypes_.reshape(*self.prototype_shares_.shape, -1)
        own, cross = np.empty((2, len(tokens)))
        for part, E in self._pretrained().chunks(tokens, np.arange(len(tokens))):
            own[part], cross[part] = similarities(E, labels[part], where[part], prototypes, self.prototype_shares_)
        return typicality(own, cross, self.typicality_balance)

    def _pretrained(self) -> PretrainedEmbedder:
        source = find_encoder(self.encoder_source_.name, self.encoder_source_.revision)
        if source.sha256 != self.encoder_source_.sha256:
            found = f"model={source.name!r}: the weights in {source.folder!r} have sha256 {source.sha256}"
            raise ValueError(f"{found}, but those of fit had {self.encoder_source_.sha256}; restore them.")
        runtime = self._runtime(self.seed_)
        with runtime.generators("encoder"):
            return self._embedder(load_encoder(source), source, runtime)

    def _known_labels(self, y: ArrayLike, n_rows: int) -> NDArray[np.int64]:
        given = read_labels(y, n_rows)
        labels = positions(given, self.classes_)
        if (labels < 0).any():
            odd = sorted(set(given[labels < 0].tolist()))
            raise ValueError(f"y has labels that fit did not see: {odd}; expected members of {self.classes_.tolist()}.")
        return labels

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
