"""Domain-adversarial training (Ganin et al., 2016): the reversed gradient, the discriminator, its loss and schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from .corruption import MetaFineTuningLoss, domain_head


class ReverseGradient(torch.autograd.Function):
    """The identity; the gradient is multiplied by ``-strength`` on its way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None


class DomainDiscriminator(nn.Module):
    """Predicts the true domain from the pooled last layer, behind a gradient reversal (Ganin et al., 2016).

    It stands where a corruption head would.

    Parameters
    ----------
    hidden_size : int
    n_domains : int
    layer : int
        The encoder's last layer, counted from 0.
    strength : float
        Factor of the reversed gradient.
    """

    def __init__(self, hidden_size: int, n_domains: int, layer: int, strength: float) -> None:
        super().__init__()
        self.layers, self.strength = [layer], strength
        self.head = domain_head(hidden_size, n_domains)

    def forward(self, pooled: Sequence[torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Logits of shape (1, batch, n_domains); the true domain is not read."""
        return self.head(ReverseGradient.apply(pooled[0], self.strength)).unsqueeze(0)


class AdversarialLoss:
    """Label loss plus the discriminator's loss at the true domain; what is reversed is in the discriminator."""

    def __call__(
        self,
        output: Sequence[Any],
        y: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As `MetaFineTuningLoss`, the true domain in the corrupted one's place, under names that say so."""
        terms = MetaFineTuningLoss(1.0)(output, y, {**batch, "corrupted": batch["domain"]})
        return {
            "label_loss": terms["label_loss"],
            "loss": terms["loss"],
            "domain_loss": terms["corruption_loss"],
            "domain_accuracy": terms["domain_accuracy"],
        }


def adversarial_ramp(progress: float) -> float:
    """``2 / (1 + exp(-10 p)) - 1``: from 0 at the start of training (p = 0) to nearly 1 at its end (p = 1)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


class AdversarialRamp(Callback):
    """Sets the discriminator's strength before every step to ``weight * adversarial_ramp(share of steps done)``."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.step_, self.steps_ = 0, net.max_epochs * math.ceil(len(X) / net.batch_size)

    def on_batch_begin(self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        net.module_.corruption_head.strength = self.weight * adversarial_ramp(self.step_ / self.steps_)
        self.step_ += 1
