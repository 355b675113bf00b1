"""The baselines: each reduces to something known, and keeps scikit-learn's contract."""

import inspect
import math
import pickle
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn
import text_checks
import torch
from conftest import make_texts
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback

from skmft import MetaFineTunedClassifier, baselines
from skmft._engine.model import ModelOutput
from skmft._engine.training import auto_epochs
from skmft._method.adversarial import adversarial_ramp, reverse_gradient
from skmft._method.corruption import domain_head
from skmft._stage import META_EPOCHS
from skmft.baselines import (
    DomainAdversarialClassifier,
    MixedDomainClassifier,
    MultiTaskClassifier,
    SingleDomainClassifier,
)
from skmft.recipes import DomainAdversarial, MultiTask, Recipe, SingleDomain

ALL = [SingleDomainClassifier, MixedDomainClassifier, MultiTaskClassifier, DomainAdversarialClassifier]
QUICK = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 16, "precision": "float32", "random_state": 0}
PLAIN = {"typicality_weighting": False, "corruption_weight": 0.0, "adaptation": None}
one_of_all = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


@pytest.fixture
def quick(tiny):
    def maker(cls, **params):
        return cls(**{"model": tiny, **QUICK, **params})

    return maker


@pytest.fixture
def plain(tiny):
    """Plain fine-tuning by the engine's own parameters."""

    def maker(**params):
        quick = {"contrastive_weight": 0, "head_init": "random", "pair_encoding": "cross"}
        quick |= {"meta_epochs" if k == "epochs" else k: v for k, v in {**QUICK, **params}.items()}
        return MetaFineTunedClassifier(tiny, **{**PLAIN, **quick})

    return maker


# ------------------------------------------------------------------ each reduces to something known


def test_mixed_is_plain_fine_tuning_bit_for_bit(quick, plain, data):
    X, y, d = data
    weight = np.linspace(0, 2, len(X))
    for params in ({"epochs": 2}, {"epochs": 1, "class_weight": "balanced", "pooling": "cls", "random_state": 7}):
        a = quick(MixedDomainClassifier, **params).fit(X, y, domains=d, sample_weight=weight)
        b = plain(**params).fit(X, y, domains=d, sample_weight=weight)
        assert_array_equal(a.decision_function(X, domains=d), b.decision_function(X))
        assert [h["label_loss"] for h in a.history_] == [h["label_loss"] for h in b.history_]
        assert_array_equal(a.class_counts_, b.class_counts_)
    auto = quick(MixedDomainClassifier, epochs="auto", batch_size=48).fit(X, y)  # of domains it is silent
    expected = plain(meta_epochs="auto", batch_size=48).fit(X, y, domains=d)
    assert_array_equal(auto.predict_proba(X), expected.predict_proba(X))


@pytest.mark.parametrize("cls", [SingleDomainClassifier, MultiTaskClassifier, DomainAdversarialClassifier])
def test_with_one_domain_all_are_mixed(cls, quick, data):
    X, y, _ = data
    expected = quick(MixedDomainClassifier, epochs=1).fit(X, y).predict_proba(X)
    clf = quick(cls, epochs=1).fit(X, y, domains="shop")
    assert_array_equal(clf.predict_proba(X, domains="shop"), expected)
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-12)  # S: a mean over one model, as logarithms
    with pytest.warns(UserWarning, match=r"domains= was not given, .* as a MixedDomainClassifier does\. Pass domains="):
        np.testing.assert_allclose(quick(cls, epochs=1).fit(X, y).predict_proba(X), expected, rtol=1e-12)


