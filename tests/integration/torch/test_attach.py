"""`attach` against real optimizers: the same training as with gradients clipped by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip import Measure, Policy, PolicyError, by_name, by_norm
from gradclip.method.threshold import Limits
from gradclip.parts import Rescale
from gradclip.torch import Clipper, attach
from gradclip.torch.attaching import named_parameters
from grads import grad_of
from integration.training import (
    KINDS,
    MAX_NORM,
    STEPS,
    Factory,
    clip_by_hand,
    loss_at,
    net,
    owned,
    same,
    scripted_gradients,
    snapshot,
    weights,
)

# The factor may differ from the reference's in float64's last place, a weight in float32's.
close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    chosen: dict[str, Any] = {"lr": 0.05, "momentum": 0.9} | options
    return torch.optim.SGD(model.parameters(), **chosen)


def train(
    factory: Factory, before_step: Callable[[torch.optim.Optimizer], object] | None = None
) -> tuple[Tensor, Clipper | None]:
    """Train with `attach`, or by hand with `before_step`; return the weights and the clipper."""
    model = net()
    optimizer = factory(model.parameters())
    clipper = attach(optimizer, by_norm(MAX_NORM)) if before_step is None else None
    for step in range(STEPS):
        scripted_gradients(model, step)
        if before_step is not None:
            before_step(optimizer)
        optimizer.step()
    return weights(model), clipper


def by_hand(optimizer: torch.optim.Optimizer) -> bool:
    return clip_by_hand(owned(optimizer))


# ---- every optimizer -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_clipped(kind: str) -> None:
    expected, _ = train(KINDS[kind], by_hand)
    unclipped, _ = train(KINDS[kind], lambda _: None)
    got, clipper = train(KINDS[kind])
    close(got, expected)
    if "Rprop" not in kind:  # It reads the signs alone, which no factor changes.
        assert not torch.allclose(got, unclipped, rtol=1e-4, atol=1e-5)
    assert clipper is not None
    assert clipper.steps == STEPS
    assert clipper.clipped == sum(step % 3 != 2 for step in range(STEPS))


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_clips_at_each_evaluation(line_search: str | None) -> None:
    def run(hand: bool) -> tuple[Tensor, int, int]:
        model, evaluations = net(), 0
        optimizer = torch.optim.LBFGS(
            model.parameters(), lr=0.1, max_iter=4, line_search_fn=line_search
        )
        clipper = None if hand else attach(optimizer, "norm:0.5")
        for step in range(3):

            def closure(step: int = step) -> Any:
                nonlocal evaluations
                evaluations += 1
                optimizer.zero_grad()
                loss = loss_at(model, step)
                loss.backward()
                if hand:
                    by_hand(optimizer)
                return loss

            optimizer.step(closure)
        return weights(model), evaluations, 0 if clipper is None else clipper.steps

    expected, evaluations, _ = run(hand=True)
    got, seen, steps = run(hand=False)
    assert seen == steps == evaluations > 6
    close(got, expected)


def test_sparse_adam() -> None:
    def run(hand: bool) -> Tensor:
        torch.manual_seed(0)
        table = nn.Embedding(20, 4, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.05)
        clipper = None if hand else attach(optimizer, "norm:0.5")
        for step in range(5):
            optimizer.zero_grad()
            rows = torch.tensor([step, step + 1, step, 7])  # Repeated: not coalesced.
            (10 * table(rows).square().sum()).backward()
            if hand:
                assert by_hand(optimizer)
            optimizer.step()
        assert clipper is None or clipper.clipped == 5
        return weights(table)

    close(run(hand=False), run(hand=True))


# ---- the ways to call step -----------------------------------------------------------------


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", ["SGD", "Adam-fused", "RMSprop-foreach"])
def test_a_closure_is_clipped_when_it_returns(kind: str, keyword: bool) -> None:
    model = net()
    optimizer = KINDS[kind](model.parameters())
    clipper = attach(optimizer, by_norm(MAX_NORM))
    for step in range(STEPS):

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            loss = loss_at(model, step)
            loss.backward()
            return loss

        expected_loss = loss_at(model, step)
        loss: Any = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert torch.equal(loss, expected_loss)
    assert clipper.steps == STEPS
    close(weights(model), train(KINDS[kind], by_hand)[0])


def test_step_of_none_is_no_closure() -> None:
    model = net()
    optimizer = sgd(model)
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    optimizer.step(None)
    assert clipper.clipped == 1


def test_every_step_is_clipped_whoever_wrote_the_gradient() -> None:
    """The same gradient again, and one that was changed behind autograd's back."""
    model = net()
    optimizer = sgd(model, lr=0.0)
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    optimizer.step()
    optimizer.step()
    assert clipper.steps == 2
    grad_of(model.get_parameter("0.weight")).data.mul_(7)
    optimizer.step()
    assert clipper.steps == 3
    assert float(clipper.last.coef) < 0.5  # type: ignore[union-attr]


