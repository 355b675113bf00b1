"""A batch in parts: over the processes that train together and, where memory is short, one after the other.

A batch of n rows is cut into parts of n_p rows, and the loss of each part, a mean over its rows, is scaled by its share
n_p / n. The gradients of all parts then add up to the gradient of the mean over the whole batch, whoever computes them
and when, and however unequal the parts are.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]

_BUCKET = 1 << 23  # gradients that are sent at once: 32 MiB in float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's error, or the untyped ones of CPUs, other devices and CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


class OutOfMemoryElsewhere(torch.OutOfMemoryError):
    """Another of the processes that train together ran out of memory."""


def _leave_gloo() -> None:
    """Before Python exits; gloo's threads abort the process if they outlive it (pytorch/pytorch issue 190489)."""
    if distributed.is_initialized() and "gloo" in distributed.get_backend():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The processes that train together; by default this one alone.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join those that ``accelerate launch`` or torchrun started; without either, stay alone.

        Raises
        ------
        ImportError
            Without the package accelerate (extra ``skmft[distributed]``).
        RuntimeError
            If several processes were started that cannot be joined.
        """
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError(
                "distributed=True needs the package accelerate: pip install 'skmft[distributed]', or set distributed=False."
            ) from error
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and not (distributed.is_available() and distributed.is_initialized()):
            # without cpu=True accelerate takes a process without CUDA for one that is alone
            PartialState(cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()))
            atexit.register(_leave_gloo)
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        if started > 1:
            raise RuntimeError(
                f"distributed=True: WORLD_SIZE={started}, but accelerate started no process group, because it was set up "
                "for one process before; make no PartialState or Accelerator before fit, or one for all processes "
                "(cpu=True on CPUs)."
            )
        return cls()

    def first(self, value: T) -> T:
        """The first process's value; all have to call it."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def require_same(self, value: Any, message: str) -> None:
        """Raise a ValueError in all processes unless they all have this value."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, pickle.dumps(value))
        if len(set(values)) > 1:
            raise ValueError(message)

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by the sum of all processes' tensors."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace every gradient by the sum of all processes' gradients."""
        gradients = [p.grad for p in parameters if p.grad is not None] if self.size > 1 else []
        buckets: list[list[torch.Tensor]] = []
        room = 0
        for gradient in gradients:
            room -= gradient.numel()
            if room < 0:
                buckets.append([])
                room = _BUCKET - gradient.numel()
            buckets[-1].append(gradient)
        for bucket in buckets:
            total = self.add(torch.cat([g.reshape(-1) for g in bucket]))
            for gradient, part in zip(bucket, total.split([g.numel() for g in bucket])):
                gradient.copy_(part.view_as(gradient))

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by the first process's, which differ from them, if at all, by the hardware's rounding."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def stop_if_any_is_out_of_memory(self, device: torch.device, here: bool = False) -> None:
        """Ask, or tell, the others whether memory ran out; all have to call it."""
        if self.size > 1 and self.add(torch.tensor([float(here)], device=device)).item() and not here:
            raise OutOfMemoryElsewhere("another process ran out of memory")

    @contextmanager
    def failing_together(self, device: torch.device) -> Iterator[None]:
        """A block that ends in an out-of-memory error in all processes if it does in one.

        One that runs out of memory says so where the others ask next: inside the block, before gradients are added up
        (where they would wait for it in vain), or at its end.
        """
        try:
            yield
            self.stop_if_any_is_out_of_memory(device)
        except RuntimeError as error:
            if is_out_of_memory(error) and not isinstance(error, OutOfMemoryElsewhere):
                traceback.clear_frames(error.__traceback__)  # their tensors fill the device
                self.stop_if_any_is_out_of_memory(device, here=True)
            raise


ALONE = Processes()


def parts_of(batch: Batch, processes: Processes, rows: int) -> Iterator[tuple[Batch, float, slice]]:
    """Parts of a batch that are for one of the processes.

    Parameters
    ----------
    batch : tuple of dict of str to Tensor and Tensor
        The inputs and y of the whole batch, the same in all processes.
    processes : Processes
    rows : int
        Most rows of a part.

    Yields
    ------
    part : tuple of dict of str to Tensor and Tensor
        Without columns that are padding in all of its rows.
    share : float
        Its share of the batch's rows. A process that is left without rows gets one row, with a share of 0.
    place : slice
        Its rows in the batch.
    """
    inputs, y = batch
    n = len(y)
    start, stop = (n * r // processes.size for r in (processes.rank, processes.rank + 1))
    idle = start == stop
    if idle:
        start, stop = 0, 1
    for a in range(start, stop, rows):
        b = min(a + rows, stop)
        share = 0.0 if idle else (b - a) / n
        if b - a == n:
            yield batch, share, slice(0, n)
            return
        longest = int(inputs["attention_mask"][a:b].sum(1).max())
        part = {name: v[a:b, :longest] if v.ndim > 1 else v[a:b] for name, v in inputs.items()}
        yield (part, y[a:b]), share, slice(a, b)


class MicroBatches:
    """How many rows fit in memory at a time; halved when memory runs out, and remembered."""

    def __init__(self) -> None:
        self.limit: int | None = None  # rows, or tokens

    def run(
        self,
        attempt: Callable[[int], T],
        rows: int,
        what: str,
        row_size: int = 1,
        undo: Callable[[], None] = lambda: None,
        warn: bool = True,
    ) -> T:
        """Call ``attempt(rows)``, with half the rows after every out-of-memory error, and warn once of what was done.

        Parameters
        ----------
        attempt : callable
            Takes the most rows to hold at a time.
        rows : int
            For the first attempt, unless an earlier `run` found that so many do not fit.
        what : str
            What is run; for the messages.
        row_size : int
            Of a row of this call, in the unit that is remembered: one row, or its tokens.
        undo : callable
            Brings back what a failed attempt has changed.
        warn : bool

        Raises
        ------
        torch.OutOfMemoryError
            If one row at a time is too much.
        """
        first = current = rows if self.limit is None else min(rows, max(1, self.limit // row_size))
        while True:
            try:
                result = attempt(current)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if current == 1:
                    raise torch.OutOfMemoryError(
                        f"{what}: out of memory even with one row at a time, whatever batch_size is; lower max_length, or "
                        f"take a smaller model. The device said: {error}"
                    ) from error
            # here the error is gone, and with it its traceback, whose frames hold tensors
            current = (current + 1) // 2
            undo()
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        if current < first:
            self.limit = current * row_size
            if warn:
                warnings.warn(
                    f"{what}: out of memory with {first} rows at a time, so it was started again with {current} rows "
                    "at a time. The result is the same (training accumulates the gradients of the whole batch), only slower; "
                    "a smaller batch_size or max_length needs less memory.",
                    UserWarning,
                    stacklevel=3,
                )
        return result
