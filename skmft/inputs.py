"""What users pass, checked and put into one form: texts or pairs, labels, domains, weights."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from .encoding import Text

_FORMS = (
    "a list, tuple, 1-D array or Series of str; or pairs as a two-column DataFrame or array or a list of (str, str)"
)
NO_DOMAIN = "all"  # name of the one domain where fit got none
_ROWS_A_READ = 4096  # of texts that are not in memory


class LazyTexts(Sequence[Text]):
    """Texts or pairs that stay where they are until a slice of them is asked for.

    A slice is a list of str or of (str, str), its rows checked as `read_texts` says; read a few thousand at a time.

    Parameters
    ----------
    columns : list of sequence
        One for texts (or for rows that are pairs already), two for pairs. Arrow arrays, columns of a Hugging Face
        dataset, arrays of str, and whatever else has a length and gives rows by their number.
    """

    def __init__(self, columns: list[Any]) -> None:
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
        for start in range(0, len(self), _ROWS_A_READ):
            yield from self[start : start + _ROWS_A_READ]


def read_texts(
    X: Any, domain_column: Hashable | None = None
) -> tuple[Sequence[Text], NDArray[Any] | None, list[Hashable] | None]:
    """Texts or pairs of X, the values of its domain column, and the names of its text columns.

    Parameters
    ----------
    X : list, tuple, ndarray, Series or DataFrame; or what is read slice by slice: an Arrow array or table, a Hugging Face
        dataset or column of one, an array of fixed-width str (so a memory-mapped one), any other sequence
    domain_column : hashable, optional
        The column of a DataFrame, dataset or table that names the domain; may be absent from X.

    Returns
    -------
    texts : sequence of str or of (str, str)
        A list, or a `LazyTexts`, whose rows are checked when they are read.
    domains : ndarray of shape (n_rows,), or None
        None without such a column.
    columns : list, or None
        None where X has no named columns.

    Raises
    ------
    TypeError, ValueError
        If X has another form or no rows, or a row is not text; the message names the row.
    """
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
            domains = values.to_numpy() if isinstance(X, pd.DataFrame) else np.array(_as_list(values), dtype=object)
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
        rows = _as_list(X)
        parts = _split_pairs(rows, 0) if rows and isinstance(rows[0], (tuple, list)) else [rows]
    if not len(parts[0]):
        raise ValueError("X has 0 samples (rows); at least 1 is required. Pass one text or more.")
    return LazyTexts(parts) if lazy else _check_rows(parts, 0), domains, columns


def column_names(X: Any) -> list[Hashable] | None:
    """Names of the columns of a DataFrame, Hugging Face dataset or Arrow table; None for other forms."""
    if isinstance(X, pd.DataFrame):
        return list(X.columns)
    names = getattr(X, "column_names", None)
    return list(names) if isinstance(names, (list, tuple)) else None


def _is_fixed_width(X: Any) -> bool:
    return isinstance(X, np.ndarray) and X.dtype.kind == "U"


def _rows_between(column: Any, start: int, stop: int) -> list[Any]:
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


def _split_pairs(rows: list[Any], first: int) -> list[list[Any]]:
    """First and second texts of rows that are pairs; `first` is the number of the first row, for errors."""
    for i, row in enumerate(rows, start=first):
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise ValueError(
                f"X: row {i} is {reprlib.repr(row)}; expected a pair (str, str). Of two lists make pairs by "
                "list(zip(first, second))."
            )
    return [[row[0] for row in rows], [row[1] for row in rows]]


def _check_rows(parts: list[list[Any]], first: int) -> list[Text]:
    """Texts, or pairs of two parts, all of them str; `first` is the number of the first row, for errors."""
    for j, part in enumerate(parts):
        for i, text in enumerate(part, start=first):
            if not isinstance(text, str):
                where = "" if len(parts) == 1 else f", text {j + 1} of the pair"
                raise ValueError(
                    f"X: row {i}{where} is {text!r} ({type(text).__name__}); expected str. "
                    + ("Drop such rows, or put '' in them." if _is_missing(text) else "Select or decode the texts.")
                )
    return parts[0] if len(parts) == 1 else list(zip(*parts))


def order_columns(X: Any, columns: list[Hashable] | None, domain_column: Hashable | None) -> Any:
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


def column_hint(X: Any, domain_column: Hashable | None) -> str:
    """For messages about X whose two columns were read as pairs: one of them may be the domain, which nobody named."""
    names = column_names(X)
    if domain_column is not None or names is None or len(names) != 2:
        return ""
    return f" The columns {names} were read as pairs of texts; if one of them is the domain, name it by domain_column=."


def read_domains(
    domains: Any,
    from_column: NDArray[Any] | None,
    X: Any,
    n_rows: int,
    domain_column: Hashable | None,
    *,
    allow_missing: bool,
    argument: str = "domains",
) -> NDArray[Any] | None:
    """Domain of every row, shape (n_rows,), or None where none are given.

    Parameters
    ----------
    domains : array-like, scalar or None
        The argument; a scalar stands for all rows.
    from_column : ndarray or None
        Values of the domain column of X.
    X : object
        For the error where the column is missing.
    n_rows : int
    domain_column : hashable or None
    allow_missing : bool
        Whether None and NaN are allowed (at prediction they mean "not known").
    argument : str, default="domains"
        Name of the argument, for errors.

    Raises
    ------
    ValueError
        If domains come twice, are of another length, miss, or are not str, int or bool.
    """
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
    array = values if isinstance(values, np.ndarray) else np.asarray(_as_list(values), dtype=object)
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
        if _is_missing(value):
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
        if not any(map(_is_missing, array)):
            array = np.asarray(array.tolist())
    return array


def refuse_domains_as_texts(texts: Sequence[Any], domains: NDArray[Any] | None) -> None:
    """Raise a ValueError where one text of every pair is the row's domain: a domain column that nobody named."""
    if domains is None or not isinstance(texts[0], tuple):
        return
    starts = range(0, len(texts), _ROWS_A_READ)
    for part in (0, 1):
        if all(
            [pair[part] for pair in texts[s : s + _ROWS_A_READ]] == domains[s : s + _ROWS_A_READ].tolist()
            for s in starts
        ):
            raise ValueError(
                f"X holds pairs whose text {part + 1} is the row's domain; expected texts. Name that column by domain_column=, "
                "or leave it out of X."
            )


