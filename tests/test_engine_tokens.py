"""Texts to token ids."""

import numpy as np
import pytest
import torch
from conftest import row_of

from skmft._engine.encoder import find_encoder, load_tokenizer
from skmft._engine.tokens import TokenizedTexts, tokenize


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(find_encoder(tiny), 32)


def test_tokenize_agrees_with_the_tokenizer_row_by_row(tokenizer):
    texts = ["good book", "", "the pan is very " * 20, "a"]
    tokens = tokenize(tokenizer, texts, 16, token_types=True)
    batch = tokens.batch(np.arange(4))
    assert tokens.lengths.tolist() == [4, 2, 16, 3]
    assert batch["input_ids"].shape == (4, 16)
    for i, text in enumerate(texts):
        expected = tokenizer(text, truncation=True, max_length=16)["input_ids"]
        assert batch["input_ids"][i, : len(expected)].tolist() == expected
        assert (batch["input_ids"][i, len(expected) :] == tokenizer.pad_token_id).all()
        assert batch["attention_mask"][i].sum() == len(expected)


def test_pairs_have_two_segments(tokenizer):
    tokens = tokenize(tokenizer, [("good book", "bad pan"), ("a", "b " * 40)], 12, token_types=True)
    batch = tokens.batch(np.array([0, 1]))
    assert batch["token_type_ids"][0, :7].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch["attention_mask"].sum(1).tolist() == [7, 12]


def test_many_texts_and_subset(tokenizer):
    texts = [f"good {'book ' * (i % 9)}" for i in range(5000)]  # more than one call of the tokenizer
    tokens = tokenize(tokenizer, texts, 16, token_types=False)
    assert len(tokens) == 5000
    assert tokens.lengths.tolist() == [3 + i % 9 for i in range(5000)]
    rows = np.array([4999, 3, 3])
    sub = tokens.subset(rows)
    assert torch.equal(sub.batch(np.arange(3))["input_ids"], tokens.batch(rows)["input_ids"])
    assert len(tokens.subset(np.array([], dtype=int))) == 0


def test_batch_of_one_empty_row():
    tokens = TokenizedTexts(np.array([], dtype=np.int32), np.array([0, 0]), None, 0)
    assert tokens.batch(np.array([0]))["input_ids"].tolist() == [[0]]


def test_subset_in_any_order(tokenizer):
    tokens = tokenize(tokenizer, ["good book", "", "a pan", "the lid is dull"], 8, token_types=True)
    for rows in ([3, 1, 1], [2], [0, 1, 2, 3]):
        rows = np.array(rows)
        sub = tokens.subset(rows)
        assert [row_of(sub, i).tolist() for i in range(len(sub))] == [row_of(tokens, i).tolist() for i in rows]


def test_the_texts_of_a_pair_by_themselves(tokenizer):
    """Special tokens and the limit of tokens are each text's own."""
    tokens = tokenize(tokenizer, [("good book", "bad pan"), ("a", "but " * 40)], 6, token_types=False, bi_encoded=True)
    assert tokens.bi_encoded and tokens.lengths.tolist() == [8, 9]
    singles = tokenize(tokenizer, ["good book", "bad pan", "a", "but " * 40], 6, token_types=False)
    ids, text = row_of(tokens, 1)
    assert text.tolist() == [0] * 3 + [1] * 6
    assert ids.tolist() == [*row_of(singles, 2), *row_of(singles, 3)]
    assert tokens.subset(np.array([1])).bi_encoded


def test_a_lone_surrogate_is_named_by_its_row(tokenizer):
    texts = ["good"] * 5000  # more than one call of the tokenizer
    texts[4500] = "bad \ud83d"
    with pytest.raises(ValueError, match=r"X: row 4500 has the lone surrogate '\\ud83d' at character 4"):
        tokenize(tokenizer, texts, 8, False)
