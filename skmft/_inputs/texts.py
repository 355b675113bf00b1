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

_FORMS = (
    "a list, tuple, 1-D array or Series of str; or pairs as a two-column DataFrame or array or a list of (str, str)"
)
ROWS_A_READ = 4096  # of texts that are not in memory


class LazyTexts(Sequence[Text]):
    """Texts or pairs that stay where they are until a slice of them is asked for.

    A slice is a list of str or of (str, str), its rows checked as `read_texts` says; read a few thousand at a time.

    Parameters
    ----------
    columns : list of sequence
        One for texts (or for rows that are pairs already), two for pairs. Arrow arrays, columns of a Hugging Face
        dataset, arrays of str, and whatever else has a length and gives rows by their number.
    """

    def __init__(self, columns: list) -> None:
        self._columns = columns
        first = _rows_between(columns[0], 0, 1)
        self._rows_are_pairs = len(columns) == 1 and bool(first) and isinstance(first[0], (tuple, list))

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            [row] = self[rows : rows + 1 or None]
            return row
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return [self[i] for i in range(start, stop, step)]
        parts = [_rows_between(column, start, stop) for column in self._columns]
        return _check_rows(_split_pairs(parts[0], start) if self._rows_are_pairs else parts, start)

    def __iter__(self) -> Iterator[Text]:
        for start in range(0, len(self), ROWS_A_READ):
            yield from self[start : start + ROWS_A_READ]


def read_texts(
    X: Texts, domain_column: Hashable | None = None
) -> tuple[Sequence[Text], Array | None, list[Hashable] | None]:
    """Texts or pairs of X, the values of its domain column, and the names of its text columns."""
    if X is None or isinstance(X, (str, bytes, Mapping, Set)) or not hasattr(X, "__len__") or issparse(X):
        hint = " For one text, pass [text]." if isinstance(X, str) else ""
        hint = " Pass one of its splits." if isinstance(X, Mapping) else hint
        raise TypeError(f"X is a {type(X).__name__}; expected {_FORMS}.{hint}")
    domains, columns = None, column_names(X)
    lazy = False
    if columns is not None:
        if len(set(columns)) < len(columns) or isinstance(getattr(X, "columns", None), pd.MultiIndex):
            raise ValueError(f"X has the columns {columns}; expected plain names, each once. Rename them.")
        if domain_column is not None and domain_column in columns:
            values = X[domain_column]
            domains = values.to_numpy() if isinstance(X, pd.DataFrame) else np.array(as_list(values), dtype=object)
            columns = [name for name in columns if name != domain_column]
        if len(columns) not in (1, 2):
            named = "" if domain_column is None else f" besides domain_column={domain_column!r}"
            select = "select_columns([...])" if hasattr(X, "select_columns") else "X[[...]]"
            raise ValueError(
                f"X has {len(columns)} text columns{named}: {columns}; expected one (texts) or two (pairs). "
                f"Select them with {select}"
                + (", or name the column of domains by domain_column." if not named else ".")
            )
        lazy = not isinstance(X, pd.DataFrame)
        parts = [X[name] if lazy else X[name].tolist() for name in columns]
    elif getattr(X, "ndim", 1) > 1:
        lazy = _is_fixed_width(X)
        array = X if lazy else np.asarray(X, dtype=object)
        if array.ndim > 2 or array.shape[1] not in (1, 2):
            raise ValueError(
                f"X is an array of shape {array.shape}; expected (n_rows,) or one column for texts, two columns for pairs."
            )
        parts = [array[:, j] if lazy else array[:, j].tolist() for j in range(array.shape[1])]
    elif hasattr(X, "to_pylist") or _is_fixed_width(X):
        lazy, parts = True, [X]
    elif not hasattr(X, "tolist") and not isinstance(X, (list, tuple)) and hasattr(X, "__getitem__"):
        lazy, parts = True, [X]
    else:
        rows = as_list(X)
        parts = _split_pairs(rows, 0) if rows and isinstance(rows[0], (tuple, list)) else [rows]
    if not len(parts[0]):
        raise ValueError("X has 0 samples (rows); at least 1 is required. Pass one text or more.")
    return LazyTexts(parts) if lazy else _check_rows(parts, 0), domains, columns


