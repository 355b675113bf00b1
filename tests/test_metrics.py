import copy
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    classification_report,
    f1_score,
    log_loss,
    make_scorer,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skmft.metrics import (
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
    assert type(report[1]["support"]) is int and type(report["gap"]["accuracy"]) is float  # as JSON takes them
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
        with pytest.raises(ValueError, match=r"y_pred has shape \(89,\), but y has 90 rows"):
            score(y, y_pred[1:], d)
        with pytest.raises(ValueError, match=r"sample_weight has shape \(91,\), but y has 90 rows"):
            score(y, y_pred, d, sample_weight=np.ones(91))
        for missing in (None, np.nan, pd.NA):
            with pytest.raises(ValueError, match=r"domains: row 2 has no domain"):
                score(y[:3], y_pred[:3], ["books", "dvd", missing])
        with pytest.raises(ValueError, match=r"domains mixes \['int', 'str'\]; expected one type. Convert them all"):
            score(y[:3], y_pred[:3], [1, "1", 2])
        with pytest.raises(ValueError, match=r"domains mixes \['bool', 'int'\]"):
            score(y[:3], y_pred[:3], [1, True, 2])
    with pytest.raises(
        ValueError, match=r"y_proba has shape \(90, 2\); expected one column for each of labels=\[0, 1, 2\]"
    ):
        domain_report(y, y_pred, d, y_proba=proba[:, :2])
    with pytest.raises(ValueError, match=r"average='mean'; expected one of"):
        make_domain_scorer(average="mean")
    with pytest.raises(ValueError, match=r"metric='f1_macro'; expected a function"):
        make_domain_scorer("f1_macro")
    with pytest.raises(ValueError, match=r"response_method='guess'"):
        make_domain_scorer(response_method="guess")


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_metric_that_is_undefined_in_a_domain_makes_the_score_nan(names):
    domains = [names[0]] * 2 + [names[1]] * 2
    for score in (macro_domain_score, worst_domain_score, partial(worst_domain_score, greater_is_better=False)):
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(score([0, 1, 1, 1], [0.2, 0.8, 0.7, 0.6], domains, metric=roc_auc_score))


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
    with pytest.raises(
        ValueError, match=r"needs the domain of every row. Pass domains=, .* or name a column of X by domain_column="
    ):
        scorer(Knows(), X, y)
    for average in ("micro", "macro"):
        with pytest.raises(ValueError, match=r"predict\(X\) has shape \(24,\), but y has 25 rows"):
            make_domain_scorer(average=average)(NoDomains(), X, [*y, 0], domains=d)
    assert pickle.loads(pickle.dumps(scorer))(Knows(), X, y, domains=d) == 0
    assert repr(copy.deepcopy(scorer)) == "make_domain_scorer(accuracy_score, average='worst')"


class Noting(Knows):
    """Notes what domains predict gets."""

    got: list = []

    def predict(self, X, domains=None):
        Noting.got.append(domains)
        return super().predict(X, domains)


def search_of(clf, name="right"):
    """A search that finds the default of Knows the better one."""
    return GridSearchCV(clf, {name: ["dvd", "books"]}, scoring=make_domain_scorer(average="micro"), cv=2)


def after_a_step(clf):
    return Pipeline([("same", FunctionTransformer()), ("last", clf)])


NESTED = {
    "search": lambda: search_of(Noting()),
    "search of a pipeline": lambda: search_of(after_a_step(Noting()), "last__right"),
    "search in a pipeline": lambda: after_a_step(search_of(Noting())),
    "search in a pipeline in a pipeline": lambda: after_a_step(after_a_step(search_of(Noting()))),
    "search of a search": lambda: search_of(
        GridSearchCV(Noting(), {}, scoring=make_domain_scorer(), cv=2), "estimator__right"
    ),
}


@pytest.mark.parametrize("kind", NESTED)
def test_the_best_estimator_of_a_search_gets_the_domains(kind):
    from skmft.model_selection import DomainStratifiedKFold

    X, y, d = rows()
    Noting.got.clear()
    with sklearn.config_context(enable_metadata_routing=True):
        done = cross_validate(
            NESTED[kind](),
            X,
            y,
            scoring=scorers(),
            cv=DomainStratifiedKFold(2),
            params={"domains": d},
            error_score="raise",
        )
        for average, value in EXPECTED.items():
            np.testing.assert_allclose(done[f"test_{average}"], value)
        estimator = NESTED[kind]().fit(X, y, domains=d)
    assert make_domain_scorer()(estimator, X, y, domains=d) == EXPECTED["macro"]
    assert Noting.got[-1] is d
    assert all(got is not None for got in Noting.got)


def test_a_frozen_estimator_gets_the_domains():
    X, y, d = rows()
    for estimator in (Knows().fit(X, y), after_a_step(Knows()).fit(X, y)):
        assert make_domain_scorer()(FrozenEstimator(estimator), X, y, domains=d) == EXPECTED["macro"]


class Wrapper(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Predicts without domains."""

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y):
        self.estimator_ = clone(self.estimator).fit(X, y)
        self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X):
        return self.estimator_.predict(X)


class ByColumn(Knows):
    def __init__(self, right="books", domain_column=None):
        super().__init__(right)
        self.domain_column = domain_column


WRAPPED = {
    "wrapper": Wrapper,
    "wrapper of a pipeline": lambda clf: Wrapper(after_a_step(clf)),
    "wrapper in a pipeline": lambda clf: after_a_step(Wrapper(clf)),
    "wrapper in a search": lambda clf: GridSearchCV(Wrapper(clf), {}, scoring="accuracy", cv=2),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapper_that_would_drop_the_domains_is_refused(kind):
    X, y, d = rows()
    estimator = WRAPPED[kind](ByColumn()).fit(X, y)
    with pytest.raises(ValueError, match=r"Wrapper\.predict does not pass them on to ByColumn.* set domain_column= of"):
        make_domain_scorer()(estimator, X, y, domains=d)
    frame = pd.DataFrame({"text": X, "domain": d})  # what the message says to do
    estimator = WRAPPED[kind](ByColumn(domain_column="domain")).fit(frame, y)
    assert make_domain_scorer()(estimator, frame, y) == EXPECTED["macro"]
    assert make_domain_scorer()(estimator, frame, y, domains=d) == EXPECTED["macro"]


def test_wrappers_of_scikit_learn(fitted, data):
    X, y, d = data
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted)).fit(X, y)
    with pytest.raises(ValueError, match=r"CalibratedClassifierCV\.predict does not pass .* MetaFineTunedClassifier"):
        make_domain_scorer()(calibrated, X, y, domains=d)
    X, y, d = rows()
    for inside in (Knows(), NoDomains()):
        vote = VotingClassifier([("a", NoDomains()), ("b", inside)]).fit(X, y)
        if isinstance(inside, NoDomains):
            assert make_domain_scorer()(vote, X, y, domains=d) == 0.5
        else:
            with pytest.raises(ValueError, match=r"VotingClassifier\.predict does not pass them on to Knows"):
                make_domain_scorer()(vote, X, y, domains=d)


class Embeds(Knows):
    def transform(self, X):
        return X


def test_a_step_that_only_transforms_needs_no_domains():
    X, y, d = rows()
    pipe = Pipeline([("embed", Embeds()), ("clf", NoDomains())]).fit(X, y)
    assert make_domain_scorer()(pipe, X, y, domains=d) == 0.5


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


def probabilities(names, missing=0):
    """A classifier of 2 or 3 classes, and rows in three domains, of which "toys" lacks the first `missing` classes."""
    y, _, d, X, _ = answers(n_classes=len(names))
    keep = (d != "toys") | (y >= missing)
    clf = LogisticRegression().fit(X, np.array(names)[y])
    return clf, X[keep], np.array(names)[y[keep]], d[keep]


@pytest.mark.parametrize("names", [[0, 1], [3, 5], ["neg", "pos"]], ids=str)
@pytest.mark.parametrize(
    ("metric", "method", "positive"),
    [
        (roc_auc_score, "predict_proba", None),
        (roc_auc_score, "decision_function", None),
        (average_precision_score, "predict_proba", 1),
        (average_precision_score, "predict_proba", 0),
        (average_precision_score, "decision_function", 0),
        (brier_score_loss, "predict_proba", 0),
        (log_loss, "predict_proba", None),
    ],
)
def test_two_classes_as_in_the_scorers_of_scikit_learn(metric, method, positive, names):
    clf, X, y, d = probabilities(names)
    extra = {"response_method": method, **({} if positive is None else {"pos_label": names[positive]})}
    theirs = [make_scorer(metric, **extra)(clf, X[d == name], y[d == name]) for name in np.unique(d)]
    assert make_domain_scorer(metric, **extra)(clf, X, y, domains=d) == pytest.approx(np.mean(theirs))


def test_the_positive_class():
    clf, X, y, d = probabilities(["neg", "pos"])
    with pytest.raises(ValueError, match=r"pos_label=1, which is not one of the classes \['neg', 'pos'\]; pass one"):
        make_domain_scorer(average_precision_score, response_method="predict_proba")(clf, X, y, domains=d)
    brier = make_domain_scorer(brier_score_loss, response_method="predict_proba", average="micro")
    assert brier(clf, X, y, domains=d) == pytest.approx(
        brier_score_loss(y, clf.predict_proba(X)[:, 1], pos_label="pos")
    )


@pytest.mark.parametrize("names", [[3, 5], ["neg", "pos"], ["bad", "good", "so so"]], ids=str)
@pytest.mark.parametrize("metric", [log_loss, brier_score_loss])
def test_a_domain_may_lack_a_class(names, metric):
    clf, X, y, d = probabilities(names, missing=1)
    scorer = make_domain_scorer(metric, response_method="predict_proba", average="macro")
    truth = y[:, None] == clf.classes_
    expected = []
    for name in np.unique(d):
        proba, true = clf.predict_proba(X[d == name]), truth[d == name]
        if metric is log_loss:
            expected.append(-np.log(proba[true]).mean())
        else:
            expected.append(((proba - true) ** 2).sum(axis=1).mean() / (2 if len(names) == 2 else 1))
    assert scorer(clf, X, y, domains=d) == pytest.approx(np.mean(expected))


def test_what_arguments_a_metric_gets():
    clf, X, y, d = probabilities(["bad", "good", "so so"])
    got = []

    def metric(y, answer, labels=None, pos_label=None):
        got.append((labels, pos_label, answer.shape[1:]))
        return 0.0

    def score(metric=metric, clf=clf, X=X, y=y, d=d, method="predict_proba", **kwargs):
        return make_domain_scorer(metric, response_method=method, **kwargs)(clf, X, y, domains=d)

    score(), score(labels=["bad"]), score(partial(metric, labels=["good"])), score(method="predict")
    assert got[::3] == [
        (["bad", "good", "so so"], None, (3,)),
        (["bad"], None, (3,)),
        (["good"], None, (3,)),
        (None, None, ()),
    ]
    clf, X, y, d = probabilities(["neg", "pos"])
    got.clear()
    score(clf=clf, X=X, y=y, d=d), score(clf=clf, X=X, y=y, d=d, pos_label="neg")
    assert got[::3] == [(["neg", "pos"], "pos", ()), (["neg", "pos"], "neg", ())]
    assert score(lambda labels, answer: accuracy_score(labels, labels), clf=clf, X=X, y=y, d=d) == 1


def test_columns_of_probabilities_in_another_order():
    y, proba = ["a", "b", "a", "b"], np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.4, 0.6]])
    one = domain_report(y, y, ["books"] * 4, y_proba=proba, labels=["a", "b"], output_dict=True)
    other = domain_report(y, y, ["books"] * 4, y_proba=proba[:, ::-1], labels=["b", "a"], output_dict=True)
    assert one == other
    assert one["books"]["log loss"] == pytest.approx(-np.log([0.9, 0.9, 0.8, 0.6]).mean())


def test_no_rows():
    for call in (domain_report, macro_domain_score, worst_domain_score):
        with pytest.raises(ValueError, match="have no rows; expected at least one"):
            call([], [], [])


def test_scorers_find_the_domain_column_of_other_tables(make, data):
    datasets = pytest.importorskip("datasets", reason="needs datasets, which the extra skmft[test] has")
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, which the extra skmft[test] has")
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d})
    clf = make(domain_column="domain", meta_epochs=1).fit(frame, y)
    scorer = make_domain_scorer(average="worst")
    expected = scorer(clf, frame, y)
    for table in (datasets.Dataset.from_pandas(frame), pa.Table.from_pandas(frame)):
        assert scorer(clf, table, y) == expected
