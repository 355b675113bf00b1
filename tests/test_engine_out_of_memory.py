"""Out of memory: a stage starts again with smaller parts of its batches and ends where it would have ended."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from conftest import make_texts
from skmft.contrastive import WholeBatch
from skmft.networks import TextClassifier
from skmft.parts import ALONE, MicroBatches, Processes, is_out_of_memory, parts_of
from skorch.callbacks import Callback


class Device:
    """A device on which passes of more than `rows` rows fail, from the given training step on."""

    def __init__(self, monkeypatch, rows, first_step=1, error=None):
        self.rows, self.first_step = rows, first_step
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.calls, self.failures = [], 0
        forward = TextClassifier._label_logits

        def limited(module, pooled):
            self.calls.append((module.training, len(pooled)))
            steps = sum(training for training, _ in self.calls)
            if len(pooled) > self.rows and steps >= self.first_step:
                self.failures += 1
                raise self.error
            return forward(module, pooled)

        monkeypatch.setattr(TextClassifier, "_label_logits", limited)


def no_dropout(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *args, **kwargs: x)


def weights(clf):
    tensors = {f"meta {n}": t for n, t in clf.net_.module_.state_dict().items()}
    for domain, own in clf.adapted_weights_.items():
        tensors |= {f"{domain} {n}": t for n, t in own.items()}
    return tensors


def assert_same_fit(clf, expected, atol=1e-5):
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(clf)[name], tensor, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert len(clf.history_) == len(expected.history_)
    for now, then in zip(clf.history_, expected.history_):
        assert now.keys() == then.keys()
        for name in now.keys() - {"seconds"}:
            assert now[name] == pytest.approx(then[name], abs=1e-5), name


@pytest.mark.parametrize("first_step", [1, 3], ids=["first step", "third step"])
@pytest.mark.parametrize("corruption_weight", [0, 0.1])
def test_same_model_with_smaller_parts(make, monkeypatch, first_step, corruption_weight):
    X, y, d = make_texts(44)  # batches have 14 or 15 rows, a domain 22: neither divides evenly
    weight = np.linspace(0.1, 3, 44)
    params = {"corruption_weight": corruption_weight, "learning_rate": 1e-4, "meta_epochs": 2}
    no_dropout(monkeypatch)
    expected = make(**params).fit(X, y, domains=d, sample_weight=weight)
    with monkeypatch.context() as limited:
        device = Device(limited, 5, first_step)
        with pytest.warns(
            UserWarning, match="meta fine-tuning: out of memory with 16 rows at a time.* 4 rows"
        ) as warned:
            clf = make(**params).fit(X, y, domains=d, sample_weight=weight)
    assert len(warned) == 1  # stage 3 begins with what was found to fit
    assert device.failures == 2  # at 16 and 8 rows
    assert_same_fit(clf, expected)
    assert clf.history_[1]["epoch"] == 1
    assert np.array_equal(clf.predict(X, domains=d), expected.predict(X, domains=d))


def test_adaptation_that_runs_out_of_memory_starts_from_the_meta_learner(make, monkeypatch):
    X, y, d = make_texts(44)
    no_dropout(monkeypatch)
    params = {"learning_rate": 1e-4, "meta_epochs": 1}
    expected = make(**params).fit(X, y, domains=d)
    with monkeypatch.context() as limited:
        device = Device(limited, 10, first_step=5)  # stage 2 has 3 steps
        with pytest.warns(UserWarning, match="adaptation: out of memory with 16 rows") as warned:
            clf = make(**params).fit(X, y, domains=d)
    assert len(warned) == 1
    assert device.failures == 1
    assert_same_fit(clf, expected)


def test_dropout_masks_are_drawn_anew_from_the_beginning(make, monkeypatch):
    """A restart after the third step draws what a run draws that never had room for more."""
    X, y, d = make_texts(44)
    fits = []
    for first_step in (1, 3):
        with monkeypatch.context() as limited:
            Device(limited, 8, first_step)
            with pytest.warns(UserWarning, match="8 rows at a time"):
                fits.append(make(meta_epochs=1, adaptation=None).fit(X, y, domains=d))
    assert_same_fit(*fits, atol=0)


class Batches(Callback):
    fitted = []

    def initialize(self):
        self.seen = []
        Batches.fitted.append(self)
        return self

    def on_batch_end(self, net, training=False, batch=None, **kwargs):
        self.seen.append(len(batch[1]))


def test_callbacks_begin_anew_and_see_whole_batches(make, monkeypatch):
    X, y, d = make_texts(44)
    Device(monkeypatch, 8, first_step=3)
    Batches.fitted = []
    mine = Batches()
    with pytest.warns(UserWarning, match="out of memory"):
        make(callbacks=[mine], meta_epochs=1, adaptation=None).fit(X, y, domains=d)
    assert not hasattr(mine, "seen")
    before, after = Batches.fitted
    assert before is not after
    assert len(before.seen) == 2
    assert sorted(after.seen) == [14, 15, 15]


def test_one_row_that_does_not_fit(make, monkeypatch):
    X, y, d = make_texts(16)
    device = Device(monkeypatch, 0)
    clf = make()
    with pytest.raises(
        torch.OutOfMemoryError, match=r"one row at a time, whatever batch_size is; lower max_length.*CUDA"
    ):
        clf.fit(X, y, domains=d)
    assert [rows for _, rows in device.calls] == [16, 8, 4, 2, 1]
    assert not hasattr(clf, "net_")


def test_other_errors_are_not_caught(make, monkeypatch):
    X, y, d = make_texts(20)
    device = Device(monkeypatch, 5, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        make().fit(X, y, domains=d)
    assert device.failures == 1


def test_nothing_of_the_failed_attempt_is_kept(make, monkeypatch):
    """Neither the traceback's frames nor the optimiser hold tensors when the stage starts again."""
    X, y, d = make_texts(20)
    alive, states = [], []
    forward, step = TextClassifier._label_logits, torch.optim.AdamW.step

    def limited(module, pooled):
        if len(pooled) <= 8:
            assert not [ref for ref in alive if ref() is not None]
            assert not [ref for ref in states if ref() is not None]
            return forward(module, pooled)
        if states:
            alive.append(weakref.ref(pooled))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(module, pooled)

    def spy(optimizer, *args, **kwargs):
        out = step(optimizer, *args, **kwargs)
        if not alive:  # the attempt that will fail
            states.extend(weakref.ref(s["exp_avg"]) for s in optimizer.state.values())
        return out

    monkeypatch.setattr(TextClassifier, "_label_logits", limited)
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="out of memory"):
            make(adaptation=None, meta_epochs=1, batch_size=10).fit(X, y, domains=d)
    finally:
        gc.enable()
    assert alive
    assert states


