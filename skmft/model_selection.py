"""Splitters that know domains: folds stratified by class and domain, few-shot draws, held-out domains."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _num_samples

from ._inputs.texts import as_list, column_names
from .metrics import _as_given, _check_domains

__all__ = ["DomainStratifiedKFold", "DomainStratifiedShuffleSplit", "FewShotSplit", "LeaveOneDomainOut"]

Split = tuple[NDArray[np.int64], NDArray[np.int64]]


class _DomainSplitter(BaseCrossValidator):
    """Reads the domains in whatever way they come, and names the cells of domain and class.

    Domains come as ``domains=`` (what scikit-learn's metadata routing passes), as ``groups=`` (what it passes without
    routing), or as the column `domain_column` of X.
    """

    __metadata_request__split = {"domains": True}
    domain_column: str | int | None = None

    def _cells(self, X: Any, y: Any, groups: Any, domains: Any, by_class: bool = True) -> pd.DataFrame:
        """Domain, class and cell number of every row; cells are numbered in sorted order."""
        ways = {"domains": domains, "groups": groups}
        if self.domain_column is not None and self.domain_column in (column_names(X) or []):
            values = X[self.domain_column]
            ways["domain_column"] = values if isinstance(X, pd.DataFrame) else np.array(as_list(values), dtype=object)
        given = {name: value for name, value in ways.items() if value is not None}
        owner = type(self).__name__
        if len(given) != 1:
            raise ValueError(
                f"{owner} got domains by {' and '.join(given) or 'no way'}; give them one way: domains= (with "
                "sklearn.set_config(enable_metadata_routing=True)), groups= (without it), or domain_column= naming a column of "
                "the DataFrame or table X."
            )
        [(name, value)] = given.items()
        values = np.asarray(value)
        n_rows = _num_samples(values if X is None else X)
        if by_class and y is None:
            raise ValueError(f"{owner} splits by class and domain, but y is None; pass the labels as y.")
        labels = np.asarray(y) if by_class else np.zeros(n_rows, dtype=int)
        for what, array in ((name, values), ("y", labels)):
            if array.shape != (n_rows,):
                raise ValueError(f"{what} has shape {array.shape}, but X has {n_rows} rows; expected ({n_rows},).")
        _check_domains(value, name)
        if by_class and (without := pd.isna(_as_given(y))).any():
            raise ValueError(
                f"y has a missing value at row {int(without.argmax())}, but {owner} splits by class and needs a label for "
                "every row. Leave such rows out."
            )
        cells = pd.DataFrame({"domain": values, "class": labels})
        return cells.assign(cell=cells.groupby(["domain", "class"], sort=True).ngroup())


def _name(cells: pd.DataFrame, cell: int, by_class: bool = True) -> str:
    rows = cells[cells["cell"] == cell]
    of_class = f", class {rows['class'].tolist()[0]!r}" if by_class else ""
    return f"domain {rows['domain'].tolist()[0]!r}{of_class}"


def _count(owner: str, name: str, value: Any, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{name}={value!r} of {owner}; expected an int of at least {least}.")
    return int(value)


def _size(owner: str, name: str, value: Any, available: int) -> int:
    """Rows that a fraction or a number of rows stands for, as in scikit-learn."""
    if isinstance(value, Real) and not isinstance(value, bool):
        size = float(value)
        if not isinstance(value, Integral) and 0 < size < 1:
            size = max(1, round(size * available))
        elif not isinstance(value, Integral):
            size = 0
        if 0 < size < available:
            return int(size)
    raise ValueError(
        f"{name}={value!r} of {owner}; expected a fraction between 0 and 1, or a number of rows from 1 to "
        f"{available - 1} (there are {available})."
    )


def _spread(order: NDArray[np.int64], cell: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """`n` of the rows in `order`, every cell giving its share, to within one row."""
    sizes = np.bincount(cell[order])
    share = n * sizes / sizes.sum()
    take = np.floor(share).astype(int)
    short = n - take.sum()
    first = np.full(len(sizes), len(order))
    np.minimum.at(first, cell[order], np.arange(len(order)))
    take[np.lexsort((first, take - share))[:short]] += 1  # largest remainders, of equal ones the first in `order`
    rank = pd.Series(cell[order]).groupby(cell[order]).cumcount().to_numpy()
    return order[rank < take[cell[order]]]


def _check_all_there(
    cells: pd.DataFrame, side: NDArray[np.int64], which: str, asked: str, by_class: bool = True
) -> None:
    """Refuse a side that lacks a cell, as small cells may give none of their rows: scores would silently ignore it."""
    cell = cells["cell"].to_numpy()
    sizes, found = np.bincount(cell), np.bincount(cell[side], minlength=cell.max() + 1)
    if not found.all():
        lacking = np.flatnonzero(found == 0)
        small = int(lacking[sizes[lacking].argmin()])
        raise ValueError(
            f"{_name(cells, small, by_class)} has {sizes[small]} rows, of which {asked} leaves none in the {which} side; "
            "ask for more rows there, or leave that cell out."
        )


class DomainStratifiedKFold(_DomainSplitter):
    """K folds, each with its share of every class of every domain.

    The folds' counts of a domain-class cell differ by at most one row, as do the folds' sizes.

    Parameters
    ----------
    n_splits : int, default=5
        Folds; at least 2.
    shuffle : bool, default=False
        Whether rows are shuffled inside their cell first.
    random_state : int, RandomState instance or None, default=None
        Seeds the shuffling.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain, where domains come neither by routing nor as `groups`.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import DomainStratifiedKFold
    >>> y, d = np.array([0, 1] * 8), np.repeat(["books", "kitchen"], 8)
    >>> for train, test in DomainStratifiedKFold(4).split(y, y, domains=d):
    ...     print(test, d[test])
    [0 1 8 9] ['books' 'books' 'kitchen' 'kitchen']
    [ 2  3 10 11] ['books' 'books' 'kitchen' 'kitchen']
    [ 4  5 12 13] ['books' 'books' 'kitchen' 'kitchen']
    [ 6  7 14 15] ['books' 'books' 'kitchen' 'kitchen']
    """

    def __init__(
        self,
        n_splits: int = 5,
        *,
        shuffle: bool = False,
        random_state: int | np.random.RandomState | None = None,
        domain_column: str | int | None = None,
    ) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        self.domain_column = domain_column

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None, domains: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups, domains : object, default=None
            Not used; scikit-learn passes them.

        Returns
        -------
        int
            `n_splits`.
        """
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None, domains: Any = None) -> Iterator[Split]:
        """Generate the folds.

        Parameters
        ----------
        X : array-like of n_samples rows
            Read for its length and, with `domain_column`, for the domains.
        y : array-like, shape (n_samples,)
            Labels; needed, though scikit-learn's signature has a default.
        groups, domains : array-like, shape (n_samples,), default=None
            Domain of every row, given one way.

        Yields
        ------
        train, test : ndarray of int64
            Row numbers in rising order.

        Raises
        ------
        ValueError
            If a cell of domain and class has fewer rows than there are folds (the message names the smallest), a domain or
            label is missing, domains are of several types, or the arguments are not as described.
        """
        n_splits = _count(type(self).__name__, "n_splits", self.n_splits, 2)
        cells = self._cells(X, y, groups, domains)
        cell = cells["cell"].to_numpy()
        sizes = np.bincount(cell)
        if sizes.min() < n_splits:
            raise ValueError(
                f"{_name(cells, int(sizes.argmin()))} has {sizes.min()} rows, fewer than n_splits={n_splits}. Use fewer "
                "folds, or leave that cell out."
            )
        order = np.arange(len(cell))
        if self.shuffle:
            order = check_random_state(self.random_state).permutation(len(cell))
        order = order[np.argsort(cell[order], kind="stable")]
        fold = np.empty(len(cell), dtype=int)
        fold[order] = np.arange(len(cell)) % n_splits  # neighbours of a cell go to different folds
        for k in range(n_splits):
            yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)


