"""X, read as texts or pairs: lists, arrays, frames, datasets, and what stays where it is until it is read."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from .._engine.tokens import Text
from .._typing import Array, Texts, Values

_ROWS_A_READ = 4096  # of texts that are not in memory


class LazyTexts(Sequence[Text]):
    """A checked list of texts in one column, or pairs in one or two, which stay where they are until a slice is asked for."""

    def __init__(self, columns: list) -> None:
        self._columns = columns
        [first] = _rows_between(columns[0], 0, 1)
        self._rows_are_pairs = len(columns) == 1 and isinstance(first, (tuple, list))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self[rows : rows + 1 or None][0]
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return [self[i] for i in range(start, stop, step)]
        parts = [_rows_between(column, start, stop) for column in self._columns]
        if self._rows_are_pairs:
            for i, row in enumerate(parts[0], start):
                if not isinstance(row, (tuple, list)) or len(row) != 2:
                    raise ValueError(
                        f"X: row {i} is {reprlib.repr(row)}; expected a pair (str, str), as zip(a, b) gives."
                    )
            parts = [[row[j] for row in parts[0]] for j in (0, 1)]
        for j, part in enumerate(parts):
            for i, text in enumerate(part, start):
                if not isinstance(text, str):
                    where = "" if len(parts) == 1 else f", text {j + 1} of the pair"
                    got = f"{text!r} ({type(text).__name__})"
                    raise ValueError(f"X: row {i}{where} is {got}; expected str. Convert it, or drop the row.")
        return parts[0] if len(parts) == 1 else list(zip(*parts))

    def __iter__(self) -> Iterator[Text]:
        for start in range(0, len(self), _ROWS_A_READ):
            yield from self[start : start + _ROWS_A_READ]


def read_texts(X: Texts, domain_column: Hashable = None) -> tuple[Sequence[Text], Array | None, list[Hashable] | None]:
    """Texts or pairs of X, the values of its domain column, and the names of its text columns."""
    if X is None or isinstance(X, (str, bytes, Mapping, Set)) or not hasattr(X, "__len__") or issparse(X):
        raise TypeError(
            f"X is a {type(X).__name__}; expected a list, 1-D array or Series of str, or for pairs a list of (str, str) or a "
            "two-column DataFrame or array. For one text, pass [text]; of several splits, pass one."
        )
    domains, names = None, column_names(X)
    if names is not None:
        if len(set(names)) < len(names) or isinstance(getattr(X, "columns", None), pd.MultiIndex):
            raise ValueError(f"X has the columns {names}; expected plain names, each once. Rename them.")
        if domain_column is not None and domain_column in names:
            values = X[domain_column]
            domains = values.to_numpy() if isinstance(X, pd.DataFrame) else np.array(as_list(values), dtype=object)
            names.remove(domain_column)
        columns = [X[name] for name in names]
        if len(columns) not in (1, 2):
            besides = "" if domain_column is None else f" besides domain_column={domain_column!r}"
            found = f"X has {len(names)} text columns{besides}: {names}; expected one, or two for pairs"
            raise ValueError(f"{found}. Select them, as by X[[...]], or name the column of domains by domain_column=.")
    elif getattr(X, "ndim", 1) > 1:
        columns = list(np.asarray(X).T)
        if X.ndim > 2 or len(columns) not in (1, 2):
            raise ValueError(f"X is an array of shape {X.shape}; expected (n_rows,) or one column, or two for pairs.")
    else:
        columns = [X]
    if not len(columns[0]):
        raise ValueError("X has 0 samples (rows); at least 1 is required. Pass one text or more.")
    if any(map(_is_lazy, columns)):
        return LazyTexts(columns), domains, names
    return LazyTexts(list(map(as_list, columns)))[:], domains, names


def column_names(X: Texts) -> list[Hashable] | None:
    """Names of the columns of a DataFrame, Hugging Face dataset or Arrow table; None for other forms."""
    names = X.columns if isinstance(X, pd.DataFrame) else getattr(X, "column_names", None)
    return list(names) if isinstance(names, (list, tuple, pd.Index)) else None


def order_columns(X: Texts, columns: list[Hashable] | None, domain_column: Hashable) -> Any:
    """Columns of X as they were in `fit`: text columns by name, in the order of then."""
    present = column_names(X)
    if columns is None or present is None:
        return X
    if missing := [c for c in columns if c not in present]:
        raise ValueError(f"X lacks the column(s) {missing} that it had in fit; it has {present}.")
    names = [*columns, *([domain_column] if domain_column is not None and domain_column in present else [])]
    if isinstance(X, pd.DataFrame):
        return X[names]
    return X.select_columns(names) if hasattr(X, "select_columns") else X.select(names)


def column_hint(X: Texts, domain_column: Hashable) -> str:
    """For messages about X whose two columns were read as pairs: one of them may be the domain, which nobody named."""
    names = column_names(X)
    if domain_column is not None or names is None or len(names) != 2:
        return ""
    return f" The columns {names} were read as pairs of texts; if one of them is the domain, name it by domain_column=."


def as_list(values: Values) -> list:
    """All values; a dataset's column is read by a slice, which a list() of it is not."""
    return _rows_between(values, 0, len(values)) if _is_lazy(values) else _to_list(values)


def _is_lazy(column: Values) -> bool:
    """Whether it is read slice by slice: an Arrow array, an array of fixed-width str, a sequence of an unknown class."""
    if isinstance(column, np.ndarray):
        return column.dtype.kind == "U"
    has_rows = hasattr(column, "__getitem__") and not isinstance(column, (list, tuple, Mapping))
    return hasattr(column, "to_pylist") or (has_rows and not hasattr(column, "tolist"))


def _rows_between(column: Values, start: int, stop: int) -> list:
    stop = min(stop, len(column))
    try:
        rows = column[start:stop]
        if not isinstance(rows, str) and len(rows) == stop - start:
            return _to_list(rows)
    except (TypeError, KeyError):  # it gives single rows only
        pass
    return [column[i] for i in range(start, stop)]


def _to_list(values: Values) -> list:
    convert = getattr(values, "to_pylist", None) or getattr(values, "tolist", None)
    return convert() if convert else list(values)
