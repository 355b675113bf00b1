"""Pictures and tables of a fitted classifier, in the style of scikit-learn's displays (extra ``skmft[plot]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ._inputs.texts import column_names, order_columns
from .metrics import _by_domain

__all__ = [
    "CorruptionCurveDisplay",
    "DomainScoresDisplay",
    "EmbeddingDisplay",
    "TrainingHistoryDisplay",
    "TypicalityDisplay",
    "explain_typicality",
]

# Okabe and Ito's colours, told apart with every common kind of colour blindness; black last
_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000"]
_MARKERS = ["o", "^", "s", "D", "v", "P", "X", "*"]
_LEGEND_ROWS = 16  # names in one column of a legend


def _axes(ax: Any, width: float, height: float) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs the package 'matplotlib': pip install 'skmft[plot]'.") from error
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def _mark(number: int, first: int = 0) -> dict[str, Any]:
    """Colour and marker of the class or domain of this number: 64 pairs, then they come again."""
    return {"color": _COLOURS[number % 8], "marker": _MARKERS[(number // 8 + first) % 8]}


def _legend_columns(n_names: int) -> int:
    return max(1, -(-n_names // _LEGEND_ROWS))


def _check_lengths(owner: str, n_rows: int, **arrays: NDArray[Any]) -> None:
    for name, array in arrays.items():
        if array.shape[:1] != (n_rows,):
            raise ValueError(
                f"{name} has shape {array.shape}, but {owner} has {n_rows} rows; expected one a row of {owner}."
            )


def _has_domains(clf: Any, X: Any) -> bool:
    """Whether X holds the column that the estimator reads domains from."""
    return clf.domain_column is not None and clf.domain_column in (column_names(X) or [])


class _Display:
    """What all displays share: after `plot`, the axes are in `ax_` and the figure in `figure_`."""

    ax_: Any
    figure_: Any

    def _drawn(self, ax: Any) -> Any:
        self.ax_, self.figure_ = ax, ax.figure
        return self


class TypicalityDisplay(_Display):
    """Distribution of typicality in every domain and class, as box plots.

    Parameters
    ----------
    typicality : array-like, shape (n_samples,)
    y, domains : array-like, shape (n_samples,)

    Raises
    ------
    ValueError
        If lengths differ or a domain is missing.

    Examples
    --------
    >>> from skmft.inspection import TypicalityDisplay
    >>> display = TypicalityDisplay([0.9, 0.8, 0.7], ["a", "b", "a"], ["books", "books", "dvd"])
    >>> display.groups[("books", "a")].tolist()
    [0.9]
    """

    def __init__(self, typicality: ArrayLike, y: ArrayLike, domains: ArrayLike) -> None:
        values, labels = np.asarray(typicality, dtype=float), np.asarray(y)
        _check_lengths("typicality", len(values), y=labels)
        self.classes = np.unique(labels).tolist()
        self.groups: dict[tuple[Any, Any], NDArray[np.float64]] = {}
        for domain, rows in _by_domain(domains, len(values)).items():
            for label in self.classes:
                self.groups[domain, label] = values[rows][labels[rows] == label]
        self.domains = list(dict.fromkeys(domain for domain, _ in self.groups))

    @classmethod
    def from_estimator(cls, clf: Any, X: Any, y: ArrayLike, domains: ArrayLike, *, ax: Any = None) -> TypicalityDisplay:
        """Score rows against the fitted prototypes (``clf.typicality``) and draw them.

        Parameters
        ----------
        clf : fitted MetaFineTunedClassifier
            With ``typicality_weighting=True``.
        X : rows
            As in `MetaFineTunedClassifier.fit`.
        y : array-like, shape (n_samples,)
            Labels among ``clf.classes_``.
        domains : array-like, shape (n_samples,)
            An array, also where X has a domain column.
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        TypicalityDisplay
            Drawn; its axes are in ``ax_``.
        """
        return cls(clf.typicality(X, y, None if _has_domains(clf, X) else domains), y, domains).plot(ax)

    @classmethod
    def from_predictions(
        cls, typicality: ArrayLike, y: ArrayLike, domains: ArrayLike, *, ax: Any = None
    ) -> TypicalityDisplay:
        """Draw typicalities that are there already, such as ``clf.typicality_`` of the training rows.

        Parameters
        ----------
        typicality : array-like, shape (n_samples,)
        y, domains : array-like, shape (n_samples,)
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        TypicalityDisplay
            Drawn; its axes are in ``ax_``.
        """
        return cls(typicality, y, domains).plot(ax)

    def plot(self, ax: Any = None) -> TypicalityDisplay:
        """Draw onto `ax`, or onto new axes.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        TypicalityDisplay
            Itself.
        """
        ax = _axes(ax, 6, 1 + 0.22 * len(self.groups) + 0.1 * len(self.domains))
        n = len(self.classes)
        for j, label in enumerate(self.classes):
            values = [self.groups[d, label] for d in self.domains]
            places = [k * (n + 0.6) + j for k in range(len(self.domains))]
            kept = [(p, v) for p, v in zip(places, values) if len(v)]
            ax.boxplot(
                [v for _, v in kept],
                positions=[p for p, _ in kept],
                orientation="horizontal",
                widths=0.8,
                patch_artist=True,
                boxprops={"facecolor": _COLOURS[j % 8], "alpha": 0.8},
                medianprops={"color": "black"},
                flierprops={"markersize": 3},
                label=str(label),
            )
        middle = [k * (n + 0.6) + (n - 1) / 2 for k in range(len(self.domains))]
        ax.set_yticks(middle, [str(d) for d in self.domains])
        ax.yaxis.set_inverted(True)
        ax.set_xlabel("typicality")
        ax.legend(title="class", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        return self._drawn(ax)


class DomainScoresDisplay(_Display):
    """A score of several models in every domain.

    Parameters
    ----------
    scores : DataFrame of shape (n_domains, n_models)
        Index: domains; columns: names of the models.
    metric_name : str, default="accuracy"

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from skmft.inspection import DomainScoresDisplay
    >>> y, d = [0, 1, 1, 1], ["books", "books", "dvd", "dvd"]
    >>> DomainScoresDisplay.from_predictions(y, {"zeros": [0, 0, 0, 0], "ones": [1, 1, 1, 1]}, d).scores
           zeros  ones
    books    0.5   0.5
    dvd      0.0   1.0
    """

    def __init__(self, scores: pd.DataFrame, metric_name: str = "accuracy") -> None:
        self.scores, self.metric_name = scores, metric_name

    @classmethod
    def from_estimator(
        cls,
        clf: Any,
        X: Any,
        y: ArrayLike,
        domains: ArrayLike,
        *,
        baselines: Mapping[str, Any] | None = None,
        ax: Any = None,
    ) -> DomainScoresDisplay:
        """Draw accuracy of the meta-learner, of the adapted models, and of baselines.

        Parameters
        ----------
        clf : fitted MetaFineTunedClassifier
        X, y, domains : rows
            `domains` is an array, also where X has a domain column.
        baselines : mapping of str to array-like, default=None
            Predictions of other models for the same rows.
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        DomainScoresDisplay
            Drawn; its axes are in ``ax_``.
        """
        there = _has_domains(clf, X)
        # without its column the estimator has to be told that domains are not known
        unknown = None if clf.domain_column is None else np.full(len(X), None)
        texts = [name for name in column_names(X) or [] if name != clf.domain_column]
        alone = order_columns(X, texts, None) if there else X
        adapted = clf.predict(X) if there else clf.predict(X, domains=domains)
        predictions = {**(baselines or {}), "meta-learner": clf.predict(alone, domains=unknown), "adapted": adapted}
        return cls.from_predictions(y, predictions, domains, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        predictions: Mapping[str, ArrayLike],
        domains: ArrayLike,
        *,
        metric: Any = None,
        metric_name: str = "accuracy",
        ax: Any = None,
    ) -> DomainScoresDisplay:
        """Score predictions of several models in every domain, and draw them.

        Parameters
        ----------
        y : array-like, shape (n_samples,)
            True labels.
        predictions : mapping of str to array-like, shape (n_samples,)
            Name of a model -> what it predicts.
        domains : array-like, shape (n_samples,)
        metric : callable, default=None
            ``metric(y, y_pred)``, called for each domain; None is accuracy.
        metric_name : str, default="accuracy"
            Label of the axis.
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        DomainScoresDisplay
            Drawn; its axes are in ``ax_``.

        Raises
        ------
        ValueError
            If lengths differ or a domain is missing.
        """
        from sklearn.metrics import accuracy_score

        labels, metric = np.asarray(y), metric or accuracy_score
        predicted = {name: np.asarray(values) for name, values in predictions.items()}
        _check_lengths("y", len(labels), **{f"predictions[{name!r}]": values for name, values in predicted.items()})
        rows_of = _by_domain(domains, len(labels))
        scores = {
            name: [float(metric(labels[rows], values[rows])) for rows in rows_of.values()]
            for name, values in predicted.items()
        }
        return cls(pd.DataFrame(scores, index=pd.Index(list(rows_of), dtype=object)), metric_name).plot(ax)

    def plot(self, ax: Any = None) -> DomainScoresDisplay:
        """Draw onto `ax`, or onto new axes: one row a domain, one mark a model.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        DomainScoresDisplay
            Itself.
        """
        ax = _axes(ax, 6, 1.4 + 0.32 * len(self.scores))
        places = np.arange(len(self.scores))
        ax.hlines(places, self.scores.min(axis=1), self.scores.max(axis=1), color="#dddddd", linewidth=3, zorder=1)
        ax.set_ylim(-0.6, len(places) - 0.4)
        for j, name in enumerate(self.scores):
            beside = places + 0.16 * (j - (len(self.scores.columns) - 1) / 2)  # equal scores do not hide one another
            ax.plot(self.scores[name], beside, linestyle="", marker=_MARKERS[j % 8], color=_COLOURS[j % 8], label=name)
        ax.set_yticks(places, [str(d) for d in self.scores.index])
        ax.invert_yaxis()
        ax.set_xlabel(self.metric_name)
        ax.grid(axis="x", color="#eeeeee")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        return self._drawn(ax)


class TrainingHistoryDisplay(_Display):
    """Losses by epoch: of stage 2 in one panel, of every domain's stage 3 in another, each on its own scale.

    Parameters
    ----------
    history : list of dict
        ``clf.history_``.

    Examples
    --------
    >>> from skmft.inspection import TrainingHistoryDisplay
    >>> history = [{"stage": "meta", "epoch": 1, "label_loss": 0.7}, {"stage": "meta", "epoch": 2, "label_loss": 0.5}]
    >>> TrainingHistoryDisplay(history).curves["meta-learner: label loss"]
    [0.7, 0.5]
    """

    axes_: NDArray[Any]

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        self.curves: dict[str, list[float]] = {}
        self._of_domain: dict[str, str] = {}  # curves of stage 3
        for entry in history:
            for key in ("label_loss", "corruption_loss", "contrastive_loss"):
                if key in entry:
                    meta = entry["stage"] == "meta"
                    who = "meta-learner" if meta else str(entry["domain"])
                    name = f"{who}: {key.replace('_', ' ')}"
                    if entry.get("epoch") == 1:
                        self.curves[name] = []  # adapted again: the last time counts
                    self.curves.setdefault(name, []).append(entry[key])
                    if not meta:
                        self._of_domain[name] = who

    @classmethod
    def from_estimator(cls, clf: Any, *, ax: Any = None) -> TrainingHistoryDisplay:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        clf : fitted MetaFineTunedClassifier
        ax : matplotlib axes, array of 2 of them, or None, default=None
            As in `plot`.

        Returns
        -------
        TrainingHistoryDisplay
            Drawn; its axes are in ``axes_``.
        """
        return cls(clf.history_).plot(ax)

    def plot(self, ax: Any = None) -> TrainingHistoryDisplay:
        """Draw onto `ax`, or onto new axes: stage 2 to the left, stage 3 to the right.

        Parameters
        ----------
        ax : matplotlib axes, array of 2 of them, or None, default=None
            Axes of stage 2 and of stage 3; the latter are logarithmic where losses are wide apart. Single axes become those of
            stage 2; where there was a stage 3, new ones for it take the right half of their place. None makes new ones.

        Returns
        -------
        TrainingHistoryDisplay
            Itself; ``axes_`` holds the axes of the stages, ``ax_`` those of stage 2.

        Raises
        ------
        ValueError
            If `ax` has another number of axes.
        """
        columns = _legend_columns(len(self._of_domain))
        axes = np.ravel(_axes(ax, 7 + 2 * columns if self._of_domain else 5, 4))
        if not 1 <= len(axes) <= 2:
            raise ValueError(f"ax has {len(axes)} axes; expected one, or 2 (of stage 2 and of stage 3).")
        if self._of_domain and len(axes) == 1:
            axes = np.array([axes[0], _right_half(axes[0])])
        looks = {  # told apart without colours too
            "label loss": {"color": "black", "linestyle": "-", "marker": "."},
            "corruption loss": {"color": _COLOURS[5], "linestyle": "--", "marker": "^"},
            "contrastive loss": {"color": _COLOURS[0], "linestyle": ":", "marker": "s"},
        }
        from matplotlib.ticker import MaxNLocator

        numbers = {name: number for number, name in enumerate(self._of_domain)}
        for name, values in self.curves.items():
            epochs = np.arange(len(values)) + 1
            if name in numbers:
                label, number = self._of_domain[name], numbers[name]
                axes[1].plot(epochs, values, label=label, markersize=4, linewidth=1, **_mark(number))
            else:
                label = name.removeprefix("meta-learner: ")
                axes[0].plot(epochs, values, label=label, markersize=4, **looks[label])
        axes[0].set(xlabel="epoch of stage 2", ylabel="loss")
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        axes[0].legend(frameon=False, fontsize="small", **above)
        if self._of_domain:
            axes[1].set(xlabel="epoch of stage 3")
            beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
            axes[1].legend(frameon=False, fontsize="small", title="domain", ncols=columns, **beside)
        for one in axes:
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
            one.set_ylim(bottom=0)
        losses = [loss for name in self._of_domain for loss in self.curves[name]]
        if losses and max(losses) > 10 * min(losses) > 0:
            axes[1].set(yscale="log", ylabel="loss, logarithmic")
            axes[1].autoscale(axis="y")
        self.axes_ = axes
        return self._drawn(axes[0])


