"""What is computed once and kept: arrays of texts in the user's `memory`, and embeddings that outgrow main memory."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_memory

Memory = str | os.PathLike | Any  # or a joblib.Memory, or None
Compute = Callable[[NDArray[np.int64]], Iterable[np.ndarray]]  # row numbers to the arrays of these rows


class RowStore:
    """One array a row, computed once and kept in a file that processes share, or kept nowhere under a memory of None.

    `namespace` is what the arrays depend on besides their row's key.
    """

    def __init__(self, memory: Memory, *namespace: object) -> None:
        memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
        self.path: Path | None = None
        if (backend := getattr(memory, "store_backend", None)) is not None:
            name = hashlib.sha256(json.dumps(namespace, default=int).encode()).hexdigest()[:32]
            self.path = Path(backend.location) / "skmft" / f"{namespace[0]}-{name}.sqlite"

    def get(self, keys: Sequence[bytes], compute: Compute, dtype: type[np.generic]) -> list[np.ndarray]:
        """Flat arrays of all keys; `compute` is asked for those of some rows."""
        if self.path is None:
            return list(compute(np.arange(len(keys))))
        first = dict(zip(reversed(keys), reversed(range(len(keys)))))  # where a key comes first
        self.path.parent.mkdir(parents=True, exist_ok=True)

        def read(some: Iterable[bytes]) -> dict[bytes, bytes]:
            rows = ((key, db.execute("SELECT array FROM arrays WHERE key = ?", (key,)).fetchone()) for key in some)
            return {key: row[0] for key, row in rows if row}

        with closing(sqlite3.connect(self.path, timeout=24 * 3600, isolation_level=None)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS arrays (key BLOB PRIMARY KEY, array BLOB) WITHOUT ROWID")
            found = read(first)
            if len(found) < len(first):
                db.execute("BEGIN IMMEDIATE")  # the write lock; closing without commit drops it
                found |= read(first.keys() - found)
                if missing := sorted(first[key] for key in first.keys() - found):
                    arrays = compute(np.array(missing))
                    new = {keys[i]: np.ascontiguousarray(a, dtype).tobytes() for i, a in zip(missing, arrays)}
                    db.executemany("INSERT INTO arrays VALUES (?, ?)", new.items())
                    found |= new
                db.execute("COMMIT")
        return [np.frombuffer(found[key], dtype) for key in keys]


def float_rows(n_rows: int, width: int, most_bytes: int = 256 * 2**20) -> NDArray[np.float32]:
    """An array to be filled: in memory or, if larger, in a file without a name, which is gone when the array is."""
    if 4 * n_rows * width <= most_bytes:
        return np.empty((n_rows, width), np.float32)
    with tempfile.TemporaryFile(prefix="skmft-") as file:  # in the folder of the environment variable TMPDIR
        return np.memmap(file, np.float32, "w+", shape=(n_rows, width))
