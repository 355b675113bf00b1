"""What becomes of domains in scikit-learn's hands: {caller} x {metadata routing on, off} x {domains=, domain_column}.

Every cell runs the caller on a classifier that notes, row by row, which domain its fits and its predictions really got, and
asserts that every row of the data arrived in the last step of the caller. A cell is one of

- KEPT: every row came with its own domain;
- DROPPED: every row was fitted with its own domain, but scikit-learn asked for all predictions without domains, silently, so
  that the meta-learner answered;
- a pattern: scikit-learn refuses, and this is its message.
"""

from __future__ import annotations

import collections
import re

import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import make_texts
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skmft import MetaFineTunedClassifier
from skmft.metrics import make_domain_scorer
from skmft.recipes import MetaFineTuning, Trained

KEPT, DROPPED = "kept", "dropped"
GRID = {"corruption_weight": [0.1]}  # one candidate is searched as several are
N = 48


def rows():
    """Texts that name their row, labels and domains; `domain_of` says which domain a text has."""
    X, y, d = make_texts(N)
    X = np.array([f"{text} {i}".title() for i, text in enumerate(X)], dtype=object)  # in capitals, for what cleans
    order = np.random.default_rng(0).permutation(N)
    return X[order], y[order], d[order]


X, Y, D = rows()
DOMAIN_OF = {text.lower(): domain for text, domain in zip(X.tolist(), D.tolist())}
FRAME = pd.DataFrame({"text": X, "domain": D})


class Untrained(MetaFineTuning):
    """No epoch at all: which domains arrive does not depend on it."""

    def train(self, stage, rows):
        model = stage.new_model(self, rows)
        model.heads.clear()
        return Trained(model, [])


class Spy(MetaFineTunedClassifier):
    """Notes (text, domain) of every row that fit and the predictions get."""

    fitted: list = []
    predicted: list = []

    def _note(self, X, domains):
        if self.domain_column is not None and domains is None:
            domains = X[self.domain_column].tolist()
        texts = X["text"].tolist() if isinstance(X, pd.DataFrame) else np.asarray(X).ravel().tolist()
        return list(zip(texts, [None] * len(texts) if domains is None else np.asarray(domains).tolist()))

    def fit(self, X, y, domains=None, sample_weight=None):
        Spy.fitted.append(self._note(X, domains))
        if domains is None and self.domain_column is None:
            domains = "all"  # a warning of lost domains is not the matter here
        return super().fit(X, y, domains=domains, sample_weight=sample_weight)

    def _logits(self, X, domains):
        Spy.predicted.append(self._note(X, domains))
        return super()._logits(X, domains)


class Call:
    """One cell's surroundings: data and arguments in its form."""

    def __init__(self, spy, routing, form):
        self.column = form == "domain_column"
        self.clf = spy.set_params(domain_column="domain" if self.column else None)
        self.X = FRAME if self.column else X
        self.routing = routing
        self.domains = {} if self.column else {"domains": D}
        self.params = {"params": None if self.column else {"domains": D}}

    def named(self, prefix):
        """Fit arguments of a composite: routed by name, or without routing by prefix."""
        return {k if self.routing else f"{prefix}__{k}": v for k, v in self.domains.items()}

    def search(self, kind=GridSearchCV, grid=GRID, **params):
        return kind(self.clf, grid, cv=2, error_score="raise", **params)


def fitted(call):
    return clone(call.clf).fit(call.X, Y, **call.domains)


def after_fit(call, method, *args):
    clf = fitted(call)
    Spy.fitted.clear(), Spy.predicted.clear()
    getattr(clf, method)(call.X, *args, **call.domains)


def searched(call):
    search = call.search().fit(call.X, Y, **call.domains)
    Spy.fitted.clear(), Spy.predicted.clear()
    return search


