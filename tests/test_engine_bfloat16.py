"""Attention and dropout in bfloat16, on whatever processor.

Products of bfloat16 run by AMX, by AVX512-BF16, by oneDNN's emulation or by plain loops, which torch chooses by processor and
by size. They add up in different orders and round once or twice, so no test here asks for the same bits of two products;
tolerances follow from the roundings. ``EPS`` is what one rounding changes at most, relative to the number.
"""

import math

import pytest
import torch
from conftest import FAMILIES, make_texts
from torch.nn import functional as F

from skmft._engine import bfloat16
from skmft._engine.bfloat16 import FastBfloat16, attention, dropout
from skmft._engine.encoder import find_encoder, load_encoder, load_tokenizer
from skmft._engine.pooling import pool
from skmft._engine.runtime import autocast
from skmft._engine.tokens import tokenize

EPS = 2**-9
SMALL, LARGE = (
    (3, 2, 7, 8),
    (4, 4, 40, 16),
)  # products of the first are too small for oneDNN, those of the second are not


def tensors(size=SMALL, seed=0):
    """Query, key and value of a size (batch, heads, tokens, width)."""
    batch, heads, n, width = size
    generator = torch.Generator().manual_seed(seed)
    # as encoders give them: views of (batch, tokens, heads * width)
    return [torch.randn((batch, n, heads, width), generator=generator).bfloat16().transpose(1, 2) for _ in range(3)]


def scores_of(query, key, scale=None):
    return query.double() @ key.double().transpose(2, 3) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)


def reference(query, key, value, mask=None, scale=None):
    """Attention in float64; 0 for a token that may read none."""
    scores = scores_of(query, key, scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0) @ value.double()


def tolerance(query, key, value, scale=None):
    """A score s is off by s * EPS, and so is its weight, relatively; weights, their sum and the quotient are rounded again.

    Twice that: a product may be rounded before it is scaled, and once more after.
    """
    largest_score = scores_of(query, key, scale).abs().max().item()
    return 2 * EPS * (1 + largest_score) * value.abs().max().item()


def assert_near(got, expected, atol):
    torch.testing.assert_close(got.double(), expected.double(), atol=atol, rtol=0)


