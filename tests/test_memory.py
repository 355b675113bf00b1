"""`memory=`: stage-1 embeddings are computed once, and are the ones that would be computed anew."""

import gc
import shutil

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from conftest import make_texts
from safetensors.torch import load_file, save_file
from sklearn.model_selection import GridSearchCV

from skmft._engine.inference import embed

GRID = {"corruption_weight": [0, 1]}
FITS = 5  # of a search: candidates x 2 folds, and the best on all rows


@pytest.fixture
def counted(monkeypatch):
    """Rows that the pre-trained encoder really embeds, a number for each call."""
    counts = []

    def noting(encoder, tokens, *args):
        counts.append(len(tokens))
        return embed(encoder, tokens, *args)

    monkeypatch.setattr("skmft._engine.inference.embed", noting)
    return counts


def search(clf, data, **params):
    X, y, d = data
    with sklearn.config_context(enable_metadata_routing=True):
        return GridSearchCV(clf, GRID, cv=2, error_score="raise", **params).fit(X, y, domains=d)


def test_each_fold_once_in_a_search(make, data, tmp_path, counted):
    X = data[0]
    clf = make(meta_epochs=1, adaptation=None, memory=tmp_path)
    first = search(clf, data)
    assert sorted(counted) == [len(X) // 2, len(X) // 2, len(X)]  # two folds, and the best on all rows
    again = search(clf, data)  # another run finds everything
    assert len(counted) == 3
    np.testing.assert_array_equal(first.cv_results_["mean_test_score"], again.cv_results_["mean_test_score"])
    without = search(make(meta_epochs=1, adaptation=None), data)
    assert len(counted) == 3 + FITS
    np.testing.assert_allclose(first.cv_results_["mean_test_score"], without.cv_results_["mean_test_score"])
    assert search(clf, data, n_jobs=2).best_score_ == first.best_score_


def test_the_same_model_with_and_without(make, data, tmp_path):
    X, y, d = data
    plain = make(corruption_weight=1, meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    for _ in range(2):  # filled, then read
        memory = joblib.Memory(tmp_path, verbose=0)
        kept = make(corruption_weight=1, meta_epochs=1, adaptation=None, memory=memory).fit(X, y, domains=d)
        np.testing.assert_allclose(kept.typicality_, plain.typicality_, atol=1e-6)
        np.testing.assert_allclose(kept.predict_proba(X, d), plain.predict_proba(X, d), atol=1e-4)
        np.testing.assert_allclose(kept.typicality(X, y, d), plain.typicality_, atol=1e-6)
    joblib.Memory(tmp_path, verbose=0).clear(warn=False)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("token_types", [True, False])
def test_pairs_and_token_types(make, tiny_models, tmp_path, token_types):
    X, y, d = make_texts(24)
    pairs = pd.DataFrame({"a": X, "b": X[::-1]})
    model = tiny_models["bert" if token_types else "roberta"]
    quick = {"model": model, "meta_epochs": 1, "adaptation": None}
    plain = make(**quick).fit(pairs, y, domains=d)
    for _ in range(2):
        kept = make(**quick, memory=tmp_path).fit(pairs, y, domains=d)
        np.testing.assert_array_equal(kept.predict_proba(pairs, d), plain.predict_proba(pairs, d))
    single = make(**quick, memory=tmp_path).fit(X, y, domains=d)  # a text is no pair
    np.testing.assert_allclose(single.predict_proba(X, d), make(**quick).fit(X, y, d).predict_proba(X, d), atol=1e-5)


def test_what_the_arrays_depend_on(make, tiny_models, data, tmp_path, counted):
    X, y, d = data
    settings = [
        {},
        {"max_length": 6},  # shorter than the texts
        {"pooling": "cls"},
        {"precision": "bfloat16"},
        {"model": tiny_models["mpnet"]},
    ]
    for number, changes in enumerate(settings, start=1):
        make(meta_epochs=1, adaptation=None, memory=tmp_path, **changes).fit(X, y, domains=d)
        assert len(counted) == number, changes
    for changes in ({"corruption_weight": 1}, {"typicality_balance": 0.1}, {"batch_size": 7}, {"random_state": 5}):
        make(meta_epochs=1, adaptation=None, memory=tmp_path, **changes).fit(X, y, domains=d)
    assert len(counted) == len(settings)


def test_other_weights_in_the_same_folder(make, tiny, data, tmp_path, counted):
    """Of the same name, length and pooling: they are told by their hash."""
    X, y, d = data
    folder = shutil.copytree(tiny, tmp_path / "encoder")
    clf = make(model=str(folder), meta_epochs=1, adaptation=None, memory=tmp_path / "memory")
    before = clf.fit(X, y, domains=d).typicality_
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file({**weights, name: weights[name].flip(0).contiguous()}, folder / "model.safetensors", {"format": "pt"})
    after = clf.fit(X, y, domains=d).typicality_
    assert len(counted) == 2 and not np.allclose(before, after)


def test_a_search_draws_prototypes_from_its_own_rows(make, data, tmp_path):
    X, y, d = data
    whole = make(meta_epochs=1, adaptation=None, memory=tmp_path).fit(X, y, domains=d)
    half = make(meta_epochs=1, adaptation=None, memory=tmp_path).fit(X[:24], y[:24], domains=d[:24])
    expected = make(meta_epochs=1, adaptation=None).fit(X[:24], y[:24], domains=d[:24])
    np.testing.assert_allclose(half.prototypes_, expected.prototypes_, atol=1e-6)
    assert np.abs(half.prototypes_ - whole.prototypes_).max() > 1e-3


def live_tensors():
    """Bytes of every storage that a tensor alive in this process points to."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]  # no fake ones of exports
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}


def test_finished_candidates_hold_no_tensors(make, data):
    """After a search only the best estimator's tensors are left, on whatever device it ran."""
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    before = live_tensors()
    search = GridSearchCV(make(domain_column="domain", meta_epochs=1, adaptation_epochs=1), GRID, cv=2).fit(frame, y)
    best = search.best_estimator_
    own = [*best.meta_learner_.parameters(), *best.meta_learner_.buffers()]
    own += [t for tensors in best.adapted_weights_.values() for t in tensors.values()]
    allowed = {t.untyped_storage().data_ptr() for t in own}
    left = {p: n for p, n in live_tensors().items() if p not in before and p not in allowed}
    assert sum(left.values()) < 0.01 * sum(t.nbytes for t in own), left
    own.clear()
    del search, best
    assert sum(n for p, n in live_tensors().items() if p not in before) == 0