def _right_half(ax: Any) -> Any:
    """New axes in the right half of the place of `ax`, which keeps the left one."""
    place = ax.get_subplotspec()
    if place is not None:
        between = None if ax.figure.get_layout_engine() else 0.4  # a layout makes room for labels itself
        left, right = place.subgridspec(1, 2, wspace=between)
        ax.set_subplotspec(left)
        return ax.figure.add_subplot(right)
    x, y, width, height = ax.get_position().bounds
    ax.set_position([x, y, 0.42 * width, height])
    return ax.figure.add_axes([x + 0.58 * width, y, 0.42 * width, height])


class CorruptionCurveDisplay(_Display):
    """Score, and how well domains can be told, over `corruption_weight`.

    Parameters
    ----------
    weights : array-like, shape (n_weights,)
    score, score_std : array-like, shape (n_weights,)
        A score and, unless None, its standard deviation.
    invariance, invariance_std : array-like, shape (n_weights,), default=None
        `skmft.metrics.domain_invariance_score` of embeddings.
    score_name : str, default="score"

    Raises
    ------
    ValueError
        If lengths differ.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from skmft.inspection import CorruptionCurveDisplay
    >>> results = {"param_corruption_weight": [1, 0], "mean_test_score": [0.8, 0.7], "std_test_score": [0.1, 0.1]}
    >>> CorruptionCurveDisplay.from_cv_results(results).weights.tolist()
    [0.0, 1.0]
    """

    def __init__(
        self,
        weights: ArrayLike,
        score: ArrayLike,
        score_std: ArrayLike | None = None,
        invariance: ArrayLike | None = None,
        invariance_std: ArrayLike | None = None,
        score_name: str = "score",
    ) -> None:
        order = np.argsort(np.asarray(weights, dtype=float))

        def sorted_(name: str, values: ArrayLike | None) -> Any:
            if values is None:
                return None
            array = np.asarray(values, dtype=float)
            _check_lengths("weights", len(order), **{name: array})
            return array[order]

        self.weights, self.score = sorted_("weights", weights), sorted_("score", score)
        self.score_std, self.invariance = sorted_("score_std", score_std), sorted_("invariance", invariance)
        self.invariance_std, self.score_name = sorted_("invariance_std", invariance_std), score_name

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        param: str = "corruption_weight",
        score: str = "score",
        invariance: str | None = None,
        ax: Any = None,
    ) -> CorruptionCurveDisplay:
        """Draw a search's ``cv_results_``; of candidates that share a weight the one of the best score is drawn.

        Candidates without a score, whose fits failed, are left out, and a weight with them that has no other.

        Parameters
        ----------
        cv_results : mapping
            Names of columns -> a value of every candidate.
        param : str, default="corruption_weight"
            The parameter's name in the search, such as ``"mft__corruption_weight"`` in a pipeline.
        score : str, default="score"
            Name of a scorer, as in ``mean_test_<name>``.
        invariance : str, default=None
            Name of a second scorer, of `skmft.metrics.domain_invariance_score`.
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        CorruptionCurveDisplay
            Drawn; its axes are in ``ax_``.

        Raises
        ------
        ValueError
            If the results have no such parameter or scorer, or no candidate has a score.
        """
        if hasattr(cv_results, "cv_results_"):
            raise ValueError(f"cv_results is a {type(cv_results).__name__}; pass its cv_results_.")
        wanted = [f"param_{param}", f"mean_test_{score}", *([f"mean_test_{invariance}"] if invariance else [])]
        missing = [name for name in wanted if name not in cv_results]
        if missing:
            raise ValueError(f"cv_results has no {missing}; it has {sorted(cv_results)}.")
        columns: dict[str, Any] = {
            k: np.ma.asarray(v, dtype=object).filled(np.nan) for k, v in cv_results.items() if k != "params"
        }
        frame = pd.DataFrame(columns).infer_objects()  # of several grids, some may lack the parameter
        scored = frame[frame[f"mean_test_{score}"].notna()]
        if scored.empty:
            raise ValueError(
                f"cv_results has no number in mean_test_{score}: each of the {len(frame)} candidates failed to fit or to be "
                "scored; expected one that did not. Search with error_score='raise' to see why."
            )
        scored = scored.assign(weight=scored[f"param_{param}"].astype(float))
        best = scored.loc[scored.groupby("weight")[f"mean_test_{score}"].idxmax()]  # over the other parameters
        probe, spread = (best[f"{s}_test_{invariance}"] if invariance else None for s in ("mean", "std"))
        return cls(best["weight"], best[f"mean_test_{score}"], best[f"std_test_{score}"], probe, spread, score).plot(ax)

    def plot(self, ax: Any = None) -> CorruptionCurveDisplay:
        """Draw onto `ax`, or onto new axes; weights are spaced evenly.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            None makes new ones.

        Returns
        -------
        CorruptionCurveDisplay
            Itself.
        """
        ax = _axes(ax, 6, 3.8)
        places = np.arange(len(self.weights))
        spread = self.score_std if self.score_std is not None else np.zeros_like(self.score)
        ax.errorbar(places, self.score, spread, color=_COLOURS[0], marker="o", capsize=3, label=self.score_name)
        ax.set_xticks(places, [f"{w:g}" for w in self.weights])
        ax.set(xlabel="corruption_weight", ylabel=self.score_name)
        if self.invariance is not None:
            twin = ax.twinx()
            spread = self.invariance_std if self.invariance_std is not None else np.zeros_like(self.invariance)
            twin.errorbar(
                places,
                self.invariance,
                spread,
                color=_COLOURS[5],
                marker="^",
                linestyle="--",
                capsize=3,
                label="domain probe",
            )
            twin.set_ylabel("domain told by a probe (0: by chance)")
            handles = [h for a in (ax, twin) for h in a.get_legend_handles_labels()[0]]
            names = [n for a in (ax, twin) for n in a.get_legend_handles_labels()[1]]
            ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2, frameon=False)
        return self._drawn(ax)


