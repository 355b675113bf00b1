import numpy as np
import pytest
import reference
import torch
from scipy.stats import chi2_contingency, chisquare

from skmft.corruption import (
    CorruptionHead,
    MetaFineTuningLoss,
    corruption_loss,
    draw_corrupted_labels,
    label_loss,
)
from skmft.encoding import TokenizedTexts
from skmft.networks import TextClassifier, find_encoder, load_encoder
from skmft.training import BucketedIterator, TrainingRows


@pytest.mark.parametrize("K", [1, 2, 4])
def test_losses_agree_with_reference(K):
    rng = np.random.default_rng(K)
    n, layers = 17, 3
    logits = rng.normal(scale=5, size=(n, 5)).astype(np.float32)
    domain_logits = rng.normal(scale=5, size=(layers, n, K)).astype(np.float32)
    y, z, k = rng.integers(5, size=n), rng.integers(K, size=n), rng.integers(K, size=n)
    t = rng.uniform(0, 2, n).astype(np.float32)
    ours = label_loss(*map(torch.from_numpy, (logits, y, t))).item()
    assert ours == pytest.approx(reference.label_loss(logits.tolist(), y, t.tolist()), abs=1e-5)
    ours_c = corruption_loss(*map(torch.from_numpy, (domain_logits, z, t))).item()
    theirs_c = reference.corruption_loss(domain_logits.tolist(), z, t.tolist())
    assert ours_c == pytest.approx(theirs_c, abs=1e-5)
    batch = {name: torch.from_numpy(v) for name, v in (("weight", t), ("corrupted", z), ("domain", k))}
    output = (torch.from_numpy(logits), torch.from_numpy(domain_logits))
    terms = MetaFineTuningLoss(0.3)(output, torch.from_numpy(y), batch)
    assert terms["loss"].item() == pytest.approx(ours + 0.3 * ours_c, abs=1e-5)
    guess = domain_logits.argmax(-1)
    assert terms["domain_accuracy"].item() == pytest.approx((guess == k).mean())
    assert terms["corrupted_label_accuracy"].item() == pytest.approx((guess == z).mean())
    assert set(MetaFineTuningLoss(0.0)(output, torch.from_numpy(y), batch)) == {"loss", "label_loss"}


def test_losses_are_float32_for_bfloat16_logits():
    logits = torch.randn(4, 3, dtype=torch.bfloat16)
    assert label_loss(logits, torch.zeros(4, dtype=torch.long), torch.ones(4)).dtype == torch.float32


def rows_with_domains_of_different_lengths(n, method, seed=0):
    """Domains 0, 1, 2 with shares 1/2, 1/3, 1/6 and lengths that hardly overlap."""
    rng = np.random.default_rng(seed)
    domains = rng.permutation(np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3]))
    lengths = rng.integers(3, 8, n) + 6 * domains
    ids = np.ones(lengths.sum(), dtype=np.int32)
    texts = TokenizedTexts(ids, np.concatenate([[0], np.cumsum(lengths)]), None, 0)
    rows = TrainingRows(
        texts,
        np.zeros(n, dtype=np.int64),
        np.ones(n),
        {"domain": domains},
        {"corrupted": lambda b, r: draw_corrupted_labels(domains, b, r, n_domains=3, method=method)},
    )
    return rows


def drawn(method, n=10_000):
    """(true domain, z) of one epoch, drawn through the real sampler, batch by batch."""
    batches = list(BucketedIterator(rows_with_domains_of_different_lengths(n, method), 32, seed=0))
    k = [b["domain"].numpy() for b, _ in batches]
    z = [b["corrupted"].numpy() for b, _ in batches]
    return k, z


def table(k, z):
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (np.concatenate(k), np.concatenate(z)), 1)
    return counts


@pytest.mark.parametrize("method", ["epoch", "uniform"])
def test_corrupted_labels_are_independent_of_the_domain(method):
    counts = table(*drawn(method))
    assert counts.sum() == 10_000
    assert chi2_contingency(counts).pvalue > 0.001
    if method == "uniform":
        assert chisquare(counts.sum(0)).pvalue > 0.001
    else:
        np.testing.assert_array_equal(counts.sum(0), counts.sum(1))  # the shares are kept


