"""The rows of a training, the order of their batches, and the parts of a batch that several processes share."""

import numpy as np
import pytest
import torch

from skmft._engine.batches import BucketedIterator, TrainingRows, bucketed_batches
from skmft._engine.distributed import ALONE, Processes
from skmft._engine.tokens import TokenizedTexts


def some_tokens(lengths):
    """Texts whose ids are the number of the text, from 1."""
    ids = np.repeat(np.arange(len(lengths)) + 1, lengths).astype(np.int32)
    return TokenizedTexts(ids, np.concatenate([[0], np.cumsum(lengths)]), np.zeros(len(ids), dtype=np.int8), 0)


def some_rows(n=50, columns=None):
    lengths = np.random.default_rng(0).integers(1, 20, n)
    return TrainingRows(some_tokens(lengths), np.arange(n), np.linspace(0.5, 1.5, n), columns)


def order(iterator):
    return [y.tolist() for _, y in iterator]


def test_columns_come_with_their_rows():
    soft = np.random.default_rng(1).random((50, 3))
    rows = some_rows(columns={"domain": np.arange(50) * 7, "soft": soft, "flag": np.arange(50) > 20})
    batches = list(BucketedIterator(rows, 16, seed=0))
    assert len(batches) == 4 and sorted(i for _, y in batches for i in y.tolist()) == list(range(50))
    for x, y in batches:
        assert torch.equal(x["input_ids"][:, 0], y + 1)
        assert torch.equal(x["domain"], y * 7) and torch.equal(x["flag"], y > 20)
        assert x["soft"].dtype == x["weight"].dtype == torch.float32
        np.testing.assert_allclose(x["soft"].numpy(), soft[y], rtol=1e-6)
        np.testing.assert_allclose(x["weight"].numpy(), np.linspace(0.5, 1.5, 50)[y], rtol=1e-6)


def test_the_order_is_of_the_seed_and_the_epoch():
    iterator, again, other = (BucketedIterator(some_rows(), 16, seed) for seed in (5, 5, 6))
    first, second = order(iterator), order(iterator)
    assert first != second and [order(again), order(again)] == [first, second]
    assert order(other) != first


def test_columns_that_are_drawn_anew_see_the_batches_and_change_no_order():
    seen = []

    def draw(batches, rng):
        seen.append([rows.tolist() for rows in batches])
        return rng.permutation(50)

    iterator = BucketedIterator(some_rows(columns={"drawn": draw}), 16, seed=5)
    epochs = [[(y.tolist(), x["drawn"].tolist()) for x, y in iterator] for _ in range(2)]
    plain = BucketedIterator(some_rows(), 16, seed=5)
    assert [[y for y, _ in epoch] for epoch in epochs] == seen == [order(plain), order(plain)]
    drawn = [[value for _, values in epoch for value in values] for epoch in epochs]
    assert drawn[0] != drawn[1] and sorted(drawn[0]) == sorted(drawn[1]) == list(range(50))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (np.arange(49), r"'odd' is int64 of shape \(49,\); expected numbers, 50 rows"),
        (np.array(["a"] * 50), "'odd' is <U1"),
        (np.float64(1.0), r"of shape \(\)"),
        (lambda batches, rng: np.zeros((2, 50)), r"of shape \(2, 50\)"),
    ],
    ids=["too few", "words", "scalar", "drawn"],
)
def test_columns_that_do_not_fit_are_named(column, expected):
    with pytest.raises(ValueError, match=expected):
        next(iter(BucketedIterator(some_rows(columns={"odd": column}), 16, seed=0)))


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids", "y", "weight", "progress"])
def test_columns_that_would_replace_ours_are_named(name):
    with pytest.raises(ValueError, match=f"columns: '{name}' is taken; expected a name other than"):
        some_rows(columns={"fine": np.arange(50), name: np.arange(50)})


def test_bucketed_batches_cover_every_row_once_and_group_lengths():
    lengths = np.random.default_rng(0).integers(3, 128, 1003)
    batches = bucketed_batches(lengths, 32, np.random.default_rng(1))
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(1003))
    assert max(map(len, batches)) == 32
    padded = sum(len(b) * lengths[b].max() for b in batches)
    shuffled = np.random.default_rng(2).permutation(1003)
    plain = sum(len(b) * lengths[b].max() for b in np.array_split(shuffled, 32))
    assert padded < 0.75 * plain
    again = bucketed_batches(lengths, 32, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(batches, again))
    other = bucketed_batches(lengths, 32, np.random.default_rng(3))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 48, 65, 500, 513, 514, 1028])
def test_no_row_weighs_much_more_than_others_because_its_batch_is_small(n):
    sizes = [len(b) for b in bucketed_batches(np.arange(n), 32, np.random.default_rng(0))]
    assert sum(sizes) == n and len(sizes) == -(-n // 32) and max(sizes) - min(sizes) <= 1


def test_small_sets_do_not_meet_the_same_batches_every_epoch():
    lengths = np.random.default_rng(0).integers(50, 128, 64)
    epochs = [
        {frozenset(b.tolist()) for b in bucketed_batches(lengths, 32, np.random.default_rng(s))} for s in range(5)
    ]
    assert len({frozenset(e) for e in epochs}) == 5


@pytest.mark.parametrize("n", [1, 2, 5, 32])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_make_up_the_batch(n, size):
    rng = np.random.default_rng(n)
    tokens = some_tokens(np.sort(rng.integers(1, 9, n)))
    soft = torch.from_numpy(rng.random((n, 40), dtype=np.float32))  # wider than any text
    batch = {**tokens.batch(np.arange(n)), "weight": torch.arange(n) / n, "soft": soft}, torch.arange(n)
    counted, shares = [], []
    for rank in range(size):
        (x, y), share = Processes(rank, size).share_of(batch)
        assert x.keys() == batch[0].keys() and len(y) > 0
        longest = int(tokens.lengths[y].max())
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert x[name].shape == (len(y), longest)  # no column that is padding in all rows
            assert torch.equal(x[name], batch[0][name][y, :longest])
        assert torch.equal(x["weight"], y / n)
        assert torch.equal(x["soft"], soft[y])
        assert share == pytest.approx(len(y) / n) or (share == 0 and len(y) == 1)  # one that is left without rows
        counted.extend(y.tolist() if share else [])
        shares.append(share)
    assert counted == list(range(n))
    assert sum(shares) == pytest.approx(1) and shares.count(0) == max(0, size - n)


def test_columns_as_wide_as_the_tokens_are_not_cut():
    tokens = some_tokens(np.array([2, 2, 6, 6]))
    batch = {**tokens.batch(np.arange(4)), "soft": torch.rand(4, 6)}, torch.arange(4)
    (x, _), _ = Processes(0, 2).share_of(batch)
    assert x["input_ids"].shape == (2, 2) and torch.equal(x["soft"], batch[0]["soft"][:2])


def test_the_losses_of_the_parts_add_up_to_the_loss_of_the_batch():
    rows = some_rows()
    x, y = batch = next(iter(BucketedIterator(rows, 16, seed=0)))
    parts = [Processes(rank, 3).share_of(batch) for rank in range(3)]
    total = sum(share * (part["weight"] * targets).mean() for (part, targets), share in parts)
    assert total.item() == pytest.approx((x["weight"] * y).mean().item(), rel=1e-5)


def test_alone_a_batch_is_passed_on_as_it_is():
    batch = {"attention_mask": torch.ones(3, 2)}, torch.arange(3)
    whole, share = ALONE.share_of(batch)
    assert whole is batch and share == 1.0
