"""What `gradclip run` makes of a script that clips by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

import gradclip.torch
from gradclip import Run, advise, diagnose, parse, read_run
from gradclip.errors import NonFiniteError
from gradclip.record import RecordWriter
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session
from grads import grad_of
from integration.training import ReadsBack, decided_on_device, loss_at, net, weights

LIMIT = 0.5
Clip = Callable[[nn.Sequential], object]


class Seen:
    """A session, its record, and the norms before any clipping, a row of each step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.norms: list[list[float]] = []
        self.session: Session
        self.run: Run

    def train(
        self,
        steps: Callable[[Seen], object],
        policy: str | None = None,
        **options: Any,
    ) -> Seen:
        plan = None if policy is None else parse(policy)
        self.session = Session(plan, writer=RecordWriter(self.path, policy=policy), **options)
        status = "ok"
        try:
            with watch(self.session):
                steps(self)
        finally:
            self.session.close(status)
            self.run = read_run(self.path)
        return self

    def look(self, model: nn.Module) -> None:
        self.norms.append([float(grad_of(p).double().norm()) for p in model.parameters()])

    @property
    def events(self) -> dict[str, str]:
        return {event.name: event.text for event in self.run.events}

    def check(self) -> None:
        """Check that the record has the norms before clipping."""
        want = np.array(self.norms)
        np.testing.assert_allclose(self.run.norms().matrix, want, rtol=1e-5)
        np.testing.assert_allclose(self.run.column("norm"), np.linalg.norm(want, axis=1), rtol=1e-5)


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path / "run.jsonl")


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def loop(clip: Clip, model: nn.Sequential, steps: int = 4) -> Callable[[Seen], None]:
    """Return an ordinary training that clips by itself."""

    def run(seen: Seen) -> None:
        optimizer = sgd(model)
        for step in range(steps):
            optimizer.zero_grad()
            loss_at(model, step).backward()
            seen.look(model)
            clip(model)
            optimizer.step()

    return run


def _with_norm(model: nn.Module) -> None:
    total = torch.nn.utils.get_total_norm([grad_of(p) for p in model.parameters()])
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), LIMIT, total)


def _twice(model: nn.Module) -> None:
    torch.nn.utils.clip_grad_value_(model.parameters(), LIMIT)
    torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)


def _per_group(model: nn.Sequential) -> None:
    for part in (model[2], model[0]):
        torch.nn.utils.clip_grad_norm_(part.parameters(), LIMIT)


def _one_by_one(model: nn.Module) -> None:
    for param in model.parameters():
        torch.nn.utils.clip_grad_norm_(param, LIMIT)


WAYS: dict[str, Clip] = {
    "generator": lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), LIMIT),
    "in another order": lambda m: clip_grad.clip_grad_norm_([*m.parameters()][::-1], LIMIT),
    "a superset": lambda m: clip_grad.clip_grad_norm_([*m.parameters(), *net(3).parameters()], 1),
    "a part": lambda m: torch.nn.utils.clip_grad_norm_(m[2].parameters(), LIMIT),
    "by value": lambda m: torch.nn.utils.clip_grad_value_(m.parameters(), LIMIT),
    "with norm": _with_norm,
    "twice": _twice,
    "per group": _per_group,
    "one by one": _one_by_one,
    "gradclip's": lambda m: gradclip.torch.clip_grad_norm_(m.parameters(), LIMIT),
    "foreach off": lambda m: clip_grad.clip_grad_norm_(m.parameters(), LIMIT, foreach=False),
    "max norm": lambda m: clip_grad.clip_grad_norm_(m.parameters(), LIMIT, norm_type=math.inf),
}


@pytest.mark.parametrize("policy", [None, "norm:0.1"])
@pytest.mark.parametrize("way", WAYS)
def test_norms_are_those_before_the_scripts_clipping(
    way: str, policy: str | None, seen: Seen
) -> None:
    clipped, model = net(), net()
    loop(WAYS[way], clipped)(Seen(seen.path))
    seen.train(loop(WAYS[way], model), policy)
    seen.check()
    if policy is None:
        assert torch.equal(weights(clipped), weights(model))  # Nothing that is computed changes.
    first = seen.run.column("clipped")[0]
    assert first
    after, before = seen.run.column("clipped_norm"), seen.run.column("norm")
    np.testing.assert_allclose(seen.run.column("coef"), after / before, rtol=1e-6)
    if policy is not None:
        np.testing.assert_allclose(after.max(), 0.1, rtol=1e-6)


