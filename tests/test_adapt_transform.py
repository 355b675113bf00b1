"""What a fitted meta-learner does besides predicting: adapt to a domain, transform, score how typical rows are."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import RaisesAt

from skmft._engine.encoder import find_encoder, load_encoder

# ------------------------------------------------------------------ typicality


def test_typicality_of_other_rows(fitted, data):
    X, y, d = data
    np.testing.assert_allclose(fitted.typicality(X, y, d), fitted.typicality_, atol=1e-6)
    np.testing.assert_allclose(fitted.typicality(X[5:7], y[5:7], d[5:7]), fitted.typicality_[5:7], atol=1e-5)
    per_domain = [fitted.typicality(X, y, "nowhere"), fitted.typicality(X, y)]
    np.testing.assert_array_equal(*per_domain)
    assert np.abs(per_domain[0]).max() <= 1 + 1e-9


def test_the_pretrained_encoder_is_asked_only_where_it_is_the_one_of_fit(make, data, tiny, tmp_path):
    X, y, d = data
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    clf = make(model=folder, adaptation=None, meta_epochs=1).fit(X, y, domains=d)  # a Path is as good as a str
    np.testing.assert_allclose(clf.typicality(X, y, d), clf.typicality_, atol=1e-6)
    encoder = load_encoder(find_encoder(tiny))
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(2)
    encoder.save_pretrained(folder)
    for call in (lambda: clf.typicality(X, y, d), lambda: clf.transform(X, pretrained=True)):
        with pytest.raises(ValueError, match="but those of fit had"):
            call()
    clf.predict(X)


def test_typicality_needs_stage_1(make, data):
    X, y, d = data
    clf = make(typicality_weighting=False, adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    assert not hasattr(clf, "typicality_")
    with pytest.raises(ValueError, match="typicality_weighting=False leaves out stage 1"):
        clf.typicality(X, y, d)


def test_typicality_refuses_domains_of_another_type(make, data):
    X, y, d = data
    numbers = (d == "books").astype(int)
    clf = make(adaptation=None, meta_epochs=1).fit(X, y, domains=numbers)
    with pytest.raises(ValueError, match="one type"):
        clf.typicality(X, y, domains=numbers.astype(str))


# ------------------------------------------------------------------ transform


def test_pretrained_embeddings_are_those_that_prototypes_are_the_means_of(fitted, data):
    X, y, d = data
    E = fitted.transform(X, pretrained=True)
    assert E.shape == (48, 32) and E.dtype == np.float32
    cell = (d == fitted.domains_[1]) & (y == fitted.classes_[0])
    np.testing.assert_allclose(E[cell].mean(0), fitted.prototypes_[1, 0], atol=1e-5)
    assert np.abs(E - fitted.transform(X)).max() > 0.01  # training has moved them


# ------------------------------------------------------------------ adapt


def test_adapt_on_the_rows_of_fit_gives_the_model_of_fit(fitted, data):
    X, y, d = data
    clf = copy.copy(fitted)
    own = [x for x, k in zip(X, d) if k == "books"]
    expected = fitted.predict_proba(X, domains="books")
    assert clf.adapt(own, y[d == "books"], "books") is clf
    np.testing.assert_array_equal(clf.predict_proba(X, domains="books"), expected)
    assert len(clf.history_) == len(fitted.history_) + 2


def test_adapt_to_a_new_domain(fitted, data):
    X, y, _ = data
    clf = copy.copy(fitted)
    clf.unknown_domain = "error"
    others = {k: fitted.predict_proba(X, domains=k) for k in ("books", "kitchen", None)}
    with pytest.raises(ValueError, match="row 0 is 'contrary', which is none of the known"):
        clf.predict(X, domains="contrary")
    clf.adapt(X[:8], np.where(y[:8] == "pos", "neg", "pos"), "contrary")
    assert clf.adapted_domains_.tolist() == ["books", "kitchen", "contrary"]
    assert clf.domains_.tolist() == ["books", "kitchen"]
    assert np.abs(clf.predict_proba(X, domains="contrary") - others[None]).max() > 0.01
    clf.unknown_domain = "ignore"
    for k, expected in others.items():
        np.testing.assert_array_equal(clf.predict_proba(X, domains=k), expected)
    assert "contrary" not in fitted.adapted_domains_


def test_adapt_keeps_true_and_one_apart(make, data):
    X, y, d = data
    clf = make(meta_epochs=1, adaptation_epochs=1).fit(X, y, domains=(d == "books").astype(int))
    before = clf.predict_proba(X, domains=[1] * len(X))
    with pytest.raises(ValueError, match="domain=True equals the known domain 1"):
        clf.adapt(X, y, True)
    np.testing.assert_array_equal(clf.predict_proba(X, domains=[1] * len(X)), before)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failing_adapt_leaves_the_estimator_as_it_was(fitted, data, failure):
    X, y, _ = data
    clf = copy.copy(fitted)
    clf.callbacks = [RaisesAt(failure, 1)]
    before = pickle.dumps(vars(fitted))
    with pytest.raises(failure):
        clf.adapt(X[:8], y[:8], "books")
    assert pickle.dumps({**vars(clf), "callbacks": None}) == before


def test_bad_arguments_of_adapt_name_themselves(fitted, data):
    X, y, _ = data
    clf = copy.copy(fitted)
    with pytest.raises(ValueError, match=r"y has the classes .'pos'. of class_weight above 0"):
        clf.adapt(X[:1], ["pos"], "books")
    with pytest.raises(ValueError, match=r"y has labels that fit did not see: \['maybe'\]"):
        clf.adapt(X[:2], ["pos", "maybe"], "books")
    with pytest.raises(ValueError, match="expected one name"):
        clf.adapt(X[:2], ["pos", "neg"], ["books", "dvd"])
    with pytest.raises(ValueError, match=r"domain=1\.5; expected one name"):
        clf.adapt(X[:2], ["pos", "neg"], 1.5)
    clf.adaptation = None
    with pytest.raises(ValueError, match="adaptation=None leaves out stage 3"):
        clf.adapt(X[:8], y[:8], "books")
    assert clf.adapted_weights_ is fitted.adapted_weights_
