import builtins
import itertools

import datasets
import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sklearn
from conftest import make_texts
from sklearn.model_selection import GridSearchCV

from skmft.inspection import (
    CorruptionCurveDisplay,
    DomainScoresDisplay,
    EmbeddingDisplay,
    TrainingHistoryDisplay,
    TypicalityDisplay,
    explain_typicality,
)


@pytest.fixture(autouse=True)
def pyplot():
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")
    matplotlib.use(backend)


def no_overlap(display):
    """Tick labels do not lie over one another; legends lie in the figure, and over no axes and no label of any axes."""
    figure = display.figure_
    figure.canvas.draw()
    taken = []
    for ax in figure.axes:
        titles = [text for text in (ax.title, ax.xaxis.label, ax.yaxis.label) if text.get_text()]
        taken += [thing.get_window_extent() for thing in (ax, *titles)]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            there = [t for p, t in zip(axis.get_ticklocs(), axis.get_ticklabels()) if low <= p <= high and t.get_text()]
            boxes = [label.get_window_extent() for label in there]
            taken += boxes
            for one, other in itertools.pairwise(boxes):
                assert not one.overlaps(other)
    boxes = [ax.get_legend().get_window_extent() for ax in figure.axes if ax.get_legend()]
    for i, box in enumerate(boxes):
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1 and min(box.x0, box.y0) >= -1
        assert not any(box.overlaps(other) for other in (*taken, *boxes[:i]))


def many(n_domains, n=400, seed=0):
    rng = np.random.default_rng(seed)
    d = np.array([f"a domain's long name {i}" for i in range(n_domains)])[np.arange(n) % n_domains]
    y = rng.choice(["negative", "neutral", "positive"], n)
    return rng, y, d


def history_of(domains):
    history = [
        {"stage": "meta", "label_loss": 1 / e, "corruption_loss": 2.7, "contrastive_loss": 2} for e in range(1, 9)
    ]
    return history + [{"stage": "adaptation", "domain": k, "label_loss": 0.01 / e} for k in domains for e in (1, 2)]


@pytest.mark.parametrize("n_domains", [2, 16])
def test_all_displays_are_readable(n_domains):
    rng, y, d = many(n_domains)
    no_overlap(TypicalityDisplay.from_predictions(rng.normal(0.7, 0.1, len(y)), y, d))
    predictions = {name: rng.choice(np.unique(y), len(y)) for name in ("baseline", "meta-learner", "adapted")}
    no_overlap(DomainScoresDisplay.from_predictions(y, predictions, d))
    no_overlap(TrainingHistoryDisplay(history_of(np.unique(d))).plot())
    no_overlap(EmbeddingDisplay(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), y, d).plot())


def test_typicality(fitted, data):
    X, y, d = data
    display = TypicalityDisplay.from_estimator(fitted, X, y, d)
    assert list(display.groups) == [(k, c) for k in ("books", "kitchen") for c in ("neg", "pos")]
    expected = fitted.typicality_[(d == "books") & (y == "pos")]
    np.testing.assert_allclose(display.groups["books", "pos"], expected, atol=1e-6)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["books", "kitchen"]


def test_a_class_that_a_domain_lacks_leaves_a_gap():
    display = TypicalityDisplay.from_predictions([1, 2, 3], ["a", "b", "a"], ["books", "books", "dvd"])
    assert len(display.groups["dvd", "b"]) == 0


@pytest.mark.parametrize("by_column", [False, True])
def test_domain_scores(make, data, by_column, pyplot):
    X, y, d = data
    clf = make(domain_column="domain" if by_column else None)
    frame = pd.DataFrame({"text": X, "domain": d}) if by_column else X
    clf.fit(frame, y, **({} if by_column else {"domains": d}))
    _, ax = pyplot.subplots()
    display = DomainScoresDisplay.from_estimator(clf, frame, y, d, baselines={"always pos": ["pos"] * len(y)}, ax=ax)
    assert display.ax_ is ax
    assert list(display.scores) == ["always pos", "meta-learner", "adapted"]
    own = d == "books"
    assert display.scores.loc["books", "always pos"] == (y[own] == "pos").mean()
    texts = [x for x, k in zip(X, own) if k]
    by_texts = make().fit(X, y, domains=d)
    assert display.scores.loc["books", "adapted"] == by_texts.score(texts, y[own], domains="books")
    assert display.scores.loc["books", "meta-learner"] == by_texts.score(texts, y[own])