def nested(call):
    """A search inside cross-validation, both scored by domain."""
    search = GridSearchCV(
        call.clf, {"corruption_weight": [0.1]}, scoring=make_domain_scorer(), cv=2, error_score="raise"
    )
    cross_validate(search, call.X, Y, scoring=make_domain_scorer(), cv=2, error_score="raise", **call.params)


def column_in_front(call):
    """A ColumnTransformer that cleans the text, and keeps the domain beside it where it is a column."""
    clean = FunctionTransformer(lambda frame: frame.apply(lambda c: c.str.lower()), feature_names_out="one-to-one")
    frame = call.X if call.column else pd.DataFrame({"text": call.X})
    steps = [("text", clean, ["text"])] + ([("domain", "passthrough", ["domain"])] if call.column else [])
    front = ColumnTransformer(steps, verbose_feature_names_out=False).set_output(transform="pandas")
    return frame, Pipeline([("front", front), ("mft", call.clf)])


def in_front(call):
    frame, pipe = column_in_front(call)
    pipe.fit(frame, Y, **call.named("mft"))
    pipe.predict(frame, **call.domains)


def cleaned(call):
    def lower(texts):
        if isinstance(texts, pd.DataFrame):
            return texts.assign(text=texts["text"].str.lower())
        return np.array([t.lower() for t in texts], dtype=object)

    pipe = Pipeline([("clean", FunctionTransformer(lower)), ("mft", call.clf)])
    pipe.fit(call.X, Y, **call.named("mft"))
    pipe.predict(call.X, **call.domains)
    pipe.predict_proba(call.X, **call.domains)


def pipeline(call, method, *args, **params):
    pipe = Pipeline([("mft", call.clf)]).fit(call.X, Y, **call.named("mft"))
    Spy.fitted.clear(), Spy.predicted.clear()
    getattr(pipe, method)(call.X, *args, **params)


def voting(call, method):
    vote = VotingClassifier([("a", call.clf), ("b", clone(call.clf))], voting="soft").fit(call.X, Y, **call.domains)
    if method == "predict":
        Spy.fitted.clear()
        vote.predict(call.X, **call.domains)


def stacking(call, method):
    stack = StackingClassifier([("a", call.clf)], cv=2).fit(call.X, Y, **call.domains)
    if method == "predict":
        Spy.fitted.clear(), Spy.predicted.clear()
        stack.predict(call.X)


def calibrated(call, method):
    calibrated = CalibratedClassifierCV(call.clf, cv=2).fit(call.X, Y, **call.domains)
    if method == "predict":
        Spy.fitted.clear(), Spy.predicted.clear()
        calibrated.predict(call.X, **call.domains)


def refit(call):
    """Of a search, the fit on all rows alone."""
    call.search().fit(call.X, Y, **call.domains)
    del Spy.fitted[:-1]
    Spy.predicted.clear()


def cleaned_texts(function):
    """What comes after a cleaner is in lower case."""

    def run(call):
        function(call)
        assert all(text == text.lower() for calls in (*Spy.fitted, *Spy.predicted) for text, _ in calls)

    return run


