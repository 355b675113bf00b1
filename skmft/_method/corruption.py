"""Domain corruption: corrupted domain labels z, the head that predicts them, and L_C (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .._typing import Ints
from .label_loss import label_loss

CORRUPTION_LABELS = ("epoch", "batch", "uniform")


def draw_corrupted_labels(
    domains: Ints, batches: Sequence[Ints], rng: np.random.Generator, *, n_domains: int, method: str = "epoch"
) -> Ints:
    """Draw the corrupted domain label z of every row for one epoch, whose `batches` are row numbers.

    - ``"epoch"``: all rows' domains, permuted: z keeps the domains' shares, and does not depend on a row's own.
    - ``"batch"``: the domains of a batch, permuted inside it, as the authors' code does: z depends on a row's own domain where
      a batch's mix does.
    - ``"uniform"``: each domain with probability 1/K.
    """
    if method == "epoch":
        return rng.permutation(domains)
    if method == "uniform":
        return rng.integers(n_domains, size=len(domains))
    z = domains.copy()
    for rows in batches:
        z[rows] = rng.permutation(domains[rows])
    return z


def domain_head(hidden_size: int, n_domains: int) -> nn.Sequential:
    """Dense, tanh, dropout, linear: from a pooled vector to the logits of a domain."""
    return nn.Sequential(
        nn.Linear(hidden_size, hidden_size, dtype=torch.float32),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(hidden_size, n_domains, dtype=torch.float32),
    )


class CorruptionHead(nn.Module):
    """Predicts the corrupted domain label: ``q = softmax(head(pool(h_l(x)) + D[k]))`` for every chosen layer l.

    Each layer has a `domain_head`. ``D[k]`` embeds the true domain k and never reaches the label head.
    """

    def __init__(self, hidden_size: int, n_domains: int, n_layers: int) -> None:
        super().__init__()
        self.domain_embedding = nn.Embedding(n_domains, hidden_size, dtype=torch.float32)
        nn.init.normal_(self.domain_embedding.weight, std=0.02)
        self.heads = nn.ModuleList(domain_head(hidden_size, n_domains) for _ in range(n_layers))

    def forward(self, pooled: Sequence[torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n_layers, batch, n_domains) from the pooled vectors of each layer."""
        embedded = self.domain_embedding(domain)
        return torch.stack([head(p + embedded) for head, p in zip(self.heads, pooled)])


def corruption_loss(logits: torch.Tensor, z: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L_C = - mean_i t_i log q_i[z_i], averaged over the chosen layers; `logits` have shape (n_layers, batch, n_domains)."""
    return torch.stack([label_loss(layer, z, weight) for layer in logits]).mean()
