"""Domains: by argument or by column, of one type, named where they are not as expected."""

import copy

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from refusals import message, refusal

from skmft._inputs.domains import read_domains


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (["books"], "domains has shape (1,), but X has 48 rows"),
        (["books", None] * 24, "domains: row 1 is None; expected a domain name"),
        ([1.5, 2.5] * 24, "domains: row 0 is 1.5 (float); expected str, int or bool"),
        (np.array(["a", 1] * 24, dtype=object), "domains mixes ['int', 'str']"),
    ],
    ids=["too few", "None", "floats", "two types"],
)
def test_what_is_no_domain_is_refused(make, data, domains, expected):
    assert expected in refusal(make(), data, domains=domains)


def test_a_fitted_estimator_names_an_unknown_domain(fitted, data):
    X, _, _ = data
    clf = copy.copy(fitted).set_params(unknown_domain="error")
    text = message(lambda: clf.predict(X, domains=["books"] * 47 + ["garden"]))
    assert "domains: row 47 is 'garden', which is none of the known ['books', 'kitchen']" in text
    assert "set unknown_domain='ignore'" in text
    np.testing.assert_array_equal(clf.predict(X[:1], domains=[None]), clf.predict(X[:1]))
    assert "row 0 is 5, which is none of the known ['books', 'kitchen']; convert them to one type" in message(
        lambda: fitted.predict(X[:2], domains=[5, 5])
    )
    assert "domains has shape (2,)" in message(lambda: clf.predict(X, domains=["books", "books"]))


def test_a_domain_column_that_is_not_there(make, data):
    expected = "domain_column='where' is not in X, which is a list"
    assert expected in refusal(make(domain_column="where"), data, domains=None)


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


def test_a_domain_column_that_nobody_named(make, data):
    X, y, d = data
    frame = pd.DataFrame({"domain": d, "text": X})
    text = message(lambda: make().fit(frame, y, domains=d))
    assert "X holds pairs whose text 1 is the row's domain; expected texts. Name that column by domain_column=" in text


def test_read_domains_keeps_types():
    for values, kind in (([1, 2], int), ([True, False], bool), (["a", "b"], str), (np.array([1, 2]), int)):
        out = read_domains(values, None, None, 2, None, allow_missing=False)
        assert type(out.tolist()[0]) is kind
    assert read_domains("books", None, None, 2, None, allow_missing=False).tolist() == ["books"] * 2
    assert read_domains(7, None, None, 2, None, allow_missing=False).tolist() == [7, 7]


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


@pytest.mark.parametrize("form", [list, np.array, pd.Series, lambda v: pd.Series(v).to_numpy(dtype=object)])
def test_integers_that_became_float_beside_missing_ones(form):
    out = read_domains(form([1.0, np.nan, 2.0]), None, None, 3, None, allow_missing=True)
    assert out.tolist() == [1, None, 2]


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


def test_adapt_to_none(fitted, data):
    X, y, _ = data
    with pytest.raises(ValueError, match=r"domain=None; expected one name"):
        fitted.adapt(X, y, None)
