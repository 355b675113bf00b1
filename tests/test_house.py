"""The check of the house's order finds what is out of order, and nothing else."""

import importlib.util
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / ".ci" / "check_house.py"
GOOD = {
    "skmft/__init__.py": "from .face import Face\n",
    "skmft/_base.py": "class Base:\n    def _fit(self):\n        self._seed = 0\n        return other(self)._seed\n",
    "skmft/face.py": (
        "from . import _base\nfrom ._base import Base\n\n\nclass Face(Base):\n"
        "    _parameter_constraints = {**Base._parameter_constraints}\n\n"
        "    def fit(self, y):\n        self._fit()\n        super()._fit()\n        return y._mgr.__class__, _base.Base\n"
    ),
    "benchmarks/study.py": "import numpy as np\nfrom unittest import mock\n\nmock.patch.object(np, 'sum', None)\n",
}


@pytest.fixture
def found_in(tmp_path):
    """Finds the problems of a small house in good order, to which files are added."""
    spec = importlib.util.spec_from_file_location("check_house", CHECK)
    check_house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_house)

    def problems(**files):
        for name, text in {**GOOD, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return check_house.problems(tmp_path)

    return problems


def test_good_order(found_in):
    assert found_in() == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from ._base import _helper", "_helper"),
        ("from skmft._base import Base as _B, _helper as helper", "_helper"),
        ("import skmft\nskmft._base.Base()._fit()", "_fit"),
        ("from ._base import Base\nBase._anything", "_anything"),
        ("from . import _base\n_base._anything()", "_anything"),
        ("def save(clf):\n    return clf._seed", "_seed"),
    ],
)
def test_private_names_of_another_module(found_in, line, name):
    (problem,) = found_in(**{"skmft/_inner/bad.py": line})
    assert problem == f"skmft/_inner/bad.py:{line.count(chr(10)) + 1}: {name} is private to another module"


def test_lengths_and_any(found_in):
    any_else = "from typing import Any\n" + "x: Any\n" * 150 + '"""Any"""  # Any\n'
    long = {f"skmft/m{i}.py": "\n" * 450 for i in range(18)}
    files = {"skmft/long.py": "\n" * 451, "skmft/loose.py": any_else, **long}
    n_lines = sum(text.count("\n") for name, text in {**GOOD, **files}.items() if name.startswith("skmft/"))
    assert found_in(**files) == [
        "skmft/long.py: 451 lines, of 450 at most",
        f"skmft: {n_lines} lines, of 6200 at most",
        "skmft: Any is written 151 times, of 150 at most",
    ]


@pytest.mark.parametrize(
    "call",
    ["mock.patch.object(skmft.training, 'x', 1)", "mock.patch('skmft.training.x')", "mock.patch.object(Net, 'x', 1)"],
)
def test_patches_in_benchmarks(found_in, call):
    (problem,) = found_in(**{"benchmarks/lib/bad.py": f"import skmft\nfrom skmft.a import b as Net\n{call}"})
    assert problem.startswith("benchmarks/lib/bad.py:3: patches ")
