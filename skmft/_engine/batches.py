"""The rows of a training, and the order of their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .tokens import TokenizedTexts, bucketed_batches

Redraw = Callable[[Sequence[NDArray[np.int64]], np.random.Generator], np.ndarray]
Column = np.ndarray | Redraw


class TrainingRows(torch.utils.data.Dataset):
    """Tokenized rows with their targets, weights (of mean 1) and further columns, for `FineTuningNet`.

    Columns are integer or float, the first axis being the rows. A callable is asked anew each epoch: ``column(batches, rng)``
    with the row numbers of every batch and a generator.
    """

    def __init__(
        self,
        texts: TokenizedTexts,
        y: NDArray[np.int64],
        weight: NDArray[np.float64],
        columns: Mapping[str, Column] | None = None,
    ) -> None:
        self.texts, self.y = texts, y
        self.columns: dict[str, Column] = {"weight": weight.astype(np.float32)}
        for name, column in (columns or {}).items():
            self.columns[name] = column if callable(column) else _checked(name, column, len(y))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = np.array([i])
        return self.texts.batch(rows), torch.from_numpy(self.y[rows])


def _checked(name: str, column: np.ndarray, n_rows: int) -> np.ndarray:
    """A column of numbers, floats as float32."""
    column = np.asarray(column)
    if column.shape[:1] != (n_rows,) or column.dtype.kind not in "biuf":
        raise ValueError(
            f"columns: {name!r} is {column.dtype} of shape {column.shape}; expected numbers, {n_rows} rows on the first axis."
        )
    return column.astype(np.float32) if column.dtype.kind == "f" else column


class BucketedIterator:
    """The net's ``iterator_train``: length-bucketed, shuffled batches, padded to their longest row.

    The order is a function of `seed` and the epoch alone; redrawn columns have a generator of their own, so that
    they change no order.
    """

    def __init__(self, dataset: TrainingRows, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        data = self.dataset
        order = np.random.default_rng([self.seed, self.epoch, 0])
        draws = np.random.default_rng([self.seed, self.epoch, 1])
        self.epoch += 1
        batches = bucketed_batches(data.texts.lengths, self.batch_size, order)
        columns = {
            name: _checked(name, c(batches, draws), len(data.y)) if callable(c) else c
            for name, c in data.columns.items()
        }
        for rows in batches:
            batch = data.texts.batch(rows)
            batch.update({name: torch.from_numpy(v[rows]) for name, v in columns.items()})
            yield batch, torch.from_numpy(data.y[rows])
