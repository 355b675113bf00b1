"""Bad input: each gets a message that names the argument, what was got, what was expected."""

import collections
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix
from sklearn.exceptions import NotFittedError

from skmft.inputs import LazyTexts, read_domains, read_texts


def message(call, kind=ValueError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def fit(make, data, **changes):
    X, y, d = data
    params = changes.pop("params", {})
    arguments = {"X": X, "y": y, "domains": d, **changes}
    clf = make(**params)
    return lambda: clf.fit(**arguments)


CASES = [
    ({"y": ["pos", "neg"]}, "y has 2 labels, but X has 48 rows"),
    ({"y": None}, "y is None; this classifier requires y to be passed"),
    ({"y": ["pos"] * 48}, "y has one class only, 'pos'"),
    ({"y": ["pos", None] * 24}, "y: row 1 is None; expected a label"),
    ({"y": [0.0, float("nan")] * 24}, "y: row 1 is nan"),
    ({"y": np.array([1, "a"] * 24, dtype=object)}, "y mixes strings and numbers"),
    ({"y": np.linspace(0, 1, 48)}, "Unknown label type: continuous"),
    ({"domains": ["books"]}, "domains has shape (1,), but X has 48 rows"),
    ({"domains": ["books", None] * 24}, "domains: row 1 is None; expected a domain name"),
    ({"domains": [1.5, 2.5] * 24}, "domains: row 0 is 1.5 (float); expected str, int or bool"),
    ({"domains": np.array(["a", 1] * 24, dtype=object)}, "domains mixes ['int', 'str']"),
    ({"X": ["good"] * 47 + [None]}, "X: row 47 is None (NoneType); expected str"),
    ({"X": ["good", float("nan")] * 24}, "X: row 1 is nan (float); expected str"),
    ({"X": pd.Series(["good", pd.NA] * 24)}, "X: row 1 is"),
    ({"X": [("a", "b"), ("a", None)] * 24}, "X: row 1, text 2 of the pair is None"),
    ({"X": [("a", "b"), ("a", "b", "c")] * 24}, "X: row 1 is ('a', 'b', 'c'); expected a pair (str, str)"),
    ({"X": [1, 2] * 24}, "X: row 0 is 1 (int); expected str"),
    ({"X": [], "y": [], "domains": []}, "X has 0 samples (rows); at least 1 is required"),
    ({"X": pd.DataFrame({"a": ["x"] * 48, "b": "y", "c": "z"})}, "X has 3 text columns: ['a', 'b', 'c']; expected one"),
    ({"X": np.full((48, 3), "a")}, "X is an array of shape (48, 3); expected (n_rows,) or one column"),
    ({"sample_weight": np.ones(5)}, "sample_weight has shape (5,), but X has 48 rows"),
    ({"sample_weight": -np.ones(48)}, "sample_weight: row 0 is -1.0; expected finite weights of 0 or more"),
    ({"sample_weight": np.zeros(48)}, "sample_weight is 0 for every row"),
    (
        {"params": {"corruption_weight": -0.1}},
        "'corruption_weight' parameter of MetaFineTunedClassifier must be a float",
    ),
    (
        {"params": {"typicality_balance": 1.1}},
        "'typicality_balance' parameter of MetaFineTunedClassifier must be a float",
    ),
    ({"params": {"corruption_layers": (3,)}}, "layer 3 does not exist; the model has 3 layers, numbered 0 to 2"),
    ({"params": {"corruption_layers": (-4,)}}, "layer -4 does not exist"),
    ({"params": {"corruption_layers": ()}}, "corruption_layers=(); expected one or more layer numbers"),
    ({"params": {"corruption_layers": (0.5,)}}, "corruption_layers=(0.5,); expected one or more layer numbers"),
    ({"params": {"meta_epochs": 0}}, "'meta_epochs' parameter"),
    ({"params": {"pooling": "max"}}, "'pooling' parameter"),
    ({"params": {"adaptation": "lots"}}, "'adaptation' parameter"),
    ({"params": {"callbacks": ["print"]}}, "callbacks has 'print'; expected instances of skorch.callbacks.Callback"),
    ({"params": {"class_weight": {"pos": 1, "other": 2}}}, "class_weight has keys ['other']; expected classes of y"),
    ({"params": {"class_weight": {"pos": -1}}}, "expected finite weights of 0 or more"),
    ({"params": {"max_length": 4096}}, "max_length=4096 is more than the 128 tokens"),
    ({"params": {"device": "abacus"}}, "device='abacus' cannot be used here"),
    ({"params": {"domain_column": "where"}, "domains": None}, "domain_column='where' is not in X, which is a list"),
]


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=[c[1][:40] for c in CASES])
def test_bad_input_to_fit(make, data, changes, expected):
    call = fit(make, data, **changes)
    assert expected in message(call)
    clf = call.__closure__[1].cell_contents
    assert not [name for name in vars(clf) if name.endswith("_")]


