import functools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import make_texts
from skmft.batches import TrainingRows
from skmft.corruption import MetaFineTuningLoss
from skmft.encoding import tokenize
from skmft.networks import TextClassifier, find_encoder, load_encoder, load_tokenizer
from skmft.training import (
    LinearWarmupDecay,
    TrainingSettings,
    auto_epochs,
    epoch_records,
    fine_tune,
    has_native_bfloat16,
    isolated_generators,
    resolve_device,
    resolve_precision,
    run_in_batches,
)
from skorch.callbacks import Callback
from transformers import get_linear_schedule_with_warmup

CPU = torch.device("cpu")


def settings(**changes):
    plain = {
        "learning_rate": 1e-3,
        "batch_size": 8,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "callbacks": None,
        "device": CPU,
        "dtype": torch.float32,
    }
    return TrainingSettings(**{**plain, **changes})


@pytest.fixture
def module_and_rows(tiny):
    X, y, _ = make_texts(20)
    source = find_encoder(tiny)
    with isolated_generators(0, CPU):
        module = TextClassifier(load_encoder(source), 2)
    tokens = tokenize(load_tokenizer(source, 32), X, 32, True)
    return module, TrainingRows(tokens, (y == "pos").astype(np.int64), np.ones(20))


def train(module, rows, epochs=2, **changes):
    return fine_tune(module, rows, MetaFineTuningLoss, settings(**changes), epochs=epochs, seed=3)


def test_schedule_agrees_with_transformers():
    total, warmup = 50, 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, total)
    ours = LinearWarmupDecay(warmup, total)
    for step in range(total):
        if step >= warmup:  # theirs starts with a step of rate 0, ours warms up in steps of equal height above 0
            assert ours(step) == pytest.approx(theirs.get_last_lr()[0])
        else:
            assert ours(step) == pytest.approx((step + 1) / (warmup + 1))
        optimizer.step()
        theirs.step()
    assert ours(total) == 0
    assert LinearWarmupDecay(0, 1)(0) == 1


