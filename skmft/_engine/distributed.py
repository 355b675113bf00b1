"""Training in several processes: each batch is shared among them, and their gradients add up.

The loss of a part of a batch, a mean over its rows, is scaled by its share of the batch, so that all parts' gradients add up to
that of the whole. accelerate starts the process group; the rest is torch's own.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from .encoder import need
from .tokens import TOKENS

T = TypeVar("T")
Rows = tuple[dict[str, torch.Tensor], torch.Tensor]


def _has_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _leave_gloo() -> None:
    """Before Python exits; gloo's threads abort the process if they outlive it (pytorch/pytorch issue 190489)."""
    if _has_group() and "gloo" in distributed.get_backend():
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """The number of this process, from 0, and how many train together. By default it is alone."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join those that ``accelerate launch`` or torchrun started; without either, stay alone."""
        accelerate = need("accelerate", "distributed", "distributed=True")
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and not _has_group():
            # without cpu=True accelerate takes a process without CUDA for one that is alone
            accelerate.PartialState(cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()))
            atexit.register(_leave_gloo)
            if not _has_group():
                found = f"distributed=True: WORLD_SIZE={started}, but accelerate started no process group, being set up for one"
                raise RuntimeError(
                    f"{found}; make no PartialState or Accelerator before fit, or one for all (cpu=True)."
                )
        return cls(distributed.get_rank(), distributed.get_world_size()) if _has_group() else cls()

    def first(self, value: T) -> T:
        """The first process's value; all have to call it."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def require_same(self, value: object, message: str) -> None:
        """Raise a ValueError in all processes unless they all have this value."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        if any(other != value for other in values):
            raise ValueError(message)

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by the sum of all processes' tensors."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def add_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Replace every gradient by the sum of all processes' gradients."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size > 1 and gradients:
            total = self.add(torch.cat([g.reshape(-1) for g in gradients]))
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients])):
                gradient.copy_(part.view_as(gradient))

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by the first process's, which differ from them, if at all, by the hardware's rounding."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor.detach(), src=0)

    def share_of(self, batch: Rows) -> tuple[Rows, float]:
        """The part of a batch that is for this process, without columns that are all padding, and its share of the rows.

        A process that is left without rows gets one row, with a share of 0.
        """
        if self.size == 1:
            return batch, 1.0
        inputs, y = batch
        start, stop = (len(y) * rank // self.size for rank in (self.rank, self.rank + 1))
        part = slice(start, max(stop, start + 1))
        longest = int(inputs["attention_mask"][part].sum(1).max())
        own = {name: v[part, :longest] if name in TOKENS else v[part] for name, v in inputs.items()}
        return (own, y[part]), (stop - start) / len(y)


ALONE = Processes()
