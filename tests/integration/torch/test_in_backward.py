"""Optimizers that step inside of backward: what they use is clipped, exactly or nearly so."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from gradclip import by_norm, parse
from gradclip.errors import NonFiniteError, PolicyError
from gradclip.method.read import PolicyLike
from gradclip.torch import Clipper, InBackward, attach_in_backward

EXACT = [
    "norm:0.1,scope=tensor",
    "value:0.001",
    "agc:0.01",
    "adagc:warmup=0",
    "normalise:0.1,scope=tensor",
]
"""Policies that look at each tensor by itself."""


def _model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 1)
    )


def _batch(step: int, times: float = 1.0) -> Tensor:
    return times * torch.randn(32, 6, generator=torch.Generator().manual_seed(step))


class _Steps:
    """torch's pattern: an optimizer for each parameter, stepped as its gradient is complete."""

    def __init__(
        self, model: torch.nn.Module, kind: type = torch.optim.SGD, **options: object
    ) -> None:
        self.model = model
        self.used: dict[str, Tensor] = {}
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.optimizers = {p: kind([p], **({"lr": 0.1} | options)) for p in names}

        def step(parameter: Tensor) -> None:
            self.optimizers[parameter].step()
            if parameter.grad is not None:
                self.used[names[parameter]] = parameter.grad.clone()
            self.optimizers[parameter].zero_grad()

        for p in names:
            p.register_post_accumulate_grad_hook(step)

    def run(self, batch: Tensor, times: float = 1.0) -> dict[str, Tensor]:
        self.used.clear()
        (times * self.model(batch).square().mean()).backward()
        return dict(self.used)


def _after_backward(model: torch.nn.Module, clipper: Clipper, batch: Tensor) -> dict[str, Tensor]:
    """Clip when all gradients are there, then step: what the other is compared with."""
    model(batch).square().mean().backward()
    clipper.clip_()
    used = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    return used


@pytest.mark.parametrize("policy", EXACT)
def test_tensor_by_tensor_is_exact(policy: str) -> None:
    steps, twin = _Steps(_model()), _model()
    clipper = attach_in_backward(steps.optimizers.values(), policy, model=steps.model)
    other = Clipper(twin.named_parameters(), policy)
    assert clipper.exact
    for step in range(6):
        mine = steps.run(_batch(step, 3.0))
        theirs = _after_backward(twin, other, _batch(step, 3.0))
        for name, want in theirs.items():
            torch.testing.assert_close(mine[name], want, rtol=0, atol=0)
        assert clipper.last is not None
        assert other.last is not None
        for field in ("total_norm", "clipped_norm", "coef", "removed", "cosine"):
            got, want = getattr(clipper.last, field), getattr(other.last, field)
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15, equal_nan=True)
    assert (clipper.steps, clipper.clipped) == (6, other.clipped)
    assert clipper.clipped > 0


def test_the_norm_of_all_lags_by_one_backward() -> None:
    """With the same batch and no learning, the second backward is exact."""
    steps, twin = _Steps(_model(), lr=0.0), _model()
    clipper = attach_in_backward(steps.optimizers.values(), "norm:0.05", model=steps.model)
    other = Clipper(twin.named_parameters(), "norm:0.05")
    assert not clipper.exact
    first, second = steps.run(_batch(0)), steps.run(_batch(0))
    twin(_batch(0)).square().mean().backward()
    result = other.clip_()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(second[name], parameter.grad, rtol=1e-6, atol=0)
    assert clipper.last is not None
    assert float(clipper.last.clipped_norm) == pytest.approx(0.05, rel=1e-9)
    assert float(clipper.last.total_norm) == pytest.approx(float(result.total_norm), rel=1e-9)
    # Nothing was known in the first: each is held to the limit with those before it.
    norms = {name: float(torch.linalg.vector_norm(g.double())) for name, g in first.items()}
    assert max(norms.values()) <= 0.05 * (1 + 1e-6)
    assert math.hypot(*norms.values()) > 0.05


def test_a_spike_is_held_when_it_comes() -> None:
    steps = _Steps(_model(), lr=1e-4)
    clipper = attach_in_backward(steps.optimizers.values(), "norm:1.0", model=steps.model)
    for step in range(3):
        steps.run(_batch(step, 0.1))
    assert clipper.clipped == 0
    used = steps.run(_batch(3), 1e4)
    assert max(float(g.norm()) for g in used.values()) <= 1.0 + 1e-6
    assert clipper.last is not None
    assert float(clipper.last.total_norm) > 1e3
    assert float(clipper.last.clipped_norm) <= math.sqrt(len(used))
    count = math.sqrt(sum(float(g.double().square().sum()) for g in used.values()))
    assert float(clipper.last.clipped_norm) == pytest.approx(count, rel=1e-6)


