"""The promises of the design, each with its number: read this file to know what to rely on."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gradclip.numpy
import gradclip.torch
import oracle
from conftest import OnPath
from gradclip import NonFiniteError, PolicyError, by_name, by_norm, by_value, floor, kernel
from gradclip.torch import Clipper, clip_grad_norm_, get_total_norm
from grads import grad_of

HALVES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d).removeprefix("torch."))


def _param(grad: Tensor) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    param.grad = grad
    return param


def _bits(params: list[torch.nn.Parameter]) -> list[bytes]:
    grads = [p.grad.contiguous() for p in params if p.grad is not None]
    return [grad.view(torch.uint8).numpy().tobytes() for grad in grads]


def _wide(params: list[torch.nn.Parameter]) -> list[oracle.Array]:
    return [p.grad.double().numpy() for p in params if p.grad is not None]


def _random(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(37, 11), (11,), (1,), (5, 3, 2)]
    draws = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [_param((draw * scale).to(dtype)) for draw in draws]


# ---- 1. exact at the limit -----------------------------------------------------------------


@every_dtype
def test_promise_1_at_or_under_the_limit_no_bit_changes(dtype: torch.dtype, path: str) -> None:
    for seed in range(20):
        params = _random(dtype, seed)
        before = _bits(params)
        norm = float(Clipper(params, None).clip_().total_norm)
        for limit in (norm, math.nextafter(norm, math.inf), norm * 1.5):
            assert not bool(Clipper(params, by_norm(limit)).clip_().clipped)
            clip_grad_norm_(params, limit)
        assert _bits(params) == before, (path, seed)


@every_dtype
@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_promise_1_after_clipping_the_norm_is_at_most_the_limit(
    dtype: torch.dtype, order: float, path: str
) -> None:
    room = 1 + 4 * torch.finfo(dtype).eps
    for seed in range(40):
        for limit in (1.0, 0.1 + seed / 7):
            for clip in (_by_clipper, _by_drop_in):
                params = _random(dtype, seed, scale=3.0)
                clip(params, limit, order)
                assert oracle.norm(_wide(params), order) <= limit * room, (path, seed, limit)


def _by_clipper(params: list[torch.nn.Parameter], limit: float, order: float) -> None:
    Clipper(params, by_norm(limit, order)).clip_()


def _by_drop_in(params: list[torch.nn.Parameter], limit: float, order: float) -> None:
    clip_grad_norm_(params, limit, order)


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_promise_1_holds_for_numpy(order: float) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        for seed in range(20):
            random = np.random.default_rng(seed)
            grads = [(random.standard_normal(s) * 3).astype(dtype) for s in ((9, 8), (4,), (1,))]
            clipped, _, result = gradclip.numpy.clip(grads, by_norm(0.7, order))
            left = oracle.norm([oracle.wide(c) for c in clipped], order)
            assert left <= 0.7 * (1 + 4 * np.finfo(dtype).eps)
            same, _, _ = gradclip.numpy.clip(grads, by_norm(float(result.total_norm), order))
            assert all(a is b for a, b in zip(same, grads, strict=True))


# ---- 2. no finite gradient is destroyed ----------------------------------------------------


def _relative_error(count: int) -> tuple[float, float]:
    """Return how far our norm and torch's are from `math.fsum` on the same float32 values."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, generator=generator)
    pieces = list(values.tensor_split(148))
    squares = (values[i : i + (1 << 20)].double().square() for i in range(0, count, 1 << 20))
    exact = math.sqrt(math.fsum(x for chunk in squares for x in chunk.tolist()))
    ours = float(get_total_norm(pieces))
    theirs = float(torch.nn.utils.get_total_norm(pieces))
    return abs(ours - exact) / exact, abs(theirs - exact) / exact


def test_promise_2_the_norm_of_4_million_values(path: str) -> None:
    ours, theirs = _relative_error(4_000_000)
    assert ours <= 1e-7, path
    assert ours <= theirs


@pytest.mark.slow
def test_promise_2_the_norm_of_124_million_values(path: str) -> None:
    ours, theirs = _relative_error(124_439_808)
    print(f"124 M float32 on the {path} path: relative error {ours:.3g}, torch {theirs:.3g}")
    assert ours <= 1e-6
    assert theirs > ours


def test_promise_2_a_finite_1e25_has_a_finite_norm(path: str) -> None:
    param = _param(torch.full((1000,), 1e25))
    result = Clipper([param], "norm:1").clip_()
    assert float(result.total_norm) == pytest.approx(float(np.float32(1e25)) * math.sqrt(1000))
    assert not bool(result.skipped)
    np.testing.assert_allclose(grad_of(param), np.full(1000, 1000**-0.5), rtol=1e-6, err_msg=path)