@pytest.mark.parametrize("epochs", [3, pytest.param("auto", marks=pytest.mark.slow)])
def test_single_is_a_plain_model_a_domain(epochs, quick, plain):
    X, y, d = make_texts(60)
    X, y, d = X[:52], y[:52], np.where(np.arange(52) % 13 == 0, "dvd", d[:52])
    clf = quick(SingleDomainClassifier, epochs=epochs).fit(X, y, domains=d)
    steps = auto_epochs(52, 16, **META_EPOCHS) * math.ceil(52 / 16)  # those that stage 2 takes on all rows
    for name in ("books", "dvd", "kitchen"):
        own = np.flatnonzero(d == name)
        expected = 3 if epochs == 3 else math.ceil(steps / math.ceil(len(own) / 16))
        texts = [X[i] for i in own]
        alone = plain(meta_epochs=expected).fit(texts, y[own], domains=name)
        assert_array_equal(clf.predict_proba(X, domains=name), alone.predict_proba(X))
        history = [h for h in clf.history_ if h["domain"] == name]
        assert [h["label_loss"] for h in history] == [h["label_loss"] for h in alone.history_]
        assert {h["epochs"] for h in history} == {expected} and len(history) == expected
        taken = expected * math.ceil(len(own) / 16)
        assert epochs == 3 or steps <= taken < steps + math.ceil(len(own) / 16)


def test_single_answers_unknown_domains_by_the_mean_of_probabilities(quick, data):
    X, y, d = data
    clf = quick(SingleDomainClassifier, epochs=2).fit(X, y, domains=d)
    each = [clf.predict_proba(X, domains=name) for name in clf.domains_]
    mean = np.mean(each, axis=0)
    for domains in (None, "toys", [None] * len(X)):
        np.testing.assert_allclose(clf.predict_proba(X, domains=domains), mean, atol=1e-6)
    mixed = [None if i % 3 else k for i, k in enumerate(d)]
    np.testing.assert_allclose(clf.predict_proba(X, domains=mixed)[1::3], mean[1::3], atol=1e-6)
    np.testing.assert_allclose(
        clf.predict_proba(X, domains=mixed)[::3], clf.predict_proba(X, domains=d)[::3], atol=1e-5
    )
    frame = pd.DataFrame({"text": X, "domain": mixed})
    by_column = quick(SingleDomainClassifier, epochs=2, domain_column="domain").fit(frame.assign(domain=d), y)
    assert_array_equal(by_column.predict_proba(frame), clf.predict_proba(X, domains=mixed))


def test_multi_task_answers_unknown_domains_by_the_mean_of_logits(quick, data):
    X, _, d = data
    y = np.array([0, 1, 2] * 16)
    clf = quick(MultiTaskClassifier, epochs=2).fit(X, y, domains=d)
    each = [clf.decision_function(X, domains=name) for name in clf.domains_]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    np.testing.assert_allclose(clf.decision_function(X), np.mean(each, axis=0), atol=1e-5)
    np.testing.assert_allclose(clf.decision_function(X, domains="toys"), np.mean(each, axis=0), atol=1e-5)


def test_multi_task_heads_learn_from_their_own_domain_alone():
    torch.manual_seed(0)
    pooled, head = torch.randn(6, 5, dtype=torch.float64), torch.nn.Linear(5, 3 * 2, dtype=torch.float64)
    y, k, w = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0, 2, 0, 2, 0, 2]), torch.linspace(0.5, 1.5, 6)
    rows = SimpleNamespace(classes=np.arange(2), domains=k.numpy())
    batch = {"y": y, "weight": w, "own_outputs": torch.from_numpy(MultiTask().columns(rows)["own_outputs"])}
    MultiTask().terms(None, ModelOutput(head(pooled), pooled, []), batch)["label_loss"].backward()
    gradient = head.weight.grad.view(3, 2, 5)
    assert gradient[1].abs().max() == 0  # the domain that has no row here
    for domain in (0, 2):  # the gradient of softmax regression on the domain's rows
        own = k == domain
        p = torch.softmax(head(pooled[own]).view(-1, 3, 2)[:, domain], dim=1)
        error = (p - torch.nn.functional.one_hot(y[own], 2)) * w[own, None]
        torch.testing.assert_close(gradient[domain], error.T.detach() @ pooled[own] / 6, rtol=1e-6, atol=1e-7)


