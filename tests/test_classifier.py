"""MetaFineTunedClassifier: its parameters, and the paper's method from end to end."""

import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from conftest import make_texts, same, tensors
from refusals import refusal

from skmft import MetaFineTunedClassifier
from skmft._engine.encoder import find_encoder, load_encoder, load_tokenizer
from skmft.recipes import MetaFineTuning, Recipe

PARAMETERS = """
model learning_rate batch_size meta_epochs adaptation corruption_weight domain_column random_state
max_length pooling pair_encoding class_weight
recipe contrastive_weight typicality_weighting typicality_balance n_prototypes head_init weight_interpolation unknown_domain
adaptation_epochs adaptation_learning_rate lora_config optimizer_params callbacks
device precision memory distributed verbose
"""

# ---------------------------------------------------------------- parameters


def test_parameters_and_their_order():
    """Those that most people touch come first; to add one, take one out."""
    names = [name for name in inspect.signature(MetaFineTunedClassifier.__init__).parameters if name != "self"]
    assert names == PARAMETERS.split() and len(names) == 30
    kinds = [p.kind for p in inspect.signature(MetaFineTunedClassifier).parameters.values()]
    assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] + [inspect.Parameter.KEYWORD_ONLY] * 29


def test_docstring_has_every_parameter_and_its_default():
    section = MetaFineTunedClassifier.__doc__.split("Parameters\n")[1].split("Attributes\n")[0]
    signature = inspect.signature(MetaFineTunedClassifier).parameters
    stated = dict(re.findall(r"^    (\w+) : .*default=(.*)$", section, re.MULTILINE))
    assert list(stated) == list(signature)
    assert {name: eval(default) for name, default in stated.items()} == {n: p.default for n, p in signature.items()}


@pytest.mark.parametrize(
    "params",
    [
        {"contrastive_weight": -1},
        {"head_init": "zeros"},
        {"weight_interpolation": 0},
        {"weight_interpolation": 1.5},
        {"unknown_domain": "meta"},
        {"adaptation_learning_rate": "fast"},
        {"pair_encoding": "both"},
        {"recipe": Recipe},
        {"lora_config": "r=8"},
        {"optimizer_params": [0.1]},
        {"optimizer_params": {"weight_decay": -1}},
        {"optimizer_params": {"weight_decay": None}},
    ],
    ids=str,
)
def test_bad_parameters_are_named(make, data, params):  # more in test_parameters.py
    assert next(iter(params)) in refusal(make(**params), data)


def test_paths_devices_and_numpy_numbers_are_parameters_too(make, data, tiny, tmp_path):
    X, y, d = data
    params = {"adaptation": None, "meta_epochs": 1}
    expected = make(**params, max_length=32, optimizer_params={"warmup_ratio": 0.1}).fit(X, y, domains=d)
    given = {"model": Path(tiny), "memory": tmp_path, "device": torch.device("cpu"), "max_length": np.int64(32)}
    clf = make(**params, **given).fit(X, y, domains=d)
    np.testing.assert_allclose(clf.typicality_, expected.typicality_, atol=1e-6)
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(X), atol=1e-4)
    assert any(tmp_path.iterdir())


def test_optimizer_params_reach_the_optimiser(make, data):
    """Each of them changes what is learned, and named at its default it changes nothing."""
    X, y, d = data

    def fit(params):
        return make(optimizer_params=params, adaptation=None, meta_epochs=2, head_init="random").fit(X, y, domains=d)

    plain = fit(None)
    for name, (default, other) in {
        "weight_decay": (0.01, 10.0),
        "warmup_ratio": (0.1, 0.9),
        "max_grad_norm": (1.0, 1e-3),
    }.items():
        assert same(plain, fit({name: default})), name
        assert not same(plain, fit({name: other})), name
    assert not same(plain, fit({"max_grad_norm": None}))


def test_the_paper_s_recipe_has_no_extension(tiny, data):
    X, y, d = data
    clf = MetaFineTunedClassifier.from_paper(model=tiny, batch_size=48, random_state=0).fit(X, y, domains=d)
    assert set(clf.history_[1]) >= {"label_loss", "corruption_loss"} and "contrastive_loss" not in clf.history_[1]
    assert [h["epochs"] for h in clf.history_[1:]] == [2] * 2 + [6] * 12
    assert clf.get_params()["batch_size"] == 48 and clf.learning_rate == 1e-5
    assert MetaFineTunedClassifier.from_paper(corruption_weight=0.3).corruption_weight == 0.3
    with pytest.raises(TypeError, match="alpha"):
        MetaFineTunedClassifier.from_paper(alpha=1)


# ---------------------------------------------------------------- the method


