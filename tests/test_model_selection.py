import copy

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_validate

from skmft.model_selection import (
    DomainStratifiedKFold,
    FewShotSplit,
    LeaveOneDomainOut,
)

SPLITTERS = [
    DomainStratifiedKFold(2, shuffle=True, random_state=0),
    FewShotSplit(4, n_repeats=2, random_state=0),
    FewShotSplit(4, n_repeats=2, test_size=0.5, random_state=0),
    LeaveOneDomainOut(),
]


def by_type(splitter):
    return type(splitter).__name__


@st.composite
def rows(draw, least=2):
    """Labels and domains whose cells have `least` rows or more, shuffled."""
    n_domains, n_classes = draw(st.integers(2, 4)), draw(st.integers(2, 3))
    sizes = [draw(st.integers(least, least + 9)) for _ in range(n_domains * n_classes)]
    cell = np.repeat(np.arange(len(sizes)), sizes)
    cell = np.random.default_rng(draw(st.integers(0, 99))).permutation(cell)
    return cell % n_classes, np.array(["books", "dvd", "kitchen", "toys"])[cell // n_classes]


def counts(y, d, side):
    return np.array([[np.sum((d[side] == k) & (y[side] == c)) for c in np.unique(y)] for k in np.unique(d)])


def disjoint(y, train, test):
    assert len(np.intersect1d(train, test)) == 0
    for side in (train, test):
        assert len(side) and (np.diff(side) > 0).all()
        assert side[0] >= 0 and side[-1] < len(y)


@given(rows(least=3), st.integers(2, 3), st.booleans(), st.integers(0, 9))
def test_k_fold(data, k, shuffle, seed):
    y, d = data
    folds = list(
        DomainStratifiedKFold(k, shuffle=shuffle, random_state=seed if shuffle else None).split(y, y, domains=d)
    )
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(y)))
    tables = []
    for train, test in folds:
        disjoint(y, train, test)
        assert len(train) + len(test) == len(y)
        tables.append(counts(y, d, test))
    assert np.ptp(tables, axis=0).max() <= 1
    assert np.ptp([len(test) for _, test in folds]) <= 1


def test_the_test_rows_lack_no_cell():
    """40 rows of each class in one domain, 2 in the other: a tenth of these is none, and nobody would notice."""
    y = np.array([0, 1] * 42)
    d = np.array(["books"] * 80 + ["toys"] * 4)
    with pytest.raises(ValueError, match=r"domain 'toys', class 0 has no test row by test_size=0.1; use more"):
        next(FewShotSplit(1, test_size=0.1).split(y, y, domains=d))
    with pytest.raises(ValueError, match=r"domain 'toys', class 0 has 0 rows besides the test rows; shots=1"):
        next(FewShotSplit(1, test_size=0.9).split(y, y, domains=d))
    train, test = next(FewShotSplit(1, test_size=0.5, random_state=0).split(y, y, domains=d))
    assert counts(y, d, train).min() == counts(y, d, test).min() == 1


@given(rows(least=4), st.integers(1, 2), st.integers(0, 9))
def test_few_shot(data, shots, seed):
    y, d = data
    everything = counts(y, d, np.arange(len(y)))
    for train, test in FewShotSplit(shots, n_repeats=3, random_state=seed).split(y, y, domains=d):
        disjoint(y, train, test)
        assert (counts(y, d, train) == shots).all()
        np.testing.assert_array_equal(counts(y, d, test), everything - shots)
    frozen = list(FewShotSplit(shots, n_repeats=3, test_size=0.25, random_state=seed).split(y, y, domains=d))
    for train, test in frozen:
        disjoint(y, train, test)
        assert (counts(y, d, train) == shots).all()
        np.testing.assert_array_equal(test, frozen[0][1])
        assert np.abs(counts(y, d, test) - everything * len(test) / len(y)).max() < 1 + 1e-9
    assert not set(np.concatenate([train for train, _ in frozen])) & set(frozen[0][1])


