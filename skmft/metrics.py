"""Scores by domain: a report, averages over domains, scorers that keep the domains, and how well domains can be told."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

from ._inputs.domains import kind_of
from ._inputs.texts import column_names

__all__ = [
    "DomainScorer",
    "domain_invariance_score",
    "domain_report",
    "macro_domain_score",
    "make_domain_scorer",
    "worst_domain_score",
]

Metric = Callable[..., float]


def _as_given(values: ArrayLike) -> NDArray[Any]:
    """Values as they were given: NumPy would make a list's NaN the text "nan", and its 1 and "1" the same."""
    return np.asarray(values, dtype=None if hasattr(values, "dtype") else object)


def _check_domains(domains: ArrayLike, name: str = "domains") -> None:
    """Raise a ValueError where a row has no domain, or domains of several kinds could be taken for one another."""
    values = _as_given(domains)
    if pd.isna(values).any():
        raise ValueError(f"{name}: row {int(pd.isna(values).argmax())} has no domain; leave such rows out.")
    kinds = {kind_of(value).__name__ for value in values.tolist()} if values.dtype == object else set()
    if len(kinds) > 1:
        raise ValueError(f"{name} mixes {sorted(kinds)}; expected one type. Convert them all to str.")


def _by_domain(domains: ArrayLike, n_rows: int) -> dict[Any, NDArray[np.int64]]:
    """Row numbers of every domain, domains in sorted order."""
    values = np.asarray(domains)
    if values.shape != (n_rows,):
        raise ValueError(f"domains has shape {values.shape}, but y has {n_rows} rows; expected ({n_rows},).")
    if not n_rows:
        raise ValueError("y and domains have no rows; expected at least one.")
    _check_domains(domains)
    return {name: np.flatnonzero(values == name) for name in np.unique(values).tolist()}


def _domain_scores(y: Any, y_pred: Any, domains: Any, metric: Metric, sample_weight: Any, kwargs: dict) -> list[float]:
    y, y_pred = np.asarray(y), np.asarray(y_pred)
    if len(y) != len(y_pred):
        raise ValueError(f"y_pred has {len(y_pred)} rows, but y has {len(y)}; expected as many.")
    weights, scores = _weights(sample_weight, len(y)), []
    for rows in _by_domain(domains, len(y)).values():
        weight = {} if weights is None else {"sample_weight": weights[rows]}
        scores.append(float(metric(y[rows], y_pred[rows], **weight, **kwargs)))
    return scores


