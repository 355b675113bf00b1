"""One way in: X, y, domains and sample_weight become rows with numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from .._engine.tokens import Text, TokenizedTexts
from .._typing import Array, Domains, Floats, Ints, Labels, Texts, Values
from .domains import NO_DOMAIN, positions, read_domains, refuse_domains_as_texts
from .texts import as_list, read_texts
from .weights import ClassWeight, balance_classes, normalized_weights, read_sample_weight


@dataclass(frozen=True)
class LabelledTexts:
    """What `fit` was given, read and checked, before any text is tokenized.

    Labels and domains are positions in `classes` and `domain_names`, which are those of the rows of weight above 0, sorted;
    -1 is another name. `columns` are the names of the text columns, where X has names.
    """

    texts: Sequence[Text]
    labels: Ints
    domains: Ints
    sample_weight: Floats
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
    X: Texts, y: Labels, domains: Domains, sample_weight: Values, *, domain_column: Hashable, class_weight: ClassWeight
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
    found, labels = classes.tolist(), positions(y, classes)
    if len(found) < 2:
        raise ValueError(f"y has one class only, {found[0]!r} (among the rows of weight above 0); expected two.")
    balance = balance_classes(class_weight, labels[used], weight[used], classes)
    if len(np.unique(labels[used][balance > 0])) < 2:
        left = f"class_weight={class_weight!r} leaves fewer than two of the classes {found} a weight above 0"
        raise ValueError(f"{left}; raise it for some.")
    has_domains, where = given is not None, positions(names, domain_names)
    return LabelledTexts(texts, labels, where, weight, classes, domain_names, columns, has_domains)


@dataclass(frozen=True)
class Rows:
    """Tokenized rows, with labels and domains as in `LabelledTexts`, and what their weights are made of.

    `class_weight` is as in scikit-learn, "balanced" over these rows; `typicality` is the paper's t, where it weights them;
    `probe` has row numbers and the rows' embeddings by the pre-trained encoder, for a label head to be fitted on.
    """

    tokens: TokenizedTexts
    labels: Ints
    domains: Ints
    sample_weight: Floats
    classes: Array
    domain_names: Array
    class_weight: ClassWeight = None
    typicality: Floats | None = None
    probe: tuple[Ints, NDArray[np.float32]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows of a mask, shape (n_rows,)."""
        rows, probe = np.flatnonzero(mask), self.probe
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
    def class_balance(self) -> Floats:
        """Class weight of every row, over these rows."""
        return balance_classes(self.class_weight, self.labels, self.sample_weight, self.classes)

    @cached_property
    def weights(self) -> Floats:
        """Loss weight of every row: typicality, sample weight and class weight, scaled to mean 1 over these rows."""
        t = [] if self.typicality is None else [self.typicality]
        return normalized_weights(*t, self.sample_weight, self.class_balance)

    @property
    def can_train(self) -> bool:
        """Whether rows of at least two classes have a weight above 0: those of one class only teach to answer it."""
        return len(np.unique(self.labels[self.sample_weight * self.class_balance > 0])) > 1


def read_labels(y: Labels, n_rows: int) -> Array:
    """Labels as an array of shape (n_rows,)."""
    if y is None:
        raise ValueError("y is None; this classifier requires y to be passed: one label a row of X.")
    if isinstance(y, Sequence) and not isinstance(y, (str, bytes)):
        y = as_list(y)  # a dataset's column is read at once, not row by row
    y = column_or_1d(y, warn=True)
    if len(y) != n_rows:
        raise ValueError(f"y has {len(y)} labels, but X has {n_rows} rows; expected one label a row.")
    if (lost := pd.isna(y)).any():
        row = lost.argmax()
        raise ValueError(f"y: row {row} is {y.tolist()[row]!r}; expected a label. Drop rows without one.")
    if len({isinstance(label, str) for label in y.tolist()}) > 1:
        raise ValueError("y mixes strings and numbers; expected one type. Convert with astype(str).")
    check_classification_targets(y)
    return y
