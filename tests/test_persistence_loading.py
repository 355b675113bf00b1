"""What `load` reads, of this format and the one before, and what it refuses."""

import copy
import json
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_texts
from safetensors.torch import load_file, save_file
from saved_folders import alter, read_domains, rewrite_manifest

from skmft import MetaFineTunedClassifier, PersistenceError
from skmft._persistence import loading
from skmft._persistence.folder import FORMAT, MANIFEST
from skmft._persistence.state import decode
from skmft.baselines import MixedDomainClassifier
from skmft.recipes import MetaFineTuning, make_recipe

FORMAT_1 = Path(__file__).with_name("data") / "format_1"


@pytest.fixture(scope="module")
def then():
    """What the model of format 1 predicted when it was saved."""
    return json.loads((FORMAT_1 / "expected.json").read_text())


def test_format_1_answers_as_it_did(then):
    clf = MetaFineTunedClassifier.load(FORMAT_1 / "model")
    for domain, expected in then["predict_proba"].items():
        frame = pd.DataFrame({"text": then["texts"], "where": None if domain == "None" else domain})
        np.testing.assert_allclose(clf.predict_proba(frame), expected, atol=1e-6)
    frame = pd.DataFrame({"text": then["texts"]})
    np.testing.assert_allclose(clf.transform(frame), then["transform"], atol=1e-5)
    np.testing.assert_array_equal(clf.typicality_, then["typicality"])
    np.testing.assert_array_equal(clf.class_counts_, then["class_counts"])
    assert clf.prototypes_.shape == tuple(then["prototypes shape"])
    assert clf.history_ == then["history"]
    assert clf.adapted_domains_.tolist() == ["books", "kitchen", "music"]
    assert clf.feature_names_in_.tolist() == ["text"] and clf.n_features_in_ == 1


def test_format_1_has_its_parameters_in_todays_names():
    clf = MetaFineTunedClassifier.load(FORMAT_1 / "model")
    today = {
        "lora_config": {"r": 2, "lora_alpha": 5.0, "target_modules": ["query"]},
        "optimizer_params": {"weight_decay": 0.05, "warmup_ratio": 0.2, "max_grad_norm": None},
        "unknown_domain": "ignore",
    }
    kept = {
        **{"adaptation": "lora", "adaptation_epochs": 2, "adaptation_learning_rate": 0.05, "batch_size": 8},
        **{"class_weight": {"neg": 1.0, "pos": 2.0}, "contrastive_weight": 0.25, "corruption_weight": 0.2},
        **{"device": "cpu", "domain_column": "where", "learning_rate": 0.02, "max_length": 32, "meta_epochs": 6},
        **{"model": "tiny-bert", "n_prototypes": 2, "pooling": "cls", "precision": "float32", "random_state": 0},
    }
    found = clf.get_params(deep=False)
    assert type(found.pop("recipe")) is MetaFineTuning
    assert clf.recipe.get_params() == {
        **{"corruption_weight": None, "contrastive_weight": None},  # the classifier's
        **{"corruption_layers": (0,), "corruption_labels": "uniform", "contrastive_temperature": 0.2},
    }
    default = MetaFineTunedClassifier().get_params(deep=False)
    assert found == {**{n: v for n, v in default.items() if n != "recipe"}, **today, **kept}


def test_format_1_can_be_trained_further_and_saved_as_today(then, tiny, data, tmp_path):
    X, y, d = data
    frame = pd.DataFrame({"text": X, "where": d})
    clf = MetaFineTunedClassifier.load(FORMAT_1 / "model").set_params(adaptation="head").adapt(frame, y, "toys")
    clf.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / MANIFEST).read_text())["format"] == FORMAT == 2
    again = MetaFineTunedClassifier.load(tmp_path / "model")
    assert again.adapted_domains_.tolist() == ["books", "kitchen", "music", "toys"]
    for domain in (None, "books", "toys"):
        some = frame.assign(where=domain)
        np.testing.assert_array_equal(again.predict_proba(some), clf.predict_proba(some))
    again.set_params(model=tiny, meta_epochs=1).fit(frame, y)
    assert {"corruption_loss", "contrastive_loss"} <= set(again.history_[1])


