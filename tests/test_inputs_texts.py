"""X in all its forms; a row that is no text is named."""

import collections
import copy
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from refusals import message, refusal
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError

from skmft._inputs.texts import LazyTexts, read_texts


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        (["good"] * 47 + [None], "X: row 47 is None (NoneType); expected str"),
        (["good", float("nan")] * 24, "X: row 1 is nan (float); expected str"),
        (pd.Series(["good", pd.NA] * 24), "X: row 1 is"),
        ([("a", "b"), ("a", None)] * 24, "X: row 1, text 2 of the pair is None"),
        ([("a", "b"), ("a", "b", "c")] * 24, "X: row 1 is ('a', 'b', 'c'); expected a pair (str, str)"),
        ([1, 2] * 24, "X: row 0 is 1 (int); expected str"),
        (pd.DataFrame({"a": ["x"] * 48, "b": "y", "c": "z"}), "X has 3 text columns: ['a', 'b', 'c']; expected one"),
        (np.full((48, 3), "a"), "X is an array of shape (48, 3); expected (n_rows,) or one column"),
    ],
    ids=["None", "NaN", "NA", "None in a pair", "triple", "numbers", "three columns", "array of three columns"],
)
def test_what_is_no_text_is_refused(make, data, X, expected):
    assert expected in refusal(make(), data, X=X)


def test_no_rows_are_refused(make, fitted, data):
    expected = "X has 0 samples (rows); at least 1 is required"
    assert expected in refusal(make(), data, X=[], y=[], domains=[])
    assert expected in message(lambda: fitted.predict([]))


def test_wrong_kinds_of_X(make, data):
    _, y, d = data
    assert "X is a str; expected a list" in message(lambda: make().fit("one text", y, d), TypeError)
    assert "pass [text]" in message(lambda: make().fit("one text", y, d), TypeError)
    assert "X is a NoneType" in message(lambda: make().fit(None, y, d), TypeError)
    assert "X is a csr_matrix" in message(lambda: make().fit(csr_matrix((48, 2)), y, d), TypeError)


def test_a_fitted_estimator_refuses_another_form(fitted, data):
    X, _, _ = data
    assert "X holds pairs, but the estimator was fitted on single texts" in message(
        lambda: fitted.predict([("a", "b")])
    )
    frame = pd.DataFrame({"text": X, "shop": "books"})
    assert "if one of them is the domain, name it by domain_column=" in message(lambda: fitted.predict(frame))


def test_predict_before_fit(make):
    assert "is not fitted yet" in message(lambda: make().predict(["text"]), NotFittedError)


def test_an_empty_string_is_text(make, data):
    X, y, d = data
    clf = make().fit(["", *X[1:]], y, domains=d)
    assert np.isfinite(clf.predict_proba(["", "good"])).all()


def test_read_texts_of_one_column_frames_and_empty_pairs():
    assert read_texts(pd.DataFrame({"a": ["x"]}))[0] == ["x"]
    assert read_texts([("", "")])[0] == [("", "")]
    assert read_texts(("two", "texts"))[0] == ["two", "texts"]


class Lines(Sequence):
    """Rows that are made when asked for, one by one or in slices; notes the longest slice."""

    def __init__(self, rows, slices=True):
        self.rows, self.slices, self.longest = rows, slices, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, slice):
            if not self.slices:
                raise TypeError("single rows only")
            self.longest = max(self.longest, len(self.rows[key]))
        return self.rows[key]


def memory_mapped(X, folder):
    out = np.memmap(folder / "texts", dtype=np.array(X).dtype, mode="w+", shape=np.array(X).shape)
    out[:] = X
    return out


LAZY = {
    "dataset column": lambda X, folder: datasets.Dataset.from_dict({"text": X})["text"],
    "dataset": lambda X, folder: datasets.Dataset.from_dict({"text": X}),
    "numpy format": lambda X, folder: datasets.Dataset.from_dict({"text": X}).with_format("numpy")["text"],
    "arrow format": lambda X, folder: datasets.Dataset.from_dict({"text": X}).with_format("arrow"),
    "arrow array": lambda X, folder: pa.array(X),
    "chunked arrow array": lambda X, folder: pa.chunked_array([X[:5], X[5:]]),
    "arrow table": lambda X, folder: pa.table({"text": X}),
    "memory-mapped array": memory_mapped,
    "sequence": lambda X, folder: Lines(X),
    "sequence without slices": lambda X, folder: Lines(X, slices=False),
    "deque": lambda X, folder: collections.deque(X),
}


@pytest.mark.parametrize("form", LAZY)
def test_forms_that_are_read_slice_by_slice(fitted, data, tmp_path, form):
    X, y, d = data
    lazy = LAZY[form](X, tmp_path)
    texts, _, _ = read_texts(lazy)
    assert isinstance(texts, LazyTexts)
    assert list(texts) == texts[:] == X
    assert texts[-1] == X[-1] and texts[3:7] == X[3:7] and texts[::-2] == X[::-2]
    np.testing.assert_array_equal(fitted.predict_proba(lazy, d), fitted.predict_proba(X, d))
    np.testing.assert_array_equal(fitted.transform(lazy), fitted.transform(X))
    np.testing.assert_array_equal(fitted.typicality(lazy, y, d), fitted.typicality(X, y, d))


