"""Stage 3: how the meta-learner becomes a domain's own model (paper, section 3.4)."""

from __future__ import annotations

import copy

import numpy as np
import torch

from .batches import TrainingRows
from .corruption import MetaFineTuningLoss
from .networks import TextClassifier
from .training import FineTuningNet, TrainingSettings, fine_tune


def adapt_to_domain(
    meta_learner: TextClassifier,
    rows: TrainingRows,
    settings: TrainingSettings,
    *,
    method: str,
    epochs: int,
    seed: int,
) -> tuple[dict[str, torch.Tensor], FineTuningNet]:
    """Fine-tune a copy of the meta-learner on one domain's rows, with plain cross entropy.

    Neither typicality nor corruption plays a part; the label head starts from the meta-learner's.

    Parameters
    ----------
    meta_learner : TextClassifier
        Left as it is.
    rows : TrainingRows
        The domain's rows.
    settings : TrainingSettings
    method : {"full", "head"}
        Whether the encoder is trained too, or only the label head.
    epochs, seed : int

    Returns
    -------
    tensors : dict of str to Tensor
        What the domain's model has in place of the meta-learner's tensors of the same names, on the CPU.
    net : FineTuningNet
        The net that trained, for its history.
    """
    module = copy.deepcopy(meta_learner)
    module.corruption_head = None
    if method == "head":
        module.encoder.requires_grad_(False)
    initial = {**dict(meta_learner.named_parameters()), **dict(meta_learner.named_buffers())}
    net = fine_tune(module, rows, MetaFineTuningLoss, settings, epochs=epochs, seed=seed, initial=initial)
    tensors = {n: p.detach().cpu() for n, p in module.named_parameters() if p.requires_grad}
    return tensors, net


def can_adapt(y: np.ndarray) -> bool:
    """Whether rows can teach a domain anything: those of one class alone only teach to answer that class."""
    return len(np.unique(y)) > 1