def read_labels(y: Any, n_rows: int) -> NDArray[Any]:
    """Labels as an array of shape (n_rows,).

    Raises
    ------
    ValueError
        If y is None, of another length, continuous, or has missing values.
    """
    if y is None:
        raise ValueError("y is None; this classifier requires y to be passed: one label a row of X.")
    if isinstance(y, Sequence) and not isinstance(y, (str, bytes)):
        y = _as_list(y)  # a dataset's column is read at once, not row by row
    y = column_or_1d(y, warn=True)
    if len(y) != n_rows:
        raise ValueError(f"y has {len(y)} labels, but X has {n_rows} rows; expected one label a row.")
    if y.dtype == object or y.dtype.kind == "f":
        for i, label in enumerate(y.tolist()):
            if _is_missing(label):
                raise ValueError(f"y: row {i} is {label!r}; expected a label. Drop rows without one.")
        kinds = {str if isinstance(label, str) else float for label in y.tolist()}
        if len(kinds) > 1:
            raise ValueError("y mixes strings and numbers; expected one type. Convert with astype(str).")
    check_classification_targets(y)
    return y


def read_sample_weight(sample_weight: Any, n_rows: int) -> NDArray[np.float64]:
    """Weights of shape (n_rows,); ones for None.

    Raises
    ------
    ValueError
        If of another length, negative, not finite, or zero everywhere.
    """
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
    class_weight: str | dict[Any, float] | None,
    labels: NDArray[np.int64],
    sample_weight: NDArray[np.float64],
    classes: NDArray[Any],
) -> NDArray[np.float64]:
    """Class weight of every row, shape (n_rows,), as scikit-learn defines ``class_weight``.

    Raises
    ------
    ValueError
        If a key of the dict is no class, or a weight is negative or not finite.
    """
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


def positions(values: Sequence[Any] | NDArray[Any], names: NDArray[Any]) -> NDArray[np.int64]:
    """Position of every value in `names`, -1 where it is not there."""
    where = {name: i for i, name in enumerate(names.tolist())}
    return np.array([where.get(v, -1) for v in np.asarray(values).tolist()], dtype=np.int64)


def _as_list(values: Any) -> list[Any]:
    """All values; a dataset's column is read in slices, which a list() of it is not."""
    known = isinstance(values, (list, tuple)) or hasattr(values, "tolist") or hasattr(values, "to_pylist")
    if isinstance(values, Sequence) and not known:
        return _rows_between(values, 0, len(values))
    return _to_list(values)


def _to_list(values: Any) -> list[Any]:
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            return getattr(values, method)()
    return list(values)


def kind_of(domain: Any) -> type:
    """str, bool or int, of whichever of its forms a domain's name is."""
    return str if isinstance(domain, str) else bool if isinstance(domain, (bool, np.bool_)) else int


def refuse_other_types(domains: NDArray[Any], unknown: NDArray[np.int64], known: Sequence[Any]) -> None:
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


def missing(domains: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows have no domain (None or NaN), shape (n_rows,)."""
    return np.array([_is_missing(value) for value in domains.tolist()], dtype=bool)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _is_whole(value: Any) -> bool:
    return _is_missing(value) or (isinstance(value, numbers.Real) and value % 1 == 0)
