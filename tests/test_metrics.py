import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import accuracy_score, classification_report, f1_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skmft.metrics import (
    domain_invariance_score,
    domain_report,
    macro_domain_score,
    make_domain_scorer,
    worst_domain_score,
)


def answers(n=90, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y, d = rng.integers(n_classes, size=n), np.array(["books", "dvd", "toys"])[rng.integers(3, size=n)]
    proba = rng.dirichlet(np.ones(n_classes), n) + 0.7 * np.eye(n_classes)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    return y, proba.argmax(axis=1), d, proba, rng.uniform(0.1, 2, n)


@pytest.mark.parametrize("weighted", [False, True])
def test_report_agrees_with_scikit_learn_on_every_domain(weighted):
    y, y_pred, d, proba, weight = answers()
    w = weight if weighted else None
    report = domain_report(y, y_pred, d, y_proba=proba, sample_weight=w, output_dict=True)
    assert list(report) == ["books", "dvd", "toys", "macro", "worst", "gap"]
    for name in ("books", "dvd", "toys"):
        own = d == name
        part = w[own] if weighted else None
        theirs = classification_report(y[own], y_pred[own], output_dict=True, sample_weight=part)
        assert report[name]["support"] == own.sum()
        assert report[name]["accuracy"] == pytest.approx(theirs["accuracy"])
        assert report[name]["macro F1"] == pytest.approx(theirs["macro avg"]["f1-score"])
        assert report[name]["log loss"] == pytest.approx(log_loss(y[own], proba[own], sample_weight=part))
    for column, worst in (("accuracy", min), ("macro F1", min), ("log loss", max)):
        values = [report[name][column] for name in ("books", "dvd", "toys")]
        assert report["macro"][column] == pytest.approx(np.mean(values))
        assert report["worst"][column] == pytest.approx(worst(values))
        assert report["gap"][column] == pytest.approx(max(values) - min(values))
    text = domain_report(y, y_pred, d, y_proba=proba, sample_weight=w, digits=3)
    assert f"{report['worst']['log loss']:.3f}" in text.splitlines()[-2]
    assert len({len(line) for line in text.splitlines() if line}) == 1  # the columns are flush


def test_report_of_other_names_and_labels():
    report = domain_report([True, False], [True, True], [1, 2], output_dict=True)
    assert report[1]["accuracy"] == 1 and report[2]["accuracy"] == 0
    report = domain_report(
        ["a", "a"], ["a", "a"], ["x", "y"], y_proba=[[1, 0], [0.5, 0.5]], labels=["a", "b"], output_dict=True
    )
    assert report["y"]["log loss"] == pytest.approx(np.log(2))


def test_scores_against_loops():
    y, y_pred, d, _, weight = answers()
    by_hand = [np.mean([a == b for a, b, k in zip(y, y_pred, d) if k == name]) for name in np.unique(d)]
    assert macro_domain_score(y, y_pred, d) == pytest.approx(np.mean(by_hand))
    assert worst_domain_score(y, y_pred, d) == pytest.approx(min(by_hand))
    assert worst_domain_score(y, y_pred, d, greater_is_better=False) == pytest.approx(max(by_hand))
    own = d == "toys"
    expected = f1_score(y[own], y_pred[own], average="micro", sample_weight=weight[own])
    by_metric = macro_domain_score(
        y[own], y_pred[own], d[own], metric=f1_score, average="micro", sample_weight=weight[own]
    )
    assert by_metric == pytest.approx(expected)


def test_bad_input():
    y, y_pred, d, proba, _ = answers()
    for score in (domain_report, macro_domain_score, worst_domain_score):
        with pytest.raises(ValueError, match=r"domains has shape \(1,\), but y has 90 rows"):
            score(y, y_pred, ["books"])
        with pytest.raises(ValueError, match=r"y_pred has 89 rows, but y has 90"):
            score(y, y_pred[1:], d)
        with pytest.raises(ValueError, match=r"domains: row 2 has no domain"):
            score(y[:3], y_pred[:3], ["books", "dvd", None])
    with pytest.raises(ValueError, match=r"y_proba has shape \(90, 2\); expected \(90, 3\), a column for every one of"):
        domain_report(y, y_pred, d, y_proba=proba[:, :2])
    with pytest.raises(ValueError, match=r"average='mean'; expected one of"):
        make_domain_scorer(average="mean")
    with pytest.raises(ValueError, match=r"metric='f1_macro'; expected a function"):
        make_domain_scorer("f1_macro")
    with pytest.raises(ValueError, match=r"response_method='guess'"):
        make_domain_scorer(response_method="guess")
    with pytest.raises(ValueError, match=r"one domain only, 'books'"):
        domain_invariance_score(np.zeros((4, 2)), ["books"] * 4)
    with pytest.raises(ValueError, match=r"domain 'dvd' has 2 rows, fewer than cv=5"):
        domain_invariance_score(np.zeros((10, 2)), ["books"] * 8 + ["dvd"] * 2)


class Knows(ClassifierMixin, BaseEstimator):
    """Right where it gets the domain "books", wrong elsewhere."""

    __metadata_request__fit = {"domains": True}
    __metadata_request__predict = {"domains": True}

    def __init__(self, right="books"):
        self.right = right

    def fit(self, X, y, domains=None):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X, domains=None):
        if domains is None and isinstance(X, pd.DataFrame):
            domains = X["domain"]
        truth = np.array([int(text[-1]) for text in (X["text"] if isinstance(X, pd.DataFrame) else X)])
        return truth if domains is None else np.where(np.asarray(domains) == self.right, truth, 1 - truth)


