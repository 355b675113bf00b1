"""The label loss, by tests/reference.py, and the way back toward the start."""

import numpy as np
import pytest
import reference
import torch

from skmft._engine.model import ModelOutput
from skmft._method.label_loss import interpolate, label_loss, label_terms


def test_loss_agrees_with_reference():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5, size=(17, 5)).astype(np.float32)
    y, t = rng.integers(5, size=17), rng.uniform(0, 2, 17).astype(np.float32)
    expected = reference.label_loss(logits.tolist(), y, t.tolist())
    given = tuple(map(torch.from_numpy, (logits, y, t)))
    assert label_loss(*given).item() == pytest.approx(expected, abs=1e-5)
    output = ModelOutput(given[0], torch.zeros(17, 2), [])
    [(name, term)] = label_terms(torch.nn.Module(), output, {"y": given[1], "weight": given[2]}).items()
    assert name == "label_loss" and term.item() == pytest.approx(expected, abs=1e-5)


def test_loss_is_float32_for_bfloat16_logits():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, weight = torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=torch.bfloat16)
    loss = label_loss(logits, y, weight)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, label_loss(logits.float(), y, torch.ones(4)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_interpolation_is_in_all_weights_alike(share):
    trained = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    end = {name: p.detach().clone() for name, p in trained.named_parameters()}
    start = {name: torch.full_like(p, 5.0) for name, p in end.items() if not name.startswith("1.")}
    interpolate(trained, start, share)
    for name, p in trained.named_parameters():
        expected = 5.0 + share * (end[name] - 5.0) if name in start else end[name]  # a head without a start stays
        torch.testing.assert_close(p.detach(), expected)