def test_batch_method_keeps_counts_and_depends_on_the_domain():
    k, z = drawn("batch")
    for true, corrupted in zip(k, z):
        np.testing.assert_array_equal(np.sort(true), np.sort(corrupted))
    # bucketing by length groups the domains, so a batch's mix gives them away: the docs say how much
    counts = table(k, z)
    assert chi2_contingency(counts).pvalue < 1e-100
    agreement = np.trace(counts) / counts.sum()
    assert 0.92 < agreement < 0.95  # the docstring's 93%; 39% if independent (1/4 + 1/9 + 1/36)


@pytest.mark.parametrize("method", ["epoch", "batch", "uniform"])
@pytest.mark.parametrize("K", [1, 2, 4])
def test_corrupted_labels_are_distributed_as_in_the_reference(K, method):
    rng = np.random.default_rng(K)
    domains = rng.choice(K, 200, p=np.arange(1, K + 1) / np.arange(1, K + 1).sum())
    batches = np.array_split(np.argsort(domains + rng.normal(size=200)), 7)  # batches that group domains
    epochs, seen = 200, np.zeros((K, K))
    for _ in range(epochs):
        z = draw_corrupted_labels(domains, batches, rng, n_domains=K, method=method)
        np.add.at(seen, (domains, z), 1)
    expected = reference.corrupted_counts([domains[b].tolist() for b in batches], K, method)
    # a cell's count over an epoch has at most the variance of a Poisson count
    assert (np.abs(seen / epochs - expected) < 4 * np.sqrt(np.array(expected) / epochs) + 1e-9).all()


def test_labels_are_drawn_anew_each_epoch_and_seeded():
    iterator = BucketedIterator(rows_with_domains_of_different_lengths(200, "epoch"), 32, seed=5)
    again = BucketedIterator(rows_with_domains_of_different_lengths(200, "epoch"), 32, seed=5)
    first, second = ([b["corrupted"] for b, _ in iterator] for _ in range(2))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert all(torch.equal(a, b["corrupted"]) for a, (b, _) in zip(first, again))


@pytest.fixture
def tiny_module(tiny):
    torch.manual_seed(0)
    encoder = load_encoder(find_encoder(tiny))
    return TextClassifier(encoder, 2, corruption_head=CorruptionHead(32, 2, [0, 2]))


def batch_of(n=6):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (n, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[: n // 2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "domain": torch.arange(n) % 2}


def test_weight_zero_gives_the_head_no_gradient(tiny_module):
    batch = batch_of()
    extra = {"weight": torch.ones(6), "corrupted": batch["domain"].flip(0), "domain": batch["domain"]}
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    MetaFineTuningLoss(0.0)(tiny_module(**batch), y, extra)["loss"].backward()
    assert all(p.grad is None for p in tiny_module.corruption_head.parameters())
    assert tiny_module.label_head.weight.grad.abs().sum() > 0
    tiny_module.zero_grad()
    MetaFineTuningLoss(0.1)(tiny_module(**batch), y, extra)["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in tiny_module.corruption_head.parameters())


def test_corruption_gradient_reaches_the_encoder_but_not_the_label_head(tiny_module):
    batch = batch_of()
    logits = tiny_module(**batch)[1]
    corruption_loss(logits, batch["domain"].flip(0), torch.ones(6)).backward()
    assert tiny_module.label_head.weight.grad is None
    assert tiny_module.encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_domain_embedding_never_changes_the_label_logits(tiny_module):
    batch = batch_of()
    tiny_module.eval()
    before = tiny_module(**batch)
    with torch.no_grad():
        tiny_module.corruption_head.domain_embedding.weight.add_(torch.randn(2, 32))
    after = tiny_module(**batch)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_corruption_head_sees_real_tokens_of_its_layers_only(tiny_module):
    batch = batch_of()
    tiny_module.eval()
    logits = tiny_module(**batch)[1]
    assert logits.shape == (2, 6, 2)
    altered = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 29)}
    assert torch.allclose(logits, tiny_module(**altered)[1], atol=1e-6)
    states = tiny_module.encoder(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    head, mask = tiny_module.corruption_head, batch["attention_mask"][..., None]
    for i, layer in enumerate(head.layers):  # layer l is hidden state l + 1
        pooled = (states[layer + 1] * mask).sum(1) / mask.sum(1)
        expected = head.heads[i](pooled + head.domain_embedding(batch["domain"]))
        assert torch.allclose(logits[i], expected, atol=1e-5)