def test_wrong_kinds_of_X(make, data):
    _, y, d = data
    assert "X is a str; expected a list" in message(lambda: make().fit("one text", y, d), TypeError)
    assert "pass [text]" in message(lambda: make().fit("one text", y, d), TypeError)
    assert "X is a NoneType" in message(lambda: make().fit(None, y, d), TypeError)
    assert "X is a csr_matrix" in message(lambda: make().fit(csr_matrix((48, 2)), y, d), TypeError)


def test_domain_column(make, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    clf = make(domain_column="domain")
    assert "is not in X, which has columns ['text']" in message(lambda: clf.fit(frame[["text"]], y))
    assert "domains were given twice" in message(lambda: clf.fit(frame, y, domains=d))
    three = frame.assign(a="x", b="y")
    assert "X has 3 text columns besides domain_column='domain'" in message(lambda: clf.fit(three, y))
    clf.fit(frame, y)
    assert "domain_column='domain' is not in X" in message(lambda: clf.predict(frame[["text"]]))
    assert "X lacks the column(s) ['text']" in message(lambda: clf.predict(frame[["domain"]]))
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), clf.predict_proba(frame))


def test_bad_input_to_a_fitted_estimator(fitted, data):
    import copy

    X, _, _ = data
    clf = copy.copy(fitted)
    clf.unknown_domain = "error"
    text = message(lambda: clf.predict(X, domains=["books"] * 47 + ["garden"]))
    assert "domains: row 47 is 'garden', which is none of the known ['books', 'kitchen']; adapt to it first" in text
    np.testing.assert_array_equal(clf.predict(X[:1], domains=[None]), clf.predict(X[:1]))
    assert "row 0 is 5, which is none of the known ['books', 'kitchen']; convert them to one type" in message(
        lambda: fitted.predict(X[:2], domains=[5, 5])
    )
    assert "The 'precision' parameter" in message(lambda: copy.copy(fitted).set_params(precision="fp16").predict(X))
    frame = pd.DataFrame({"text": X, "shop": "books"})
    assert "if one of them is the domain, name it by domain_column=" in message(lambda: fitted.predict(frame))
    assert "domains has shape (2,)" in message(lambda: clf.predict(X, domains=["books", "books"]))
    assert "X holds pairs, but the estimator was fitted on single texts" in message(
        lambda: fitted.predict([("a", "b")])
    )
    assert "X has 0 samples" in message(lambda: fitted.predict([]))
    assert "y has labels that fit did not see: ['neutral']" in message(
        lambda: fitted.typicality(X[:1], ["neutral"], "books")
    )


def test_a_domain_column_that_nobody_named(make, data):
    X, y, d = data
    frame = pd.DataFrame({"domain": d, "text": X})
    text = message(lambda: make().fit(frame, y, domains=d))
    assert "X holds pairs whose text 1 is the row's domain; expected texts. Name that column by domain_column=" in text


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


def test_read_domains_keeps_types():
    for values, kind in (([1, 2], int), ([True, False], bool), (["a", "b"], str), (np.array([1, 2]), int)):
        out = read_domains(values, None, None, 2, None, allow_missing=False)
        assert type(out.tolist()[0]) is kind
    assert read_domains("books", None, None, 2, None, allow_missing=False).tolist() == ["books"] * 2
    assert read_domains(7, None, None, 2, None, allow_missing=False).tolist() == [7, 7]


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


@pytest.mark.parametrize("form", ["dataset", "table"])
def test_domain_column_of_a_dataset(make, data, form):
    X, y, d = data
    maker = datasets.Dataset.from_dict if form == "dataset" else pa.table
    whole = {"text": X, "domain": d.tolist()}
    clf = make(domain_column="domain").fit(maker(whole), y)
    frame = pd.DataFrame(whole)
    expected = make(domain_column="domain").fit(frame, y).predict_proba(frame)
    np.testing.assert_array_equal(clf.predict_proba(maker(whole)), expected)
    np.testing.assert_array_equal(clf.predict_proba(maker({"id": X, **whole, "other": X})), expected)
    assert clf.feature_names_in_.tolist() == ["text"]
    assert "X lacks the column(s) ['text'] that it had in fit; it has ['domain']" in message(
        lambda: clf.predict(maker({"domain": d.tolist()}))
    )
    assert "which has columns ['text']" in message(lambda: clf.fit(maker({"text": X}), y))
    three = maker({**whole, "a": X, "b": X})
    assert "X has 3 text columns besides domain_column='domain'" in message(lambda: clf.fit(three, y))


