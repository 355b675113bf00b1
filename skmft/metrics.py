"""Scores by domain: a report, averages over domains, scorers that keep the domains, and how well domains can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

__all__ = [
    "DomainScorer",
    "domain_invariance_score",
    "domain_report",
    "macro_domain_score",
    "make_domain_scorer",
    "worst_domain_score",
]

Metric = Callable[..., float]


def _by_domain(domains: ArrayLike, n_rows: int) -> dict[Any, NDArray[np.int64]]:
    """Row numbers of every domain, domains in sorted order."""
    values = np.asarray(domains)
    if values.shape != (n_rows,):
        raise ValueError(f"domains has shape {values.shape}, but y has {n_rows} rows; expected ({n_rows},).")
    if pd.isna(values).any():
        raise ValueError(f"domains: row {int(pd.isna(values).argmax())} has no domain; leave such rows out.")
    return {name: np.flatnonzero(values == name) for name in np.unique(values).tolist()}


def _domain_scores(y: Any, y_pred: Any, domains: Any, metric: Metric, sample_weight: Any, kwargs: dict) -> list[float]:
    y, y_pred = np.asarray(y), np.asarray(y_pred)
    if len(y) != len(y_pred):
        raise ValueError(f"y_pred has {len(y_pred)} rows, but y has {len(y)}; expected as many.")
    scores = []
    for rows in _by_domain(domains, len(y)).values():
        weight = {} if sample_weight is None else {"sample_weight": np.asarray(sample_weight)[rows]}
        scores.append(float(metric(y[rows], y_pred[rows], **weight, **kwargs)))
    return scores


def macro_domain_score(
    y: ArrayLike,
    y_pred: ArrayLike,
    domains: ArrayLike,
    *,
    metric: Metric = accuracy_score,
    sample_weight: ArrayLike | None = None,
    **kwargs: Any,
) -> float:
    """Unweighted mean of a metric over domains: every domain counts alike, however many rows it has.

    Parameters
    ----------
    y : array-like, shape (n_samples,)
        True labels.
    y_pred : array-like, shape (n_samples,) or what `metric` takes
    domains : array-like, shape (n_samples,)
    metric : callable, default=accuracy_score
        ``metric(y, y_pred, **kwargs)``, called for each domain.
    sample_weight : array-like, shape (n_samples,), default=None
        Passed on to `metric`.
    **kwargs
        Passed on to `metric`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If lengths differ or a domain is missing.

    Examples
    --------
    >>> from skmft.metrics import macro_domain_score
    >>> macro_domain_score([0, 1, 1, 1], [0, 1, 1, 0], ["books", "books", "books", "dvd"])
    0.5
    """
    return float(np.mean(_domain_scores(y, y_pred, domains, metric, sample_weight, kwargs)))


def worst_domain_score(
    y: ArrayLike,
    y_pred: ArrayLike,
    domains: ArrayLike,
    *,
    metric: Metric = accuracy_score,
    greater_is_better: bool = True,
    sample_weight: ArrayLike | None = None,
    **kwargs: Any,
) -> float:
    """The metric in the domain where it is worst.

    Parameters
    ----------
    y, y_pred, domains, metric, sample_weight, **kwargs
        As in `macro_domain_score`.
    greater_is_better : bool, default=True
        False for losses, whose worst is the greatest.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If lengths differ or a domain is missing.

    Examples
    --------
    >>> from skmft.metrics import worst_domain_score
    >>> worst_domain_score([0, 1, 1, 1], [0, 1, 1, 0], ["books", "books", "books", "dvd"])
    0.0
    """
    scores = _domain_scores(y, y_pred, domains, metric, sample_weight, kwargs)
    return min(scores) if greater_is_better else max(scores)


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
) -> str | dict[Any, dict[str, float]]:
    """Support, accuracy, macro F1 and log loss of every domain, with their mean, worst and gap.

    Parameters
    ----------
    y, y_pred : array-like, shape (n_samples,)
        True and predicted labels.
    domains : array-like, shape (n_samples,)
    y_proba : array-like, shape (n_samples, n_classes), default=None
        Predicted probabilities, for the log loss.
    labels : array-like, shape (n_classes,), default=None
        The classes in the order of the columns of `y_proba`; by default the sorted classes of `y`. Macro F1 is over the
        classes that a domain's true or predicted labels hold.
    sample_weight : array-like, shape (n_samples,), default=None
    digits : int, default=2
        Decimals in the text.
    output_dict : bool, default=False
        Return a dict in place of text.

    Returns
    -------
    str, or dict of dict
        Keys are the domains, then "macro", "worst" and "gap" (best less worst, 0 or more). Worst and gap are found for
        each column apart. A domain of such a name keeps its row only in the text.

    Raises
    ------
    ValueError
        If lengths differ, a domain is missing, or `y_proba` has another number of columns than there are classes.

    Examples
    --------
    >>> from skmft.metrics import domain_report
    >>> y, y_pred = [0, 1, 0, 1, 0, 1], [0, 1, 0, 1, 1, 1]
    >>> print(domain_report(y, y_pred, ["books"] * 4 + ["dvd"] * 2))
           support  accuracy  macro F1
    books        4      1.00      1.00
    dvd          2      0.50      0.33
    <BLANKLINE>
    macro        6      0.75      0.67
    worst               0.50      0.33
    gap                 0.50      0.67
    """
    y, y_pred = np.asarray(y), np.asarray(y_pred)
    if len(y) != len(y_pred):
        raise ValueError(f"y_pred has {len(y_pred)} rows, but y has {len(y)}; expected as many.")
    classes = np.unique(y) if labels is None else np.asarray(labels)
    order = np.argsort(classes)  # in which log_loss takes the columns
    proba = None if y_proba is None else np.asarray(y_proba)
    if proba is not None and proba.shape != (len(y), len(classes)):
        raise ValueError(
            f"y_proba has shape {proba.shape}; expected ({len(y)}, {len(classes)}), a column for every one of "
            f"labels={classes.tolist()}."
        )
    weight = None if sample_weight is None else np.asarray(sample_weight)
    rows_of = _by_domain(domains, len(y))
    table = []
    for rows in rows_of.values():
        w = None if weight is None else weight[rows]
        line = {
            "support": len(rows),
            "accuracy": accuracy_score(y[rows], y_pred[rows], sample_weight=w),
            "macro F1": f1_score(y[rows], y_pred[rows], average="macro", sample_weight=w),
        }
        if proba is not None:
            line["log loss"] = log_loss(y[rows], proba[rows][:, order], labels=classes[order], sample_weight=w)
        table.append(line)
    frame = pd.DataFrame(table, index=pd.Index(list(rows_of), dtype=object))
    scores = frame.drop(columns="support")
    losses = scores.columns == "log loss"
    worst = scores.min().where(~losses, scores.max())
    summary: dict[str, dict[str, Any]] = {
        "macro": {"support": len(y), **scores.mean()},
        "worst": dict(worst),
        "gap": dict(scores.max() - scores.min()),
    }
    if output_dict:
        everything = {**dict(zip(rows_of, table)), **summary}
        return {name: {k: _plain(v) for k, v in line.items()} for name, line in everything.items()}
    lines = [*zip(map(str, rows_of), table), ("", {}), *summary.items()]
    width = max(len(name) for name, _ in lines)
    out = [" " * width + "".join(f"{c:>{len(c) + 2}}" for c in frame.columns)]
    for name, line in lines:
        out.append(f"{name:<{width}}")
        for column in frame.columns if line else ():
            decimals = 0 if column == "support" else digits
            text = f"{line[column]:.{decimals}f}" if column in line else ""
            out[-1] += f"{text:>{len(column) + 2}}"
        out[-1] = out[-1].rstrip()
    return "\n".join(out)


def _plain(value: Any) -> float:
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


class DomainScorer:
    """A scorer that gives the estimator the domains and averages over them; made by `make_domain_scorer`."""

    def __init__(
        self,
        metric: Metric,
        average: str,
        response_method: str,
        greater_is_better: bool,
        domain_column: str | int | None,
        kwargs: dict[str, Any],
    ) -> None:
        self.metric = metric
        self.average = average
        self.response_method = response_method
        self.greater_is_better = greater_is_better
        self.domain_column = domain_column
        self.kwargs = kwargs

    def __repr__(self) -> str:
        name = getattr(self.metric, "__name__", repr(self.metric))
        return f"make_domain_scorer({name}, average={self.average!r})"

    def _column(self, estimator: Any) -> Any:
        """The scorer's domain column, or else that of the estimator, or of a pipeline's last step."""
        last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
        return getattr(last, "domain_column", None) if self.domain_column is None else self.domain_column

    def get_metadata_routing(self) -> MetadataRequest:
        """Request `domains` for scoring."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="domains", alias=True)
        return request

    def __call__(self, estimator: BaseEstimator, X: Any, y: ArrayLike, domains: ArrayLike | None = None) -> float:
        """Score a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            It gets `domains` where its predictions ask for them.
        X : rows
        y : array-like, shape (n_samples,)
        domains : array-like, shape (n_samples,), default=None
            By default the column `domain_column` of X.

        Returns
        -------
        float
            Greater is better; losses are negated.
        """
        passed = {}
        if domains is not None:
            if get_routing_for_object(estimator).consumes(self.response_method, {"domains"}):
                passed["domains"] = domains
        elif isinstance(X, pd.DataFrame) and (column := self._column(estimator)) in X.columns:
            domains = X[column]
        else:
            raise ValueError(
                f"{self!r} got no domains. Give them as domains= with "
                "sklearn.set_config(enable_metadata_routing=True), or keep them in a column of the DataFrame X and set "
                f"domain_column= (it is {self.domain_column!r}; X is a {type(X).__name__})."
            )
        answer = getattr(estimator, self.response_method)(X, **passed)
        if self.average == "micro":
            value = float(self.metric(np.asarray(y), answer, **self.kwargs))
        elif self.average == "macro":
            value = macro_domain_score(y, answer, domains, metric=self.metric, **self.kwargs)
        else:
            value = worst_domain_score(
                y, answer, domains, metric=self.metric, greater_is_better=self.greater_is_better, **self.kwargs
            )
        return value if self.greater_is_better else -value


