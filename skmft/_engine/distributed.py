"""Training in several processes: each batch is shared among them, and their gradients add up.

A batch of n rows is cut into a part of n_p rows for each process. The loss of a part, a mean over its rows, is scaled by its
share n_p / n, so the gradients of all parts add up to the gradient of the mean over the whole batch, however unequal the parts.

accelerate starts the process group. What happens inside it is torch.distributed's own: accelerate's wrappers of the same calls
need its state object in every process, and their result cannot be pickled with the net.
"""

from __future__ import annotations

import atexit
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")
Rows = tuple[dict[str, torch.Tensor], torch.Tensor]


def _leave_gloo() -> None:
    """Before Python exits; gloo's threads abort the process if they outlive it (pytorch/pytorch issue 190489)."""
    if distributed.is_initialized() and "gloo" in distributed.get_backend():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The processes that train together: the number of this one, from 0, and how many there are. By default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join those that ``accelerate launch`` or torchrun started; without either, stay alone."""
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

    def require_same(self, value: object, message: str) -> None:
        """Raise a ValueError in all processes unless they all have this value."""
        if self.size == 1:
            return
        values: list[bytes | None] = [None] * self.size
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
        if gradients:
            total = self.add(torch.cat([g.reshape(-1) for g in gradients]))
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients])):
                gradient.copy_(part.view_as(gradient))

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by the first process's, which differ from them, if at all, by the hardware's rounding."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), src=0)

    def share_of(self, batch: Rows) -> tuple[Rows, float]:
        """The part of a batch that is for this process, and its share of the rows.

        The part has no columns that are padding in all of its rows. A process that is left without rows gets one row, with a
        share of 0.
        """
        inputs, y = batch
        n = len(y)
        start, stop = (n * rank // self.size for rank in (self.rank, self.rank + 1))
        share = (stop - start) / n
        if share == 1:
            return batch, 1.0
        stop = max(stop, start + 1)
        longest = int(inputs["attention_mask"][start:stop].sum(1).max())
        width = inputs["attention_mask"].shape[1]
        tokens = ("input_ids", "attention_mask", "token_type_ids")
        part = {
            n: v[start:stop, :longest] if n in tokens and longest < width else v[start:stop] for n, v in inputs.items()
        }
        return (part, y[start:stop]), share


ALONE = Processes()
