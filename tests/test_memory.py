"""`memory=`: tokens and stage-1 embeddings are computed once a text, and are the ones that would be computed anew."""

import gc
import multiprocessing
import os
import shutil
import sqlite3
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from conftest import make_texts
from safetensors.torch import load_file, save_file
from sklearn.model_selection import GridSearchCV

from skmft import MetaFineTunedClassifier
from skmft._engine.cache import RowStore
from skmft._engine.encoder import find_encoder, load_tokenizer, tokenizer_fingerprint
from skmft._engine.inference import embed
from skmft._engine.tokens import encode, tokenize

GRID = {"corruption_weight": [0, 1]}
FITS = 5  # of a search: candidates x 2 folds, and the best on all rows
PLACES = {
    "encode": ("skmft._engine.tokens.encode",),
    "embed": ("skmft._engine.inference.embed",),
}


@contextmanager
def noted(note):
    """Call ``note(kind, items)`` with the texts that the tokenizer gets, and the rows that the pre-trained encoder does."""

    def noting_encode(tokenizer, texts, *args, **kwargs):
        note("tokenized", list(texts))
        return encode(tokenizer, texts, *args, **kwargs)

    def noting_embed(encoder, tokens, *args, **kwargs):
        note("embedded", list(range(len(tokens))))
        return embed(encoder, tokens, *args, **kwargs)

    with ExitStack() as stack:
        for place in PLACES["encode"]:
            stack.enter_context(mock.patch(place, noting_encode))
        for place in PLACES["embed"]:
            stack.enter_context(mock.patch(place, noting_embed))
        yield


@pytest.fixture
def counted():
    """What the tokenizer and the pre-trained encoder really get."""
    counts = {"tokenized": [], "embedded": []}
    with noted(lambda kind, items: counts[kind].extend(items)):
        yield counts


def rows_in(folder, kind):
    total = 0
    for path in Path(folder).rglob(f"{kind}-*.sqlite"):
        with sqlite3.connect(path) as db:
            total += db.execute("SELECT count(*) FROM arrays").fetchone()[0]
        db.close()
    return total


def search(clf, data, **params):
    X, y, d = data
    with sklearn.config_context(enable_metadata_routing=True):
        return GridSearchCV(clf, GRID, cv=2, error_score="raise", **params).fit(X, y, domains=d)


def test_each_text_once_in_a_search(make, data, tmp_path, counted):
    X = data[0]
    clf = make(meta_epochs=1, adaptation=None, memory=tmp_path)
    first = search(clf, data)
    assert sorted(counted["tokenized"]) == sorted(set(X))
    assert len(counted["embedded"]) == len(set(X)) == rows_in(tmp_path, "embeddings") == rows_in(tmp_path, "tokens")
    again = search(clf, data)  # another run finds everything
    assert len(counted["tokenized"]) == len(counted["embedded"]) == len(set(X))
    np.testing.assert_array_equal(first.cv_results_["mean_test_score"], again.cv_results_["mean_test_score"])
    without = search(make(meta_epochs=1, adaptation=None), data)
    assert len(counted["tokenized"]) == len(set(X)) + FITS * len(X)
    np.testing.assert_allclose(first.cv_results_["mean_test_score"], without.cv_results_["mean_test_score"])


def noting(log, processes=1):
    """A classifier that, in whatever process it is, notes in a file what the tokenizer and the pre-trained encoder get.

    A class of this function's own travels to the processes by value, and patches the library there. Fits wait until so many
    processes have begun one, each by a file beside the log: on a busy machine the first could do them all.
    """

    class Noting(MetaFineTunedClassifier):
        def fit(self, X, y, domains=None, sample_weight=None):
            Path(f"{log}.{os.getpid()}").touch()
            until = time.monotonic() + 60
            while len(list(log.parent.glob(f"{log.name}.*"))) < processes and time.monotonic() < until:
                time.sleep(0.01)
            with noted(write):
                return super().fit(X, y, domains, sample_weight)

        def _logits(self, X, domains):
            with noted(write):
                return super()._logits(X, domains)

    def write(kind, items):
        with open(log, "a") as file:
            file.writelines(f"{os.getpid()}\t{kind}\t{item}\n" for item in items)

    return Noting


