"""The fold: a fused optimizer applies the factor, as if the gradients had been clipped before."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradclip.torch
import oracle
from gradclip import ClipResult, NonFiniteError, by_name, by_norm
from gradclip.torch import Clipper, attach, record
from gradclip.torch.step.fused import Fold, refusal_of_gradients, seen_on
from gradclip.torch.tensors.gradients import Gradients
from grads import grad_of
from integration.training import (
    FUSED,
    KINDS,
    MAX_NORM,
    Factory,
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

o = torch.optim
VARIANTS: dict[str, Factory] = {
    name: functools.partial(kind, fused=True, **options)
    for name, kind, options in (
        ("SGD", o.SGD, {"lr": 0.05}),
        ("SGD, momentum", o.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
        ("SGD, Nesterov", o.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
        ("SGD, dampening", o.SGD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.5}),
        ("SGD, maximize", o.SGD, {"lr": 0.001, "maximize": True}),
        ("Adam", o.Adam, {"lr": 0.01}),
        ("Adam, amsgrad", o.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
        ("AdamW", o.AdamW, {"lr": 0.01}),
        ("AdamW, maximize", o.AdamW, {"lr": 0.001, "weight_decay": 0.1, "maximize": True}),
        ("Adagrad", o.Adagrad, {"lr": 0.05}),
        ("Adagrad, decay", o.Adagrad, {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.01}),
    )
}
NAN, INF = float("nan"), float("inf")
LARGE, SMALL = 0, 2
"""Steps of `loss_at` whose gradient is above, and under, the limit."""


@pytest.fixture(params=["host", "device"])
def decided(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with decisions on the host, and with decisions that stay on the device."""
    with decided_on_device() if request.param == "device" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each pass over the gradients that writes them."""
    seen: list[str] = []

    def note(name: str) -> None:
        original = getattr(Gradients, name)

        def noted(self: Gradients, *args: Any) -> Any:
            seen.append(name)
            return original(self, *args)

        monkeypatch.setattr(Gradients, name, noted)

    for name in ("scale", "unscale", "scale_units", "put", "clamp"):
        note(name)
    return seen


class Kernels(TorchDispatchMode):
    """Notes what each fused kernel is handed: the gradients as they are, and the two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.grads: list[list[Tensor]] = []
        self.scales: list[float | None] = []
        self.flags: list[Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and go on."""
        kwargs = kwargs or {}
        if func._schema.name.startswith("aten::_fused_"):
            self.grads.append([grad.clone() for grad in args[1]])
            scale = kwargs.get("grad_scale")
            self.scales.append(None if scale is None else float(scale))
            self.flags.append(kwargs.get("found_inf"))
        return func(*args, **kwargs)


def close(got: Tensor, expected: Tensor) -> None:
    """Compare weights: what differs is 1e-6 of their norm at most."""
    apart = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert apart <= 1e-6, apart


def folded(clipper: Clipper) -> bool:
    """Whether the last step was the optimizer's to scale, and is told so."""
    assert clipper.last is not None
    told = clipper.last.ran.endswith("+fold")
    assert told == (clipper.scaled_because is None), (clipper.last.ran, clipper.scaled_because)
    return told


def by_hand(optimizer: torch.optim.Optimizer) -> bool:
    return clip_by_hand(owned(optimizer))


def bare(optimizer: torch.optim.Optimizer) -> bool:
    return not {"grad_scale", "found_inf"} & vars(optimizer).keys()


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
        norm = _norm(params)
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


def _norm(params: list[Any]) -> float:
    return oracle.norm([p.grad.double().numpy() for p in params if p.grad is not None])


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
    assert _norm([param]) == pytest.approx(1e-20, rel=1e-6)
    param.grad = torch.ones(4) * (scaled or 1.0)
    optimizer.step()  # One that it can.
    assert folded(clipper)
    assert _norm([param]) == pytest.approx(1e-20, rel=1e-6)


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
    assert _norm([param]) == pytest.approx(low, rel=3e-7)


# ---- where the gradients are scaled in place -----------------------------------------------


class _Reads(torch.optim.AdamW):
    """Its own step looks at the gradients first."""

    def step(self, closure: Any = None) -> Any:
        """Note the norm."""
        self.seen = _norm(owned(self))
        return super().step(closure)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


REFUSED: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], Any, str]] = {
    "a factor per tensor": (_adamw, "norm:0.5,scope=tensor", "one factor"),
    "rules by name": (_adamw, by_name({"0.*": "norm:0.5", "*": "norm:1"}), "one factor"),
    "some left out": (_adamw, by_name({"0.*": "norm:0.5", "*": None}), "one factor"),
    "values": (_adamw, "value:0.01", "one factor"),
    "values, then the norm": (_adamw, "value:0.01|norm:0.05", "one factor"),
    "units": (_adamw, "norm:0.05,scope=unit", "one factor"),
    "a wrapper": (_adamw, "feedback(norm:0.5)", "one factor"),
    "nothing": (_adamw, None, "one factor"),
    "not fused": (lambda m: o.AdamW(m.parameters(), lr=0.01), "norm:0.5", "fused=True"),
    "foreach": (lambda m: o.SGD(m.parameters(), 0.1, foreach=True), "norm:0.5", "fused=True"),
    "RMSprop": (lambda m: o.RMSprop(m.parameters()), "norm:0.5", "RMSprop is not one of"),
    "NAdam": (lambda m: o.NAdam(m.parameters()), "norm:0.5", "NAdam is not one of"),
    "LBFGS": (lambda m: o.LBFGS(m.parameters()), "norm:0.5", "LBFGS is not one of"),
    "a subclass": (lambda m: _Reads(m.parameters(), fused=True), "norm:0.5", "_Reads is not one"),
    "float64": (lambda m: _adamw(m.double()), "norm:0.5", "too coarse for gradients of float64"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("decided")
def test_what_cannot_be_folded_is_scaled_in_place_and_says_why(case: str) -> None:
    factory, policy, why = REFUSED[case]
    model, twin = net(), net()
    optimizer, other = factory(model), factory(twin)
    clipper = attach(optimizer, policy, model=model)
    # What one does by hand with the same policy is the judge: the fold alone is in question.
    judge = Clipper(twin.named_parameters(), policy)
    for step in range(3):
        for m, opt in ((model, optimizer), (twin, other)):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            m.zero_grad()
            (20 * m(x.to(m.get_parameter("0.weight").dtype))).square().mean().backward()
            if opt is other:
                judge.clip_()
            with Kernels() as kernels:
                _call(opt, case)
            assert not any(kernels.scales)
        assert not folded(clipper)
        assert clipper.scaled_because is not None
        assert why in clipper.scaled_because
        assert bare(optimizer)
    close(weights(model), weights(twin))
    if isinstance(optimizer, _Reads):
        assert optimizer.seen == pytest.approx(0.5, rel=1e-6)


def _call(optimizer: torch.optim.Optimizer, case: str) -> None:
    optimizer.step((lambda: 1.0) if case == "LBFGS" else None)  # type: ignore[arg-type]


def test_on_update_is_not_folded() -> None:
    model = net()
    optimizer = _adamw(model)
    clipper = attach(optimizer, "norm:0.001", on="update")
    scripted_gradients(model, LARGE)
    with Kernels() as kernels:
        optimizer.step()
    assert not folded(clipper)
    assert kernels.scales == [None]


def test_a_hook_that_runs_after_the_clipper_sees_clipped_gradients() -> None:
    model, seen = net(), []
    optimizer = _adamw(model)
    first = optimizer.register_step_pre_hook(lambda *_: seen.append(_norm(owned(optimizer))))
    clipper = attach(optimizer, by_norm(MAX_NORM))
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert folded(clipper)  # A hook that runs before it does not matter.
    later = optimizer.register_step_pre_hook(lambda *_: seen.append(_norm(owned(optimizer))))
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert not folded(clipper)
    assert "another step pre-hook" in str(clipper.scaled_because)
    assert seen[1] > 10 * MAX_NORM
    assert seen[2] == pytest.approx(MAX_NORM, rel=1e-6)
    later.remove()
    first.remove()
    scripted_gradients(model, LARGE)
    optimizer.step()
    assert folded(clipper)


def test_gradients_that_the_kernel_would_write_wrongly() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([param], lr=0.1, fused=True)
    clipper = attach(optimizer, "norm:1")
    param.grad = torch.full((1,), 4.0).expand(3)
    optimizer.step()
    assert not folded(clipper)
    assert "share memory" in str(clipper.scaled_because)
    torch.testing.assert_close(param.grad, torch.full((3,), 3**-0.5))
    param.grad = torch.full((3,), 4.0)
    optimizer.step()
    assert folded(clipper)


class _Special(Tensor):
    """As a sharded tensor is: what a kernel does with it is its own affair."""


def test_gradients_that_a_kernel_may_not_divide() -> None:
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    for tensors, why in (
        ([here, there], "several devices"),
        ([there], "meta may ignore"),
        ([here.as_subclass(_Special)], "not a plain tensor"),
    ):
        found = refusal_of_gradients(Gradients(tensors, ["a", "b"][: len(tensors)]))
        assert why in str(found)
    assert seen_on("meta") == []


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([param, param], lr=0.1, fused=True)
    clipper = attach(optimizer, "norm:1")
    param.grad = torch.full((3,), 4.0)
    optimizer.step()
    assert not folded(clipper)
    assert _norm([param]) == pytest.approx(1, rel=1e-6)


def test_a_detached_clipper_does_not_claim_the_fold() -> None:
    clipper = attach(_adamw(net()), "norm:1")
    assert clipper.scaled_because is None
    clipper.detach()
    assert clipper.scaled_because == Clipper([torch.zeros(1)], "norm:1").scaled_because
    assert "not attached" in str(clipper.scaled_because)


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
    optimizer, other = _adamw(model), _adamw(twin)
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
    optimizer, other = _adamw(model), _adamw(twin)
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


# ---- skipped steps -------------------------------------------------------------------------


def _junk() -> None:
    """Fill memory that a new buffer may be made of."""
    for value in (1e30, 7.0):
        torch.full((1000,), value)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "SGD" in v])
