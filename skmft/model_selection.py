"""Splitters that know domains: folds stratified by class and domain, few-shot draws, held-out domains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn import model_selection as splits
from sklearn.utils import check_random_state, check_scalar

from ._inputs.grouping import as_given, check_domains, check_lengths, column_of
from ._inputs.texts import column_names
from ._typing import Array, Domains, Ints, Labels, Texts, Values

__all__ = ["DomainStratifiedKFold", "DomainStratifiedShuffleSplit", "FewShotSplit", "LeaveOneDomainOut"]

Split = tuple[Ints, Ints]


class _Cells(NamedTuple):
    """Domain and cell of every row, by number. A cell is a class in a domain, or a domain."""

    domain: Ints
    cell: Ints
    sizes: Ints  # rows of every cell
    domain_names: list[str]
    names: list[str]  # of every cell


@dataclass(repr=False, eq=False)
class _DomainSplitter(splits.BaseCrossValidator):
    """What the splitters share: how they are told the domains, and the form of what they give."""

    __metadata_request__split = {"domains": True}
    n_splits: int = field(init=False)
    random_state: int | np.random.RandomState | None = field(default=None, kw_only=True)
    domain_column: str | int | None = field(default=None, kw_only=True)

    def get_n_splits(self, X: Texts = None, y: Labels = None, groups: Values = None, domains: Domains = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups, domains : as in `split`
            Only `LeaveOneDomainOut`, which makes as many splits as there are domains, needs them.

        Returns
        -------
        int
        """
        return self._count(X, groups, domains)

    def split(self, X: Texts, y: Labels = None, groups: Values = None, domains: Domains = None) -> Iterator[Split]:
        """Generate the splits.

        Parameters
        ----------
        X : array-like of n_samples rows
            Read only for its length and, with `domain_column`, for the domains.
        y : array-like, shape (n_samples,), default=None
            Labels; `LeaveOneDomainOut` without shots needs none.
        groups, domains : array-like, shape (n_samples,), default=None
            The domain of every row, as one of them: with metadata routing scikit-learn passes on `domains`, without it
            `groups`. With `domain_column` leave out both.

        Yields
        ------
        train, test : ndarray of int
            Row numbers in rising order.

        Raises
        ------
        ValueError
            If a domain, or a class in a domain, has too few rows, or an argument is not as described.
        """
        for train, test in self._draw(self._read(X, y, groups, domains, self._by_class())):
            yield np.sort(train), np.sort(test)

    def _by_class(self) -> bool:
        return True

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return self.n_splits

    def _draw(self, cells: _Cells) -> Iterator[Split]:
        raise NotImplementedError

    def _read(self, X: Texts, y: Labels, groups: Values, domains: Domains, by_class: bool) -> _Cells:
        owner = type(self).__name__
        ways = {"domains": domains, "groups": groups, "domain_column": column_of(X, self.domain_column)}
        given = {name: values for name, values in ways.items() if values is not None}
        if not given:
            there = "" if column_names(X) is None else f"; X has the columns {column_names(X)}"
            raise ValueError(
                f"{owner} needs the domain of every row. Pass domains= (under sklearn.set_config(enable_metadata_routing=True))"
                f" or groups= (otherwise), or name a column of X by domain_column=, which is {self.domain_column!r}{there}."
            )
        if len(given) > 1:
            raise ValueError(f"{owner} got domains in two ways: {' and '.join(given)}. Leave one of them out.")
        [(name, values)] = given.items()
        n_rows = len(values) if X is None else X.shape[0] if hasattr(X, "shape") else len(X)
        domain_names, domain = np.unique(check_domains(values, "X", n_rows, name), return_inverse=True)
        named = [f"domain {value!r}" for value in domain_names.tolist()]
        if not by_class:
            return _Cells(domain, domain, np.bincount(domain), named, named)
        if y is None:
            raise ValueError(f"{owner} splits by class, but y is None. Pass the labels as y.")
        check_lengths("X", n_rows, y=y)
        if (without := pd.isna(as_given(y))).any():
            raise ValueError(f"y: row {int(without.argmax())} has no label, but {owner} splits by class. Leave it out.")
        classes, label = np.unique(np.asarray(y), return_inverse=True)
        present, cell = np.unique(domain * len(classes) + label, return_inverse=True)
        all_names = [f"{of}, class {label!r}" for of in named for label in classes.tolist()]
        names = [all_names[number] for number in present]
        return _Cells(domain, cell, np.bincount(cell), named, names)


