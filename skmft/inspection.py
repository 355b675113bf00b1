"""Pictures and tables of a fitted classifier, in the style of scikit-learn's displays (extra ``skmft[plot]``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import ceil
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score

from ._inputs.grouping import check_lengths, rows_by_domain, scores_by_domain
from ._inputs.texts import order_columns, read_texts
from ._typing import Array, Axes, Domains, Estimator, Floats, Labels, Name, Texts

__all__ = ["DomainScoresDisplay", "TrainingHistoryDisplay", "TypicalityDisplay", "explain_typicality"]

# Okabe and Ito's colours, told apart with every common kind of colour blindness; black last
_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000"]
_MARKERS = ["o", "^", "s", "D", "v", "P", "X", "*"]
_MARKS = [{"color": colour, "marker": marker} for marker in _MARKERS for colour in _COLOURS]  # by number of the name
_BOXES = {"orientation": "horizontal", "widths": 0.8, "patch_artist": True, "flierprops": {"markersize": 3}}
_BOXES["medianprops"] = {"color": "black"}
_NO_TERMS = "stage domain epochs epoch learning_rate seconds".split()  # all else in a history is a recipe's term


def _legend(ax: Axes, n_names: int = 1, **more: object) -> None:
    """Put the legend to the right of the axes."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, ncols=ceil(n_names / 16), **more)


def _read(clf: Estimator, X: Texts) -> tuple[Sequence, Array | None]:
    """Texts or pairs of X, and the domains in its column."""
    X = order_columns(X, getattr(clf, "feature_names_in_", None), clf.domain_column)
    return read_texts(X, clf.domain_column)[:2]


class _Display:
    """What the displays share: panels, which `plot` draws."""

    _panels: Sequence[str] = ("the display",)
    _size: tuple[float, float]  # of a new figure

    def plot(self, ax: Axes = None) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib axes, or array of them, default=None
            Where to draw: one for each panel. None makes a new figure.

        Returns
        -------
        The display, with ``axes_``, the first of them as ``ax_``, and ``figure_``
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs the package 'matplotlib': pip install 'skmft[plot]'.") from error
        if ax is None:
            _, ax = plt.subplots(1, len(self._panels), figsize=self._size, layout="constrained")
        axes, panels = np.ravel(ax), self._panels
        if len(axes) != len(panels):
            raise ValueError(f"ax has {len(axes)} axes; expected {len(panels)}, for {', '.join(panels)}.")
        self._draw(*axes)
        self.axes_, self.ax_, self.figure_ = axes, axes[0], axes[0].figure
        return self

    _draw: Callable[..., None]


class TypicalityDisplay(_Display):
    """Distribution of typicality in every domain and class, as box plots.

    Parameters
    ----------
    typicality, y, domains : array-like, shape (n_samples,)
        For example ``clf.typicality_``, and the training rows' classes and domains.

    Examples
    --------
    >>> from skmft.inspection import TypicalityDisplay
    >>> display = TypicalityDisplay([0.9, 0.8, 0.7], ["a", "b", "a"], ["books", "books", "dvd"])
    >>> display.groups[("books", "a")].tolist()
    [0.9]
    """

    def __init__(self, typicality: ArrayLike, y: ArrayLike, domains: ArrayLike) -> None:
        values, labels = np.asarray(typicality, dtype=float), np.asarray(y)
        check_lengths("typicality", len(values), y=labels)
        rows_of = rows_by_domain(domains, "typicality", len(values))
        self.classes, self.domains = np.unique(labels).tolist(), list(rows_of)
        self.groups: dict[tuple[Name, Any], Floats] = {
            (domain, c): values[rows][labels[rows] == c] for domain, rows in rows_of.items() for c in self.classes
        }
        self._size = 6, 1 + 0.22 * len(self.groups) + 0.1 * len(self.domains)

    @classmethod
    def from_estimator(cls, clf: Estimator, X: Texts, y: Labels, domains: Domains, *, ax: Axes = None) -> Self:
        """Score rows against the fitted prototypes (``clf.typicality``) and draw them.

        Parameters
        ----------
        clf : fitted MetaFineTunedClassifier
            With ``typicality_weighting=True``.
        X, y, domains : as in `MetaFineTunedClassifier.fit`
            `domains` is an array, even if X has a domain column.
        ax : as in `plot`

        Returns
        -------
        TypicalityDisplay
        """
        return cls(clf.typicality(_read(clf, X)[0], y, domains), y, domains).plot(ax)

    def _draw(self, *axes: Axes) -> None:
        [ax], n = axes, len(self.classes)
        first = np.arange(len(self.domains)) * (n + 0.6)  # place of every domain's first box
        for j, label in enumerate(self.classes):
            groups = [self.groups[domain, label] for domain in self.domains]
            fill = {"facecolor": _COLOURS[j % 8], "alpha": 0.8}
            ax.boxplot(groups, positions=first + j, label=str(label), boxprops=fill, **_BOXES)
        ax.set_yticks(first + (n - 1) / 2, [str(domain) for domain in self.domains])
        ax.yaxis.set_inverted(True)
        ax.set_xlabel("typicality")
        _legend(ax, title="class")


