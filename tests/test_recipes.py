"""Recipes: what a user writes, and what those to come need of the seam; MetaFineTuning as a recipe among others."""

import copy
import pickle
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import same
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

from skmft import MetaFineTunedClassifier
from skmft._engine.model import ModelOutput
from skmft.recipes import MetaFineTuning, MultiTask, Recipe, SingleDomain, Trained

BRIEF = {"meta_epochs": 2, "adaptation": None}


class MeanMatching(Recipe):
    """What a user writes: draws the mean embeddings of the domains together."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def columns(self, rows):
        return {"domain": rows.domains}

    def terms(self, model, output, batch):
        z, d = output.embedding, batch["domain"]
        means = torch.stack([z[d == k].mean(0) for k in d.unique()])
        distance = (means - means.mean(0)).square().sum(1).mean()
        return {**super().terms(model, output, batch), "mean_distance": (self.weight, distance)}


def meta(clf, name):
    """A term in every epoch of stage 2."""
    return [h[name] for h in clf.history_ if h["stage"] == "meta"]


# ------------------------------------------------------------------ a user's loss


def test_a_user_s_term_is_minimised_and_recorded_without_its_weight(make, data):
    X, y, d = data
    fits = {w: make(recipe=MeanMatching(w), batch_size=48, **BRIEF).fit(X, y, domains=d) for w in (0, 50)}
    # before the first step of the optimiser, which is the first epoch here, the models are the same
    assert meta(fits[0], "mean_distance")[0] == meta(fits[50], "mean_distance")[0] > 0
    assert meta(fits[50], "mean_distance")[1] != meta(fits[0], "mean_distance")[1]
    assert fits[0].history_[1].keys() - {"mean_distance"} == {
        *("stage", "epochs", "epoch", "label_loss", "learning_rate", "seconds")
    }
    free, drawn = (make(recipe=MeanMatching(w), meta_epochs=4, adaptation=None).fit(X, y, domains=d) for w in (0, 10))

    def distance(clf):
        Z = clf.transform(X)
        means = np.stack([Z[d == k].mean(0) for k in ("books", "kitchen")])
        return np.square(means - means.mean(0)).sum()

    assert distance(drawn) < 0.5 * distance(free)


@pytest.mark.parametrize("adaptation", [None, "full"])
def test_weight_zero_is_the_plain_recipe_bit_for_bit(make, data, adaptation):
    X, y, d = data
    params = {"meta_epochs": 2, "adaptation": adaptation, "adaptation_epochs": 1}
    zero, plain = (make(recipe=r, **params).fit(X, y, domains=d) for r in (MeanMatching(0.0), Recipe()))
    assert same(zero, plain)
    assert meta(zero, "label_loss") == meta(plain, "label_loss")
    np.testing.assert_array_equal(zero.predict_proba(X, domains=d), plain.predict_proba(X, domains=d))


class WithHead(Recipe):
    """A head that tells the domain from the first layer."""

    made = []

    def __init__(self, weight=1.0):
        self.weight = weight

    def layers(self, rows):
        return (0,)

    def heads(self, rows, width):
        head = nn.Linear(width, len(rows.domain_names))
        WithHead.made.append((head, copy.deepcopy(head)))
        return {"domain": head}

    def columns(self, rows):
        return {"domain": rows.domains}

    def terms(self, model, output, batch):
        loss = nn.functional.cross_entropy(model.heads["domain"](output.layers[0]), batch["domain"])
        return {**super().terms(model, output, batch), "domain_loss": (self.weight, loss)}


def test_a_head_of_a_term_of_weight_zero_stays_and_changes_nothing(make, data, monkeypatch):
    X, y, d = data
    monkeypatch.setattr(WithHead, "made", [])
    zero, one = (make(recipe=WithHead(w), **BRIEF).fit(X, y, domains=d) for w in (0, 1))
    (now, then), (trained, start) = WithHead.made
    assert torch.equal(now.weight, then.weight)  # neither gradient nor decay reached it
    assert not torch.equal(trained.weight, start.weight)
    assert torch.equal(then.weight, start.weight)  # drawn from the seed
    assert same(zero, make(recipe=Recipe(), **BRIEF).fit(X, y, domains=d))
    assert not same(zero, one)
    assert not one.meta_learner_.heads  # gone after training


def test_a_term_that_some_batches_lack_is_averaged_over_the_others(make, data):
    """A batch that holds rows of one domain only has no distance between domains."""
    X, y, _ = data
    d = np.where(np.arange(48) == 7, "lonely", "books")

    class Where(MeanMatching):
        def terms(self, model, output, batch):
            terms = super().terms(model, output, batch)
            if len(batch["domain"].unique()) < 2:
                del terms["mean_distance"]
            return terms

    clf = make(recipe=Where(), **BRIEF).fit(X, y, domains=d)
    everywhere = make(recipe=MeanMatching(), **BRIEF).fit(X, y, domains=d)  # 0 in those batches, two of three
    assert same(clf, everywhere)
    np.testing.assert_allclose(meta(clf, "mean_distance"), 3 * np.array(meta(everywhere, "mean_distance")), rtol=1e-6)


# ------------------------------------------------------------------ scikit-learn around it


def test_clone_and_set_params(make):
    recipe = MeanMatching(0.5)
    clf = make(recipe=recipe)
    twin = clone(clf)
    assert twin.recipe is not recipe and twin.get_params()["recipe__weight"] == 0.5
    twin.set_params(recipe__weight=2.0)
    assert twin.recipe.weight == 2.0 and recipe.weight == 0.5
    assert "recipe=MeanMatching(weight=0.5)" in " ".join(repr(clf).split())


def test_searches_and_pipelines_reach_its_parameters(make, data):
    X, y, d = data
    frame = np.array(X, dtype=object)
    clf = make(recipe=MeanMatching(), **BRIEF)
    search = GridSearchCV(clf, {"recipe__weight": [0.0, 5.0]}, cv=2, error_score="raise").fit(X, y, domains=d)
    chosen = search.best_params_["recipe__weight"]
    direct = make(recipe=MeanMatching(chosen), **BRIEF).fit(X, y, domains=d)
    assert same(search.best_estimator_, direct) and clf.recipe.weight == 1.0
    pipe = Pipeline([("lower", FunctionTransformer(lambda texts: [t.lower() for t in texts])), ("mft", clone(clf))])
    pipe.set_params(mft__recipe__weight=chosen).fit(frame, y, mft__domains=d)
    assert same(pipe["mft"], direct)
    np.testing.assert_array_equal(pipe.predict(frame), direct.predict(X))


def test_pickled_saved_and_loaded(make, data, tmp_path):
    X, y, d = data
    clf = make(recipe=MeanMatching(0.5), meta_epochs=1, adaptation="head", adaptation_epochs=1).fit(X, y, domains=d)
    expected = clf.predict_proba(X, domains=d)
    again = pickle.loads(pickle.dumps(clf))
    assert again.recipe.weight == 0.5
    np.testing.assert_array_equal(again.predict_proba(X, domains=d), expected)
    again.adapt(X[:8], y[:8], "toys").predict(X, domains="toys")
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")  # nothing is imported, so the recipe's class is not known
    np.testing.assert_array_equal(loaded.predict_proba(X, domains=d), expected)
    for call in (lambda: loaded.fit(X, y, domains=d), lambda: loaded.adapt(X[:8], y[:8], "toys")):
        with pytest.raises(ValueError, match=r"set_params\(recipe=test_recipes\.MeanMatching\(weight=0\.5\)\)"):
            call()
    loaded.set_params(recipe=MeanMatching(0.5)).adapt(X[:8], y[:8], "toys")
    np.testing.assert_array_equal(loaded.predict(X, domains="toys"), again.predict(X, domains="toys"))


# ------------------------------------------------------------------ several rounds, soft labels


class SoftLabels(Recipe):
    """Learns from probabilities, one row of them for every training row, beside the labels."""

    def __init__(self, soft=None, label_weight=1.0, soft_weight=1.0):
        self.soft = soft
        self.label_weight = label_weight
        self.soft_weight = soft_weight

    def columns(self, rows):
        return {"soft": self.soft}

    def terms(self, model, output, batch):
        terms = super().terms(model, output, batch)
        rows = -(batch["soft"] * output.logits.log_softmax(1)).sum(1)
        soft = (batch["weight"] * rows).mean()
        return {"label_loss": (self.label_weight, terms["label_loss"]), "soft_loss": (self.soft_weight, soft)}


def test_soft_labels_are_a_float_column(make, data):
    X, y, d = data
    soft = np.where((y == "neg")[:, None], [0.1, 0.9], [0.9, 0.1])  # the other class, by 9 to 1
    clf = make(recipe=SoftLabels(soft, label_weight=0), meta_epochs=6, adaptation=None, head_init="random")
    clf.fit(X, y, domains=d)
    assert clf.score(X, y) < 0.1  # the labels themselves were recorded alone
    assert meta(clf, "soft_loss")[-1] < meta(clf, "soft_loss")[0]
    assert meta(clf, "label_loss")[-1] > meta(clf, "label_loss")[0]
    hard = SoftLabels(np.eye(2)[(y == "pos").astype(int)], label_weight=0)  # what labels say, and so label_loss
    hard, plain = (make(recipe=r, **BRIEF).fit(X, y, domains=d) for r in (hard, Recipe()))
    np.testing.assert_allclose(hard.predict_proba(X), plain.predict_proba(X), atol=1e-3)


class TwoRounds(Recipe):
    """The second model learns from the first one's answers."""

    seen = {}

    def __init__(self, temperature=1.0, label_weight=0.0):
        self.temperature = temperature
        self.label_weight = label_weight

    def train(self, stage, rows):
        first = stage.train(self, stage.new_model(self, rows), rows, description="first round")
        logits = torch.from_numpy(stage.logits(first.model, rows))
        pupil = SoftLabels((logits / self.temperature).softmax(1).numpy(), self.label_weight)
        second = stage.train(
            pupil, stage.new_model(pupil, rows), rows, epochs=3, purpose="second", description="second round"
        )
        history = [{**h, "round": i} for i, t in enumerate((first, second)) for h in t.history]
        TwoRounds.seen = {"first": first.model, "teacher": logits, "pupil": stage.logits(second.model, rows)}
        return Trained(second.model, history)