def test_multi_task_shares_its_encoder(quick, data):
    X, y, d = data
    clf = quick(MultiTaskClassifier, epochs=2).fit(X, y, domains=d)
    assert {k: sorted(v) for k, v in clf.adapted_weights_.items()} == {
        k: ["label_head.bias", "label_head.weight"] for k in ("books", "kitchen")
    }
    other = clf.fit(X, y, domains=np.where(d == "books", "b", d))  # names play no part
    assert_array_equal(other.predict_proba(X, domains="b"), clf.predict_proba(X, domains="b"))


# ------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("cls", "recipe"),
    [
        (MixedDomainClassifier, Recipe()),
        (SingleDomainClassifier, SingleDomain()),
        (MultiTaskClassifier, MultiTask()),
        (DomainAdversarialClassifier, DomainAdversarial()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_is_its_recipe_bit_for_bit(cls, recipe, quick, tiny, data):
    X, y, d = data
    expected = quick(cls, epochs=2).fit(X, y, domains=d)
    settings = {"meta_epochs" if name == "epochs" else name: value for name, value in QUICK.items()}
    settings |= {"meta_epochs": 2, "head_init": "random", "typicality_weighting": False, "adaptation": None}
    clf = MetaFineTunedClassifier(tiny, recipe=recipe, **settings).fit(X, y, domains=d)
    named = quick(MixedDomainClassifier, recipe=recipe, epochs=2).fit(X, y, domains=d)
    for domains in (d, None):
        for other in (clf, named):
            assert_array_equal(other.predict_proba(X, domains=domains), expected.predict_proba(X, domains=domains))
    assert clf.adapted_domains_.tolist() == expected.adapted_domains_.tolist()


@one_of_all
def test_saved_and_loaded(cls, quick, data, tmp_path):
    X, y, d = data
    clf = quick(cls, epochs=1).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    for again in (cls.load(tmp_path / "model"), pickle.loads(pickle.dumps(clf))):
        assert again.get_params() == clf.get_params()
        for domains in (d, None, "toys"):
            assert_array_equal(again.predict_proba(X, domains=domains), clf.predict_proba(X, domains=domains))


# ------------------------------------------------------------------ adversarial


def test_reversed_gradient_is_minus_the_hand_computed_one():
    torch.manual_seed(0)
    encoder, head = torch.nn.Linear(4, 5), domain_head(5, 3).eval()
    x, k = torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    output = ModelOutput(torch.zeros(7, 2), None, [encoder(x)])
    batch = {"y": torch.zeros(7, dtype=torch.int64), "weight": torch.ones(7), "domain": k, "progress": 0.0}
    model = SimpleNamespace(heads={"domain": head})
    terms = DomainAdversarial(0.3, schedule="constant").terms(model, output, batch)
    terms["domain_loss"].backward()
    # by hand: softmax, linear, tanh, linear, linear
    first, _, _, last = head
    with torch.no_grad():
        h = encoder(x)
        a = torch.tanh(first(h))
        p = torch.softmax(last(a), dim=1)
        at_logits = (p - torch.nn.functional.one_hot(k, 3)) / 7
        at_h = ((at_logits @ last.weight) * (1 - a**2)) @ first.weight
        torch.testing.assert_close(terms["domain_loss"], -p[torch.arange(7), k].log().mean())
        torch.testing.assert_close(last.weight.grad, at_logits.T @ a)  # the head descends, at full strength
        torch.testing.assert_close(encoder.weight.grad, -0.3 * at_h.T @ x)  # the encoder ascends
        assert terms["domain_accuracy"] == (0.0, (p.argmax(1) == k).float().mean())
        torch.testing.assert_close(terms["label_loss"], torch.tensor(math.log(2)))


def test_reversal_is_the_identity_forward():
    x = torch.randn(3, 2, requires_grad=True)
    assert_array_equal(reverse_gradient(x, 2.0).detach(), x.detach())
    reverse_gradient(x, 2.0).sum().backward()
    assert_array_equal(x.grad, -2 * np.ones((3, 2)))


def test_adversarial_without_weight_is_mixed(quick, data):
    X, y, d = data
    expected = quick(MixedDomainClassifier, epochs=2).fit(X, y, domains=d)
    clf = quick(DomainAdversarialClassifier, recipe=DomainAdversarial(weight=0), epochs=2).fit(X, y, domains=d)
    assert_array_equal(clf.predict_proba(X), expected.predict_proba(X))
    assert "domain_loss" not in clf.history_[0]
    clf.set_params(recipe__weight=0.5).fit(X, y, domains=d)
    assert np.abs(clf.predict_proba(X) - expected.predict_proba(X)).max() > 1e-6
    assert {"domain_loss", "domain_accuracy"} <= set(clf.history_[0])


@pytest.mark.slow
def test_discriminator_learns_and_the_encoder_works_against_it(quick):
    """With next to nothing reversed the discriminator is better than chance (a loss of ln 2), else no better.

    Labels tell nothing here, as those that do leave the tiny encoder no domain to be told.
    """
    X, y, d = make_texts(96)
    y = np.random.default_rng(0).permutation(y)

    def end(weight):
        recipe = DomainAdversarial(weight, schedule="constant")
        return (
            quick(DomainAdversarialClassifier, recipe=recipe, epochs=30, learning_rate=1e-3)
            .fit(X, y, domains=d)
            .history_[-1]
        )

    free, against = end(1e-9), end(1.0)
    assert free["domain_loss"] < math.log(2) - 0.03 and free["domain_accuracy"] > 0.6
    assert against["domain_loss"] > math.log(2) and against["domain_accuracy"] <= 0.5


@pytest.mark.parametrize("schedule", ["ramp", "constant"])
def test_schedule(schedule, quick, data, monkeypatch):
    X, y, d = data
    seen = []

    def noting(x, strength):
        seen.append(strength)
        return reverse_gradient(x, strength)

    monkeypatch.setattr("skmft.recipes.reverse_gradient", noting)
    quick(DomainAdversarialClassifier, recipe=DomainAdversarial(0.5, schedule=schedule), epochs=2).fit(X, y, domains=d)
    steps = 2 * 3
    ramp = [0.5 * (2 / (1 + math.exp(-10 * i / steps)) - 1) for i in range(steps)]
    np.testing.assert_allclose(seen, ramp if schedule == "ramp" else [0.5] * steps)
    assert adversarial_ramp(0) == 0 and 0.9999 < adversarial_ramp(1) < 1


# ------------------------------------------------------------------ arguments and errors


def test_without_domains_all_are_unknown(quick, data):
    X, y, _ = data
    for cls in ALL:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf = quick(cls, epochs=1).fit(X, y)
        for domains in ([1, 2], ["books", "toys"]):
            assert_array_equal(clf.predict(X[:2], domains=domains), clf.predict(X[:2]))


def test_unknown_domains_can_be_refused(quick, data):
    X, y, d = data
    for cls in ALL:
        clf = quick(cls, unknown_domain="error", epochs=1).fit(X, y, domains=d)
        clf.predict(X, domains=d)
        with pytest.raises(ValueError, match=r"'toys', which is none of the known .*; set unknown_domain='ignore'"):
            clf.predict(X[:2], domains=["books", "toys"])
        clf.predict(X[:2], domains=["books", None])  # not known, which is no wrong name
        with pytest.raises(ValueError, match=r"row 0 is 1, which is none of the known .*; convert them to one type"):
            clf.set_params(unknown_domain="ignore").predict(X[:2], domains=[1, 2])
        answered = clf.set_params(unknown_domain="ignore").predict(X[:2], domains=["books", "toys"])
        with pytest.raises(ValueError, match="'toys', which is none of the known"):
            clf.set_params(unknown_domain="error").predict(X[:2], domains=["books", "toys"])
        assert_array_equal(clf.set_params(unknown_domain="ignore").predict(X[:2], ["books", "toys"]), answered)


@one_of_all
def test_bad_arguments_name_themselves_and_change_nothing(cls, quick, data):
    X, y, d = data
    clf = quick(cls, epochs=1).fit(X, y, domains=d)
    before = clf.predict_proba(X, domains=d)
    for wrong in ({"epochs": 0}, {"unknown_domain": "meta"}, {"optimizer_params": {"lr": 1}}):
        kept = clf.get_params()
        with pytest.raises(ValueError, match=next(iter(wrong))):
            clf.set_params(**wrong).fit(X, y, domains=d)
        clf.set_params(**kept)
    with pytest.raises(ValueError, match="y has one class only"):
        clf.fit(X, ["a"] * len(X), domains=d)
    with pytest.raises(ValueError, match="domain_column='d' is not in X"):
        clf.set_params(domain_column="d").fit(X, y)
    assert_array_equal(clf.set_params(domain_column=None).predict_proba(X, domains=d), before)


def test_an_interrupted_fit_leaves_nothing_fitted(quick, data):
    """Also where the first domain's model is trained already."""
    X, y, d = data
    clf = quick(SingleDomainClassifier, epochs=1).fit(X, y, domains=d)
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        clf.set_params(callbacks=[Interrupts()]).fit(X, y, domains=np.where(d == "books", "a", "b"))
    assert not [name for name in vars(clf) if name.endswith("_")]


class Interrupts(Callback):
    """Interrupts the second training."""

    trainings = 0

    def on_train_begin(self, net, **kwargs):
        Interrupts.trainings += 1

    def on_batch_begin(self, net, **kwargs):
        if Interrupts.trainings == 2:
            raise KeyboardInterrupt


def test_adversarial_parameters_are_checked(quick, data):
    for wrong in ({"weight": -1}, {"schedule": "linear"}):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}' parameter of DomainAdversarial"):
            quick(DomainAdversarialClassifier, recipe=DomainAdversarial(**wrong)).fit(*data)


def test_a_domain_of_one_class_learns_to_answer_it(quick, data):
    X, y, d = data
    y = np.where(d == "books", "pos", y)
    for cls in (SingleDomainClassifier, MultiTaskClassifier):
        clf = quick(cls, epochs=8).fit(X, y, domains=d)
        assert set(clf.predict(X, domains="books")) == {"pos"}
        assert clf.score(X, y, domains=d) > 0.9


def test_a_domain_that_nothing_trains_is_refused(quick, data):
    X, y, d = data
    y, d = np.append(y, ["rare"] * 2), np.append(d, ["rareland"] * 2)
    clf = quick(SingleDomainClassifier, class_weight={"rare": 0.0})
    with pytest.raises(ValueError, match=r"domains: 'rareland' has no row of class_weight above 0"):
        clf.fit([*X, "good", "bad"], y, domains=d)


@one_of_all
def test_they_learn(cls, quick, data):
    X, y, d = data
    X_test, y_test, d_test = make_texts(40, seed=1)
    clf = quick(cls, epochs=6).fit(X, y, domains=d)
    assert clf.score(X_test, y_test, domains=d_test) > 0.9


# ------------------------------------------------------------------ scikit-learn


@one_of_all
def test_parameters(cls, quick):
    clf = quick(cls, learning_rate=0.5)
    twin = clone(clf)
    assert twin.get_params() == clf.get_params()
    assert twin.set_params(learning_rate=0.25).learning_rate == 0.25 and clf.learning_rate == 0.5
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (cls, MetaFineTunedClassifier))
    assert set(ours) - {"epochs"} <= set(theirs)  # the names are shared, and their order
    shared = ["epochs" if name == "meta_epochs" else name for name in theirs]
    assert [name for name in ours if name in shared] == [name for name in shared if name in ours]
    assert ours["pair_encoding"].default == "cross"  # what the paper's baselines do
    for name in set(ours) - {"epochs", "pair_encoding"}:
        assert ours[name].default == theirs[name].default, name
    assert ours["epochs"].default == theirs["meta_epochs"].default
    assert clf.__sklearn_tags__().input_tags == MetaFineTunedClassifier().__sklearn_tags__().input_tags


