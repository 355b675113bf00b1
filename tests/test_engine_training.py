"""One training: its steps, its order, what it records, and how it ends."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_texts
from skorch.callbacks import Callback, EarlyStopping, PassthroughScoring
from torch.nn import functional as F
from transformers import get_linear_schedule_with_warmup

from skmft._engine.batches import TrainingRows
from skmft._engine.encoder import find_encoder, load_encoder, load_tokenizer
from skmft._engine.model import TextClassifier, reads_token_types
from skmft._engine.runtime import Runtime, isolated_generators
from skmft._engine.tokens import tokenize
from skmft._engine.training import FineTuningNet, TrainingSettings, auto_epochs, fine_tune, warmup_decay
from skmft._method.corruption import CorruptionHead
from skmft.recipes import Recipe

CPU = torch.device("cpu")
PLAIN = Recipe().terms


def module_and_rows_of(model, columns=None):
    X, y, _ = make_texts(20)
    source = find_encoder(model)
    with isolated_generators(0, CPU):
        module = TextClassifier(load_encoder(source), 2)
    tokens = tokenize(load_tokenizer(source, 32), X, 32, reads_token_types(module.encoder))
    return module, TrainingRows(tokens, (y == "pos").astype(np.int64), np.linspace(0.5, 1.5, 20), columns)


@pytest.fixture
def module_and_rows(tiny):
    return module_and_rows_of(tiny)


def train(module, rows, terms=PLAIN, epochs=2, seed=3, dtype=torch.float32, **changes):
    settings = TrainingSettings(**{"learning_rate": 1e-3, "batch_size": 8, **changes})
    return fine_tune(module, rows, terms, settings, Runtime(CPU, dtype, 0), epochs=epochs, seed=seed)


class Kept(Callback):
    """One that is not copied, so that a test sees what it saw."""

    def __init__(self):
        self.seen = []

    def __deepcopy__(self, memo):
        return self


def test_schedule_agrees_with_transformers():
    total, warmup = 50, 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, total)
    ours = partial(warmup_decay, warmup_steps=warmup, total_steps=total)
    for step in range(total):
        if step >= warmup:  # theirs starts with a step of rate 0, ours warms up in steps of equal height above 0
            assert ours(step) == pytest.approx(theirs.get_last_lr()[0])
        else:
            assert ours(step) == pytest.approx((step + 1) / (warmup + 1))
        optimizer.step()
        theirs.step()
    assert ours(total) == 0
    assert warmup_decay(0, 0, 1) == 1


def test_learning_rate_follows_the_schedule(module_and_rows):
    class Rates(Kept):
        def on_batch_end(self, net, **kwargs):
            self.seen.append([group["lr"] for group in net.optimizer_.param_groups])

    rates = Rates()
    records = train(*module_and_rows, epochs=3, learning_rate=0.01, warmup_ratio=0.3, callbacks=[rates])
    schedule = partial(warmup_decay, warmup_steps=round(0.3 * 9), total_steps=9)
    # noted when the schedule has made its step: the rate of the next batch
    np.testing.assert_allclose(rates.seen, [[0.01 * schedule(step)] * 2 for step in range(1, 10)])
    assert [r["learning_rate"] for r in records] == pytest.approx([0.01 * schedule(step) for step in (2, 5, 8)])


def test_one_step_is_adamw(module_and_rows):
    module, rows = module_and_rows
    module.eval()
    module.train = lambda mode=True: module  # no dropout, so that the step can be computed by hand
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    batch = rows.texts.batch(np.arange(20))
    losses = F.cross_entropy(module.label_logits(**batch), torch.from_numpy(rows.y), reduction="none")
    names, parameters = zip(*module.named_parameters())
    loss = (losses * torch.linspace(0.5, 1.5, 20)).mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    rate, decay = 1e-2, 0.5
    train(
        module,
        rows,
        epochs=1,
        learning_rate=rate,
        batch_size=20,
        weight_decay=decay,
        warmup_ratio=0.0,
        max_grad_norm=None,
    )
    compared = 0
    for name, p, g in zip(names, parameters, gradients):
        if g is None:
            continue
        keep = 1 - rate * decay if p.ndim > 1 else 1.0
        clear = g.abs() > 1e-5  # elsewhere Adam's epsilon and rounding decide
        expected = before[name] * keep - rate * g / (g.abs() + 1e-8)
        assert torch.allclose(p.detach()[clear], expected[clear], atol=2e-4), name
        compared += int(clear.sum())
        if p.ndim > 1 and "embeddings" in name:
            unused = g.abs().sum(1) == 0
            assert torch.allclose(p.detach()[unused], before[name][unused] * keep, atol=1e-6)
    assert compared > 10_000


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_one_dimension_does_not_decay(tiny_models, family):
    """Biases and norms, by whatever name a family or a recipe's author has them; all else does."""
    module, rows = module_and_rows_of(tiny_models[family], {"domain": np.arange(20) % 2})
    with isolated_generators(0, CPU):
        module.heads["corruption"] = CorruptionHead(32, 2, 2)
        module.heads["stack"] = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 2))
        module.heads["normal"] = torch.nn.Linear(32, 2)  # no norm, but for its name
        module.heads["scale"] = Scale()
    module.layers = [0, -1]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3)  # so that nothing starts at 0
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def terms(model, output, batch):
        logits = model.heads["corruption"](output.layers, batch["domain"]).sum(0)
        logits = logits + model.heads["stack"](output.embedding) + model.heads["normal"](output.embedding)
        return {"label_loss": F.cross_entropy(output.logits + logits / model.heads["scale"].temperature, batch["y"])}

    # one step of a rate so small that decay alone can be seen: 1 - 1e-6 * 1e5
    train(
        module,
        rows,
        terms,
        epochs=1,
        batch_size=20,
        learning_rate=1e-6,
        weight_decay=1e5,
        warmup_ratio=0.0,
        max_grad_norm=None,
    )
    decayed = {}
    for name, p in module.named_parameters():
        kept = (p.detach() / before[name]).flatten()
        decayed[name] = bool((kept - 0.9).abs().median() < 1e-3)
        assert decayed[name] or (kept - 1).abs().median() < 1e-3, name
    assert decayed == {name: p.ndim > 1 for name, p in before.items()}
    heads = {name.removeprefix("heads."): d for name, d in decayed.items() if name.startswith("heads.")}
    assert heads["corruption.domain_embedding.weight"] and heads["stack.1.weight"] and heads["normal.weight"]
    assert not (heads["stack.0.weight"] or heads["stack.1.bias"] or heads["scale.temperature"])