def test_labels_and_domains_from_a_dataset(make, data):
    X, y, d = data
    whole = datasets.Dataset.from_dict({"text": X, "label": y.tolist(), "domain": d.tolist()})
    clf = make(meta_epochs=1).fit(whole["text"], whole["label"], domains=whole["domain"])
    expected = make(meta_epochs=1).fit(X, y, domains=d)
    np.testing.assert_array_equal(clf.predict_proba(X, d), expected.predict_proba(X, d))
    table = whole.data
    arrow = make(meta_epochs=1).fit(table["text"], table["label"], domains=table["domain"])
    np.testing.assert_array_equal(arrow.predict_proba(X, d), expected.predict_proba(X, d))


def test_texts_are_read_in_slices_of_some_thousand():
    rows = [f"text {i}" for i in range(20000)]
    lines = Lines(rows)
    texts, _, _ = read_texts(lines)
    assert list(texts) == rows
    assert 1000 < lines.longest <= 4096


@pytest.mark.parametrize("bad", [None, float("nan"), 5])
def test_a_bad_row_far_down_changes_nothing(make, data, bad):
    X, y, d = data
    rows = [*(X * 200)[:9000], bad]
    many, where = np.resize(y, len(rows)), np.resize(d, len(rows))
    clf = make(meta_epochs=1, adaptation=None).fit(X, y, d)
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


def test_integer_domains_that_pandas_made_floats(make, data):
    """A missing value among them does that; at prediction it means that the domain is not known."""
    X, y, d = data
    numbers = (d == "books").astype(int)
    clf = make(domain_column="domain").fit(pd.DataFrame({"text": X, "domain": numbers}), y)
    frame = pd.DataFrame({"text": X, "domain": numbers})
    expected = clf.predict_proba(frame)
    expected[0] = clf.predict_proba(pd.DataFrame({"text": X, "domain": None}))[0]
    frame["domain"] = frame["domain"].where(frame.index > 0)
    assert frame["domain"].dtype == np.float64
    np.testing.assert_allclose(clf.predict_proba(frame), expected, atol=1e-5)
    frame.loc[1, "domain"] = 0.5
    with pytest.raises(ValueError, match=r"row 1 is 0\.5"):
        clf.predict(frame)


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


def test_float_domains_are_told_the_type_that_matches(make, data):
    """Whole numbers became float on the way, say in a merge; as str, "1.0", they would match no domain that is an int."""
    X, y, d = data
    numbers = (d == "books").astype(int)
    floats = numbers.astype(float)
    clf = make(meta_epochs=1).fit(X, y, domains=numbers)
    for given in (floats, floats.tolist(), pd.Series(floats), floats.astype(np.float32).astype(object)):
        text = message(lambda given=given: clf.predict(X, domains=given))
        assert text.startswith("domains: row 0 is ") and text.endswith(
            "expected str, int or bool. Convert with astype(int)."
        )
    np.testing.assert_array_equal(clf.predict(X, domains=floats.astype(int)), clf.predict(X, domains=numbers))
    assert message(lambda: clf.predict(X, domains=floats + 0.5)).endswith("Give the names that fit got.")
    assert message(lambda: clf.fit(X, y, domains=floats)).endswith("Convert with astype(int).")
    assert message(lambda: clf.fit(X, y, domains=floats + 0.5)).endswith("Convert with astype(str).")


def test_bool_domains_name_the_integers_that_they_equal(make, data):
    """True == 1, and `adapt` lets no domain of one kind stand beside an equal one of the other."""
    X, y, d = data
    clf = make(meta_epochs=1).fit(X, y, domains=(d == "books").astype(int))
    np.testing.assert_array_equal(clf.predict_proba(X, d == "books"), clf.predict_proba(X, (d == "books").astype(int)))
    assert "domain=True equals the known domain 1" in message(lambda: clf.adapt(X, y, domain=True))


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


def test_adapt_to_none(fitted, data):
    X, y, _ = data
    with pytest.raises(ValueError, match=r"domain=None; expected one name"):
        fitted.adapt(X, y, None)