def test_two_rounds(make, data):
    X, y, d = data
    weight = (np.arange(48) % 6 > 0).astype(float)  # soft labels are of the rows of weight above 0
    used = np.flatnonzero(weight)
    some = [X[i] for i in used]
    clf = make(recipe=TwoRounds(), adaptation="head", adaptation_epochs=1, meta_epochs=4)
    clf.fit(X, y, domains=d, sample_weight=weight)
    assert [h.get("round") for h in clf.history_] == [None, *[0] * 4, *[1] * 3, None, None]
    assert "soft_loss" not in clf.history_[1] and "soft_loss" in clf.history_[5]
    first = make(recipe=Recipe(), adaptation=None, meta_epochs=4).fit(X, y, domains=d, sample_weight=weight)
    np.testing.assert_array_equal(first._logits(some, None), TwoRounds.seen["teacher"])  # the first round is plain
    np.testing.assert_array_equal(clf._logits(some, None), TwoRounds.seen["pupil"])  # and answers are the second's
    assert not same(clf, first)
    assert (clf.predict(some) == first.predict(some)).mean() > 0.9
    assert clf.adapted_domains_.tolist() == ["books", "kitchen"]  # stage 3 starts from the second
    again = make(recipe=TwoRounds(), adaptation=None, meta_epochs=4).fit(X, y, domains=d, sample_weight=weight)
    assert same(clf, again)


