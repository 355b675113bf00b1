"""One training: the skorch net, its optimiser, schedule, precision, device and progress. It knows no loss by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochTimer, GradientNormClipping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .._typing import Batch, Params, Record
from .batches import BucketedIterator, TrainingRows
from .distributed import Rows
from .inference import telling_what_to_set
from .model import ModelOutput, TextClassifier
from .runtime import Runtime, autocast, isolated_generators
from .tokens import TOKENS

Term = torch.Tensor | tuple[float, torch.Tensor]  # a loss term, or one with its weight; a weight of 0 only records it
Terms = Callable[[TextClassifier, ModelOutput, Batch], Mapping[str, Term]]

_MEND = "(learning_rate={}); lower learning_rate or set precision='float32'."
OUR_CALLBACKS = ("epoch_timer", "schedule", "clip")  # names that others cannot have


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; names as in MetaFineTunedClassifier."""

    learning_rate: float
    batch_size: int
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float | None = 1.0
    callbacks: Sequence[Any] = ()


def warmup_decay(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of the learning rate at a step: from 0 up to 1 over the warm-up, then linearly down to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


class FineTuningNet(NeuralNet):
    """The skorch net of every stage.

    The forward pass runs under autocast; the loss is the weighted sum of the named terms that ``terms(model, output, batch)``
    returns, which the history records; biases and norms do not decay; several processes may share a batch. A batch holds
    tokens, ``"y"``, ``"weight"``, the further columns, and ``"progress"``, the share of the `steps` that is done.
    """

    def __init__(self, *args: object, terms: Terms, steps: int, runtime: Runtime, bar: Any, **kwargs: object) -> None:
        super().__init__(*args, criterion=nn.Identity, device=str(runtime.device), **kwargs)
        self.terms, self.steps, self.runtime, self.bar = terms, steps, runtime, bar
        self.done_, self.loss_terms_ = 0, dict[str, None]()

    _default_callbacks: list = []

    def get_params_for_optimizer(self, prefix: str, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Any:
        """As skorch has it, but what has one dimension, biases and norms, does not decay, whatever a head calls it."""
        named = list(named_parameters)
        _, kwargs = super().get_params_for_optimizer(prefix, named)
        vectors = {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0}
        return ([vectors, {"params": [p for _, p in named if p.ndim > 1]}],), kwargs

    def infer(self, x: Mapping[str, torch.Tensor], **fit_params: object) -> ModelOutput:
        with autocast(self.runtime.device, self.runtime.dtype):
            return self.module_(**{name: x[name] for name in TOKENS if name in x})

    def train_step_single(self, batch: Rows, **fit_params: object) -> Params:
        """Gradients and terms of the mean loss of the batch, or of this process's part of it."""
        self._set_training(True)
        processes = self.runtime.processes
        (x, y), share = processes.share_of(batch)
        here = {name: value.to(self.device, non_blocking=True) for name, value in {**x, "y": y}.items()}
        output = self.infer(here)
        found = self.terms(self.module_, output, {**here, "progress": self.done_ / self.steps})
        self.done_ += 1
        terms = {name: term if isinstance(term, tuple) else (1.0, term) for name, term in found.items()}
        weighted = [weight * value for weight, value in terms.values() if weight]
        if not weighted:
            raise ValueError(f"the recipe's terms {sorted(terms)} hold none of a weight above 0; expected one.")
        loss = sum(weighted[1:], start=weighted[0])
        (share * loss).backward()
        processes.add_gradients(self.module_.parameters())
        values = torch.stack([share * value.detach() for value in (loss, *(v for _, v in terms.values()))])
        total, *each = processes.add(values).tolist()
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss became {total} in epoch {len(self.history)} {_MEND.format(self.lr)}")
        for name, value in zip(terms, each):
            self.history.record_batch(name, value)
        self.loss_terms_ |= dict.fromkeys(terms)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{total:.3f}", refresh=False)
            self.bar.update()
        return {"loss": torch.tensor(total), "y_pred": output.logits}


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
) -> list[Record]:
    """Train a module on rows, in place."""
    total = epochs * math.ceil(len(rows) / settings.batch_size)
    schedule = partial(warmup_decay, warmup_steps=round(settings.warmup_ratio * total), total_steps=total)
    by_schedule = LRScheduler(LambdaLR, lr_lambda=schedule, step_every="batch")
    callbacks: list[Any] = [("epoch_timer", EpochTimer()), ("schedule", by_schedule)]
    if settings.max_grad_norm is not None:
        callbacks.append(("clip", GradientNormClipping(settings.max_grad_norm)))
    callbacks.extend(copy.deepcopy(list(settings.callbacks)))
    processes = runtime.processes
    # every process draws dropout masks of its own
    with runtime.bar(description, total, "step") as bar, isolated_generators(seed + processes.rank, runtime.device):
        net = FineTuningNet(
            module,
            terms=terms,
            steps=total,
            runtime=runtime,
            bar=bar,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=settings.weight_decay,
            optimizer__fused=runtime.device.type in ("cpu", "cuda"),
            lr=settings.learning_rate,
            max_epochs=epochs,
            batch_size=settings.batch_size,
            iterator_train=BucketedIterator,
            iterator_train__seed=seed,
            train_split=None,
            callbacks=callbacks,
            verbose=max(0, runtime.verbose - 1),
        )
        where = f"{description or 'adaptation'}: out of memory with batch_size={settings.batch_size}"
        try:
            with telling_what_to_set(where, "set a smaller batch_size or max_length, or take a smaller model"):
                net.initialize().notify("on_train_begin", X=rows, y=None)
                net.fit_loop(rows)
        except KeyboardInterrupt:  # by the user, or by skorch's EarlyStopping
            stops = [callback for _, callback in net.callbacks_ if isinstance(callback, EarlyStopping)]
            if not any(callback.misses_ == callback.patience for callback in stops):
                begun = len(net.history or ())
                raise KeyboardInterrupt(f"training was interrupted in epoch {begun} of {epochs}") from None
        net.notify("on_train_end", X=rows, y=None)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    processes.copy_first([p for _, p in trained] + list(module.buffers()))
    for name, tensor in trained:  # a finite loss may have infinite gradients, the last step's unseen
        tensor.grad = None
        if not torch.isfinite(tensor).all():
            found = f"{name} has values that are no number after {epochs} epochs"
            raise FloatingPointError(f"{found} {_MEND.format(settings.learning_rate)}")
    module.eval()
    return [_record(epoch, net.loss_terms_) for epoch in net.history]


def _record(epoch: Params, terms: Iterable[str]) -> Record:
    """An epoch's terms, as means over its rows; a batch may lack a term."""
    record = {"epoch": epoch["epoch"]}
    for name in terms:
        if found := [(batch[name], batch["train_batch_size"]) for batch in epoch["batches"] if name in batch]:
            values, sizes = zip(*found)
            record[name] = float(np.average(values, weights=sizes))
    return {**record, "learning_rate": epoch["batches"][-1]["event_lr"], "seconds": epoch["dur"]}