def padding_mask(n=7, batch=3):
    real = torch.arange(n) < torch.tensor([[n], [n // 2 + 1], [1], [2]])[:batch]
    return real[:, None, None, :]


@pytest.fixture(params=["exponential", "softmax"])
def branch(request, monkeypatch):
    """Both ways to compute it, whatever the scores."""
    if request.param == "softmax":
        monkeypatch.setattr(bfloat16, "_SAFE_EXPONENT", 0.0)


MASKS = {
    "none": None,
    "padding": padding_mask(),
    "padding, a row a query": padding_mask().expand(3, 1, 7, 7).contiguous(),
    "window": (padding_mask() & (torch.arange(7)[:, None] - torch.arange(7)).abs().le(2))
    | torch.eye(7, dtype=torch.bool),
    "added": torch.zeros(3, 1, 7, 7).masked_fill(~padding_mask(), torch.finfo(torch.bfloat16).min),
    "a head": (torch.arange(14).view(1, 2, 1, 7) % 3 > 0).expand(3, 2, 7, 7),
}


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_is_softmax_attention(branch, mask, scale):
    inputs = tensors()
    got = attention(*inputs, mask, scale)
    assert got.dtype == torch.bfloat16
    assert_near(got, reference(*inputs, mask, scale), tolerance(*inputs, scale))


@pytest.mark.parametrize("size", [LARGE, (1, 1, 1, 4), (2, 3, 130, 64)], ids=["large", "one token", "long"])
def test_attention_of_other_sizes(branch, size):
    inputs = tensors(size)
    assert_near(attention(*inputs), reference(*inputs), tolerance(*inputs))


@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_a_token_that_may_read_none_gets_zeros(branch, added, size):
    """Padding outside of every window of attention is such a token."""
    batch, _, n, _ = size
    near = torch.arange(n)[:, None] - torch.arange(n)
    mask = padding_mask(n, batch) & near.abs().le(1)
    none = ~mask.any(-1)[:, 0]
    inputs = [t.requires_grad_() for t in tensors(size)]
    out = attention(*inputs, torch.zeros(mask.shape).masked_fill(~mask, -math.inf) if added else mask)
    assert none.any() and not none.all()
    assert_near(out, reference(*inputs, mask), tolerance(*inputs))
    assert not out.transpose(1, 2)[none].any()
    out.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


def test_a_row_without_any_token_gets_zeros(branch):
    """An empty text under a tokenizer without special tokens."""
    mask = padding_mask().clone()
    mask[1] = False
    inputs = [t.requires_grad_() for t in tensors()]
    out = attention(*inputs, mask)
    assert_near(out, reference(*inputs, mask), tolerance(*inputs))
    assert not out[1].any() and out[[0, 2]].any()
    out.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("added", [40.0, -40.0, 96.0, -120.0])
def test_a_mask_that_moves_all_scores_alike_changes_nothing(added):
    """Scores are multiples of 1/2, and stay so, exactly, when the mask is added: nothing but the weights is rounded."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randint(-1, 2, SMALL, generator=generator).bfloat16() for _ in range(2))
    value = tensors()[2]
    mask = torch.zeros(3, 1, 7, 7) + added
    got, expected = attention(query, key, value, mask, 0.5), reference(query, key, value, scale=0.5)
    assert_near(got, expected, 4 * EPS * value.abs().max().item())


def test_scores_beyond_the_range_of_an_exponential():
    value = tensors((3, 2, 8, 8))[2]
    query = 60 * torch.eye(8, dtype=torch.bfloat16).expand(3, 2, 8, 8)  # a score of 1,273 for one key, 0 for the others
    atol = 4 * EPS * value.abs().max().item()
    assert_near(attention(query, query, value), value, atol)
    assert_near(attention(query, -query, value)[:, :, 0], value[:, :, 1:].double().mean(2), atol)


def test_a_row_in_a_batch_is_the_row_alone_but_for_rounding():
    """Not in the same bits: another batch may be another product, and takes the softmax where one row has large scores."""
    query, key, value = tensors(LARGE)
    query, key = query.clone(), key.clone()
    query[0] *= 40
    alone = attention(query[1:2], key[1:2], value[1:2])
    atol = 2 * tolerance(query[1:2], key[1:2], value[1:2])
    assert_near(attention(query, key, value)[1:2], alone, atol)
    assert_near(attention(query[1:], key[1:], value[1:])[:1], alone, atol)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_gradients_of_attention(branch, size):
    inputs = tensors(size)
    mask = padding_mask(size[2], size[0])
    mine = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    out = attention(*mine, mask)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * weight).sum().backward()
    (reference(*exact, mask) * weight).sum().backward()
    largest_score = scores_of(*inputs[:2]).abs().max().item()
    for a, b in zip(mine, exact):
        # rounded on the way there and on the way back, where large terms of either sign add up to smaller ones
        assert_near(a.grad, b.grad, 16 * EPS * (1 + largest_score) * b.grad.abs().max().item())


def test_dropout_keeps_its_share_its_mean_and_its_gradient():
    x = torch.ones(400, 501, dtype=torch.bfloat16, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = dropout(x, 0.1, training=True)
        torch.manual_seed(0)
        again, other = dropout(x, 0.1, training=True), dropout(x, 0.1, training=True)
    dropped = (out == 0).float().mean().item()
    assert abs(dropped - 0.1) < 4 * math.sqrt(0.09 / x.numel())
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).bfloat16().item()}
    rows, columns = (out == 0).float().mean(1), (out == 0).float().mean(0)  # no pattern along either side
    assert abs(rows.std().item() / math.sqrt(0.09 / 501) - 1) < 0.15
    assert abs(columns.std().item() / math.sqrt(0.09 / 400) - 1) < 0.15
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # entry by entry, and of ones: the factor itself
    assert torch.equal(again, out)  # the same bits of the generator; no products are in it
    assert not torch.equal(other, out)
    assert dropout(x, 0.1, training=False) is x and dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()


@pytest.fixture
def taken_over(monkeypatch):
    """Names of the calls that ours computed."""
    calls = []
    for name in ("attention", "dropout"):
        own = getattr(bfloat16, name)
        monkeypatch.setattr(
            bfloat16, name, lambda *args, own=own, name=name, **kwargs: calls.append(name) or own(*args, **kwargs)
        )
    return calls


def test_the_mode_takes_over_what_it_covers(taken_over):
    query, key, value = tensors()
    mask = MASKS["padding"]
    with autocast(torch.device("cpu"), torch.bfloat16):
        inside = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
        assert taken_over == ["attention"]
        F.dropout(query, 0.5)
        torch.nn.Dropout(0.5)(query)
        assert taken_over == ["attention", "dropout", "dropout"]
    assert_near(inside, reference(query, key, value, mask, 0.3), tolerance(query, key, value, 0.3))


def test_the_mode_leaves_the_rest_to_torch(taken_over):
    query, key, value = tensors()
    with autocast(torch.device("cpu"), torch.bfloat16):
        by_name = F.scaled_dot_product_attention(query=query, key=key, value=value)
        causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        F.scaled_dot_product_attention(query, key, value, dropout_p=0.1)
        F.dropout(query.float(), 0.5)
        with torch.autocast("cpu", enabled=False):
            full = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    F.dropout(query, 0.5)
    F.scaled_dot_product_attention(query, key, value)
    assert taken_over == []
    assert_near(by_name, reference(query, key, value), tolerance(query, key, value))
    causal_mask = torch.ones(7, 7, dtype=torch.bool).tril()
    assert_near(causal, reference(query, key, value, causal_mask), tolerance(query, key, value))
    assert full.dtype == torch.float32


def test_norms_give_bfloat16_where_the_encoder_is_autocast():
    norm, x = torch.nn.LayerNorm(8), torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), FastBfloat16():
        assert norm(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):  # as heads are
            assert norm(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_float32(tiny_models, family):
    """Outputs and gradients of whole encoders, and no dtype that a family's own code cannot mix."""
    source = find_encoder(tiny_models[family])
    encoder = load_encoder(source)
    texts, _, _ = make_texts(12)
    tokens = tokenize(load_tokenizer(source, 32), [t * (1 + i % 3) for i, t in enumerate(texts)], 32, False)
    batch = tokens.batch(torch.arange(12).numpy())
    weight = torch.randn(12, encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def run(dtype):
        encoder.zero_grad()
        with autocast(torch.device("cpu"), dtype):
            out = pool(encoder(**batch).last_hidden_state, batch["attention_mask"], "mean")
        (out * weight).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        return out.detach(), gradient

    exact, low = run(torch.float32), run(torch.bfloat16)
    for a, b in zip(exact, low):
        # a hidden state is rounded some five times a layer, there and back; 30 independent roundings make 5.5 EPS
        assert torch.linalg.vector_norm(b.float() - a) < 10 * EPS * torch.linalg.vector_norm(a)
