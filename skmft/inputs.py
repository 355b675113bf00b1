"""What users pass, checked and put into one form: texts or pairs, labels, domains, weights."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Hashable, Sequence
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


def read_texts(
    X: Any, domain_column: Hashable | None = None
) -> tuple[list[Text], NDArray[Any] | None, list[Hashable] | None]:
    """Texts or pairs of X, the values of its domain column, and the names of its text columns.

    Parameters
    ----------
    X : list, tuple, ndarray, Series or DataFrame
    domain_column : hashable, optional
        The column of a DataFrame that names the domain; may be absent from X.

    Returns
    -------
    texts : list of str or of (str, str)
    domains : ndarray of shape (n_rows,), or None
        None without such a column.
    columns : list, or None
        None where X is no DataFrame.

    Raises
    ------
    TypeError, ValueError
        If X has another form or no rows, or a row is not text; the message names the row.
    """
    if X is None or isinstance(X, (str, bytes)) or not hasattr(X, "__len__") or issparse(X):
        hint = " For one text, pass [text]." if isinstance(X, str) else ""
        raise TypeError(f"X is a {type(X).__name__}; expected {_FORMS}.{hint}")
    domains, columns = None, None
    if isinstance(X, pd.DataFrame):
        if domain_column is not None and domain_column in X.columns:
            domains = X[domain_column].to_numpy()
            X = X.drop(columns=[domain_column])
        columns = list(X.columns)
        if len(columns) not in (1, 2):
            named = "" if domain_column is None else f" besides domain_column={domain_column!r}"
            raise ValueError(
                f"X has {len(columns)} text columns{named}: {columns}; expected one (texts) or two (pairs). "
                "Select them with X[[...]]"
                + (", or name the column of domains by domain_column." if not named else ".")
            )
        parts = [X[name].tolist() for name in columns]
    elif getattr(X, "ndim", 1) > 1:
        array = np.asarray(X, dtype=object)
        if array.ndim > 2 or array.shape[1] not in (1, 2):
            raise ValueError(
                f"X is an array of shape {array.shape}; expected (n_rows,) or one column for texts, two columns for pairs."
            )
        parts = [array[:, j].tolist() for j in range(array.shape[1])]
    else:
        rows = X.tolist() if hasattr(X, "tolist") else list(X)
        if rows and isinstance(rows[0], (tuple, list)):
            parts = [[], []]
            for i, row in enumerate(rows):
                if not isinstance(row, (tuple, list)) or len(row) != 2:
                    raise ValueError(
                        f"X: row {i} is {reprlib.repr(row)}; expected a pair (str, str). Of two lists make pairs by "
                        "list(zip(first, second))."
                    )
                parts[0].append(row[0])
                parts[1].append(row[1])
        else:
            parts = [rows]
    if not len(parts[0]):
        raise ValueError("X has 0 samples (rows); at least 1 is required. Pass one text or more.")
    for j, part in enumerate(parts):
        for i, text in enumerate(part):
            if not isinstance(text, str):
                where = "" if len(parts) == 1 else f", text {j + 1} of the pair"
                raise ValueError(
                    f"X: row {i}{where} is {text!r} ({type(text).__name__}); expected str. "
                    + ("Drop such rows, or put '' in them." if _is_missing(text) else "Select or decode the texts.")
                )
    texts: list[Text] = parts[0] if len(parts) == 1 else list(zip(*parts))
    return texts, domains, columns


def order_columns(X: Any, columns: list[Hashable] | None, domain_column: Hashable | None) -> Any:
    """A DataFrame's columns as they were in `fit`: text columns by name, in the order of then."""
    if columns is None or not isinstance(X, pd.DataFrame):
        return X
    missing = [c for c in columns if c not in X.columns]
    if missing:
        raise ValueError(f"X lacks the column(s) {missing} that it had in fit; it has {list(X.columns)}.")
    has_domain = domain_column is not None and domain_column in X.columns
    return X[[*columns, *([domain_column] if has_domain else [])]]


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
        got = f"has columns {list(X.columns)}" if isinstance(X, pd.DataFrame) else f"is a {type(X).__name__}"
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
    kinds = set()
    for i, value in enumerate(array.tolist()):
        if _is_missing(value):
            if allow_missing:
                continue
            raise ValueError(
                f"{name}: row {i} is {value!r}; expected a domain name (str, int or bool). "
                "Drop such rows or give them a domain of their own."
            )
        kind = str if isinstance(value, str) else bool if isinstance(value, bool) else int
        if kind is int and not isinstance(value, numbers.Integral):
            raise ValueError(
                f"{name}: row {i} is {value!r} ({type(value).__name__}); expected str, int or bool. "
                "Convert with astype(str)."
            )
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
    for part in (0, 1):
        if [pair[part] for pair in texts] == domains.tolist():
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
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
