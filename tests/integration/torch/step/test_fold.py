"""The fold: a fused optimizer applies the factor, as if the gradients had been clipped before."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradclip.torch
from gradclip import ClipResult, by_norm
from gradclip.torch import Clipper, attach, record
from gradclip.torch.step.fused import Fold, seen_on
from integration.training import (
    FUSED,
    KINDS,
    MAX_NORM,
    ReadsBack,
    clip_by_hand,
    decided_on_device,
    loss_at,
    net,
    owned,
    same,
    scripted_gradients,
    snapshot,
    weights,
)

from .folds import (
    INF,
    LARGE,
    NAN,
    SMALL,
    VARIANTS,
    Kernels,
    adamw,
    bare,
    by_hand,
    close,
    folded,
    norm_of,
)

# ---- the same training ---------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("decided")
def test_60_steps_as_clipped_and_then_stepped(variant: str, writes: list[str]) -> None:
    model, twin = net(), net()
    optimizer, other = (VARIANTS[variant](m.parameters()) for m in (model, twin))
    clipper = attach(optimizer, by_norm(MAX_NORM))
    assert clipper.scaled_because is None
    clipped = 0
    for step in range(60):
        scripted_gradients(model, step)
        optimizer.step()
        assert folded(clipper)
        assert bare(optimizer)
        scripted_gradients(twin, step)
        clipped += by_hand(other)
        other.step()
    close(weights(model), weights(twin))
    grads = zip(owned(optimizer), owned(other), strict=True)
    for p, q in grads:  # The last step's clipped gradient is in `.grad`, as it would be.
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert clipper.clipped == clipped > 30
    assert not writes


@pytest.mark.parametrize("kind", FUSED)
def test_the_kernel_gets_unclipped_gradients_and_the_factor(kind: str, decided: str) -> None:
    model = net()
    optimizer = KINDS[kind](model.parameters())
    clipper = attach(optimizer, by_norm(MAX_NORM))
    for step in (LARGE, SMALL):
        scripted_gradients(model, step)
        raw = snapshot(optimizer)["grads"]
        with Kernels() as kernels:
            optimizer.step()
        assert same(kernels.grads, [raw])
        (scale,) = kernels.scales
        assert clipper.last is not None
        if step == LARGE:
            assert scale == pytest.approx(float(clipper.last.total_norm) / MAX_NORM, rel=2e-7)
            divided = [grad / torch.tensor(scale) for grad in raw]
        else:
            assert scale == (1.0 if decided == "device" else None)
            divided = raw
        assert same(snapshot(optimizer)["grads"], divided)


def test_the_result_is_that_of_scaling_in_place(tmp_path: Any) -> None:
    """Norms, coefficient and all that is recorded do not depend on who applies the factor."""
    from gradclip import read_run

    def run(fused: bool) -> tuple[list[ClipResult], Any]:
        model, path = net(), tmp_path / f"{fused}.jsonl"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=fused)
        clipper = attach(optimizer, by_norm(MAX_NORM), model=model)
        seen: list[ClipResult] = []
        clipper.observers.append(seen.append)
        with record(clipper, path, optimizer=optimizer):
            for step in range(6):
                scripted_gradients(model, step, NAN if step == 4 else None)
                optimizer.step()
        assert folded(clipper) == fused
        return seen, read_run(path)

    (results, rows), (expected, expected_rows) = run(True), run(False)
    for one, two in zip(results, expected, strict=True):
        assert one.ran == f"{two.ran}+fold"
        for field in dataclasses.fields(ClipResult):
            a, b = getattr(one, field.name), getattr(two, field.name)
            if isinstance(a, Tensor):
                assert torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), field.name
    for name in ("norm", "coef", "clipped_norm", "removed", "skipped"):
        torch.testing.assert_close(
            rows.column(name), expected_rows.column(name), rtol=0, atol=0, equal_nan=True
        )


# ---- exactness -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("decided")
def test_what_is_written_back_is_at_most_the_limit(dtype: torch.dtype) -> None:
    room = 1 + (1e-7 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps)
    above = 0
    for seed in range(60):
        limit = 0.1 + seed / 7
        params = _random(dtype, seed)
        optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
        clipper = attach(optimizer, by_norm(limit))
        optimizer.step()
        assert folded(clipper)
        norm = norm_of(params)
        assert limit * (1 - 2 * (room - 1)) <= norm <= limit * room, (seed, norm, limit)
        above += norm > limit
    # Rounded to nearest, the divisor would put half of them above the limit.
    assert above < 10 or dtype != torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("decided")
def test_at_the_limit_no_bit_changes(dtype: torch.dtype) -> None:
    for seed in range(20):
        params = _random(dtype, seed)
        limit = float(Clipper(params, None).clip_().total_norm)
        optimizer = torch.optim.AdamW(params, lr=0.1, fused=True)
        before = snapshot(optimizer)["grads"]
        clipper = attach(optimizer, by_norm(limit))
        optimizer.step()
        assert folded(clipper)
        assert same(snapshot(optimizer)["grads"], before)


def _random(dtype: torch.dtype, seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.zeros(s, dtype=dtype)) for s in ((37, 11), (11,), (1,))]
    for p in params:
        p.grad = (9 * torch.randn(p.shape, generator=generator)).to(dtype)
    return params


def test_bfloat16_weights_train_as_with_gradients_clipped_in_float32() -> None:
    """The kernel uses the quotient in float32, where scaling in place rounds it to bfloat16."""
    model, twin = net().bfloat16(), net().bfloat16()
    optimizer, other = (
        torch.optim.AdamW(m.parameters(), lr=0.01, fused=True) for m in (model, twin)
    )
    clipper = attach(optimizer, by_norm(MAX_NORM))
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(owned(optimizer), owned(other), strict=True):
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            q.grad = p.grad.clone()
        by_hand(other)
        optimizer.step()
        other.step()
        assert folded(clipper)
    apart = (weights(model).double() - weights(twin).double()).norm() / weights(
        twin
    ).double().norm()
    assert float(apart) <= 0.01


@pytest.mark.parametrize("scaled", [None, 4096.0])
def test_a_factor_that_float32_cannot_hold_is_applied_in_place(scaled: float | None) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([param], lr=0.0, fused=True)
    clipper = attach(optimizer, by_norm(1e-20))
    param.grad = torch.full((4,), 0.5e20) * (scaled or 1.0)
    if scaled:
        optimizer.grad_scale = torch.tensor(scaled)  # type: ignore[attr-defined]
    optimizer.step()
    assert clipper.last is not None
    assert "fold" not in clipper.last.ran
    assert float(clipper.last.total_norm) == pytest.approx(1e20, rel=1e-6)
    assert norm_of([param]) == pytest.approx(1e-20, rel=1e-6)
    param.grad = torch.ones(4) * (scaled or 1.0)
    optimizer.step()  # One that it can.
    assert folded(clipper)
    assert norm_of([param]) == pytest.approx(1e-20, rel=1e-6)


@pytest.mark.parametrize("factor", [0.0, NAN])
def test_no_factor_and_nothing_left(factor: float) -> None:
    import numpy as np

    with np.errstate(all="ignore"):
        assert Fold.of(np.float64(factor), None) is None
    fold = Fold.of(torch.tensor(factor, dtype=torch.float64), torch.tensor(8.0))
    assert fold is not None
    assert fold.divisor is not None
    left = torch.tensor([-3.0, 0.0, INF]) / fold.divisor
    expected = torch.tensor([-3.0, 0.0, INF]) * factor
    torch.testing.assert_close(left, expected, equal_nan=True)


@pytest.mark.parametrize("low", [3.0, 1e5])
@pytest.mark.usefixtures("decided")
def test_scaling_up_is_folded_too(low: float) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adagrad([param], lr=0.1, fused=True)
    clipper = attach(optimizer, f"floor:{low}")
    param.grad = torch.ones(4)
    optimizer.step()
    assert folded(clipper)
    assert norm_of([param]) == pytest.approx(low, rel=3e-7)


# ---- the ways to call step -----------------------------------------------------------------


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.usefixtures("decided")
def test_closures_accumulation_schedules_and_groups(kind: str, writes: list[str]) -> None:
    def run(hand: bool) -> Tensor:
        model = net()
        optimizer = KINDS[kind](model[0].parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        clipper = None if hand else attach(optimizer, by_norm(MAX_NORM), model=model)
        for step in range(9):
            if step == 4:
                optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.003})

            def closure(step: int = step) -> Any:
                model.zero_grad()
                for part in range(2):  # Accumulated.
                    (loss_at(model, step + part) / 2).backward()
                if hand:
                    by_hand(optimizer)
                return loss_at(model, step)

            if step % 2:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            schedule.step()
            assert clipper is None or folded(clipper)
        assert clipper is None or clipper.clipped == 9
        return weights(model)

    close(run(hand=False), run(hand=True))
    assert not writes


def test_a_closure_that_leaves_its_gradients_finds_them_clipped() -> None:
    """Accumulated over steps without `zero_grad`: what was clipped stays so."""
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    for step in range(4):
        loss_at(model, step).backward()
        optimizer.step()
        loss_at(twin, step).backward()
        by_hand(other)
        other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_two_optimizers(writes: list[str]) -> None:
    model, twin = net(), net()
    pairs = [
        (VARIANTS["SGD, momentum"](m[0].parameters()), VARIANTS["Adam"](m[2].parameters()))
        for m in (model, twin)
    ]
    clippers = [attach(pairs[0][0], "norm:0.5"), attach(pairs[0][1], "norm:0.1")]
    for step in range(20):
        for m in (model, twin):
            scripted_gradients(m, step)
        clip_by_hand(owned(pairs[1][0]), 0.5)
        clip_by_hand(owned(pairs[1][1]), 0.1)
        for one, two in pairs:
            one.step()
            two.step()
        assert all(map(folded, clippers))
    close(weights(model), weights(twin))
    assert not writes


def test_two_clippers_of_one_optimizer_compose() -> None:
    from gradclip.torch.attaching import clip_steps

    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    options: Any = {"nonfinite": "skip", "max_skips": 10}
    first = clip_steps([optimizer], "norm:0.5", None, **options)
    second = clip_steps([optimizer], "norm:0.1", None, **options)
    for step in range(6):
        scripted_gradients(model, step)
        scripted_gradients(twin, step)
        clip_by_hand(owned(other), 0.1)
        optimizer.step()
        other.step()
        assert (folded(first), folded(second)) == (False, True)
        assert bare(optimizer)
    close(weights(model), weights(twin))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own
@pytest.mark.parametrize("kind", FUSED)
def test_a_compiled_step(kind: str) -> None:
    def run(hand: bool) -> Tensor:
        torch.compiler.reset()
        model = net()
        optimizer = KINDS[kind](model.parameters())
        clipper = None if hand else attach(optimizer, by_norm(MAX_NORM))
        compiled = torch.compile(optimizer.step, backend="eager")
        for step in range(6):
            scripted_gradients(model, step)
            if hand:
                by_hand(optimizer)
            compiled()
            assert clipper is None or folded(clipper)
            assert bare(optimizer)
        return weights(model)

    close(run(hand=False), run(hand=True))


def test_nothing_is_read_back_on_a_device() -> None:
    """SGD included: by itself it could not be skipped on the device."""
    for kind in FUSED:
        model = net()
        optimizer = KINDS[kind](model.parameters())
        clipper = attach(optimizer, by_norm(MAX_NORM))
        with decided_on_device():
            for step in range(6):
                scripted_gradients(model, step, NAN if step in (0, 3) else None)
                with ReadsBack() as reads:
                    optimizer.step()
                assert reads.count == 0, kind
                assert folded(clipper)
        assert clipper.skipped == 2


def test_every_fused_kernel_of_this_torch_was_seen_to_divide() -> None:
    assert seen_on("cpu") == ["SGD", "Adam", "AdamW", "Adagrad"]


def test_nobody_writes_attributes_of_a_clipper_from_outside() -> None:
    """The hooks give the clipper what it needs as arguments, and get results back."""
    written = []
    for path in Path(gradclip.torch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                if owner.split(".")[-1].strip("_").endswith("clipper"):
                    written.append(f"{path.name}: {ast.unparse(node)}")
    assert written == []
