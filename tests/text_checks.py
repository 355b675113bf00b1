"""scikit-learn's contract, checked on texts: what its own checks skip for estimators without numeric 2-D input.

Every check takes a maker of quick unfitted estimators and (X, y, domains), and raises AssertionError where the contract
is broken. `test_common.py` runs each on the estimator, and on an estimator broken on purpose, which it must catch.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle
import random
import warnings

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, atol=atol)


def check_init_only_stores(make, X, y, d):
    for name, default in inspect.signature(type(make()).__init__).parameters.items():
        if default.default is inspect.Parameter.empty:
            continue
        marker = object()
        assert getattr(make(**{name: marker}), name) is marker, name
    assert set(vars(make())) == set(make().get_params())


def check_clone_and_set_params(make, X, y, d):
    clf = make(learning_rate=0.7)
    twin = clone(clf)
    assert twin is not clf
    assert twin.get_params() == clf.get_params()
    assert clf.set_params(learning_rate=0.2) is clf
    assert clf.get_params()["learning_rate"] == 0.2
    assert twin.get_params()["learning_rate"] == 0.7


def check_fit_returns_self_and_keeps_parameters(make, X, y, d):
    clf = make()
    before = copy.deepcopy(clf.get_params())
    assert clf.fit(X, y, domains=d) is clf
    assert clf.get_params() == before


def check_fitted_attributes_end_in_underscore(make, X, y, d):
    clf = make()
    before = set(vars(clf))
    clf.fit(X, y, domains=d)
    new = set(vars(clf)) - before
    assert all(name.endswith("_") or name.startswith("_") for name in new), new
    assert list(clf.classes_) == sorted(set(y))


def check_inputs_are_not_changed(make, X, y, d):
    frame = pd.DataFrame({"text": X, "domain": d})
    weight = np.linspace(0.5, 1.5, len(X))
    inputs = (list(X), y.copy(), d.copy(), weight)
    kept = copy.deepcopy(inputs)
    clf = make().fit(inputs[0], inputs[1], domains=inputs[2], sample_weight=weight)
    clf.predict(inputs[0], domains=inputs[2])
    for now, then in zip(inputs, kept):
        np.testing.assert_array_equal(np.asarray(now), np.asarray(then))
    frame_kept = frame.copy()
    make(domain_column="domain").fit(frame, y).predict(frame)
    pd.testing.assert_frame_equal(frame, frame_kept)


def check_rows_in_any_order(make, X, y, d):
    clf = make().fit(X, y, domains=d)
    order = np.random.default_rng(0).permutation(len(X))
    straight = clf.predict_proba(X, domains=d)
    close(clf.predict_proba([X[i] for i in order], domains=d[order]), straight[order])


def check_one_row_at_a_time(make, X, y, d):
    clf = make().fit(X, y, domains=d)
    together = clf.predict_proba(X[:6], domains=d[:6])
    apart = np.vstack([clf.predict_proba([x], domains=[k]) for x, k in zip(X[:6], d[:6])])
    close(apart, together)


def check_same_seed_same_model(make, X, y, d):
    a = make(random_state=3).fit(X, y, domains=d).predict_proba(X, domains=d)
    b = make(random_state=3).fit(X, y, domains=d).predict_proba(X, domains=d)
    c = make(random_state=4).fit(X, y, domains=d).predict_proba(X, domains=d)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def check_random_state_instances_are_used(make, X, y, d):
    a = make(random_state=np.random.RandomState(3)).fit(X, y, domains=d).predict_proba(X)
    b = make(random_state=np.random.RandomState(3)).fit(X, y, domains=d).predict_proba(X)
    np.testing.assert_array_equal(a, b)


def check_global_state_is_left_alone(make, X, y, d):
    def state():
        return (
            random.getstate(),
            [str(s) for s in np.random.get_state()],
            torch.get_rng_state().tolist(),
            [str(f) for f in warnings.filters],
            sklearn.get_config(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
        )

    for seed in (0, None):
        before = state()
        clf = make(random_state=seed).fit(X, y, domains=d)
        clf.predict(X, domains=d)
        if hasattr(clf, "adapt"):
            clf.typicality(X, y, d)
            clf.adapt(X[:8], y[:8], "new")
        assert state() == before


def check_not_fitted(make, X, y, d):
    calls = {
        "predict": (X,),
        "predict_proba": (X,),
        "decision_function": (X,),
        "transform": (X,),
        "score": (X, y),
        "typicality": (X, y),
        "adapt": (X, y, "new"),
    }
    for method, args in calls.items():
        if not hasattr(make(), method):
            assert method in ("transform", "typicality", "adapt")
            continue
        try:
            getattr(make(), method)(*args)
        except NotFittedError:
            continue
        raise AssertionError(f"{method} works before fit")


def check_outputs_agree(make, X, y, d):
    clf = make().fit(X, y, domains=d)
    proba, logits = clf.predict_proba(X, domains=d), clf.decision_function(X, domains=d)
    assert proba.shape == (len(X), 2)
    assert logits.shape == (len(X),)
    close(proba.sum(axis=1), 1)
    close(1 / (1 + np.exp(-logits)), proba[:, 1])
    np.testing.assert_array_equal(clf.predict(X, domains=d), clf.classes_[proba.argmax(axis=1)])
    three = np.where(np.arange(len(y)) % 3 == 0, "neutral", y)
    clf = make().fit(X, three, domains=d)
    logits = clf.decision_function(X)
    assert logits.shape == (len(X), 3)
    odds = np.exp(logits)
    close(odds / odds.sum(1, keepdims=True), clf.predict_proba(X))


def check_score_is_accuracy(make, X, y, d):
    clf = make().fit(X[:32], y[:32], domains=d[:32])
    wrong = np.roll(y, 1)
    truth = np.where(np.arange(len(y)) % 3 == 0, wrong, y)
    weight = np.linspace(0, 2, len(y))
    predicted = clf.predict(X, domains=d)
    assert clf.score(X, truth, domains=d) == accuracy_score(truth, predicted)
    expected = accuracy_score(truth, predicted, sample_weight=weight)
    assert clf.score(X, truth, domains=d, sample_weight=weight) == expected


def check_forms_of_X_agree(make, X, y, d):
    expected = make().fit(X, y, domains=d).predict_proba(X, domains=d)
    forms = [tuple(X), np.array(X), np.array(X, dtype=object), pd.Series(X, index=range(5, 5 + len(X)))]
    forms += [pd.DataFrame({"text": X}), np.array(X)[:, None]]
    for form in forms:
        np.testing.assert_array_equal(make().fit(form, y, domains=d).predict_proba(form, domains=d), expected)
    frame = pd.DataFrame({"where": d, "text": X})
    clf = make(domain_column="where").fit(frame, y)
    np.testing.assert_array_equal(clf.predict_proba(frame), expected)


def check_forms_of_pairs_agree(make, X, y, d):
    pairs = list(zip(X, reversed(X)))
    expected = make().fit(pairs, y, domains=d).predict_proba(pairs, domains=d)
    frame = pd.DataFrame(pairs, columns=["premise", "hypothesis"])
    for form in (frame, frame.to_numpy(), np.array(pairs), [list(p) for p in pairs]):
        np.testing.assert_array_equal(make().fit(form, y, domains=d).predict_proba(form, domains=d), expected)
    clf = make(domain_column="where").fit(frame.assign(where=d), y)
    shuffled = frame.assign(where=d)[["where", "hypothesis", "premise"]]
    np.testing.assert_array_equal(clf.predict_proba(shuffled), expected)
    assert clf.n_features_in_ == 2
    assert np.abs(clf.predict_proba(frame.assign(where=d, premise=frame["hypothesis"])) - expected).max() > 1e-6


def check_labels_come_back_as_given(make, X, y, d):
    for labels in (
        y,
        y.astype(object),
        (y == "pos").astype(int) * 7 - 2,
        y == "pos",
        pd.Series(y, dtype="category"),
        pd.Series(y == "pos"),
    ):
        clf = make().fit(X, labels, domains=d)
        predicted = clf.predict(X, domains=d)
        assert set(predicted.tolist()) <= set(np.asarray(labels).tolist())
        assert type(predicted.tolist()[0]) is type(np.asarray(labels).tolist()[0])
        assert clf.score(X, labels, domains=d) > 0.8


def check_domains_come_back_as_given(make, X, y, d):
    as_text = make().fit(X, y, domains=d).predict_proba(X)
    kinds = (
        d.astype(object),
        (d == "kitchen").astype(int) + 3,
        d == "kitchen",
        pd.Series(d, dtype="category"),
        list(d),
    )
    for domains in kinds:
        clf = make().fit(X, y, domains=domains)
        values = domains if isinstance(domains, list) else np.asarray(domains).tolist()
        assert clf.domains_.tolist() == sorted(set(values))
        np.testing.assert_array_equal(clf.predict_proba(X), as_text)
        assert clf.adapted_domains_.tolist() == clf.domains_.tolist()
        assert set(clf.adapted_weights_) == set(values)
        assert np.abs(clf.predict_proba(X, domains=domains) - as_text).max() > 0


def check_weight_zero_is_absence(make, X, y, d):
    weight = np.linspace(0.5, 1.5, len(X))
    weight[1::4] = 0  # among them whole classes of some domains
    kept = np.flatnonzero(weight)
    a = make().fit(X, y, domains=d, sample_weight=weight)
    b = make().fit([X[i] for i in kept], y[kept], domains=d[kept], sample_weight=weight[kept])
    np.testing.assert_array_equal(a.predict_proba(X, domains=d), b.predict_proba(X, domains=d))
    if hasattr(a, "typicality"):
        np.testing.assert_array_equal(a.prototypes_, b.prototypes_)
        np.testing.assert_array_equal(a.typicality_[kept], b.typicality_)
        assert len(a.typicality_) == len(X)


def check_weights_count_relatively(make, X, y, d):
    weight = np.linspace(0.5, 1.5, len(X))
    a = make().fit(X, y, domains=d, sample_weight=weight).predict_proba(X, domains=d)
    b = make().fit(X, y, domains=d, sample_weight=4 * weight).predict_proba(X, domains=d)
    c = make().fit(X, y, domains=d).predict_proba(X, domains=d)
    close(a, b, atol=1e-4)
    assert np.abs(a - c).max() > 1e-4
    np.testing.assert_array_equal(
        make().fit(X, y, domains=d, sample_weight=np.ones(len(X))).predict_proba(X, domains=d), c
    )


def check_refit_forgets(make, X, y, d):
    half = len(X) // 2
    other = np.where(d == "books", "tools", d)
    clf = make().fit(X[:half], y[:half], domains=other[:half]).fit(X[half:], y[half:], domains=d[half:])
    fresh = make().fit(X[half:], y[half:], domains=d[half:])
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), fresh.predict_proba(X, domains=d))
    assert set(vars(clf)) == set(vars(fresh))
    assert set(clf.adapted_weights_) == set(fresh.adapted_weights_)


def check_pickles(make, X, y, d):
    unfitted = pickle.loads(pickle.dumps(make()))
    assert unfitted.get_params() == make().get_params()
    clf = make().fit(X, y, domains=d)
    expected = clf.predict_proba(X, domains=d)
    restored = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(restored.predict_proba(X, domains=d), expected)
    if not hasattr(clf, "adapt"):
        return
    np.testing.assert_array_equal(restored.typicality(X, y, d), clf.typicality(X, y, d))
    np.testing.assert_array_equal(
        restored.adapt(X[:8], y[:8], "new").predict_proba(X, domains="new"),
        clf.adapt(X[:8], y[:8], "new").predict_proba(X, domains="new"),
    )


def check_domains_choose_the_model(make, X, y, d):
    clf = make().fit(X, y, domains=d)
    per_domain = {name: clf.predict_proba(X, domains=name) for name in clf.domains_.tolist()}
    meta = clf.predict_proba(X)
    assert all(np.abs(p - meta).max() > 1e-6 for p in per_domain.values())
    mixed = clf.predict_proba(X, domains=d)
    for name, p in per_domain.items():
        close(mixed[d == name], p[d == name])
    close(clf.predict_proba(X, domains="never seen"), meta)
    partly = np.array([None if i % 2 else k for i, k in enumerate(d)], dtype=object)
    close(clf.predict_proba(X, domains=partly)[1::2], meta[1::2])
    close(clf.predict_proba(X, domains=partly)[::2], mixed[::2])


def check_transform(make, X, y, d):
    clf = make().fit(X, y, domains=d)
    Z = clf.transform(X)
    assert Z.shape == (len(X), 32)
    assert Z.dtype == np.float32
    frame = clf.set_output(transform="pandas").transform(X)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == clf.get_feature_names_out().tolist()
    close(frame.to_numpy(), Z)
    close(make().fit_transform(X, y, domains=d), Z)
    close(make(adaptation=None).fit(X, y, domains=d).transform(X), Z)  # the meta-learner's


def check_silent(make, X, y, d):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        make(verbose=0).fit(X, y, domains=d).predict(X)
    assert out.getvalue() + err.getvalue() == ""


def check_lengths(make, X, y, d):
    for args in ((X, y[:-1], d), (X, y, d[:-1])):
        try:
            make().fit(args[0], args[1], domains=args[2])
        except ValueError as error:
            assert str(len(X)) in str(error)
            assert str(len(X) - 1) in str(error)
            continue
        raise AssertionError("inputs of unequal length are accepted")


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]
