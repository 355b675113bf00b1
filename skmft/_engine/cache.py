"""What is computed once and kept: results in the user's `memory`, and embeddings that outgrow main memory."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from joblib import Memory as JoblibMemory
from numpy.typing import NDArray
from sklearn.utils.validation import check_memory

Memory = str | os.PathLike | Any  # or a joblib.Memory, or None


def results_in(memory: Memory) -> Any:
    """The user's `memory` as one of joblib; in a folder of ours files are compressed, so that damage shows."""
    if isinstance(memory, (str, os.PathLike)):
        memory = JoblibMemory(os.fspath(memory), compress=True, verbose=0)
    return check_memory(memory)


def float_rows(n_rows: int, width: int, most_bytes: int = 256 * 2**20) -> NDArray[np.float32]:
    """An array to be filled: in memory or, if larger, in a file without a name, which is gone when the array is."""
    if 4 * n_rows * width <= most_bytes:
        return np.empty((n_rows, width), np.float32)
    with tempfile.TemporaryFile(prefix="skmft-") as file:  # in the folder of the environment variable TMPDIR
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash where a mapped page is written
            os.posix_fallocate(file.fileno(), 0, 4 * n_rows * width)
        return np.memmap(file, np.float32, "w+", shape=(n_rows, width))
