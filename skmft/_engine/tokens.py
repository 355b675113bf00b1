"""Texts and text pairs to token ids, kept compactly and padded batch by batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._typing import Tokenizer

Text = str | tuple[str, str]
TOKENS = ("input_ids", "attention_mask", "token_type_ids")  # what of a batch an encoder may read

_ROWS_A_CALL = 4096  # tokenized at a time


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Token ids of many texts, stored end to end in one array: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.

    `type_ids` says which text of a pair a token is of (0 or 1), for models that read it and for pairs that are `bi_encoded`:
    tokenized each text by itself.
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


def _offsets(lengths: ArrayLike) -> NDArray[np.int64]:
    """Where each text begins, and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[Text], max_length: int, token_types: bool, bi_encoded: bool = False
) -> TokenizedTexts:
    """Tokenize texts or pairs, cut to `max_length` tokens, unpadded."""
    typed, arrays = token_types or bi_encoded, []
    for start in range(0, len(texts), _ROWS_A_CALL):
        chunk = texts[start : start + _ROWS_A_CALL]
        try:
            arrays += encode(tokenizer, chunk, max_length, token_types, bi_encoded)
        except TypeError:
            _refuse_surrogates(chunk, start)
            raise
    lengths, flat = [a.shape[-1] for a in arrays], np.concatenate(arrays, axis=-1)
    ids, types = (flat[0], flat[1].astype(np.int8)) if typed else (flat, None)
    return TokenizedTexts(ids, _offsets(lengths), types, tokenizer.pad_token_id, bi_encoded)


def encode(
    tokenizer: Tokenizer, texts: Sequence[Text], max_length: int, token_types: bool, bi_encoded: bool
) -> list[NDArray[np.int32]]:
    """Of every text its ids, or its ids and token types: shape (n,) or (2, n)."""
    columns = [list(c) for c in zip(*texts)] if isinstance(texts[0], tuple) else [list(texts)]
    how = {"truncation": True, "max_length": max_length, "padding": False, "return_attention_mask": False}
    if bi_encoded:
        pairs = zip(*(tokenizer(column, **how)["input_ids"] for column in columns))
        return [np.array([[*a, *b], [0] * len(a) + [1] * len(b)], np.int32) for a, b in pairs]
    found = tokenizer(*columns, **how, return_token_type_ids=token_types)
    rows = zip(found["input_ids"], found["token_type_ids"]) if token_types else found["input_ids"]
    return [np.array(row, np.int32) for row in rows]


def _refuse_surrogates(rows: Sequence[Text], first: int) -> None:
    """Name the first row whose text is no valid Unicode; `first` is the number of the first row."""
    for i, row in enumerate(rows, start=first):
        for text in row if isinstance(row, tuple) else (row,):
            if found := re.search("[\ud800-\udfff]", text):
                raise ValueError(
                    f"X: row {i} has the lone surrogate {found[0]!r} at character {found.start()}; expected valid Unicode. "
                    "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') mends it."
                ) from None
