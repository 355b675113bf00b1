"""Domain corruption: its loss by tests/reference.py, how labels are drawn, and what its head reads and trains."""

from functools import partial

import numpy as np
import pytest
import reference
import torch
from scipy.stats import chi2_contingency, chisquare

from skmft._engine.batches import BucketedIterator, TrainingRows
from skmft._engine.encoder import find_encoder, load_encoder
from skmft._engine.model import ModelOutput, TextClassifier
from skmft._engine.tokens import TokenizedTexts
from skmft._method.corruption import CorruptionHead, corruption_loss, draw_corrupted_labels
from skmft.recipes import MetaFineTuning


def recipe(corruption_weight):
    """As a classifier hands its own weights to it."""
    return MetaFineTuning(corruption_weight, 0.0, corruption_layers=(0, 2))


@pytest.mark.parametrize("K", [1, 2, 4])
def test_loss_and_accuracies_agree_with_reference(K):
    rng = np.random.default_rng(K)
    n, layers = 17, 3
    logits = rng.normal(scale=5, size=(layers, n, K)).astype(np.float32)
    z, k = rng.integers(K, size=n), rng.integers(K, size=n)
    t = rng.uniform(0, 2, n).astype(np.float32)
    expected = reference.corruption_loss(logits.tolist(), z, t.tolist())
    assert corruption_loss(*map(torch.from_numpy, (logits, z, t))).item() == pytest.approx(expected, abs=1e-5)

    model = torch.nn.Module()  # whose corruption head gives those logits
    model.heads = {"corruption": lambda pooled, domain: torch.from_numpy(logits)}
    batch = {"weight": t, "corrupted": z, "domain": k, "y": np.zeros(n, dtype=np.int64)}
    batch = {name: torch.from_numpy(v) for name, v in batch.items()}
    output = ModelOutput(torch.zeros(n, 2), torch.zeros(n, 4), [torch.zeros(n, 4)] * layers)
    terms = recipe(0.3).terms(model, output, batch)
    assert set(terms) == {"label_loss", "corruption_loss", "domain_accuracy", "corrupted_label_accuracy"}
    weights = {name: term[0] for name, term in terms.items() if isinstance(term, tuple)}
    assert weights == {"corruption_loss": 0.3, "domain_accuracy": 0.0, "corrupted_label_accuracy": 0.0}
    assert terms["corruption_loss"][1].item() == pytest.approx(expected, abs=1e-5)
    guess = logits.argmax(-1)
    assert terms["domain_accuracy"][1].item() == pytest.approx((guess == k).mean())
    assert terms["corrupted_label_accuracy"][1].item() == pytest.approx((guess == z).mean())


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
        {"domain": domains, "corrupted": partial(draw_corrupted_labels, domains, n_domains=3, method=method)},
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
def model(tiny):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TextClassifier(load_encoder(find_encoder(tiny)), 2)
        model.heads["corruption"] = CorruptionHead(32, 2, 2)
    model.layers = [0, 2]
    return model


DOMAINS = torch.arange(6) % 2
CORRUPTED = DOMAINS.flip(0)


def tokens(n=6):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (n, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[: n // 2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def corruption_logits(model, inputs):
    return model.heads["corruption"](model(**inputs).layers, DOMAINS)


def total_loss(model, corruption_weight):
    batch = {"weight": torch.ones(6), "corrupted": CORRUPTED, "domain": DOMAINS, "y": torch.tensor([0, 1, 0, 1, 0, 1])}
    terms = recipe(corruption_weight).terms(model, model(**tokens()), batch)
    return terms["label_loss"] + terms["corruption_loss"][0] * terms["corruption_loss"][1]


def test_gradient_of_the_head_is_proportional_to_the_weight(model):
    def gradients(corruption_weight):
        model.eval().zero_grad()
        total_loss(model, corruption_weight).backward()
        assert model.label_head.weight.grad.abs().sum() > 0
        return [p.grad.clone() for p in model.heads.parameters()]

    for a, b in zip(gradients(0.1), gradients(0.3)):
        torch.testing.assert_close(b, 3 * a, rtol=1e-4, atol=1e-7)
        assert a.abs().sum() > 0


def test_without_a_weight_or_a_second_domain_there_is_no_head():
    class Rows:
        domains, domain_names = DOMAINS.numpy(), np.array(["books", "dvd"])

    class OneDomain(Rows):
        domain_names = np.array(["books"])

    assert set(recipe(0.1).heads(Rows, 8)) == {"corruption"} and tuple(recipe(0.1).layers(Rows)) == (0, 2)
    assert set(recipe(0.1).columns(Rows)) == {"domain", "corrupted"}
    for weight, rows in ((0.0, Rows), (0.1, OneDomain)):
        assert not recipe(weight).heads(rows, 8) and not recipe(weight).layers(rows)
        assert "corrupted" not in recipe(weight).columns(rows)


def test_corruption_gradient_reaches_the_encoder_but_not_the_label_head(model):
    corruption_loss(corruption_logits(model, tokens()), CORRUPTED, torch.ones(6)).backward()
    assert model.label_head.weight.grad is None
    assert model.encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_domain_embedding_never_changes_the_label_logits(model):
    model.eval()
    before, before_q = model(**tokens()).logits, corruption_logits(model, tokens())
    with torch.no_grad():
        model.heads["corruption"].domain_embedding.weight.add_(torch.randn(2, 32))
    assert torch.equal(model(**tokens()).logits, before)
    assert not torch.equal(corruption_logits(model, tokens()), before_q)


def test_corruption_head_sees_real_tokens_of_its_layers_only(model):
    model.eval()
    inputs, head = tokens(), model.heads["corruption"]
    logits = corruption_logits(model, inputs)
    assert logits.shape == (2, 6, 2)
    altered = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 29)}
    assert torch.allclose(logits, corruption_logits(model, altered), atol=1e-6)
    states = model.encoder(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"][..., None]
    for i, layer in enumerate(model.layers):  # layer l is hidden state l + 1
        pooled = (states[layer + 1] * mask).sum(1) / mask.sum(1)
        expected = head.heads[i](pooled + head.domain_embedding(DOMAINS))
        assert torch.allclose(logits[i], expected, atol=1e-5)
