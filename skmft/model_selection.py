"""Splitters that know domains: folds stratified by class and domain, few-shot draws, held-out domains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from numbers import Integral
from typing import ClassVar

import numpy as np
import pandas as pd
from sklearn import model_selection as splits
from sklearn.utils import check_random_state, check_scalar

from ._inputs.grouping import as_given, check_domains, check_lengths, column_of
from ._inputs.texts import column_names
from ._typing import Domains, Ints, Labels, Texts, Values

__all__ = ["DomainStratifiedKFold", "FewShotSplit", "LeaveOneDomainOut"]

Split = tuple[Ints, Ints]
Cells = tuple[Ints, list[str]]  # every row's cell, by number: a class in a domain, or a domain; the cells' names


@dataclass(repr=False, eq=False)
class _DomainSplitter(splits.BaseCrossValidator):
    """What the splitters share: how they are told the domains, and the form of what they give."""

    __metadata_request__split = {"domains": True}
    _by_class: ClassVar = True  # whether cells are classes in domains
    n_splits: int = field(init=False)
    domain_column: str | int | None = field(default=None, kw_only=True)

    def get_n_splits(self, X: Texts = None, y: Labels = None, groups: Values = None, domains: Domains = None) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X, y, groups, domains : as in `split`
            Needed by `LeaveOneDomainOut` alone.

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
            Labels; `LeaveOneDomainOut` needs none.
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
            If a domain, or a class in a domain, has too few rows, or an argument is wrong.
        """
        for train, test in self._draw(*self._read(X, y, groups, domains)):
            yield np.sort(train), np.sort(test)

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return self.n_splits

    def _draw(self, cell: Ints, names: list[str]) -> Iterator[Split]:
        raise NotImplementedError

    def _read(self, X: Texts, y: Labels, groups: Values, domains: Domains) -> Cells:
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
        if not self._by_class:
            return domain, named
        if y is None:
            raise ValueError(f"{owner} splits by class, but y is None. Pass the labels as y.")
        check_lengths("X", n_rows, y=y)
        if (without := pd.isna(as_given(y))).any():
            raise ValueError(f"y: row {int(without.argmax())} has no label, but {owner} splits by class. Leave it out.")
        classes, label = np.unique(np.asarray(y), return_inverse=True)
        present, cell = np.unique(domain * len(classes) + label, return_inverse=True)
        all_names = [f"{of}, class {label!r}" for of in named for label in classes.tolist()]
        return cell, [all_names[number] for number in present]


@dataclass(repr=False, eq=False)
class DomainStratifiedKFold(_DomainSplitter):
    """K folds, each with its share of every class of every domain, as `sklearn.model_selection.StratifiedKFold` makes them.

    Parameters
    ----------
    n_splits : int, default=5
        Folds; at least 2.
    domain_column : str or int, default=None
        Column of X, a DataFrame or another table, that holds the domain.
    random_state : int, RandomState instance or None, default=None
        Seeds what is drawn; None if nothing is.
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
    random_state: int | np.random.RandomState | None = None
    shuffle: bool = False

    def _draw(self, cell: Ints, names: list[str]) -> Iterator[Split]:
        folds = splits.StratifiedKFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)
        size, name = min(zip(np.bincount(cell), names))
        if size < self.n_splits:
            raise ValueError(f"{name} has {size} rows, fewer than n_splits={self.n_splits}; use fewer or leave it out.")
        yield from folds.split(cell, cell)


@dataclass(repr=False, eq=False)
class FewShotSplit(_DomainSplitter):
    """Repeated draws of a few labelled rows for training, as few-shot benchmarks make them.

    Parameters
    ----------
    shots : int
        Training rows of every class in every domain.
    domain_column, random_state : as in `DomainStratifiedKFold`
    n_repeats : int, default=10
        Draws.
    test_size : float, int or None, default=None
        None tests every draw on all the rows that it left. Otherwise this share, or number, of all rows is chosen first,
        stratified, and tests every draw.

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
    random_state: int | np.random.RandomState | None = None
    n_repeats: int = 10
    test_size: float | None = None

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return self.n_repeats

    def _draw(self, cell: Ints, names: list[str]) -> Iterator[Split]:
        shots = check_scalar(self.shots, "shots", Integral, min_val=1)
        rng = check_random_state(self.random_state)
        pool, test, sizes = np.arange(len(cell)), None, np.bincount(cell)
        needed, besides = shots + 1, ""
        if self.test_size is not None and min(sizes) > shots:
            splitter = splits.StratifiedShuffleSplit(1, test_size=self.test_size, random_state=rng)
            [(pool, test)] = splitter.split(cell, cell)
            if absent := set(range(len(names))) - set(cell[test]):  # scores would not show it
                name = names[min(absent)]
                raise ValueError(f"{name} has no test row by test_size={self.test_size!r}; use more, or leave it out.")
            sizes = np.bincount(cell[pool], minlength=len(names))
            needed, besides = shots, " besides the test rows"
        size, name = min(zip(sizes, names))
        if size < needed:
            raise ValueError(f"{name} has {size} rows{besides}; {shots=} needs {needed}. Use fewer, or leave it out.")
        rows_of = [pool[cell[pool] == number] for number in range(len(names))]
        for _ in range(self.n_repeats):
            train = np.concatenate([rng.choice(rows, shots, replace=False) for rows in rows_of])
            yield train, np.setdiff1d(pool, train) if test is None else test


@dataclass(repr=False, eq=False)
class LeaveOneDomainOut(_DomainSplitter):
    """Hold out every domain in turn: `sklearn.model_selection.LeaveOneGroupOut` with the domains as groups.

    Parameters
    ----------
    domain_column : as in `DomainStratifiedKFold`

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.model_selection import LeaveOneDomainOut
    >>> for train, test in LeaveOneDomainOut().split(range(4), domains=["books", "books", "dvd", "kitchen"]):
    ...     print(train, test)
    [2 3] [0 1]
    [0 1 3] [2]
    [0 1 2] [3]
    """

    _by_class = False

    def _count(self, X: Texts, groups: Values, domains: Domains) -> int:
        return len(self._read(X, None, groups, domains)[1])

    def _draw(self, cell: Ints, names: list[str]) -> Iterator[Split]:
        if len(names) < 2:
            raise ValueError(f"{names[0]} has all the rows; holding one domain out needs at least two.")
        yield from splits.LeaveOneGroupOut().split(cell, groups=cell)
