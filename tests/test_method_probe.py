"""The label head that starts as a linear probe, and how far from there the meta-learner goes."""

import numpy as np
import pytest
import torch
from conftest import make_texts, tensors
from sklearn.linear_model import LogisticRegression

from skmft import MetaFineTunedClassifier
from skmft._method.probe import PROBE_ROWS, linear_probe, probe_rows


def make(model, **params):
    settings = {"meta_epochs": 3, "adaptation": None, "learning_rate": 3e-3, "batch_size": 16, "random_state": 0}
    settings |= {"contrastive_weight": 0.0, "head_init": "probe"}
    return MetaFineTunedClassifier(model, precision="float32", **{**settings, **params})


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_is_logistic_regression(classes):
    rng = np.random.default_rng(classes)
    y = np.arange(60) % classes
    E = (rng.normal(size=(60, 5)) + 2 * np.eye(5)[y]).astype(np.float32) * 7
    weight = rng.uniform(0.5, 1.5, 60)
    W, b = linear_probe(E, y, weight, classes)
    logits = torch.from_numpy(E) @ W.T + b
    scale = np.linalg.norm(E, axis=1).mean()
    expected = LogisticRegression(max_iter=1000).fit(E / scale, y, sample_weight=weight).predict_proba(E / scale)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-4)


def test_probe_of_rows_that_lack_a_class():
    E = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]], dtype=np.float32)
    W, b = linear_probe(E, np.array([0, 2, 0, 2]), np.ones(4), 4)
    assert ((torch.from_numpy(E) @ W.T + b).argmax(1) == torch.tensor([0, 2, 0, 2])).all()
    W, b = linear_probe(E, np.zeros(4, dtype=int), np.ones(4), 4)
    assert not W.any() and torch.isfinite(b).all()


@pytest.mark.parametrize("typicality_weighting", [True, False])
@pytest.mark.parametrize("pairs", [False, True])
def test_fit_starts_from_the_probe(tiny, typicality_weighting, pairs):
    """At a learning rate of next to nothing the meta-learner is the pre-trained encoder under a logistic regression."""
    X, y, d = make_texts(40)
    if pairs:
        X = [(x, x[::-1]) for x in X]
    clf = make(
        tiny,
        learning_rate=1e-12,
        typicality_weighting=typicality_weighting,
        pair_encoding="bi",
        class_weight="balanced",
    ).fit(X, y, domains=d)
    E = clf.transform(X, pretrained=True)
    scale = np.linalg.norm(E, axis=1).mean()
    weight = np.clip(clf.typicality_, 0, None) if typicality_weighting else np.ones(len(y))
    counts = {label: list(y).count(label) for label in set(y)}
    weight = weight * [1 / counts[label] for label in y]
    expected = LogisticRegression(max_iter=1000).fit(E / scale, y, sample_weight=weight / weight.mean())
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(E / scale), atol=2e-3)
    random = make(tiny, learning_rate=1e-12, head_init="random", pair_encoding="bi").fit(X, y, domains=d)
    assert np.abs(random.predict_proba(X) - clf.predict_proba(X)).max() > 0.05


def test_probe_of_many_rows_reads_some(tiny, data, monkeypatch):
    X, y, d = (list(v) * (PROBE_ROWS // len(data[0]) + 2) for v in data)
    seen = []
    monkeypatch.setattr("skmft._stage.linear_probe", lambda E, *rest: seen.append(len(E)) or linear_probe(E, *rest))
    for weighting in (True, False):
        params = {"meta_epochs": 1, "max_length": 4, "batch_size": 256, "typicality_weighting": weighting}
        make(tiny, **params).fit(X, y, domains=d)
    assert seen == [PROBE_ROWS] * 2


def test_weights_are_interpolated_from_the_probe_to_the_trained(tiny, data):
    X, y, d = data

    def trained(**params):
        return {n: t.detach() for n, t in tensors(make(tiny, meta_epochs=2, **params).fit(X, y, domains=d)).items()}

    start, end = trained(learning_rate=1e-15, weight_interpolation=1.0), trained(weight_interpolation=1.0)
    for share in (0.25, 0.75):
        for name, tensor in trained(weight_interpolation=share).items():
            torch.testing.assert_close(tensor, (1 - share) * start[name] + share * end[name])
    assert max((end[n] - start[n]).abs().max() for n in start) > 1e-2
    random = [
        make(tiny, meta_epochs=1, head_init="random", weight_interpolation=share).fit(X, y, domains=d).predict_proba(X)
        for share in (0.5, 1.0)
    ]
    np.testing.assert_array_equal(*random)  # a random head is nothing to go back to


def test_probe_leaves_out_rows_of_weight_zero():
    E = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1], [5, 5]], dtype=np.float32)
    y, weight = np.array([0, 1, 0, 1, 2]), np.array([1.0, 1, 1, 1, 0])
    W, b = linear_probe(E, y, weight, 3)
    assert ((torch.from_numpy(E[:4]) @ W.T + b).argmax(1) == torch.tensor([0, 1, 0, 1])).all()
    assert not W[2].any() and b[2] == b.min()


def test_embeddings_that_are_all_zero():
    W, b = linear_probe(np.zeros((4, 3), dtype=np.float32), np.array([0, 1, 0, 1]), np.ones(4), 2)
    assert not W.any() and torch.isfinite(b).all()


def test_of_many_rows_some_are_drawn():
    assert probe_rows(PROBE_ROWS, 0).tolist() == list(range(PROBE_ROWS))
    some = probe_rows(3 * PROBE_ROWS, 0)
    assert len(np.unique(some)) == PROBE_ROWS and (np.diff(some) > 0).all() and some.max() < 3 * PROBE_ROWS
    np.testing.assert_array_equal(some, probe_rows(3 * PROBE_ROWS, 0))
    assert not np.array_equal(some, probe_rows(3 * PROBE_ROWS, 1))