def test_the_scripts_limit_and_coefficient_are_in_the_row(seen: Seen) -> None:
    seen.train(loop(WAYS["generator"], net()))
    run, norm = seen.run, seen.run.column("norm")
    coef = np.minimum(1, LIMIT / norm)
    np.testing.assert_array_equal(run.column("limit"), LIMIT)
    np.testing.assert_array_equal(run.column("script_limit"), LIMIT)
    np.testing.assert_allclose(run.column("script_coef"), coef, rtol=1e-5)
    np.testing.assert_allclose(run.column("coef"), coef, rtol=1e-5)
    np.testing.assert_allclose(run.column("removed"), 1 - coef, atol=1e-5)
    np.testing.assert_array_equal(run.column("cosine"), 1)
    assert run.column("clipped").tolist() == (norm > LIMIT).tolist() == [1, 1, 0, 1]


def test_both_clip_and_the_row_tells_both(seen: Seen) -> None:
    seen.train(loop(WAYS["generator"], net()), "norm:0.1")
    run, norm = seen.run, seen.run.column("norm")
    np.testing.assert_array_equal(run.column("limit"), 0.1)
    np.testing.assert_array_equal(run.column("script_limit"), LIMIT)
    np.testing.assert_allclose(run.column("script_coef"), np.minimum(1, LIMIT / norm), rtol=1e-5)
    (found,) = [found for found in diagnose(run) if found.kind == "double-clipping"]
    assert "--take-over" in found.suggestion
    assert "--take-over" in seen.session.notices["clip_grad_norm_"]


def test_per_layer_factors_have_their_cosine(seen: Seen) -> None:
    model, left = net(), []

    def clip(model: nn.Sequential) -> None:
        before = torch.cat([grad_of(p).flatten().clone() for p in model.parameters()])
        _one_by_one(model)
        after = torch.cat([grad_of(p).flatten() for p in model.parameters()])
        cosine = torch.cosine_similarity(before.double(), after.double(), 0)
        left.append((float(cosine), float((before - after).norm() / before.norm())))

    run = seen.train(loop(clip, model)).run
    np.testing.assert_allclose(run.column("cosine"), [c for c, _ in left], atol=1e-6)
    np.testing.assert_allclose(run.column("removed"), [r for _, r in left], atol=1e-5)
    assert np.isnan(run.column("limit")).all()