CALLERS = {
    "fit": fitted,
    "clone, fit": lambda c: clone(clone(c.clf)).fit(c.X, Y, **c.domains),
    "predict": lambda c: after_fit(c, "predict"),
    "predict_proba": lambda c: after_fit(c, "predict_proba"),
    "decision_function": lambda c: after_fit(c, "decision_function"),
    "score": lambda c: after_fit(c, "score", Y),
    "cross_val_score": lambda c: cross_val_score(c.clf, c.X, Y, cv=2, error_score="raise", **c.params),
    "cross_validate": lambda c: cross_validate(c.clf, c.X, Y, cv=2, error_score="raise", **c.params),
    "cross_validate, string scorer": lambda c: cross_validate(
        c.clf, c.X, Y, cv=2, scoring="neg_log_loss", error_score="raise", **c.params
    ),
    "cross_val_predict": lambda c: cross_val_predict(c.clf, c.X, Y, cv=2, **c.params),
    "GridSearchCV.fit": lambda c: c.search().fit(c.X, Y, **c.domains),
    "GridSearchCV.fit, string scorer": lambda c: c.search(scoring="accuracy").fit(c.X, Y, **c.domains),
    "GridSearchCV, refit": refit,
    "GridSearchCV.predict": lambda c: searched(c).predict(c.X, **c.domains),
    "GridSearchCV.score": lambda c: searched(c).score(c.X, Y, **c.domains),
    "cross_validate of GridSearchCV, domain scorers": nested,
    "RandomizedSearchCV.fit": lambda c: c.search(RandomizedSearchCV, n_iter=1, random_state=0).fit(c.X, Y, **c.domains),
    "HalvingGridSearchCV.fit": lambda c: c.search(
        HalvingGridSearchCV, {"corruption_weight": [0.0, 0.1]}, factor=2, random_state=0, min_resources=24
    ).fit(c.X, Y, **c.domains),
    "learning_curve": lambda c: learning_curve(
        c.clf, c.X, Y, cv=2, train_sizes=[0.9, 1.0], shuffle=True, random_state=0, error_score="raise", **c.params
    ),
    "validation_curve": lambda c: validation_curve(
        c.clf,
        c.X,
        Y,
        param_name="corruption_weight",
        param_range=[0.1],
        cv=2,
        error_score="raise",
        **c.params,
    ),
    "permutation_test_score": lambda c: permutation_test_score(
        c.clf, c.X, Y, cv=2, n_permutations=1, random_state=0, **c.params
    ),
    "Pipeline.fit": lambda c: Pipeline([("mft", c.clf)]).fit(c.X, Y, **c.named("mft")),
    "Pipeline.predict": lambda c: pipeline(c, "predict", **c.domains),
    "Pipeline.predict_proba": lambda c: pipeline(c, "predict_proba", **c.domains),
    "Pipeline.score": lambda c: pipeline(c, "score", Y, **c.domains),
    "FunctionTransformer in front": cleaned_texts(cleaned),
    "ColumnTransformer in front": cleaned_texts(in_front),
    "CalibratedClassifierCV.fit": lambda c: calibrated(c, "fit"),
    "CalibratedClassifierCV.predict": lambda c: calibrated(c, "predict"),
    "VotingClassifier.fit": lambda c: voting(c, "fit"),
    "VotingClassifier.predict": lambda c: voting(c, "predict"),
    "StackingClassifier.fit": lambda c: stacking(c, "fit"),
    "StackingClassifier.predict": lambda c: stacking(c, "predict"),
}
NEEDS_ROUTING = r"is only supported if enable_metadata_routing=True"
NO_ARGUMENT = r"TypeError: .*got an unexpected keyword argument 'domains'"
# with domains= only: every cell with domain_column is KEPT
NOT_KEPT = {
    # scorers get no domains without routing; string scorers, and cross_val_predict, not even with it
    **{
        (caller, False, "domains="): DROPPED
        for caller in (
            "cross_val_score",
            "cross_validate",
            "cross_validate, string scorer",
            "cross_val_predict",
            "GridSearchCV.fit",
            "GridSearchCV.fit, string scorer",
            "RandomizedSearchCV.fit",
            "HalvingGridSearchCV.fit",
            "learning_curve",
            "validation_curve",
            "permutation_test_score",
            "Pipeline.score",
            "CalibratedClassifierCV.fit",
        )
    },
    ("cross_validate, string scorer", True, "domains="): DROPPED,
    ("GridSearchCV.fit, string scorer", True, "domains="): DROPPED,
    ("cross_val_predict", True, "domains="): DROPPED,
    ("CalibratedClassifierCV.fit", True, "domains="): DROPPED,
    (
        "cross_validate of GridSearchCV, domain scorers",
        False,
        "domains=",
    ): r"ValueError: .* needs the domain of every row",
    ("GridSearchCV.predict", True, "domains="): NO_ARGUMENT,
    ("GridSearchCV.predict", False, "domains="): NO_ARGUMENT,
    ("GridSearchCV.score", False, "domains="): NEEDS_ROUTING,
    ("CalibratedClassifierCV.predict", True, "domains="): NO_ARGUMENT,
    ("CalibratedClassifierCV.predict", False, "domains="): NO_ARGUMENT,
    ("VotingClassifier.fit", False, "domains="): NEEDS_ROUTING,
    ("VotingClassifier.predict", True, "domains="): NO_ARGUMENT,
    ("VotingClassifier.predict", False, "domains="): NEEDS_ROUTING,
    ("StackingClassifier.fit", True, "domains="): NO_ARGUMENT,  # of its final estimator
    ("StackingClassifier.fit", False, "domains="): NEEDS_ROUTING,
    ("StackingClassifier.predict", True, "domains="): NO_ARGUMENT,
    ("StackingClassifier.predict", False, "domains="): NEEDS_ROUTING,
}
OUTCOMES = {}  # of the cells that have run
CELLS = [(c, r, f) for c in CALLERS for r in (True, False) for f in ("domains=", "domain_column")]