def test_promise_2_70_thousand_halves_of_300(path: str) -> None:
    param = _param(torch.full((70_000,), 300.0, dtype=torch.float16))
    result = Clipper([param], "norm:1000").clip_()
    assert float(result.total_norm) == pytest.approx(300 * math.sqrt(70_000), rel=1e-12)
    left = oracle.norm(_wide([param]))
    assert 1000 * (1 - 2**-10) <= left <= 1000 * (1 + 4 * 2**-10), path


@pytest.mark.parametrize("size", [1e-320, 1e-200, 2e200, 1e300])
def test_promise_2_all_of_float64_has_a_norm(size: float, path: str) -> None:
    param = _param(torch.tensor([3 * size, -4 * size], dtype=torch.float64))
    result = Clipper([param], by_norm(2.5 * size)).clip_()
    grain = 2.0**-1074 / size  # how fine the numbers are down there
    assert float(result.total_norm) == pytest.approx(5 * size, rel=1e-15 + 2 * grain), path
    expected = [1.5 * size, -2 * size]
    np.testing.assert_allclose(grad_of(param), expected, rtol=1e-15 + 2 * grain)


# ---- 3. non-finite is a decision -----------------------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_promise_3_what_is_not_finite_is_a_decision(bad: float, path: str) -> None:
    def gradients() -> list[tuple[str, torch.nn.Parameter]]:
        return [("good", _param(torch.tensor([3.0, 4.0]))), ("bad", _param(torch.tensor([bad, 1])))]

    def values(params: list[tuple[str, torch.nn.Parameter]]) -> list[list[float]]:
        return [p.grad.tolist() for _, p in params if p.grad is not None]

    params = gradients()
    with pytest.raises(NonFiniteError, match="gradient of bad holds inf or NaN"):
        Clipper(params, "norm:1", nonfinite="raise").clip_()
    np.testing.assert_equal(values(params), [[3, 4], [bad, 1]], path)

    with pytest.raises(NonFiniteError, match="gradient of bad holds inf or NaN"):
        Clipper(params, "norm:1", nonfinite="skip", max_skips=0).clip_()
    np.testing.assert_equal(values(params), [[3, 4], [bad, 1]])

    Clipper(params, "norm:1", nonfinite="zero").clip_()
    size = math.sqrt(26)
    np.testing.assert_allclose(values(params), [[3 / size, 4 / size], [0, 1 / size]], rtol=1e-6)

    mine, theirs = gradients(), gradients()
    Clipper(mine, "norm:1", nonfinite="propagate").clip_()
    torch.nn.utils.clip_grad_norm_([p for _, p in theirs], 1.0)
    np.testing.assert_equal(values(mine), values(theirs))


# ---- 4. no host sync: tests/parity/test_torch_dropins.py counts ----------------------------


def test_promise_4_results_stay_on_the_device(on_path: OnPath) -> None:
    """The meta device has no values at all: whatever reads one fails."""
    param = torch.nn.Parameter(torch.zeros(3, device="meta"))
    param.grad = torch.zeros(3, device="meta")
    with on_path("device"):
        for policy in ("norm:1", "norm:1,scope=tensor", "value:1|norm:1", "floor:1"):
            result = Clipper([param], policy).clip_()
            assert result.total_norm.device.type == "meta"
            assert result.clipped.device.type == "meta"
        assert clip_grad_norm_([param], 1.0).device.type == "meta"
        with pytest.raises(RuntimeError):
            float(result.total_norm)  # the check can fail


# ---- 5. reading is free of side effects ----------------------------------------------------


@every_dtype
def test_promise_5_measuring_changes_nothing(dtype: torch.dtype, path: str) -> None:
    params = _random(dtype, 1)
    params[0].grad = params[0].grad.t().contiguous().t()  # type: ignore[union-attr]
    params[1].grad = torch.ones(1, dtype=dtype).expand(11)
    params[2].grad[0] = math.nan  # type: ignore[index]
    held, before = [p.grad for p in params], _bits(params)
    clipper = Clipper(params, None, nonfinite="propagate")
    for _ in range(3):
        _ = repr(clipper.clip_())
        get_total_norm([p.grad for p in params if p.grad is not None])
        clipper.state_dict()
    assert _bits(params) == before, path
    assert all(p.grad is grad for p, grad in zip(params, held, strict=True))
    assert all(p.grad._version == 0 or i in (0, 2) for i, p in enumerate(params))  # type: ignore[union-attr]


