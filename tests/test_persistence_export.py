"""What is exported answers as the estimator does, in a process that knows nothing of skmft."""

import builtins
import copy
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_texts

from skmft import MetaFineTunedClassifier
from skmft._engine.model import with_tensors
from skmft.baselines import SingleDomainClassifier

DOMAINS = (None, "books", "kitchen", "music")


@pytest.fixture(scope="module", params=[("bert", "mean"), ("roberta", "cls")], ids="-".join)
def exported(request, tiny_models):
    """An estimator in float32, fitted on two domains and adapted to a third."""
    family, pooling = request.param
    X, y, d = make_texts(48)
    clf = MetaFineTunedClassifier(
        tiny_models[family],
        pooling=pooling,
        meta_epochs=3,
        adaptation_epochs=2,
        learning_rate=3e-3,
        adaptation_learning_rate=None,
        batch_size=16,
        precision="float32",
        random_state=0,
    ).fit(X, y, domains=d)
    return clf.adapt(*make_texts(16, seed=3)[:2], "music")


X = [*make_texts(20, seed=7)[0], "", "good " * 200, "knife"]  # of mixed lengths


def elsewhere(code, *args):
    """Run code in another process, with X and paths as JSON; what it prints is JSON."""
    code = (
        f"import json, sys, warnings\nwarnings.simplefilter('ignore')\nX, args = json.loads(sys.stdin.read())\n{code}"
    )
    code += "\nassert 'skmft' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([X, args]), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def logits(clf, domain, texts=X):
    return clf._logits(texts, domain)


def recipe(clf, names, *texts):
    """As the docstring of `to_onnx` has it."""
    return clf.tokenizer_(
        *texts,
        padding=True,
        truncation=True,
        max_length=clf.max_length,
        return_token_type_ids="token_type_ids" in names,
        return_tensors="np",
    )


@pytest.mark.slow
def test_sentence_transformer(exported, tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    for i, domain in enumerate(DOMAINS):
        exported.to_sentence_transformer(domain).save(str(tmp_path / str(i)))
    code = """
from sentence_transformers import SentenceTransformer
out = []
for i in range(4):
    model = SentenceTransformer(f"{args[0]}/{i}", device="cpu")
    assert [type(m).__name__ for m in model] == ["Transformer", "Pooling"]
    out.append([model.encode(X, batch_size=b).tolist() for b in (1, 8)])
print(json.dumps(out))
"""
    found = elsewhere(code, str(tmp_path))
    for domain, both in zip(DOMAINS, found):
        expected = embeddings(exported, domain)
        for encoded in both:
            np.testing.assert_allclose(encoded, expected, atol=1e-5)
    assert np.abs(np.array(found[1][0]) - found[0][0]).max() > 1e-4  # a domain's encoder is its own


@pytest.mark.parametrize("domain", [None, "music"])
def test_sentence_transformer_in_this_process(later, domain):
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    model = later.to_sentence_transformer(domain)
    assert [type(m).__name__ for m in model] == ["Transformer", "Pooling"] and model.device.type == "cpu"
    np.testing.assert_allclose(model.encode(X), embeddings(later, domain), atol=1e-5)


def embeddings(clf, domain):
    """`transform` of an estimator whose meta-learner is a domain's model."""
    clf = copy.copy(clf)
    if domain is not None:
        clf.meta_learner_ = with_tensors(clf.meta_learner_, clf.adapted_weights_[domain])
    return clf.transform(X)


@pytest.mark.slow
def test_onnx(exported, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra skmft[onnx]")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    domains = (None, "kitchen")
    for i, domain in enumerate(domains):
        names = exported.to_onnx(tmp_path / f"{i}.onnx", domain)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0.onnx", "1.onnx"]
    batches = [X[:1], X[1:9], X[9:]]
    inputs = []
    for texts in batches:
        encoded = recipe(exported, names, texts)
        inputs.append({name: encoded[name].tolist() for name in names})
    code = """
import numpy as np
import onnxruntime
out = []
for i in range(2):
    session = onnxruntime.InferenceSession(f"{args[0]}/{i}.onnx")
    out.append([])
    for batch in args[1]:
        out[-1] += session.run(["logits"], {n: np.array(v, dtype=np.int64) for n, v in batch.items()})[0].tolist()
print(json.dumps(out))
"""
    for domain, found in zip(domains, elsewhere(code, str(tmp_path), inputs)):
        np.testing.assert_allclose(found, logits(exported, domain), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "deberta-v3", "mpnet", "modernbert"])
def test_other_families(make, tiny_models, family, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    texts, y, d = make_texts(24)
    clf = make(model=tiny_models[family], pooling="cls", meta_epochs=1, adaptation=None).fit(texts, y, domains=d)
    names = clf.to_onnx(tmp_path / "model.onnx")
    encoded = recipe(clf, names, X)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {n: encoded[n] for n in names})
    np.testing.assert_allclose(found, logits(clf, None), atol=1e-4)


@pytest.mark.slow
def test_exports_leave_the_estimator_and_the_generators_alone(fitted, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra skmft[onnx]")
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    before, answers = copy.deepcopy(fitted.meta_learner_.state_dict()), fitted.predict_proba(X)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    for export in (lambda: fitted.to_onnx(tmp_path / "m.onnx"), lambda: fitted.to_sentence_transformer("books")):
        export()
        assert torch.equal(torch.get_rng_state(), state), export
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    after = fitted.meta_learner_.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[n], t) for n, t in after.items())
    np.testing.assert_array_equal(fitted.predict_proba(X), answers)


