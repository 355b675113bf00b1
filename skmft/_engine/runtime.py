"""Device, precision and seeds of one call."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import check_random_state

from .bfloat16 import FastBfloat16
from .distributed import ALONE, Processes
from .encoder import PROCESS_STATE


@dataclass(frozen=True)
class Runtime:
    """Where a call computes, in which precision (`dtype`), from which seed, and which processes take part.

    `verbose` is 0 in every process but the first.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int
    verbose: int = 0
    processes: Processes = ALONE

    @classmethod
    def start(
        cls,
        device: str | torch.device,
        precision: str,
        seed: int,
        *,
        verbose: int = 0,
        distributed: bool = False,
    ) -> Runtime:
        """Begin a call; with `distributed` all processes make it together, else each on its own."""
        processes = Processes.join(str(device)) if distributed else ALONE
        found = resolve_device(device)
        shown = verbose if processes.rank == 0 else 0
        return cls(found, resolve_precision(precision, found), processes.first(seed), shown, processes)

    def derive(self, purpose: str) -> int:
        """A seed of its own for every purpose, so that one stage's draws do not shift another's."""
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def generators(self, purpose: str) -> AbstractContextManager[None]:
        """A block in which torch draws from this purpose's seed; see `isolated_generators`."""
        return isolated_generators(self.derive(purpose), self.device)


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed that all others of a fit derive from."""
    if random_state is None:  # NumPy's global generator is not ours to advance
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(2**31 - 1))


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the current CUDA device where there is one, else the CPU."""
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
    """Autocast to `dtype`, on CPUs with the faster attention and dropout of `FastBfloat16`; nothing at all for float32."""
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