def column_names(X: Texts) -> list[Hashable] | None:
    """Names of the columns of a DataFrame, Hugging Face dataset or Arrow table; None for other forms."""
    if isinstance(X, pd.DataFrame):
        return list(X.columns)
    names = getattr(X, "column_names", None)
    return list(names) if isinstance(names, (list, tuple)) else None


def _is_fixed_width(X: Texts) -> bool:
    return isinstance(X, np.ndarray) and X.dtype.kind == "U"


def _rows_between(column: Values, start: int, stop: int) -> list:
    """Rows start to stop of a sequence, in one read where it has slices."""
    if hasattr(column, "to_pylist"):
        return column.slice(start, stop - start).to_pylist()
    stop = min(stop, len(column))
    try:
        rows = column[start:stop]
        if not isinstance(rows, str) and len(rows) == stop - start:
            return _to_list(rows)
    except (TypeError, KeyError):  # it gives single rows only
        pass
    return [column[i] for i in range(start, stop)]


def _split_pairs(rows: list, first: int) -> list[list]:
    """First and second texts of rows that are pairs; `first` is the number of the first row, for errors."""
    for i, row in enumerate(rows, start=first):
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise ValueError(
                f"X: row {i} is {reprlib.repr(row)}; expected a pair (str, str). Of two lists make pairs by "
                "list(zip(first, second))."
            )
    return [[row[0] for row in rows], [row[1] for row in rows]]


def _check_rows(parts: list[list], first: int) -> list[Text]:
    """Texts, or pairs of two parts, all of them str; `first` is the number of the first row, for errors."""
    for j, part in enumerate(parts):
        for i, text in enumerate(part, start=first):
            if not isinstance(text, str):
                where = "" if len(parts) == 1 else f", text {j + 1} of the pair"
                raise ValueError(
                    f"X: row {i}{where} is {text!r} ({type(text).__name__}); expected str. "
                    + ("Drop such rows, or put '' in them." if is_missing(text) else "Select or decode the texts.")
                )
    return parts[0] if len(parts) == 1 else list(zip(*parts))


def order_columns(X: Texts, columns: list[Hashable] | None, domain_column: Hashable | None) -> Any:
    """Columns of X as they were in `fit`: text columns by name, in the order of then."""
    present = column_names(X)
    if columns is None or present is None:
        return X
    missing = [c for c in columns if c not in present]
    if missing:
        raise ValueError(f"X lacks the column(s) {missing} that it had in fit; it has {present}.")
    has_domain = domain_column is not None and domain_column in present
    names = [*columns, *([domain_column] if has_domain else [])]
    if isinstance(X, pd.DataFrame):
        return X[names]
    return X.select_columns(names) if hasattr(X, "select_columns") else X.select(names)


def column_hint(X: Texts, domain_column: Hashable | None) -> str:
    """For messages about X whose two columns were read as pairs: one of them may be the domain, which nobody named."""
    names = column_names(X)
    if domain_column is not None or names is None or len(names) != 2:
        return ""
    return f" The columns {names} were read as pairs of texts; if one of them is the domain, name it by domain_column=."


def as_list(values: Values) -> list:
    """All values; a dataset's column is read in slices, which a list() of it is not."""
    known = isinstance(values, (list, tuple)) or hasattr(values, "tolist") or hasattr(values, "to_pylist")
    if isinstance(values, Sequence) and not known:
        return _rows_between(values, 0, len(values))
    return _to_list(values)


def _to_list(values: Values) -> list:
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            return getattr(values, method)()
    return list(values)


def is_missing(value: object) -> bool:
    """Whether a value is None, pandas' NA or NaN."""
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