def test_gradients_that_accumulate_are_clipped_once() -> None:
    def run(hand: bool) -> Tensor:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        clipper = None if hand else attach(optimizer, "norm:0.5")
        for step in range(12):
            (loss_at(model, step) / 4).backward()
            if step % 4 == 3:
                if hand:
                    by_hand(optimizer)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step < 6)
        assert clipper is None or clipper.steps == 3
        return weights(model)

    close(run(hand=False), run(hand=True))


def test_schedulers() -> None:
    def run(hand: bool) -> tuple[Tensor, list[float]]:
        model, rates = net(), []
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1)
        clipper = None if hand else attach(optimizer, "norm:0.5")
        for step in range(STEPS):
            scripted_gradients(model, step)
            if hand:
                by_hand(optimizer)
            optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()
        assert clipper is None or clipper.steps == STEPS
        return weights(model), rates

    (got, rates), (expected, expected_rates) = run(hand=False), run(hand=True)
    close(got, expected)
    assert rates == expected_rates


def test_groups_share_one_norm_and_optimizers_do_not() -> None:
    def run(hand: bool) -> Tensor:
        model = net()
        first, last = model[0], model[2]
        one = torch.optim.SGD(
            [{"params": [first.weight], "lr": 0.05}, {"params": [first.bias], "lr": 0.01}]
        )
        two = torch.optim.Adam(last.parameters(), lr=0.01)
        clippers = [] if hand else [attach(one, "norm:0.5"), attach(two, "norm:0.1")]
        for step in range(STEPS):
            scripted_gradients(model, step)
            if hand:
                clip_by_hand(owned(one), 0.5)
                clip_by_hand(owned(two), 0.1)
            one.step()
            two.step()
        assert [c.steps for c in clippers] in ([], [STEPS, STEPS])
        return weights(model)

    close(run(hand=False), run(hand=True))


