"""Stage 1 in chunks gives what stage 1 at once gives."""

import numpy as np
import pytest

from skmft._engine import inference
from skmft._engine.cache import float_rows
from skmft._method import scoring


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(inference, "CHUNK_ROWS", 7)
    made = []
    monkeypatch.setattr(scoring, "float_rows", lambda *shape: made.append(float_rows(*shape, 0)) or made[-1])
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


def test_rows_of_weight_zero_change_no_chunk_of_the_others(make, data, small_chunks):
    X, y, d = data
    params = {"meta_epochs": 1, "adaptation": None}
    used = np.arange(len(X)) % 3 > 0
    clf = make(**params).fit(X, y, d, used.astype(float))
    alone = make(**params).fit([x for x, u in zip(X, used) if u], y[used], d[used])
    np.testing.assert_array_equal(clf.typicality_[used], alone.typicality_)
    np.testing.assert_array_equal(clf.prototypes_, alone.prototypes_)
    assert np.isfinite(clf.typicality_).all()
