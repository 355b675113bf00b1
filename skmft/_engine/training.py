"""One training: the skorch net, its optimiser, schedule, precision, device and progress. It knows no loss by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochTimer, GradientNormClipping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .._typing import Batch, Params
from .batches import BucketedIterator, TrainingRows
from .distributed import ALONE, Processes, Rows
from .inference import is_out_of_memory
from .model import ModelOutput, TextClassifier
from .runtime import Runtime, autocast, isolated_generators

Term = torch.Tensor | tuple[float, torch.Tensor]  # a loss term, or one with its weight; a weight of 0 only records it
Terms = Callable[[TextClassifier, ModelOutput, Batch], Mapping[str, Term]]

OUR_CALLBACKS = ("epoch_timer", "schedule", "clip", "progress")  # names that others cannot have


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; names as in MetaFineTunedClassifier."""

    learning_rate: float
    batch_size: int
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float | None = 1.0
    callbacks: Sequence[Any] = ()


class LinearWarmupDecay:
    """Factor of the learning rate at a step: from 0 up to 1 over the warm-up, then linearly down to 0."""

    def __init__(self, warmup_steps: int, total_steps: int) -> None:
        self.warmup_steps, self.total_steps = warmup_steps, total_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = self.total_steps - step
        return max(0.0, left / max(1, self.total_steps - self.warmup_steps))


class ProgressLine(Callback):
    """One tqdm bar for a whole stage, with the loss and the time left."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total = description, total

    def on_train_begin(self, net: NeuralNet, X: object = None, y: object = None, **kwargs: object) -> None:
        from tqdm.auto import tqdm

        self.bar_ = tqdm(total=self.total, desc=self.description, unit="step")

    def on_batch_end(self, net: NeuralNet, batch: object = None, training: bool = False, **kwargs: object) -> None:
        self.bar_.set_postfix(loss=f"{net.history[-1, 'batches', -1, 'train_loss']:.3f}", refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, X: object = None, y: object = None, **kwargs: object) -> None:
        self.bar_.close()
        del self.bar_


class FineTuningNet(NeuralNet):
    """The skorch net of every stage.

    It differs from `skorch.NeuralNet` in five points: the forward pass runs under autocast; the loss is the weighted sum of the
    named terms that `terms` returns, each of which goes to the history; biases and norms do not decay; several processes may
    share a batch; an interrupt is raised, not swallowed.

    ``terms(model, output, batch)`` returns a dict of scalars, or of pairs (weight, scalar). The batch holds the token tensors,
    ``"y"``, ``"weight"``, the further columns, and ``"progress"``, the share of the `total_steps` that is done.
    """

    def __init__(
        self,
        module: TextClassifier,
        *args: object,
        terms: Terms,
        total_steps: int,
        dtype: torch.dtype = torch.float32,
        processes: Processes = ALONE,
        **kwargs: object,
    ) -> None:
        super().__init__(module, *args, criterion=nn.Identity, **kwargs)
        self.terms, self.total_steps, self.dtype, self.processes = terms, total_steps, dtype, processes

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("epoch_timer", EpochTimer())]

    def get_params_for_optimizer(self, prefix: str, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Any:
        """As skorch has it, but what has one dimension, biases and norms, does not decay, whatever a head calls it."""
        named = list(named_parameters)
        _, kwargs = super().get_params_for_optimizer(prefix, named)
        vectors = {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}
        return ([vectors, {"params": [p for _, p in named if p.ndim > 1]}],), kwargs

    def infer(self, x: Mapping[str, torch.Tensor], **fit_params: object) -> ModelOutput:
        names = ("input_ids", "attention_mask", "token_type_ids")
        with autocast(torch.device(self.device), self.dtype):
            return self.module_(**{name: x[name] for name in names if name in x})

    def train_step_single(self, batch: Rows, **fit_params: object) -> Params:
        """Gradients and terms of the mean loss of the batch, or of this process's part of it."""
        self._set_training(True)
        self.steps_done_ = getattr(self, "steps_done_", -1) + 1
        (x, y), share = self.processes.share_of(batch)
        here = {name: value.to(self.device, non_blocking=True) for name, value in {**x, "y": y}.items()}
        output = self.infer(here)
        found = self.terms(self.module_, output, {**here, "progress": self.steps_done_ / self.total_steps})
        terms = {name: term if isinstance(term, tuple) else (1.0, term) for name, term in found.items()}
        weighted = [weight * value for weight, value in terms.values() if weight]
        if not weighted:
            raise ValueError(
                f"the recipe's terms {sorted(terms)} hold none of a weight above 0; expected at least one."
            )
        loss = sum(weighted[1:], start=weighted[0])
        (share * loss).backward()
        self.processes.add_gradients(self.module_.parameters())
        values = torch.stack([share * value.detach() for value in (loss, *(v for _, v in terms.values()))])
        total, *each = self.processes.add(values).tolist()
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total} in epoch {len(self.history)} "
                f"(learning_rate={self.lr}); lower learning_rate or set precision='float32'."
            )
        for name, value in zip(terms, each):
            self.history.record_batch(name, value)
        self.loss_terms_ = list(dict.fromkeys([*getattr(self, "loss_terms_", ()), *terms]))
        return {"loss": torch.tensor(total), "y_pred": output.logits}

    def fit_loop(self, *args: object, **kwargs: object) -> FineTuningNet:
        self.interrupted_ = False
        try:
            return super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:  # skorch swallows it one level up; see `fine_tune`
            stops = [callback for _, callback in self.callbacks_ if isinstance(callback, EarlyStopping)]
            self.interrupted_ = not any(callback.misses_ == callback.patience for callback in stops)
            raise