@pytest.mark.parametrize("form", ["sequence", "dataset", "table", "memory-mapped array"])
def test_pairs_that_are_read_slice_by_slice(make, data, tmp_path, form):
    X, y, d = data
    pairs = list(zip(X, X[::-1]))
    columns = {"first": X, "second": X[::-1]}
    lazy = {
        "sequence": lambda: Lines(pairs),
        "dataset": lambda: datasets.Dataset.from_dict(columns),
        "table": lambda: pa.table(columns),
        "memory-mapped array": lambda: memory_mapped(pairs, tmp_path),
    }[form]()
    clf = make(meta_epochs=1, adaptation=None).fit(lazy, y, d)
    expected = make(meta_epochs=1, adaptation=None).fit(pairs, y, d)
    np.testing.assert_array_equal(clf.predict_proba(lazy), expected.predict_proba(pairs))


def test_texts_are_read_in_slices_of_some_thousand():
    rows = [f"text {i}" for i in range(20000)]
    lines = Lines(rows)
    texts, _, _ = read_texts(lines)
    assert list(texts) == rows
    assert 1000 < lines.longest <= 4096


class Whole(Sequence):
    """Gives all rows for any slice."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows if isinstance(i, slice) else self.rows[i]


def test_slices_of_a_wrong_length_are_not_read():
    rows = [f"text {i}" for i in range(9)]
    texts, _, _ = read_texts(Whole(rows))
    assert texts[2:5] == rows[2:5] and list(texts) == rows


@pytest.mark.parametrize("bad", [None, float("nan"), 5])
def test_a_bad_row_far_down_changes_nothing(make, fitted, data, bad):
    X, y, d = data
    rows = [*(X * 200)[:9000], bad]
    many, where = np.resize(y, len(rows)), np.resize(d, len(rows))
    clf = copy.copy(fitted)
    before = dict(vars(clf))
    assert f"X: row 9000 is {bad!r} ({type(bad).__name__}); expected str" in message(
        lambda: clf.fit(Lines(rows), many, where)
    )
    assert vars(clf) == before
    fresh = make()
    message(lambda: fresh.fit(Lines(rows), many, where))
    assert not [name for name in vars(fresh) if name.endswith("_")]
    pairs = Lines([*[("a", "b")] * 9000, ("a", "b", "c")])
    assert "X: row 9000 is ('a', 'b', 'c'); expected a pair" in message(lambda: fresh.fit(pairs, many, where))


def test_forms_that_are_no_texts_although_they_have_rows(make):
    whole = {"train": datasets.Dataset.from_dict({"text": ["a"]})}
    assert "X is a DatasetDict; expected" in message(
        lambda: make().fit(datasets.DatasetDict(whole), ["pos"]), TypeError
    )
    assert "X has 0 samples" in message(lambda: make().fit(Lines([]), []))
    assert "X has 0 samples" in message(lambda: make().fit(datasets.Dataset.from_dict({"text": []}), []))
    assert "X: row 0, text 2 of the pair is 1 (int)" in message(
        lambda: make().fit(datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}), [1, 0])
    )
    domains = Lines(["books", "kitchen"] * 5000)
    assert "X holds pairs whose text 1 is the row's domain" in message(
        lambda: make().fit(Lines([(d, "text") for d in domains]), [0, 1] * 5000, domains)
    )


@pytest.mark.parametrize(
    ("X", "error", "expected"),
    [
        ({"good", "bad"}, TypeError, "X is a set"),
        (pd.DataFrame([["good", "bad"]] * 4, columns=["text", "text"]), ValueError, "each once"),
        (pd.DataFrame({("a", "b"): ["good"] * 4}), ValueError, "plain names"),
    ],
    ids=["set", "repeated name", "levels of names"],
)
def test_forms_without_an_order_or_names(X, error, expected):
    with pytest.raises(error, match=expected):
        read_texts(X)


def test_lone_surrogates_are_named(make, fitted, data):
    X, y, d = data
    with pytest.raises(ValueError, match=r"X: row 1 has the lone surrogate '\\ud83d' at character 4"):
        fitted.predict(["good", "bad \ud83d"])
    clf = make()
    with pytest.raises(ValueError, match=r"X: row 47 has the lone surrogate"):
        clf.fit([*X[:-1], "\udc80"], y, domains=d)
    pairs = make(meta_epochs=1).fit(list(zip(X, X)), y, domains=d)
    with pytest.raises(ValueError, match=r"X: row 0 has the lone surrogate"):
        pairs.predict([("good", "\ud800")])
