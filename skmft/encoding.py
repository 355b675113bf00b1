"""Texts and text pairs to token ids, kept compactly, and batches padded to their longest row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Text = str | tuple[str, str]

_ROWS_A_CALL = 4096  # bounds the Python lists that the tokenizer returns
_BATCHES_A_BUCKET = 16  # rows are sorted by length inside buckets of this many batches


class TokenizedTexts:
    """Token ids of many texts, stored end to end in one array.

    Parameters
    ----------
    ids : ndarray of int32, shape (n_tokens,)
        Token ids of all texts, one text after the other.
    offsets : ndarray of int64, shape (n_texts + 1,)
        Text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
    type_ids : ndarray of int8, shape (n_tokens,), or None
        Segment of every token (0 or 1), for models that have token types.
    pad_id : int
        Id that fills the end of shorter rows of a batch.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        type_ids: NDArray[np.int8] | None,
        pad_id: int,
    ) -> None:
        self.ids, self.offsets, self.type_ids, self.pad_id = ids, offsets, type_ids, pad_id

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, special tokens included, shape (n_texts,)."""
        return np.diff(self.offsets)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Tensors of shape (len(rows), longest of these rows), padded at the end."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        real = np.arange(max(1, lengths.max())) < lengths[:, None]
        position = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths)])
        columns: dict[str, tuple[NDArray[Any], int]] = {"input_ids": (self.ids, self.pad_id)}
        if self.type_ids is not None:
            columns["token_type_ids"] = (self.type_ids, 0)
        out = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        for name, (values, filler) in columns.items():
            padded = np.full(real.shape, filler, dtype=np.int64)
            padded[real] = values[position]
            out[name] = torch.from_numpy(padded)
        return out

    def subset(self, rows: NDArray[np.int64]) -> TokenizedTexts:
        """The given texts only, in the given order."""
        pieces = [slice(self.offsets[r], self.offsets[r + 1]) for r in rows]
        empty = self.ids[:0]
        return TokenizedTexts(
            np.concatenate([empty, *(self.ids[p] for p in pieces)]),
            np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64),
            None if self.type_ids is None else np.concatenate([self.type_ids[:0], *(self.type_ids[p] for p in pieces)]),
            self.pad_id,
        )


def tokenize(tokenizer: Any, texts: Sequence[Text], max_length: int, token_types: bool) -> TokenizedTexts:
    """Tokenize texts or pairs, cut to `max_length` tokens, unpadded.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    texts : sequence of str or of (str, str)
    max_length : int
        Most tokens a row, special tokens included; of a pair the longer text is cut first.
    token_types : bool
        Whether the model reads token types.

    Returns
    -------
    TokenizedTexts
    """
    ids, types, lengths = [], [], [0]
    for start in range(0, len(texts), _ROWS_A_CALL):
        rows = texts[start : start + _ROWS_A_CALL]
        args: list[list[Any]]
        if isinstance(rows[0], tuple):
            args = [[r[0] for r in rows], [r[1] for r in rows]]
        else:
            args = [list(rows)]
        encoded = tokenizer(
            *args,
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=token_types,
        )
        lengths.extend(map(len, encoded["input_ids"]))
        ids.append(np.fromiter((t for r in encoded["input_ids"] for t in r), dtype=np.int32))
        if token_types:
            flat = (t for r in encoded["token_type_ids"] for t in r)
            types.append(np.fromiter(flat, dtype=np.int8))
    return TokenizedTexts(
        np.concatenate(ids),
        np.cumsum(lengths),
        np.concatenate(types) if token_types else None,
        tokenizer.pad_token_id,
    )


def bucketed_batches(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffled batches of rows of similar length.

    Rows are shuffled, cut into buckets of several batches, sorted inside each bucket by their length
    with 15% of jitter (so that small data sets do not see the same batches every epoch), cut into
    batches, and the batches shuffled. Every row comes once.

    Parameters
    ----------
    lengths : ndarray, shape (n_rows,)
    batch_size : int
    rng : numpy.random.Generator

    Returns
    -------
    list of ndarray
        Row numbers of every batch; one batch may be smaller than `batch_size`.
    """
    order = rng.permutation(len(lengths))
    jittered = lengths * rng.uniform(0.85, 1.15, size=len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * _BATCHES_A_BUCKET):
        bucket = order[start : start + batch_size * _BATCHES_A_BUCKET]
        bucket = bucket[np.argsort(jittered[bucket], kind="stable")]
        batches.extend(bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Batches for inference: rows from longest to shortest, so that little is padding."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