# ------------------------------------------------------------------ label sets of domains


class OwnLabelSets(Recipe):
    """One label head for domains that have labels of their own: what a domain lacks is masked."""

    def _mask(self, rows):
        mask = np.full((len(rows.domain_names), len(rows.classes)), -1e4)
        mask[rows.domains, rows.labels] = 0
        return mask

    def columns(self, rows):
        return {"mask": self._mask(rows)[rows.domains]}

    def terms(self, model, output, batch):
        return super().terms(model, replace(output, logits=output.logits + batch["mask"]), batch)

    def train(self, stage, rows):
        trained = super().train(stage, rows)
        bias = trained.model.label_head.bias.detach().cpu()
        masks = zip(rows.domain_names.tolist(), torch.from_numpy(self._mask(rows)).float())
        return replace(trained, own={name: {"label_head.bias": bias + mask} for name, mask in masks})


@pytest.fixture(scope="module")
def label_sets(data):
    """Two domains that share one of three classes, and one of a single class."""
    X, y, d = data
    y = np.where((d == "kitchen") & (y == "neg"), "odd", y)
    y, d = [*y, "neg", "neg"], [*d, "lonely", "lonely"]
    return [*X, "bad book", "awful story"], np.array(y), np.array(d)


@pytest.mark.parametrize("adaptation", [None, "full", "head", "lora"])
def test_predictions_never_leave_the_domain_s_label_set(make, label_sets, adaptation, tmp_path):
    if adaptation == "lora":
        pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    X, y, d = label_sets
    clf = make(recipe=OwnLabelSets(), adaptation=adaptation, meta_epochs=2).fit(X, y, domains=d)
    assert clf.classes_.tolist() == ["neg", "odd", "pos"]
    assert sorted(clf.adapted_domains_) == ["books", "kitchen", "lonely"]
    sets = {"books": ["neg", "pos"], "kitchen": ["odd", "pos"], "lonely": ["neg"]}
    clf.save(tmp_path / "model")
    for answering in (clf, MetaFineTunedClassifier.load(tmp_path / "model")):
        for domain, allowed in sets.items():
            proba = answering.predict_proba(X, domains=domain)
            assert proba[:, ~np.isin(clf.classes_, allowed)].max() == 0
            assert (proba[:, np.isin(clf.classes_, allowed)] > 0).all()
        mixed = answering.predict(X, domains=d)
        assert all(label in sets[domain] for label, domain in zip(mixed, d))
    assert np.isfinite(clf.predict_proba(X)).all()
    assert clf.score(X, y, domains=d) > 0.8


