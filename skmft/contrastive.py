"""Supervised contrastive loss over domains (an extension): rows of one class, but of different domains, draw together.

After P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (equation 2), with positives from other domains only.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def contrastive_loss(
    embeddings: torch.Tensor, y: torch.Tensor, domain: torch.Tensor, weight: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """L_S = - mean_i t_i mean_{p in P(i)} log( exp(s_ip) / sum_{a != i} exp(s_ia) ), in float32.

    ``s_ij`` is the cosine of the embeddings of rows i and j over the temperature; ``P(i)`` are the rows of the batch that have
    i's class and another domain. The first mean is over the rows that have such partners; with none in the batch the loss is 0.

    Parameters
    ----------
    embeddings : Tensor, shape (batch, width)
    y, domain : Tensor of int, shape (batch,)
    weight : Tensor, shape (batch,)
        The rows' weights t_i.
    temperature : float, default=0.1
    """
    z = F.normalize(embeddings.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_share = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    partners = (y.unsqueeze(1) == y) & (domain.unsqueeze(1) != domain)
    number = partners.sum(1)
    loss = -log_share.masked_fill(~partners, 0.0).sum(1) / number.clamp(min=1)
    return (weight.float() * loss).sum() / (number > 0).sum().clamp(min=1)
