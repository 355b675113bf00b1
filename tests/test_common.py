"""scikit-learn's checks, and our own on texts, each of them shown to catch an estimator broken on purpose."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import text_checks
from conftest import make_texts
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from skmft import MetaFineTunedClassifier, baselines

with warnings.catch_warnings():  # scikit-learn tells, when it lists its checks, how many of them it skips
    warnings.simplefilter("ignore", SkipTestWarning)
    scikit_learn_checks = parametrize_with_checks(
        [MetaFineTunedClassifier(), *(getattr(baselines, name)() for name in baselines.__all__)]
    )


@scikit_learn_checks
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_tags_are_true(fitted):
    tags = MetaFineTunedClassifier().__sklearn_tags__()
    assert tags.input_tags.string
    assert tags.input_tags.one_d_array
    assert not tags.input_tags.two_d_array
    assert not tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert tags.estimator_type == "classifier"
    assert tags.target_tags.required
    with pytest.raises(ValueError, match="expected str"):
        fitted.predict(np.zeros((3, 1)))


Base = MetaFineTunedClassifier


class ChangesItsArguments(Base):
    def __init__(self, model=None, *, corruption_weight=0.1, extra=None):
        super().__init__(model=model or "default", corruption_weight=corruption_weight)
        self.extra = extra


class LosesAParameter(Base):
    def set_params(self, **params):
        params.pop("learning_rate", None)
        return super().set_params(**params)


class ReturnsNothing(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        super().fit(X, y, domains, sample_weight)


class LeavesThings(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        self.leftover = 1
        return super().fit(X, y, domains, sample_weight)


class SortsItsInput(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        super().fit(X, y, domains, sample_weight)
        if isinstance(X, list):
            X.sort()
        return self


class DependsOnTheRows(Base):
    """What a batch holds changes its answers."""

    def _logits(self, X, domains):
        logits = super()._logits(X, domains)
        return logits + 0.01 * np.arange(len(logits))[:, None] * [1, -1]


class Forgets(Base):
    """Draws its seed anew, whatever random_state is."""

    def fit(self, X, y, domains=None, sample_weight=None):
        given, self.random_state = self.random_state, None
        super().fit(X, y, domains, sample_weight)
        self.random_state = given
        return self


class DrawsGlobally(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        np.random.rand()
        return super().fit(X, y, domains, sample_weight)


class PredictsUnfitted(Base):
    def transform(self, X):
        return np.zeros((len(X), 32)) if not hasattr(self, "meta_learner_") else super().transform(X)


class ForgetsSoftmax(Base):
    def predict_proba(self, X, domains=None):
        return self._logits(X, domains)


class ScoresWithoutDomains(Base):
    def score(self, X, y, domains=None, sample_weight=None):
        return 1 - super().score(X, y, domains, sample_weight)


class ReversesSeries(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        y = y[::-1] if hasattr(X, "index") and not isinstance(X, (list, tuple)) else y
        return super().fit(X, y, domains, sample_weight)


class ReadsOneTextOfAPair(Base):
    def _tokenize(self, X):
        if hasattr(X, "columns") and len(X.columns) == 3:
            X = X.assign(premise=X["hypothesis"])
        return super()._tokenize(X)


class AnswersInNumbers(Base):
    def predict(self, X, domains=None):
        return self._logits(X, domains).argmax(1)


class NamesDomainsAsText(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        return super().fit(X, y, np.asarray(domains).astype(str), sample_weight)


class KeepsRowsOfWeightZero(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        weight = None if sample_weight is None else np.maximum(sample_weight, 1e-3)
        return super().fit(X, y, domains, weight)


class IgnoresWeights(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        return super().fit(X, y, domains)


class Remembers(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        old = dict(getattr(self, "adapted_weights_", {}))
        super().fit(X, y, domains, sample_weight)
        self.adapted_weights_ = {**old, **self.adapted_weights_}
        return self


class LosesItsDomainsInPickles(Base):
    def __getstate__(self):
        return {**super().__getstate__(), "adapted_weights_": {}}


class IgnoresDomains(Base):
    def _logits(self, X, domains):
        return super()._logits(X, None if self.domain_column is None else domains)


class TransformsByTheRawEncoder(Base):
    def transform(self, X):
        return super().transform(X).astype(np.float64)


class Prints(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        print("hello")
        return super().fit(X, y, domains, sample_weight)


class CutsToTheShortest(Base):
    def fit(self, X, y, domains=None, sample_weight=None):
        n = min(len(X), len(y), len(domains))
        return super().fit(X[:n], y[:n], domains[:n], sample_weight)


BROKEN = {
    "check_init_only_stores": ChangesItsArguments,
    "check_clone_and_set_params": LosesAParameter,
    "check_fit_returns_self_and_keeps_parameters": ReturnsNothing,
    "check_fitted_attributes_end_in_underscore": LeavesThings,
    "check_inputs_are_not_changed": SortsItsInput,
    "check_rows_in_any_order": DependsOnTheRows,
    "check_one_row_at_a_time": DependsOnTheRows,
    "check_same_seed_same_model": Forgets,
    "check_random_state_instances_are_used": Forgets,
    "check_global_state_is_left_alone": DrawsGlobally,
    "check_not_fitted": PredictsUnfitted,
    "check_outputs_agree": ForgetsSoftmax,
    "check_score_is_accuracy": ScoresWithoutDomains,
    "check_forms_of_X_agree": ReversesSeries,
    "check_forms_of_pairs_agree": ReadsOneTextOfAPair,
    "check_labels_come_back_as_given": AnswersInNumbers,
    "check_domains_come_back_as_given": NamesDomainsAsText,
    "check_weight_zero_is_absence": KeepsRowsOfWeightZero,
    "check_weights_count_relatively": IgnoresWeights,
    "check_refit_forgets": Remembers,
    "check_pickles": LosesItsDomainsInPickles,
    "check_domains_choose_the_model": IgnoresDomains,
    "check_transform": TransformsByTheRawEncoder,
    "check_silent": Prints,
    "check_lengths": CutsToTheShortest,
}
QUICK = {
    "meta_epochs": 1,
    "adaptation_epochs": 1,
    "learning_rate": 3e-3,
    "adaptation_learning_rate": None,
    "batch_size": 16,
    "precision": "float32",
    "random_state": 0,
}


LEARNS = {"meta_epochs": 4}  # where a check asks for good answers


def maker(cls, model, check):
    learns = LEARNS if check is text_checks.check_labels_come_back_as_given else {}

    def make(**params):
        accepted = {**QUICK, **learns, "model": model, **params}
        if cls is ChangesItsArguments:
            accepted = {k: v for k, v in accepted.items() if k in ("model", "corruption_weight", "extra")}
        return cls(**accepted)

    return make


def by_name(check):
    return check.__name__


@pytest.mark.parametrize("check", text_checks.CHECKS, ids=by_name)
def test_text_check_holds(check, tiny):
    X, y, d = make_texts(48)
    check(maker(MetaFineTunedClassifier, tiny, check), X, y, d)


@pytest.mark.slow
@pytest.mark.parametrize("check", text_checks.CHECKS, ids=by_name)
def test_text_check_catches_a_broken_estimator(check, tiny):
    X, y, d = make_texts(48)
    make = maker(BROKEN[check.__name__], tiny, check)
    with pytest.raises(AssertionError):
        check(make, copy.copy(X), y, d)
