"""Domain-adversarial training (Ganin et al., JMLR 2016): the reversed gradient, and the schedule of its strength."""

from __future__ import annotations

import math

import torch


def reverse_gradient(x: torch.Tensor, strength: float) -> torch.Tensor:
    """The identity; the gradient is multiplied by ``-strength`` on its way back."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: -strength * gradient)
    return x


def adversarial_ramp(progress: float) -> float:
    """``2 / (1 + exp(-10 p)) - 1``: from 0 at the start of training (p = 0) to nearly 1 at its end (p = 1)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
