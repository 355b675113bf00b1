"""Domains of rows: read in every form that they come in, compared by value and type."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._typing import Array, Domains, Name, Texts
from .texts import ROWS_A_READ, as_list, column_names, is_missing

NO_DOMAIN = "all"  # name of the one domain where fit got none


def read_domains(
    domains: Domains,
    from_column: Array | None,
    X: Texts,
    n_rows: int,
    domain_column: Hashable | None,
    *,
    allow_missing: bool,
    argument: str = "domains",
) -> Array | None:
    """Domain of every row, shape (n_rows,), or None where none are given."""
    if domains is not None and from_column is not None:
        raise ValueError(f"domains were given twice: by domains= and by domain_column={domain_column!r}; give one.")
    if domains is None and from_column is None:
        if domain_column is None:
            return None
        names = column_names(X)
        got = f"is a {type(X).__name__}" if names is None else f"has columns {names}"
        raise ValueError(
            f"domain_column={domain_column!r} is not in X, which {got}; expected a DataFrame with that "
            "column. Add the column, or pass domains=."
        )
    name = argument if from_column is None else f"X[{domain_column!r}]"
    values = domains if from_column is None else from_column
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        values = np.full(n_rows, values)
    array = values if isinstance(values, np.ndarray) else np.asarray(as_list(values), dtype=object)
    if array.ndim != 1 or len(array) != n_rows:
        raise ValueError(
            f"{name} has shape {array.shape}, but X has {n_rows} rows; expected one domain a row, "
            f"({n_rows},), or one scalar for all."
        )
    if array.dtype.kind == "f" and allow_missing and np.isnan(array).any():  # pandas' form of int with missing values
        if (array[~np.isnan(array)] % 1 == 0).all():
            array = np.array([None if np.isnan(v) else int(v) for v in array], dtype=object)
    kinds = set()
    for i, value in enumerate(array.tolist()):
        if is_missing(value):
            if allow_missing:
                continue
            raise ValueError(
                f"{name}: row {i} is {value!r}; expected a domain name (str, int or bool). "
                "Drop such rows or give them a domain of their own."
            )
        kind = kind_of(value)
        if kind is int and not isinstance(value, numbers.Integral):
            fix = "Give the names that fit got." if allow_missing else "Convert with astype(str)."
            if all(
                map(_is_whole, array.tolist())
            ):  # int that became float on the way; as str it would match no known one
                fix = "Convert with astype(int)."
            raise ValueError(f"{name}: row {i} is {value!r} ({type(value).__name__}); expected str, int or bool. {fix}")
        kinds.add(kind)
    if len(kinds) > 1:
        raise ValueError(
            f"{name} mixes {sorted(k.__name__ for k in kinds)}; expected one type. Convert with astype(str)."
        )
    if array.dtype == object and not isinstance(values, np.ndarray) and not hasattr(values, "dtype"):
        if not any(map(is_missing, array)):
            array = np.asarray(array.tolist())
    return array


def refuse_domains_as_texts(texts: Sequence, domains: Array | None) -> None:
    """Raise a ValueError where one text of every pair is the row's domain: a domain column that nobody named."""
    if domains is None or not isinstance(texts[0], tuple):
        return
    starts = range(0, len(texts), ROWS_A_READ)
    for part in (0, 1):
        if all(
            [pair[part] for pair in texts[s : s + ROWS_A_READ]] == domains[s : s + ROWS_A_READ].tolist() for s in starts
        ):
            raise ValueError(
                f"X holds pairs whose text {part + 1} is the row's domain; expected texts. Name that column by domain_column=, "
                "or leave it out of X."
            )


def positions(values: Sequence | Array, names: Array) -> NDArray[np.int64]:
    """Position of every value in `names`, -1 where it is not there."""
    where = {name: i for i, name in enumerate(names.tolist())}
    return np.array([where.get(v, -1) for v in np.asarray(values).tolist()], dtype=np.int64)


def kind_of(domain: Name) -> type:
    """str, bool or int, of whichever of its forms a domain's name is."""
    return str if isinstance(domain, str) else bool if isinstance(domain, (bool, np.bool_)) else int


def refuse_other_types(domains: Array, unknown: NDArray[np.int64], known: Sequence) -> None:
    """Raise a ValueError where the unknown rows' domains are of another type than all that are known, such as "1" beside 1.

    Where `fit` got no domains, all are as unknown.
    """
    if (
        len(unknown)
        and list(known) != [NO_DOMAIN]
        and not {kind_of(domains[i]) for i in unknown} & set(map(kind_of, known))
    ):
        raise ValueError(
            f"domains: row {unknown[0]} is {domains.tolist()[unknown[0]]!r}, which is none of the known {list(known)}; "
            "convert them to one type."
        )


def missing(domains: Array) -> NDArray[np.bool_]:
    """Which rows have no domain (None or NaN), shape (n_rows,)."""
    return np.array([is_missing(value) for value in domains.tolist()], dtype=bool)


def _is_whole(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, numbers.Real) and value % 1 == 0)
