"""Domains beside rows, for metrics, splitters and displays: found, checked and grouped, whatever kind of names they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .._typing import Array, Domains, Labels, Name, Texts, Values
from .domains import kind_of
from .texts import column_names


def as_given(values: Values) -> Array:
    """Values as they were given: NumPy would turn a list's NaN into the text "nan", and its 1 and "1" into the same text."""
    return np.asarray(values, dtype=None if hasattr(values, "dtype") else object)


def column_of(X: Texts, name: Name) -> Any:
    """Column `name` of a DataFrame, Hugging Face dataset or Arrow table X; None where there is none."""
    present = name is not None and name in (column_names(X) or [])
    return X[name][:] if present else None  # a dataset's column gives its rows one by one, but a slice of it at once


def check_lengths(of: str, n_rows: int, **arrays: Values) -> None:
    """Raise a ValueError for an array, other than None, that does not have one entry per row of the argument `of`."""
    for name, array in arrays.items():
        if array is not None and np.shape(array)[:1] != (n_rows,):
            raise ValueError(
                f"{name} has shape {np.shape(array)}, but {of} has {n_rows} rows; expected one entry per row of {of}."
            )


def check_domains(domains: Domains, of: str, n_rows: int, name: str = "domains") -> Array:
    """Domain of every row, shape (n_rows,). A ValueError where one has none, or two types could be taken for one another."""
    values = as_given(domains)
    if values.shape != (n_rows,):
        raise ValueError(f"{name} has shape {values.shape}, but {of} has {n_rows} rows; expected ({n_rows},).")
    if not n_rows:
        raise ValueError(f"{name} and {of} have no rows; expected at least one.")
    if (without := pd.isna(values)).any():
        raise ValueError(f"{name}: row {int(without.argmax())} has no domain; leave such rows out.")
    kinds = {kind_of(value).__name__ for value in values.tolist()} if values.dtype == object else set()
    if len(kinds) > 1:
        raise ValueError(f"{name} mixes {sorted(kinds)}; expected one type. Convert them all to str.")
    return np.asarray(domains)


def rows_by_domain(domains: ArrayLike, of: str, n_rows: int) -> dict[Name, NDArray[np.int64]]:
    """Row numbers of every domain, domains in sorted order."""
    values = check_domains(domains, of, n_rows)
    return {name: np.flatnonzero(values == name) for name in np.unique(values).tolist()}


def scores_by_domain(
    metric: Callable[..., float], y: Labels, domains: Domains, weight: Values = None, **answers: Values
) -> dict[Name, float]:
    """The metric in every domain, of `y` and the answers, which have the names that messages give them."""
    arrays = {name: np.asarray(values) for name, values in {"y": y, **answers}.items()}
    weights = {} if weight is None else {"sample_weight": np.asarray(weight)}
    check_lengths("y", len(arrays["y"]), **arrays, **weights)
    scores = {}
    for domain, rows in rows_by_domain(domains, "y", len(arrays["y"])).items():
        own_weights = {name: values[rows] for name, values in weights.items()}
        scores[domain] = float(metric(*(values[rows] for values in arrays.values()), **own_weights))
    return scores
