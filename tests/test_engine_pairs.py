"""pair_encoding="bi": the texts of a pair are encoded apart, checked against the encoder on single texts."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_texts

from skmft import MetaFineTunedClassifier
from skmft._engine.encoder import find_encoder, load_encoder
from skmft.baselines import MixedDomainClassifier, MultiTaskClassifier


@pytest.fixture(scope="module")
def pairs():
    """Pairs of texts of unequal lengths, the class in the second one; labels and domains."""
    X, y, d = make_texts(48)
    firsts = make_texts(48, seed=5)[0]
    return [(f"{a} and {a}" if i % 3 else a, b) for i, (a, b) in enumerate(zip(firsts, X))], y, d


def make(model, **params):
    settings = {
        "meta_epochs": 4,
        "adaptation_epochs": 2,
        "learning_rate": 3e-3,
        "batch_size": 16,
        "precision": "float32",
        "random_state": 0,
    }
    return MetaFineTunedClassifier(model, pair_encoding="bi", **{**settings, **params})


def embeddings_one_by_one(clf, encoder, pairs):
    """[u, v, |u - v|], text by text, no batch and no padding, by numpy in float64."""
    rows = []
    for pair in pairs:
        vectors = []
        for text in pair:
            ids = clf.tokenizer_(text, truncation=True, max_length=clf.max_length, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                hidden = (
                    encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].double().numpy()
                )
            vectors.append(hidden[0] if clf.pooling == "cls" else hidden.mean(axis=0))
        u, v = vectors
        rows.append(np.concatenate([u, v, np.abs(u - v)]))
    return np.array(rows)


@pytest.mark.parametrize("family", [f if f == "bert" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_those_of_the_texts_alone(tiny_models, pairs, family, pooling):
    X, y, d = pairs
    X = [*X, ("", "good " * 200), ("knife", "")]
    y, d = [*y, y[0], y[1]], [*d, d[0], d[1]]
    clf = make(tiny_models[family], pooling=pooling, adaptation=None, meta_epochs=1, max_length=24).fit(X, y, domains=d)
    assert clf.transform(X).shape == (len(X), 3 * 32) == (len(X), len(clf.get_feature_names_out()))
    np.testing.assert_allclose(
        clf.transform(X), embeddings_one_by_one(clf, clf.meta_learner_.encoder, X), rtol=1e-4, atol=2e-5
    )
    pretrained = embeddings_one_by_one(clf, load_encoder(find_encoder(tiny_models[family])), X)
    cell = (np.array(y) == clf.classes_[0]) & (np.array(d) == clf.domains_[0])
    np.testing.assert_allclose(clf.prototypes_[0, 0], pretrained[cell].mean(axis=0), rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("adaptation", ["full", "lora", pytest.param("head", marks=pytest.mark.slow)])
def test_pairs_are_learned_kept_and_predicted_in_mixed_batches(tiny, pairs, adaptation, tmp_path):
    X, y, d = pairs
    clf = make(tiny, adaptation=adaptation).fit(X, y, domains=d)
    assert clf.score(X, y, domains=d) > 0.9
    logits = clf.decision_function(X, domains=d)
    alone = np.concatenate([clf.decision_function([x], domains=[k]) for x, k in zip(X, d)])
    np.testing.assert_allclose(logits, alone, rtol=1e-3, atol=1e-4)
    assert not np.allclose(logits, clf.decision_function(X))
    clf.save(tmp_path / "model")
    again = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(X, domains=d), logits)
    np.testing.assert_array_equal(again.transform(X), clf.transform(X))


def test_single_texts_do_not_depend_on_it(tiny, data):
    X, y, d = data
    clf, other = (
        make(tiny, meta_epochs=1, adaptation="head").set_params(pair_encoding=p).fit(X, y, domains=d)
        for p in ("bi", "cross")
    )
    np.testing.assert_array_equal(clf.decision_function(X, domains=d), other.decision_function(X, domains=d))


def test_a_memory_keeps_both_forms_apart(tiny, pairs, tmp_path):
    X, y, d = pairs
    for form in ("cross", "bi", "cross"):
        kept, fresh = (
            make(tiny, adaptation=None, meta_epochs=1, memory=m).set_params(pair_encoding=form).fit(X, y, domains=d)
            for m in (str(tmp_path), None)
        )
        np.testing.assert_allclose(kept.typicality_, fresh.typicality_, atol=1e-6)
        np.testing.assert_allclose(kept.decision_function(X), fresh.decision_function(X), rtol=1e-3, atol=1e-4)


def test_baselines_take_it_too(tiny, pairs):
    X, y, d = pairs
    settings = {"epochs": 2, "learning_rate": 3e-3, "precision": "float32", "random_state": 0}
    mixed = MixedDomainClassifier(tiny, pair_encoding="bi", **settings).fit(X, y, domains=d)
    assert mixed.meta_learner_.label_head.in_features == 3 * 32
    same = make(
        tiny,
        head_init="random",
        contrastive_weight=0.0,
        typicality_weighting=False,
        corruption_weight=0.0,
        adaptation=None,
        meta_epochs=2,
        batch_size=32,
    ).fit(X, y, domains=d)
    np.testing.assert_array_equal(mixed.decision_function(X), same.decision_function(X))
    MultiTaskClassifier(tiny, pair_encoding="bi", **settings).fit(X, y, domains=d).predict(X, domains=d)


@pytest.mark.slow
def test_onnx_takes_two_texts_a_row(tiny, pairs, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    X, y, d = pairs
    clf = make(tiny, max_length=20, meta_epochs=1).fit(X, y, domains=d)
    names = clf.to_onnx(tmp_path / "model.onnx", "books")
    X = [*X, ("good " * 60, "bad " * 60)]  # a row of twice max_length
    tokens, _ = clf._tokenize(X)
    batch = tokens.batch(np.arange(len(X)))
    assert batch["input_ids"].shape[1] == 2 * 20
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {name: batch[name].numpy() for name in names})
    np.testing.assert_allclose(
        logits[:, 1] - logits[:, 0], clf.decision_function(X, domains="books"), rtol=1e-3, atol=1e-4
    )


def test_sentence_transformer_embeds_the_single_texts(tiny, pairs):
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    X, y, d = pairs
    clf = make(tiny, meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    encoder = clf.to_sentence_transformer()
    for column, place in enumerate((slice(0, 32), slice(32, 64))):
        found = encoder.encode([pair[column] for pair in X], show_progress_bar=False)
        np.testing.assert_allclose(found, clf.transform(X)[:, place], atol=1e-5)


def test_auto_depends_on_the_number_of_rows(tiny, pairs, monkeypatch):
    X, y, d = pairs
    few = make(tiny, adaptation=None, meta_epochs=1).set_params(pair_encoding="auto").fit(X, y, domains=d)
    assert few.pair_encoding_ == "bi" and few.transform(X).shape[1] == 3 * 32
    monkeypatch.setattr("skmft._base.MOST_PAIRS_BI", len(X) - 1)
    many = make(tiny, adaptation=None, meta_epochs=1).set_params(pair_encoding="auto").fit(X, y, domains=d)
    assert many.pair_encoding_ == "cross" and many.transform(X).shape[1] == 32
    weight = np.arange(len(X)) % 3 > 0  # rows of weight 0 do not count
    half = make(tiny, adaptation=None, meta_epochs=1).set_params(pair_encoding="auto")
    assert half.fit(X, y, domains=d, sample_weight=weight).pair_encoding_ == "bi"
    texts = make(tiny, adaptation=None, meta_epochs=1).fit([a for a, _ in X], y, domains=d)
    assert texts.pair_encoding_ is None
