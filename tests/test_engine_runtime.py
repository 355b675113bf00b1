"""Device, precision and seeds of a call."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from skmft._engine.runtime import (
    Runtime,
    autocast,
    draw_seed,
    has_native_bfloat16,
    isolated_generators,
    resolve_device,
    resolve_precision,
)

CPU = torch.device("cpu")


def test_resolve_device():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"device='no such' cannot be used here"):
        resolve_device("no such")


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_where_the_device_multiplies_it(monkeypatch, native, expected):
    monkeypatch.setattr("skmft._engine.runtime.has_native_bfloat16", lambda device: native)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("float32", CPU) == torch.float32
    assert resolve_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("avx512", [True, False, None])
@pytest.mark.parametrize("amx", [True, False, None])
def test_a_cpu_with_either_unit_has_native_bfloat16(monkeypatch, avx512, amx):
    """Whatever processor runs this; None stands for a torch that does not tell."""
    for name, found in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        if found is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda found=found: found, raising=False)
    assert has_native_bfloat16(CPU) == bool(avx512 or amx)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_native_bfloat16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_native_bfloat16(torch.device("cuda:0")) == expected
    assert not has_native_bfloat16(torch.device("meta"))


def test_native_bfloat16_agrees_with_the_processor_flags():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("this system does not list the flags of an x86 processor")
    assert has_native_bfloat16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_every_purpose_has_a_seed_of_its_own():
    first, other = (Runtime(CPU, torch.float32, seed) for seed in (0, 1))
    seeds = {r.derive(purpose) for r in (first, other) for purpose in ("meta", "heads", "adaptation books")}
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert first.derive("meta") == Runtime(CPU, torch.bfloat16, 0).derive("meta")
    with first.generators("heads"):
        drawn = torch.rand(3)
    with isolated_generators(first.derive("heads"), CPU):
        assert torch.equal(torch.rand(3), drawn)


def test_seeds_of_a_random_state():
    assert draw_seed(7) == draw_seed(7) == draw_seed(np.random.RandomState(7)) != draw_seed(8)
    state = np.random.get_state()[1].copy()
    assert draw_seed(None) != draw_seed(None)
    assert np.array_equal(np.random.get_state()[1], state)


def test_float32_is_not_autocast():
    """What bfloat16 does is in test_engine_bfloat16.py."""
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu") and (a @ b).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
    assert (a @ b).dtype == torch.float32


def test_isolated_generators():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draws()
    random.setstate(state[0]), np.random.set_state(state[1]), torch.set_rng_state(state[2])
    with isolated_generators(7, CPU):
        inside = torch.rand(1).item()
        draws()
    assert draws() == expected
    with isolated_generators(7, CPU):
        assert torch.rand(1).item() == inside


def test_generators_are_one_threads_at_a_time():
    """Threads that draw in seeded blocks at the same time get what each would get alone."""

    def draw(seed):
        with isolated_generators(seed, CPU):
            numbers = []
            for _ in range(20):
                numbers.append(torch.rand(()).item())
                time.sleep(0.001)  # others would get their turn
        return numbers

    before = torch.get_rng_state()
    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(4))) == alone
    assert torch.equal(torch.get_rng_state(), before)
