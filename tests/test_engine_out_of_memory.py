"""Out of memory: an error says what to set."""

import numpy as np
import pytest
import torch
from conftest import make_texts

from skmft._engine import pooling
from skmft._engine.inference import is_out_of_memory
from skmft._engine.model import TextClassifier


class Device:
    """A device on which passes of more than `rows` rows fail, from the given training step on."""

    def __init__(self, monkeypatch, rows, first_step=1, error=None):
        self.rows, self.first_step = rows, first_step
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.calls, self.failures = [], 0
        forward = TextClassifier.forward

        def limited(module, input_ids, **inputs):
            self.calls.append((module.training, len(input_ids)))
            steps = sum(training for training, _ in self.calls)
            if len(input_ids) > self.rows and steps >= self.first_step:
                self.failures += 1
                raise self.error
            return forward(module, input_ids=input_ids, **inputs)

        monkeypatch.setattr(TextClassifier, "forward", limited)


@pytest.mark.parametrize("first_step", [1, 3], ids=["first step", "third step"])
def test_stage_2_names_batch_size(make, data, monkeypatch, first_step):
    X, y, d = data
    device = Device(monkeypatch, 15, first_step)
    clf = make()
    with pytest.raises(
        torch.OutOfMemoryError,
        match=r"meta fine-tuning: out of memory with batch_size=16; set a smaller batch_size or max_length.*CUDA out of",
    ):
        clf.fit(X, y, domains=d)
    assert device.failures == 1  # it does not try again
    assert not [name for name in vars(clf) if name.endswith("_")]
    clf.set_params(batch_size=15, meta_epochs=1, adaptation=None).fit(X, y, domains=d)


def test_stage_3_names_batch_size_and_leaves_the_estimator(make, data, monkeypatch):
    X, y, d = data
    clf = make(meta_epochs=1, adaptation="head", adaptation_epochs=1).fit(X, y, domains=d)
    expected = clf.predict_proba(X, domains=d)
    with monkeypatch.context() as limited:
        Device(limited, 10)
        with pytest.raises(torch.OutOfMemoryError, match="adaptation: out of memory with batch_size=16"):
            clf.adapt(X, y, "toys")
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), expected)
    assert clf.adapted_domains_.tolist() == ["books", "kitchen"]


def test_other_errors_are_not_caught(make, monkeypatch):
    X, y, d = make_texts(20)
    device = Device(monkeypatch, 5, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        make().fit(X, y, domains=d)
    assert device.failures == 1


def test_prediction_and_stage_1_name_batch_size(make, fitted, data, monkeypatch):
    X, y, d = data
    expected = fitted.predict_proba(X, domains=d)
    with monkeypatch.context() as limited:
        Device(limited, 5, first_step=0)
        with pytest.raises(torch.OutOfMemoryError, match=r"inference: out of memory with .* set a smaller batch_size"):
            fitted.predict(X)
    np.testing.assert_array_equal(fitted.predict_proba(X, domains=d), expected)

    def limited(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pooling, "pool", limited)
    with pytest.raises(torch.OutOfMemoryError, match=r"typicality: out of memory with .* set a smaller batch_size"):
        make().fit(X, y, domains=d)


def test_real_errors_of_the_cpu_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