@pytest.mark.parametrize("who", ["clipper", "scaler", "scaler, propagate"])
@pytest.mark.usefixtures("decided")
def test_a_first_step_that_is_skipped_leaves_sgd_no_garbage(variant: str, who: str) -> None:
    """By itself torch's fused SGD would keep a momentum of uninitialised memory."""
    if who == "scaler, propagate" and "dampening" in variant:
        pytest.skip("no buffer of zeros gives the first step of a dampened momentum: torch's own")
    for _ in range(5):
        params = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
        _junk()
        optimizer, other = VARIANTS[variant]([params[0]]), VARIANTS[variant]([params[1]])
        attach(optimizer, "norm:1", nonfinite="propagate" if "propagate" in who else "skip")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=who != "clipper")
        scaler.scale(torch.zeros(()))
        params[0].grad = torch.full((1000,), INF)
        scaler.step(optimizer)
        scaler.update(8.0 if scaler.is_enabled() else None)
        assert torch.equal(params[0], torch.ones(1000))
        for step in range(3):
            size = 3.0 + step
            params[0].grad = torch.full((1000,), size * scaler.get_scale())
            params[1].grad = torch.full((1000,), size)
            clip_by_hand([params[1]], 1.0)
            scaler.step(optimizer)
            scaler.update(8.0 if scaler.is_enabled() else None)
            other.step()
        close(params[0].detach(), params[1].detach())


