"""Prototypes, similarities and typicality: the equations of section 3.2, by tests/reference.py."""

import numpy as np
import pytest
import reference

from skmft._method.typicality import (
    PrototypeSums,
    class_domain_prototypes,
    cluster_cells,
    similarities,
    typicality,
)


def rows(n_domains, n_classes=3, n=60, missing=False, seed=0):
    rng = np.random.default_rng(seed)
    y, d = rng.integers(n_classes, size=n), rng.integers(n_domains, size=n)
    y[: n_domains * n_classes] = np.arange(n_domains * n_classes) % n_classes
    d[: n_domains * n_classes] = np.arange(n_domains * n_classes) // n_classes
    if missing:  # the last domain lacks class 0
        y[(d == n_domains - 1) & (y == 0)] = 1
    E = rng.normal(size=(n, 8)) + 2 * rng.normal(size=(n_classes, 8))[y] + rng.normal(size=(n_domains, 8))[d]
    return E.astype(np.float32), y, d


def ours(E, y, d, w, P, K, M, a):
    c, s = class_domain_prototypes(E, y, d, n_classes=M, n_domains=K, sample_weight=w, n_prototypes=P, random_state=0)
    own, cross = similarities(E, y, d, c, s)
    return typicality(own, cross, a), c, s, own, cross


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_one_prototype_agrees_with_reference(K, missing, a, weighted):
    E, y, d = rows(K, missing=missing)
    w = np.random.default_rng(1).uniform(0.1, 3, len(y)) if weighted else np.ones(len(y))
    t, c, _, _, cross = ours(E, y, d, w, 1, K, 3, a)
    found = reference.prototypes(E.astype(float).tolist(), y.tolist(), d.tolist(), w.tolist())
    expected = reference.typicality(E.astype(float).tolist(), y.tolist(), d.tolist(), found, a)
    np.testing.assert_allclose(t, expected, atol=1e-5)
    for (k, m), [(share, prototype)] in found.items():
        assert share == 1
        np.testing.assert_allclose(c[k, m, 0], prototype, atol=1e-5)
    assert np.isnan(cross).all() == (K == 1)
    if missing:
        assert np.isnan(c[K - 1, 0]).all()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_three_prototypes_agree_with_reference(K, missing):
    E, y, d = rows(K, missing=missing)
    w = np.random.default_rng(1).uniform(0.1, 3, len(y))
    t, c, s, _, _ = ours(E, y, d, w, 3, K, 3, 0.5)
    # a row belongs to the nearest prototype of its pair: what k-means means; shares and means follow from that
    distance = np.linalg.norm(c[d, y] - E[:, None], axis=-1)
    cluster = np.nanargmin(distance, axis=1).tolist()
    found = reference.prototypes(E.astype(float).tolist(), y.tolist(), d.tolist(), w.tolist(), cluster)
    for (k, m), pairs in found.items():
        exists = s[k, m] > 0
        np.testing.assert_allclose(s[k, m][exists], [share for share, _ in pairs], atol=1e-5)
        np.testing.assert_allclose(c[k, m][exists], [prototype for _, prototype in pairs], atol=1e-5)
        assert exists.sum() == min(3, ((d == k) & (y == m)).sum())
    expected = reference.typicality(E.astype(float).tolist(), y.tolist(), d.tolist(), found, 0.5)
    np.testing.assert_allclose(t, expected, atol=1e-5)


def test_more_prototypes_than_distinct_rows():
    E = np.array([[1.0, 0], [1, 0], [0, 1]])
    _, s = class_domain_prototypes(E, [0, 0, 0], [0, 0, 0], n_classes=1, n_domains=1, n_prototypes=5)
    np.testing.assert_allclose(np.sort(s[0, 0]), [0, 0, 0, 1 / 3, 2 / 3])


def test_rows_of_weight_zero_leave_prototypes_alone():
    E, y, d = rows(2)
    w = np.ones(len(y))
    w[40:] = 0
    for P in (1, 3):
        kwargs = {"n_classes": 3, "n_domains": 2, "n_prototypes": P, "random_state": 0}
        a, _ = class_domain_prototypes(E, y, d, sample_weight=w, **kwargs)
        b, _ = class_domain_prototypes(E[:40], y[:40], d[:40], **kwargs)
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_unknown_domain_is_foreign_everywhere():
    E, y, d = rows(2)
    c, s = class_domain_prototypes(E, y, d, n_classes=3, n_domains=2)
    own, cross = similarities(E, y, np.full(len(y), -1), c, s)
    assert np.isnan(own).all()
    both = [similarities(E, y, np.full(len(y), k), c, s)[0] for k in (0, 1)]
    np.testing.assert_allclose(cross, np.mean(both, axis=0))


@pytest.mark.parametrize("P", [1, 3])
def test_sums_block_by_block(P):
    E, y, d = rows(3, n=500)
    w = np.random.default_rng(1).uniform(0, 3, len(y))
    kwargs = {"n_prototypes": P, "random_state": 0}
    whole, shares = class_domain_prototypes(E, y, d, n_classes=3, n_domains=3, sample_weight=w, **kwargs)
    asked = []
    cluster = cluster_cells(lambda i: asked.append(len(i)) or E[i], y, d, w, **kwargs)
    assert sorted(asked) == sorted(np.bincount(d * 3 + y))  # a class of a domain at a time
    sums = PrototypeSums(3, 3, P, E.shape[1])
    for start in range(0, 500, 60):
        part = slice(start, start + 60)
        sums.add(E[part], y[part], d[part], w[part], cluster[part])
    c, s = sums.prototypes()
    np.testing.assert_allclose(c, whole, atol=1e-12)
    np.testing.assert_allclose(s, shares, atol=1e-12)