class EmbeddingDisplay(_Display):
    """Two principal components of embeddings, before and after training, coloured by class and by domain.

    Parameters
    ----------
    before, after : array-like, shape (n_samples, hidden)
        Embeddings by the pre-trained encoder and by the meta-learner.
    y, domains : array-like, shape (n_samples,)

    Raises
    ------
    ValueError
        If lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skmft.inspection import EmbeddingDisplay
    >>> embeddings = np.random.default_rng(0).normal(size=(6, 4))
    >>> EmbeddingDisplay(embeddings, embeddings, [0, 1] * 3, ["books"] * 3 + ["dvd"] * 3).after.shape
    (6, 2)
    """

    def __init__(self, before: ArrayLike, after: ArrayLike, y: ArrayLike, domains: ArrayLike) -> None:
        from sklearn.decomposition import PCA

        self.before, self.after = (
            PCA(2, random_state=0).set_output(transform="default").fit_transform(np.asarray(e)) for e in (before, after)
        )
        self.y, self.domains = np.asarray(y), np.asarray(domains)
        _check_lengths("before", len(self.before), after=self.after, y=self.y, domains=self.domains)

    @classmethod
    def from_estimator(cls, clf: Any, X: Any, y: ArrayLike, domains: ArrayLike, *, ax: Any = None) -> EmbeddingDisplay:
        """Embed rows with the pre-trained encoder and with the fitted meta-learner, and draw them.

        Parameters
        ----------
        clf : fitted MetaFineTunedClassifier
        X : rows
            As in `MetaFineTunedClassifier.fit`; a domain column is not read.
        y, domains : array-like, shape (n_samples,)
            What the points are coloured by.
        ax : array of 4 matplotlib axes, default=None
            As in `plot`.

        Returns
        -------
        EmbeddingDisplay
            Drawn; the first of its axes is in ``ax_``.
        """
        return cls(clf.transform(X, pretrained=True), clf.transform(X), y, domains).plot(ax)

    def plot(self, ax: Any = None) -> EmbeddingDisplay:
        """Draw onto four axes, or onto new ones.

        Parameters
        ----------
        ax : array of 4 matplotlib axes, default=None
            Before by class, after by class, before by domain, after by domain.

        Returns
        -------
        EmbeddingDisplay
            Itself.

        Raises
        ------
        ValueError
            If `ax` has another number of axes.
        """
        if ax is None:
            _axes(True, 1, 1)  # matplotlib must be there
            import matplotlib.pyplot as plt

            most = max(len(np.unique(self.y)), len(np.unique(self.domains)))
            _, ax = plt.subplots(2, 2, figsize=(8.5 + 1.5 * _legend_columns(most), 8), layout="constrained")
        axes = np.ravel(ax)
        if len(axes) != 4:
            raise ValueError(f"ax has {len(axes)} axes; expected 4 (before and after, by class and by domain).")
        shuffled = np.random.default_rng(0).permutation(len(self.y))  # no class or domain lies on top of all others
        for k, (points, title) in enumerate(((self.before, "pre-trained"), (self.after, "meta-learner")) * 2):
            values, what = (self.y, "class") if k < 2 else (self.domains, "domain")
            names, numbers = np.unique(values, return_inverse=True)
            marks = [_mark(j, 0 if what == "class" else 1) for j in range(len(names))]
            for marker in dict.fromkeys(mark["marker"] for mark in marks):
                rows = [i for i in shuffled if marks[numbers[i]]["marker"] == marker]
                colours = [marks[number]["color"] for number in numbers[rows]]
                axes[k].scatter(*points[rows].T, s=14, alpha=0.7, linewidths=0, marker=marker, c=colours)
            for name, mark in zip(names.tolist(), marks):
                axes[k].scatter([], [], s=28, linewidths=0, label=str(name), **mark)
            axes[k].set(title=f"{title}, by {what}", xticks=[], yticks=[])
            if k % 2:
                columns = _legend_columns(len(names))
                axes[k].legend(
                    loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small", ncols=columns
                )
        return self._drawn(axes[0])


