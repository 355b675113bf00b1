"""What all classifiers share: fitting and failing, prediction by domain, and scikit-learn's tools around it."""

import logging
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from conftest import RaisesAt, same, tensors
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback

from skmft import MetaFineTunedClassifier

LAMBDAS = {"corruption_weight": [0, 1]}
BRIEF = {"meta_epochs": 1, "adaptation_epochs": 1, "adaptation": "head"}


# ---------------------------------------------------------------- fit


def test_pickles_hold_the_weights_once(make, data):
    X, y, d = data
    clf = make(adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    stored = pickle.dumps(clf)
    weights = sum(p.nbytes for p in tensors(clf).values())
    without = pickle.dumps({**vars(clf), "meta_learner_": None})
    assert weights < len(stored) - len(without) < 1.2 * weights + 2**14

    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("adaptation_only", [False, True], ids=["stage 2", "stage 3"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failing_fit_leaves_nothing_fitted(make, data, failure, adaptation_only):
    X, y, d = data
    failing = {"callbacks": [RaisesAt(failure, 2, adaptation_only)], "adaptation_epochs": 2, "meta_epochs": 2}
    fresh = make(**BRIEF).set_params(**failing)
    used = make(**BRIEF).fit(X, y, domains=d).set_params(**failing)
    for clf in (fresh, used):
        with pytest.raises(failure):
            clf.fit(X, y, domains=d)
        assert not [name for name in vars(clf) if name.endswith("_")]
        with pytest.raises(NotFittedError):
            clf.get_feature_names_out()
    used.set_params(callbacks=None).fit(X, y, domains=d)


def test_bad_refit_keeps_the_old_fit(make, data):
    X, y, d = data
    clf = make(**BRIEF).fit(X, y, domains=d)
    expected = clf.predict_proba(X)
    for names in (["schedule"], ["a", "a"]):
        clf.set_params(callbacks=[(name, Counts()) for name in names])
        with pytest.raises(ValueError, match=f"callbacks names '{names[-1]}' twice, or as one of"):
            clf.fit(X, y, domains=d)
    clf.set_params(callbacks=None)
    with pytest.raises(ValueError, match="labels, but X has"):
        clf.fit(X, y[:-1], domains=d)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


class Counts(Callback):
    total = 0

    def on_epoch_end(self, net, **kwargs):
        self.seen_ = True
        Counts.total += 1


def test_callbacks_are_told_of_every_stage_and_stay_as_given(make, data, monkeypatch):
    X, y, d = data
    monkeypatch.setattr(Counts, "total", 0)
    callback = Counts()
    make(callbacks=[("mine", callback)]).fit(X, y, domains=d)
    assert not hasattr(callback, "seen_")
    assert Counts.total == 4 + 2 * 2


def test_a_fitted_estimator_holds_one_encoder_and_no_gradients(fitted):
    assert all(p.grad is None for p in tensors(fitted).values())
    assert fitted.encoder_source_.sha256
    assert [n for n, v in vars(fitted).items() if isinstance(v, torch.nn.Module)] == ["meta_learner_"]


def test_class_weight(make, data):
    X, y, d = data
    keep = np.flatnonzero((y == "pos") | (np.arange(len(y)) % 8 == 1))
    X, y, d = [X[i] for i in keep], y[keep], d[keep]
    flat = {"typicality_weighting": False, "adaptation": None, "meta_epochs": 2}
    counts = {c: (y == c).sum() for c in ("neg", "pos")}
    balanced = make(class_weight="balanced", **flat).fit(X, y, domains=d)
    given = {c: len(y) / (2 * n) for c, n in counts.items()}
    by_hand = make(class_weight=given, **flat).fit(X, y, domains=d)
    by_sample = make(**flat).fit(X, y, domains=d, sample_weight=[given[label] for label in y])
    for other in (by_hand, by_sample):
        for name, p in tensors(balanced).items():
            torch.testing.assert_close(p, tensors(other)[name], atol=1e-4, rtol=1e-3)
    assert not same(balanced, make(**flat).fit(X, y, domains=d))


def test_verbose_shows_stages_and_domains(make, data, capsys):
    X, y, d = data
    make(verbose=1, meta_epochs=1).fit(X, y, domains=d)
    out, err = capsys.readouterr()
    first, *lines = out.strip().splitlines()
    assert first.startswith("MetaFineTunedClassifier(adaptation_epochs=2, ") and first.endswith("): 48 rows, 2 domains")
    assert len(lines) == 2
    assert lines[0].startswith("domain 'books': adapted on 24 rows in 2 epochs, loss ")
    assert "typicality" in err
    assert "meta fine-tuning: 100%" in err
    assert "loss=" in err


def test_verbose_names_the_candidate_of_a_search(make, data, capsys):
    X, y, d = data
    grid = {"corruption_weight": [0, 0.5]}
    GridSearchCV(make(verbose=1, **BRIEF), grid, cv=2, refit=False).fit(X, y, domains=d)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MetaFineTunedClassifier(")]
    assert ["corruption_weight=0.5" in line for line in shown] == [False, False, True, True]
    assert all("corruption_weight=0," in line for line in shown[:2])


@pytest.mark.slow
def test_same_result_in_another_process(tiny, fitted, data):
    code = f"""
import sys, numpy as np
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from conftest import make_texts
from skmft import MetaFineTunedClassifier
import torch
torch.set_num_threads({torch.get_num_threads()})
X, y, d = make_texts(48)
clf = MetaFineTunedClassifier({tiny!r}, meta_epochs=4, adaptation_epochs=2, learning_rate=3e-3, batch_size=16,
                              adaptation_learning_rate=None, precision="float32", random_state=0).fit(X, y, domains=d)
print(clf.predict_proba(X, domains=d).tobytes().hex())
"""
    X, _, d = data
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fitted.predict_proba(X, domains=d).tobytes().hex()


# ------------------------------------------------------ prediction


def test_unknown_domains_are_answered_by_the_meta_learner_or_refused(fitted, data):
    X, _, d = data
    clf = pickle.loads(pickle.dumps(fitted))
    assert clf.unknown_domain == "ignore"
    meta = fitted.predict_proba(X)
    np.testing.assert_array_equal(clf.predict_proba(X, domains="toys"), meta)
    clf.set_params(unknown_domain="error")
    with pytest.raises(
        ValueError,
        match=r"domains: row 1 is 'toys', which is none of the known \['books', 'kitchen'\]; set unknown_domain='ignore'",
    ):
        clf.predict(X[:2], domains=["books", "toys"])
    np.testing.assert_array_equal(clf.predict_proba(X, domains=[None] * len(X)), meta)  # not known is no wrong name
    clf.predict(X, domains=d)
    for setting in ("error", "ignore"):
        with pytest.raises(ValueError, match=r"row 0 is 1, which is none of the known .*; convert them to one type"):
            clf.set_params(unknown_domain=setting).predict(X[:2], domains=[1, 2])


def test_names_of_adapted_domains_come_back_as_given(make, data):
    X, y, d = data
    numbers = (d == "books").astype(int) + 3
    clf = make(**BRIEF).fit(X, y, domains=numbers)
    assert clf.adapted_domains_.tolist() == clf.domains_.tolist() == [3, 4]
    assert make(**{**BRIEF, "adaptation": None}).fit(X, y, domains=d).adapted_domains_.tolist() == []


def test_parameters_of_prediction_may_be_set_after_fit(make, data, tmp_path):
    X, y, d = data
    clf = make(**BRIEF).fit(X, y, domains=d)
    expected = clf.predict_proba(X, domains=d)
    clf.set_params(domain_column="shop", memory=tmp_path, device=torch.device("cpu"), batch_size=16)
    np.testing.assert_array_equal(clf.predict_proba(pd.DataFrame({"text": X, "shop": d})), expected)
    with pytest.raises(ValueError, match="'precision' parameter"):
        clf.set_params(precision="fp16").predict(X)


# ------------------------------------------------------ scikit-learn around it


class Spy(MetaFineTunedClassifier):
    """Notes the domains that predict really gets."""

    got = []

    def _logits(self, X, domains):
        column = X[self.domain_column].to_numpy() if domains is None and self.domain_column else None
        Spy.got.append(domains if column is None else column)
        return super()._logits(X, domains)


@pytest.fixture
def spy(make):
    Spy.got = []
    return Spy(**make(**BRIEF).get_params())


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def all_got_domains():
    assert Spy.got
    return all(g is not None and set(g) <= {"books", "kitchen"} for g in Spy.got)


def test_grid_search_with_routing(spy, data, routing):
    X, y, d = data
    search = GridSearchCV(spy, LAMBDAS, cv=2).fit(X, y, domains=d)
    assert all_got_domains()
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(X, y, domains=d) >= 0.5
    assert all_got_domains()
    # GridSearchCV.predict takes X alone: the meta-learner answers
    np.testing.assert_array_equal(search.predict(X), search.best_estimator_.predict(X))


def test_grid_search_with_a_domain_column(spy, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    search = GridSearchCV(spy.set_params(domain_column="domain"), LAMBDAS, cv=2, scoring="neg_log_loss").fit(frame, y)
    assert all_got_domains()
    np.testing.assert_array_equal(search.predict_proba(frame), search.best_estimator_.predict_proba(X, domains=d))


def test_grid_search_without_routing(spy, data):
    X, y, d = data
    search = GridSearchCV(spy, LAMBDAS, cv=2).fit(X, y, domains=d)
    assert Spy.got
    assert all(g is None for g in Spy.got)  # scikit-learn gives scorers nothing here: the README says so
    assert search.best_estimator_.adapted_domains_.tolist() == ["books", "kitchen"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["routing", "domain_column", "fit parameter"])
def test_grid_search_in_two_processes(make, data, way):
    X, y, d = data
    clf = make(**BRIEF)
    if way == "domain_column":
        X, fit_params = pd.DataFrame({"text": X, "domain": d}), {}
        clf.set_params(domain_column="domain")
    else:
        fit_params = {"domains": d}
    with sklearn.config_context(enable_metadata_routing=way == "routing"):
        results = [
            GridSearchCV(clf, LAMBDAS, cv=2, n_jobs=n).fit(X, y, **fit_params).cv_results_["mean_test_score"]
            for n in (1, 2)
        ]
    np.testing.assert_allclose(*results, atol=0.05)


def test_pipeline(spy, data):
    X, y, d = data
    clean = FunctionTransformer(lambda texts: [t.lower() for t in texts])
    pipe = Pipeline([("clean", clean), ("mft", spy)]).fit(X, y, mft__domains=d)
    assert pipe["mft"].adapted_domains_.tolist() == ["books", "kitchen"]
    assert pipe.score(X, y) >= 0.5
    np.testing.assert_array_equal(pipe.predict(X, domains=d), pipe["mft"].predict(X, domains=d))
    Spy.got = []
    with sklearn.config_context(enable_metadata_routing=True):
        pipe = Pipeline([("clean", clean), ("mft", clone(spy))]).fit(X, y, domains=d)
        pipe.predict(X, domains=d)
        pipe.score(X, y, domains=d)
        pipe.predict_proba(X, domains=d)
        pipe.decision_function(X, domains=d)
    assert len(Spy.got) == 4
    assert all_got_domains()


def test_cross_val_score(spy, data, routing):
    X, y, d = data
    scores = cross_val_score(spy, X, y, cv=2, params={"domains": d})
    assert len(scores) == 2
    assert all_got_domains()


def test_calibration_with_a_domain_column(spy, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    calibrated = CalibratedClassifierCV(spy.set_params(domain_column="domain"), cv=2).fit(frame, y)
    assert calibrated.predict_proba(frame).shape == (48, 2)
    assert all_got_domains()


def test_representation_and_global_warnings(make, data):
    assert "model=" in repr(make())
    X, y, d = data
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**BRIEF).fit(X, y, domains=d)


def test_fits_in_threads_are_those_of_one_thread(make, data):
    """And generators and log levels are as before, which all threads share."""
    X, y, d = data
    logger = logging.getLogger("transformers")
    before, level = torch.get_rng_state(), logger.level

    def fit(_):
        return make(**BRIEF).fit(X, y, domains=d).predict_proba(X, domains=d)

    alone = fit(0)
    with ThreadPoolExecutor(3) as pool:
        for proba in pool.map(fit, range(3)):
            np.testing.assert_array_equal(proba, alone)
    assert torch.equal(torch.get_rng_state(), before) and logger.level == level


@pytest.mark.parametrize("changed", [{"pooling": "cls"}, {"max_length": 64}, {"n_prototypes": 2}], ids=str)
def test_what_the_fitted_model_cannot_follow_is_refused(make, data, tmp_path, changed):
    X, y, d = data
    clf = make(adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    before, proba = clf.get_params(), clf.predict_proba(X)
    [name] = changed
    clf.set_params(**changed)
    calls = [
        lambda: clf.predict(X),
        lambda: clf.transform(X),
        lambda: clf.typicality(X, y, d),
        lambda: clf.save(tmp_path / "x"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"{name}=.* was set after fit.*set it back, or fit again"):
            call()
    assert not any(tmp_path.iterdir())
    np.testing.assert_array_equal(clf.set_params(**{name: before[name]}).predict_proba(X), proba)
    clf.set_params(**changed).fit(X, y, domains=d).predict(X)


def test_domains_of_any_type_where_fit_had_none(make, data):
    X, y, _ = data
    with pytest.warns(UserWarning, match=r"domains= was not given.*Pass domains= \(or set domain_column\) to fit"):
        clf = make(**BRIEF).fit(X, y)
    expected = clf.predict(X)
    for names in ("books", 3, True):
        np.testing.assert_array_equal(clf.predict(X, domains=[names] * len(X)), expected)