@pytest.mark.parametrize("joint", [True, False])
def test_one_call_for_several_optimizers(joint: bool, seen: Seen) -> None:
    model = net()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.01) for i in (0, 2)]
    if not joint:
        optimizers[1].register_step_pre_hook(lambda *_: None)

    def train(seen: Seen) -> None:
        for step in range(3):
            model.zero_grad()
            loss_at(model, step).backward()
            seen.look(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            for optimizer in optimizers:
                optimizer.step()

    run = seen.train(train).run
    if joint:
        seen.check()
        return
    want = np.array(seen.norms)
    for i in range(2):
        part = np.linalg.norm(want[:, 2 * i : 2 * i + 2], axis=1)
        np.testing.assert_allclose(run.column("norm", i), part, rtol=1e-5)
        coef = np.minimum(1, LIMIT / np.linalg.norm(want, axis=1))
        np.testing.assert_allclose(run.column("script_coef", i), coef, rtol=1e-5)


def test_a_clip_waits_for_its_step_while_another_model_has_its_backward(seen: Seen) -> None:
    models = net(0), net(1)
    optimizers = [sgd(model) for model in models]

    def train(seen: Seen) -> None:
        for step in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                loss_at(model, step).backward()
                seen.look(model)
                torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            for optimizer in optimizers:
                optimizer.step()

    run = seen.train(train).run
    want = np.linalg.norm(np.array(seen.norms).reshape(3, 8), axis=1)
    np.testing.assert_allclose(run.column("norm", 0), want, rtol=1e-5)
    assert "script-clips-late" not in seen.events


def test_in_a_closure(seen: Seen) -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)

    def train(seen: Seen) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_at(model, 0)
            loss.backward()
            seen.look(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            return loss

        for _ in range(2):
            optimizer.step(closure)

    seen.train(train)
    seen.check()
    assert "script-clips-late" not in seen.events


def test_a_function_that_a_module_has_imported_before(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "clip_grad_norm_", clip_grad.clip_grad_norm_)
    model = net()
    seen.train(loop(lambda m: globals()["clip_grad_norm_"](m.parameters(), LIMIT), model))
    seen.check()
    assert globals()["clip_grad_norm_"] is clip_grad.clip_grad_norm_


def test_sparse_gradients(seen: Seen) -> None:
    table = nn.Embedding(8, 3, sparse=True)
    optimizer = sgd(table)

    def train(seen: Seen) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            (table(torch.tensor([1, 5, 1])).sum() * 3).backward()
            seen.norms.append([float(grad_of(table.weight).coalesce().values().norm())])
            gradclip.torch.clip_grad_norm_(table.parameters(), LIMIT)
            optimizer.step()

    seen.train(train)
    seen.check()


def test_each_micro_batch_that_is_clipped_is_measured_before_its_last_clip(seen: Seen) -> None:
    model = net()
    optimizer = sgd(model)

    def train(seen: Seen) -> None:
        for step in range(3):
            optimizer.zero_grad()
            for micro in range(2):
                loss_at(model, 2 * step + micro).backward()
                if micro:
                    seen.look(model)
                torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()

    seen.train(train)
    seen.check()


def test_gradients_that_change_after_the_clip_are_measured_at_the_step(seen: Seen) -> None:
    model = net()
    optimizer = sgd(model)

    def train(seen: Seen) -> None:
        for step in range(3):
            optimizer.zero_grad()
            loss_at(model, step).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            loss_at(model, step + 1).backward()
            seen.look(model)
            optimizer.step()

    seen.train(train)
    seen.check()
    assert "between clip_grad_norm_ and the step" in seen.events["norms-after"]


@pytest.mark.parametrize("unscale", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler(unscale: bool, fused: bool, seen: Seen) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def train(seen: Seen) -> None:
        for step in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_at(model, step)).backward()
            if unscale:
                scaler.unscale_(optimizer)
            seen.look(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            scaler.step(optimizer)
            scaler.update()

    seen.train(train)
    if unscale:
        seen.check()
        assert "norms-after" not in seen.events
    else:  # All are cut to the limit, and divided after that.
        np.testing.assert_allclose(seen.run.column("norm"), LIMIT / 1024, rtol=1e-4)
        assert "unscale_" in seen.events["norms-after"]


def test_an_accelerator_is_not_waited_for(seen: Seen) -> None:
    model = net()
    optimizer = sgd(model)
    counts = []

    def train(_: Seen) -> None:
        for step in range(4):
            optimizer.zero_grad()
            loss_at(model, step).backward()
            with decided_on_device(), ReadsBack() as reads:
                torch.nn.utils.clip_grad_norm_([*model.parameters()], LIMIT)
                optimizer.step()
            counts.append(reads.count)

    seen.train(train)
    assert counts[1:] == [0, 0, 0]


# ---- inf and NaN


@pytest.mark.parametrize("limit", [1.0, math.inf])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_one_bad_parameter_is_named(bad: float, limit: float, seen: Seen) -> None:
    model = net()

    def clip(model: nn.Sequential) -> None:
        if len(seen.norms) == 2:
            grad_of(model.get_parameter("0.bias"))[0] = bad
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)

    run = seen.train(loop(clip, model, 2)).run
    (found,) = [found for found in diagnose(run) if found.kind == "non-finite"]
    assert found.evidence["source"] == "0.bias"
    assert found.evidence["first_names"] == ["0.bias"]
    assert ("script-clips" in seen.events) == (limit == 1.0)


def test_the_one_bad_parameter_is_named_when_an_attached_clipper_follows(seen: Seen) -> None:
    model = net()
    results: list[Any] = []

    def train(_: Seen) -> None:
        optimizer = sgd(model)
        clipper = gradclip.torch.attach(optimizer, "norm:1", model=model)
        clipper.observers.append(results.append)
        loss_at(model, 0).backward()
        grad_of(model.get_parameter("0.bias"))[0] = math.nan
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()

    run = seen.train(train).run
    (found,) = [found for found in diagnose(run) if found.kind == "non-finite"]
    assert found.evidence["first_names"] == ["0.bias"]
    assert len(results[0].nonfinite) == 4  # The script sees what it would see without us.


def test_the_error_of_a_skip_too_many_names_the_one(seen: Seen) -> None:
    model = net()

    def clip(model: nn.Sequential) -> None:
        grad_of(model.get_parameter("0.bias"))[0] = math.nan
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    with pytest.raises(NonFiniteError, match=r"0\.bias") as raised:
        seen.train(loop(clip, model), "norm:1", max_skips=1)
    assert "2.weight" not in str(raised.value)
    assert seen.session.skipped == 2


# ---- Taking over

TAKEN: dict[str, Clip] = {
    "torch": lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), LIMIT),
    "gradclip": lambda m: gradclip.torch.clip_grad_norm_(m.parameters(), LIMIT),
    "one": lambda m: torch.nn.utils.clip_grad_norm_(m.get_parameter("0.weight"), LIMIT, 3.0),
    "value": lambda m: torch.nn.utils.clip_grad_value_(m.parameters(), LIMIT),
    "with norm": _with_norm,
    "infinite": lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), math.inf),
}