@pytest.mark.slow
def test_each_text_once_in_two_processes(make, data, tmp_path):
    log, memory = tmp_path / "log", tmp_path / "memory"
    clf = noting(log, processes=2)(**make(meta_epochs=1, adaptation=None, memory=str(memory)).get_params())
    search(clf, data, n_jobs=2)
    _, kinds, items = zip(*(line.split("\t") for line in log.read_text().splitlines()))
    assert len({p.name for p in tmp_path.glob("log.*")} - {f"log.{os.getpid()}"}) == 2
    assert sorted(i for i, kind in zip(items, kinds) if kind == "tokenized") == sorted(set(data[0]))
    assert kinds.count("embedded") == len(set(data[0]))
    assert rows_in(memory, "tokens") == rows_in(memory, "embeddings") == len(set(data[0]))
    log.unlink()
    search(clf, data)
    assert not log.exists()


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
    assert not list(tmp_path.rglob("*.sqlite"))


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
        {"max_length": 16},
        {"pooling": "cls"},
        {"precision": "bfloat16"},
        {"model": tiny_models["mpnet"]},
    ]
    for number, changes in enumerate(settings, start=1):
        make(meta_epochs=1, adaptation=None, memory=tmp_path, **changes).fit(X, y, domains=d)
        assert len(counted["embedded"]) == number * len(set(X)), changes
    for changes in ({"corruption_weight": 1}, {"typicality_balance": 0.1}, {"batch_size": 7}, {"random_state": 5}):
        make(meta_epochs=1, adaptation=None, memory=tmp_path, **changes).fit(X, y, domains=d)
    assert len(counted["embedded"]) == len(settings) * len(set(X))
    assert len(counted["tokenized"]) == 3 * len(set(X))  # length and model alone


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
    assert len(counted["embedded"]) == 2 * len(set(X)) and not np.allclose(before, after)


def test_another_tokenizer_has_other_tokens(tiny):
    tokenizer = load_tokenizer(find_encoder(tiny), 32)
    before = tokenizer_fingerprint(tokenizer)
    tokenize(tokenizer, ["good"], 8, False)  # sets a truncation
    assert tokenizer_fingerprint(tokenizer) == before
    assert before == tokenizer_fingerprint(load_tokenizer(find_encoder(tiny), 32))
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_fingerprint(tokenizer) != before


def test_a_search_draws_prototypes_from_its_own_rows(make, data, tmp_path):
    X, y, d = data
    whole = make(meta_epochs=1, adaptation=None, memory=tmp_path).fit(X, y, domains=d)
    half = make(meta_epochs=1, adaptation=None, memory=tmp_path).fit(X[:24], y[:24], domains=d[:24])
    expected = make(meta_epochs=1, adaptation=None).fit(X[:24], y[:24], domains=d[:24])
    np.testing.assert_allclose(half.prototypes_, expected.prototypes_, atol=1e-6)
    assert np.abs(half.prototypes_ - whole.prototypes_).max() > 1e-3


def work(folder, number):
    def compute(rows):
        time.sleep(0.05)
        with open(Path(folder) / f"log{number}", "a") as log:
            log.writelines(f"{i}\n" for i in rows)
        return [np.arange(i) for i in rows]

    for start in range(0, 60, 10):
        keys = [bytes([i]) for i in range(60)]
        positions = list(range(start + 30)) if start + 30 <= 60 else list(range(60))
        arrays = RowStore(str(folder), "numbers").get(
            [keys[i] for i in positions],
            lambda rows, positions=positions: compute([positions[r] for r in rows]),
            np.int64,
        )
        assert all(np.array_equal(a, np.arange(i)) for a, i in zip(arrays, positions))


@pytest.mark.slow
def test_processes_compute_each_row_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(str(tmp_path), n)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 2
    done = [int(line) for log in tmp_path.glob("log*") for line in log.read_text().split()]
    assert sorted(done) == list(range(60))


def test_a_failure_keeps_nothing_and_blocks_nobody(tmp_path):
    store = RowStore(tmp_path, "numbers")
    with pytest.raises(ZeroDivisionError):
        store.get([b"a"], lambda rows: 1 / 0, np.int64)
    [array] = store.get([b"a"], lambda rows: [np.array([7])], np.int64)
    assert array.tolist() == [7]
    twice = store.get([b"b", b"a", b"b"], lambda rows: [np.array([int(r)]) for r in rows], np.int64)
    assert [a.tolist() for a in twice] == [[0], [7], [0]]
    assert [a.tolist() for a in RowStore(None, "numbers").get([b"b"], lambda rows: [rows + 1], np.int64)] == [[1]]


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
