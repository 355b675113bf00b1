"""The engine: one skorch net, its batches, optimiser, schedule, precision, device and progress."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer, GradientNormClipping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.overrides import TorchFunctionMode

from .encoding import TokenizedTexts, bucketed_batches, sorted_batches

Redraw = Callable[[Sequence[NDArray[np.int64]], np.random.Generator], NDArray[Any]]


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
        torch.empty(0, device=device)
        return torch.device(device)
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


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to `dtype`, or none at all for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


class Float32Attention(TorchFunctionMode):
    """Runs fused attention in float32 inside a block.

    On CPU torch's fused attention is trained 2.5 to 6 times as fast in float32 as in bfloat16 (its bfloat16 backward
    pass is slow; measured with torch 2.13 for 24 to 128 tokens), while matrix products gain from bfloat16.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, *others = args
        with torch.autocast("cpu", enabled=False):
            out = func(query.float(), *(t.float() if t.is_floating_point() else t for t in others), **_float(kwargs))
        return out.to(query.dtype)


def _float(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    mask = (kwargs or {}).get("attn_mask")
    if mask is None or not mask.is_floating_point():
        return kwargs or {}
    return {**(kwargs or {}), "attn_mask": mask.float()}


@contextmanager
def isolated_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a block; afterwards torch's, numpy's and Python's global generators are as before."""
    cuda = [device.index or 0] if device.type == "cuda" else []
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


class TrainingRows(torch.utils.data.Dataset):
    """Tokenized rows with their targets and further columns, for `FineTuningNet`.

    Parameters
    ----------
    texts : TokenizedTexts
    y : ndarray of int, shape (n_rows,)
    weight : ndarray, shape (n_rows,)
        Loss weights of mean 1.
    columns : mapping of str to ndarray of int, optional
        Further columns of every batch.
    redraw : mapping of str to callable, optional
        Columns drawn anew each epoch by ``redraw[name](batches, rng)``.
    """

    def __init__(
        self,
        texts: TokenizedTexts,
        y: NDArray[np.int64],
        weight: NDArray[np.float64],
        columns: Mapping[str, NDArray[np.int64]] | None = None,
        redraw: Mapping[str, Redraw] | None = None,
    ) -> None:
        self.texts, self.y = texts, y
        self.columns: dict[str, NDArray[Any]] = {"weight": weight.astype(np.float32), **(columns or {})}
        self.redraw = dict(redraw or {})

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = np.array([i])
        return self.texts.batch(rows), torch.from_numpy(self.y[rows])


class BucketedIterator:
    """The net's ``iterator_train``: length-bucketed, shuffled batches, padded to their longest row.

    The order is a function of `seed` and the epoch alone; redrawn columns have a generator of their own, so that
    they change no order.
    """

    def __init__(self, dataset: TrainingRows, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        data = self.dataset
        order = np.random.default_rng([self.seed, self.epoch, 0])
        draws = np.random.default_rng([self.seed, self.epoch, 1])
        self.epoch += 1
        batches = bucketed_batches(data.texts.lengths, self.batch_size, order)
        columns: dict[str, NDArray[Any]] = dict(data.columns)
        columns.update({name: draw(batches, draws) for name, draw in data.redraw.items()})
        for rows in batches:
            batch = data.texts.batch(rows)
            batch.update({name: torch.from_numpy(v[rows]) for name, v in columns.items()})
            yield batch, torch.from_numpy(data.y[rows])


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


class FineTuningNet(NeuralNet):
    """The skorch net of every stage.

    It differs from `skorch.NeuralNet` in this: the forward pass runs under autocast; the criterion returns named
    terms, which go to the history; biases and norms are not decayed; an interrupt is raised, not swallowed.

    Parameters
    ----------
    module : torch.nn.Module
        Called with the entries of a batch that it has arguments for.
    criterion : callable
        Makes the criterion, which is called with the module's output, y and the batch, and returns a dict of scalars,
        ``"loss"`` among them.
    dtype : torch.dtype, default=torch.float32
        Type that the forward pass is autocast to.
    """

    def __init__(
        self,
        module: nn.Module,
        *args: Any,
        criterion: Callable[[], Any],
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, *args, criterion=criterion, **kwargs)
        self.dtype = dtype

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("epoch_timer", EpochTimer())]

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
        on_cpu = device.type == "cpu" and self.dtype == torch.bfloat16
        with autocast(device, self.dtype), Float32Attention() if on_cpu else nullcontext():
            return self.module_(**inputs)

    def get_loss(self, y_pred: Any, y_true: torch.Tensor, X: Any = None, training: bool = False) -> torch.Tensor:
        batch = {name: value.to(self.device) for name, value in X.items()}
        terms = self.criterion_(y_pred, y_true.to(self.device), batch)
        for name, value in terms.items():
            if name != "loss":
                self.history.record_batch(name, value.item())
        if not torch.isfinite(terms["loss"]):
            raise FloatingPointError(
                f"the loss became {terms['loss'].item()} in epoch {len(self.history)} "
                f"(learning_rate={self.lr}); lower learning_rate or set precision='float32'."
            )
        return terms["loss"]

    def fit_loop(self, *args: Any, **kwargs: Any) -> FineTuningNet:
        self.interrupted_ = False
        try:
            return super().fit_loop(*args, **kwargs)
        except KeyboardInterrupt:  # skorch swallows it one level up; see `fine_tune`
            self.interrupted_ = True
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
) -> FineTuningNet:
    """Train a module on rows, in place.

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

    Returns
    -------
    FineTuningNet
        Trained, in evaluation mode, without optimiser state and gradients.

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted.
    """
    total = epochs * math.ceil(len(rows) / settings.batch_size)
    schedule = LinearWarmupDecay(round(settings.warmup_ratio * total), total)
    callbacks: list[Any] = [("schedule", LRScheduler(LambdaLR, lr_lambda=schedule, step_every="batch"))]
    if settings.max_grad_norm is not None:
        callbacks.append(("clip", GradientNormClipping(settings.max_grad_norm)))
    if settings.verbose and description:
        callbacks.append(("progress", ProgressLine(description, total)))
    callbacks.extend(copy.deepcopy(list(settings.callbacks or [])))
    net = make_net(module, criterion, settings, epochs=epochs, seed=seed, callbacks=callbacks)
    with isolated_generators(seed, settings.device):
        net.fit(rows)
    if net.interrupted_:
        raise KeyboardInterrupt(f"training was interrupted in epoch {len(net.history)} of {epochs}")
    net.optimizer_.zero_grad(set_to_none=True)
    net.optimizer_.state.clear()
    net.module_.eval()
    return net


