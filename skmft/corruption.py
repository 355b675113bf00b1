"""Stage 2: corrupted domain labels, the corruption head, and the loss of meta fine-tuning (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn import functional as F

from .contrastive import batch_contrastive_loss

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
    layers : sequence of int
        Chosen layers of the encoder, counted from 0.
    """

    def __init__(self, hidden_size: int, n_domains: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = list(layers)
        self.domain_embedding = nn.Embedding(n_domains, hidden_size, dtype=torch.float32)
        nn.init.normal_(self.domain_embedding.weight, std=0.02)
        self.heads = nn.ModuleList(domain_head(hidden_size, n_domains) for _ in self.layers)

    def forward(self, pooled: Sequence[torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n_layers, batch, n_domains) from the pooled vectors of each layer."""
        embedded = self.domain_embedding(domain)
        return torch.stack([head(p + embedded) for head, p in zip(self.heads, pooled)])


def label_loss(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L_T = - mean_i t_i log p(y_i | x_i), in float32.

    Parameters
    ----------
    logits : Tensor, shape (batch, n_classes)
    y : Tensor of int, shape (batch,)
    weight : Tensor, shape (batch,)
        The rows' weights t_i, of mean 1 over the training set.
    """
    return (weight.float() * F.cross_entropy(logits.float(), y, reduction="none")).mean()


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


class MetaFineTuningLoss:
    """L = L_T + corruption_weight * L_C + contrastive_weight * L_S; a weight of 0 leaves its term out.

    Parameters
    ----------
    corruption_weight : float, default=0.0
        The paper's lambda.
    contrastive_weight : float, default=0.0
        Of `skmft.contrastive.contrastive_loss`, which the paper has not.
    temperature : float, default=0.1
        Of the contrastive loss.
    """

    def __init__(
        self, corruption_weight: float = 0.0, contrastive_weight: float = 0.0, temperature: float = 0.1
    ) -> None:
        self.corruption_weight, self.contrastive_weight = corruption_weight, contrastive_weight
        self.temperature = temperature

    def __call__(
        self, output: Sequence[Any], y: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The loss and what it is made of, as scalars; ``"loss"`` is the one to be minimised."""
        logits, domain_logits = output[:2]
        terms = {"label_loss": label_loss(logits, y, batch["weight"])}
        terms["loss"] = terms["label_loss"]
        if domain_logits is not None and self.corruption_weight > 0:
            z = batch["corrupted"]
            terms["corruption_loss"] = corruption_loss(domain_logits, z, batch["weight"])
            terms["loss"] = terms["loss"] + self.corruption_weight * terms["corruption_loss"]
            guess = domain_logits.detach().argmax(-1)  # (n_layers, batch)
            terms["domain_accuracy"] = (guess == batch["domain"]).float().mean()
            terms["corrupted_label_accuracy"] = (guess == z).float().mean()
        if self.contrastive_weight > 0:
            terms["contrastive_loss"] = batch_contrastive_loss(output[2], y, batch, self.temperature)
            terms["loss"] = terms["loss"] + self.contrastive_weight * terms["contrastive_loss"]
        return terms