def make_domain_scorer(
    metric: Metric = accuracy_score,
    *,
    average: str = "macro",
    response_method: str = "predict",
    greater_is_better: bool = True,
    domain_column: str | int | None = None,
    **kwargs: Any,
) -> DomainScorer:
    """Make a scorer that scores with domains, for ``scoring=`` in searches and cross-validation.

    With metadata routing it requests `domains`; without, it reads them from a column of X.

    Parameters
    ----------
    metric : callable, default=accuracy_score
        ``metric(y, answer, **kwargs)``.
    average : {"macro", "worst", "micro"}, default="macro"
        Mean over domains, worst domain, or all rows together (each still answered by its domain's model).
    response_method : {"predict", "predict_proba", "decision_function"}, default="predict"
        The estimator's method that gives `metric` its second argument.
    greater_is_better : bool, default=True
        False for losses, whose scores are negated.
    domain_column : str or int, default=None
        Column of a DataFrame X to read domains from, where none are routed; by default the estimator's own.
    **kwargs
        Passed on to `metric`; an `average` of the metric's own goes in by ``functools.partial``.

    Returns
    -------
    DomainScorer
        ``scorer(estimator, X, y, domains=None)``.

    Raises
    ------
    ValueError
        If `average` or `response_method` is unknown, or `metric` is not callable.

    Examples
    --------
    >>> from functools import partial
    >>> from sklearn.metrics import f1_score
    >>> from skmft.metrics import make_domain_scorer
    >>> make_domain_scorer(f1_score, average="worst", pos_label="positive")
    make_domain_scorer(f1_score, average='worst')
    >>> macro_f1 = make_domain_scorer(partial(f1_score, average="macro"), average="worst")
    """
    if not callable(metric):
        raise ValueError(f"metric={metric!r}; expected a function of (y, y_pred), such as sklearn.metrics.f1_score.")
    for name, value, known in (
        ("average", average, ("macro", "worst", "micro")),
        ("response_method", response_method, ("predict", "predict_proba", "decision_function")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}; expected one of {list(known)}.")
    return DomainScorer(metric, average, response_method, greater_is_better, domain_column, kwargs)


def domain_invariance_score(
    embeddings: ArrayLike,
    domains: ArrayLike,
    *,
    cv: int = 5,
    C: float = 1.0,
    random_state: int | np.random.RandomState | None = None,
) -> float:
    """How well a linear probe tells the domain from embeddings: 0 as by chance, 1 always.

    The probe is a logistic regression on standardised embeddings. Its balanced accuracy (every domain counts alike) on rows
    that it was not fitted on is set against chance, one in as many as there are domains:
    ``(accuracy - chance) / (1 - chance)``. The lower, the more alike the domains; below 0 is worse than chance.

    Parameters
    ----------
    embeddings : array-like, shape (n_samples, hidden)
        For example ``clf.transform(X)``.
    domains : array-like, shape (n_samples,)
    cv : int, default=5
        Folds, stratified by domain and shuffled.
    C : float, default=1.0
        Inverse of the probe's L2 penalty.
    random_state : int, RandomState instance or None, default=None
        Seeds the folds.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        If there is one domain only, or a domain has fewer rows than `cv`.

    References
    ----------
    Probing for a property by a linear classifier: G. Alain, Y. Bengio, "Understanding intermediate layers using linear
    classifier probes", 2016, arXiv:1610.01644.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.metrics import domain_invariance_score
    >>> rng, d = np.random.default_rng(0), np.repeat(["books", "dvd"], 100)
    >>> alike = rng.normal(size=(200, 3))
    >>> apart = alike + np.where(d == "books", 5, -5)[:, None]
    >>> print(f"{domain_invariance_score(apart, d, random_state=0):.2f}")
    1.00
    >>> domain_invariance_score(alike, d, random_state=0) < 0.3
    True
    """
    embeddings = np.asarray(embeddings)
    sizes = {name: len(rows) for name, rows in _by_domain(domains, len(embeddings)).items()}
    if len(sizes) < 2:
        raise ValueError(f"domains has one domain only, {next(iter(sizes))!r}; a probe needs at least two.")
    smallest = min(sizes, key=lambda name: sizes[name])
    if sizes[smallest] < cv:
        raise ValueError(f"domain {smallest!r} has {sizes[smallest]} rows, fewer than cv={cv}; use fewer folds.")
    values = np.asarray(domains)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    told = cross_val_predict(probe, embeddings, values, cv=folds)
    return float(balanced_accuracy_score(values, told, adjusted=True))