def _weights(sample_weight: Any, n_rows: int) -> NDArray[Any] | None:
    weights = None if sample_weight is None else np.asarray(sample_weight)
    if weights is not None and weights.shape != (n_rows,):
        raise ValueError(f"sample_weight has shape {weights.shape}, but y has {n_rows} rows; expected ({n_rows},).")
    return weights


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
        NaN where `metric` is NaN for a domain (in scikit-learn's, where it is undefined, as with one class only).

    Raises
    ------
    ValueError
        If lengths differ, a domain is missing, or domains are of several types.

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
        NaN where `metric` is NaN for a domain: which domain is worst is not known then.

    Raises
    ------
    ValueError
        If lengths differ, a domain is missing, or domains are of several types.

    Examples
    --------
    >>> from skmft.metrics import worst_domain_score
    >>> worst_domain_score([0, 1, 1, 1], [0, 1, 1, 0], ["books", "books", "books", "dvd"])
    0.0
    """
    scores = _domain_scores(y, y_pred, domains, metric, sample_weight, kwargs)
    return float(np.min(scores) if greater_is_better else np.max(scores))  # unlike min(), NaN wherever one is NaN


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
        If lengths differ, a domain is missing, domains are of several types, or `y_proba` has another number of columns
        than there are classes.

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
    weight = _weights(sample_weight, len(y))
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


def _answering(estimator: Any) -> Any:
    """What answers for it and can be given domains: of a fitted search the best estimator, also as a pipeline's last step."""
    if isinstance(estimator, FrozenEstimator):
        return _answering(estimator.estimator)
    if hasattr(estimator, "best_estimator_"):
        return _answering(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        if (inner := _answering(last)) is not last:
            estimator = copy.copy(estimator)
            estimator.steps = [*estimator.steps[:-1], (name, inner)]
    return estimator


def _answerers(estimator: Any) -> Iterator[Any]:
    """The estimator, then those inside it that its predictions come from."""
    yield estimator
    if isinstance(estimator, Pipeline):
        inside = [estimator.steps[-1][1]]
    else:
        params = estimator.get_params() if hasattr(estimator, "get_params") else {}
        direct = [value for name, value in params.items() if "__" not in name and not isinstance(value, type)]
        inside = [value for value in direct if hasattr(value, "fit")]
    for part in inside:
        yield from _answerers(part)


def _own_column(estimator: Any) -> Any:
    """The domain column of the estimator, or of one inside it."""
    columns = (getattr(part, "domain_column", None) for part in _answerers(estimator))
    return next((column for column in columns if column is not None), None)


def _takes_domains(estimator: Any, method: str) -> bool:
    return bool(get_routing_for_object(estimator).consumes(method, {"domains"}))


def _parameters(metric: Metric) -> dict[str, Any]:
    """The metric's parameters after its first two, with their defaults, None where there is none."""
    try:
        parameters = list(inspect.signature(metric).parameters.values())[2:]
    except (TypeError, ValueError):  # some compiled functions do not tell
        return {}
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


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

    def _for_metric(self, answer: Any, estimator: Any) -> tuple[Any, dict[str, Any]]:
        """The answer and the arguments for `metric`, of two classes the positive one as scikit-learn's scorers have it."""
        kwargs, given = dict(self.kwargs), {**_parameters(self.metric), **self.kwargs}
        if self.response_method == "predict" or not hasattr(estimator, "classes_"):
            return answer, kwargs
        classes = np.asarray(estimator.classes_).tolist()
        if "labels" in given and given["labels"] is None:  # a domain may lack a class
            kwargs["labels"] = classes
        if len(classes) == 2:
            positive = given.get("pos_label")
            positive = classes[1] if positive is None else positive
            if positive not in classes:
                raise ValueError(
                    f"{self!r} has pos_label={positive!r}, which is none of the classes {classes}; give one of them as "
                    "pos_label= to make_domain_scorer."
                )
            if "pos_label" in given:
                kwargs["pos_label"] = positive
            if np.ndim(answer) == 2:
                answer = np.asarray(answer)[:, classes.index(positive)]
            elif self.response_method == "decision_function" and positive == classes[0]:
                answer = -np.asarray(answer)
        return answer, kwargs

    def get_metadata_routing(self) -> MetadataRequest:
        """Request `domains` for scoring.

        Returns
        -------
        MetadataRequest
        """
        request = MetadataRequest(owner=self)
        request.score.add_request(param="domains", alias=True)
        return request

    def __call__(self, estimator: BaseEstimator, X: Any, y: ArrayLike, domains: ArrayLike | None = None) -> float:
        """Score a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator
            It gets `domains` where its predictions ask for them; of a fitted search, the best estimator does.
        X : array-like of n_samples rows
            What the estimator takes.
        y : array-like, shape (n_samples,)
        domains : array-like, shape (n_samples,), default=None
            By default the column `domain_column` of X.

        Returns
        -------
        float
            Greater is better; losses are negated.

        Raises
        ------
        ValueError
            If there are no domains, or they are not as described; if the estimator wraps one that takes domains and does
            not pass them on to its predictions, as CalibratedClassifierCV does not; if `pos_label` is none of two classes.
        """
        estimator = _answering(estimator)
        method, passed = getattr(estimator, self.response_method), {}
        columns = column_names(X) or []
        own = _own_column(estimator)
        column = own if self.domain_column is None else self.domain_column
        if domains is not None:
            if _takes_domains(estimator, self.response_method):
                passed["domains"] = domains
            elif own not in columns:
                self._refuse_to_drop(estimator)
        elif column in columns:
            domains = np.asarray(X[column])
        else:
            raise ValueError(
                f"{self!r} got no domains. Give them as domains= with "
                "sklearn.set_config(enable_metadata_routing=True), or keep them in a column of X and set "
                f"domain_column= (it is {self.domain_column!r}; X is a {type(X).__name__})."
            )
        answer, kwargs = self._for_metric(method(X, **passed), estimator)
        if self.average == "micro":
            value = float(self.metric(np.asarray(y), answer, **kwargs))
        elif self.average == "macro":
            value = macro_domain_score(y, answer, domains, metric=self.metric, **kwargs)
        else:
            value = worst_domain_score(
                y, answer, domains, metric=self.metric, greater_is_better=self.greater_is_better, **kwargs
            )
        return value if self.greater_is_better else -value

    def _refuse_to_drop(self, estimator: Any) -> None:
        """Raise a ValueError where an estimator inside takes domains, which what is around it would not pass on."""
        parts = [part for part in _answerers(estimator) if not isinstance(part, Pipeline)]
        taker = next((type(part).__name__ for part in parts if _takes_domains(part, self.response_method)), None)
        if taker is not None:
            wrapper = type(parts[0]).__name__
            raise ValueError(
                f"{self!r} got domains=, but {wrapper}.{self.response_method} does not pass them on to {taker}, which would "
                f"answer without them. Keep the domains in a column of the DataFrame X, and set domain_column= of {taker}."
            )


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
        The estimator's method that gives `metric` its second argument. As in scikit-learn's `make_scorer`, for two classes
        that has shape (n_samples,): the probability, or the decision, of `pos_label` (by default the metric's, or else
        ``classes_[1]``). For more it has a column a class, and a metric that takes `labels` gets ``classes_``, since a
        domain may lack a class.
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
        If there is one domain only, a domain has fewer rows than `cv` or is missing, or domains are of several types.

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
    values = np.unique(np.asarray(domains), return_inverse=True)[1]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(cv, shuffle=True, random_state=random_state)
    told = cross_val_predict(probe, embeddings, values, cv=folds)
    return float(balanced_accuracy_score(values, told, adjusted=True))