def test_a_wrapper_that_delegates() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

        def zero_grad(self) -> None:
            self.optimizer.zero_grad()

    model = net()
    wrapper = Wrapper(sgd(model))
    with pytest.raises(PolicyError, match=r"'Wrapper' is not usable: .* the one inside"):
        attach(wrapper, "norm:0.5")  # type: ignore[arg-type]
    clipper = attach(wrapper.optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    wrapper.step()
    assert clipper.clipped == 1


def test_a_wrapper_that_inherits_and_has_no_hooks_is_refused() -> None:
    class Shell(torch.optim.Optimizer):  # As accelerate's: it never calls super().__init__.
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

    with pytest.raises(PolicyError, match=r"'Shell' is not usable: .* the one inside"):
        attach(Shell(sgd(net())), "norm:0.5")


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_step_that_calls_its_parents_is_one_step(with_closure: bool) -> None:
    class Child(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    sgd(net())  # From now on SGD.step runs hooks, and so does Child.step.
    model = net()
    optimizer = Child(model.parameters(), lr=0.05)
    ran = []
    optimizer.register_step_pre_hook(lambda *_: ran.append(1))
    clipper = attach(optimizer, "norm:0.5", max_skips=1)

    def step(number: int, bad: float | None = None) -> None:
        def closure() -> float:
            scripted_gradients(model, number, bad)
            return 0.0

        closure()
        optimizer.step(closure if with_closure else None)

    step(0)
    assert len(ran) == 2, "torch ran the hooks once: this test has lost its reason"
    assert clipper.steps == clipper.clipped == 1
    before = weights(model)
    step(1, float("nan"))
    assert (clipper.steps, clipper.skipped) == (2, 1)
    assert torch.equal(weights(model), before)
    step(2)
    assert (clipper.steps, clipper.skipped) == (3, 1)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own
@pytest.mark.parametrize("kind", ["AdamW", "SGD-fused"])
def test_a_compiled_step(kind: str) -> None:
    def run(hand: bool) -> Tensor:
        torch.compiler.reset()
        model = net()
        optimizer = KINDS[kind](model.parameters())
        clipper = None if hand else attach(optimizer, "norm:0.5")
        compiled = torch.compile(optimizer.step, backend="eager")
        for step in range(4):
            bad = float("nan") if step == 2 else None
            scripted_gradients(model, step, bad)
            if hand and bad is not None:
                continue
            if hand:
                by_hand(optimizer)
            compiled()
        assert clipper is None or (clipper.steps, clipper.skipped) == (4, 1)
        return weights(model)

    close(run(hand=False), run(hand=True))


# ---- the parameters ------------------------------------------------------------------------


def test_names_come_from_the_model_or_the_optimizer_or_the_groups() -> None:
    model = net()
    names = [name for name, _ in model.named_parameters()]
    assert [n for n, _ in named_parameters(sgd(model), model)] == names
    own = torch.optim.SGD(model.named_parameters(prefix="net"), lr=0.1)
    assert [n for n, _ in named_parameters(own)] == [f"net.{name}" for name in names]
    groups = torch.optim.SGD([{"params": model[0].parameters()}, {"params": [model[2].bias]}])
    assert [n for n, _ in named_parameters(groups)] == ["group0.0", "group0.1", "group1.0"]
    with pytest.raises(PolicyError, match=r"model='dict' is not usable: .*Module"):
        attach(sgd(model), "norm:1", model={})  # type: ignore[arg-type]


def test_rules_by_name_find_the_parameters_of_the_model() -> None:
    model = net()
    optimizer = sgd(model, lr=1.0, momentum=0.0)
    attach(optimizer, by_name({"0.*": by_norm(0.5), "*": by_norm(0.1)}), model=model)
    before = [p.detach().clone() for p in model.parameters()]
    scripted_gradients(model, 0)
    optimizer.step()
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    norms = [
        float(torch.cat([m.flatten() for m in part]).norm()) for part in (moved[:2], moved[2:])
    ]
    assert norms == pytest.approx([0.5, 0.1], rel=1e-5)


def test_added_parameters_are_clipped_too() -> None:
    def run(hand: bool) -> Tensor:
        model = net()
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
        clipper = None if hand else attach(optimizer, "norm:0.5", model=model)
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.1})
            scripted_gradients(model, step)
            if hand:
                by_hand(optimizer)
            optimizer.step()
        if clipper is not None:
            assert clipper.names == ("0.weight", "0.bias", "2.weight", "2.bias")
            assert clipper.steps == 4
        return weights(model)

    close(run(hand=False), run(hand=True))


def test_a_parameter_that_was_replaced_is_noticed() -> None:
    model = net()
    optimizer = sgd(model, momentum=0.0)
    clipper = attach(optimizer, "norm:0.5")
    model[2].bias = nn.Parameter(torch.zeros(3))
    optimizer.param_groups[0]["params"][3] = model[2].bias
    scripted_gradients(model, 0)
    optimizer.step()
    assert clipper.params[3] is model[2].bias
    assert not any(p is None for p in clipper.params)


@dataclass(frozen=True)
class _Half:
    """Half of the largest norm so far: the plainest threshold with a memory."""

    def init(self, norms: Any, xp: Any) -> dict[str, Any]:
        return {"largest": xp.zeros_like(norms)}

    def update(
        self,
        state: Any,
        norms: Any,
        context: Any,  # noqa: ARG002
        xp: Any,
    ) -> tuple[Limits, dict[str, Any]]:
        largest = xp.maximum(state["largest"], norms)
        return Limits(high=largest / 2), {"largest": largest}


def test_one_memory_for_the_whole_model_survives_added_parameters() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
    clipper = attach(optimizer, Policy(Measure(), _Half(), Rescale()), model=model)
    scripted_gradients(model, 0)
    optimizer.step()
    assert float(clipper.last.coef) == 0.5  # type: ignore[union-attr]
    before = clipper.state_dict()["memory"][0][0]["largest"]
    optimizer.add_param_group({"params": model[2].parameters()})
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-6)
    optimizer.step()
    assert len(clipper.names) == 4
    assert torch.equal(clipper.state_dict()["memory"][0][0]["largest"], before)


def test_an_added_parameter_that_no_rule_names_is_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
    attach(optimizer, {"0.*": "norm:0.5"}, model=model)
    optimizer.add_param_group({"params": model[2].parameters()})
    scripted_gradients(model, 0)
    before = snapshot(optimizer)
    with pytest.raises(PolicyError, match=r"2\.weight"):
        optimizer.step()
    assert same(before, snapshot(optimizer))