def test_frozen_parameters_stay(module_and_rows):
    module, rows = module_and_rows
    module.encoder.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    train(module, rows, weight_decay=1.0)
    for name, p in module.named_parameters():
        assert torch.equal(p.detach(), before[name]) == name.startswith("encoder."), name


def test_gradient_clipping(module_and_rows):
    class Norms(Kept):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            grads = [p.grad for _, p in named_parameters if p.grad is not None]
            self.seen.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item())

    clipped, free = Norms(), Norms()
    module, rows = module_and_rows
    train(copy.deepcopy(module), rows, max_grad_norm=0.01, callbacks=[clipped])
    train(module, rows, max_grad_norm=None, callbacks=[free])
    assert len(clipped.seen) == len(free.seen) == 6
    assert max(clipped.seen) <= 0.0101 < min(free.seen)


def test_no_gradients_are_kept_and_the_module_is_ready_to_predict(module_and_rows):
    module, rows = module_and_rows
    train(module, rows)
    assert all(p.grad is None for p in module.parameters())
    assert not module.training


class Losses(Kept):
    """Of every batch its loss, its terms, its rows."""

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        self.seen.append((net.history[-1, "batches", -1], len(batch[1])))


def test_records_are_row_weighted_means(module_and_rows):
    losses = Losses()
    records = train(*module_and_rows, epochs=3, callbacks=[losses])
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert sorted(n for _, n in losses.seen[:3]) == [6, 7, 7]
    assert records[0]["label_loss"] == pytest.approx(sum(b["label_loss"] * n for b, n in losses.seen[:3]) / 20)
    assert records[-1]["label_loss"] < records[0]["label_loss"]
    assert all(r["seconds"] > 0 for r in records)
    assert set(records[0]) == {"epoch", "label_loss", "learning_rate", "seconds"}


def test_the_loss_is_the_weighted_sum_of_the_terms(module_and_rows):
    progress = []

    def terms(model, output, batch):
        progress.append(batch["progress"])
        size = output.embedding.square().mean()
        return {**PLAIN(model, output, batch), "size": (0.5, size), "seen": (0.0, output.logits.detach().max())}

    losses = Losses()
    records = train(*module_and_rows, terms, callbacks=[losses])
    for batch, _ in losses.seen:
        assert batch["train_loss"] == pytest.approx(batch["label_loss"] + 0.5 * batch["size"], rel=1e-5)
    assert {"label_loss", "size", "seen"} < set(records[0])
    assert progress == pytest.approx([step / 6 for step in range(6)])


