"""MetaFineTunedClassifier: stages, domains, edge cases, scikit-learn's tools around it."""

import copy
import logging
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import reference
import sklearn
import torch
from conftest import make_texts
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback

from skmft import MetaFineTunedClassifier
from skmft.corruption import CorruptionHead
from skmft.networks import TextClassifier, find_encoder, load_encoder, load_tokenizer

LAMBDAS = {"corruption_weight": [0, 0.1, 1]}


def tensors(clf):
    return {n: p for n, p in clf.net_.module_.named_parameters() if not n.startswith("corruption_head")}


def same(a, b):
    return all(torch.equal(p, tensors(b)[n]) for n, p in tensors(a).items())


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


def test_typicality_of_other_rows(fitted, data):
    X, y, d = data
    np.testing.assert_allclose(fitted.typicality(X, y, d), fitted.typicality_, atol=1e-6)
    np.testing.assert_allclose(fitted.typicality(X[5:7], y[5:7], d[5:7]), fitted.typicality_[5:7], atol=1e-5)
    per_domain = [fitted.typicality(X, y, "nowhere"), fitted.typicality(X, y)]
    np.testing.assert_array_equal(*per_domain)
    assert np.abs(per_domain[0]).max() <= 1 + 1e-9


def test_typicality_needs_the_same_pretrained_weights(make, data, tiny, tmp_path):
    import shutil

    X, y, d = data
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    clf = make(model=str(folder)).fit(X, y, domains=d)
    encoder = load_encoder(find_encoder(tiny))
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(2)
    encoder.save_pretrained(folder)
    with pytest.raises(ValueError, match="but those of fit had"):
        clf.typicality(X, y, d)
    clf.predict(X)


def test_several_prototypes(make, data):
    X, y, d = data
    clf = make(n_prototypes=3).fit(X, y, domains=d)
    assert clf.prototypes_.shape == (2, 2, 3, 32)
    np.testing.assert_allclose(clf.prototype_shares_.sum(-1), 1)
    np.testing.assert_allclose(clf.typicality(X, y, d), clf.typicality_, atol=1e-6)


def test_typicality_weighting_changes_the_training_only_where_it_is_on(make, data):
    X, y, d = data
    on, off = (make(typicality_weighting=w, adaptation=None).fit(X, y, domains=d) for w in (True, False))
    assert not same(on, off)
    assert not hasattr(off, "typicality_")
    with pytest.raises(ValueError, match="typicality_weighting=False leaves out stage 1"):
        off.typicality(X, y, d)
    weighted = make(typicality_weighting=False, adaptation=None)
    weighted.fit(X, y, domains=d, sample_weight=np.clip(on.typicality_, 0, None))
    assert same(on, weighted)  # typicality is a weight like any other


def test_weight_zero_of_corruption_equals_a_run_without_the_head(make, data, monkeypatch):
    X, y, d = data
    without = make(corruption_weight=0, contrastive_weight=0).fit(X, y, domains=d)
    assert without.net_.module_.corruption_head is None

    def always_with_a_head(*args):
        module = TextClassifier(*args)
        module.corruption_head = CorruptionHead(32, 2, [2])
        heads.append(copy.deepcopy(module.corruption_head))
        return module

    heads = []
    monkeypatch.setattr("skmft.stages.TextClassifier", always_with_a_head)
    with_head = make(corruption_weight=0, contrastive_weight=0).fit(X, y, domains=d)
    assert same(without, with_head)
    np.testing.assert_array_equal(without.predict_proba(X, domains=d), with_head.predict_proba(X, domains=d))
    for now, then in zip(with_head.net_.module_.corruption_head.parameters(), heads[0].parameters(), strict=True):
        assert torch.equal(now, then)  # neither gradient nor decay reached it
    monkeypatch.undo()
    assert not same(without, make(corruption_weight=0.5, contrastive_weight=0).fit(X, y, domains=d))


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
    clf = make(meta_epochs="auto", adaptation_epochs="auto", batch_size=48).fit(X, y, domains=d)
    meta = [h for h in clf.history_ if h["stage"] == "meta"]
    assert len(meta) == meta[0]["epochs"] == 60  # one step an epoch
    assert [h["epochs"] for h in clf.history_ if h["stage"] == "adaptation"] == [4] * 4 * 2


def test_head_adaptation_leaves_the_encoder(make, data):
    X, y, d = data
    clf = make(adaptation="head").fit(X, y, domains=d)
    assert set(clf.adapted_weights_["books"]) == {"label_head.weight", "label_head.bias"}
    assert np.abs(clf.predict_proba(X, domains="books") - clf.predict_proba(X)).max() > 1e-6


