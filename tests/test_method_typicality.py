"""Prototypes, similarities and typicality: the equations of section 3.2, by tests/reference.py; and in chunks as at once."""

import numpy as np
import pytest
import reference

from skmft._engine import inference
from skmft._engine.cache import float_rows
from skmft._method import typicality as stage_1
from skmft._method.typicality import PrototypeSums, cluster_rows, similarities, typicality


def rows(n_domains, n_classes=3, n=60, missing=False, seed=0):
    rng = np.random.default_rng(seed)
    y, d = rng.integers(n_classes, size=n), rng.integers(n_domains, size=n)
    y[: n_domains * n_classes] = np.arange(n_domains * n_classes) % n_classes
    d[: n_domains * n_classes] = np.arange(n_domains * n_classes) // n_classes
    if missing:  # the last domain lacks class 0
        y[(d == n_domains - 1) & (y == 0)] = 1
    E = rng.normal(size=(n, 8)) + 2 * rng.normal(size=(n_classes, 8))[y] + rng.normal(size=(n_domains, 8))[d]
    return E.astype(np.float32), y, d


def prototypes(E, y, d, w=None, P=1):
    """Of all rows at once, with their shares."""
    w = np.ones(len(y)) if w is None else w
    sums = PrototypeSums(d.max() + 1, y.max() + 1, P, E.shape[1])
    sums.add(E, y, d, w, cluster_rows(E, y, d, w, P, 0) if P > 1 else 0)
    return sums.prototypes()


def ours(E, y, d, w, P, a):
    c, s = prototypes(E, y, d, w, P)
    own, cross = similarities(E, y, d, c, s)
    return typicality(own, cross, a), c, s, own, cross


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_one_prototype_agrees_with_reference(K, missing, a, weighted):
    E, y, d = rows(K, missing=missing)
    w = np.random.default_rng(1).uniform(0.1, 3, len(y)) if weighted else np.ones(len(y))
    t, c, _, _, cross = ours(E, y, d, w, 1, a)
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
    t, c, s, _, _ = ours(E, y, d, w, 3, 0.5)
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
    _, s = prototypes(E, np.zeros(3, dtype=int), np.zeros(3, dtype=int), P=5)
    np.testing.assert_allclose(np.sort(s[0, 0]), [0, 0, 0, 1 / 3, 2 / 3])


def test_rows_of_weight_zero_leave_prototypes_alone():
    E, y, d = rows(2)
    w = np.ones(len(y))
    w[40:] = 0
    (a, _), (b, _) = prototypes(E, y, d, w), prototypes(E[:40], y[:40], d[:40])
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_unknown_domain_is_foreign_everywhere():
    E, y, d = rows(2)
    c, s = prototypes(E, y, d)
    own, cross = similarities(E, y, np.full(len(y), -1), c, s)
    assert np.isnan(own).all()
    both = [similarities(E, y, np.full(len(y), k), c, s)[0] for k in (0, 1)]
    np.testing.assert_allclose(cross, np.mean(both, axis=0))


@pytest.mark.parametrize("P", [1, 3])
def test_sums_block_by_block(P):
    E, y, d = rows(3, n=500)
    w = np.random.default_rng(1).uniform(0, 3, len(y))
    whole, shares = prototypes(E, y, d, w, P)
    cluster = cluster_rows(E, y, d, w, P, 0)
    sums = PrototypeSums(3, 3, P, E.shape[1])
    for start in range(0, 500, 60):
        part = slice(start, start + 60)
        sums.add(E[part], y[part], d[part], w[part], cluster[part])
    c, s = sums.prototypes()
    np.testing.assert_allclose(c, whole, atol=1e-12)
    np.testing.assert_allclose(s, shares, atol=1e-12)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 7)
    made = []
    monkeypatch.setattr(stage_1, "float_rows", lambda *shape: made.append(float_rows(*shape, 0)) or made[-1])
    return made  # in files, however few rows


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("n_prototypes", [1, 3])
def test_chunks_change_nothing(make, data, n_prototypes, memory, tmp_path, request):
    X, y, d = data
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    weight[5:30:6] = 0
    params = {"meta_epochs": 1, "adaptation": None, "n_prototypes": n_prototypes}
    whole = make(**params).fit(X, y, d, weight)
    expected = whole.typicality(X, y, d)
    made = request.getfixturevalue("small_chunks")
    for _ in range(2 if memory else 1):
        clf = make(**params, memory=tmp_path if memory else None).fit(X, y, d, weight)
        for name in ("own_similarity_", "cross_similarity_", "typicality_", "prototype_shares_", "prototypes_"):
            np.testing.assert_allclose(getattr(clf, name), getattr(whole, name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(clf.typicality(X, y, d), expected, atol=1e-6)
        np.testing.assert_allclose(clf.predict_proba(X, d), whole.predict_proba(X, d), atol=1e-4)
    assert [(type(E), len(E)) for E in made] == [(np.memmap, (weight > 0).sum())] * (2 if memory else 1)


@pytest.mark.parametrize("n_prototypes", [1, 3])
def test_rows_of_weight_zero_change_no_chunk_of_the_others(make, data, small_chunks, n_prototypes):
    X, y, d = data
    params = {"meta_epochs": 1, "adaptation": None, "n_prototypes": n_prototypes}
    used = np.arange(len(X)) % 3 > 0
    clf = make(**params).fit(X, y, d, used.astype(float))
    alone = make(**params).fit([x for x, u in zip(X, used) if u], y[used], d[used])
    np.testing.assert_array_equal(clf.typicality_[used], alone.typicality_)
    np.testing.assert_array_equal(clf.prototypes_, alone.prototypes_)
    assert np.isfinite(clf.typicality_).all()