@pytest.mark.parametrize("variant", ["Adam", "SGD, momentum"])
def test_a_skip_is_handed_to_the_kernel_on_a_device(variant: str) -> None:
    model = net()
    optimizer = VARIANTS[variant](model.parameters())
    attach(optimizer, by_norm(MAX_NORM))
    with decided_on_device():
        for step in range(3):
            scripted_gradients(model, step, NAN if step == 1 else None)
            with Kernels() as kernels:
                optimizer.step()
            (flag,) = kernels.flags
            assert flag is not None
            assert float(flag) == (step == 1)


def test_a_dampened_momentum_waits_for_the_device() -> None:
    model = net()
    optimizer = VARIANTS["SGD, dampening"](model.parameters())
    attach(optimizer, by_norm(MAX_NORM))
    with decided_on_device(), ReadsBack() as reads:
        for step in range(4):
            scripted_gradients(model, step)
            optimizer.step()
    assert reads.count == 4


@pytest.mark.usefixtures("decided")
def test_nonfinite_zero_is_folded() -> None:
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    clipper = attach(optimizer, by_norm(MAX_NORM), nonfinite="zero")
    for step in range(6):
        scripted_gradients(model, step, NAN if step % 2 else None)
        optimizer.step()
        assert folded(clipper)
        scripted_gradients(twin, step, 0.0 if step % 2 else None)
        by_hand(other)
        other.step()
    close(weights(model), weights(twin))