def rows():
    y = np.tile([0, 1], 12)
    d = np.array(["books"] * 16 + ["dvd"] * 8)
    return np.array([f"text {i}" for i in y], dtype=object), y, d


def scorers(column=None):
    return {
        average: make_domain_scorer(accuracy_score, average=average, domain_column=column)
        for average in ("macro", "worst", "micro")
    }


EXPECTED = {"macro": 1 / 2, "worst": 0.0, "micro": 2 / 3}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("routing", [True, False])
def test_scorers_in_searches(routing, wrapped):
    from skmft.model_selection import DomainStratifiedKFold

    X, y, d = rows()
    clf, grid = Knows(), {"right": ["dvd", "books"]}
    if wrapped:
        clf, grid = Pipeline([("same", FunctionTransformer()), ("clf", clf)]), {"clf__right": ["dvd", "books"]}
    with sklearn.config_context(enable_metadata_routing=routing):
        if routing:
            extra, frame, column = {"domains": d}, X, None
        else:
            extra, frame, column = {}, pd.DataFrame({"text": X, "domain": d}), "domain"
        cv = DomainStratifiedKFold(2, domain_column=column)
        done = cross_validate(clf, frame, y, scoring=scorers(column), cv=cv, params=extra)
        for average, value in EXPECTED.items():
            np.testing.assert_allclose(done[f"test_{average}"], value)
        one = cross_validate(clf, frame, y, scoring=scorers(column)["macro"], cv=cv, params=extra)
        np.testing.assert_allclose(one["test_score"], 0.5)
        search = GridSearchCV(clf, grid, scoring=scorers(column), refit="micro", cv=cv).fit(frame, y, **extra)
        np.testing.assert_allclose(search.cv_results_["mean_test_micro"], [1 / 3, 2 / 3])
        assert search.score(frame, y, **extra) == pytest.approx(2 / 3)
        assert clone(search).scoring.keys() == EXPECTED.keys()


def test_scorers_by_themselves():
    X, y, d = rows()
    scorer = make_domain_scorer(average="worst")
    assert scorer(Knows(), X, y, domains=d) == 0
    with pytest.raises(ValueError, match=r"got no domains. Give them as domains= with .*domain_column="):
        scorer(Knows(), X, y)
    assert pickle.loads(pickle.dumps(scorer))(Knows(), X, y, domains=d) == 0
    assert repr(copy.deepcopy(scorer)) == "make_domain_scorer(accuracy_score, average='worst')"


class NoDomains(Knows):
    __metadata_request__predict = {"domains": sklearn.utils.metadata_routing.UNUSED}

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def test_an_estimator_that_takes_no_domains_is_scored_by_domain():
    X, y, d = rows()
    y = np.where(d == "books", 0, y)
    assert make_domain_scorer(average="worst")(NoDomains(), X, y, domains=d) == 0.5


def test_the_column_of_the_estimator_is_the_default(make, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    clf = make(domain_column="domain").fit(frame, y)
    expected = macro_domain_score(y, clf.predict(frame), d)
    assert make_domain_scorer()(clf, frame, y) == expected
    pipe = Pipeline([("same", FunctionTransformer()), ("clf", clf)])
    assert make_domain_scorer()(pipe, frame, y) == expected


def test_losses_are_negated(fitted, data):
    X, y, d = data
    scorer = make_domain_scorer(log_loss, response_method="predict_proba", greater_is_better=False, average="worst")
    proba = fitted.predict_proba(X, domains=d)
    worst = max(log_loss(y[d == name], proba[d == name]) for name in set(d))
    assert scorer(fitted, X, y, domains=d) == pytest.approx(-worst)


def test_domain_invariance():
    rng = np.random.default_rng(0)
    d = np.repeat(["books", "dvd"], [300, 100])
    scores = []
    for shift in (0, 1, 6):
        embeddings = rng.normal(size=(400, 4))
        embeddings[:, 0] += shift * (d == "dvd")
        scores.append(domain_invariance_score(embeddings, d, random_state=0))
    assert abs(scores[0]) < 0.1
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.95
    assert scores[2] == domain_invariance_score(embeddings, d, random_state=0)


def test_columns_of_probabilities_in_another_order():
    y, proba = ["a", "b", "a", "b"], np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    one = domain_report(y, y, ["books"] * 4, y_proba=proba, labels=["a", "b"], output_dict=True)
    other = domain_report(y, y, ["books"] * 4, y_proba=proba[:, ::-1], labels=["b", "a"], output_dict=True)
    assert one == other
    assert one["books"]["log loss"] == pytest.approx(-np.log([0.9, 0.9, 0.8, 0.6]).mean())