@pytest.mark.parametrize(
    "policy",
    ["zclip:warmup=4", "autoclip:50", "norm:0.1|norm:0.05", {"0.*": "norm:0.1", "*": "norm:1.0"}],
)
def test_the_next_factors_are_what_a_clipper_finds_for_this_backward(policy: PolicyLike) -> None:
    steps, twin = _Steps(_model(), lr=0.0), _model()
    attach_in_backward(steps.optimizers.values(), policy, model=steps.model)
    other = Clipper(twin.named_parameters(), policy)

    def raw(batch: Tensor, times: float) -> dict[str, Tensor]:
        twin.zero_grad()
        (times * twin(batch).square().mean()).backward()
        return {n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None}

    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for step in range(8):
        before = raw(_batch(step), 1.0 + 9.0 * (step == 7))
        other.clip_()
        after = {n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None}
        steps.run(_batch(step), 1.0 + 9.0 * (step == 7))
    used, unclipped = steps.run(_batch(8), 1e-3), raw(_batch(8), 1e-3)  # Under every limit.
    ratios = []
    for name in before:
        want = torch.linalg.vector_norm(after[name]) / torch.linalg.vector_norm(before[name])
        got = torch.linalg.vector_norm(used[name]) / torch.linalg.vector_norm(unclipped[name])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
        ratios.append(float(want))
    assert min(ratios) < 1


@pytest.mark.parametrize("policy", ["norm:1.0", "norm:1.0,scope=tensor"])
def test_inf_reaches_no_weight_from_where_it_is_found(policy: str) -> None:
    steps = _Steps(_model(), torch.optim.Adam)
    clipper = attach_in_backward(steps.optimizers.values(), policy, model=steps.model)
    steps.run(_batch(0))
    kept = {n: p.detach().clone() for n, p in steps.model.named_parameters()}
    poisoned = _batch(1)
    poisoned[0, 0] = math.inf
    steps.run(poisoned)
    assert clipper.last is not None
    assert bool(clipper.last.skipped)
    assert clipper.last.nonfinite
    for name, parameter in steps.model.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name
        if name in clipper.last.nonfinite:
            torch.testing.assert_close(parameter.detach(), kept[name], rtol=0, atol=0)
    steps.run(_batch(2))
    assert not bool(clipper.last.skipped)
    assert (clipper.steps, clipper.skipped) == (3, 1)


def test_inf_can_raise_and_too_many_skips_do() -> None:
    bad = torch.full((32, 6), math.nan)
    steps = _Steps(_model())
    attach_in_backward(steps.optimizers.values(), "norm:1.0", model=steps.model, nonfinite="raise")
    with pytest.raises(NonFiniteError, match="holds inf or NaN"):
        steps.run(bad)
    steps = _Steps(_model())
    attach_in_backward(steps.optimizers.values(), "norm:1.0", model=steps.model, max_skips=2)
    steps.run(bad)
    steps.run(bad)
    with pytest.raises(NonFiniteError, match="3 backwards in a row"):
        steps.run(bad)


def test_parameters_that_take_no_part_in_a_backward() -> None:
    steps = _Steps(_model(), lr=0.0)
    clipper = attach_in_backward(steps.optimizers.values(), "norm:1e-3", model=steps.model)
    last = steps.model.get_submodule("3")
    assert isinstance(last, torch.nn.Linear)
    steps.run(_batch(0))
    for parameter in last.parameters():
        parameter.requires_grad_(False)
    steps.run(_batch(1))
    steps.run(_batch(2))  # Begins with a parameter that was seen: the one before is over.
    assert clipper.steps == 2
    assert clipper.last is not None
    assert set(clipper.last.names) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_resumed_run_goes_on_as_the_uninterrupted_one() -> None:
    def run(resume: bool) -> dict[str, Tensor]:
        steps = _Steps(_model(), momentum=0.9)
        clipper = attach_in_backward(steps.optimizers.values(), "zclip", model=steps.model)
        for step in range(4):
            steps.run(_batch(step, 2.0))
        if resume:
            state = clipper.state_dict()
            clipper.detach()
            clipper = attach_in_backward(steps.optimizers.values(), "zclip", model=steps.model)
            clipper.load_state_dict(state)
        used: dict[str, Tensor] = {}
        for step in range(4, 8):
            used = steps.run(_batch(step, 2.0))
        assert clipper.steps == 8
        return used

    first, second = run(False), run(True)
    for name, want in first.items():
        torch.testing.assert_close(second[name], want, rtol=0, atol=0)


