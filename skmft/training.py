"""The engine: one skorch net, its batches, optimiser, schedule, precision, device and progress."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochTimer, GradientNormClipping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .batches import BucketedIterator, TrainingRows
from .contrastive import WholeBatch
from .encoding import TokenizedTexts, sorted_batches
from .kernels import FastBfloat16
from .networks import PROCESS_STATE
from .parts import ALONE, MicroBatches, Processes, parts_of

_CPU_TOKENS = (
    2048  # a batch in inference; 16 rows of 128 tokens ran 10 to 20% faster than 32 (MiniLM, L2 of 1 MiB a core)
)


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is the current CUDA device where there is one, else the CPU.

    Raises
    ------
    ValueError
        If torch does not know the device or cannot use it here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device  # "cuda" is the current device, by its number
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0].rstrip('.')}. "
            "Use 'auto', 'cpu', or a device that torch sees."
        ) from error


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)
    return False


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``"auto"`` is bfloat16 where `has_native_bfloat16`, else float32."""
    if precision == "auto":
        precision = "bfloat16" if has_native_bfloat16(device) else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, on CPUs with the kernels of `FastBfloat16`; nothing at all for float32."""
    fast = device.type == "cpu" and dtype == torch.bfloat16
    with (
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        FastBfloat16() if fast else nullcontext(),
    ):
        yield


@contextmanager
def isolated_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a block; afterwards torch's, numpy's and Python's global generators are as before.

    All threads draw from the same generators, so those that would enter wait for the one that is inside.
    """
    cuda = [device.index or 0] if device.type == "cuda" else []
    with PROCESS_STATE:
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=cuda):
                torch.default_generator.manual_seed(seed)
                if cuda:
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(seed)
                yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _generator_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the same for every stage but for `learning_rate`. Names as in MetaFineTunedClassifier."""

    learning_rate: float
    batch_size: int
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float | None
    callbacks: Sequence[Callback] | None
    device: torch.device
    dtype: torch.dtype
    verbose: int = 0
    processes: Processes = ALONE
    micro_batches: MicroBatches = field(default_factory=MicroBatches)


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

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        self.bar_ = tqdm(total=self.total, desc=self.description, unit="step")

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        self.bar_.set_postfix(loss=f"{net.history[-1, 'batches', -1, 'train_loss']:.3f}", refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.bar_.close()
        del self.bar_


OUR_CALLBACKS = ("epoch_timer", "schedule", "clip", "progress")  # names that others cannot have


class FineTuningNet(NeuralNet):
    """The skorch net of every stage.

    It differs from `skorch.NeuralNet` in this: the forward pass runs under autocast; a batch may be run in parts; the
    criterion returns named terms, which go to the history; biases and norms are not decayed; an interrupt is raised,
    not swallowed.

    Parameters
    ----------
    module : torch.nn.Module
        Called with the entries of a batch that it has arguments for.
    criterion : callable
        Makes the criterion, which is called with the module's output, y and the batch, and returns a dict of scalars,
        ``"loss"`` among them.
    dtype : torch.dtype, default=torch.float32
        Type that the forward pass is autocast to.
    processes : Processes, default=ALONE
        Who trains together.
    micro_batch_size : int, optional
        Most rows of a part of a batch; no limit by default.
    """

    def __init__(
        self,
        module: nn.Module,
        *args: Any,
        criterion: Callable[[], Any],
        dtype: torch.dtype = torch.float32,
        processes: Processes = ALONE,
        micro_batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, criterion=criterion, **kwargs)
        self.dtype, self.processes, self.micro_batch_size = dtype, processes, micro_batch_size

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("epoch_timer", EpochTimer())]

    def __getstate__(self) -> dict[str, Any]:
        """Without `module`: skorch writes `module_`, the same object, so that it also loads where its device is missing."""
        state = super().__getstate__()
        del state["module"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.module = self.module_

    def initialize_optimizer(self) -> FineTuningNet:
        named = [(n, p) for n, p in self.get_all_learnable_params() if p.requires_grad]
        _, kwargs = self.get_params_for_optimizer("optimizer", named)
        groups: list[dict[str, Any]] = [
            {"params": [p for _, p in named if p.ndim > 1]},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer_ = self.optimizer([g for g in groups if g["params"]], **{"lr": self.lr, **kwargs})
        return self

    def infer(self, x: Mapping[str, torch.Tensor], **fit_params: Any) -> Any:
        device = torch.device(self.device)
        names = ("input_ids", "attention_mask", "token_type_ids", "domain")
        inputs = {name: x[name].to(device, non_blocking=True) for name in names if name in x}
        with autocast(device, self.dtype):
            return self.module_(**inputs)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Gradients and terms of the mean loss of the whole batch, added up over its parts."""
        self._set_training(True)
        device = torch.device(self.device)
        totals: dict[str, torch.Tensor] = {}
        parts = list(parts_of(batch, self.processes, self.micro_batch_size or len(batch[1])))
        contrast = getattr(self.criterion_, "contrastive_weight", 0) > 0
        wholes = self._whole_batches(batch, parts) if contrast and len(parts[0][0][1]) < len(batch[1]) else {}
        for i, ((x, y), share, _) in enumerate(parts):
            about: dict[str, Any] = {name: value.to(device) for name, value in x.items()}
            if i in wholes:
                about["whole"], state = wholes[i]
                _set_generator(device, state)  # the same dropout masks as when all rows were embedded
            y_pred = self.infer(x)
            terms = self.criterion_(y_pred, y.to(device), about)
            (share * terms["loss"]).backward()
            totals = {name: totals.get(name, 0) + share * value.detach() for name, value in terms.items()}
        self.loss_terms_ = [name for name in totals if name != "loss"]
        self.processes.stop_if_any_is_out_of_memory(device)
        self.processes.add_gradients(self.module_.parameters())
        values = self.processes.add(torch.stack(list(totals.values()))).tolist()
        for name, value in zip(totals, values):
            if name != "loss":
                self.history.record_batch(name, value)
            elif not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss became {value} in epoch {len(self.history)} "
                    f"(learning_rate={self.lr}); lower learning_rate or set precision='float32'."
                )
        whole = len(y) == len(batch[1])
        return {"loss": torch.tensor(values[list(totals).index("loss")]), "y_pred": y_pred if whole else None}

    def _whole_batches(self, batch: Any, parts: list[Any]) -> dict[int, tuple[WholeBatch, torch.Tensor]]:
        """For every part that has rows of its own, the batch that it is of, and the generator's state before it.

        All rows are embedded once more than without parts, without gradients.
        """
        device = torch.device(self.device)
        x, y = batch
        embeddings = torch.zeros(len(y), self.module_.label_head.in_features, device=device)
        states = []
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad(), autocast(device, self.dtype):
            for (inputs, _), share, place in parts:
                states.append(_generator_state(device))
                if share:
                    found = self.module_.embed(**{name: inputs[name].to(device) for name in names if name in inputs})
                    embeddings[place] = found.float()
        self.processes.stop_if_any_is_out_of_memory(device)
        self.processes.add(embeddings)
        others = (y.to(device), x["domain"].to(device), x["weight"].to(device))
        return {
            i: (WholeBatch(embeddings, *others, place, share), states[i])
            for i, (_, share, place) in enumerate(parts)
            if share
        }

    def fit_loop(self, *args: Any, **kwargs: Any) -> FineTuningNet:
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