@pytest.mark.parametrize("adaptation", ["full", "head", "lora"])
@pytest.mark.parametrize("recipe", [SingleDomain(), MultiTask()], ids=str)
def test_stage_3_starts_from_the_domain_s_own_tensors_and_keeps_them(make, data, recipe, adaptation, tmp_path):
    """At a learning rate of next to nothing it is the domain's model of stage 2."""
    if adaptation == "lora":
        pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    X, y, d = data
    params = {"recipe": recipe, "meta_epochs": 2, "adaptation_epochs": 1, "adaptation_learning_rate": 1e-15}
    before, after = (make(adaptation=a, **params).fit(X, y, domains=d) for a in (None, adaptation))
    after.save(tmp_path / "model")
    for domain in ("books", "kitchen", None):
        np.testing.assert_allclose(after.predict_proba(X, domain), before.predict_proba(X, domain), atol=1e-5)
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X, d), after.predict_proba(X, d))
    np.testing.assert_allclose(after.predict_proba(X, d), before.predict_proba(X, d), atol=1e-5)
    assert np.abs(before.predict_proba(X, "books") - before.predict_proba(X, "kitchen")).max() > 0.01


class NotingStart(MultiTask):
    starts = []

    def finish(self, model, start, interpolation):
        self.starts.append(sorted(start))
        super().finish(model, start, interpolation)