def explain_typicality(clf: Any, X: Any, y: ArrayLike, domains: ArrayLike) -> pd.DataFrame:
    """Say of every row how typical it is, and which prototypes it is nearest to.

    A row nearer to a foreign prototype than to any own one may be mislabelled.

    Parameters
    ----------
    clf : fitted MetaFineTunedClassifier
        With ``typicality_weighting=True``.
    X : rows
        As in `MetaFineTunedClassifier.fit`.
    y, domains : array-like, shape (n_samples,)
        `domains` is not read where X has a domain column.

    Returns
    -------
    DataFrame
        Columns: ``text`` (a tuple for pairs), ``domain``, ``class``, ``typicality``; ``own_prototype``, the (domain, class)
        of the nearest prototype of the row's class, and its ``own_similarity`` (cosine); ``foreign_prototype`` and
        ``foreign_similarity``, of the nearest prototype of another class.

    Raises
    ------
    ValueError
        As `MetaFineTunedClassifier.typicality`.
    """
    from ._inputs.texts import read_texts

    X = order_columns(X, getattr(clf, "feature_names_in_", None), clf.domain_column)
    texts, column, _ = read_texts(X, clf.domain_column)
    names = np.asarray(domains if column is None else column)
    passed = {"domains": names} if column is None else {}
    t = clf.typicality(X, y, **passed)
    labels = np.asarray(y)
    embeddings = clf.transform(X, pretrained=True)
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    prototypes = clf.prototypes_.reshape(len(clf.domains_), len(clf.classes_), -1, embeddings.shape[1])
    unit = prototypes / np.linalg.norm(prototypes, axis=-1, keepdims=True)
    cosine = np.einsum("nh,kmph->nkmp", embeddings, unit)
    cosine = np.where(np.isnan(cosine), -np.inf, cosine).max(axis=-1)  # of a cell's prototypes the nearest
    own = labels[:, None] == clf.classes_[None]
    columns: dict[str, Any] = {"text": list(texts), "domain": names, "class": labels, "typicality": t}
    cells = [(d, c) for d in clf.domains_.tolist() for c in clf.classes_.tolist()]
    for kind, mask in (("own", own), ("foreign", ~own)):
        masked = np.where(mask[:, None, :], cosine, -np.inf).reshape(len(texts), -1)
        columns[f"{kind}_prototype"] = [cells[i] for i in masked.argmax(axis=1)]
        columns[f"{kind}_similarity"] = masked.max(axis=1)
    return pd.DataFrame(columns)