def test_format_1_is_of_the_meta_fine_tuned_classifier(tmp_path):
    with pytest.raises(PersistenceError, match=r"is of a MetaFineTunedClassifier; load it by MetaFineTunedClassifier"):
        MixedDomainClassifier.load(FORMAT_1 / "model")
    folder = shutil.copytree(FORMAT_1 / "model", tmp_path / "model")
    params = json.loads((folder / "estimator.json").read_text())["params"]
    del params["lora_rank"]
    alter(folder, params=params)
    with pytest.raises(PersistenceError, match=r"estimator.json cannot be read .*lora_rank"):
        MetaFineTunedClassifier.load(folder)


def test_domains_are_read_when_first_asked_for(copied, later, data):
    X, _, _ = data
    clf = MetaFineTunedClassifier.load(copied)
    assert not read_domains(clf)
    clf.predict(X, domains="kitchen")
    assert read_domains(clf) == ["kitchen"]
    later.save(copied)  # the same content: still good
    clf.predict(X, domains="books")
    file = copied / "domains" / "2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(PersistenceError, match=r"2.safetensors has changed since the estimator was loaded"):
        clf.predict(X, domains="music")
    file.unlink()
    with pytest.raises(PersistenceError, match=r"2.safetensors cannot be read"):
        clf.predict(X, domains="music")


def test_a_device_that_is_not_here(copied, data):
    about = copied / "estimator.json"
    content = json.loads(about.read_text())
    content["params"]["device"] = "cuda:77"
    about.write_text(json.dumps(content))
    rewrite_manifest(copied)
    with pytest.warns(UserWarning, match=r"device='cuda:77' is not here") as warned:
        clf = MetaFineTunedClassifier.load(copied)
    assert warned[0].filename == __file__ and clf.device == "auto"
    clf.predict(data[0])


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
    verified, path = loading.verified_files, copied / f"{name}.safetensors"

    def change(folder):
        files = verified(folder)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        return files

    monkeypatch.setattr(loading, "verified_files", change)
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


MANIFESTS = [
    ("", "manifest.json cannot be read .JSONDecodeError"),
    ("[]", "holds a list"),
    ("{", "manifest.json cannot be read .JSONDecodeError"),
    ('{"files": {}}', "format is None"),
    ('{"format": "1", "files": {}}', "format is '1'"),
    ('{"format": true, "files": {}}', "format is True"),
    ('{"format": 3, "files": {}}', r"format is 3, .*expected 1 to 2 \(update skmft for more\)"),
    ('{"format": 1}', "files is a NoneType"),
    ('{"format": 1, "files": {}}', "arrays.safetensors is not in manifest.json"),
    ('{"format": 1, "files": {"../outside": "0"}}', r"lists '\.\./outside'"),
    ('{"format": 1, "files": {"encoder/../../outside": "0"}}', "expected names of files inside the folder"),
    ('{"format": 1, "files": {"/etc/passwd": "0"}}', "lists '/etc/passwd'"),
    ('{"format": 1, "files": {"C:\\\\x": "0"}}', "expected names of files"),
    ('{"format": 1, "files": {"": "0"}}', "lists ''"),
    ("[" * 100_000, "manifest.json cannot be read .RecursionError"),
]


@pytest.mark.parametrize(("text", "expected"), MANIFESTS, ids=[m[1][:20] for m in MANIFESTS])
def test_bad_manifests(copied, text, expected):
    (copied.parent / "outside").write_text("secret")
    (copied / MANIFEST).write_text(text)
    with pytest.raises(PersistenceError, match=expected):
        MetaFineTunedClassifier.load(copied)