def test_a_state_of_something_else_is_refused() -> None:
    steps = _Steps(_model())
    clipper = attach_in_backward(steps.optimizers.values(), "norm:1.0", model=steps.model)
    state = clipper.state_dict()
    with pytest.raises(PolicyError, match="policy"):
        clipper.load_state_dict({**state, "policy": "norm:2.0"})
    clipper.load_state_dict(state)


@pytest.mark.parametrize(
    "policy", ["value:0.1|norm:1.0", "skip-outliers", "norm:1.0|norm:1.0,order=inf"]
)
def test_what_needs_all_gradients_at_once_is_refused(policy: str) -> None:
    steps = _Steps(_model())
    with pytest.raises(PolicyError, match="before all gradients are there"):
        attach_in_backward(steps.optimizers.values(), parse(policy), model=steps.model)
    assert not any(o._optimizer_step_pre_hooks for o in steps.optimizers.values())


def test_a_parameter_of_two_optimizers_is_refused() -> None:
    model = _model()
    twice = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(PolicyError, match="two of these optimizers"):
        attach_in_backward(twice, by_norm(1.0), model=model)
    with pytest.raises(PolicyError, match="optimizers"):
        attach_in_backward([], by_norm(1.0))


def test_detach_gives_the_optimizers_back() -> None:
    steps = _Steps(_model())
    clipper = attach_in_backward(steps.optimizers.values(), "norm:1e-6", model=steps.model)
    steps.run(_batch(0))
    clipper.detach()
    used = steps.run(_batch(1))
    assert clipper.steps == 1
    assert max(float(g.norm()) for g in used.values()) > 1e-3
    assert isinstance(clipper, InBackward)


def test_a_clipper_that_finds_no_gradient_at_all_says_what_may_be_wrong() -> None:
    """Elsewhere clipping after such a backward clips nothing, silently."""
    steps = _Steps(_model())
    clipper = Clipper(steps.model.named_parameters(), "norm:1.0")
    steps.run(_batch(0))
    with pytest.warns(UserWarning, match="attach_in_backward"):
        clipper.clip_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipper.clip_()  # Once is enough.


# ---- gradients that share memory -----------------------------------------------------------


# An expanded gradient gets memory of its own where it is scaled.
APART = ("expanded", "columns", "a buffer")


def shared(kind: str) -> tuple[Tensor, Tensor]:
    """Return two gradients that have a value in common, or only lie in one buffer."""
    flat = torch.arange(1.0, 9.0)
    ways = {
        "the same": (flat[:4], flat[:4]),
        "a part": (flat[:4], flat[3:7]),
        "expanded": (flat[:1].expand(4), flat[:4]),
        "columns": (flat.view(4, 2)[:, 0], flat.view(4, 2)[:, 1]),
        "a buffer": (flat[:4], flat[4:]),
    }
    return ways[kind]


@pytest.mark.parametrize("policy", ["norm:1.0", "norm:1.0,scope=tensor", "value:0.5"])
@pytest.mark.parametrize("kind", ["the same", "a part", *APART])
def test_a_gradient_of_two_optimizers_is_never_scaled_twice(kind: str, policy: str) -> None:
    params = [nn.Parameter(torch.zeros(4)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in params]
    clipper = attach_in_backward(optimizers, policy)
    for _ in range(2):
        params[0].grad, params[1].grad = shared(kind)
        before = params[1].detach().clone()
        optimizers[0].step()
        if kind in APART:
            optimizers[1].step()
            assert not torch.equal(params[1].detach(), before)
        else:
            kept = params[1].grad.clone()
            with pytest.raises(PolicyError, match="memory of the gradient of group0"):
                optimizers[1].step()
            assert torch.equal(params[1].grad, kept)
            assert torch.equal(params[1].detach(), before)
    assert clipper.steps >= (kind in APART)


def test_memory_that_is_used_again_is_no_shared_gradient() -> None:
    params = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in params]
    clipper = attach_in_backward(optimizers, "norm:1.0")
    flat = torch.ones(4)
    for p, optimizer in zip(params, optimizers, strict=True):
        p.grad = flat.view(4)
        optimizer.step()
        optimizer.zero_grad()
        flat.fill_(2.0)
    assert clipper.steps == 1