def test_adaptation_learning_rate_of_none_is_learning_rate(make, data):
    X, y, d = data
    a = make(adaptation_learning_rate=None).fit(X, y, domains=d).predict_proba(X, domains=d)
    b = make(adaptation_learning_rate=3e-3).fit(X, y, domains=d).predict_proba(X, domains=d)
    c = make(adaptation_learning_rate=1e-4).fit(X, y, domains=d).predict_proba(X, domains=d)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


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
    clf.adapt(X[:8], np.where(y[:8] == "pos", "neg", "pos"), "contrary")
    assert np.abs(clf.predict_proba(X, domains="contrary") - others[None]).max() > 0.01
    clf.unknown_domain = "meta"
    for k, expected in others.items():
        np.testing.assert_array_equal(clf.predict_proba(X, domains=k), expected)
    assert "contrary" not in fitted.adapted_weights_


def test_pickles_hold_the_weights_once_and_load_where_their_device_is_missing(make, data, monkeypatch):
    X, y, d = data
    clf = make(adaptation=None).fit(X, y, domains=d)
    stored = pickle.dumps(clf)
    weights = sum(p.nbytes for p in clf.net_.module_.parameters())
    without = pickle.dumps({**vars(clf), "net_": None})
    assert weights < len(stored) - len(without) < 1.2 * weights + 2**14

    def fails(_):
        raise AssertionError("a tensor that would be put on the device it came from")

    monkeypatch.setattr(torch.storage, "_load_from_bytes", fails)
    again = pickle.loads(stored)
    assert again.net_.module is again.net_.module_
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failing_adapt_leaves_the_estimator_as_it_was(fitted, data, failure):
    X, y, _ = data
    clf = copy.copy(fitted)
    clf.callbacks = [RaisesAt(failure, 1)]
    before = pickle.dumps(vars(fitted))
    with pytest.raises(failure):
        clf.adapt(X[:8], y[:8], "books")
    assert pickle.dumps({**vars(clf), "callbacks": None}) == before
    with pytest.raises(ValueError, match="one class only, 'pos'; adapting needs examples of at least two"):
        clf.adapt(X[:1], ["pos"], "books")
    with pytest.raises(ValueError, match=r"y has labels that fit did not see: \['maybe'\]"):
        clf.adapt(X[:2], ["pos", "maybe"], "books")
    with pytest.raises(ValueError, match="expected one name"):
        clf.adapt(X[:2], ["pos", "neg"], ["books", "dvd"])
    with pytest.raises(ValueError, match=r"domain: row 0 is 1\.5"):
        clf.adapt(X[:2], ["pos", "neg"], 1.5)
    clf.adaptation = None
    with pytest.raises(ValueError, match="adaptation=None leaves out stage 3"):
        clf.adapt(X[:8], y[:8], "books")


class RaisesAt(Callback):
    """Raises at the start of an epoch; of every stage, or only where the net has no corruption head."""

    def __init__(self, failure, epoch, adaptation_only=False):
        self.failure, self.epoch, self.adaptation_only = failure, epoch, adaptation_only

    def on_epoch_begin(self, net, **kwargs):
        if self.adaptation_only and net.module_.corruption_head is not None:
            return
        if len(net.history) >= self.epoch:
            raise self.failure("as asked")


