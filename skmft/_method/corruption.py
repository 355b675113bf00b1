"""Domain corruption: corrupted domain labels z, the head that predicts them, and L_C (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .label_loss import label_loss

CORRUPTION_LABELS = ("epoch", "batch", "uniform")


def draw_corrupted_labels(
    domains: ArrayLike,
    batches: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
    *,
    n_domains: int,
    method: str = "epoch",
) -> NDArray[np.int64]:
    """Draw the corrupted domain label z of every row for one epoch.

    Parameters
    ----------
    domains : array-like of int, shape (n_rows,)
        True domains, in 0..K-1.
    batches : sequence of ndarray of int
        The row numbers of the epoch's batches; read under ``"batch"`` only.
    rng : numpy.random.Generator
    n_domains : int
        K.
    method : {"epoch", "batch", "uniform"}, default="epoch"
        - ``"epoch"``: all rows' true domains, permuted: keeps the shares of the domains, and is independent of a
          row's own domain even where batches group domains (because they group lengths).
        - ``"batch"``: the domains of a batch, permuted inside it, as the authors' code does. It keeps every batch's
          counts, so that a row's z depends on the row's domain where a batch's mix does.
        - ``"uniform"``: each domain with probability 1/K.

    Returns
    -------
    ndarray of int64, shape (n_rows,)
    """
    true = np.asarray(domains, dtype=np.int64)
    if method == "epoch":
        return rng.permutation(true)
    if method == "uniform":
        return rng.integers(n_domains, size=len(true))
    z = true.copy()
    for rows in batches:
        z[rows] = rng.permutation(true[rows])
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

    ``D``, the embedding of the true domain k, is its own and never reaches the label head. Each layer has a head:
    dense, tanh, dropout, linear.

    Parameters
    ----------
    hidden_size : int
    n_domains : int
    n_layers : int
        Number of chosen layers of the encoder.
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
    """L_C = - mean_i t_i log q_i[z_i], averaged over the chosen layers, in float32.

    Parameters
    ----------
    logits : Tensor, shape (n_layers, batch, n_domains)
    z : Tensor of int, shape (batch,)
        Corrupted domain labels.
    weight : Tensor, shape (batch,)
    """
    return torch.stack([label_loss(layer, z, weight) for layer in logits]).mean()