def auto_epochs(n_rows: int, batch_size: int, *, min_epochs: int, min_steps: int) -> int:
    """Epochs for `n_rows` rows: `min_epochs`, or as many more as `min_steps` optimiser steps take."""
    return max(min_epochs, math.ceil(min_steps / math.ceil(n_rows / batch_size)))


def fine_tune(
    module: TextClassifier,
    rows: TrainingRows,
    terms: Terms,
    settings: TrainingSettings,
    runtime: Runtime,
    *,
    epochs: int,
    seed: int,
    description: str = "",
) -> list[dict[str, float]]:
    """Train a module on rows, in place."""
    total = epochs * math.ceil(len(rows) / settings.batch_size)
    schedule = LinearWarmupDecay(round(settings.warmup_ratio * total), total)
    processes, device = runtime.processes, runtime.device
    callbacks: list[Any] = [("schedule", LRScheduler(LambdaLR, lr_lambda=schedule, step_every="batch"))]
    if settings.max_grad_norm is not None:
        callbacks.append(("clip", GradientNormClipping(settings.max_grad_norm)))
    if runtime.verbose and description:
        callbacks.append(("progress", ProgressLine(description, total)))
    callbacks.extend(copy.deepcopy(list(settings.callbacks)))
    net = FineTuningNet(
        module,
        terms=terms,
        total_steps=total,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=settings.weight_decay,
        optimizer__fused=device.type in ("cpu", "cuda"),
        lr=settings.learning_rate,
        max_epochs=epochs,
        batch_size=settings.batch_size,
        iterator_train=BucketedIterator,
        iterator_train__seed=seed,
        train_split=None,
        callbacks=callbacks,
        device=str(device),
        dtype=runtime.dtype,
        processes=processes,
        verbose=max(0, runtime.verbose - 1),
    )
    try:
        with isolated_generators(seed + processes.rank, device):  # every process draws dropout masks of its own
            net.fit(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(
            f"{description or 'adaptation'}: out of memory with batch_size={settings.batch_size}; set a smaller batch_size or "
            f"max_length, or take a smaller model. The device said: {error}"
        ) from error
    if net.interrupted_:
        raise KeyboardInterrupt(f"training was interrupted in epoch {len(net.history)} of {epochs}")
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    processes.copy_first([p for _, p in trained] + list(module.buffers()))
    for name, tensor in trained:  # a finite loss may have infinite gradients, the last step's unseen
        tensor.grad = None
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"{name} has values that are no number after {epochs} epochs (learning_rate={settings.learning_rate}); lower "
                "learning_rate or set precision='float32'."
            )
    module.eval()
    return _epoch_records(net)


def _epoch_records(net: FineTuningNet) -> list[dict[str, float]]:
    records = []
    for number, epoch in enumerate(net.history, start=1):
        batches = epoch["batches"]
        sizes = [b["train_batch_size"] for b in batches]
        record = {}
        for name in net.loss_terms_:  # a batch may lack a term
            if found := [(b[name], size) for b, size in zip(batches, sizes) if name in b]:
                values, weights = zip(*found)
                record[name] = float(np.average(values, weights=weights))
        records.append({"epoch": number, **record, "learning_rate": batches[-1]["event_lr"], "seconds": epoch["dur"]})
    return records