def make_net(
    module: nn.Module,
    criterion: Callable[[], Any],
    settings: TrainingSettings,
    *,
    epochs: int,
    seed: int,
    callbacks: Sequence[Any] = (),
    micro_batch_size: int | None = None,
) -> FineTuningNet:
    """The net of a stage, not yet initialised."""
    return FineTuningNet(
        module,
        criterion=criterion,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=settings.weight_decay,
        optimizer__fused=settings.device.type in ("cpu", "cuda"),
        lr=settings.learning_rate,
        max_epochs=epochs,
        batch_size=settings.batch_size,
        iterator_train=BucketedIterator,
        iterator_train__seed=seed,
        train_split=None,
        callbacks=list(callbacks),
        device=str(settings.device),
        dtype=settings.dtype,
        processes=settings.processes,
        micro_batch_size=micro_batch_size,
        verbose=max(0, settings.verbose - 1),
    )


def fine_tune(
    module: nn.Module,
    rows: TrainingRows,
    criterion: Callable[[], Any],
    settings: TrainingSettings,
    *,
    epochs: int,
    seed: int,
    description: str = "",
    initial: Mapping[str, torch.Tensor] | None = None,
) -> FineTuningNet:
    """Train a module on rows, in place.

    Where memory runs out, training starts again from the module's initial tensors, each batch in smaller parts.

    Parameters
    ----------
    module : torch.nn.Module
    rows : TrainingRows
    criterion : callable
        Makes the criterion; see `FineTuningNet`.
    settings : TrainingSettings
    epochs : int
    seed : int
        Of the order, the redrawn columns and dropout.
    description : str
        Label of the progress bar, which shows where ``settings.verbose > 0``; none if empty.
    initial : mapping of str to Tensor, optional
        Those of the module's tensors that are held elsewhere anyway; the others are copied to the CPU first.

    Returns
    -------
    FineTuningNet
        Trained, in evaluation mode, without optimiser state, schedule and gradients.

    Raises
    ------
    torch.OutOfMemoryError
        If not even single rows fit in memory.
    KeyboardInterrupt
        If training was interrupted.
    FloatingPointError
        If the loss or a trained tensor is no number.
    """
    total = epochs * math.ceil(len(rows) / settings.batch_size)
    schedule = LinearWarmupDecay(round(settings.warmup_ratio * total), total)
    processes = settings.processes
    held = initial or {}
    start = {n: held[n] if n in held else t.detach().to("cpu", copy=True) for n, t in _trained(module)}

    def train(micro_batch_size: int) -> FineTuningNet:
        callbacks: list[Any] = [("schedule", LRScheduler(LambdaLR, lr_lambda=schedule, step_every="batch"))]
        if settings.max_grad_norm is not None:
            callbacks.append(("clip", GradientNormClipping(settings.max_grad_norm)))
        if settings.verbose and description:
            callbacks.append(("progress", ProgressLine(description, total)))
        callbacks.extend(copy.deepcopy(list(settings.callbacks or [])))
        net = make_net(
            module,
            criterion,
            settings,
            epochs=epochs,
            seed=seed,
            callbacks=callbacks,
            micro_batch_size=micro_batch_size,
        )
        # every process draws dropout masks of its own
        with isolated_generators(seed + processes.rank, settings.device), processes.failing_together(settings.device):
            net.fit(rows)
        return net

    def restore() -> None:
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, tensor in _trained(module):
                tensor.copy_(start[name])

    largest = math.ceil(min(settings.batch_size, len(rows)) / processes.size)
    what, warn = description or "adaptation", processes.rank == 0
    net = settings.micro_batches.run(train, largest, what, undo=restore, warn=warn)
    if net.interrupted_:
        raise KeyboardInterrupt(f"training was interrupted in epoch {len(net.history)} of {epochs}")
    processes.copy_first(tensor for _, tensor in _trained(module))
    for name, tensor in module.named_parameters():  # a finite loss may have infinite gradients, the last step's unseen
        if tensor.requires_grad and not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"{name} has values that are no number after {epochs} epochs (learning_rate={settings.learning_rate}); lower "
                "learning_rate or set precision='float32'."
            )
    net.optimizer_.zero_grad(set_to_none=True)
    net.optimizer_.state.clear()
    for _, callback in net.callbacks_:
        if isinstance(callback, LRScheduler):
            del callback.lr_scheduler_  # it holds the optimiser, and so the weights, once more in a pickle
    net.module_.eval()
    return net