def test_history(fitted):
    display = TrainingHistoryDisplay.from_estimator(fitted)
    assert list(display.curves) == [
        "meta-learner: label loss",
        "meta-learner: corruption loss",
        "meta-learner: contrastive loss",
        "books: label loss",
        "kitchen: label loss",
    ]
    assert len(display.curves["meta-learner: label loss"]) == 4 and len(display.curves["books: label loss"]) == 2


def test_corruption_curve():
    results = {
        "param_mft__corruption_weight": np.ma.array([1, 0, 0.1, 1, 0, 0.1], dtype=object),
        "param_mft__typicality_balance": [0, 0, 0, 1, 1, 1],
        "mean_test_accuracy": [0.8, 0.7, 0.75, 0.6, 0.9, 0.7],
        "std_test_accuracy": [0.01] * 6,
        "mean_test_probe": [0.1, 0.5, 0.3, 0.2, 0.4, 0.3],
        "std_test_probe": [0.02] * 6,
        "params": [{}] * 6,
    }
    display = CorruptionCurveDisplay.from_cv_results(
        results, param="mft__corruption_weight", score="accuracy", invariance="probe"
    )
    assert display.weights.tolist() == [0, 0.1, 1]
    assert display.score.tolist() == [0.9, 0.75, 0.8]
    assert display.invariance.tolist() == [0.4, 0.3, 0.1]
    no_overlap(display)
    with pytest.raises(ValueError, match=r"cv_results has no \['param_corruption_weight', 'mean_test_score'\]; it has"):
        CorruptionCurveDisplay.from_cv_results(results)


def test_embeddings(fitted, data, pyplot):
    X, y, d = data
    display = EmbeddingDisplay.from_estimator(fitted, X, y, d)
    assert display.before.shape == display.after.shape == (48, 2)
    assert len(display.figure_.axes) == 4
    _, axes = pyplot.subplots(2)
    with pytest.raises(ValueError, match="ax has 2 axes; expected 4"):
        display.plot(axes)


@pytest.mark.parametrize("n_prototypes", [1, 2])
def test_explain_typicality_against_loops(make, data, n_prototypes):
    X, y, d = data
    clf = make(n_prototypes=n_prototypes, meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    table = explain_typicality(clf, X, y, d)
    assert list(table["text"]) == X and list(table["class"]) == y.tolist() and list(table["domain"]) == d.tolist()
    np.testing.assert_allclose(table["typicality"], clf.typicality_, atol=1e-6)
    E = clf._embed_pretrained(X).astype(float)
    prototypes = clf.prototypes_.reshape(2, 2, n_prototypes, -1)
    for i in range(0, 48, 5):
        found = {"own": [], "foreign": []}
        for k, domain in enumerate(clf.domains_):
            for m, label in enumerate(clf.classes_):
                for c in prototypes[k, m]:
                    cosine = E[i] @ c / np.linalg.norm(E[i]) / np.linalg.norm(c)
                    found["own" if label == y[i] else "foreign"].append((cosine, (domain, label)))
        for kind, cells in found.items():
            best = max(cells)
            assert table[f"{kind}_similarity"][i] == pytest.approx(best[0], abs=1e-5)
            assert table[f"{kind}_prototype"][i] == best[1]


def test_explain_typicality_with_a_missing_cell(make):
    X, y, d = make_texts(24)
    y = np.where(d == "kitchen", "pos", y)
    clf = make(meta_epochs=1, adaptation=None, domain_column="domain")
    frame = pd.DataFrame({"text": X, "domain": d})
    table = explain_typicality(clf.fit(frame, y), frame, y, None)
    assert ("kitchen", "neg") not in set(table["own_prototype"]) | set(table["foreign_prototype"])
    assert np.isfinite(table[["typicality", "own_similarity", "foreign_similarity"]]).all(axis=None)


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"plot needs the package 'matplotlib': pip install 'skmft\[plot\]'"):
        TypicalityDisplay.from_predictions([1.0], ["a"], ["books"])


def test_numbered_columns_and_columns_that_hold_the_domain(make, data, pyplot):
    X, y, d = data
    frame = pd.DataFrame({0: X, 1: d})
    clf = make(domain_column=1).fit(frame, y)
    scores = DomainScoresDisplay.from_estimator(clf, frame, y, d)
    assert scores.ax_.get_legend_handles_labels()[1]
    assert frame[1].tolist() == d.tolist()
    display = TypicalityDisplay.from_estimator(clf, frame, y, d)
    expected = clf.typicality(frame, y)
    np.testing.assert_allclose(np.sort(np.concatenate(list(display.groups.values()))), np.sort(expected))


