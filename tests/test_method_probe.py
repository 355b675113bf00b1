"""The label head that starts as a logistic regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from skmft._method.probe import PROBE_ROWS, linear_probe, probe_rows


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("size", [0.1, 7.0])
def test_probe_is_logistic_regression_of_embeddings_of_mean_norm_one(classes, size):
    rng = np.random.default_rng(classes)
    y = np.arange(60) % classes
    E = (rng.normal(size=(60, 5)) + 2 * np.eye(5)[y]).astype(np.float32) * size
    weight = rng.uniform(0.5, 1.5, 60)
    W, b = linear_probe(E, y, weight, classes)
    assert W.dtype == b.dtype == torch.float32
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