def test_no_folder_and_no_manifest(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(PersistenceError, match=r"manifest.json is missing; expected a folder that save wrote"):
            MetaFineTunedClassifier.load(path)


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
            clf = MetaFineTunedClassifier(**{n: decode(v, make_recipe) for n, v in params.items() if n != "memory"})
            clf._check_parameters()
        except (ValueError, TypeError, KeyError):
            return False
        return True
    return {
        "versions": rest or other == {},
        "classes": rest[:1] == ("values",) and rest[1:] and other == "x",
        "domains": rest[:1] == ("values",) and rest[1:] and other == "x",
        "adapted_domains": rest and other in ("x", -1),
        "seed": other == -1,
        "encoder_source": rest and other == "x",  # it is looked for when typicality asks for it
        "history": rest[1:] not in ((), ("stage",)),
    }.get(first, False)


@pytest.mark.slow
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
    ({"adapted_domains": []}, r"adapted_domains is .., and the files are \['domains/0"),
    ({"adapted_domains": {}}, r"'adapted_domains' parameter of estimator.json must be an instance of 'list'. Got \{\}"),
    ({"adapted_domains": "xyz"}, "must be an instance of 'list'. Got 'xyz'"),
    ({"adapted_domains": ["books", "kitchen", None]}, r"None\], and the files are"),
    ({"adapted_domains": ["books", "kitchen", 1e400]}, "expected a str, int or bool for each, each once"),
    ({"adapted_domains": ["books", "kitchen", "books"]}, "expected a str, int or bool for each, each once"),
    ({"adapted_domains": ["books", 1, True]}, "expected a str, int or bool for each, each once"),
    ({"adapted_domains": ["books", "kitchen", "music", "dvd"]}, "expected a str, int or bool for each, each once"),
    ({"history": {}}, r"'history' parameter of estimator.json must be an instance of 'list'. Got \{\}"),
    ({"history": [{}]}, "KeyError: 'stage'"),
    ({"history": [{"stage": "last"}]}, r"history has the stages \{'last'\}; expected"),
    ({"history": []}, r"arrays.safetensors does not fit .*'cross_similarity_'"),
    ({"n_features_in": -1}, "n_features_in is -1, .*; expected 1"),
    ({"n_features_in": 2}, "n_features_in is 2, .*; expected 1"),
    ({"n_features_in": True}, "n_features_in is True, .*; expected 1"),
    ({"feature_names_in": ["text"]}, "expected 1, and names of as many columns at most"),
    ({"n_features_in": 1, "feature_names_in": ["a", "b"]}, "expected 1, and names of as many columns at most"),
    ({"n_features_in": 1, "feature_names_in": []}, "expected 1, and names of as many columns at most"),
    ({"n_features_in": 1, "feature_names_in": {}}, r"must be an instance of 'list' or None. Got \{\}"),
    ({"n_features_in": 1, "feature_names_in": "x"}, "must be an instance of 'list' or None. Got 'x'"),
    ({"unknown": "me"}, "'unknown' parameter of estimator.json must be a str among"),
    ({"settings": {"max_length": 128, "n_prototypes": 1}}, "KeyError: 'pooling'"),
    ({"settings": {"max_length": 128, "n_prototypes": 1, "pooling": "max"}}, "'pooling' parameter of"),
    ({"settings": {"max_length": -1, "n_prototypes": 1, "pooling": "mean"}}, "an int in the range"),
    ({"settings": {"max_length": 128, "n_prototypes": None, "pooling": "mean"}}, "an int in the range"),
    ({"class": "Other"}, "is of a Other; load it by Other.load"),
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


def tensor_damages(folder):
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


@pytest.mark.slow
def test_tensors_that_do_not_fit(saved, tmp_path, data):
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


RECIPES = [
    (5, "estimator.json cannot be read"),
    ([], "estimator.json cannot be read"),
    (["skmft.recipes.MetaFineTuning"], "estimator.json cannot be read"),
    ([5, {"dict": []}], "a recipe is 5 with"),
    (["skmft.recipes.MetaFineTuning", 5], "with 5; expected a class's name and a dict of parameters"),
    (["their.Recipe", {"list": []}], r"with \[\]; expected a class's name and a dict"),
    (["skmft.recipes.MetaFineTuning", {"dict": [["more", 1]]}], "unexpected keyword argument 'more'"),
]


@pytest.mark.parametrize(("recipe", "expected"), RECIPES, ids=[str(r[0]) for r in RECIPES])
def test_bad_recipes(copied, recipe, expected):
    params = json.loads((copied / "estimator.json").read_text())["params"]
    alter(copied, params={**params, "recipe": {"recipe": recipe}})
    with pytest.raises(PersistenceError, match=expected):
        MetaFineTunedClassifier.load(copied)


@pytest.mark.parametrize("name", ["os.system", "skmft.recipes.Stage", "skmft.recipes.make_recipe", "evil.Evil", ""])
def test_recipes_of_a_folder_are_not_imported(copied, monkeypatch, data, name):
    (copied.parent / "evil.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(copied.parent)
    params = json.loads((copied / "estimator.json").read_text())["params"]
    alter(copied, params={**params, "recipe": {"recipe": [name, {"dict": [["command", "ls"]]}]}})
    clf = MetaFineTunedClassifier.load(copied)
    clf.predict(data[0], domains="books")
    with pytest.raises(ValueError, match=rf"by the recipe {name}\(command='ls'\)"):
        clf.fit(*data)
    assert "evil" not in sys.modules


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
            monkeypatch.setattr(loading, guard, lambda content: content)
    with suppress(PersistenceError) if not guards else pytest.raises(PersistenceError, match="encoder"):
        MetaFineTunedClassifier.load(copied)
    assert not ran.exists()


def test_weights_are_those_that_save_writes(copied):
    """Not those that transformers would find besides: of an index, an adapter, a pickle."""
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

    shard = encoder / "model-00001-of-00001.safetensors"
    index = encoder / "model.safetensors.index.json"
    for name in ("../../outside.safetensors", shard.name):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
        rewrite_manifest(copied, all_files=True)
        with pytest.raises(PersistenceError, match=r"index.json is no file that save writes"):
            MetaFineTunedClassifier.load(copied)
    index.unlink()
    (encoder / "model.safetensors").rename(shard)
    rewrite_manifest(copied, all_files=True)
    with pytest.raises(PersistenceError, match=r"of-00001.safetensors is no file that save writes"):
        MetaFineTunedClassifier.load(copied)
    shard.unlink()
    rewrite_manifest(copied, all_files=True)
    with pytest.raises(PersistenceError, match=r"encoder cannot be read .*model.safetensors"):
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


@pytest.fixture(scope="module")
def lora(tiny, data):
    """Two domains adapted by low-rank adapters, one more by a smaller rank and one by its head."""
    pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    X, y, d = data
    clf = MetaFineTunedClassifier(
        tiny,
        adaptation="lora",
        lora_config={"r": 8, "lora_alpha": 5.5},
        meta_epochs=2,
        adaptation_epochs=4,
        learning_rate=3e-3,
        adaptation_learning_rate=2e-2,
        batch_size=16,
        precision="float32",
        random_state=0,
    ).fit(X, y, domains=d)
    clf.set_params(lora_config={"r": 2, "lora_alpha": 5.5}).adapt(*make_texts(16, seed=3)[:2], "music")
    return clf.set_params(adaptation="head").adapt(*make_texts(16, seed=4)[:2], "dvd")


@pytest.mark.slow
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
    lora.save(tmp_path / "model")
    file = tmp_path / "model" / "domains" / "0.safetensors"
    for tensors in adapter_damages(load_file(file)):
        save_file(tensors, file)
        rewrite_manifest(tmp_path / "model")
        for domains in ("books", np.resize(["books", "music"], len(data[0]))):
            clf = MetaFineTunedClassifier.load(tmp_path / "model")
            with pytest.raises(PersistenceError, match=r"0.safetensors does not fit the rest of the folder"):
                clf.predict(data[0], domains=domains)


def test_domains_that_were_not_read_are_told_in_short(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    weights = MetaFineTunedClassifier.load(tmp_path / "model").adapted_weights_
    assert repr(weights) == "StoredWeights(['books', 'kitchen'])"
