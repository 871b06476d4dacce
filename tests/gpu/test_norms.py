"""The norms of narrow types against float64, and what a call costs in launches and in memory."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpu.places import NEEDS_A_CARD, PLACES, Place, nothing_is_read
from gradclip.torch import clip_grad_norm_, clip_grad_value_, get_total_norm


class Counted(TorchDispatchMode):
    """Counts the operations of torch, each of which launches once or a few times."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def params_on(place: Place, count: int, size: int, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        param = torch.nn.Parameter(torch.zeros(size, dtype=dtype, device=place.device))
        param.grad = torch.randn(size, generator=generator).to(place.device, dtype)
        found.append(param)
    return found


def grads_of(params: list[torch.nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def exact(params: list[torch.nn.Parameter]) -> float:
    return float(torch.cat([g.cpu().double() for g in grads_of(params)]).norm())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_a_norm_is_that_of_float64(dtype: torch.dtype, place: Place) -> None:
    params = params_on(place, 7, 40_001, dtype)
    expected = exact(params)
    with place.turned():
        total = get_total_norm(grads_of(params))
        clipped = clip_grad_norm_(params, 1.0)
    rel = 1e-12 if dtype == torch.float64 else 1e-6
    assert float(total) == float(clipped) == pytest.approx(expected, rel=rel)
    assert exact(params) == pytest.approx(1.0, rel=max(rel, torch.finfo(dtype).eps))


@pytest.mark.parametrize("place", PLACES)
def test_float16_neither_overflows_nor_vanishes(place: Place) -> None:
    for value in (60_000.0, 6e-8):
        params = params_on(place, 2, 1000, torch.float16)
        for grad in grads_of(params):
            grad.fill_(value)
        expected = exact(params)
        with place.turned():
            total = clip_grad_norm_(params, 1e9)
        assert float(total) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_the_drop_ins_read_nothing(place: Place) -> None:
    params = params_on(place, 20, 64, torch.float32)
    limit = torch.tensor(0.5, device=place.device)
    with place.turned(), nothing_is_read(place):
        total = clip_grad_norm_(params, 1.0)
        clip_grad_norm_(params, limit)
        clip_grad_value_(params, 0.1)
    assert float(total) == pytest.approx(35.8, rel=0.1)


def test_the_operations_do_not_grow_with_the_tensors() -> None:
    (forced,) = (p.values[0] for p in PLACES if p.id == "forced")
    assert isinstance(forced, Place)
    counts = []
    for tensors in (10, 1000):
        params = params_on(forced, tensors, 4, torch.float32)
        with forced.turned(), Counted() as counted:
            clip_grad_norm_(params, 1.0)
        counts.append(sum(counted.calls.values()))
    # The norms of the tensors are stacked, after a view of each.
    assert counts[1] <= counts[0] + 990, counts


@NEEDS_A_CARD
def test_a_call_launches_no_more_kernels_than_torch() -> None:
    place = Place("cuda", torch.device("cuda"))
    params = params_on(place, 1000, 64, torch.float32)
    launched = {}
    for name, clip in (("torch", torch.nn.utils.clip_grad_norm_), ("gradclip", clip_grad_norm_)):
        clip(params, 1.0)
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            clip(params, 1.0)
            torch.cuda.synchronize()
        launched[name] = sum(event.self_device_time_total > 0 for event in profile.events() or ())
    print(f"kernels for 1,000 tensors: {launched}")
    assert launched["gradclip"] <= launched["torch"] + 8


@NEEDS_A_CARD
def test_a_call_needs_hardly_any_memory() -> None:
    place = Place("cuda", torch.device("cuda"))
    params = params_on(place, 4, 25_000_000, torch.bfloat16)
    clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    clip_grad_norm_(params, 1.0)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 10_000_000