def small():
    y = np.tile([0, 1], 16)
    return np.array([f"text {i}" for i in range(32)], dtype=object), y, np.repeat(["books", "dvd"], 16)


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for left, right in zip(a, b) for x, y in zip(left, right))


@pytest.mark.parametrize("splitter", SPLITTERS, ids=by_type)
def test_protocol(splitter):
    X, y, d = small()
    given = [list(clone_of(splitter).split(X, y, domains=d)) for _ in range(2)]
    assert same(*given)
    assert same(given[0], list(splitter.split(X, y, groups=d)))
    frame = pd.DataFrame({"text": X, "domain": d})
    by_column = clone_of(splitter, domain_column="domain")
    assert same(given[0], list(by_column.split(frame, y)))
    assert splitter.get_n_splits(X, y, domains=d) == len(given[0]) == splitter.get_n_splits(X, y, d)
    assert splitter.get_metadata_routing().consumes("split", {"domains"}) == {"domains"}
    assert by_type(splitter) in repr(splitter)
    if "random_state" in vars(splitter):
        other = clone_of(splitter, random_state=1)
        assert not same(given[0], list(other.split(X, y, domains=d)))


def clone_of(splitter, **changes):
    return type(splitter)(**{**vars(splitter), **changes})


class Majority(sklearn.base.ClassifierMixin, sklearn.base.BaseEstimator):
    """Takes domains, and remembers how many rows fit had."""

    __metadata_request__fit = {"domains": True}

    def __init__(self, weight=0):
        self.weight = weight

    def fit(self, X, y, domains=None):
        self.classes_, self.n_rows_, self.got_ = np.unique(y), len(X), domains
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.mark.parametrize("splitter", SPLITTERS, ids=by_type)
@pytest.mark.parametrize("routing", [True, False])
def test_in_cross_validate_and_grid_search(splitter, routing):
    X, y, d = small()
    expected = [len(train) for train, _ in splitter.split(X, y, domains=d)]
    with sklearn.config_context(enable_metadata_routing=routing):
        if routing:
            done = cross_validate(Majority(), X, y, cv=splitter, params={"domains": d}, return_estimator=True)
            search = GridSearchCV(Majority(), {"weight": [0, 1]}, cv=splitter).fit(X, y, domains=d)
        else:
            done = cross_validate(Majority(), X, y, cv=splitter, groups=d, return_estimator=True)
            search = GridSearchCV(Majority(), {"weight": [0, 1]}, cv=splitter).fit(X, y, groups=d)
    assert [e.n_rows_ for e in done["estimator"]] == expected
    assert all((e.got_ is not None) == routing for e in done["estimator"])
    assert search.n_splits_ == len(expected)
    assert clone(search).cv.__dict__ == splitter.__dict__


