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
from tqdm.auto import tqdm

from .bfloat16 import FastBfloat16
from .distributed import ALONE, Processes
from .encoder import PROCESS_STATE

Device = str | torch.device


@dataclass(frozen=True)
class Runtime:
    """Where a call computes, in which precision (`dtype`), from which seed, in which processes; only the first is verbose."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    verbose: int = 0
    processes: Processes = ALONE

    @classmethod
    def start(cls, device: Device, precision: str, seed: int, verbose: int = 0, distributed: bool = False) -> Runtime:
        """Begin a call; with `distributed` all processes make it together, else each on its own."""
        processes = Processes.join(str(device)) if distributed else ALONE
        found, shown = resolve_device(device), verbose if processes.rank == 0 else 0
        return cls(found, resolve_precision(precision, found), processes.first(seed), shown, processes)

    def derive(self, purpose: str) -> int:
        """A seed of its own for every purpose, so that one stage's draws do not shift another's."""
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def generators(self, purpose: str) -> AbstractContextManager[None]:
        """A block in which torch draws from this purpose's seed."""
        return isolated_generators(self.derive(purpose), self.device)

    def bar(self, description: str, total: int, unit: str) -> AbstractContextManager[tqdm | None]:
        """A progress bar where the call is verbose and has a description."""
        return tqdm(desc=description, total=total, unit=unit) if self.verbose and description else nullcontext()


def draw_seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed that all others of a fit derive from."""
    if random_state is None:  # NumPy's global generator is not ours to advance
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(2**31 - 1))


def resolve_device(device: Device) -> torch.device:
    """``"auto"`` is the current CUDA device where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device  # "cuda" is the current device, by its number
    except (RuntimeError, AssertionError, ValueError) as error:
        found = f"device={device!r} cannot be used here: {str(error).splitlines()[0].rstrip('.')}"
        raise ValueError(f"{found}. Use 'auto', 'cpu', or a device that torch sees.") from error


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``"auto"`` is bfloat16 where `has_native_bfloat16`, else float32."""
    low = has_native_bfloat16(device) if precision == "auto" else precision == "bfloat16"
    return torch.bfloat16 if low else torch.float32


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype`, on CPUs with the attention and dropout of `FastBfloat16`; nothing at all for float32."""
    low = dtype != torch.float32
    fast = FastBfloat16() if low and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=dtype, enabled=low), fast:
        yield


@contextmanager
def isolated_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a block, one thread at a time; then torch's, numpy's and Python's generators are as before."""
    cuda = [device.index or 0] if device.type == "cuda" else []
    with PROCESS_STATE, torch.random.fork_rng(devices=cuda):
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