@pytest.fixture
def spy(make):
    Spy.fitted.clear(), Spy.predicted.clear()
    quick = {"recipe": Untrained(), "adaptation": None, "typicality_weighting": False, "head_init": "random"}
    return Spy(**make(**quick).get_params(deep=False))


FITS = {"fit", "clone, fit", "Pipeline.fit", "VotingClassifier.fit", "GridSearchCV, refit"}  # and predict nothing


def kept(calls):
    """Whether every row came with its own domain; else none may have had one."""
    own = {all(domain == DOMAIN_OF[text.lower()] for text, domain in call) for call in calls}
    if own == {False}:
        assert all(domain is None for call in calls for _, domain in call), "a row came with another row's domain"
    assert len(own) == 1, "of some calls the domains were kept, of others not"
    return own.pop()


def outcome(caller):
    if Spy.fitted:
        assert kept(Spy.fitted), "fitted without domains"
    assert bool(Spy.predicted) == (caller not in FITS)
    arrived = {text.lower() for call in (Spy.predicted or Spy.fitted[-1:]) for text, _ in call}
    assert arrived == set(DOMAIN_OF)
    return KEPT if caller in FITS or kept(Spy.predicted) else DROPPED


def slow_where_both(cell):
    """Either of routing and the column is enough: with both the cells say least."""
    return pytest.param(*cell, marks=pytest.mark.slow) if cell[1] and cell[2] == "domain_column" else cell


@pytest.mark.parametrize(("caller", "routing", "form"), list(map(slow_where_both, CELLS)), ids=str)
def test_cell(spy, caller, routing, form):
    expected = NOT_KEPT.get((caller, routing, form), KEPT)
    with sklearn.config_context(enable_metadata_routing=routing):
        try:
            CALLERS[caller](Call(spy, routing, form))
        except Exception as error:  # scikit-learn's refusal, whatever its type
            got = f"{type(error).__name__}: {error}"
        else:
            got = outcome(caller)
    OUTCOMES[caller, routing, form] = got if got in (KEPT, DROPPED) else "refused"
    if expected in (KEPT, DROPPED):
        assert got == expected
    else:
        assert re.search(expected, got)


def test_counts(capsys):
    """Print what came of the cells that ran before this, in this process."""
    assert len(CELLS) == len(set(CELLS)) == len(CALLERS) * 4
    assert set(NOT_KEPT) <= set(CELLS)
    with capsys.disabled():
        print(
            f"\ndomain matrix: {len(OUTCOMES)} of {len(CELLS)} cells run, {dict(collections.Counter(OUTCOMES.values()))}"
        )