class DomainScoresDisplay(_Display):
    """A score of several models in every domain.

    Parameters
    ----------
    scores : DataFrame of shape (n_domains, n_models)
        Index: domains; columns: names of the models.
    metric_name : str, default="accuracy"
        Label of the axis.

    Examples
    --------
    >>> import pandas as pd
    >>> from skmft.inspection import DomainScoresDisplay
    >>> scores = pd.DataFrame({"meta-learner": [0.7, 0.8], "adapted": [0.8, 0.8]}, index=["books", "dvd"])
    >>> DomainScoresDisplay(scores).metric_name
    'accuracy'
    """

    def __init__(self, scores: pd.DataFrame, metric_name: str = "accuracy") -> None:
        self.scores, self.metric_name = scores, metric_name
        self._size = 6, 1.4 + 0.32 * len(scores)

    @classmethod
    def from_estimator(
        cls, clf: Estimator, X: Texts, y: Labels, domains: Domains, *, baselines: Mapping | None = None, ax: Axes = None
    ) -> Self:
        """Draw the accuracy of the meta-learner, of the adapted models, and of baselines.

        Parameters
        ----------
        clf, X, y, domains, ax : as in `TypicalityDisplay.from_estimator`
        baselines : mapping of str to array-like, default=None
            Predictions of other models for the same rows.

        Returns
        -------
        DomainScoresDisplay
        """
        texts, _ = _read(clf, X)
        told = {"meta-learner": np.full(len(texts), None), "adapted": domains}
        ours = {name: clf.predict(texts, domains=names) for name, names in told.items()}
        return cls.from_predictions(y, {**(baselines or {}), **ours}, domains, ax=ax)

    @classmethod
    def from_predictions(
        cls, y: Labels, predictions: Mapping, domains: Domains, *, metric: Callable = accuracy_score, ax: Axes = None
    ) -> Self:
        """Score the predictions of several models in every domain, and draw the scores.

        Parameters
        ----------
        y, domains : array-like, shape (n_samples,)
        predictions : mapping of str to array-like, shape (n_samples,)
            By the models' names.
        metric : callable, default=accuracy_score
            ``metric(y, y_pred)``; its name is the axis's label.
        ax : as in `plot`

        Returns
        -------
        DomainScoresDisplay
        """
        scores = {
            name: scores_by_domain(metric, y, domains, **{f"predictions[{name!r}]": values})
            for name, values in predictions.items()
        }
        name = getattr(metric, "__name__", "score").removesuffix("_score").replace("_", " ")
        return cls(pd.DataFrame(scores), name).plot(ax)

    def _draw(self, *axes: Axes) -> None:
        [ax], places = axes, np.arange(len(self.scores))
        ax.hlines(places, self.scores.min(axis=1), self.scores.max(axis=1), color="#dddddd", linewidth=3, zorder=1)
        for j, name in enumerate(self.scores):
            beside = places + 0.16 * (j - (len(self.scores.columns) - 1) / 2)  # equal scores do not hide one another
            ax.plot(self.scores[name], beside, linestyle="", marker=_MARKERS[j % 8], color=_COLOURS[j % 8], label=name)
        ax.set_yticks(places, [str(domain) for domain in self.scores.index])
        ax.set_ylim(len(places) - 0.4, -0.6)
        ax.set_xlabel(self.metric_name)
        ax.grid(axis="x", color="#eeeeee")
        _legend(ax)