# ---- under a GradScaler --------------------------------------------------------------------


def scaled_step(
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    step: int,
    *,
    bad: float | None = None,
    unscale: bool = False,
) -> None:
    model.zero_grad()
    scaler.scale(loss_at(model, step)).backward()
    if bad is not None:
        next(model.parameters()).grad[0, 0] = bad  # type: ignore[index]
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)


@pytest.mark.parametrize("unscale", [False, True], ids=["step", "unscale_"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("decided")
def test_a_scaler_and_the_fold_are_one_division(
    variant: str, unscale: bool, writes: list[str]
) -> None:
    model, twin = net(), net()
    optimizer, other = (VARIANTS[variant](m.parameters()) for m in (model, twin))
    clipper = attach(optimizer, by_norm(MAX_NORM), max_skips=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0, growth_interval=5)
    for step in range(60):
        bad = INF if step % 17 == 3 else None
        scale = scaler.get_scale()
        with Kernels() as kernels:
            scaled_step(scaler, optimizer, model, step, bad=bad, unscale=unscale)
        scaler.update()
        assert folded(clipper)
        assert bare(optimizer)
        if bad is not None:
            continue
        scripted_gradients(twin, step)
        before = _norm(owned(other))
        clipped = by_hand(other)
        other.step()
        (divisor,) = kernels.scales
        expected = (1 if unscale else scale) * (before / MAX_NORM if clipped else 1)
        assert (divisor or 1.0) == pytest.approx(expected, rel=1e-5)
        assert float(clipper.last.total_norm) == pytest.approx(before, rel=1e-5)  # type: ignore[union-attr]
    close(weights(model), weights(twin))
    assert not writes
    assert clipper.skipped == 0


def test_what_a_scaler_lends_comes_back_before_it_is_deleted() -> None:
    model = net()
    optimizer = _adamw(model)
    attach(optimizer, by_norm(MAX_NORM))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(dict(vars(optimizer))))
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    for unscale, expected in ((False, 512.0), (True, None)):
        scaled_step(scaler, optimizer, model, LARGE, unscale=unscale)
        scaler.update()
        assert seen[-1]["grad_scale"] == expected
        assert float(seen[-1]["found_inf"]) == 0


@contextlib.contextmanager
def broken() -> Iterator[None]:
    """Make torch's own fused step raise."""
    with (
        mock.patch("torch.optim.adam._fused_adam", side_effect=OSError("disk")),
        pytest.raises(OSError, match="disk"),
    ):
        yield


@pytest.mark.parametrize("then", ["step", "step, same", "unscale_", "plain", "raise again"])
@pytest.mark.parametrize("step", [LARGE, SMALL])
@pytest.mark.usefixtures("decided")
def test_an_error_in_a_scaled_step_leaves_the_next_one_right(then: str, step: int) -> None:
    """The scaler leaves its attributes there, and multiplies into them the next time."""
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    clipper = attach(optimizer, by_norm(MAX_NORM))
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    before = weights(model)
    with broken():
        scaled_step(scaler, optimizer, model, step)
    assert torch.equal(weights(model), before)
    if then == "step, same":
        scaler.step(optimizer)
    elif then == "plain":
        scripted_gradients(model, step)
        optimizer.step()
    else:
        if then == "raise again":
            scaler.update(500.0)
            with broken():
                scaled_step(scaler, optimizer, model, LARGE)
        scaler.update(1000.0)
        scaled_step(scaler, optimizer, model, step, unscale=then == "unscale_")
    scripted_gradients(twin, step)
    by_hand(other)
    other.step()
    close(weights(model), weights(twin))
    assert folded(clipper)
    assert bare(optimizer)


@pytest.mark.parametrize("mine", [None, 4.0])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.usefixtures("decided")
def test_an_error_in_a_plain_step_leaves_the_next_one_right(
    mine: float | None, scaled: bool
) -> None:
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    if mine:
        optimizer.grad_scale = torch.tensor(mine)  # type: ignore[attr-defined]
    scripted_gradients(model, LARGE)
    with broken():
        optimizer.step()
    model.zero_grad()
    (loss_at(model, SMALL) * (mine or 1.0) * (3000.0 if scaled else 1.0)).backward()
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        assert bare(optimizer)
    else:
        optimizer.step()
        left = vars(optimizer).get("grad_scale")
        assert left == mine if mine else bare(optimizer)
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_the_same_gradients_again_after_an_error_are_clipped() -> None:
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    scripted_gradients(model, LARGE)
    with broken():
        optimizer.step()
    optimizer.step()
    scripted_gradients(twin, LARGE)
    by_hand(other)
    other.step()
    close(_grads(optimizer), _grads(other))
    close(weights(model), weights(twin))


def _grads(optimizer: torch.optim.Optimizer) -> Tensor:
    return torch.cat([p.grad.flatten() for p in owned(optimizer) if p.grad is not None])


def test_an_error_then_one_in_the_closure_then_a_step() -> None:
    """What is mended once must not be mended again."""
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    attach(optimizer, by_norm(MAX_NORM))
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    with broken():
        scaled_step(scaler, optimizer, model, LARGE)

    def closure() -> float:
        raise KeyError("no batch")

    with pytest.raises(KeyError):
        optimizer.step(closure)  # type: ignore[arg-type]
    scaler.update(1000.0)
    scaled_step(scaler, optimizer, model, SMALL)  # Clipped, it would hide a wrong scale.
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_an_error_of_the_clipper_leaves_the_next_step_right() -> None:
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    attach(optimizer, by_norm(MAX_NORM), nonfinite="raise")
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    model.zero_grad()
    scaler.scale(loss_at(model, LARGE)).backward()
    scaler.unscale_(optimizer)
    grad_of(model.get_parameter("0.weight"))[0, 0] = NAN
    with pytest.raises(NonFiniteError):
        scaler.step(optimizer)
    scaler.update()
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]  # torch's leftovers
    scaled_step(scaler, optimizer, model, LARGE)
    scripted_gradients(twin, LARGE)
    by_hand(other)
    other.step()
    close(weights(model), weights(twin))


