"""Importing skmft: what it loads, and that it touches nothing."""

import subprocess
import sys

CODE = """
import logging, os, random, socket, sys, warnings
import numpy as np
import sklearn
import torch, transformers, skorch

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
import skmft
assert state() == before, "importing skmft changed global state"
"""


def test_import_changes_no_global_state_and_touches_no_network():
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_import_loads_no_heavy_optional_packages():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import skmft"], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "skmft.classifier" in loaded
    for name in ("matplotlib", "datasets", "sentence_transformers", "peft", "accelerate"):
        assert not [m for m in loaded if m == name or m.startswith(f"{name}.")], name
