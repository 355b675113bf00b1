"""Stage 3: how the meta-learner becomes a domain's own model (paper, section 3.4), and how domains' models answer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .batches import TrainingRows
from .corruption import MetaFineTuningLoss
from .encoding import TokenizedTexts
from .lora import A, B, LoraSettings, NotByRowError, Tensors, adapter_tensors, add_adapters, merged, rowwise_logits
from .networks import TextClassifier, with_tensors
from .training import FineTuningNet, TrainingSettings, fine_tune, isolated_generators

_TOKENS = 2048  # a batch of a domain with an encoder of its own, at most: the meta-learner's is on the device beside it


class TensorBlock(Mapping[str, torch.Tensor]):
    """A domain's tensors (float32) in one block of the CPU's memory, which a pickle holds once.

    NumPy asks the system for huge pages where an array is large. Without them every domain kept costs tens of thousands of
    page faults, dearer the more memory is held: with 40 domains of 90 MB the last took half as long again as the first.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
    block : Tensor, shape (n_numbers,)
        All tensors, one after the other.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], block: torch.Tensor) -> None:
        parts = block.split([math.prod(shape) for shape in shapes.values()])
        self._block = block
        self._tensors = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}

    @classmethod
    def copy_of(cls, tensors: Tensors) -> TensorBlock:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        numbers = np.empty(sum(tensor.numel() for tensor in tensors.values()), dtype=np.float32)
        out = cls(shapes, torch.from_numpy(numbers))
        for name, tensor in tensors.items():
            out[name].copy_(tensor)
        return out

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorBlock, ({name: tuple(tensor.shape) for name, tensor in self.items()}, self._block)


def adapt_to_domain(
    meta_learner: TextClassifier,
    rows: TrainingRows,
    settings: TrainingSettings,
    *,
    method: str,
    lora: LoraSettings,
    epochs: int,
    seed: int,
) -> tuple[TensorBlock, FineTuningNet]:
    """Fine-tune a copy of the meta-learner on one domain's rows, with plain cross entropy.

    Neither typicality nor corruption plays a part; the label head starts from the meta-learner's.

    Parameters
    ----------
    meta_learner : TextClassifier
        Left as it is.
    rows : TrainingRows
        The domain's rows.
    settings : TrainingSettings
    method : {"full", "head", "lora"}
        Whether the encoder is trained too, or only the label head, or the head and low-rank adapters in the encoder.
    lora : LoraSettings
        Read under ``method="lora"``.
    epochs, seed : int

    Returns
    -------
    tensors : TensorBlock
        What the domain's model has in place of the meta-learner's tensors of the same names, and its adapters (see
        `skmft.lora`), on the CPU.
    net : FineTuningNet
        The net that trained, for its history.
    """
    module = copy.deepcopy(meta_learner)
    module.corruption_head = None
    if method != "full":
        module.encoder.requires_grad_(False)
    if method == "lora":
        with isolated_generators(seed, settings.device):
            add_adapters(module.encoder, lora)
    initial = {**dict(meta_learner.named_parameters()), **dict(meta_learner.named_buffers())}
    net = fine_tune(module, rows, MetaFineTuningLoss, settings, epochs=epochs, seed=seed, initial=initial)
    adapters = adapter_tensors(module)
    trained = module.label_head if method == "lora" else module
    prefix = "label_head." if method == "lora" else ""
    tensors = {prefix + n: p.detach() for n, p in trained.named_parameters() if p.requires_grad}
    return TensorBlock.copy_of({**adapters, **tensors}), net


def can_adapt(y: np.ndarray) -> bool:
    """Whether rows can teach a domain anything: those of one class alone only teach to answer that class."""
    return len(np.unique(y)) > 1


def domain_model(meta_learner: TextClassifier, tensors: Tensors, dtype: torch.dtype = torch.float32) -> Any:
    """The network of one domain, adapters merged; it shares the tensors that it has from the meta-learner.

    The linear layers that are the domain's own have their weights in `dtype`, as autocast to it would cast them for every
    batch: half the memory in bfloat16, and the same answers.
    """
    own = merged(meta_learner, tensors)
    if dtype != torch.float32:
        layers = meta_learner.encoder.named_modules(prefix="encoder")
        weights = {f"{name}.weight" for name, layer in layers if isinstance(layer, torch.nn.Linear)}
        own = {name: tensor.to(dtype) if name in weights else tensor for name, tensor in own.items()}
    return with_tensors(meta_learner, own)


def has_own_encoder(tensors: Tensors) -> bool:
    """Whether a domain's model has more of its own than adapters and a label head."""
    return any(not name.endswith((A, B)) and not name.startswith("label_head.") for name in tensors)


def domain_logits(
    batches: Callable[..., NDArray[np.float32]],
    meta_learner: TextClassifier,
    tokens: TokenizedTexts,
    own: Sequence[Any],
    adapted: Mapping[Any, Tensors],
    n_classes: int,
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.float64]:
    """Label logits of every row by its domain's model, in full batches where the models share one encoder.

    Rows of the meta-learner, of ``"head"`` and of ``"lora"`` go through the shared encoder together, each with its own
    adapters and head. Models with an encoder of their own (``"full"``) answer one after the other, so that one of them at
    a time is on the device.

    Parameters
    ----------
    batches : callable
        `skmft.stages.Run.batches`.
    meta_learner : TextClassifier
        On the device that answers. Left as it is, so that several threads may predict at once.
    tokens : TokenizedTexts
    own : sequence of length n_rows
        Domain of every row, a key of `adapted`; None for the meta-learner.
    adapted : mapping
        Domain -> tensors, as `adapt_to_domain` returns them.
    n_classes : int
    dtype : torch.dtype, default=torch.float32
        What `batches` autocasts to.

    Returns
    -------
    ndarray of float64, shape (n_rows, n_classes)
    """
    number = {domain: i for i, domain in enumerate(dict.fromkeys(own))}
    model = np.array([number[domain] for domain in own])
    models: list[Tensors] = [{} if domain is None else adapted[domain] for domain in number]
    apart = [i for i, tensors in enumerate(models) if has_own_encoder(tensors)]
    together = [i for i in range(len(models)) if i not in apart]
    logits = np.empty((len(tokens), n_classes))
    if len(together) > 1:
        rows = np.flatnonzero(np.isin(model, together))
        place = np.searchsorted(together, model[rows])
        forward = rowwise_logits(meta_learner, [models[i] for i in together])
        try:
            logits[rows] = batches(forward, tokens.subset(rows), n_classes, columns={"model": place})
        except NotByRowError:  # DeBERTa's query projection also reads relative positions, which belong to no row
            apart += together
    else:
        apart += together
    for i in apart:
        rows = np.flatnonzero(model == i)
        twin = domain_model(meta_learner, models[i], dtype) if models[i] else meta_learner
        most = _TOKENS if has_own_encoder(models[i]) else None
        logits[rows] = batches(twin.label_logits, tokens.subset(rows), n_classes, max_tokens=most)
        del twin  # before the next one comes to the device
    return logits
