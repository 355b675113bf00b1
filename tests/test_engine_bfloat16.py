import math

import pytest
import torch
from conftest import FAMILIES, make_texts
from skmft.encoding import tokenize
from skmft.kernels import FastBfloat16, attention, dropout
from skmft.networks import find_encoder, load_encoder, load_tokenizer, pool
from skmft.training import autocast
from torch.nn import functional as F


def tensors(batch=3, heads=2, n=7, width=8, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, n, heads, width)
    # as encoders give them: views of (batch, tokens, heads * width)
    return [(torch.randn(shape, generator=generator) * scale).bfloat16().transpose(1, 2) for _ in range(3)]


def reference(query, key, value, mask=None, scale=None):
    """Attention in float64, a query at a time."""
    query, key, value = query.double(), key.double(), value.double()
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                scores = torch.stack([query[b, h, i] @ key[b, h, j] * scale for j in range(key.shape[2])])
                if mask is not None:
                    row = mask[b, 0, min(i, mask.shape[2] - 1)]
                    scores = scores.masked_fill(~row, -math.inf) if row.dtype == torch.bool else scores + row
                out[b, h, i] = scores.softmax(0) @ value[b, h]
    return out


def padding_mask(batch=3, n=7):
    real = torch.arange(n) < torch.tensor([[n], [4], [1]])[:batch]
    return real[:, None, None, :]


MASKS = {
    "none": None,
    "padding": padding_mask(),
    "padding, a row a query": padding_mask().expand(3, 1, 7, 7).contiguous(),
    "window": (padding_mask() & (torch.arange(7)[:, None] - torch.arange(7)).abs().le(2))
    | torch.eye(7, dtype=torch.bool),
    "added": torch.zeros(3, 1, 7, 7).masked_fill(~padding_mask(), torch.finfo(torch.bfloat16).min),
}


@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["exponential", "softmax"])  # 12: scores may reach hundreds
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_is_softmax_attention(mask, scale):
    query, key, value = tensors(scale=scale)
    query = query / scale  # the norms' product stays large while bfloat16's rounding of the scores does not grow
    key = key.clone()
    expected = reference(query, key, value, mask)
    got = attention(query, key, value, mask)
    assert got.dtype == torch.bfloat16 and got.shape == expected.shape
    torch.testing.assert_close(got.double() / scale, expected / scale, atol=0.03, rtol=0.03)
    given_scale = attention(query, key, value, mask, 0.1)
    torch.testing.assert_close(
        given_scale.double() / scale, reference(query, key, value, mask, 0.1) / scale, atol=0.03, rtol=0.03
    )


@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["exponential", "softmax"])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
def test_a_token_that_may_read_none_gets_zeros(scale, added):
    """As torch gives them; padding outside of every window of attention is such a token."""
    near = torch.arange(7)[:, None] - torch.arange(7)
    mask = padding_mask() & near.abs().le(1)
    none = ~mask.any(-1)[:, 0]
    inputs = [t.requires_grad_() for t in tensors(scale=scale)]
    given = torch.zeros(mask.shape).masked_fill(~mask, -math.inf) if added else mask
    out = attention(inputs[0] / scale, *inputs[1:], given)
    assert none.any() and not none.all()
    expected = F.scaled_dot_product_attention(inputs[0] / scale, *inputs[1:], attn_mask=mask)
    torch.testing.assert_close(out / scale, expected / scale, atol=0.03, rtol=0.03)
    assert not out.transpose(1, 2)[none].any()
    out.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["exponential", "softmax"])
def test_a_row_without_any_token_gets_zeros(scale):
    """An empty text under a tokenizer without special tokens."""
    mask = padding_mask().clone()
    mask[1] = False
    inputs = [t.requires_grad_() for t in tensors(scale=scale)]
    out = attention(inputs[0] / scale, *inputs[1:], mask)
    expected = F.scaled_dot_product_attention(inputs[0] / scale, *inputs[1:], attn_mask=mask)
    torch.testing.assert_close(out / scale, expected / scale, atol=0.03, rtol=0.03)
    assert not out[1].any() and out[[0, 2]].any()
    out.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("added", [95.0, -120.0])
def test_a_mask_that_moves_all_scores_alike_changes_nothing(added):
    query, key, value = tensors()
    mask = torch.zeros(3, 1, 7, 7) + added
    torch.testing.assert_close(attention(query, key, value, mask), attention(query, key, value), atol=0.3, rtol=0)
    assert attention(query, key, value, mask).isfinite().all()


def test_scores_beyond_the_range_of_an_exponential():
    _, _, value = tensors(n=8)
    query = 60 * torch.eye(8, dtype=torch.bfloat16).expand(3, 2, 8, 8)  # a score of 1,273 for one key, 0 for the others
    torch.testing.assert_close(attention(query, query, value), value)
    torch.testing.assert_close(attention(query, -query, value)[:, :, :1], value[:, :, 1:].mean(2, keepdim=True))


@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["exponential", "softmax"])
def test_gradients_of_attention(scale):
    inputs = tensors(scale=scale)
    inputs[0] = inputs[0] / scale
    mine = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    out = attention(*mine, MASKS["padding"])
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * weight).sum().backward()
    (reference(*exact, MASKS["padding"]) * weight).sum().backward()
    for a, b in zip(mine, exact):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=0.05 * b.grad.abs().max().item(), rtol=0.05)


def test_dropout_keeps_its_share_its_mean_and_its_gradient():
    x = torch.ones(400, 501, dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(0)
    out = dropout(x, 0.1, training=True)
    dropped = (out == 0).float().mean().item()
    assert abs(dropped - 0.1) < 4 * math.sqrt(0.09 / x.numel())
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).bfloat16().item()}
    rows, columns = (out == 0).float().mean(1), (out == 0).float().mean(0)  # no pattern along either side
    assert abs(rows.std().item() / math.sqrt(0.09 / 501) - 1) < 0.15
    assert abs(columns.std().item() / math.sqrt(0.09 / 400) - 1) < 0.15
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.1, training=True), out)
    assert not torch.equal(dropout(x, 0.1, training=True), out)
    assert dropout(x, 0.1, training=False) is x and dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()


def test_the_mode_takes_over_and_is_left_behind():
    query, key, value = tensors()
    norm = torch.nn.LayerNorm(8)
    with torch.autocast("cpu", dtype=torch.bfloat16), FastBfloat16():
        inside = F.scaled_dot_product_attention(query, key, value, attn_mask=MASKS["padding"], scale=0.3)
        assert torch.equal(inside, attention(query, key, value, MASKS["padding"], 0.3))
        assert norm(torch.randn(2, 8)).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert norm(torch.randn(2, 8)).dtype == torch.float32
        by_name = F.scaled_dot_product_attention(query=query, key=key, value=value)  # torch's, too
        causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # not ours: torch's
    assert torch.equal(by_name, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(causal, F.scaled_dot_product_attention(query, key, value, is_causal=True))
    with FastBfloat16():
        assert F.scaled_dot_product_attention(query.float(), key.float(), value.float()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(torch.randn(2, 8)).dtype == torch.float32


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
        assert F.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.999
