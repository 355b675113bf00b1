"""The rows of a training, and which of them make a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .tokens import TOKENS, TokenizedTexts

Redraw = Callable[[Sequence[NDArray[np.int64]], np.random.Generator], np.ndarray]
Column = np.ndarray | Redraw
_BATCHES_A_BUCKET = 16  # rows are sorted by length inside buckets of this many batches
_TAKEN = {*TOKENS, "y", "weight", "progress"}


@dataclass(eq=False)
class TrainingRows(torch.utils.data.Dataset):
    """Tokenized rows with their targets, weights (of mean 1) and further columns of numbers, a row each.

    A callable is asked anew each epoch: ``column(batches, rng)`` with the row numbers of every batch and a generator.
    """

    texts: TokenizedTexts
    y: NDArray[np.int64]
    weight: NDArray[np.float64]
    columns: Mapping[str, Column] | None = None

    def __post_init__(self) -> None:
        if taken := sorted(_TAKEN.intersection(self.columns or ())):
            raise ValueError(f"columns: {taken[0]!r} is taken; expected a name other than {sorted(_TAKEN)}.")

    def __len__(self) -> int:
        return len(self.texts)

    def draw(self, batches: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """All columns in an epoch, floats as float32."""
        out = {}
        for name, given in {"weight": self.weight, **(self.columns or {})}.items():
            column = np.asarray(given(batches, rng) if callable(given) else given)
            if column.shape[:1] != (len(self),) or column.dtype.kind not in "biuf":
                found = f"{column.dtype} of shape {column.shape}"
                raise ValueError(f"columns: {name!r} is {found}; expected numbers, {len(self)} rows on the first axis.")
            out[name] = column.astype(np.float32) if column.dtype.kind == "f" else column
        return out


class BucketedIterator:
    """The net's ``iterator_train``: shuffled batches of rows of similar length, padded to the longest.

    The order is a function of `seed` and the epoch alone; redrawn columns have a generator of their own.
    """

    def __init__(self, dataset: TrainingRows, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        data = self.dataset
        order, draws = (np.random.default_rng([self.seed, self.epoch, purpose]) for purpose in (0, 1))
        self.epoch += 1
        batches = bucketed_batches(data.texts.lengths, self.batch_size, order)
        columns = data.draw(batches, draws)
        for rows in batches:
            own = {name: torch.from_numpy(column[rows]) for name, column in columns.items()}
            yield data.texts.batch(rows) | own, torch.from_numpy(data.y[rows])


def bucketed_batches(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffled batches of rows of similar length, each row once.

    Rows are sorted by length, with 15% of jitter, inside buckets of several batches. All batches are of one size, but for a
    row, so that rows weigh alike in their batch's mean.
    """
    order = rng.permutation(len(lengths))
    jittered = lengths * rng.uniform(0.85, 1.15, size=len(lengths))
    batches: list[NDArray[np.int64]] = []
    even = np.array_split(order, math.ceil(len(order) / batch_size))
    for start in range(0, len(even), _BATCHES_A_BUCKET):
        own = even[start : start + _BATCHES_A_BUCKET]
        bucket = np.concatenate(own)
        bucket = bucket[np.argsort(jittered[bucket], kind="stable")]
        batches.extend(np.split(bucket, np.cumsum([len(batch) for batch in own])[:-1]))
    return [batches[i] for i in rng.permutation(len(batches))]
