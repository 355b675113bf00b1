"""The label loss L_T (paper, section 3.3), and how far from its start a trained model is kept."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .._engine.model import ModelOutput, TextClassifier
from .._typing import Tensors


def label_loss(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L_T = - mean_i t_i log p(y_i | x_i), in float32; `weight` is t, of mean 1 over the training set."""
    return (weight.float() * F.cross_entropy(logits.float(), y, reduction="none")).mean()


def label_terms(model: TextClassifier, output: ModelOutput, batch: Tensors) -> dict[str, torch.Tensor]:
    """`label_loss` of a batch, as the training net takes its terms."""
    return {"label_loss": label_loss(output.logits, batch["y"], batch["weight"])}


def interpolate(model: nn.Module, start: Tensors, share: float) -> None:
    """Move a trained model back toward its start, in place: ``start + share * (trained - start)`` in all weights alike.

    WiSE-FT (an extension; Wortsman et al., CVPR 2022). Parameters that `start` does not name stay.
    """
    with torch.no_grad():
        for name, trained in model.named_parameters():
            if name in start:
                trained.copy_(torch.lerp(start[name].to(trained.device), trained, share))
