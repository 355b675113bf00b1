"""Supervised contrastive loss over domains (an extension): rows of one class, but of different domains, draw together.

After P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (equation 2), with positives from other domains only;
rows of the same class and domain are neither drawn together nor pushed apart.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def contrastive_loss(
    embeddings: torch.Tensor, y: torch.Tensor, domain: torch.Tensor, weight: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """L_S = - mean_i t_i mean_{p in P(i)} log( exp(s_ip) / sum_{a in P(i) or N(i)} exp(s_ia) ), in float32.

    ``s_ij`` is the cosine of the embeddings of rows i and j over the temperature; ``P(i)`` are the rows of the batch that have
    i's class and another domain, ``N(i)`` those of another class. The first mean is over the rows that have partners; with
    none in the batch the loss is 0. `embeddings` have shape (batch, width), the rest (batch,); `weight` is t.
    """
    z = F.normalize(embeddings.float(), dim=1)
    same_class, same_domain = y.unsqueeze(1) == y, domain.unsqueeze(1) == domain
    partners = same_class & ~same_domain
    similarity = z @ z.T / temperature
    # with infinity, a row of which the whole batch is left out would be NaN
    left_out = torch.finfo(similarity.dtype).min
    log_share = similarity.masked_fill(same_class & same_domain, left_out).log_softmax(dim=1)
    number = partners.sum(1)
    loss = -log_share.masked_fill(~partners, 0.0).sum(1) / number.clamp(min=1)
    return (weight.float() * loss).sum() / (number > 0).sum().clamp(min=1)