def _trained(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What training can change: parameters that are not frozen, and buffers."""
    return [(n, p) for n, p in module.named_parameters() if p.requires_grad] + list(module.named_buffers())


def epoch_records(net: FineTuningNet) -> list[dict[str, float]]:
    """Per epoch of a trained net: each loss term averaged over rows, the last learning rate, seconds."""
    records = []
    for number, epoch in enumerate(net.history, start=1):
        batches = epoch["batches"]
        sizes = [b["train_batch_size"] for b in batches]
        record = {k: float(np.average([b[k] for b in batches], weights=sizes)) for k in net.loss_terms_}
        records.append({"epoch": number, **record, "learning_rate": batches[-1]["event_lr"], "seconds": epoch["dur"]})
    return records


@torch.inference_mode()
def run_in_batches(
    forward: Callable[..., torch.Tensor],
    texts: TokenizedTexts,
    *,
    width: int,
    max_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    description: str = "",
    columns: Mapping[str, NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """Run a forward pass over all texts, longest first, without gradients.

    Parameters
    ----------
    forward : callable
        Takes a batch's tensors, returns a tensor of shape (rows, width).
    texts : TokenizedTexts
    width : int
    max_tokens : int
        Most tokens of a batch; on a CPU at most 2,048 are taken, whose hidden states stay in its caches.
    device : torch.device
    dtype : torch.dtype
        As in `autocast`.
    description : str
        Label of a progress bar; none if empty.
    columns : mapping of str to ndarray of int, optional
        Further columns of every batch.

    Returns
    -------
    ndarray of float32, shape (n_texts, width)
        In the order of the texts.
    """
    out = np.empty((len(texts), width), dtype=np.float32)
    if device.type == "cpu":
        max_tokens = min(max_tokens, _CPU_TOKENS)
    bar = None
    if description:
        from tqdm.auto import tqdm

        bar = tqdm(desc=description, unit="text", total=len(texts))

    def run(rows: NDArray[np.int64], at_once: int) -> None:
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            batch = {name: t.to(device) for name, t in texts.batch(part).items()}
            batch.update({name: torch.from_numpy(v[part]).to(device) for name, v in (columns or {}).items()})
            out[part] = forward(**batch).float().cpu().numpy()

    micro_batches, lengths = MicroBatches(), texts.lengths
    with autocast(device, dtype):
        for rows in sorted_batches(lengths, max_tokens):
            longest = max(1, int(lengths[rows[0]]))
            micro_batches.run(partial(run, rows), len(rows), description or "inference", row_size=longest)
            if bar is not None:
                bar.update(len(rows))
    if bar is not None:
        bar.close()
    return out