@pytest.mark.parametrize("adaptation_only", [False, True], ids=["stage 2", "stage 3"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failing_fit_leaves_nothing_fitted(make, data, failure, adaptation_only):
    X, y, d = data
    fresh = make(callbacks=[RaisesAt(failure, 2, adaptation_only)])
    used = make().fit(X, y, domains=d).set_params(callbacks=[RaisesAt(failure, 2, adaptation_only)])
    for clf in (fresh, used):
        with pytest.raises(failure):
            clf.fit(X, y, domains=d)
        assert not [name for name in vars(clf) if name.endswith("_")]
        with pytest.raises(NotFittedError):
            clf.get_feature_names_out()
    used.set_params(callbacks=None).fit(X, y, domains=d)


def test_bad_refit_keeps_the_old_fit(make, data):
    X, y, d = data
    clf = make().fit(X, y, domains=d)
    expected = clf.predict_proba(X)
    for names in (["schedule"], ["a", "a"]):
        clf.set_params(callbacks=[(name, Counts()) for name in names])
        with pytest.raises(ValueError, match=f"callbacks names '{names[-1]}' twice, or as one of"):
            clf.fit(X, y, domains=d)
    clf.set_params(callbacks=None)
    with pytest.raises(ValueError, match="labels, but X has"):
        clf.fit(X, y[:-1], domains=d)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_callbacks_are_told_of_every_stage_and_stay_as_given(make, data):
    X, y, d = data
    callback = Counts()
    make(callbacks=[callback]).fit(X, y, domains=d)
    assert not hasattr(callback, "seen_")
    assert Counts.total == 4 + 2 * 2


class Counts(Callback):
    total = 0

    def on_epoch_end(self, net, **kwargs):
        self.seen_ = True
        Counts.total += 1


def test_a_fitted_estimator_holds_no_optimiser_state_and_one_encoder(fitted):
    assert not fitted.net_.optimizer_.state
    assert all(p.grad is None for p in fitted.net_.module_.parameters())
    assert fitted.encoder_source_.sha256
    modules = [v for v in vars(fitted).values() if isinstance(v, torch.nn.Module)]
    assert not modules


# --------------------------------------------------------------- edge cases


def test_without_domains_there_is_a_warning_and_only_the_meta_learner(make, data):
    X, y, _ = data
    with pytest.warns(UserWarning, match="neither domain corruption nor adaptation"):
        clf = make().fit(X, y)
    assert clf.domains_.tolist() == ["all"]
    assert not clf.adapted_weights_
    assert np.isnan(clf.cross_similarity_).all()
    np.testing.assert_array_equal(clf.typicality_, clf.own_similarity_)
    assert clf.score(X, y) > 0.8


def test_one_domain(make, data):
    X, y, _ = data
    clf = make().fit(X, y, domains="books")
    assert clf.net_.module_.corruption_head is None
    assert set(clf.adapted_weights_) == {"books"}
    balanced = make(typicality_balance=0.9).fit(X, y, domains="books")
    assert same(clf, balanced)  # with one domain the balance plays no part


def test_class_absent_from_a_domain_and_domain_of_one_class(make, data):
    X, y, d = data
    keep = ~((d == "kitchen") & (y == "neg"))
    rows = [x for x, k in zip(X, keep) if k]
    clf = make().fit(rows, y[keep], domains=d[keep])
    assert np.isnan(clf.prototypes_[1, 0]).all()
    assert np.isfinite(clf.typicality_).all()
    assert set(clf.adapted_weights_) == {"books"}
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
    clf = make().fit(X, y, domains=d)
    assert clf.domains_.tolist() == ["books", "kitchen", "lonely"]
    assert "lonely" not in clf.adapted_weights_
    assert clf.own_similarity_[0] == pytest.approx(1)
    assert np.isnan(clf.cross_similarity_[1])
    assert np.isfinite(clf.predict_proba(X, domains=d)).all()


def test_class_weight(make, data):
    X, y, d = data
    keep = np.flatnonzero((y == "pos") | (np.arange(len(y)) % 8 == 1))
    X, y, d = [X[i] for i in keep], y[keep], d[keep]
    flat = {"typicality_weighting": False, "adaptation": None}
    counts = {c: (y == c).sum() for c in ("neg", "pos")}
    balanced = make(class_weight="balanced", **flat).fit(X, y, domains=d)
    given = {c: len(y) / (2 * n) for c, n in counts.items()}
    by_hand = make(class_weight=given, **flat).fit(X, y, domains=d)
    by_sample = make(**flat).fit(X, y, domains=d, sample_weight=[given[label] for label in y])
    for other in (by_hand, by_sample):
        for name, p in tensors(balanced).items():
            torch.testing.assert_close(p, tensors(other)[name], atol=1e-4, rtol=1e-3)
    assert not same(balanced, make(**flat).fit(X, y, domains=d))


def test_class_weight_of_zero_holds_in_stage_3(make, data):
    """A domain with one class of weight above 0 teaches nothing, and the meta-learner answers for it."""
    X, y, d = data
    y = np.where((d == "books") & (np.arange(len(y)) % 3 == 0), "odd", y)
    clf = make(class_weight={"pos": 0.0}, adaptation="full").fit(X, y, domains=d)
    assert set(clf.adapted_weights_) == {"books"}
    with pytest.raises(ValueError, match=r"adapting needs examples of at least two of .*, of class_weight above 0"):
        clf.adapt(X[:2], ["pos", "neg"], "toys")
    clf = make(class_weight={"pos": 0.0, "neg": 0.0})
    with pytest.raises(
        ValueError, match=r"leaves fewer than two of the classes \['neg', 'odd', 'pos'\] a weight above 0"
    ):
        clf.fit(X, y, domains=d)


def test_verbose_shows_stages_and_domains(make, data, capsys):
    X, y, d = data
    make(verbose=1).fit(X, y, domains=d)
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
    GridSearchCV(make(verbose=1, meta_epochs=1), grid, cv=2, refit=False).fit(X, y, domains=d)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MetaFineTunedClassifier(")]
    assert ["corruption_weight=0.5" in line for line in shown] == [False, False, True, True]
    assert all("corruption_weight=0," in line for line in shown[:2])


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
    return Spy(**make(meta_epochs=2, adaptation_epochs=1).get_params())


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
    assert search.score(X, y, domains=d) > 0.5
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
    assert set(search.best_estimator_.adapted_weights_) == {"books", "kitchen"}


@pytest.mark.parametrize("way", ["routing", "domain_column", "fit parameter"])
def test_grid_search_in_two_processes(make, data, way):
    X, y, d = data
    clf = make(meta_epochs=2, adaptation_epochs=1)
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
    assert set(pipe["mft"].adapted_weights_) == {"books", "kitchen"}
    assert pipe.score(X, y) > 0.5
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
        make().fit(X, y, domains=d)


def test_fits_in_threads_are_those_of_one_thread(make, data):
    """And generators and log levels are as before, which all threads share."""
    X, y, d = data
    logger = logging.getLogger("transformers")
    before, level = torch.get_rng_state(), logger.level

    def fit(_):
        return make(meta_epochs=2, adaptation_epochs=1).fit(X, y, domains=d).predict_proba(X, domains=d)

    alone = fit(0)
    with ThreadPoolExecutor(3) as pool:
        for proba in pool.map(fit, range(6)):
            np.testing.assert_array_equal(proba, alone)
    assert torch.equal(torch.get_rng_state(), before) and logger.level == level


def test_a_long_row_among_short_ones_in_windows_of_attention(make, data, tiny_models):
    """ModernBERT's local layers: padding that is far from a short text has nothing to read."""
    X, y, d = data
    folder = tiny_models["modernbert"]
    X = [" ".join(["good book"] * 60), *X[1:]]
    clf = make(model=folder, precision="bfloat16", adaptation=None).fit(X, y, domains=d)
    assert np.isfinite(clf.typicality_).all() and np.isfinite(clf.predict_proba(X)).all()
    exact = make(model=folder, adaptation=None).fit(X, y, domains=d)
    np.testing.assert_allclose(clf.typicality_, exact.typicality_, atol=0.01)


@pytest.mark.parametrize("changed", [{"pooling": "cls"}, {"max_length": 64}, {"n_prototypes": 2}], ids=str)
def test_what_the_fitted_model_cannot_follow_is_refused(make, data, tmp_path, changed):
    X, y, d = data
    clf = make(adaptation=None).fit(X, y, domains=d)
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


def test_a_class_that_only_rows_of_weight_zero_have_has_no_typicality(make, data):
    X, y, d = data
    y = np.where(np.arange(len(y)) == 5, "zzz", y)
    clf = make(adaptation=None).fit(X, y, domains=d, sample_weight=(y != "zzz").astype(float))
    assert clf.classes_.tolist() == ["neg", "pos"]
    assert np.flatnonzero(np.isnan(clf.typicality_)).tolist() == [5]


def test_domains_of_any_type_where_fit_had_none(make, data):
    X, y, _ = data
    with pytest.warns(UserWarning, match="domains were not given"):
        clf = make().fit(X, y)
    expected = clf.predict(X)
    for names in ("books", 3, True):
        np.testing.assert_array_equal(clf.predict(X, domains=[names] * len(X)), expected)


def test_adapt_keeps_true_and_one_apart(make, data):
    X, y, d = data
    clf = make().fit(X, y, domains=(d == "books").astype(int))
    before = clf.predict_proba(X, domains=[1] * len(X))
    with pytest.raises(ValueError, match="domain=True equals the known domain 1"):
        clf.adapt(X, y, True)
    np.testing.assert_array_equal(clf.predict_proba(X, domains=[1] * len(X)), before)


def test_another_default_dtype(make, data):
    X, y, d = data
    torch.set_default_dtype(torch.float64)
    try:
        proba = make(corruption_labels="uniform").fit(X, y, domains=d).predict_proba(X, domains=d)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_numpy_numbers_as_parameters_with_a_memory(make, data, tmp_path):
    X, y, d = data
    clf = make(max_length=np.int64(32), memory=str(tmp_path)).fit(X, y, domains=d)
    np.testing.assert_array_equal(clf.typicality_, make(max_length=32).fit(X, y, domains=d).typicality_)


def test_typicality_refuses_domains_of_another_type(make, data):
    X, y, d = data
    numbers = (d == "books").astype(int)
    clf = make(adaptation=None, meta_epochs=1).fit(X, y, domains=numbers)
    with pytest.raises(ValueError, match="one type"):
        clf.typicality(X, y, domains=numbers.astype(str))


def test_rows_of_class_weight_zero_stay_out_where_nothing_is_typical(make, data, monkeypatch):
    """Then weights are those of the other factors, not all equal."""
    X, y, d = data
    y = np.where(np.arange(len(y)) % 5 == 0, "rare", y)
    monkeypatch.setattr("skmft.stages.typicality", lambda own, cross, balance: np.full(len(own), -1.0))
    answers = make(class_weight={"rare": 0.0}, meta_epochs=12, adaptation=None).fit(X, y, domains=d).predict(X)
    assert "rare" not in answers