def test_inference_halves_its_batches(fitted, data, monkeypatch):
    X, _, d = data
    expected = fitted.decision_function(X, domains=d)
    device = Device(monkeypatch, 5, first_step=0)
    with pytest.warns(
        UserWarning, match="inference: out of memory with 24 rows at a time.* 3 rows at a time"
    ) as warned:
        logits = fitted.decision_function(X, domains=d)
    assert len(warned) == 2  # one for each of the two domains' models
    assert device.failures == 2 * 3
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_stage_1_halves_its_batches_and_remembers_how_many_tokens_fit(make, monkeypatch):
    from skmft import networks

    X, y, d = make_texts(80)  # of 7 to 11 tokens
    params = {"adaptation": None, "meta_epochs": 1, "max_length": 16, "batch_size": 16}
    expected = make(**params).fit(X, y, domains=d)
    pool, failed, done = networks.pool, [], []

    def limited(hidden, *args):
        if torch.is_grad_enabled():
            return pool(hidden, *args)  # training
        (failed if hidden.shape[0] * hidden.shape[1] > 140 else done).append(hidden.shape[:2])
        if failed and failed[-1] == hidden.shape[:2]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return pool(hidden, *args)

    monkeypatch.setattr(networks, "pool", limited)
    with pytest.warns(UserWarning, match="inference: out of memory with 23 rows at a time") as warned:
        clf = make(**params).fit(X, y, domains=d)
    assert len(warned) == 1
    assert failed == [(23, 11)]
    assert [rows for rows, _ in done[:2]] == [12, 11]
    assert all(rows * tokens <= 12 * 11 for rows, tokens in done)
    assert max(rows for rows, _ in done) > 12  # shorter rows
    np.testing.assert_allclose(clf.typicality_, expected.typicality_, atol=1e-5)


def test_parts_find_themselves_in_the_whole_batch(make, monkeypatch):
    """Under dropout, too: a part's embeddings have the masks that they had when the whole batch was embedded."""
    seen, loss = [], WholeBatch.contrastive_loss

    def checked(whole, own, temperature):
        assert torch.equal(own.detach(), whole.embeddings[whole.place])
        seen.append(len(own))
        return loss(whole, own, temperature)

    monkeypatch.setattr(WholeBatch, "contrastive_loss", checked)
    Device(monkeypatch, 5)
    X, y, d = make_texts(44)
    with pytest.warns(UserWarning, match="out of memory"):
        make(adaptation=None, meta_epochs=1).fit(X, y, domains=d)
    assert sum(seen) == 44 and max(seen) == 4


def test_real_errors_of_the_cpu_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_micro_batches_remember_what_fits():
    sizes, undone = [], []

    def attempt(rows):
        sizes.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError
        return rows

    micro = MicroBatches()
    with pytest.warns(UserWarning, match="with 10 rows at a time, so it was started again with 3 rows"):
        assert micro.run(attempt, 10, "it", undo=lambda: undone.append(len(sizes))) == 3
    assert sizes == [10, 5, 3]
    assert undone == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert micro.run(attempt, 10, "it") == 3
        assert micro.run(attempt, 1, "it") == 1


@pytest.mark.parametrize("n", [1, 2, 5, 32])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 4, 32])
def test_parts_make_up_the_batch(n, size, rows):
    rng = np.random.default_rng(n)
    lengths = np.sort(rng.integers(1, 9, n))
    mask = torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))
    batch = {"attention_mask": mask, "weight": torch.arange(n)}, torch.arange(n)
    counted, shares = [], []
    for rank in range(size):
        parts = list(parts_of(batch, Processes(rank, size), rows))
        assert parts
        for (x, y), share, place in parts:
            assert len(y) <= rows
            assert torch.equal(x["weight"], y)
            assert torch.equal(y, batch[1][place])
            assert x["attention_mask"].sum() == lengths[y].sum()
            assert x["attention_mask"].shape[1] == (lengths[y].max() if len(y) < n else lengths.max())
            assert share == pytest.approx(len(y) / n) or (share == 0 and len(y) == 1)
            counted.extend(y.tolist() if share else [])
            shares.append(share)
    assert sorted(counted) == list(range(n))
    assert sum(shares) == pytest.approx(1)


def test_a_batch_that_fits_is_passed_on_as_it_is():
    batch = {"attention_mask": torch.ones(3, 2)}, torch.arange(3)
    [(whole, share, place)] = parts_of(batch, ALONE, 3)
    assert whole is batch
    assert share == 1 and place == slice(0, 3)