def _stratified(cells: _Cells, n_splits: int, random_state: Any, **shares: Any) -> Iterator[Split]:
    """Scikit-learn's stratified splits of the cells, none of which may be missing on a side: scores would not show it."""

    def check(side: str, present: Array) -> None:
        if not present.all():
            size, name = min((cells.sizes[cell], cells.names[cell]) for cell in np.flatnonzero(~present))
            asked = " and ".join(f"{share}={value!r}" for share, value in shares.items() if value is not None)
            raise ValueError(
                f"{name} has too few rows ({size}) for {asked} to put one of them on the {side} side. Ask for a larger "
                f"{side} side, or leave these rows out."
            )

    [(train, test)] = splits.ShuffleSplit(1, **shares, random_state=0).split(cells.cell)
    for side, rows in (("test", test), ("training", train)):
        check(side, (cells.sizes > 1) & (len(rows) >= len(cells.sizes)))
    splitter = splits.StratifiedShuffleSplit(n_splits, random_state=random_state, **shares)
    for train, test in splitter.split(cells.cell, cells.cell):
        for side, rows in (("test", test), ("training", train)):
            check(side, np.bincount(cells.cell[rows], minlength=len(cells.sizes)) > 0)
        yield train, test


@dataclass(repr=False, eq=False)
class DomainStratifiedKFold(_DomainSplitter):
    """K folds, each with its share of every class of every domain, to within one row.

    This is `sklearn.model_selection.StratifiedKFold`, stratified by class and domain.

    Parameters
    ----------
    n_splits : int, default=5
        Folds; at least 2.
    random_state : int, RandomState instance or None, default=None
        Seeds what is drawn; None if nothing is.
    domain_column : str or int, default=None
        Column of X, a DataFrame or another table, that holds the domain.
    shuffle : bool, default=False
        Whether the rows of every class in every domain are shuffled first.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import DomainStratifiedKFold
    >>> y, d = np.array([0, 1] * 4), np.repeat(["books", "kitchen"], 4)
    >>> for train, test in DomainStratifiedKFold(2).split(y, y, domains=d):
    ...     print(test, d[test])
    [0 1 4 5] ['books' 'books' 'kitchen' 'kitchen']
    [2 3 6 7] ['books' 'books' 'kitchen' 'kitchen']
    """

    n_splits: int = 5
    _: KW_ONLY
    shuffle: bool = False

    def _draw(self, cells: _Cells) -> Iterator[Split]:
        folds = splits.StratifiedKFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)
        size, name = min(zip(cells.sizes, cells.names))
        if size < self.n_splits:
            raise ValueError(
                f"{name} has {size} rows, fewer than n_splits={self.n_splits}; use fewer, or leave it out."
            )
        yield from folds.split(cells.cell, cells.cell)


