"""y and sample_weight: read, refused where they are not as expected, and kept for the rows that are left."""

import datasets
import numpy as np
import pytest
from conftest import row_of
from refusals import message, refusal

from skmft._engine.tokens import TokenizedTexts
from skmft._inputs.rows import Rows, read_labelled_texts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"y": ["pos", "neg"]}, "y has 2 labels, but X has 48 rows"),
        ({"y": None}, "y is None; this classifier requires y to be passed"),
        ({"y": ["pos"] * 48}, "y has one class only, 'pos'"),
        ({"y": ["pos", None] * 24}, "y: row 1 is None; expected a label"),
        ({"y": [0.0, float("nan")] * 24}, "y: row 1 is nan"),
        ({"y": np.array([1, "a"] * 24, dtype=object)}, "y mixes strings and numbers"),
        ({"y": np.linspace(0, 1, 48)}, "Unknown label type: continuous"),
        ({"sample_weight": np.ones(5)}, "sample_weight has shape (5,), but X has 48 rows"),
        ({"sample_weight": -np.ones(48)}, "sample_weight: row 0 is -1.0; expected finite weights of 0 or more"),
        ({"sample_weight": np.zeros(48)}, "sample_weight is 0 for every row"),
        ({"sample_weight": np.tile([1.0, 0.0], 24)}, "y has one class only, 'pos' (among the rows of weight above 0)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_labels_and_weights_that_are_refused(make, data, changes, expected):
    assert expected in refusal(make(), data, **changes)


def test_labels_that_fit_did_not_see(fitted, data):
    X = data[0]
    expected = "y has labels that fit did not see: ['neutral']"
    assert expected in message(lambda: fitted.typicality(X[:1], ["neutral"], "books"))


def test_labels_and_domains_from_a_dataset(make, data):
    X, y, d = data
    whole = datasets.Dataset.from_dict({"text": X, "label": y.tolist(), "domain": d.tolist()})
    clf = make(meta_epochs=1).fit(whole["text"], whole["label"], domains=whole["domain"])
    expected = make(meta_epochs=1).fit(X, y, domains=d)
    np.testing.assert_array_equal(clf.predict_proba(X, d), expected.predict_proba(X, d))
    table = whole.data
    arrow = make(meta_epochs=1).fit(table["text"], table["label"], domains=table["domain"])
    np.testing.assert_array_equal(arrow.predict_proba(X, d), expected.predict_proba(X, d))


def test_names_of_rows_of_weight_zero_do_not_count():
    data = read_labelled_texts(
        ["a", "b", "c", "d"],
        [2, 5, 7, 2],
        ["x", "y", "z", "z"],
        [1.0, 2.0, 0.0, 0.0],
        domain_column=None,
        class_weight={5: 3.0},
    )
    assert data.classes.tolist() == [2, 5] and data.labels.tolist() == [0, 1, -1, 0]
    assert data.domain_names.tolist() == ["x", "y"] and data.domains.tolist() == [0, 1, -1, -1]
    assert data.used.tolist() == [True, True, False, False]
    assert data.has_domains and not data.is_pair and data.columns is None


def some_rows(**changes):
    """Six texts of 1, 2, ... 6 tokens, whose ids are the number of the text."""
    sizes = np.arange(1, 7)
    tokens = TokenizedTexts(np.repeat(sizes, sizes).astype(np.int32), np.concatenate([[0], np.cumsum(sizes)]), None, 0)
    about = {
        "labels": np.array([0, 1, 0, 1, 0, 0]),
        "domains": np.array([0, 0, 0, 1, 1, 1]),
        "sample_weight": np.array([1.0, 2, 3, 1, 1, 1]),
        "classes": np.array(["neg", "pos"]),
        "domain_names": np.array(["books", "dvd"]),
    }
    return Rows(tokens, **{**about, **changes})


def test_weights_are_of_mean_one_over_the_rows_that_are_left():
    t = np.array([0.5, 1.0, -0.5, 0.8, 0.2, 0.4])
    rows = some_rows(typicality=t, class_weight={"pos": 2.0})
    whole = np.clip(t, 0, None) * rows.sample_weight * [1, 2, 1, 2, 1, 1]
    np.testing.assert_allclose(rows.weights, whole / whole.mean())
    part = rows.where(rows.domains == 1)
    np.testing.assert_allclose(part.weights, whole[3:] / whole[3:].mean())
    assert part.labels.tolist() == [1, 0, 0] and part.tokens.lengths.tolist() == [4, 5, 6]
    assert row_of(part.tokens, 0).tolist() == [4] * 4


def test_balanced_is_over_the_rows_that_are_left():
    rows = some_rows(sample_weight=np.ones(6), class_weight="balanced")
    np.testing.assert_allclose(rows.class_balance, np.where(rows.labels == 1, 6 / 4, 6 / 8))
    np.testing.assert_allclose(rows.where(rows.domains == 0).class_balance, [3 / 4, 3 / 2, 3 / 4])


def test_rows_for_the_label_head_keep_their_embeddings():
    """Their numbers are those among the rows that are left."""
    E = np.arange(8, dtype=np.float32).reshape(4, 2)
    rows, found = some_rows(probe=(np.array([0, 2, 3, 5]), E)).where(np.array([0, 1, 1, 0, 1, 1], dtype=bool)).probe
    assert rows.tolist() == [1, 3]
    np.testing.assert_array_equal(found, E[[1, 3]])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"labels": np.zeros(6, dtype=int)}, False),
        ({"sample_weight": np.array([1.0, 0, 1, 0, 1, 1])}, False),
        ({"class_weight": {"neg": 0.0}}, False),
    ],
    ids=["two classes", "one class", "one class of weight above 0", "class weight 0"],
)
def test_rows_of_one_class_cannot_train(changes, expected):
    assert some_rows(**changes).can_train is expected