@one_of_all
def test_docstring_has_every_parameter(cls):
    section = cls.__doc__.split("Parameters\n")[1].split("Attributes\n")[0]
    named = re.findall(r"^    (\w[\w, ]*\w)(?: : .*)?$", section, re.MULTILINE)
    signature = inspect.signature(cls.__init__).parameters
    assert ", ".join(named).split(", ") == [name for name in signature if name != "self"]
    for name, stated in re.findall(r"^    (\w+) : .*default=(.*)$", section, re.MULTILINE):
        assert eval(stated) == signature[name].default, name
    assert not re.search(r"\{(epochs|unknown|recipe|history|model|shared)\}", cls.__doc__)
    attributes = cls.__doc__.split("Attributes\n")[1].split("References\n")[0]
    assert "adapted_domains_ : ndarray" in attributes and "meta_learner_ : torch.nn.Module" in attributes


SLOW = pytest.mark.slow


@pytest.mark.parametrize("routing", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize(
    "cls", [MultiTaskClassifier, *(pytest.param(c, marks=SLOW) for c in ALL if c is not MultiTaskClassifier)]
)
def test_grid_search(cls, routing, quick, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    grid = {"learning_rate": [1e-12, 3e-3]}
    by_column = GridSearchCV(quick(cls, domain_column="domain"), grid, cv=2, error_score="raise").fit(frame, y)
    assert by_column.best_params_ == {"learning_rate": 3e-3}
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(quick(cls), grid, cv=2, error_score="raise").fit(X, y, domains=d)
        assert_array_equal(search.best_estimator_.predict(X, domains=d), by_column.predict(frame))
        if routing:
            assert_array_equal(search.cv_results_["mean_test_score"], by_column.cv_results_["mean_test_score"])
            pipe = Pipeline([("same", FunctionTransformer()), ("clf", quick(cls))]).fit(X, y, domains=d)
            expected = search.best_estimator_.predict_proba(X, domains=d)
            assert_array_equal(pipe.predict_proba(X, domains=d), expected)


PER_DOMAIN = ("check_domains_come_back_as_given", "check_domains_choose_the_model")
BRIEF = (
    "check_init_only_stores",
    "check_clone_and_set_params",
    "check_not_fitted",
    "check_outputs_agree",
    PER_DOMAIN[1],
)
CASES = [  # fit and predictions are one for all classifiers: test_common.py has all checks on one of them
    pytest.param(cls, check, id=f"{cls.__name__}-{check.__name__}", marks=[] if check.__name__ in BRIEF else SLOW)
    for cls in ALL
    for check in text_checks.CHECKS
    if check is not text_checks.check_transform
    if cls in (SingleDomainClassifier, MultiTaskClassifier) or check.__name__ not in PER_DOMAIN
]


@pytest.mark.parametrize(("cls", "check"), CASES)
def test_text_check_holds(cls, check, quick):
    X, y, d = make_texts(48)
    epochs = 6 if check is text_checks.check_labels_come_back_as_given else 1
    check(lambda **params: quick(cls, **{"epochs": epochs, **params}), X, y, d)


def test_everything_public_is_here():
    assert sorted(cls.__name__ for cls in ALL) == sorted(baselines.__all__)