class DomainStratifiedShuffleSplit(_DomainSplitter):
    """Random splits with every class of every domain in proportion on both sides.

    The test side has its share of every cell to within one row; so has the training side of what is left.

    Parameters
    ----------
    n_splits : int, default=10
    test_size : float or int, default=0.25
        Share, or number, of rows in the test side.
    train_size : float or int, default=None
        Share, or number, of rows in the training side; None takes all others.
    random_state : int, RandomState instance or None, default=None
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain, where domains come neither by routing nor as `groups`.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import DomainStratifiedShuffleSplit
    >>> y, d = np.array([0, 1] * 8), np.repeat(["books", "kitchen"], 8)
    >>> splitter = DomainStratifiedShuffleSplit(1, test_size=4, random_state=0)
    >>> [(train, test)] = splitter.split(y, y, domains=d)
    >>> sorted(zip(d[test].tolist(), y[test].tolist()))
    [('books', 0), ('books', 1), ('kitchen', 0), ('kitchen', 1)]
    """

    def __init__(
        self,
        n_splits: int = 10,
        *,
        test_size: float = 0.25,
        train_size: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        domain_column: str | int | None = None,
    ) -> None:
        self.n_splits = n_splits
        self.test_size = test_size
        self.train_size = train_size
        self.random_state = random_state
        self.domain_column = domain_column

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None, domains: Any = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups, domains : object, default=None
            Not used; scikit-learn passes them.

        Returns
        -------
        int
            `n_splits`.
        """
        return self.n_splits

    def split(self, X: Any, y: Any = None, groups: Any = None, domains: Any = None) -> Iterator[Split]:
        """Generate the splits.

        Parameters
        ----------
        X : array-like of n_samples rows
            Read for its length and, with `domain_column`, for the domains.
        y : array-like, shape (n_samples,)
            Labels; needed, though scikit-learn's signature has a default.
        groups, domains : array-like, shape (n_samples,), default=None
            Domain of every row, given one way.

        Yields
        ------
        train, test : ndarray of int64
            Row numbers in rising order.

        Raises
        ------
        ValueError
            If a cell of domain and class is too small to be on both sides (the message names it), a domain or label is
            missing, domains are of several types, or the arguments are not as described.
        """
        owner = type(self).__name__
        cells = self._cells(X, y, groups, domains)
        cell = cells["cell"].to_numpy()
        sizes = np.bincount(cell)
        if sizes.min() < 2:
            raise ValueError(f"{_name(cells, int(sizes.argmin()))} has 1 row; each cell needs 2 to be on both sides.")
        n_test = _size(owner, "test_size", self.test_size, len(cell))
        rest = len(cell) - n_test
        n_train = rest if self.train_size is None else _size(owner, "train_size", self.train_size, len(cell))
        if self.train_size is not None and self.test_size < 1 and self.train_size + self.test_size <= 1 + 1e-9:
            n_train = min(n_train, rest)  # shares that were both rounded up
        if n_train > rest:
            raise ValueError(
                f"train_size={self.train_size!r} and test_size={self.test_size!r} of {owner} ask for {n_train + n_test} "
                f"of {len(cell)} rows; make one smaller."
            )
        rng = check_random_state(self.random_state)
        for _ in range(_count(owner, "n_splits", self.n_splits, 1)):
            order = rng.permutation(len(cell))
            test = _spread(order, cell, n_test)
            left = order[~np.isin(order, test)]
            train = left if n_train == rest else _spread(left, cell, n_train)
            for side, which in ((test, "test"), (train, "training")):
                _check_all_there(cells, side, which, f"test_size={self.test_size!r} of {owner}")
            yield np.sort(train), np.sort(test)


class FewShotSplit(_DomainSplitter):
    """Repeated draws of a few labelled rows for training, as few-shot benchmarks make them.

    Parameters
    ----------
    shots : int
        Training rows of every cell.
    per : {"class_and_domain", "domain"}, default="class_and_domain"
        What a cell is: a class in a domain, or a domain (whose classes then come as they fall).
    n_repeats : int, default=10
        Draws.
    test_size : float, int or None, default=None
        None tests every draw on all rows that it left. Else the test rows (a share, or a number, of all rows, in
        proportion to the cells) are chosen first and stay the same for all draws, which never train on them.
    random_state : int, RandomState instance or None, default=None
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain, where domains come neither by routing nor as `groups`.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import FewShotSplit
    >>> y, d = np.array([0, 1] * 8), np.repeat(["books", "kitchen"], 8)
    >>> splitter = FewShotSplit(shots=2, n_repeats=3, random_state=0)
    >>> [len(train) for train, test in splitter.split(y, y, domains=d)]
    [8, 8, 8]
    """

    def __init__(
        self,
        shots: int,
        *,
        per: str = "class_and_domain",
        n_repeats: int = 10,
        test_size: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        domain_column: str | int | None = None,
    ) -> None:
        self.shots = shots
        self.per = per
        self.n_repeats = n_repeats
        self.test_size = test_size
        self.random_state = random_state
        self.domain_column = domain_column

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None, domains: Any = None) -> int:
        """Return the number of draws.

        Parameters
        ----------
        X, y, groups, domains : object, default=None
            Not used; scikit-learn passes them.

        Returns
        -------
        int
            `n_repeats`.
        """
        return self.n_repeats

    def split(self, X: Any, y: Any = None, groups: Any = None, domains: Any = None) -> Iterator[Split]:
        """Generate the draws.

        Parameters
        ----------
        X : array-like of n_samples rows
            Read for its length and, with `domain_column`, for the domains.
        y : array-like, shape (n_samples,), default=None
            Labels; not needed with ``per="domain"``.
        groups, domains : array-like, shape (n_samples,), default=None
            Domain of every row, given one way.

        Yields
        ------
        train, test : ndarray of int64
            Row numbers in rising order.

        Raises
        ------
        ValueError
            If a cell has too few rows for its shots and a test row (the message names it), a
            domain or label is missing, domains are of several types, or the arguments are not as described.
        """
        owner = type(self).__name__
        shots = _count(owner, "shots", self.shots, 1)
        if self.per not in ("class_and_domain", "domain"):
            raise ValueError(f"per={self.per!r} of {owner}; expected 'class_and_domain' or 'domain'.")
        by_class = self.per == "class_and_domain"
        cells = self._cells(X, y, groups, domains, by_class)
        cell = cells["cell"].to_numpy()
        rng = check_random_state(self.random_state)
        pool, test = rng.permutation(len(cell)), None
        if self.test_size is not None:
            test = _spread(pool, cell, _size(owner, "test_size", self.test_size, len(cell)))
            _check_all_there(cells, test, "test", f"test_size={self.test_size!r} of {owner}", by_class)
            pool = pool[~np.isin(pool, test)]
        left = np.bincount(cell[pool], minlength=cell.max() + 1)
        needed = shots + (test is None)
        if left.min() < needed:
            small = int(left.argmin())
            besides = " besides the test rows" if test is not None else ""
            raise ValueError(
                f"{_name(cells, small, by_class)} has {left[small]} rows{besides}; shots={shots} needs at least {needed}. "
                "Use fewer shots, or leave that cell out."
            )
        for _ in range(_count(owner, "n_repeats", self.n_repeats, 1)):
            order = rng.permutation(pool)
            rank = pd.Series(cell[order]).groupby(cell[order]).cumcount().to_numpy()
            train = np.sort(order[rank < shots])
            yield train, np.setdiff1d(pool, train) if test is None else np.sort(test)


class LeaveOneDomainOut(_DomainSplitter):
    """Hold out every domain in turn; some of its labelled rows may come back into training.

    Parameters
    ----------
    shots : int, default=0
        Rows of the held-out domain that training gets, its classes in proportion, to within one row.
    random_state : int, RandomState instance or None, default=None
        Seeds the choice of those rows.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain, where domains come neither by routing nor as `groups`.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import LeaveOneDomainOut
    >>> y, d = np.array([0, 1] * 4), np.repeat(["books", "kitchen"], 4)
    >>> for train, test in LeaveOneDomainOut(shots=2, random_state=0).split(y, y, domains=d):
    ...     print(len(train), set(d[test].tolist()), len(test))
    6 {'books'} 2
    6 {'kitchen'} 2
    """

    def __init__(
        self,
        shots: int = 0,
        *,
        random_state: int | np.random.RandomState | None = None,
        domain_column: str | int | None = None,
    ) -> None:
        self.shots = shots
        self.random_state = random_state
        self.domain_column = domain_column

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None, domains: Any = None) -> int:
        """Return the number of domains; the domains are needed for it.

        Parameters
        ----------
        X : array-like of n_samples rows, default=None
            Read for its length, if given, and, with `domain_column`, for the domains.
        y : object, default=None
            Not used; scikit-learn passes it.
        groups, domains : array-like, shape (n_samples,), default=None
            Domain of every row, given one way.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If domains are given no way or several, are of another length than X, miss, or are of several types.
        """
        return int(self._cells(X, y, groups, domains, by_class=False)["cell"].max()) + 1

    def split(self, X: Any, y: Any = None, groups: Any = None, domains: Any = None) -> Iterator[Split]:
        """Generate a split for every domain, in sorted order.

        Parameters
        ----------
        X : array-like of n_samples rows
            Read for its length and, with `domain_column`, for the domains.
        y : array-like, shape (n_samples,), default=None
            Labels; needed with `shots`, whose classes come in proportion.
        groups, domains : array-like, shape (n_samples,), default=None
            Domain of every row, given one way.

        Yields
        ------
        train, test : ndarray of int64
            Row numbers in rising order.

        Raises
        ------
        ValueError
            If there is one domain only, a domain has too few rows for its shots and one test row, a domain or label is
            missing, domains are of several types, or the arguments are not as described.
        """
        shots = _count(type(self).__name__, "shots", self.shots, 0)
        cells = self._cells(X, y, groups, domains, by_class=shots > 0)
        names, sizes = np.unique(cells["domain"], return_counts=True)
        if len(names) < 2:
            raise ValueError(f"there is one domain only, {names.tolist()[0]!r}; holding out one needs at least two.")
        if sizes.min() <= shots:
            raise ValueError(
                f"domain {names.tolist()[sizes.argmin()]!r} has {sizes.min()} rows; shots={shots} and a test need more."
            )
        rng = check_random_state(self.random_state)
        cell = cells["cell"].to_numpy()
        for name in names:
            held = np.flatnonzero(cells["domain"] == name)
            back = _spread(rng.permutation(held), cell, shots) if shots else held[:0]
            yield np.setdiff1d(np.arange(len(cell)), np.setdiff1d(held, back)), np.setdiff1d(held, back)
