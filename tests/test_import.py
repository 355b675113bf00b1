"""Importing skmft: what it loads, that it touches nothing, and what it shows."""

import inspect
import pydoc
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skmft

ROOT = Path(skmft.__file__).resolve().parent
MODULES = {"baselines", "datasets", "inspection", "metrics", "model_selection", "recipes"}
NAMES = {"MetaFineTunedClassifier", "PersistenceError", "__version__", *MODULES}

CODE = """
import logging, os, random, socket, sys, time, warnings
import numpy as np
start = time.process_time()
import sklearn, sklearn.linear_model, torch, pandas, skorch
theirs = time.process_time() - start

def refuse(*args, **kwargs):
    raise AssertionError("the network was touched")

socket.socket.connect = refuse
socket.getaddrinfo = refuse

def state():
    loggers = {n: logging.getLogger(n).level for n in ("", "transformers", "skorch", "torch", "huggingface_hub", "skmft")}
    return (
        random.getstate(), [str(s) for s in np.random.get_state()], torch.get_rng_state().tolist(),
        [str(f) for f in warnings.filters], sklearn.get_config(), loggers, len(logging.getLogger().handlers),
        torch.get_num_threads(), torch.get_default_dtype(), dict(os.environ),
    )

before = state()
start = time.process_time()
import skmft
ours = time.process_time() - start
assert state() == before, "importing skmft changed global state"

heavy = {"transformers", "matplotlib", "datasets", "sentence_transformers", "peft", "accelerate", "onnx", "huggingface_hub"}
assert not heavy & set(sys.modules), f"importing skmft loads {heavy & set(sys.modules)}"
assert ours < theirs, f"importing skmft takes {ours:.2f} s of CPU beside {theirs:.2f} s for torch and scikit-learn"
lazy = ["baselines", "datasets", "inspection", "metrics", "model_selection"]
early = [name for name in lazy if f"skmft.{name}" in sys.modules]
assert not early, f"{early} were imported before they were asked for"
assert all(getattr(skmft, name) is sys.modules[f"skmft.{name}"] for name in lazy)
assert skmft.baselines.MixedDomainClassifier and skmft.recipes.Recipe and skmft.metrics.domain_report
assert not heavy & set(sys.modules), f"public modules of skmft load {heavy & set(sys.modules)}"
"""


def test_importing_is_quick_lazy_and_changes_nothing():
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_what_is_shown():
    assert set(dir(skmft)) == set(skmft.__all__) == NAMES
    assert {name for name, _ in inspect.getmembers(skmft)} == NAMES
    assert re.fullmatch(r"\d+\.\d+\.\d+", skmft.__version__)
    shown = pydoc.plain(pydoc.render_doc(skmft))  # what help() does
    assert set(re.findall(r"^    class (\w+)", shown, re.MULTILINE)) == {"MetaFineTunedClassifier", "PersistenceError"}
    with pytest.raises(AttributeError, match="module 'skmft' has no attribute 'persistence'"):
        skmft.persistence  # noqa: B018


def test_every_other_module_is_underscored():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {name for name in names if not name.startswith("_")} == MODULES | {"classifier"}
    inside = {path.stem for path in (ROOT / "datasets").glob("*.py")}
    assert all(name.startswith("_") for name in inside)


def test_all_packages_are_built():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"] == {"find": {"include": ["skmft*"]}}
    assert all((path.parent / "__init__.py").is_file() for path in ROOT.rglob("*.py"))  # else it is not found