@pytest.mark.usefixtures("decided")
def test_too_many_skips_under_a_scaler_leave_the_next_step_right() -> None:
    """What raises before the factor is lent leaves the scaler's own scale there."""
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    clipper = attach(optimizer, f"skip-above:1|norm:{MAX_NORM}", max_skips=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    with pytest.raises(NonFiniteError, match="skips a norm"):
        scaled_step(scaler, optimizer, model, LARGE)
    scaler.update(1000.0)
    scaled_step(scaler, optimizer, model, SMALL)
    assert folded(clipper)
    scripted_gradients(twin, SMALL)
    other.step()
    close(weights(model), weights(twin))


def test_a_policy_that_does_not_fold_still_works_under_a_scaler() -> None:
    model, twin = net(), net()
    optimizer, other = _adamw(model), _adamw(twin)
    clipper = attach(optimizer, "norm:0.1,scope=tensor")
    judge = Clipper(twin.named_parameters(), "norm:0.1,scope=tensor")
    scaler = torch.amp.GradScaler("cpu", init_scale=3000.0)
    for step in range(4):
        scaled_step(scaler, optimizer, model, step)
        scaler.update()
        assert not folded(clipper)
        scripted_gradients(twin, step)
        judge.clip_()
        other.step()
    close(weights(model), weights(twin))


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
