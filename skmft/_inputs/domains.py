"""Domains of rows: read in every form that they come in, compared by value and type."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from .._typing import Array, Domains, Ints, Name, Texts
from .texts import as_list, column_names

NO_DOMAIN = "all"  # name of the one domain where fit got none
NAME_TYPES = (str, numbers.Integral, np.bool_)  # of domains


def read_domains(
    domains: Domains, from_column: Array | None, X: Texts, n_rows: int, domain_column: Hashable, *, allow_missing: bool
) -> Array | None:
    """Domain of every row, shape (n_rows,), or None where none are given."""
    if domains is not None and from_column is not None:
        raise ValueError(f"domains were given twice: by domains= and by domain_column={domain_column!r}; give one.")
    name, values = ("domains", domains) if from_column is None else (f"X[{domain_column!r}]", from_column)
    if values is None:
        if domain_column is None:
            return None
        columns = column_names(X)
        got = f"is a {type(X).__name__}" if columns is None else f"has columns {columns}"
        raise ValueError(f"domain_column={domain_column!r} is not in X, which {got}; pass an X with it, or domains=.")
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        values = np.full(n_rows, values)
    array = values if isinstance(values, np.ndarray) else np.asarray(as_list(values), dtype=object)
    if array.shape != (n_rows,):
        raise ValueError(f"{name} has shape {array.shape}, but X has {n_rows} rows; expected ({n_rows},), or a scalar.")
    names, lost = array.tolist(), pd.isna(array)
    if lost.any() and not allow_missing:
        got = f"row {lost.argmax()} is {names[lost.argmax()]!r}"
        raise ValueError(f"{name}: {got}; expected a domain name. Drop such rows, or give them a domain of their own.")
    given = np.flatnonzero(~lost)
    whole = all(isinstance(names[i], numbers.Real) and names[i] % 1 == 0 for i in given)
    floats = any(isinstance(names[i], float) for i in given)
    if floats and lost.any() and whole:  # pandas' form of int with missing values
        return np.array([None if none else int(value) for value, none in zip(names, lost)], dtype=object)
    for i in given:
        if not isinstance(names[i], NAME_TYPES):
            fix = "Give the names that fit got." if allow_missing else "Convert with astype(str)."
            fix = "Convert with astype(int)." if whole else fix  # they became float on the way
            got = f"{names[i]!r} ({type(names[i]).__name__})"
            raise ValueError(f"{name}: row {i} is {got}; expected str, int or bool. {fix}")
    if len(kinds := {kind_of(names[i]).__name__ for i in given}) > 1:
        raise ValueError(f"{name} mixes {sorted(kinds)}; expected one type. Convert with astype(str).")
    return array if hasattr(values, "dtype") or lost.any() else np.asarray(names)


def refuse_domains_as_texts(texts: Sequence, domains: Array | None) -> None:
    """Raise a ValueError where one text of every pair is the row's domain: a domain column that nobody named."""
    if domains is None or not isinstance(texts[0], tuple):
        return
    for part in (0, 1):
        if all(pair[part] == domain for pair, domain in zip(texts, domains.tolist())):
            raise ValueError(
                f"X holds pairs whose text {part + 1} is the row's domain; expected texts. Name that column by domain_column=."
            )


def positions(values: Sequence | Array, names: Array) -> Ints:
    """Position of every value in `names`, -1 where it is not there."""
    where = {name: i for i, name in enumerate(names.tolist())}
    return np.array([where.get(v, -1) for v in np.asarray(values).tolist()], dtype=np.int64)


def kind_of(domain: Name) -> type:
    """str, bool or int, of whichever of its forms a domain's name is."""
    return str if isinstance(domain, str) else bool if isinstance(domain, (bool, np.bool_)) else int


def unknown_rows(domains: Array, known: Sequence) -> Ints:
    """Rows that have a domain, but none of the known; refused where all known are of another type, such as "1" beside 1."""
    unknown = np.flatnonzero((positions(domains, np.array(known, dtype=object)) < 0) & ~pd.isna(domains))
    kinds = {kind_of(domains[i]) for i in unknown}
    if len(unknown) and list(known) != [NO_DOMAIN] and not kinds & set(map(kind_of, known)):
        raise ValueError(
            f"domains: row {unknown[0]} is {domains.tolist()[unknown[0]]!r}, which is none of the known {list(known)}; "
            "convert them to one type."
        )
    return unknown
