import builtins
import itertools

import datasets
import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import make_texts
from sklearn.base import clone

from skmft.inspection import (
    DomainScoresDisplay,
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


@pytest.fixture(scope="module")
def by_column(fitted, data):
    """An estimator that reads domains from a column; tests only read it."""
    X, y, d = data
    return (
        clone(fitted).set_params(domain_column="domain", meta_epochs=1).fit(pd.DataFrame({"text": X, "domain": d}), y)
    )


@pytest.fixture(scope="module")
def unadapted(fitted, data):
    """Without stage 3, with two prototypes per class in a domain; tests only read it."""
    X, y, d = data
    return clone(fitted).set_params(n_prototypes=2, meta_epochs=1, adaptation=None).fit(X, y, domains=d)


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
    no_overlap(TypicalityDisplay(rng.normal(0.7, 0.1, len(y)), y, d).plot())
    predictions = {name: rng.choice(np.unique(y), len(y)) for name in ("baseline", "meta-learner", "adapted")}
    no_overlap(DomainScoresDisplay.from_predictions(y, predictions, d))
    no_overlap(TrainingHistoryDisplay(history_of(np.unique(d))).plot())


def test_typicality(fitted, data):
    X, y, d = data
    display = TypicalityDisplay.from_estimator(fitted, X, y, d)
    assert list(display.groups) == [(k, c) for k in ("books", "kitchen") for c in ("neg", "pos")]
    expected = fitted.typicality_[(d == "books") & (y == "pos")]
    np.testing.assert_allclose(display.groups["books", "pos"], expected, atol=1e-6)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == ["books", "kitchen"]


def test_a_class_that_a_domain_lacks_leaves_a_gap():
    display = TypicalityDisplay([1, 2, 3], ["a", "b", "a"], ["books", "books", "dvd"]).plot()
    assert len(display.groups["dvd", "b"]) == 0


def test_domain_scores(fitted, data, pyplot):
    X, y, d = data
    _, ax = pyplot.subplots()
    display = DomainScoresDisplay.from_estimator(fitted, X, y, d, baselines={"always pos": ["pos"] * len(y)}, ax=ax)
    assert display.ax_ is ax
    assert list(display.scores) == ["always pos", "meta-learner", "adapted"]
    own = d == "books"
    assert display.scores.loc["books", "always pos"] == (y[own] == "pos").mean()
    texts = [x for x, k in zip(X, own) if k]
    assert display.scores.loc["books", "adapted"] == fitted.score(texts, y[own], domains="books")
    assert display.scores.loc["books", "meta-learner"] == fitted.score(texts, y[own])


def test_history(fitted):
    display = TrainingHistoryDisplay(fitted.history_)
    assert list(display.curves) == [
        "meta-learner: label loss",
        "meta-learner: corruption loss",
        "meta-learner: contrastive loss",
        "books: label loss",
        "kitchen: label loss",
    ]
    assert len(display.curves["meta-learner: label loss"]) == 4 and len(display.curves["books: label loss"]) == 2


@pytest.mark.parametrize("n_prototypes", [1, 2])
def test_explain_typicality_against_loops(fitted, unadapted, data, n_prototypes):
    X, y, d = data
    clf = {1: fitted, 2: unadapted}[n_prototypes]
    table = explain_typicality(clf, X, y, d)
    assert list(table["text"]) == X and list(table["class"]) == y.tolist() and list(table["domain"]) == d.tolist()
    np.testing.assert_allclose(table["typicality"], clf.typicality_, atol=1e-6)
    E = clf.transform(X, pretrained=True).astype(float)
    prototypes = clf.prototypes_.reshape(2, 2, n_prototypes, -1)
    if n_prototypes == 1:
        np.testing.assert_allclose(prototypes[1, 0, 0], E[(d == "kitchen") & (y == "neg")].mean(axis=0), atol=1e-5)
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
        TypicalityDisplay([1.0], ["a"], ["books"]).plot()


def test_numbered_columns_and_columns_that_hold_the_domain(make, data, pyplot):
    X, y, d = data
    frame = pd.DataFrame({0: X, 1: d})
    clf = make(domain_column=1, meta_epochs=1, adaptation="head").fit(frame, y)
    scores = DomainScoresDisplay.from_estimator(clf, frame, y, d)
    assert scores.ax_.get_legend_handles_labels()[1]
    assert frame[1].tolist() == d.tolist()
    display = TypicalityDisplay.from_estimator(clf, frame, y, d)
    expected = clf.typicality(frame, y)
    np.testing.assert_allclose(np.sort(np.concatenate(list(display.groups.values()))), np.sort(expected))


def test_more_domains_than_pairs_of_colour_and_marker():
    _, _, d = many(70)
    history = TrainingHistoryDisplay(history_of(np.unique(d))).plot()
    no_overlap(history)
    assert len({(line.get_color(), line.get_marker()) for line in history.axes_[1].get_lines()}) == 64
    assert len(history.axes_[1].get_legend().get_texts()) == 70


@pytest.mark.parametrize("n_domains", [2, 16])
def test_both_stages_of_the_history_fill_their_panels(n_domains):
    """The losses of stage 3 are a hundredth of those of stage 2, and none of them lies on the axis."""
    display = TrainingHistoryDisplay(history_of([f"domain {i}" for i in range(n_domains)])).plot()
    for ax, n_curves in zip(display.axes_, (3, n_domains)):
        assert len(ax.get_lines()) == n_curves
        low, high = ax.get_ylim()
        values = np.concatenate([line.get_ydata() for line in ax.get_lines()])
        assert low == 0 and values.max() > 0.9 * high
    looks = [(line.get_linestyle(), line.get_marker()) for line in display.axes_[0].get_lines()]
    assert len(set(looks)) == 3


def test_history_on_axes_that_are_there(pyplot):
    display = TrainingHistoryDisplay(history_of(["books", "dvd"]))
    figure, axes = pyplot.subplots(2, 1)
    assert display.plot(axes).axes_.tolist() == axes.tolist()
    assert display.ax_ is axes[0] and display.figure_ is figure and len(axes[1].get_lines()) == 2
    for other in (axes[0], pyplot.subplots(3)[1]):
        with pytest.raises(ValueError, match=r"ax has \d axes; expected 2, for stage 2, stage 3"):
            display.plot(other)


def test_every_term_of_the_history_is_drawn(pyplot):
    """Also those of a user's own recipe, whatever their names; no accuracy, and nothing that is no term."""
    rest = {"epochs": 2, "learning_rate": 1e-5, "seconds": 1, "domain_accuracy": 0.5}
    history = [{"stage": "meta", "epoch": e, "label_loss": 1 / e, "mean_distance": -e, **rest} for e in (1, 2)]
    display = TrainingHistoryDisplay(history).plot()
    assert display.ax_.get_legend_handles_labels()[1] == ["label loss", "mean distance"]
    assert display.ax_.get_ylim()[0] < -2  # what is below 0 is seen


def test_history_without_stage_3(unadapted, pyplot):
    _, ax = pyplot.subplots()
    display = TrainingHistoryDisplay(unadapted.history_).plot(ax)
    assert display.axes_.tolist() == [ax] and display.figure_.axes == [ax]


def test_domains_beside_X_where_the_estimator_reads_a_column(by_column, data):
    """The rows get the same answers in every form of X that `predict` takes."""
    X, y, d = data
    whole = {"text": X, "domain": d.tolist()}
    frame = pd.DataFrame(whole)
    adapted, meta_learner = by_column.predict(frame), by_column.predict(X, domains=[None] * len(X))
    assert (adapted != meta_learner).any()
    expected = {"meta-learner": meta_learner, "adapted": adapted}
    scores = pd.DataFrame({k: {name: (v == y)[d == name].mean() for name in np.unique(d)} for k, v in expected.items()})
    typicality = TypicalityDisplay.from_estimator(by_column, frame, y, d).groups
    forms = (X, frame[["text"]], frame, frame.assign(more="x"), datasets.Dataset.from_dict(whole), pa.table(whole))
    for form in forms:
        pd.testing.assert_frame_equal(DomainScoresDisplay.from_estimator(by_column, form, y, d).scores, scores)
        groups = TypicalityDisplay.from_estimator(by_column, form, y, d).groups
        assert all(np.array_equal(groups[cell], values) for cell, values in typicality.items())
    assert list(frame) == ["text", "domain"] and frame["domain"].tolist() == d.tolist()


def test_lengths_that_differ():
    long = [0, 1, 0]
    with pytest.raises(ValueError, match=r"y has shape \(3,\), but typicality has 2 rows; expected one entry per row"):
        TypicalityDisplay([0.5, 0.6], long, ["books", "dvd"])
    with pytest.raises(ValueError, match=r"domains has shape \(3,\)"):
        TypicalityDisplay([0.5, 0.6], [0, 1], ["books", "dvd", "dvd"])
    with pytest.raises(ValueError, match=r"predictions\['all'\] has shape \(3,\), but y has 2 rows"):
        DomainScoresDisplay.from_predictions([0, 1], {"all": long}, ["books", "dvd"])


def test_a_domain_that_was_adapted_again_shows_its_last_training():
    history = [{"stage": "meta", "epoch": 1, "label_loss": 0.7}]
    for losses in ((0.6, 0.5), (0.3, 0.2, 0.1)):
        history += [
            {"stage": "adaptation", "domain": "toys", "epoch": e + 1, "label_loss": v} for e, v in enumerate(losses)
        ]
    assert TrainingHistoryDisplay(history).curves["toys: label loss"] == [0.3, 0.2, 0.1]


def test_explain_typicality_reads_the_columns_of_fit(make, by_column, data):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "domain": d, "id": [f"row {i}" for i in range(len(X))]})
    table = explain_typicality(by_column, frame, y)
    assert list(table["text"]) == X and table["domain"].tolist() == d.tolist()
    np.testing.assert_allclose(table["typicality"], by_column.typicality_, atol=1e-6)
    pairs = pd.DataFrame({"a": X, "b": X[::-1], "domain": d})
    clf = make(domain_column="domain", meta_epochs=1, adaptation=None).fit(pairs, y)
    assert list(explain_typicality(clf, pairs[["b", "domain", "a"]], y, d)["text"]) == list(zip(X, X[::-1]))


def test_axes_that_are_shared_or_drawn_on_twice(pyplot):
    display = TypicalityDisplay([0.9, 0.8, 0.7], ["a", "b", "a"], ["x", "x", "y"])
    _, axes = pyplot.subplots(1, 2, sharey=True)
    for ax in [*axes, axes[0]]:
        display.plot(ax)
        assert ax.yaxis.get_inverted()


def test_history_of_domains_that_have_models_of_their_own():
    """As `SingleDomain` has them: stage 2 trains one model a domain, and none hides another."""
    history = [
        {"stage": "meta", "domain": k, "epoch": e, "label_loss": v / e}
        for k, v in (("books", 1), ("dvd", 2))
        for e in (1, 2)
    ]
    display = TrainingHistoryDisplay(history).plot()
    assert display.curves == {"model of books: label loss": [1, 0.5], "model of dvd: label loss": [2, 1]}
    assert display.ax_.get_legend_handles_labels()[1] == ["model of books", "model of dvd"]
    assert len(display.axes_) == 1
    many = [{**entry, "domain": f"domain {k}"} for k in range(16) for entry in history[:2]]
    no_overlap(TrainingHistoryDisplay(many).plot())