BAD = [
    (DomainStratifiedKFold(17), {}, r"domain 'books', class 0 has 8 rows, fewer than n_splits=17"),
    (DomainStratifiedKFold(1), {}, r"n_splits=1"),
    (DomainStratifiedKFold(2.5), {}, r"2.5"),
    (DomainStratifiedKFold(), {"domains": None}, r"DomainStratifiedKFold needs the domain of every row. Pass domains="),
    (
        LeaveOneDomainOut(domain_column="genre"),
        {"domains": None, "X": pd.DataFrame({"text": ["a"] * 32})},
        r"by domain_column=, which is 'genre'; X has the columns \['text'\]",
    ),
    (DomainStratifiedKFold(), {"groups": ["books"] * 32}, r"in two ways: domains and groups. Leave one of them out"),
    (DomainStratifiedKFold(), {"domains": ["books"]}, r"domains has shape \(1,\), but X has 32 rows"),
    (DomainStratifiedKFold(), {"domains": ["books", None] * 16}, r"domains: row 1 has no domain"),
    (DomainStratifiedKFold(), {"groups": ["books", np.nan] * 16, "domains": None}, r"groups: row 1 has no domain"),
    (LeaveOneDomainOut(), {"domains": ["books", np.nan] * 16}, r"domains: row 1 has no domain"),
    (LeaveOneDomainOut(), {"domains": [1, "1"] * 16}, r"domains mixes \['int', 'str'\]; expected one type"),
    (LeaveOneDomainOut(), {"domains": [True, 1] * 16}, r"domains mixes \['bool', 'int'\]"),
    (
        DomainStratifiedKFold(),
        {"y": ["good", np.nan] * 16},
        r"y: row 1 has no label, but DomainStratifiedKFold splits by",
    ),
    (DomainStratifiedKFold(), {"y": np.array([0, np.nan] * 16)}, r"y: row 1 has no label"),
    (FewShotSplit(2), {"y": [0, None] * 16}, r"y: row 1 has no label"),
    (FewShotSplit(2), {"y": pd.Series(["good", None] * 16)}, r"y: row 1 has no label"),
    (DomainStratifiedKFold(), {"y": None}, r"DomainStratifiedKFold splits by class, but y is None"),
    (DomainStratifiedKFold(), {"y": [0] * 5}, r"y has shape \(5,\), but X has 32 rows"),
    (FewShotSplit(1, test_size=1.5), {}, r"test_size=1.5"),
    (FewShotSplit(1, test_size=32), {}, r"test_size=32"),
    (FewShotSplit(1, test_size=3), {}, r"test_size = 3"),
    (
        FewShotSplit(1, test_size=0.5),
        {"y": [2] + [0, 1] * 15 + [0]},
        r"domain 'books', class 2 has 1 rows; shots=1 needs",
    ),
    (FewShotSplit(8), {}, r"domain 'books', class 0 has 8 rows; shots=8 needs 9"),
    (FewShotSplit(7, test_size=8), {}, r"has 6 rows besides the test rows; shots=7 needs 7"),
    (FewShotSplit(0), {}, r"shots == 0, must be >= 1"),
    (LeaveOneDomainOut(), {"domains": ["books"] * 32}, r"domain 'books' has all the rows; holding one domain out"),
]


@pytest.mark.parametrize(("splitter", "changes", "expected"), BAD, ids=[f"{i} {b[2][:40]}" for i, b in enumerate(BAD)])
def test_bad_input(splitter, changes, expected):
    X, y, d = small()
    with pytest.raises(ValueError, match=expected):
        list(splitter.split(**{"X": X, "y": y, "domains": d, **changes}))


def test_labels_may_be_missing_where_they_are_not_used():
    X, _, d = small()
    splitter = LeaveOneDomainOut()
    assert same(list(splitter.split(X, [0, None] * 16, domains=d)), list(splitter.split(X, domains=d)))


@pytest.mark.parametrize("values", [["books", "dvd"], [3, 4], [True, False], [0.5, 1.5]], ids=str)
@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series, pd.Categorical])
def test_forms_of_domains(values, form):
    X, y, d = small()
    splitter = LeaveOneDomainOut()
    given = form(np.repeat(values, 16).tolist())
    assert type(splitter.get_n_splits(domains=given)) is int
    order = np.argsort(values)
    expected = list(splitter.split(X, y, domains=d))
    assert same(list(splitter.split(X, y, domains=given)), [expected[i] for i in order])


@pytest.mark.parametrize("splitter", SPLITTERS, ids=by_type)
def test_sparse_and_arrow_X(splitter):
    X, y, d = small()
    expected = list(splitter.split(X, y, domains=d))
    sparse = scipy.sparse.csr_matrix(np.eye(len(y)))
    assert same(list(splitter.split(sparse, y, domains=d)), expected)
    table = pa.table({"text": ["a"] * len(y), "where": pa.array(list(d))})
    by_column = copy.copy(splitter)
    by_column.domain_column = "where"
    assert same(list(by_column.split(table, y)), expected)


def test_domains_are_left_out_as_scikit_learn_leaves_groups_out():
    X, y, d = small()
    theirs = list(LeaveOneGroupOut().split(X, y, groups=d))
    assert same(list(LeaveOneDomainOut().split(X, y, domains=d)), theirs)