# ---- 7. refuse early -----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_promise_7_a_wrong_threshold_is_refused_before_anything_happens(wrong: float) -> None:
    param = _param(torch.tensor([3.0, 4.0]))
    for attempt in (
        lambda: by_norm(wrong),
        lambda: by_value(wrong),
        lambda: floor(wrong),
        lambda: clip_grad_norm_([param], wrong),
        lambda: gradclip.torch.clip_grad_value_([param], wrong),
        lambda: gradclip.torch.clip_grads_with_norm_([param], wrong, torch.tensor(5.0)),
        lambda: Clipper([param], f"norm:{wrong}"),
        lambda: clip_grad_norm_([param], 1.0, norm_type=wrong),
        lambda: by_norm(1.0, order=wrong),
    ):
        with pytest.raises(PolicyError, match=rf"=({wrong}|{wrong:g}) is not usable: .*give a"):
            attempt()
    assert param.grad is not None
    assert param.grad.tolist() == [3, 4]


def test_promise_7_an_unknown_name_is_refused_and_a_double_counts_once(path: str) -> None:
    param = _param(torch.tensor([3.0, 4.0]))
    with pytest.raises(PolicyError, match=r"parameter='w' is not usable: no pattern matches it"):
        Clipper([("w", param)], by_name({"v": "norm:1"}))
    assert float(Clipper([("w", param), ("v", param)], "norm:9").clip_().total_norm) == 5, path
    assert float(clip_grad_norm_([param, param], 9.0)) == 5


# ---- 6. state is plain ---------------------------------------------------------------------


def test_promise_6_state_is_read_with_weights_only() -> None:
    clipper = Clipper([_param(torch.ones(2))], by_norm(1.0, scope="tensor") | by_value(0.1))
    clipper.clip_()
    buffer = io.BytesIO()
    torch.save(clipper.state_dict(), buffer)
    buffer.seek(0)
    other = Clipper([_param(torch.ones(2))], "norm:1,scope=tensor|value:0.1")
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.state_dict() == {**clipper.state_dict(), "policy": str(other.policy)}


# ---- 8. never silently slower or absent ----------------------------------------------------


def test_promise_8_the_result_says_what_ran(path: str) -> None:
    ran = Clipper([_param(torch.ones(2))], "norm:1").clip_().ran
    assert ran == (f"c-{kernel.status().isa}" if path == "kernel" else "torch")
    # The kernel has no 1-norm: torch measures, and the kernel scales.
    ran = Clipper([_param(torch.ones(2))], "norm:1,order=1").clip_().ran
    assert ran == (f"c-{kernel.status().isa}+torch" if path == "kernel" else "torch")


def test_promise_8_the_fold_is_told_or_why_there_is_none() -> None:
    for fused in (True, False):
        param = _param(torch.ones(2))
        optimizer = torch.optim.AdamW([param], fused=fused)
        clipper = gradclip.torch.attach(optimizer, "norm:1")
        optimizer.step()
        assert clipper.last is not None
        assert clipper.last.ran.endswith("+fold") == fused
        assert clipper.scaled_because == (
            None if fused else "this AdamW was not made with fused=True"
        )


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
    )


def test_promise_8_a_kernel_turned_off_is_told() -> None:
    code = (
        "import torch, gradclip.torch as g; p = torch.nn.Parameter(torch.zeros(2));"
        "p.grad = torch.ones(2);"
        "print(g.Clipper([p], 'value:0.5|norm:0.1').clip_().ran, p.grad.tolist());"
        "from gradclip import kernel; print(kernel.status().reason)"
    )
    first, second = _python(code, GRADCLIP_KERNEL="off").stdout.splitlines()
    assert first.startswith("torch [0.0707")
    assert second == "turned off by GRADCLIP_KERNEL=off"


def test_promise_8_a_clipper_that_never_saw_a_step_says_so() -> None:
    code = (
        "import torch, gradclip.torch as g; p = torch.nn.Parameter(torch.zeros(2));"
        "o = torch.optim.SGD([p], lr=1.0); c = g.attach(o, 'norm:1')"
    )
    assert "never saw optimizer.step()" in _python(code).stderr
    stepped = "; p.grad = torch.ones(2); o.step()"
    assert "never saw" not in _python(code + stepped).stderr


# ---- 9. drop-in means drop-in: tests/parity/test_torch_dropins.py --------------------------


def test_promise_9_a_training_loop_runs_with_either(path: str) -> None:
    def train(clip: object) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        x, losses = torch.randn(32, 4), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(x) - 5 * x.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            clip(model.parameters(), 1.0)  # type: ignore[operator]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    mine, theirs = train(clip_grad_norm_), train(torch.nn.utils.clip_grad_norm_)
    assert mine == pytest.approx(theirs, rel=1e-4), path
    assert mine[-1] < mine[0] / 2