class TrainingHistoryDisplay(_Display):
    """The recipe's terms by epoch: those of stage 2 in one panel, those of stage 3, if there was one, in another.

    Parameters
    ----------
    history : list of dict
        ``clf.history_``, whose terms are drawn, but for those whose names end in ``_accuracy``.

    Examples
    --------
    >>> from skmft.inspection import TrainingHistoryDisplay
    >>> history = [{"stage": "meta", "epoch": 1, "label_loss": 0.7}, {"stage": "meta", "epoch": 2, "label_loss": 0.5}]
    >>> TrainingHistoryDisplay(history).curves["meta-learner: label loss"]
    [0.7, 0.5]
    """

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        self.curves: dict[str, list[float]] = {}
        self._meta: dict[str, None] = {}  # names of stage 2, in order
        for entry in history:
            domain, meta = entry.get("domain"), entry["stage"] == "meta"
            who = domain if not meta else "meta-learner" if domain is None else f"model of {domain}"
            for term in (key for key in entry if key not in _NO_TERMS and not key.endswith("_accuracy")):
                name = f"{who}: {term.replace('_', ' ')}"
                if entry.get("epoch") == 1:
                    self.curves[name] = []  # adapted again: the last time counts
                self.curves.setdefault(name, []).append(entry[term])
                self._meta |= {name: None} if meta else {}
        self._adapted = [name for name in self.curves if name not in self._meta]
        n = ceil(len(self._adapted) / 16)  # columns of the legend of stage 3
        self._panels = ("stage 2", "stage 3") if n else ("stage 2",)
        self._size = 7 + 2 * n if n else 5, 4 + max(0, len(self._meta) - 4) / 5

    def _draw(self, *axes: Axes) -> None:
        for ax, stage, names in zip(axes, self._panels, (self._meta, self._adapted)):
            for j, name in enumerate(names):
                label = name.removeprefix("meta-learner: ").removesuffix(": label loss")
                style = {"linestyle": ["-", "--", ":", "-."][j % 4] if names is self._meta else "-", **_MARKS[j % 64]}
                epochs = np.arange(len(self.curves[name])) + 1
                ax.plot(epochs, self.curves[name], label=label, linewidth=1, markersize=4, **style)
            ax.set(xlabel=f"epoch of {stage}", ylabel="loss")
            ax.xaxis.get_major_locator().set_params(integer=True)
            if all(value >= 0 for name in names for value in self.curves[name]):
                ax.set_ylim(bottom=0)
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, fontsize="small")
        if self._adapted:
            _legend(axes[1], len(self._adapted), title="domain", fontsize="small")


def explain_typicality(clf: Estimator, X: Texts, y: Labels, domains: Domains = None) -> pd.DataFrame:
    """Say how typical every row is, and which prototypes it is nearest to.

    A row that is nearer to a prototype of another class than to any of its own may be mislabelled.

    Parameters
    ----------
    clf, X, y, domains : as in `TypicalityDisplay.from_estimator`
        A domain column in X is read in place of `domains`.

    Returns
    -------
    DataFrame
        Columns: ``text``, ``domain``, ``class``, ``typicality``; ``own_prototype``, the (domain, class) of the nearest
        prototype of the row's class, and ``own_similarity``, their cosine; ``foreign_...``, the same of other classes.
    """
    texts, column = _read(clf, X)
    labels, names = np.asarray(y), domains if column is None else column
    columns = {"text": list(texts), "domain": names, "class": labels, "typicality": clf.typicality(texts, y, names)}
    embeddings = clf.transform(texts, pretrained=True)
    prototypes = clf.prototypes_.reshape(len(clf.domains_), len(clf.classes_), -1, embeddings.shape[1])
    embeddings, prototypes = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (embeddings, prototypes))
    cosine = np.einsum("nh,kmph->nkmp", embeddings, prototypes)
    cosine = np.where(np.isnan(cosine), -np.inf, cosine).max(axis=-1)  # the nearest of a class's prototypes in a domain
    own = labels[:, None] == clf.classes_
    cells = list(product(clf.domains_.tolist(), clf.classes_.tolist()))
    for kind, classes in (("own", own), ("foreign", ~own)):
        candidates = np.where(classes[:, None, :], cosine, -np.inf).reshape(len(labels), -1)
        columns[f"{kind}_prototype"] = [cells[i] for i in candidates.argmax(axis=1)]
        columns[f"{kind}_similarity"] = candidates.max(axis=1)
    return pd.DataFrame(columns)