def test_heads_of_random_numbers_are_not_pulled_back_to_them(make, data):
    X, y, d = data
    NotingStart.starts.clear()
    make(recipe=NotingStart(), meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    assert NotingStart.starts == [[]]


# ------------------------------------------------------------------ columns


class Noting(Recipe):
    """Notes the rows of every batch, and what columns it has."""

    seen = []

    def __init__(self, draws=None):
        self.draws = draws

    def columns(self, rows):
        columns = {"row": np.arange(len(rows))}
        if self.draws:
            columns |= {"drawn": self.drawn, "float": lambda batches, rng: rng.random((len(rows), 2))}
        self.n = len(rows)
        return columns

    def drawn(self, batches, rng):
        """As many draws as asked for, of which the first for each row are the column; and the batch of every row."""
        column = np.empty((self.n, 2), dtype=np.int64)
        column[:, 0] = rng.integers(1000, size=self.draws)[: self.n]
        for i, rows in enumerate(batches):
            column[rows, 1] = i
        return column

    def terms(self, model, output, batch):
        Noting.seen.append({name: batch[name].numpy() for name in ("row", "drawn", "float") if name in batch})
        return super().terms(model, output, batch)


def epochs_of(make, data, recipe, **params):
    X, y, d = data
    Noting.seen = []
    clf = make(recipe=recipe, meta_epochs=3, adaptation=None, **params).fit(X, y, domains=d)
    return clf, [Noting.seen[i : i + 3] for i in (0, 3, 6)]


def test_redrawn_columns_are_fresh_each_epoch_and_change_no_order(make, data):
    plain, expected = epochs_of(make, data, Noting())
    drawn, found = epochs_of(make, data, Noting(draws=48))
    more, other = epochs_of(make, data, Noting(draws=500))
    assert same(plain, drawn) and same(plain, more)
    for run in (found, other):
        for epoch, wanted in zip(run, expected, strict=True):
            for i, (batch, without) in enumerate(zip(epoch, wanted, strict=True)):
                np.testing.assert_array_equal(batch["row"], without["row"])
                assert (batch["drawn"][:, 1] == i).all()  # it was told which rows make up which batch
                assert batch["float"].dtype == np.float32 and batch["float"].shape == (16, 2)

    def by_row(epoch, name):
        column = np.concatenate([batch[name] for batch in epoch])
        return column[np.argsort(np.concatenate([batch["row"] for batch in epoch]))]

    for name in ("drawn", "float"):
        first, second, third = (by_row(epoch, name)[:, 0] for epoch in found)
        assert (first != second).mean() > 0.9 and (second != third).mean() > 0.9
    np.testing.assert_array_equal(by_row(found[0], "drawn")[:, 0], by_row(other[0], "drawn")[:, 0])  # of one generator
    _, again = epochs_of(make, data, Noting(draws=48))
    np.testing.assert_array_equal(by_row(again[1], "float"), by_row(found[1], "float"))
    _, seeded = epochs_of(make, data, Noting(draws=48), random_state=1)
    assert (by_row(seeded[1], "float") != by_row(found[1], "float")).mean() > 0.9


# ------------------------------------------------------------------ errors


class Wrong(Recipe):
    """What a recipe may get wrong."""

    def __init__(self, layer=None, column=None, redrawn=False, label_weight=1.0):
        self.layer = layer
        self.column = column
        self.redrawn = redrawn
        self.label_weight = label_weight

    def layers(self, rows):
        return () if self.layer is None else self.layer

    def columns(self, rows):
        if self.column is None:
            return {}
        return {"wrong": (lambda batches, rng: self.column) if self.redrawn else self.column}

    def terms(self, model, output, batch):
        return {"label_loss": (self.label_weight, super().terms(model, output, batch)["label_loss"])}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"recipe": Wrong(layer=(3,))},
            r"^Wrong\.layers=\(3,\): layer 3 does not exist; the model has 3 layers, numbered 0 to 2",
        ),
        ({"recipe": Wrong(layer=(2, -1))}, r"^Wrong\.layers=\(2, -1\) names a layer twice"),
        ({"recipe": MetaFineTuning(corruption_layers=(-4,))}, r"^corruption_layers=\(-4,\): layer -4 does not exist"),
        ({"recipe": MetaFineTuning(corruption_labels="row")}, "'corruption_labels' parameter of MetaFineTuning"),
        ({"recipe": MetaFineTuning(corruption_weight=-1)}, "'corruption_weight' parameter of MetaFineTuning"),
        ({"recipe": MeanMatching}, "'recipe' parameter of MetaFineTunedClassifier"),
        (
            {"recipe": MeanMatching(), "corruption_weight": 0.3},
            r"corruption_weight=0\.3 has no effect with recipe=MeanMatching\(\).* leave it at its default, 0\.1",
        ),
        ({"recipe": Recipe(), "contrastive_weight": 0}, r"contrastive_weight=0 has no effect with recipe=Recipe\(\)"),
    ],
    ids=str,
)
def test_what_is_wrong_before_training_changes_nothing(fitted, data, params, message):
    X, y, d = data
    clf = copy.copy(fitted).set_params(**params)
    before = {**vars(clf)}
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, domains=d)
    assert vars(clf) == before
    clf.set_params(**{name: fitted.get_params()[name] for name in params})
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), fitted.predict_proba(X, domains=d))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            Wrong(column=np.arange(47)),
            r"columns: 'wrong' is int64 of shape \(47,\); expected numbers, 48 rows on the first",
        ),
        (
            Wrong(column=np.arange(47), redrawn=True),
            r"columns: 'wrong' is int64 of shape \(47,\); expected numbers, 48",
        ),
        (Wrong(column=np.array(["a"] * 48)), r"columns: 'wrong' is <U1 of shape \(48,\); expected numbers"),
        (Wrong(label_weight=0), r"the recipe's terms \['label_loss'\] hold none of a weight above 0"),
    ],
    ids=["length", "length, redrawn", "type", "no weight"],
)
def test_what_training_finds_is_named(make, data, recipe, message):
    X, y, d = data
    clf = make(recipe=recipe)
    params, attributes = clf.get_params(), copy.deepcopy(vars(recipe))
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, domains=d)
    assert vars(clf).keys() == clf.get_params(deep=False).keys()  # it is as it was
    assert {k: v is params[k] for k, v in clf.get_params().items()} == dict.fromkeys(params, True)
    assert vars(recipe).keys() == attributes.keys()