@dataclass(repr=False, eq=False)
class DomainStratifiedShuffleSplit(_DomainSplitter):
    """Random splits with every class of every domain in proportion on both sides.

    This is `sklearn.model_selection.StratifiedShuffleSplit`, stratified by class and domain: shares are kept to within one
    row, on the training side those of all rows, on the test side those of what is left.

    Parameters
    ----------
    n_splits : int, default=10
    random_state, domain_column : as in `DomainStratifiedKFold`
    test_size : float or int, default=0.25
        Share, or number, of rows on the test side.
    train_size : float or int, default=None
        Share, or number, of rows on the training side; None takes all others.

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

    n_splits: int = 10
    _: KW_ONLY
    test_size: float = 0.25
    train_size: float | None = None

    def _draw(self, cells: _Cells) -> Iterator[Split]:
        shares = {"test_size": self.test_size, "train_size": self.train_size}
        return _stratified(cells, self.n_splits, self.random_state, **shares)


@dataclass(repr=False, eq=False)
class FewShotSplit(_DomainSplitter):
    """Repeated draws of a few labelled rows for training, as few-shot benchmarks make them.

    Parameters
    ----------
    shots : int
        Training rows of every class in every domain.
    random_state, domain_column : as in `DomainStratifiedKFold`
    n_repeats : int, default=10
        Draws.
    test_size : float, int or None, default=None
        None tests every draw on all the rows that it left. Otherwise the test rows (a share, or a number, of all rows, in
        proportion) are chosen first and stay the same for all draws, which never train on them.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import FewShotSplit
    >>> y, d = np.array([0, 1] * 8), np.repeat(["books", "kitchen"], 8)
    >>> splitter = FewShotSplit(shots=2, n_repeats=3, random_state=0)
    >>> [len(train) for train, test in splitter.split(y, y, domains=d)]
    [8, 8, 8]
    """

    shots: int
    _: KW_ONLY
    n_repeats: int = 10
    test_size: float | None = None

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return self.n_repeats

    def _draw(self, cells: _Cells) -> Iterator[Split]:
        shots = check_scalar(self.shots, "shots", Integral, min_val=1)
        rng = check_random_state(self.random_state)
        pool, test = np.arange(len(cells.cell)), None
        if self.test_size is not None:
            [(pool, test)] = _stratified(cells, 1, rng, test_size=self.test_size)
        rows_of = [pool[cells.cell[pool] == cell] for cell in range(len(cells.sizes))]
        size, name = min(zip(map(len, rows_of), cells.names))
        needed, besides = (shots + 1, "") if test is None else (shots, " besides the test rows")
        if size < needed:
            fix = "use fewer, or leave it out"
            raise ValueError(f"{name} has {size} rows{besides}, but shots={shots} needs at least {needed}; {fix}.")
        for _ in range(self.n_repeats):
            train = np.concatenate([rng.choice(rows, shots, replace=False) for rows in rows_of])
            yield train, np.setdiff1d(pool, train) if test is None else test


@dataclass(repr=False, eq=False)
class LeaveOneDomainOut(_DomainSplitter):
    """Hold out every domain in turn; some of its labelled rows may come back into training.

    `sklearn.model_selection.LeaveOneGroupOut` with the domains as groups, in sorted order, and with shots.

    Parameters
    ----------
    shots : int, default=0
        Rows of the held-out domain that training gets, its classes in proportion, to within one row. With 0, `split`
        needs no labels.
    random_state, domain_column : as in `DomainStratifiedKFold`

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

    shots: int = 0

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return len(self._read(X, None, groups, domains, by_class=False).sizes)

    def _by_class(self) -> bool:
        return check_scalar(self.shots, "shots", Integral, min_val=0) > 0

    def _draw(self, cells: _Cells) -> Iterator[Split]:
        if not cells.domain.any():
            raise ValueError(f"{cells.domain_names[0]} has all the rows; holding one domain out needs at least two.")
        rng = check_random_state(self.random_state)
        for train, held in splits.LeaveOneGroupOut().split(cells.domain, groups=cells.domain):
            if len(held) <= self.shots:
                name = cells.domain_names[cells.domain[held[0]]]
                raise ValueError(f"{name} has {len(held)} rows, too few for shots={self.shots} and a row to test on.")
            if self.shots:  # of the rows, shuffled and put in order of class, those at equal distances
                rows = rng.permutation(held)
                rows = rows[np.argsort(cells.cell[rows], kind="stable")]
                back = rows[(np.arange(self.shots) * len(rows) + rng.randint(len(rows))) // self.shots]
                train, held = np.concatenate([train, back]), np.setdiff1d(held, back)
            yield train, held
