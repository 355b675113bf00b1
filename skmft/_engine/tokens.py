"""Texts and text pairs to token ids, kept compactly, and batches padded to their longest row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._typing import Array, Tokenizer
from .cache import RowStore

Text = str | tuple[str, str]

_ROWS_A_CALL = 4096  # bounds the Python lists that the tokenizer returns
_CHUNK_ROWS = 32_768  # looked up in the user's memory at a time
_BATCHES_A_BUCKET = 16  # rows are sorted by length inside buckets of this many batches


class TokenizedTexts:
    """Token ids of many texts, stored end to end in one array: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.

    `type_ids` says which text of a pair a token is of (0 or 1), for models that have token types and for pairs that are
    `bi_encoded`: tokenized each text by itself, special tokens included. `pad_id` fills the end of shorter rows of a batch.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        type_ids: NDArray[np.int8] | None,
        pad_id: int,
        bi_encoded: bool = False,
    ) -> None:
        self.ids, self.offsets, self.type_ids, self.pad_id, self.bi_encoded = ids, offsets, type_ids, pad_id, bi_encoded

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, special tokens included, shape (n_texts,)."""
        return np.diff(self.offsets)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Tensors of shape (len(rows), longest of these rows), padded at the end."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        real = np.arange(max(1, lengths.max())) < lengths[:, None]
        position = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths)])
        columns: dict[str, tuple[Array, int]] = {"input_ids": (self.ids, self.pad_id)}
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
        if np.array_equal(rows, np.arange(len(self))):
            return self
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        position = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        position += np.arange(offsets[-1])
        types = None if self.type_ids is None else self.type_ids[position]
        return TokenizedTexts(self.ids[position], offsets, types, self.pad_id, self.bi_encoded)

    def row(self, i: int) -> NDArray[np.int32]:
        """Text i: its ids, or ids and token types, shape (n,) or (2, n)."""
        piece = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[piece] if self.type_ids is None else np.stack([self.ids[piece], self.type_ids[piece]])


def tokenize_once(
    store: RowStore,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    max_length: int,
    token_types: bool,
    bi_encoded: bool = False,
) -> TokenizedTexts:
    """`tokenize`, but each text only once in the life of the store."""
    if store.path is None:
        return tokenize(tokenizer, texts, max_length, token_types, bi_encoded)
    token_types = token_types or bi_encoded
    ids, lengths = [], []
    for start in range(0, len(texts), _CHUNK_ROWS):
        chunk = texts[start : start + _CHUNK_ROWS]

        def compute(rows: NDArray[np.int64], chunk: Sequence[Text] = chunk) -> list[NDArray[np.int32]]:
            tokens = tokenize(tokenizer, [chunk[i] for i in rows], max_length, token_types, bi_encoded)
            return [tokens.row(i) for i in range(len(tokens))]

        keys = [hashlib.sha256(json.dumps(text).encode()).digest() for text in chunk]
        arrays = [a.reshape(2 if token_types else 1, -1) for a in store.get(keys, compute, np.int32)]
        ids.append(np.concatenate(arrays, axis=1))
        lengths.append(np.array([a.shape[1] for a in arrays]))
    flat = np.concatenate(ids, axis=1)
    return TokenizedTexts(
        flat[0],
        np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        flat[1].astype(np.int8) if token_types else None,
        tokenizer.pad_token_id,
        bi_encoded,
    )


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Text], max_length: int, token_types: bool, bi_encoded: bool = False
) -> TokenizedTexts:
    """Tokenize texts or pairs, cut to `max_length` tokens, unpadded."""
    ids, types, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(texts), _ROWS_A_CALL):
        rows = texts[start : start + _ROWS_A_CALL]
        args: list[list[Any]]
        if isinstance(rows[0], tuple):
            args = [[r[0] for r in rows], [r[1] for r in rows]]
        else:
            args = [list(rows)]
        calls = [[column] for column in args] if bi_encoded else [args]
        try:
            encoded = [
                tokenizer(
                    *call,
                    truncation=True,
                    max_length=max_length,
                    padding=False,
                    return_attention_mask=False,
                    return_token_type_ids=token_types and not bi_encoded,
                )
                for call in calls
            ]
        except TypeError:
            _refuse_surrogates(rows, start)
            raise
        pieces = [row for parts in zip(*(e["input_ids"] for e in encoded)) for row in parts]
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
        lengths.append(sizes.reshape(len(rows), -1).sum(1))
        ids.append(np.fromiter((t for piece in pieces for t in piece), dtype=np.int32))
        if bi_encoded:
            types.append(np.repeat(np.arange(len(pieces)) % 2, sizes).astype(np.int8))
        elif token_types:
            flat = (t for r in encoded[0]["token_type_ids"] for t in r)
            types.append(np.fromiter(flat, dtype=np.int8))
    return TokenizedTexts(
        np.concatenate(ids),
        np.cumsum(np.concatenate(lengths)),
        np.concatenate(types) if types else None,
        tokenizer.pad_token_id,
        bi_encoded,
    )


def bucketed_batches(lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffled batches of rows of similar length.

    Rows are shuffled, cut into buckets of several batches, sorted inside each bucket by their length
    with 15% of jitter (so that small data sets do not see the same batches every epoch), cut into
    batches, and the batches shuffled. Every row comes once. All batches are of one size, but for a row, so that
    no row weighs more in its batch's mean than others do in theirs.
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


def sorted_batches(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Batches for inference: rows from longest to shortest, so that little is padding, as many as `max_tokens` hold."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def _refuse_surrogates(rows: Sequence[Text], first: int) -> None:
    """Name the first row whose text is no valid Unicode; `first` is the number of the first row."""
    for i, row in enumerate(rows, start=first):
        for text in row if isinstance(row, tuple) else (row,):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"X: row {i} has the lone surrogate {text[error.start]!r} at character {error.start}; expected valid "
                    "Unicode. text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it."
                ) from None