def test_typicality_agrees_with_the_reference_end_to_end(fitted, data, tiny):
    X, y, d = data
    source = find_encoder(tiny)
    encoder, tokenizer = load_encoder(source), load_tokenizer(source, 128)
    E = []
    with torch.no_grad():
        for text in X:  # row by row, so without padding
            hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            E.append(hidden.double().mean(0).tolist())
    found = reference.prototypes(E, y.tolist(), d.tolist())
    expected = reference.typicality(E, y.tolist(), d.tolist(), found, 0.5)
    np.testing.assert_allclose(fitted.typicality_, expected, atol=1e-5)
    own, cross = fitted.own_similarity_, fitted.cross_similarity_
    np.testing.assert_allclose(fitted.typicality_, 0.5 * own + 0.5 * cross)
    assert fitted.prototypes_.shape == (2, 2, 32)
    for k, domain in enumerate(fitted.domains_):
        for m, label in enumerate(fitted.classes_):
            [(_, prototype)] = found[domain, label]
            np.testing.assert_allclose(fitted.prototypes_[k, m], prototype, atol=1e-5)


def test_several_prototypes(make, data):
    X, y, d = data
    clf = make(n_prototypes=3, adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    assert clf.prototypes_.shape == (2, 2, 3, 32)
    np.testing.assert_allclose(clf.prototype_shares_.sum(-1), 1)
    np.testing.assert_allclose(clf.typicality(X, y, d), clf.typicality_, atol=1e-6)


def test_typicality_weighting_changes_the_training_only_where_it_is_on(make, data):
    X, y, d = data
    on, off = (make(typicality_weighting=w, adaptation=None).fit(X, y, domains=d) for w in (True, False))
    assert not same(on, off)
    weighted = make(typicality_weighting=False, adaptation=None)
    weighted.fit(X, y, domains=d, sample_weight=np.clip(on.typicality_, 0, None))
    assert same(on, weighted)  # typicality is a weight like any other


def test_weight_zero_of_corruption_is_a_run_without_the_head(make, data):
    X, y, d = data
    params = {"contrastive_weight": 0, "adaptation": None, "meta_epochs": 2}
    without = make(corruption_weight=0, **params).fit(X, y, domains=d)
    assert not {"corruption_loss", "domain_accuracy"} & set(without.history_[-1])
    assert same(without, make(recipe=Recipe(), **{**params, "contrastive_weight": 0.5}).fit(X, y, domains=d))
    assert not same(without, make(corruption_weight=0.5, **params).fit(X, y, domains=d))


def test_heads_of_training_are_gone_afterwards(fitted):
    assert {name.split(".")[0] for name in tensors(fitted)} == {"encoder", "label_head"}
    assert not fitted.meta_learner_.heads and not fitted.meta_learner_.layers


def test_history(fitted):
    stages = [h["stage"] for h in fitted.history_]
    assert stages == ["typicality", *["meta"] * 4, *["adaptation"] * 4]
    meta = [h for h in fitted.history_ if h["stage"] == "meta"]
    wanted = {"stage", "epochs", "epoch", "label_loss", "corruption_loss", "contrastive_loss", "domain_accuracy"}
    assert wanted | {"corrupted_label_accuracy", "learning_rate", "seconds"} == set(meta[0])
    assert meta[-1]["label_loss"] < meta[0]["label_loss"]
    assert [h["domain"] for h in fitted.history_[5:]] == ["books"] * 2 + ["kitchen"] * 2
    assert len(pd.DataFrame(fitted.history_)) == 9


def test_auto_epochs_are_in_the_history(make, data):
    X, y, d = data
    clf = make(meta_epochs="auto", adaptation_epochs="auto", adaptation="head", batch_size=48).fit(X, y, domains=d)
    meta = [h for h in clf.history_ if h["stage"] == "meta"]
    assert len(meta) == meta[0]["epochs"] == 60  # one step an epoch
    assert [h["epochs"] for h in clf.history_ if h["stage"] == "adaptation"] == [4] * 4 * 2


def test_without_domains_there_is_a_warning_and_only_the_meta_learner(make, data):
    X, y, _ = data
    with pytest.warns(UserWarning, match="neither domain corruption nor adaptation"):
        clf = make().fit(X, y)
    assert clf.domains_.tolist() == ["all"]
    assert clf.adapted_domains_.tolist() == []
    assert np.isnan(clf.cross_similarity_).all()
    np.testing.assert_array_equal(clf.typicality_, clf.own_similarity_)
    assert clf.score(X, y) > 0.8


def test_one_domain(make, data):
    X, y, _ = data
    clf = make(meta_epochs=2).fit(X, y, domains="books")
    assert "corruption_loss" not in clf.history_[1]
    assert clf.adapted_domains_.tolist() == ["books"]
    balanced = make(typicality_balance=0.9, meta_epochs=2).fit(X, y, domains="books")
    assert same(clf, balanced)  # with one domain the balance plays no part


def test_class_absent_from_a_domain_and_domain_of_one_class(make, data):
    X, y, d = data
    keep = ~((d == "kitchen") & (y == "neg"))
    rows = [x for x, k in zip(X, keep) if k]
    clf = make(meta_epochs=1).fit(rows, y[keep], domains=d[keep])
    assert np.isnan(clf.prototypes_[1, 0]).all()
    assert np.isfinite(clf.typicality_).all()
    assert clf.adapted_domains_.tolist() == ["books"]
    assert {"stage": "adaptation", "domain": "kitchen", "epochs": 0} in clf.history_
    np.testing.assert_array_equal(clf.predict_proba(X, domains="kitchen"), clf.predict_proba(X))
    # only books has class neg: its typicality is the similarity to its own prototype
    rare = (d[keep] == "books") & (y[keep] == "neg")
    np.testing.assert_array_equal(clf.typicality_[rare], clf.own_similarity_[rare])
    np.testing.assert_allclose(clf.typicality(X[:8], y[:8], "kitchen").shape, (8,))


def test_domain_of_one_row_and_class_of_one_row(make, data):
    X, y, d = data
    y, d = y.copy().astype(object), d.copy().astype(object)
    d[0], y[1] = "lonely", "rare"
    clf = make(meta_epochs=1).fit(X, y, domains=d)
    assert clf.domains_.tolist() == ["books", "kitchen", "lonely"]
    assert clf.adapted_domains_.tolist() == ["books", "kitchen"]
    assert clf.own_similarity_[0] == pytest.approx(1)
    assert np.isnan(clf.cross_similarity_[1])
    assert np.isfinite(clf.predict_proba(X, domains=d)).all()


def test_class_weight_of_zero_holds_in_stage_3(make, data):
    """A domain with one class of weight above 0 teaches nothing, and the meta-learner answers for it."""
    X, y, d = data
    y = np.where((d == "books") & (np.arange(len(y)) % 3 == 0), "odd", y)
    clf = make(class_weight={"pos": 0.0}, meta_epochs=1).fit(X, y, domains=d)
    assert clf.adapted_domains_.tolist() == ["books"]
    with pytest.raises(ValueError, match=r"of class_weight above 0; adapting needs two or more"):
        clf.adapt(X[:2], ["pos", "neg"], "toys")
    clf = make(class_weight={"pos": 0.0, "neg": 0.0})
    with pytest.raises(
        ValueError, match=r"leaves fewer than two of the classes \['neg', 'odd', 'pos'\] a weight above 0"
    ):
        clf.fit(X, y, domains=d)


@pytest.mark.slow
def test_precisions_agree_in_score(tiny):
    X, y, d = make_texts(200)
    scores = {}
    for precision in ("float32", "bfloat16"):
        clf = MetaFineTunedClassifier(
            tiny, precision=precision, meta_epochs=6, adaptation=None, learning_rate=3e-3, random_state=0
        )
        clf.fit(X[:120], y[:120], domains=d[:120])
        scores[precision] = clf.score(X[120:], y[120:])
        exact = clf.set_params(precision="float32").predict_proba(X)
        np.testing.assert_allclose(clf.set_params(precision="bfloat16").predict_proba(X), exact, atol=2e-2)
    assert min(scores.values()) > 0.9
    assert abs(scores["float32"] - scores["bfloat16"]) <= 0.05


def test_a_long_row_among_short_ones_in_windows_of_attention(make, data, tiny_models):
    """ModernBERT's local layers: padding that is far from a short text has nothing to read."""
    X, y, d = data
    folder = tiny_models["modernbert"]
    X = [" ".join(["good book"] * 60), *X[1:]]
    clf = make(model=folder, precision="bfloat16", adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    assert np.isfinite(clf.typicality_).all() and np.isfinite(clf.predict_proba(X)).all()
    exact = make(model=folder, adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    np.testing.assert_allclose(clf.typicality_, exact.typicality_, atol=0.01)


def test_a_class_that_only_rows_of_weight_zero_have_has_no_typicality(make, data):
    X, y, d = data
    y = np.where(np.arange(len(y)) == 5, "zzz", y)
    clf = make(adaptation=None, meta_epochs=1).fit(X, y, domains=d, sample_weight=(y != "zzz").astype(float))
    assert clf.classes_.tolist() == ["neg", "pos"]
    assert np.flatnonzero(np.isnan(clf.typicality_)).tolist() == [5]


def test_another_default_dtype(make, data):
    X, y, d = data
    torch.set_default_dtype(torch.float64)
    try:
        proba = (
            make(recipe=MetaFineTuning(corruption_labels="uniform"), meta_epochs=1)
            .fit(X, y, domains=d)
            .predict_proba(X, domains=d)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_rows_of_class_weight_zero_stay_out_where_nothing_is_typical(make, data, monkeypatch):
    """Then weights are those of the other factors, not all equal."""
    X, y, d = data
    y = np.where(np.arange(len(y)) % 5 == 0, "rare", y)
    monkeypatch.setattr("skmft._method.typicality.typicality", lambda own, cross, balance: np.full(len(own), -1.0))
    answers = make(class_weight={"rare": 0.0}, meta_epochs=12, adaptation=None).fit(X, y, domains=d).predict(X)
    assert "rare" not in answers
