"""Two processes under torchrun train what one process trains."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_texts

from skmft._engine.distributed import Processes

pytest.importorskip("accelerate", reason="needs the extra skmft[distributed]")
SCRIPT = Path(__file__).with_name("distributed_script.py")
COMPARED = ["weight 0", "weight 0.1", "batches of one row", "head"]


def run(*command, folder, n):
    here = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parent)])
    launchers = ("RANK", "WORLD_SIZE", "MASTER_", "ACCELERATE_", "LOCAL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(n)]


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """Results of one process, without a launcher."""
    folder = tmp_path_factory.mktemp("one")
    return run(str(SCRIPT), tiny, str(folder), folder=folder, n=1)[0]


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """Results of two processes, by rank."""
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return run(*launch, str(SCRIPT), tiny, str(folder), folder=folder, n=2)


def losses(result):
    return [{k: v for k, v in entry.items() if isinstance(v, float)} for entry in result["history"]]


def assert_same(result, expected, atol):
    assert [e.keys() for e in result["history"]] == [e.keys() for e in expected["history"]]
    for now, then in zip(losses(result), losses(expected)):
        assert now == pytest.approx(then, abs=atol)
    for name, tensor in expected["weights"].items():
        np.testing.assert_allclose(result["weights"][name], tensor, atol=atol, rtol=0, err_msg=name)
    np.testing.assert_allclose(result["logits"], expected["logits"], atol=atol)
    assert np.array_equal(result["predicted"], expected["predicted"])


@pytest.mark.slow
def test_there_are_two_processes(one, two):
    assert (one["head"]["rank"], one["head"]["world"]) == (0, 1)
    assert [(r["head"]["rank"], r["head"]["world"]) for r in two] == [(0, 2), (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPARED)
def test_two_processes_train_what_one_trains(one, two, case):
    assert len(losses(one[case])) >= 4
    for result in two:
        assert_same(result[case], one[case], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*COMPARED, "with dropout", "seed of its own", "contrastive"])
def test_all_processes_end_with_the_same(two, case):
    first, second = (result[case] for result in two)
    assert first["seed"] == second["seed"]
    assert_same(second, first, atol=0)


@pytest.mark.slow
def test_dropout_masks_differ_between_processes(one, two):
    assert one["with dropout"]["seed"] == two[0]["with dropout"]["seed"]
    now, then = (r["with dropout"]["history"][-1]["label_loss"] for r in (two[0], one))
    assert 1e-5 < abs(now - then) < 0.2


@pytest.mark.slow
def test_only_the_first_process_speaks(one, two):
    assert "meta fine-tuning" in two[0]["printed"]
    assert "domain 'books': adapted on" in two[0]["printed"]
    assert two[1]["printed"] == ""
    assert "domain 'books': adapted on" in one["printed"]


@pytest.mark.slow
def test_contrastive_partners_are_those_in_the_own_part(one, two):
    """So that the loss is another one, and a lower one: there are fewer rows to be told from."""
    now, then = (
        [e["contrastive_loss"] for e in losses(r["contrastive"]) if "contrastive_loss" in e] for r in (two[0], one)
    )
    assert len(now) == len(then) == 2 and all(0 < a < b for a, b in zip(now, then))


@pytest.mark.slow
def test_rows_that_differ_between_processes_are_refused(one, two):
    assert one["other rows"] is None
    for result in two:
        assert result["other rows"].startswith("ValueError: distributed=True: the processes were given different rows")


@pytest.mark.slow
def test_global_generators_stay_as_they_were(one, two):
    assert all(result["untouched"] for result in (one, *two))


def test_without_accelerate(make, monkeypatch):
    X, y, d = make_texts(8)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        ImportError, match=r"distributed=True needs the package 'accelerate': pip install 'skmft\[distri"
    ):
        make(distributed=True).fit(X, y, domains=d)
    make(meta_epochs=1, adaptation=None).fit(X, y, domains=d)


def test_alone_without_a_launcher_nothing_is_started(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "__init__", lambda *args, **kwargs: pytest.fail("a state was made"))
    assert Processes.join("cpu") == Processes(0, 1)
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the launcher takes a GPU for each process")
def test_accelerate_launch_starts_processes_that_are_joined_until_exit(tmp_path):
    script = tmp_path / "join.py"
    script.write_text(
        "import atexit, pickle, sys, torch\n"
        "from skmft._engine.distributed import Processes\n"
        "def write():\n"
        "    result = processes.size, total, torch.distributed.is_initialized()\n"
        "    open(f'{sys.argv[1]}/{processes.rank}', 'wb').write(pickle.dumps(result))\n"
        "atexit.register(write)  # runs after what skmft registers\n"
        "processes = Processes.join('auto')\n"
        "total = processes.add(torch.ones(1)).item()\n"
        "assert torch.distributed.is_initialized()\n"
    )
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
    options = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    assert run(*launch, *options, str(script), str(tmp_path), folder=tmp_path, n=2) == [(2, 2.0, False)] * 2


def test_processes_that_accelerate_did_not_join(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(PartialState, "__init__", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="WORLD_SIZE=2, but accelerate started no process group"):
        Processes.join("cpu")
