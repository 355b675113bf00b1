"""Pooling over real tokens, of single texts and of pairs encoded separately."""

import pytest
import torch

from skmft._engine.encoder import find_encoder, load_encoder
from skmft._engine.pooling import pool, pooled_layers, split_texts


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pool_reads_real_tokens_only(pooling):
    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    pooled = pool(hidden, mask, pooling)
    expected = hidden[0, :2].mean(0) if pooling == "mean" else hidden[0, 0]
    assert torch.allclose(pooled[0], expected, atol=1e-6)
    hidden[0, 2:] = 99
    assert torch.equal(pool(hidden, mask, pooling)[0], pooled[0])
    assert torch.isfinite(pooled).all()


def test_split_texts():
    ids = torch.tensor([[2, 5, 3, 2, 6, 7, 3], [2, 8, 9, 3, 2, 3, 0]])
    mask = (ids > 0).long()
    text = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": text}
    found, read = split_texts(batch).values()
    texts = [row[keep.bool()].tolist() for row, keep in zip(found, read)]
    assert texts == [[2, 5, 3], [2, 8, 9, 3], [2, 6, 7, 3], [2, 3]]
    assert found.shape == (4, 4) and split_texts(batch, 6)["input_ids"].shape == (4, 6)


def test_pairs_are_known_by_both_texts_and_their_difference(tiny):
    encoder = load_encoder(find_encoder(tiny))
    ids = torch.tensor([[2, 5, 3, 2, 6, 7, 3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    [first] = pooled_layers(encoder, [-1], "mean", False, {name: t[:, :3] for name, t in batch.items()})
    [second] = pooled_layers(encoder, [-1], "mean", False, {name: t[:, 3:] for name, t in batch.items()})
    batch["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    [pair] = pooled_layers(encoder, [-1], "mean", True, batch)
    expected = torch.cat([first, second, (first - second).abs()], dim=1)
    torch.testing.assert_close(pair, expected, atol=1e-5, rtol=1e-5)
