"""`attach` from its first step to its last: copies, detaching, freeing, errors, the end."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradclip import PolicyError
from gradclip.torch import attach
from gradclip.torch.step.unseen import _unseen
from integration.training import (
    KINDS,
    STEPS,
    net,
    owned,
    same,
    scripted_gradients,
    snapshot,
    weights,
)


def sgd(model: torch.nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# ---- copies, saving, detaching -------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimizer_works_and_is_not_attached(duplicate: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    optimizer.step()
    other = duplicate(optimizer)
    assert same(snapshot(other)["state"], snapshot(optimizer)["state"])
    for p, q in zip(owned(other), owned(optimizer), strict=True):
        p.grad = torch.full_like(q, 3.0)
    other.step()
    assert clipper.steps == 1
    assert all(bool((p.grad == 3).all()) for p in owned(other))
    again = attach(other, "norm:0.5")
    other.step()
    assert again.clipped == 1


def test_saving_and_loading_the_optimizer(tmp_path: Any) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert same(saved, optimizer.state_dict())
    optimizer.load_state_dict(saved)
    scripted_gradients(model, 1)
    optimizer.step()


@pytest.mark.parametrize("kind", ["SGD", "AdamW-fused", "RMSprop-foreach"])
def test_detached_is_as_if_never_attached(kind: str) -> None:
    def run(attached: bool) -> dict[str, Any]:
        model = net()
        optimizer = KINDS[kind](model.parameters())
        if attached:
            clipper = attach(optimizer, "norm:0.5")
            clipper.detach()
            clipper.detach()  # Once more does no harm.
        for step in range(STEPS):
            scripted_gradients(model, step)
            optimizer.step()
        hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
        assert not any(hooks)
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()
        return snapshot(optimizer)

    assert same(run(attached=True), run(attached=False))


def test_attach_once_until_detached() -> None:
    optimizer = sgd(net())
    clipper = attach(optimizer, "norm:0.5")
    with pytest.raises(PolicyError, match=r"'SGD' is not usable: it has a clipper already: call"):
        attach(optimizer, "norm:0.5")
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    clipper.detach()
    again = attach(optimizer, "norm:0.1")
    assert again is not clipper
    again.detach()


def test_a_refused_argument_leaves_no_hook() -> None:
    optimizer = sgd(net())
    waiting = +_unseen
    for arguments in ({"policy": "norm:-1"}, {"policy": "norm:1", "nonfinite": "what"}):
        with pytest.raises(PolicyError):
            attach(optimizer, **arguments)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_pre_hooks
    assert +_unseen == waiting


def test_no_policy_changes_nothing() -> None:
    model, twin = net(), net()
    optimizer, other = sgd(model), sgd(twin)
    clipper = attach(optimizer, None)
    for step in range(STEPS):
        for m, o in ((model, optimizer), (twin, other)):
            scripted_gradients(m, step)
            o.step()
    assert same(snapshot(optimizer), snapshot(other))
    assert (clipper.steps, clipper.clipped) == (STEPS, 0)


@pytest.mark.parametrize("end", ["stepped", "never stepped", "detached", "raised"])
def test_nothing_keeps_the_optimizer_and_the_clipper_alive(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gradclip.torch.step.unseen._unseen", Counter()
    )  # No warning at our own exit.
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    clipper = attach(optimizer, "norm:0.5", nonfinite="raise" if end == "raised" else "skip")
    scripted_gradients(model, 0, float("inf") if end == "raised" else None)
    if end == "raised":
        with pytest.raises(RuntimeError):
            optimizer.step()
    elif end != "never stepped":
        optimizer.step()
    if end == "detached":
        clipper.detach()
    gone = [weakref.ref(optimizer), weakref.ref(clipper), weakref.ref(model[0].weight)]
    del optimizer, clipper, model
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_a_detached_clipper_is_freed_before_its_optimizer() -> None:
    optimizer = sgd(net())
    clipper = attach(optimizer, "norm:0.5")
    clipper.detach()
    gone = weakref.ref(clipper)
    del clipper
    gc.collect()
    assert gone() is None


# ---- what raises on the way ----------------------------------------------------------------


def test_an_error_in_the_closure_leaves_the_gradients() -> None:
    model = net()
    optimizer = sgd(model)
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0)
    before = snapshot(optimizer)

    def closure() -> float:
        raise KeyError("no batch")

    with pytest.raises(KeyError, match="no batch"):
        optimizer.step(closure)
    assert same(snapshot(optimizer), before)
    assert clipper.steps == 0
    optimizer.step()
    assert clipper.clipped == 1


class _Strict(torch.optim.Optimizer):
    """Raises where a gradient is missing, as some optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        for p in owned(self):
            if p.grad is None:
                raise LookupError("no gradient")
            p.data -= 0.1 * p.grad


@pytest.mark.parametrize("then", ["step", "detach", "new gradients"])
def test_a_skipped_step_is_not_even_called(then: str) -> None:
    model = net()
    optimizer = _Strict(model.parameters())
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0, float("nan"))
    before = snapshot(optimizer)
    optimizer.step()
    assert same(snapshot(optimizer), before)
    if then == "detach":
        clipper.detach()
        assert same(snapshot(optimizer), before)
        optimizer.zero_grad()
        with pytest.raises(LookupError):
            optimizer.step()
    elif then == "step":
        optimizer.step()  # The same gradients, skipped once more.
        assert clipper.skipped == 2
        assert same(snapshot(optimizer), before)
    else:
        scripted_gradients(model, 1)
        optimizer.step()
        assert clipper.clipped == 1
        assert not torch.equal(weights(model), torch.cat([w.flatten() for w in before["weights"]]))


class _Twice(torch.optim.SGD):
    """Evaluates its closure twice, as a line search does."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure()
        closure()


def test_an_error_in_a_closure_after_a_bad_evaluation_leaves_the_gradients() -> None:
    model = net()
    optimizer = _Twice(model.parameters(), lr=0.1)
    clipper = attach(optimizer, "norm:0.5")
    scripted_gradients(model, 0, float("nan"))
    before = snapshot(optimizer)
    calls = []

    def closure() -> None:
        assert same(snapshot(optimizer), before)
        calls.append(1)

    optimizer.step(closure)
    assert len(calls) == 1  # A step that begins with a bad gradient is over then.
    assert clipper.skipped == 1
    errors = iter([None, KeyError("no batch")])

    def second() -> None:
        if error := next(errors):
            raise error
        scripted_gradients(model, 0)

    with pytest.raises(KeyError, match="no batch"):
        optimizer.step(second)
    assert same(snapshot(optimizer)["weights"], before["weights"])


# ---- the warning at exit -------------------------------------------------------------------

_SCRIPT = """
import torch
from gradclip.torch import attach

def script(limit, *, steps=0, detach=False):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = attach(optimizer, f"norm:{limit}")
    for _ in range(steps):
        weight.grad = torch.ones(3)
        optimizer.step()
    if detach:
        clipper.detach()
    return optimizer

script(1)
kept = script(2)
script(3, steps=1)
script(4, detach=True)
script(5, steps=1, detach=True)
"""


def test_who_never_saw_a_step_is_told_at_exit() -> None:
    command = [sys.executable, "-W", "error", "-c", _SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    told = "gradclip: warning: Clipper(<1 parameter>, by_norm({})) was attached and never saw "
    assert done.stderr.splitlines() == [
        told.format(limit) + "optimizer.step(): nothing was clipped" for limit in (1, 2)
    ]
