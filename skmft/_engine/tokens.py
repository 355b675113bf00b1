"""Texts and text pairs to token ids, kept compactly and padded batch by batch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._typing import Tokenizer
from .cache import RowStore

Text = str | tuple[str, str]
TOKENS = ("input_ids", "attention_mask", "token_type_ids")  # what of a batch an encoder may read

_ROWS_A_CALL = 4096  # bounds the Python lists that the tokenizer returns
_CHUNK_ROWS = 32_768  # looked up in the user's memory at a time


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Token ids of many texts, stored end to end in one array: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.

    `type_ids` says which text of a pair a token is of (0 or 1), for models that read it and for pairs that are `bi_encoded`:
    tokenized each text by itself. `pad_id` fills the end of shorter rows of a batch.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    type_ids: NDArray[np.int8] | None
    pad_id: int
    bi_encoded: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of every text, special tokens included, shape (n_texts,)."""
        return np.diff(self.offsets)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Tensors of shape (len(rows), longest of these rows), padded at the end."""
        some = self.subset(rows)
        real = np.arange(max(1, some.lengths.max())) < some.lengths[:, None]
        out = {"attention_mask": torch.from_numpy(real.astype(np.int64))}
        for name, values, filler in (("input_ids", some.ids, self.pad_id), ("token_type_ids", some.type_ids, 0)):
            if values is not None:
                padded = np.full(real.shape, filler, dtype=np.int64)
                padded[real] = values
                out[name] = torch.from_numpy(padded)
        return out

    def subset(self, rows: NDArray[np.int64]) -> TokenizedTexts:
        """The given texts only, in the given order."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = _offsets(lengths)
        position = np.repeat(starts - offsets[:-1], lengths)
        position += np.arange(offsets[-1])
        types = None if self.type_ids is None else self.type_ids[position]
        return replace(self, ids=self.ids[position], offsets=offsets, type_ids=types)

    def row(self, i: int) -> NDArray[np.int32]:
        """Text i: its ids, or ids and token types, shape (n,) or (2, n)."""
        piece = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[piece] if self.type_ids is None else np.stack([self.ids[piece], self.type_ids[piece]])


def _offsets(lengths: ArrayLike) -> NDArray[np.int64]:
    """Where each text begins, and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def tokenize_once(
    store: RowStore,
    tokenizer: Tokenizer,
    texts: Sequence[Text],
    max_length: int,
    token_types: bool,
    bi_encoded: bool = False,
) -> TokenizedTexts:
    """`tokenize`, but each text only once in the life of the store."""
    typed = token_types or bi_encoded
    ids, lengths = [], []
    for start in range(0, len(texts), _CHUNK_ROWS):
        chunk = texts[start : start + _CHUNK_ROWS]

        def compute(rows: NDArray[np.int64], chunk: Sequence[Text] = chunk) -> list[NDArray[np.int32]]:
            tokens = tokenize(tokenizer, [chunk[i] for i in rows], max_length, token_types, bi_encoded)
            return [tokens.row(i) for i in range(len(tokens))]

        keys = [hashlib.sha256(json.dumps(text).encode()).digest() for text in chunk]
        arrays = [a.reshape(1 + typed, -1) for a in store.get(keys, compute, np.int32)]
        ids.append(np.concatenate(arrays, axis=1))
        lengths += [a.shape[1] for a in arrays]
    flat = np.concatenate(ids, axis=1)
    types = flat[1].astype(np.int8) if typed else None
    return TokenizedTexts(flat[0], _offsets(lengths), types, tokenizer.pad_token_id, bi_encoded)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Text], max_length: int, token_types: bool, bi_encoded: bool = False
) -> TokenizedTexts:
    """Tokenize texts or pairs, cut to `max_length` tokens, unpadded."""
    types_of_pairs = token_types and not bi_encoded
    how = {"truncation": True, "max_length": max_length, "padding": False, "return_attention_mask": False}
    ids, types, lengths = [], [], []
    for start in range(0, len(texts), _ROWS_A_CALL):
        rows = texts[start : start + _ROWS_A_CALL]
        columns = [list(c) for c in zip(*rows)] if isinstance(rows[0], tuple) else [list(rows)]
        calls = [[column] for column in columns] if bi_encoded else [columns]
        try:
            encoded = [tokenizer(*call, **how, return_token_type_ids=types_of_pairs) for call in calls]
        except TypeError:
            _refuse_surrogates(rows, start)
            raise
        pieces = list(chain.from_iterable(zip(*(e["input_ids"] for e in encoded))))
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
        lengths.append(sizes.reshape(len(rows), -1).sum(1))
        ids.append(np.fromiter(chain.from_iterable(pieces), dtype=np.int32))
        if bi_encoded:
            types.append(np.repeat(np.arange(len(pieces)) % 2, sizes).astype(np.int8))
        elif token_types:
            types.append(np.fromiter(chain.from_iterable(encoded[0]["token_type_ids"]), dtype=np.int8))
    offsets, type_ids = _offsets(np.concatenate(lengths)), np.concatenate(types) if types else None
    return TokenizedTexts(np.concatenate(ids), offsets, type_ids, tokenizer.pad_token_id, bi_encoded)


def _refuse_surrogates(rows: Sequence[Text], first: int) -> None:
    """Name the first row whose text is no valid Unicode; `first` is the number of the first row."""
    for i, row in enumerate(rows, start=first):
        for text in row if isinstance(row, tuple) else (row,):
            if found := re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"X: row {i} has the lone surrogate {found[0]!r} at character {found.start()}; expected valid Unicode. "
                    "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it."
                ) from None