def epoch_records(net: FineTuningNet) -> list[dict[str, float]]:
    """Per epoch of a trained net: each loss term averaged over rows, the last learning rate, seconds."""
    records = []
    for number, epoch in enumerate(net.history, start=1):
        batches = epoch["batches"]
        sizes = [b["train_batch_size"] for b in batches]
        terms = [k for k in batches[0] if not k.startswith(("train_", "event_"))]
        record = {k: float(np.average([b[k] for b in batches], weights=sizes)) for k in terms}
        records.append({"epoch": number, **record, "learning_rate": batches[-1]["event_lr"], "seconds": epoch["dur"]})
    return records


@torch.inference_mode()
def run_in_batches(
    forward: Callable[..., torch.Tensor],
    texts: TokenizedTexts,
    *,
    width: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    description: str = "",
    columns: Mapping[str, NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """Run a forward pass over all texts, longest first.

    Parameters
    ----------
    forward : callable
        Takes a batch's tensors, returns a tensor of shape (rows, width).
    texts : TokenizedTexts
    width, batch_size : int
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
    batches: Iterable[NDArray[np.int64]] = sorted_batches(texts.lengths, batch_size)
    if description:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc=description, unit="batch", total=math.ceil(len(texts) / batch_size))
    with autocast(device, dtype):
        for rows in batches:
            batch = {name: t.to(device) for name, t in texts.batch(rows).items()}
            batch.update({name: torch.from_numpy(v[rows]).to(device) for name, v in (columns or {}).items()})
            out[rows] = forward(**batch).float().cpu().numpy()
    return out
