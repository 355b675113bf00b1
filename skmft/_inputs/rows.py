"""One way in: X, y, domains and sample_weight become rows with numbers; their weights are made here, once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from .._engine.tokens import Text, TokenizedTexts
from .._typing import Array, Domains, Labels, Name, Texts, Values
from .domains import NO_DOMAIN, positions, read_domains, refuse_domains_as_texts
from .texts import as_list, is_missing, read_texts

ClassWeight = str | dict[Name, float] | None


@dataclass(frozen=True)
class LabelledTexts:
    """What `fit` was given, read and checked, before any text is tokenized.

    Labels and domains are positions in `classes` and `domain_names`, which are those of the rows of weight above 0, sorted;
    -1 is another name. `columns` are the names of the text columns, where X has names.
    """

    texts: Sequence[Text]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    sample_weight: NDArray[np.float64]
    classes: Array
    domain_names: Array
    columns: list[Hashable] | None
    has_domains: bool

    @property
    def is_pair(self) -> bool:
        return isinstance(self.texts[0], tuple)

    @property
    def used(self) -> NDArray[np.bool_]:
        return self.sample_weight > 0


def read_labelled_texts(
    X: Texts,
    y: Labels,
    domains: Domains,
    sample_weight: Values,
    *,
    domain_column: Hashable | None,
    class_weight: ClassWeight,
) -> LabelledTexts:
    """Read the arguments of `fit`."""
    texts, column, columns = read_texts(X, domain_column)
    y = read_labels(y, len(texts))
    given = read_domains(domains, column, X, len(texts), domain_column, allow_missing=False)
    refuse_domains_as_texts(texts, given)
    names = np.full(len(texts), NO_DOMAIN) if given is None else given
    weight = read_sample_weight(sample_weight, len(texts))
    used = weight > 0
    classes, domain_names = np.unique(y[used]), np.unique(names[used])
    if len(classes) < 2:
        raise ValueError(
            f"y has one class only, {classes.tolist()[0]!r} (among the rows of weight above 0); "
            "a classifier needs at least two classes."
        )
    labels = positions(y, classes)
    balance = balance_classes(class_weight, labels[used], weight[used], classes)
    if not has_two_classes(labels[used][balance > 0]):
        raise ValueError(
            f"class_weight={class_weight!r} leaves fewer than two of the classes {classes.tolist()} a weight above 0; "
            "a classifier needs at least two."
        )
    where = positions(names, domain_names)
    return LabelledTexts(texts, labels, where, weight, classes, domain_names, columns, given is not None)


@dataclass(frozen=True)
class Rows:
    """Tokenized rows, with labels and domains as numbers, and what their weights are made of.

    `labels` and `domains`, shape (n_rows,), are positions in `classes` and `domain_names`. `class_weight` is as in
    scikit-learn, "balanced" over these rows. `typicality` is the paper's t, where rows are weighted by it. `probe` has row
    numbers and the rows' embeddings by the pre-trained encoder, for a label head to be fitted on.
    """

    tokens: TokenizedTexts
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    sample_weight: NDArray[np.float64]
    classes: Array
    domain_names: Array
    class_weight: ClassWeight = None
    typicality: NDArray[np.float64] | None = None
    probe: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows of a mask, shape (n_rows,)."""
        rows = np.flatnonzero(mask)
        probe = self.probe
        if probe is not None:
            kept = mask[probe[0]]
            probe = np.searchsorted(rows, probe[0][kept]), probe[1][kept]
        return replace(
            self,
            tokens=self.tokens.subset(rows),
            labels=self.labels[rows],
            domains=self.domains[rows],
            sample_weight=self.sample_weight[rows],
            typicality=None if self.typicality is None else self.typicality[rows],
            probe=probe,
        )

    @cached_property
    def class_balance(self) -> NDArray[np.float64]:
        """Class weight of every row, over these rows."""
        return balance_classes(self.class_weight, self.labels, self.sample_weight, self.classes)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Loss weight of every row: typicality, sample weight and class weight, scaled to mean 1 over these rows."""
        factors = [self.sample_weight, self.class_balance]
        return normalized_weights(*([] if self.typicality is None else [self.typicality]), *factors)

    @property
    def can_train(self) -> bool:
        """Whether rows of at least two classes have a weight above 0: those of one class only teach to answer it."""
        return has_two_classes(self.labels[self.sample_weight * self.class_balance > 0])


def has_two_classes(labels: Array) -> bool:
    """Whether there are at least two distinct labels."""
    return len(np.unique(labels)) > 1


def read_labels(y: Labels, n_rows: int) -> Array:
    """Labels as an array of shape (n_rows,)."""
    if y is None:
        raise ValueError("y is None; this classifier requires y to be passed: one label a row of X.")
    if isinstance(y, Sequence) and not isinstance(y, (str, bytes)):
        y = as_list(y)  # a dataset's column is read at once, not row by row
    y = column_or_1d(y, warn=True)
    if len(y) != n_rows:
        raise ValueError(f"y has {len(y)} labels, but X has {n_rows} rows; expected one label a row.")
    if y.dtype == object or y.dtype.kind == "f":
        for i, label in enumerate(y.tolist()):
            if is_missing(label):
                raise ValueError(f"y: row {i} is {label!r}; expected a label. Drop rows without one.")
        kinds = {str if isinstance(label, str) else float for label in y.tolist()}
        if len(kinds) > 1:
            raise ValueError("y mixes strings and numbers; expected one type. Convert with astype(str).")
    check_classification_targets(y)
    return y


def read_sample_weight(sample_weight: Values, n_rows: int) -> NDArray[np.float64]:
    """Weights of shape (n_rows,); ones for None."""
    if sample_weight is None:
        return np.ones(n_rows)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n_rows, float(weight))
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weight.shape}, but X has {n_rows} rows; expected ({n_rows},).")
    if not np.isfinite(weight).all() or (weight < 0).any():
        row = int(np.flatnonzero(~np.isfinite(weight) | (weight < 0))[0])
        raise ValueError(f"sample_weight: row {row} is {weight[row]}; expected finite weights of 0 or more.")
    if not weight.any():
        raise ValueError("sample_weight is 0 for every row; give at least two classes a weight above 0.")
    return weight


def balance_classes(
    class_weight: ClassWeight,
    labels: NDArray[np.int64],
    sample_weight: NDArray[np.float64],
    classes: Array,
) -> NDArray[np.float64]:
    """Class weight of every row, shape (n_rows,), as scikit-learn defines ``class_weight``."""
    if class_weight is None:
        return np.ones(len(labels))
    if isinstance(class_weight, dict):
        unknown = [c for c in class_weight if c not in classes.tolist()]
        if unknown:
            raise ValueError(f"class_weight has keys {unknown}; expected classes of y: {classes.tolist()}.")
        weights = np.array([class_weight.get(c, 1.0) for c in classes.tolist()], dtype=np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(f"class_weight={class_weight!r}; expected finite weights of 0 or more.")
        return weights[labels]
    present = np.unique(labels)
    weights = compute_class_weight(class_weight, classes=present, y=labels, sample_weight=sample_weight)
    return weights[np.searchsorted(present, labels)]


def normalized_weights(t: ArrayLike, *factors: ArrayLike) -> NDArray[np.float64]:
    """Product of t and other factors, each of shape (n_rows,), scaled to mean 1; negatives count as 0.

    Where it is 0 everywhere (no row is typical at all), t does not count.
    """
    product = np.prod([np.clip(np.asarray(f, dtype=np.float64), 0.0, None) for f in (t, *factors)], axis=0)
    mean = product.mean()
    if mean > 0:
        return product / mean
    return normalized_weights(*factors) if factors else np.ones_like(product)
