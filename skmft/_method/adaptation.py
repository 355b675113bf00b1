"""Stage 3: how the meta-learner becomes a domain's own model (paper, section 3.4), and how domains' models answer."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from .._engine.batches import TrainingRows
from .._engine.inference import run_in_batches
from .._engine.model import TextClassifier, with_tensors
from .._engine.runtime import Runtime, isolated_generators
from .._engine.tokens import TokenizedTexts
from .._engine.training import TrainingSettings, auto_epochs, fine_tune
from .._inputs.rows import Rows
from .._typing import Name, Record
from .label_loss import label_terms
from .lora import (
    LORA_A,
    LORA_B,
    LoraParams,
    NotByRowError,
    Tensors,
    adapter_tensors,
    add_adapters,
    merged,
    rowwise_logits,
)

# The "auto" epochs: as many as make `min_steps` optimiser steps, but `min_epochs` at least.
ADAPTATION_EPOCHS = {"min_epochs": 2, "min_steps": 4}
# The "auto" learning rates: the fewer the parameters that are trained, the larger.
ADAPTATION_LEARNING_RATES = {"full": 1e-5, "head": 1e-3, "lora": 3e-4}
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

    def __reduce__(self) -> tuple:
        return TensorBlock, ({name: tuple(tensor.shape) for name, tensor in self.items()}, self._block)


@dataclass(frozen=True)
class AdaptationSettings:
    """How a domain is adapted to; names as in MetaFineTunedClassifier, less ``adaptation_``."""

    method: str
    epochs: int | str = "auto"
    learning_rate: float | str | None = "auto"
    lora_config: LoraParams = None


@dataclass(frozen=True)
class Adapted:
    """What stage 3 found for one domain.

    Attributes
    ----------
    tensors : TensorBlock, or None
        What the domain's model has in place of the meta-learner's tensors of the same names, and its adapters (see
        `skmft._method.lora`), on the CPU. None where the domain's rows cannot train a model.
    history : list of dict
    """

    tensors: TensorBlock | None
    history: list[Record]


def adapt_to_domain(
    meta_learner: TextClassifier,
    rows: Rows,
    name: Name,
    settings: AdaptationSettings,
    training: TrainingSettings,
    runtime: Runtime,
    own: Tensors | None = None,
) -> Adapted:
    """Stage 3: fine-tune a copy of the meta-learner on one domain's rows, with plain cross entropy.

    Neither typicality nor corruption plays a part; the label head starts from the meta-learner's.
    """
    entry = {"stage": "adaptation", "domain": name}
    if not rows.can_train:
        if runtime.verbose:
            print(f"domain {name!r}: one class only, so the meta-learner answers for it")
        return Adapted(None, [{**entry, "epochs": 0}])
    start, seed = time.perf_counter(), runtime.derive(f"adaptation {name}")
    epochs = settings.epochs
    if isinstance(epochs, str):
        epochs = auto_epochs(len(rows), training.batch_size, **ADAPTATION_EPOCHS)
    rate = settings.learning_rate
    if isinstance(rate, str):
        rate = ADAPTATION_LEARNING_RATES[settings.method]
    training = replace(training, learning_rate=training.learning_rate if rate is None else rate)
    module = copy.deepcopy(with_tensors(meta_learner, own) if own else meta_learner)
    module.requires_grad_(True)
    if settings.method != "full":
        module.encoder.requires_grad_(False)
    if settings.method == "lora":
        with isolated_generators(seed, runtime.device):
            add_adapters(module.encoder, settings.lora_config)
    data = TrainingRows(rows.tokens, rows.labels, rows.weights)
    records = fine_tune(module, data, label_terms, training, runtime, epochs=epochs, seed=seed)
    adapters = adapter_tensors(module)
    trained = module.label_head if settings.method == "lora" else module
    prefix = "label_head." if settings.method == "lora" else ""
    tensors = {prefix + n: p.detach() for n, p in trained.named_parameters() if p.requires_grad}
    if runtime.verbose:
        print(
            f"domain {name!r}: adapted on {len(rows)} rows in {epochs} epochs, loss {records[-1]['label_loss']:.3f}, "
            f"{time.perf_counter() - start:.1f} s"
        )
    history = [{**entry, "epochs": epochs, **record} for record in records]
    return Adapted(TensorBlock.copy_of({**(own or {}), **adapters, **tensors}), history)


def domain_model(meta_learner: TextClassifier, tensors: Tensors, dtype: torch.dtype = torch.float32) -> TextClassifier:
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
    return any(not name.endswith((LORA_A, LORA_B)) and not name.startswith("label_head.") for name in tensors)


def domain_logits(
    meta_learner: TextClassifier,
    tokens: TokenizedTexts,
    own: Sequence[Name],
    adapted: Mapping[Name, Tensors],
    runtime: Runtime,
    max_tokens: int,
) -> NDArray[np.float64]:
    """Label logits of every row by its domain's model, in full batches where the models share one encoder.

    Rows of the meta-learner, of ``"head"`` and of ``"lora"`` go through the shared encoder together, each with its own
    adapters and head. Models with an encoder of their own (``"full"``) answer one after the other, so that one of them at
    a time is on the device.
    """
    n_classes = meta_learner.label_head.out_features
    number = {domain: i for i, domain in enumerate(dict.fromkeys(own))}
    model = np.array([number[domain] for domain in own])
    models: list[Tensors] = [{} if domain is None else adapted[domain] for domain in number]
    one_by_one = [i for i, tensors in enumerate(models) if has_own_encoder(tensors)]
    together = [i for i in range(len(models)) if i not in one_by_one]
    logits = np.empty((len(tokens), n_classes))
    if len(together) > 1:
        rows = np.flatnonzero(np.isin(model, together))
        place = np.searchsorted(together, model[rows])
        forward = rowwise_logits(meta_learner, [models[i] for i in together])
        try:
            logits[rows] = run_in_batches(
                forward,
                tokens.subset(rows),
                width=n_classes,
                max_tokens=max_tokens,
                runtime=runtime,
                columns={"model": place},
            )
        except NotByRowError:  # DeBERTa's query projection also reads relative positions, which belong to no row
            one_by_one += together
    else:
        one_by_one += together
    for i in one_by_one:
        rows = np.flatnonzero(model == i)
        twin = domain_model(meta_learner, models[i], runtime.dtype) if models[i] else meta_learner
        most = min(max_tokens, _TOKENS) if has_own_encoder(models[i]) else max_tokens
        logits[rows] = run_in_batches(
            twin.label_logits, tokens.subset(rows), width=n_classes, max_tokens=most, runtime=runtime
        )
        del twin  # before the next one comes to the device
    return logits