# ------------------------------------------------------------------ MetaFineTuning


def test_meta_fine_tuning_by_name_is_the_default_bit_for_bit(make, data, fitted):
    X, y, d = data
    clf = make(recipe=MetaFineTuning()).fit(X, y, domains=d)
    assert same(clf, fitted)
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), fitted.predict_proba(X, domains=d))
    untimed = [[{k: v for k, v in h.items() if k != "seconds"} for h in c.history_] for c in (clf, fitted)]
    assert untimed[0] == untimed[1]


def test_weights_of_the_classifier_are_taken_where_the_recipe_has_none(make, data):
    X, y, d = data

    def fit(*recipe, **params):
        return make(recipe=MetaFineTuning(*recipe) if recipe else None, **BRIEF, **params).fit(X, y, domains=d)

    expected = fit(corruption_weight=0.7, contrastive_weight=0.2)
    assert same(expected, fit(None, None, corruption_weight=0.7, contrastive_weight=0.2))
    assert same(expected, fit(0.7, None, contrastive_weight=0.2))
    assert same(expected, fit(0.7, 0.2))
    assert not same(expected, fit(None, 0.2))


def test_its_other_parameters_are_searchable(make, data):
    X, y, d = data
    clf = make(recipe=MetaFineTuning(), **BRIEF)
    grid = {"recipe__corruption_labels": ["epoch", "uniform"]}
    search = GridSearchCV(clf, grid, cv=2, refit=False, error_score="raise").fit(X, y, domains=d)
    assert [p["recipe__corruption_labels"] for p in search.cv_results_["params"]] == ["epoch", "uniform"]
    epoch, uniform, layers, temperature = (
        clone(clf).set_params(**p).fit(X, y, domains=d)
        for p in (
            {"recipe__corruption_labels": "epoch"},
            {"recipe__corruption_labels": "uniform"},
            {"recipe__corruption_layers": (0, -1)},
            {"recipe__contrastive_temperature": 1.0},
        )
    )
    assert not any(same(epoch, other) for other in (uniform, layers, temperature))


# ------------------------------------------------------------------ who changes what


class Remembers(MeanMatching):
    """Sets attributes of itself while it trains, as a recipe may."""

    def train(self, stage, rows):
        self.rows = rows
        self.weight = 3.0
        return super().train(stage, rows)