@pytest.mark.slow
def test_pairs_to_onnx(make, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    texts, y, d = make_texts(24)
    pairs = pd.DataFrame({"a": texts, "b": texts[::-1]})
    clf = make(meta_epochs=1, adaptation=None, pair_encoding="cross").fit(pairs, y, domains=d)
    names = clf.to_onnx(tmp_path / "model.onnx")
    clf.to_onnx(tmp_path / "new" / "folder" / "model.onnx")
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    encoded = recipe(clf, names, texts, texts[::-1])
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {n: encoded[n] for n in names})
    np.testing.assert_allclose(found, logits(clf, None, pairs), atol=1e-4)


def test_errors(fitted, make, monkeypatch, tmp_path):
    for call in (
        fitted.to_sentence_transformer,
        lambda domain: fitted.to_onnx(tmp_path / "m", domain),
    ):
        with pytest.raises(
            ValueError, match=r"domain='garden' has no adapted model \(adapted: \['books', 'kitchen'\]\)"
        ):
            call("garden")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("onnx", "onnxscript", "sentence_transformers"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("skmft._engine.encoder.import_module", without)
    with pytest.raises(ImportError, match=r"needs the package 'onnxscript': pip install 'skmft\[onnx\]'"):
        fitted.to_onnx(tmp_path / "m")
    with pytest.raises(ImportError, match=r"pip install 'skmft\[sentence-transformers\]'"):
        fitted.to_sentence_transformer()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_low_rank_adapters_are_merged(make, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    texts, y, d = make_texts(48)
    clf = make(adaptation="lora", adaptation_learning_rate=2e-2, pooling="cls").fit(texts, y, domains=d)
    expected = logits(clf, "books")
    assert np.abs(expected - logits(clf, None)).max() > 0.05
    names = clf.to_onnx(tmp_path / "model.onnx", "books")
    encoded = recipe(clf, names, X)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {n: encoded[n] for n in names})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    embeddings = torch.as_tensor(clf.to_sentence_transformer("books").encode(X))
    head = clf.adapted_weights_["books"]
    found = embeddings @ head["label_head.weight"].T + head["label_head.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not [n for n in clf.to_sentence_transformer("books").state_dict() if "lora" in n]


@pytest.mark.slow
@pytest.mark.parametrize("max_length", [2, 6])
def test_exports_cut_as_the_estimator_does(make, max_length, tmp_path):
    """None of them is told `max_length`; and the tokenizer of the tiny BERT gives no token types unless it is asked."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    texts, y, d = make_texts(24)
    clf = make(max_length=max_length, pooling="cls", meta_epochs=1, adaptation=None).fit(texts, y, domains=d)
    assert "token_type_ids" not in clf.tokenizer_.model_input_names
    expected = logits(clf, None)
    names = clf.to_onnx(tmp_path / "model.onnx")
    encoded = recipe(clf, names, X)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {n: encoded[n] for n in names})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    encoder = clf.to_sentence_transformer()
    assert encoder.max_seq_length == max_length
    np.testing.assert_allclose(encoder.encode(X), clf.transform(X), atol=1e-5)
    assert clf.tokenizer_.model_max_length == 128 and "token_type_ids" not in clf.tokenizer_.model_input_names


@pytest.mark.slow
def test_exports_of_pairs_tell_the_two_texts_apart(make, tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the extra skmft[sentence-transformers]")
    texts, y, d = make_texts(24)
    pairs = list(zip(texts, texts[::-1]))
    clf = make(max_length=12, pooling="cls", meta_epochs=1, adaptation=None, pair_encoding="cross")
    clf.fit(pairs, y, domains=d)
    clf.to_sentence_transformer().save(str(tmp_path / "encoder"))
    code = """
from sentence_transformers import SentenceTransformer
pairs, folder = args
print(json.dumps(SentenceTransformer(f"{folder}/encoder", device="cpu").encode([tuple(p) for p in pairs]).tolist()))
"""
    np.testing.assert_allclose(elsewhere(code, pairs, str(tmp_path)), clf.transform(pairs), atol=1e-5)


@pytest.mark.slow
def test_short_texts_of_pairs_to_onnx(make, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    texts, y, d = make_texts(24)
    pairs = list(zip(texts, [*texts[1:], ""]))
    clf = make(max_length=3, meta_epochs=1, adaptation=None, pair_encoding="bi").fit(pairs, y, domains=d)
    names = clf.to_onnx(tmp_path / "model.onnx")
    batch = clf._tokenize(pairs)[0].batch(np.arange(len(pairs)))
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {name: batch[name].numpy() for name in names})
    np.testing.assert_allclose(found, logits(clf, None, pairs), atol=1e-4)


def test_settings_that_the_model_does_not_have_are_refused(fitted, tmp_path):
    clf = copy.copy(fitted).set_params(pooling="cls")
    for export in (clf.to_sentence_transformer, lambda: clf.to_onnx(tmp_path / "m"), lambda: clf.save(tmp_path / "m")):
        with pytest.raises(ValueError, match="pooling='cls' was set after fit"):
            export()
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_onnx_of_a_baseline(tiny, data, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    texts, y, d = data
    clf = SingleDomainClassifier(tiny, epochs=2, precision="float32", random_state=0).fit(texts, y, domains=d)
    names = clf.to_onnx(tmp_path / "model.onnx", "kitchen")
    encoded = recipe(clf, names, X)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(["logits"], {n: encoded[n] for n in names})
    np.testing.assert_allclose(found[:, 1] - found[:, 0], clf.decision_function(X, "kitchen"), atol=1e-4)