def test_the_gradient_is_that_of_the_weighted_sum(module_and_rows):
    module, rows = module_and_rows
    twin, plain = copy.deepcopy(module), copy.deepcopy(module)

    def size(output):
        return output.embedding.square().mean()

    def apart(model, output, batch):
        return {**PLAIN(model, output, batch), "size": (0.5, size(output))}

    def together(model, output, batch):
        return {"loss": PLAIN(model, output, batch)["label_loss"] + 0.5 * size(output)}

    for model, terms in ((module, apart), (twin, together), (plain, PLAIN)):
        train(model, rows, terms, epochs=1, batch_size=20)
    a, b, c = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (module, twin, plain))
    # AdamW's first step is the sign of a gradient, which rounding decides where it is next to 0
    assert ((a - b).abs() > 1e-5).float().mean() < 0.01
    assert ((a - c).abs() > 1e-5).float().mean() > 0.1


def test_a_term_of_weight_zero_trains_nothing(module_and_rows):
    module, rows = module_and_rows
    module.heads["own"] = torch.nn.Linear(32, 1)
    twin, before = copy.deepcopy(module), copy.deepcopy(module.heads)

    def terms(model, output, batch):
        return {**PLAIN(model, output, batch), "own": (0.0, model.heads["own"](output.embedding).square().mean())}

    train(module, rows, terms)
    train(twin, rows)
    for a, b in zip(module.heads.parameters(), before.parameters()):
        assert torch.equal(a, b)
    torch.testing.assert_close(module.label_head.weight, twin.label_head.weight)
    with pytest.raises(ValueError, match=r"terms \['own'\] hold none of a weight above 0"):
        train(module, rows, lambda model, output, batch: {"own": (0.0, output.logits.sum())})


def test_interrupt_is_raised_not_swallowed(module_and_rows):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="epoch 1 of 2"):
        train(*module_and_rows, callbacks=[Interrupt()])


def test_an_interrupt_before_the_first_epoch(module_and_rows, monkeypatch):
    def interrupt(net):
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuningNet, "initialize_module", interrupt)
    with pytest.raises(KeyboardInterrupt, match="epoch 0 of 2"):
        train(*module_and_rows)


def test_early_stopping_ends_the_stage(module_and_rows):
    class Probe(Callback):
        def on_batch_end(self, net, batch, training, **kwargs):
            if len(net.history[-1, "batches"]) % 2:  # on some batches, and once no number
                net.history.record_batch("probe", "a str")

    score = PassthroughScoring("label_loss", on_train=True)
    stop = EarlyStopping("label_loss", patience=2, threshold=100.0, threshold_mode="abs")  # never so much better
    records = train(*module_and_rows, epochs=9, callbacks=[Probe(), score, stop])
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert set(records[0]) == {"epoch", "label_loss", "learning_rate", "seconds"}


def test_callbacks_of_the_settings_are_left_alone(module_and_rows):
    class Counter(Callback):
        def on_epoch_end(self, net, **kwargs):
            self.epochs = getattr(self, "epochs", 0) + 1
            if self.epochs > 2:
                raise AssertionError("it was not a new one")

    plain, named = Counter(), Counter()
    for _ in range(2):
        train(*module_and_rows, callbacks=[plain, ("named", named)])
    assert not hasattr(plain, "epochs") and not hasattr(named, "epochs")


def test_loss_that_is_not_finite_is_an_error(module_and_rows):
    module, rows = module_and_rows
    with torch.no_grad():
        module.label_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"became nan in epoch 1 \(learning_rate=.*lower learning_rate"):
        train(module, rows)


def test_weights_that_are_not_finite_are_an_error(module_and_rows):
    """An infinite gradient of the last step, whose loss is finite, reaches no other loss."""

    class Spoil(Callback):
        def on_train_end(self, net, **kwargs):
            with torch.no_grad():
                net.module_.label_head.bias[0] = float("inf")

    with pytest.raises(FloatingPointError, match=r"label_head\.bias has values that are no number"):
        train(*module_and_rows, callbacks=[Spoil()])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["CUDA", "CPU"],
)
def test_out_of_memory_names_batch_size(module_and_rows, error):
    def terms(model, output, batch):
        raise error

    with pytest.raises(
        torch.OutOfMemoryError, match="out of memory with batch_size=8; set a smaller batch_size"
    ) as caught:
        train(*module_and_rows, terms)
    assert str(error) in str(caught.value) and caught.value.__cause__ is error


def test_other_errors_are_passed_on(module_and_rows):
    def terms(model, output, batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        train(*module_and_rows, terms)


def test_same_seed_same_result_and_other_seed_other(module_and_rows):
    module, rows = module_and_rows
    results = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(module)
        train(twin, rows, seed=seed)
        results.append(twin.label_head.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 60), (32, 60), (200, 9), (64_000, 2)], ids=["one row", "one batch", "few shots", "large"]
)
def test_auto_epochs(n, expected):
    assert auto_epochs(n, 32, min_epochs=2, min_steps=60) == expected
