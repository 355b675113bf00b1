"""The rows of a training stage, and the order of their batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .encoding import TokenizedTexts, bucketed_batches

Redraw = Callable[[Sequence[NDArray[np.int64]], np.random.Generator], NDArray[Any]]


class TrainingRows(torch.utils.data.Dataset):
    """Tokenized rows with their targets and further columns, for `FineTuningNet`.

    Parameters
    ----------
    texts : TokenizedTexts
    y : ndarray of int, shape (n_rows,)
    weight : ndarray, shape (n_rows,)
        Loss weights of mean 1.
    columns : mapping of str to ndarray of int, optional
        Further columns of every batch.
    redraw : mapping of str to callable, optional
        Columns drawn anew each epoch by ``redraw[name](batches, rng)``.
    """

    def __init__(
        self,
        texts: TokenizedTexts,
        y: NDArray[np.int64],
        weight: NDArray[np.float64],
        columns: Mapping[str, NDArray[np.int64]] | None = None,
        redraw: Mapping[str, Redraw] | None = None,
    ) -> None:
        self.texts, self.y = texts, y
        self.columns: dict[str, NDArray[Any]] = {"weight": weight.astype(np.float32), **(columns or {})}
        self.redraw = dict(redraw or {})

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = np.array([i])
        return self.texts.batch(rows), torch.from_numpy(self.y[rows])


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
        columns: dict[str, NDArray[Any]] = dict(data.columns)
        columns.update({name: draw(batches, draws) for name, draw in data.redraw.items()})
        for rows in batches:
            batch = data.texts.batch(rows)
            batch.update({name: torch.from_numpy(v[rows]) for name, v in columns.items()})
            yield batch, torch.from_numpy(data.y[rows])