@pytest.mark.parametrize("recipe", [MetaFineTuning(), MeanMatching(0.5), Remembers(0.5)], ids=str)
def test_fit_leaves_the_recipe_as_given(make, data, recipe):
    X, y, d = data
    before = copy.deepcopy(vars(recipe))
    clf = make(recipe=recipe, corruption_weight=0.1, **BRIEF).fit(X, y, domains=d)
    assert clf.recipe is recipe and vars(recipe) == before


class Checks(WithHead):
    """Looks at what a stage does to its arguments."""

    looked = []

    def train(self, stage, rows):
        def state():
            arrays = [rows.tokens.ids, rows.labels, rows.domains, rows.sample_weight, rows.weights, rows.typicality]
            encoder = [p.detach().numpy().copy() for p in stage.encoder.parameters()]
            return copy.deepcopy([*arrays, *rows.probe, *encoder]), copy.deepcopy([vars(self), stage.settings])

        arrays, others = state()
        first, second = stage.new_model(self, rows), stage.new_model(self, rows)
        equal = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values())]
        start = copy.deepcopy(second.state_dict())
        trained = stage.train(self, first, rows)
        stage.logits(first, rows)
        part = rows.where(rows.domains == 0)
        stage.train(self, stage.new_model(self, part), part, epochs=1, purpose="a part")
        assert all(equal) and trained.model is first
        assert all(torch.equal(value, start[name]) for name, value in second.state_dict().items())
        now, then = state()
        for a, b in zip(arrays, now, strict=True):
            np.testing.assert_array_equal(a, b)
        assert others == then
        seed = stage.runtime.derive
        assert (stage.epochs(48), seed("x")) == (2, seed("x")) and seed("x") != seed("y")
        Checks.looked.append(True)
        return trained


def test_a_stage_changes_none_of_its_arguments(make, data, monkeypatch):
    X, y, d = data
    monkeypatch.setattr(Checks, "looked", [])
    clf = make(recipe=Checks(), **BRIEF).fit(X, y, domains=d)
    assert Checks.looked == [True]
    assert same(clf, make(recipe=WithHead(), **BRIEF).fit(X, y, domains=d))


# ------------------------------------------------------------------ the example

OWN_LOSS = Path(__file__).resolve().parents[1] / "examples" / "own_loss.py"


def test_coral_is_the_distance_of_first_and_second_moments():
    coral = runpy.run_path(str(OWN_LOSS))["Coral"]
    rng = np.random.default_rng(0)
    E, d = rng.normal(size=(12, 4)), np.arange(12) % 3
    parts = [E[d == k] for k in range(3)]
    means, covariances = np.stack([p.mean(0) for p in parts]), np.stack([np.cov(p.T, bias=True) for p in parts])
    expected = sum(np.square(m - m.mean(0)).mean() for m in (means, covariances))
    batch = {"domain": torch.from_numpy(d), "y": torch.zeros(12, dtype=torch.int64), "weight": torch.ones(12)}
    output = ModelOutput(torch.zeros(12, 2), torch.from_numpy(E), [])
    weight, value = coral(0.5).terms(None, output, batch)["coral"]
    assert weight == 0.5 and value.item() == pytest.approx(expected)


@pytest.mark.slow
def test_the_example_prints_a_table_and_searches_the_weight(tiny, capsys, monkeypatch):
    arguments = ["--synthetic", "--epochs", "1", "--weights", "0.5", "2", "--model", tiny]
    monkeypatch.setattr(sys, "argv", [str(OWN_LOSS), *arguments])
    runpy.run_path(str(OWN_LOSS), run_name="__main__")
    out = capsys.readouterr().out
    for line in ("default ", "label loss alone ", "CORAL "):
        [numbers] = [row.split()[-2:] for row in out.splitlines() if row.startswith(line) and "by weight" not in row]
        assert all(0 <= float(number) <= 1 for number in numbers)
    assert "known domains  domain 2 (new)" in out
    assert "CORAL by weight, on held-out domains: {0.5: " in out and ", 2.0: " in out
