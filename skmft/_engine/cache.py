"""What is computed once and kept: arrays of texts in the user's `memory`, and embeddings that outgrow main memory."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_memory

Memory = str | os.PathLike | Any  # or a joblib.Memory, or None
_MOST_BYTES_IN_MEMORY = 256 * 2**20  # of embeddings; more go to a temporary file


class RowStore:
    """One array a row, computed once and kept in a file that processes share.

    Parameters
    ----------
    memory : str, path, joblib.Memory or None
        As in scikit-learn's Pipeline; None, or a Memory without a location, keeps nothing.
    *namespace : str or int
        What the arrays depend on besides their row's key.
    """

    def __init__(self, memory: Memory, *namespace: object) -> None:
        memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
        backend = getattr(memory, "store_backend", None)
        self.path: Path | None = None
        if backend is not None:
            name = hashlib.sha256(json.dumps(namespace, default=int).encode()).hexdigest()[:32]
            self.path = Path(backend.location) / "skmft" / f"{namespace[0]}-{name}.sqlite"

    def get(
        self,
        keys: Sequence[bytes],
        compute: Callable[[NDArray[np.int64]], Sequence[np.ndarray]],
        dtype: type[np.generic],
    ) -> list[np.ndarray]:
        """Flat arrays of all keys."""
        if self.path is None:
            return list(compute(np.arange(len(keys))))
        position: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            position.setdefault(key, i)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=24 * 3600, isolation_level=None)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS arrays (key BLOB PRIMARY KEY, array BLOB) WITHOUT ROWID")
            found = self._read(db, list(position))
            if len(found) < len(position):
                db.execute("BEGIN IMMEDIATE")  # the write lock; closing without commit drops it
                found |= self._read(db, [key for key in position if key not in found])
                missing = [key for key in position if key not in found]
                if missing:
                    arrays = compute(np.array([position[key] for key in missing]))
                    new = {key: np.ascontiguousarray(a, dtype).tobytes() for key, a in zip(missing, arrays)}
                    db.executemany("INSERT INTO arrays VALUES (?, ?)", new.items())
                    found |= new
                db.execute("COMMIT")
        return [np.frombuffer(found[key], dtype) for key in keys]

    @staticmethod
    def _read(db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            places = ", ".join("?" * len(some))
            found.update(db.execute(f"SELECT key, array FROM arrays WHERE key IN ({places})", some))
        return found


class FloatRows:
    """Rows of float32, shape (n_rows, width), written and read block by block: in memory, or in a temporary file if large.

    The file lies in ``tempfile.gettempdir()`` (environment variable ``TMPDIR``) and has no name, so it is gone when closed. Its
    blocks are read, not mapped, so that only those in use count as memory.
    """

    def __init__(self, n_rows: int, width: int, most_bytes: int = _MOST_BYTES_IN_MEMORY) -> None:
        self.n_rows, self.row_bytes, self.width = n_rows, 4 * width, width
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(most_bytes + 1, prefix="skmft-")

    def __enter__(self) -> FloatRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Set the rows from `start` on."""
        self._file.seek(start * self.row_bytes)
        self._file.write(np.ascontiguousarray(rows).tobytes())

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """The rows from `start` to `stop`."""
        self._file.seek(start * self.row_bytes)
        return np.frombuffer(self._file.read((stop - start) * self.row_bytes), np.float32).reshape(-1, self.width)

    def blocks(self, size: int = 8192) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All rows in blocks of `size`: their place, and they."""
        for start in range(0, self.n_rows, size):
            stop = min(start + size, self.n_rows)
            yield slice(start, stop), self.read(start, stop)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows, their numbers rising."""
        parts, size = [self.read(0, 0)], 8192
        for start in np.unique(rows // size) * size:
            here = rows[(rows >= start) & (rows < start + size)]
            parts.append(self.read(start, min(start + size, self.n_rows))[here - start])
        return np.concatenate(parts)
