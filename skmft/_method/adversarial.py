"""Domain-adversarial training (Ganin et al., JMLR 2016): the reversed gradient, and the schedule of its strength."""

from __future__ import annotations

import math
from typing import Any

import torch


class ReverseGradient(torch.autograd.Function):
    """The identity; the gradient is multiplied by ``-strength`` on its way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None


def adversarial_ramp(progress: float) -> float:
    """``2 / (1 + exp(-10 p)) - 1``: from 0 at the start of training (p = 0) to nearly 1 at its end (p = 1)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
