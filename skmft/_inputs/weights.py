"""Weights of rows: sample weights as given, class weights, and their product with typicality."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import compute_class_weight

from .._typing import Array, Floats, Ints, Name, Values

ClassWeight = str | dict[Name, float] | None


def read_sample_weight(sample_weight: Values, n_rows: int) -> Floats:
    """Weights of shape (n_rows,); ones for None."""
    weight = np.asarray(1.0 if sample_weight is None else sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n_rows, weight)
    if weight.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weight.shape}, but X has {n_rows} rows; expected ({n_rows},).")
    if (bad := ~np.isfinite(weight) | (weight < 0)).any():
        row = bad.argmax()
        raise ValueError(f"sample_weight: row {row} is {weight[row]}; expected finite weights of 0 or more.")
    if not weight.any():
        raise ValueError("sample_weight is 0 for every row; give at least two classes a weight above 0.")
    return weight


def balance_classes(class_weight: ClassWeight, labels: Ints, sample_weight: Floats, classes: Array) -> Floats:
    """Class weight of every row, shape (n_rows,), as scikit-learn defines ``class_weight``."""
    if isinstance(class_weight, str):
        present = np.unique(labels)
        balanced = compute_class_weight(class_weight, classes=present, y=labels, sample_weight=sample_weight)
        return balanced[np.searchsorted(present, labels)]
    given, names = class_weight or {}, classes.tolist()
    if unknown := [c for c in given if c not in names]:
        raise ValueError(f"class_weight has keys {unknown}; expected classes of y: {names}.")
    weights = np.array([given.get(c, 1.0) for c in names], dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"class_weight={class_weight!r}; expected finite weights of 0 or more.")
    return weights[labels]


def normalized_weights(t: ArrayLike, *factors: ArrayLike) -> Floats:
    """Product of t and other factors, each of shape (n_rows,), scaled to mean 1; negatives count as 0.

    Where it is 0 everywhere (no row is typical at all), t does not count.
    """
    product = np.prod([np.clip(np.asarray(f, dtype=np.float64), 0.0, None) for f in (t, *factors)], axis=0)
    if product.any():
        return product / product.mean()
    return normalized_weights(*factors) if factors else np.ones_like(product)