@pytest.mark.parametrize("way", TAKEN)
def test_what_is_taken_over_returns_the_same_and_changes_nothing(way: str, seen: Seen) -> None:
    alone, model = net(), net()
    loop(lambda _: None, alone)(Seen(seen.path))
    plain = net()
    loss_at(plain, 0).backward()
    wanted, got = TAKEN[way](plain), []
    seen.train(loop(lambda m: got.append(TAKEN[way](m)), model), "norm:1000", take_over=True)
    assert torch.equal(weights(alone), weights(model))
    seen.check()
    assert got[0] == wanted if wanted is None else torch.equal(got[0], wanted)  # type: ignore[arg-type]
    assert ("taken-over" in seen.events) == (way != "infinite")
    assert not [found for found in diagnose(seen.run) if found.kind == "double-clipping"]


def test_taken_over_the_policy_replaces_the_scripts_limit(seen: Seen) -> None:
    taken, attached = net(), net()
    seen.train(loop(TAKEN["torch"], taken), "norm:0.7", take_over=True)
    optimizer = sgd(attached)
    clipper = gradclip.torch.attach(optimizer, "norm:0.7")
    for step in range(4):
        optimizer.zero_grad()
        loss_at(attached, step).backward()
        optimizer.step()
    clipper.detach()
    assert torch.equal(weights(taken), weights(attached))
    assert seen.session.notices["clip_grad_norm_"].startswith("taken over: clip_grad_norm_(…, 0.5)")


def test_a_taken_over_call_still_refuses_what_is_not_finite(seen: Seen) -> None:
    def clip(model: nn.Sequential) -> None:
        grad_of(model.get_parameter("0.bias"))[0] = math.nan
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)

    with pytest.raises(RuntimeError, match="non-finite"):
        seen.train(loop(clip, net()), "norm:1", take_over=True)


# ---- Too late


def late(model: nn.Sequential, clip: Clip, *, to_none: bool, steps: int = 3) -> Any:
    def train(seen: Seen) -> None:
        optimizer = sgd(model)
        for step in range(steps):
            loss_at(model, step).backward()
            seen.look(model)
            optimizer.step()
            clip(model)
            optimizer.zero_grad(set_to_none=to_none)

    return train


@pytest.mark.parametrize("policy", [None, "norm:0.1"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("way", ["generator", "by value", "gradclip's", "per group"])
def test_clipping_after_the_step_is_told(
    way: str, to_none: bool, policy: str | None, seen: Seen
) -> None:
    seen.train(late(net(), WAYS[way], to_none=to_none), policy)
    (text,) = seen.session.notices.values()
    assert "is called after step(), when the gradients are used: it changes nothing" in text
    assert [*seen.events] == ["script-clips-late"]
    seen.check()
    assert not [found for found in diagnose(seen.run) if found.kind == "double-clipping"]


def test_clipping_after_zero_grad_is_told(seen: Seen) -> None:
    model = net()

    def train(_: Seen) -> None:
        optimizer = sgd(model)
        for step in range(4):
            loss_at(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)

    seen.train(train)
    assert "after zero_grad()" in seen.events["script-clips-late"]


def test_measuring_after_the_step_is_fine(seen: Seen) -> None:
    measure: Clip = lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), math.inf)  # noqa: E731
    assert not seen.train(late(net(), measure, to_none=True)).events


def test_gradients_that_go_on_are_not_clipped_too_late(seen: Seen) -> None:
    model = net()

    def train(_: Seen) -> None:
        optimizer = sgd(model)
        for step in range(4):  # As momentum of one's own: they are never thrown away.
            loss_at(model, step).backward()
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)

    assert "script-clips-late" not in seen.train(train).events


def test_two_optimizers_of_the_same_parameters_are_not_too_late(seen: Seen) -> None:
    model = net()

    def train(_: Seen) -> None:
        first, second = sgd(model), torch.optim.Adam(model.parameters())
        for step in range(4):
            model.zero_grad()
            loss_at(model, step).backward()
            first.step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            second.step()

    assert "script-clips-late" not in seen.train(train).events


def test_accumulation_that_clips_each_time_is_not_too_late(seen: Seen) -> None:
    model = net()

    def train(_: Seen) -> None:
        optimizer = sgd(model)
        for step in range(6):
            loss_at(model, step).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()

    assert "script-clips-late" not in seen.train(train).events


# ---- What is made of the record


def test_the_advice_is_for_the_scripts_own_limit(seen: Seen) -> None:
    run = seen.train(loop(WAYS["generator"], net(), 80)).run
    advice = advise(run)
    assert "--take-over" in advice.command
    assert any("The script's own limit is 0.5" in caveat for caveat in advice.caveats)
    assert "double-clipping" not in {found.kind for found in diagnose(run)}
    assert not any("were cut" in caveat for caveat in advice.caveats)
