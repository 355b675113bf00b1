"""Scores per domain: a report, averages over domains, and scorers that know the domains."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

from ._inputs.grouping import column_of, scores_by_domain
from ._typing import Array, Estimator, Name, Params, Texts

__all__ = ["domain_report", "macro_domain_score", "make_domain_scorer", "worst_domain_score"]

Metric = Callable[..., float]


def macro_domain_score(
    y: ArrayLike,
    y_pred: ArrayLike,
    domains: ArrayLike,
    *,
    metric: Metric = accuracy_score,
    sample_weight: ArrayLike | None = None,
    **kwargs: object,
) -> float:
    """Mean of a metric over domains, each of which counts alike, however many rows it has.

    Parameters
    ----------
    y, y_pred, domains : array-like, shape (n_samples,)
        True labels, predictions in a form that `metric` takes, and the domain of every row.
    metric : callable, default=accuracy_score
        ``metric(y, y_pred, **kwargs)``, called for each domain.
    sample_weight, **kwargs : passed on to `metric`

    Returns
    -------
    float
        NaN if `metric` is NaN for a domain, as ROC AUC is where there is one class only.

    Examples
    --------
    >>> from skmft.metrics import macro_domain_score
    >>> macro_domain_score([0, 1, 1, 1], [0, 1, 1, 0], ["books", "books", "books", "dvd"])
    0.5
    """
    scores = scores_by_domain(partial(metric, **kwargs), y, domains, sample_weight, y_pred=y_pred)
    return float(np.mean(list(scores.values())))


def worst_domain_score(
    y: ArrayLike,
    y_pred: ArrayLike,
    domains: ArrayLike,
    *,
    metric: Metric = accuracy_score,
    greater_is_better: bool = True,
    sample_weight: ArrayLike | None = None,
    **kwargs: object,
) -> float:
    """The metric in the domain where it is worst.

    Parameters
    ----------
    y, y_pred, domains, metric, sample_weight, **kwargs : as in `macro_domain_score`
    greater_is_better : bool, default=True
        False for losses: the greatest is the worst.

    Returns
    -------
    float
        NaN if `metric` is NaN for a domain: nobody knows then which one is worst.

    Examples
    --------
    >>> from skmft.metrics import worst_domain_score
    >>> worst_domain_score([0, 1, 1, 1], [0, 1, 1, 0], ["books", "books", "books", "dvd"])
    0.0
    """
    scores = list(scores_by_domain(partial(metric, **kwargs), y, domains, sample_weight, y_pred=y_pred).values())
    return float(np.min(scores) if greater_is_better else np.max(scores))  # unlike min(), NaN if any is NaN


def domain_report(
    y: ArrayLike,
    y_pred: ArrayLike,
    domains: ArrayLike,
    *,
    y_proba: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    digits: int = 2,
    output_dict: bool = False,
) -> str | dict[Name, dict]:
    """Support, accuracy, macro F1 and log loss per domain, with their mean, worst and gap.

    Parameters
    ----------
    y, y_pred, domains, sample_weight : as in `macro_domain_score`
    y_proba : array-like, shape (n_samples, n_classes), default=None
        Predicted probabilities, for the log loss.
    labels : array-like, shape (n_classes,), default=None
        The classes in the order of the columns of `y_proba`; by default the sorted classes of `y`.
    digits : int, default=2
        Decimals in the text.
    output_dict : bool, default=False
        Return a dict in place of text.

    Returns
    -------
    str, or dict of dict
        Keys are the domains, then "macro", "worst" and "gap" (best minus worst), each of these column by column; a domain
        of such a name has a row in the text only. Macro F1 is over the classes among a domain's true or predicted labels.

    Examples
    --------
    >>> from skmft.metrics import domain_report
    >>> y, y_pred = [0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1]
    >>> print(domain_report(y, y_pred, ["books"] * 4 + ["dvd"] * 2))
          support  accuracy  macro F1
    books       4      1.00      1.00
    dvd         2      0.50      0.33
    <BLANKLINE>
    macro       6      0.75      0.67
    worst              0.50      0.33
    gap                0.50      0.67
    """
    classes = np.unique(np.asarray(y)) if labels is None else np.asarray(labels)
    score = partial(scores_by_domain, y=y, domains=domains, weight=sample_weight)
    columns = {
        "accuracy": score(accuracy_score, y_pred=y_pred),
        "macro F1": score(partial(f1_score, average="macro"), y_pred=y_pred),
    }
    if y_proba is not None:
        if np.shape(y_proba)[1:] != classes.shape:
            expected = f"one column for each of labels={classes.tolist()}"
            raise ValueError(f"y_proba has shape {np.shape(y_proba)}; expected {expected}.")
        order = np.argsort(classes)  # in which log_loss takes the columns
        columns["log loss"] = score(partial(log_loss, labels=classes[order]), y_proba=np.asarray(y_proba)[:, order])
    scores = pd.DataFrame(columns)
    least, most = scores.min(), scores.max()
    totals = {"macro": scores.mean(), "worst": least.where(scores.columns != "log loss", most), "gap": most - least}
    scores.insert(0, "support", pd.Series(scores_by_domain(len, y, domains)).astype(int))
    own: dict[Name, dict] = scores.to_dict("index")
    total: dict[Name, dict] = {name: values.to_dict() for name, values in totals.items()}
    total["macro"]["support"] = len(np.asarray(y))
    if output_dict:
        return {**own, **total}
    table = pd.DataFrame([*own.values(), {}, *total.values()], index=[*map(str, own), "", *total])
    table["support"] = table["support"].map("{:.0f}".format, na_action="ignore")
    text = table.to_string(na_rep="", float_format=f"{{:.{digits}f}}".format)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _final(estimator: Estimator) -> Any:
    """The estimator whose predictions can be given domains: a fitted search's best one, also as a pipeline's last step."""
    if isinstance(estimator, FrozenEstimator):
        return _final(estimator.estimator)
    if hasattr(estimator, "best_estimator_"):
        return _final(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        estimator = copy.copy(estimator)
        estimator.steps = [*estimator.steps[:-1], (name, _final(last))]
    return estimator


def _answering(estimator: Estimator) -> Iterator[Any]:
    """The estimator, then those inside it whose predictions become its own; pipelines are left out, not their last steps."""
    if isinstance(estimator, Pipeline):
        yield from _answering(estimator.steps[-1][1])
        return
    yield estimator
    for name, value in estimator.get_params().items() if hasattr(estimator, "get_params") else ():
        if "__" not in name and hasattr(value, "fit") and not isinstance(value, type):
            yield from _answering(value)


@dataclass(repr=False, eq=False)
class _DomainScorer:
    """What `make_domain_scorer` makes."""

    metric: Metric
    average: str
    response_method: str
    greater_is_better: bool
    domain_column: str | int | None
    kwargs: Params

    def __repr__(self) -> str:
        name = getattr(self.metric, "__name__", repr(self.metric))
        return f"make_domain_scorer({name}, average={self.average!r})"

    def get_metadata_routing(self) -> MetadataRequest:
        request = MetadataRequest(owner=self)
        request.score.add_request(param="domains", alias=True)
        return request

    def __call__(self, estimator: BaseEstimator, X: Texts, y: ArrayLike, domains: ArrayLike | None = None) -> float:
        estimator = _final(estimator)
        answering = list(_answering(estimator))
        own = next((c for part in answering if (c := getattr(part, "domain_column", None)) is not None), None)
        passed = {}
        if domains is None:
            column = own if self.domain_column is None else self.domain_column
            domains = column_of(X, column)
            if domains is None:
                raise ValueError(
                    f"{self!r} needs the domain of every row. Pass domains=, under sklearn.set_config(enable_metadata_"
                    f"routing=True), or name a column of X by domain_column=, which is {column!r}. X is a {type(X).__name__}."
                )
        elif self._takes_domains(estimator):
            passed["domains"] = domains
        elif column_of(X, own) is None and (takers := [*filter(self._takes_domains, answering)]):
            method, taker = f"{type(answering[0]).__name__}.{self.response_method}", type(takers[0]).__name__
            raise ValueError(
                f"{self!r} got domains=, but {method} does not pass them on to {taker}, which would answer without them. "
                f"Keep the domains in a column of X, and set domain_column= of {taker}."
            )
        answers, kwargs = np.asarray(getattr(estimator, self.response_method)(X, **passed)), self.kwargs
        if self.response_method != "predict" and hasattr(estimator, "classes_"):
            answers, kwargs = self._of_classes(answers, np.asarray(estimator.classes_).tolist())
        groups = np.zeros(len(np.asarray(y))) if self.average == "micro" else domains
        scores = scores_by_domain(partial(self.metric, **kwargs), y, groups, **{f"{self.response_method}(X)": answers})
        signed = np.array(list(scores.values())) * (1 if self.greater_is_better else -1)
        return float(np.min(signed) if self.average == "worst" else np.mean(signed))

    def _of_classes(self, answers: Array, classes: list[Any]) -> tuple[Array, Params]:
        """Answers and arguments for the metric; with two classes, answers for the positive one, as `make_scorer` has it."""
        parameters = list(inspect.signature(self.metric).parameters.values())[2:]
        given = {p.name: None if p.default is p.empty else p.default for p in parameters} | self.kwargs
        kwargs = dict(self.kwargs)
        if "labels" in given and given["labels"] is None:  # a domain may lack a class
            kwargs["labels"] = classes
        if len(classes) == 2:
            positive = classes[1] if given.get("pos_label") is None else given["pos_label"]
            if positive not in classes:
                raise ValueError(
                    f"{self!r} has pos_label={positive!r}, which is not one of the classes {classes}; pass one of them to "
                    "make_domain_scorer as pos_label=."
                )
            if "pos_label" in given:
                kwargs["pos_label"] = positive
            if answers.ndim == 2:
                answers = answers[:, classes.index(positive)]
            elif positive == classes[0]:
                answers = -answers
        return answers, kwargs

    def _takes_domains(self, estimator: Estimator) -> bool:
        return bool(get_routing_for_object(estimator).consumes(self.response_method, {"domains"}))


def make_domain_scorer(
    metric: Metric = accuracy_score,
    *,
    average: str = "macro",
    response_method: str = "predict",
    greater_is_better: bool = True,
    domain_column: str | int | None = None,
    **kwargs: object,
) -> Callable[..., float]:
    """Make a scorer that knows the domains, for ``scoring=`` in searches and cross-validation.

    With metadata routing it requests `domains`; without it, it reads them from a column of X. The estimator, or a search's
    best one, gets them if it takes them.

    Parameters
    ----------
    metric : callable, default=accuracy_score
        ``metric(y, answer, **kwargs)``.
    average : {"macro", "worst", "micro"}, default="macro"
        Mean over domains, worst domain, or all rows together. Whichever it is, every row is answered by its domain's model.
    response_method : {"predict", "predict_proba", "decision_function"}, default="predict"
        As in scikit-learn's `make_scorer`: with two classes, `metric` gets what is said of `pos_label`, by default the
        metric's or else ``classes_[1]``; with more, one column per class. If it takes `labels`, it gets ``classes_``.
    greater_is_better : bool, default=True
        False for losses, whose scores are negated.
    domain_column : str or int, default=None
        Values of X to read domains from, where none are routed; by default that of the estimator.
    **kwargs
        Passed on to `metric`. If that has an `average` of its own, set it by ``functools.partial``.

    Returns
    -------
    callable
        ``scorer(estimator, X, y, domains=None)``. A ValueError tells of missing domains, or of an estimator that would
        not pass them on to the one inside it, such as CalibratedClassifierCV.

    Examples
    --------
    >>> from sklearn.metrics import f1_score
    >>> from skmft.metrics import make_domain_scorer
    >>> make_domain_scorer(f1_score, average="worst", pos_label="positive")
    make_domain_scorer(f1_score, average='worst')
    """
    if not callable(metric):
        raise ValueError(f"metric={metric!r}; expected a function of (y, y_pred), such as sklearn.metrics.f1_score.")
    if average not in (known := ["macro", "worst", "micro"]):
        raise ValueError(f"average={average!r}; expected one of {known}.")
    if response_method not in (known := ["predict", "predict_proba", "decision_function"]):
        raise ValueError(f"response_method={response_method!r}; expected one of {known}.")
    return _DomainScorer(metric, average, response_method, greater_is_better, domain_column, kwargs)