def test_embeddings_whatever_scikit_learn_is_told_to_give(fitted, data, pyplot):
    X, y, d = data
    with sklearn.config_context(transform_output="pandas"):
        display = EmbeddingDisplay.from_estimator(fitted, X, y, d)
    assert isinstance(display.before, np.ndarray)


def test_more_domains_than_pairs_of_colour_and_marker():
    rng, y, d = many(70)
    history = TrainingHistoryDisplay(history_of(np.unique(d))).plot()
    no_overlap(history)
    assert len({(line.get_color(), line.get_marker()) for line in history.axes_[1].get_lines()}) == 64
    no_overlap(EmbeddingDisplay(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), y, d).plot())
    EmbeddingDisplay(rng.normal(size=(400, 8)), rng.normal(size=(400, 8)), np.arange(400) % 70, y).plot()


@pytest.mark.parametrize("n_domains", [2, 16])
def test_both_stages_of_the_history_fill_their_panels(n_domains):
    """The losses of stage 3 are a hundredth of those of stage 2, and none of them lies on the axis."""
    display = TrainingHistoryDisplay(history_of([f"domain {i}" for i in range(n_domains)])).plot()
    for ax, n_curves in zip(display.axes_, (3, n_domains)):
        assert len(ax.get_lines()) == n_curves
        low, high = ax.get_ylim()
        values = np.concatenate([line.get_ydata() for line in ax.get_lines()])
        assert low == 0 and values.max() > 0.9 * high
    apart = [*history_of(["books"]), {"stage": "adaptation", "domain": "dvd", "label_loss": 1}]
    display_apart = TrainingHistoryDisplay(apart).plot()
    assert [ax.get_yscale() for ax in display_apart.axes_] == ["linear", "log"] and display_apart.axes_[1].get_ylim()[
        0
    ] > 0.001
    no_overlap(display_apart)
    looks = [(line.get_linestyle(), line.get_marker()) for line in display.axes_[0].get_lines()]
    assert len(set(looks)) == 3


def test_history_on_axes_that_are_there(pyplot):
    display = TrainingHistoryDisplay(history_of(["books", "dvd"]))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 4), layout="constrained")
    whole = right.get_position()
    assert display.plot(right).ax_ is right  # single axes share their place with new ones
    no_overlap(display)
    stage_3 = display.axes_[1]
    assert display.axes_[0] is right and stage_3 in figure.axes and len(stage_3.get_lines()) == 2
    assert left.get_position().x1 < right.get_position().x0 and right.get_position().x1 < stage_3.get_position().x0
    free = pyplot.figure().add_axes(whole)
    display.plot(ax=free)
    assert free.get_position().x1 < display.axes_[1].get_position().x0 < whole.x1
    _, two = pyplot.subplots(2, 1)
    assert display.plot(two).axes_.tolist() == two.tolist()
    with pytest.raises(ValueError, match=r"ax has 3 axes; expected one, or 2 \(of stage 2 and of stage 3\)"):
        display.plot(pyplot.subplots(3)[1])