def test_one_step_is_adamw_without_decay_of_biases_and_norms(module_and_rows):
    module, rows = module_and_rows
    module.eval()
    module.train = lambda mode=True: module  # no dropout, so that the step can be computed by hand
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    batch = rows.texts.batch(np.arange(20))
    loss = torch.nn.functional.cross_entropy(module.label_logits(**batch), torch.from_numpy(rows.y))
    names, parameters = zip(*module.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    rate, decay = 1e-2, 0.5
    train(module, rows, 1, learning_rate=rate, batch_size=20, weight_decay=decay, warmup_ratio=0.0, max_grad_norm=None)
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


def test_gradient_clipping(module_and_rows):
    module, rows = module_and_rows
    seen = []
    from skorch.callbacks import Callback

    class Norms(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            grads = [p.grad for _, p in named_parameters if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item()
            net.callbacks_[-1][1].norms.append(norm)

        def initialize(self):
            self.norms = []
            return self

    net = train(module, rows, max_grad_norm=0.01, callbacks=[Norms()])
    seen = net.callbacks_[-1][1].norms
    assert len(seen) == 6
    assert max(seen) <= 0.0101


def test_net_keeps_no_optimiser_state_and_no_gradients(module_and_rows):
    net = train(*module_and_rows)
    assert not net.optimizer_.state
    assert all(p.grad is None for p in net.module_.parameters())
    assert not net.module_.training


def test_records_are_row_weighted_means(module_and_rows):
    net = train(*module_and_rows, epochs=3)
    records = epoch_records(net)
    assert [r["epoch"] for r in records] == [1, 2, 3]
    batches = net.history[0, "batches", :, ("label_loss", "train_batch_size")]
    assert sorted(n for _, n in batches) == [6, 7, 7]
    assert records[0]["label_loss"] == pytest.approx(sum(v * n for v, n in batches) / 20)
    assert records[-1]["label_loss"] < records[0]["label_loss"]
    assert all(r["seconds"] > 0 for r in records)


def test_interrupt_is_raised_not_swallowed(module_and_rows):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="epoch 1 of 2"):
        train(*module_and_rows, callbacks=[Interrupt()])


def test_early_stopping_ends_the_stage(module_and_rows):
    from skorch.callbacks import EarlyStopping, PassthroughScoring

    class Probe(Callback):
        def on_batch_end(self, net, batch, training, **kwargs):
            if len(net.history[-1, "batches"]) % 2:  # on some batches, and once no number
                net.history.record_batch("probe", "a str")

    score = PassthroughScoring("label_loss", on_train=True)
    stop = EarlyStopping("label_loss", patience=2, threshold=100.0, threshold_mode="abs")  # never so much better
    net = train(*module_and_rows, epochs=9, callbacks=[Probe(), score, stop])
    records = epoch_records(net)
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert set(records[0]) == {"epoch", "label_loss", "learning_rate", "seconds"}


def test_loss_that_is_not_finite_is_an_error(module_and_rows):
    module, rows = module_and_rows
    with torch.no_grad():
        module.label_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(module, rows)


def test_weights_that_are_not_finite_are_an_error(module_and_rows):
    """An infinite gradient of the last step, whose loss is finite, reaches no other loss."""

    class Spoil(Callback):
        def on_train_end(self, net, **kwargs):
            with torch.no_grad():
                net.module_.label_head.bias[0] = float("inf")

    with pytest.raises(FloatingPointError, match=r"label_head\.bias has values that are no number"):
        train(*module_and_rows, callbacks=[Spoil()])


def test_same_seed_same_result_and_other_seed_other(module_and_rows):
    import copy

    module, rows = module_and_rows
    results = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(module)
        fine_tune(twin, rows, MetaFineTuningLoss, settings(), epochs=2, seed=seed)
        results.append(twin.label_head.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_bfloat16_forward_agrees_with_float32(module_and_rows):
    module, rows = module_and_rows
    run = functools.partial(run_in_batches, module.eval().label_logits, rows.texts, width=2, device=CPU)
    exact = run(max_tokens=96, dtype=torch.float32)
    np.testing.assert_allclose(run(max_tokens=96, dtype=torch.bfloat16), exact, atol=2e-2)
    np.testing.assert_allclose(run(max_tokens=30, dtype=torch.float32), exact, atol=1e-5)
    assert not np.array_equal(run(max_tokens=96, dtype=torch.bfloat16), exact)


def test_resolve_device_and_precision(monkeypatch):
    assert resolve_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"device='no such' cannot be used here"):
        resolve_device("no such")
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("skmft.training.has_native_bfloat16", lambda device, n=native: n)
        assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == torch.float32


def test_native_bfloat16_agrees_with_the_processor_flags():
    from pathlib import Path

    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("this system does not list its processor's flags")
    text = flags.read_text()
    assert has_native_bfloat16(CPU) == ("avx512_bf16" in text or "amx_bf16" in text)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 60), (32, 60), (200, 9), (64_000, 2)], ids=["one row", "one batch", "few shots", "large"]
)
def test_auto_epochs(n, expected):
    assert auto_epochs(n, 32, min_epochs=2, min_steps=60) == expected


def test_isolated_generators():
    import random

    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draws()
    random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])
    with isolated_generators(7, CPU):
        inside = torch.rand(1).item()
        draws()
    assert draws() == expected
    with isolated_generators(7, CPU):
        assert torch.rand(1).item() == inside


def test_generators_are_one_threads_at_a_time():
    """Threads that draw in seeded blocks at the same time get what each would get alone."""
    device = torch.device("cpu")

    def draw(seed):
        with isolated_generators(seed, device):
            numbers = []
            for _ in range(20):
                numbers.append(torch.rand(()).item())
                time.sleep(0.001)  # others would get their turn
        return numbers

    before = torch.get_rng_state()
    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone
    assert torch.equal(torch.get_rng_state(), before)
