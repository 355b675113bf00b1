"""A label head to start from: logistic regression on the embeddings of the pre-trained encoder.

Fine-tuning from a random head bends the encoder toward that head (A. Kumar et al., "Fine-Tuning can Distort Pretrained Features
and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from .._typing import Floats, Ints

PROBE_ROWS = 2000  # at most; more would only take longer


def probe_rows(n_rows: int, seed: int) -> Ints:
    """Which of the rows of weight above 0 a linear probe is fitted on: all, or `PROBE_ROWS` of them."""
    if n_rows <= PROBE_ROWS:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, PROBE_ROWS, replace=False))


def linear_probe(E: NDArray[np.float32], y: Ints, weight: Floats, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a label head, by logistic regression at scikit-learn's default strength.

    The embeddings are divided by their mean norm, so that the strength means the same for every encoder.
    """
    scale = float(np.linalg.norm(E, axis=1).mean()) or 1.0
    W, b = np.zeros((n_classes, E.shape[1])), np.zeros(n_classes)
    E, y, weight = E[weight > 0], y[weight > 0], weight[weight > 0]
    present = np.unique(y)
    if len(present) > 1:
        fitted = LogisticRegression(max_iter=1000).fit(E / scale, y, sample_weight=weight)
        coef, intercept = fitted.coef_ / scale, fitted.intercept_
        if len(present) == 2:  # one row of logits stands for both classes
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        W[present], b[present] = coef, intercept
        b[np.setdiff1d(np.arange(n_classes), present)] = b.min()
    return torch.from_numpy(W).float(), torch.from_numpy(b).float()