def test_history_without_stage_3(make, data, pyplot):
    X, y, d = data
    clf = make(meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    _, ax = pyplot.subplots()
    display = TrainingHistoryDisplay.from_estimator(clf, ax=ax)
    assert display.axes_.tolist() == [ax] and display.figure_.axes == [ax]


def test_domains_beside_X_where_the_estimator_reads_a_column(make, data, monkeypatch):
    """Whatever of the forms that `predict` takes X has, the rows get the same answers."""
    X, y, d = data
    whole = {"text": X, "domain": d.tolist()}
    frame = pd.DataFrame(whole)
    clf = make(domain_column="domain", meta_epochs=1).fit(frame, y)
    adapted, meta_learner = clf.predict(frame), clf.predict(X, domains=[None] * len(X))
    assert (adapted != meta_learner).any()
    typicality = TypicalityDisplay.from_estimator(clf, frame, y, d).groups
    monkeypatch.setattr(
        DomainScoresDisplay, "from_predictions", classmethod(lambda cls, y, predictions, domains, ax: predictions)
    )
    forms = (X, frame[["text"]], frame, frame.assign(more="x"), datasets.Dataset.from_dict(whole), pa.table(whole))
    for form in forms:
        got = DomainScoresDisplay.from_estimator(clf, form, y, d)
        np.testing.assert_array_equal(got["adapted"], adapted)
        np.testing.assert_array_equal(got["meta-learner"], meta_learner)
        groups = TypicalityDisplay.from_estimator(clf, form, y, d).groups
        assert all(np.array_equal(groups[cell], values) for cell, values in typicality.items())
    assert list(frame) == ["text", "domain"] and frame["domain"].tolist() == d.tolist()


def test_candidates_that_failed_are_left_out():
    results = {
        "param_corruption_weight": [0, 0.1, 1, 1],
        "mean_test_score": [0.7, np.nan, np.nan, 0.8],
        "std_test_score": [0.1, np.nan, np.nan, 0.2],
    }
    display = CorruptionCurveDisplay.from_cv_results(results)
    assert display.weights.tolist() == [0, 1] and display.score.tolist() == [0.7, 0.8]
    results["mean_test_score"] = [np.nan] * 4
    with pytest.raises(ValueError, match="no number in mean_test_score: each of the 4 candidates failed"):
        CorruptionCurveDisplay.from_cv_results(results)


def test_lengths_that_differ():
    long = [0, 1, 0]
    with pytest.raises(
        ValueError, match=r"y has shape \(3,\), but typicality has 2 rows; expected one a row of typicality"
    ):
        TypicalityDisplay([0.5, 0.6], long, ["books", "dvd"])
    with pytest.raises(ValueError, match=r"domains has shape \(3,\)"):
        TypicalityDisplay.from_predictions([0.5, 0.6], [0, 1], ["books", "dvd", "dvd"])
    with pytest.raises(ValueError, match=r"predictions\['all'\] has shape \(3,\), but y has 2 rows"):
        DomainScoresDisplay.from_predictions([0, 1], {"all": long}, ["books", "dvd"])
    with pytest.raises(ValueError, match=r"y has shape \(3,\), but before has 2 rows"):
        EmbeddingDisplay(np.eye(2), np.eye(2), long, ["books", "dvd"])
    with pytest.raises(ValueError, match=r"score_std has shape \(3,\), but weights has 2 rows"):
        CorruptionCurveDisplay([0, 1], [0.5, 0.6], [0.1, 0.1, 0.1])


def test_a_domain_that_was_adapted_again_shows_its_last_training():
    history = [{"stage": "meta", "epoch": 1, "label_loss": 0.7}]
    for losses in ((0.6, 0.5), (0.3, 0.2, 0.1)):
        history += [
            {"stage": "adaptation", "domain": "toys", "epoch": e + 1, "label_loss": v} for e, v in enumerate(losses)
        ]
    assert TrainingHistoryDisplay(history).curves["toys: label loss"] == [0.3, 0.2, 0.1]


def test_a_search_over_several_grids(make, data):
    """Some of which do not set the weight: their candidates are left out, without a warning."""
    X, y, d = data
    grids = [{"corruption_weight": [0.0, 1.0]}, {"learning_rate": [1e-3]}]
    search = GridSearchCV(make(meta_epochs=1, adaptation=None), grids, cv=2, refit=False).fit(X, y, domains=d)
    display = CorruptionCurveDisplay.from_cv_results(search.cv_results_)
    assert display.weights.tolist() == [0, 1]
    np.testing.assert_array_equal(display.score, search.cv_results_["mean_test_score"][:2])


def test_explain_typicality_reads_the_columns_of_fit(make, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d, "id": [f"row {i}" for i in range(len(X))]})
    clf = make(domain_column="domain", meta_epochs=1, adaptation=None).fit(frame[["text", "domain"]], y)
    table = explain_typicality(clf, frame, y, d)
    assert list(table["text"]) == X
    np.testing.assert_allclose(table["typicality"], clf.typicality_, atol=1e-6)
    pairs = pd.DataFrame({"a": X, "b": X[::-1], "domain": d})
    clf = make(domain_column="domain", meta_epochs=1, adaptation=None).fit(pairs, y)
    assert list(explain_typicality(clf, pairs[["b", "domain", "a"]], y, d)["text"]) == list(zip(X, X[::-1]))


def test_axes_that_are_shared_or_drawn_on_twice(pyplot):
    display = TypicalityDisplay.from_predictions([0.9, 0.8, 0.7], ["a", "b", "a"], ["x", "x", "y"])
    _, axes = pyplot.subplots(1, 2, sharey=True)
    for ax in [*axes, axes[0]]:
        display.plot(ax)
        assert ax.yaxis.get_inverted()
    axes[0].set_xticks([1, 2])
    TrainingHistoryDisplay(history_of(["books", "dvd"])).plot(axes[:1])
