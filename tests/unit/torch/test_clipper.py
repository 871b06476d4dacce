"""`Clipper`: names, what it refuses, what it remembers, and what it says."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gradclip.method.threshold
from attached import as_if_attached
from gradclip import (
    Chain,
    ClipResult,
    GradclipWarning,
    Measure,
    NonFiniteError,
    Policy,
    PolicyError,
    by_name,
    by_norm,
)
from gradclip.method.policy import AnyPolicy
from gradclip.method.threshold import Limits
from gradclip.parts import Rescale
from gradclip.torch import Clipper
from grads import grad_of


def _param(*grad: float) -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.zeros(len(grad)))
    param.grad = torch.tensor(grad)
    return param


def _bits(tensor: Tensor | None) -> bytes:
    assert tensor is not None
    return tensor.detach().numpy().tobytes()


@dataclass(frozen=True)
class Running:
    """A threshold with a memory: twice the mean of the norms so far, raw ones."""

    factor: float = 2.0

    def init(self, norms: Any, xp: Any) -> dict[str, Any]:
        zero = xp.zeros_like(norms)
        return {"sum": zero, "count": zero}

    def update(
        self,
        state: dict[str, Any],
        norms: Any,
        context: Any,  # noqa: ARG002
        xp: Any,
    ) -> tuple[Limits, dict[str, Any]]:
        count = xp.where(state["count"] > 0, state["count"], xp.ones_like(norms))
        mean = state["sum"] / count
        high = xp.where(state["count"] > 0, self.factor * mean, norms)
        new = {"sum": state["sum"] + norms, "count": state["count"] + 1}
        return Limits(high=high), new


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Policy:
    """A policy with a memory for each tensor, which its text form knows, too."""
    monkeypatch.setattr(gradclip.method.threshold, "Running", Running, raising=False)
    names = [*gradclip.method.threshold.__all__, "Running"]
    monkeypatch.setattr(gradclip.method.threshold, "__all__", names)
    return Policy(Measure("tensor"), Running(), Rescale())


# ---- parameters and names ------------------------------------------------------------------


def test_names_come_from_named_parameters_or_are_numbers() -> None:
    model = torch.nn.Linear(2, 1)
    assert Clipper(model.named_parameters(), "norm:1").names == ("weight", "bias")
    assert Clipper(model.parameters(), "norm:1").names == ("0", "1")
    assert Clipper(model.weight, "norm:1").names == ("0",)


def test_a_parameter_listed_twice_counts_once_under_its_first_name(path: str) -> None:
    tied, other = _param(3.0), _param(4.0)
    clipper = Clipper([("in", tied), ("mid", other), ("out", tied)], "norm:1")
    result = clipper.clip_()
    assert clipper.names == result.names == ("in", "mid")
    assert float(result.total_norm) == 5, path
    np.testing.assert_allclose([float(tied.grad), float(other.grad)], [0.6, 0.8], 1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ([], "params=[] is not usable: it is empty; a generator"),
        ([1.0], "params='float' is not usable: give model.parameters()"),
        ([("a", 1.0)], "params='tuple'"),
        ([("a", torch.ones(1), 3)], "params='tuple'"),
    ],
)
def test_wrong_parameters_are_refused(params: Any, told: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Clipper(params, "norm:1")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"nonfinite": "ignore"}, "nonfinite='ignore' is not usable: choose one of 'skip'"),
        ({"max_skips": -1}, "max_skips=-1 is not usable: give a whole number >= 0"),
        ({"max_skips": 1.5}, "max_skips=1.5"),
        ({"policy": "norm:-1"}, "max_norm=-1"),
        ({"policy": 3}, "policy=3"),
        ({"policy": {"bias": "norm:1"}}, "parameter='0' is not usable: no pattern matches it"),
        ({"policy": {"wieght": "norm:1", "*": None}}, "pattern='wieght'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Clipper([_param(1.0)], **{"policy": "norm:1", **arguments})
    assert told in str(caught.value)


def test_no_policy_measures_and_changes_nothing(path: str) -> None:
    param = _param(3.0, 4.0)
    before = _bits(param.grad)
    clipper = Clipper([param], None)
    assert clipper.policy == Chain()
    assert float(clipper.clip_().total_norm) == 5
    assert _bits(param.grad) == before, path


def test_repr_says_what_it_is_for() -> None:
    assert repr(Clipper([_param(1.0)], "norm:1")) == "Clipper(<1 parameter>, by_norm(1))"


# ---- results -------------------------------------------------------------------------------


def test_the_result_is_tensors_where_the_gradients_are(path: str) -> None:
    param = _param(3.0, 4.0)
    clipper = Clipper([("w", param)], "norm:1")
    assert clipper.last is None
    result = clipper.clip_()
    assert clipper.last is result
    for name in ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit"):
        value = getattr(result, name)
        assert isinstance(value, Tensor), name
        assert value.shape == ()
        assert value.dtype == torch.float64
    assert (result.clipped.dtype, result.skipped.dtype) == (torch.bool, torch.bool)
    assert result.norms.shape == (1,)
    assert float(result.limit) == 1, path
    assert result.nonfinite == ()


def test_the_limit_is_nan_where_there_is_no_single_one(path: str) -> None:
    params = [("a", _param(3.0)), ("b", _param(4.0))]
    for policy in (None, "floor:1e-3", {"a": "norm:1", "b": "norm:2"}):
        assert math.isnan(float(Clipper(params, policy).clip_().limit)), (path, policy)
    assert float(Clipper(params, "value:1|norm:7").clip_().limit) == 1


def test_observers_see_each_result_in_order(path: str) -> None:
    seen: list[tuple[str, ClipResult]] = []
    clipper = Clipper([_param(3.0, 4.0)], "norm:1")
    clipper.observers.append(lambda result: seen.append(("first", result)))
    clipper.observers.append(lambda result: seen.append(("second", result)))
    results = [clipper.clip_(), clipper.clip_()]
    assert [name for name, _ in seen] == ["first", "second"] * 2, path
    assert [result for _, result in seen] == [results[0], results[0], results[1], results[1]]


def test_an_observer_sees_the_step_that_raises(path: str) -> None:
    seen: list[ClipResult] = []
    clipper = Clipper([_param(math.nan)], "norm:1", nonfinite="raise")
    clipper.observers.append(seen.append)
    with pytest.raises(NonFiniteError):
        clipper.clip_()
    assert [bool(result.skipped) for result in seen] == [True], path


def test_steps_are_counted(path: str) -> None:
    param = _param(3.0, 4.0)
    clipper = Clipper([param], "norm:1", max_skips=5)
    as_if_attached(clipper)  # as if attached: no warning
    for grad in ([3.0, 4.0], [0.1, 0.1], [math.nan, 1.0], [30.0, 4.0]):
        param.grad = torch.tensor(grad)
        clipper.clip_()
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (4, 2, 1), path


def test_a_gradient_that_comes_and_goes(path: str) -> None:
    param, other = _param(3.0, 4.0), _param(1.0)
    clipper = Clipper([param, other], "norm:1,scope=tensor")
    param.grad = None
    assert float(clipper.clip_().total_norm) == 1
    param.grad = torch.tensor([3.0, 4.0])
    clipper.clip_()
    np.testing.assert_allclose(param.grad, [0.6, 0.8], 1e-6, err_msg=path)


# ---- non-finite gradients ------------------------------------------------------------------


def test_a_skip_warns_once_and_names_the_parameter(path: str) -> None:
    good, bad = _param(1.0), _param(math.inf, 1.0)
    clipper = Clipper([("good", good), ("bad", bad)], "norm:1", max_skips=0 + 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert bool(clipper.clip_().skipped)
        good.grad, bad.grad = torch.ones(1), torch.ones(2)  # a good step between
        clipper.clip_()
        good.grad, bad.grad = torch.ones(1), torch.tensor([math.nan, 1.0])
        for _ in range(2):
            clipper.clip_()
    told = [str(w.message) for w in caught if issubclass(w.category, GradclipWarning)]
    if path == "device":
        assert told == []  # looked at steps 4 and 8 only: nothing is read back before
    else:
        assert len(told) == 1
        assert "the gradient of bad holds inf or NaN" in told[0]
        assert "if not result.skipped" in told[0]
        assert caught[0].filename == __file__


def test_too_many_skips_in_a_row_raise_and_name_the_parameters(path: str) -> None:
    params = [("a", _param(math.nan)), ("ok", _param(1.0)), ("b", _param(math.inf))]
    clipper = Clipper(params, "norm:1", max_skips=2)
    as_if_attached(clipper)
    clipper.clip_()
    clipper.clip_()
    with pytest.raises(NonFiniteError) as caught:
        clipper.clip_()
    assert str(caught.value) == (
        "3 steps in a row were skipped (max_skips=2): the gradient of a, b holds inf or NaN; "
        "the last norms were nan, nan, nan; the gradients and the weights are untouched"
    )
    assert math.isnan(float(params[0][1].grad)), path  # type: ignore[arg-type]
    assert float(params[1][1].grad) == 1  # type: ignore[arg-type]


def test_a_good_step_ends_the_row(path: str) -> None:
    param = _param(1.0)
    clipper = Clipper([param], "norm:9", max_skips=2)
    as_if_attached(clipper)
    for value in (math.nan, math.nan, 1.0, math.nan, math.nan, 1.0):
        param.grad = torch.tensor([value])
        clipper.clip_()
    assert clipper.skipped == 4, path


def test_many_bad_parameters_are_abridged() -> None:
    clipper = Clipper([_param(math.nan) for _ in range(20)], "norm:1", nonfinite="raise")
    with pytest.raises(NonFiniteError, match=r"of 0, 1, 2, 3, 4, 5, 6, 7 and 12 more holds"):
        clipper.clip_()


def test_a_skipped_step_enters_no_memory(running: Policy, path: str) -> None:
    param = _param(1.0)
    clipper = Clipper([param], running)
    as_if_attached(clipper)
    clipper.clip_()
    before = clipper.state_dict()["memory"]
    param.grad = torch.tensor([math.nan])
    clipper.clip_()
    assert clipper.state_dict()["memory"] == before, path
    param.grad = torch.tensor([10.0])
    clipper.clip_()
    assert float(param.grad) == 2


# ---- state ---------------------------------------------------------------------------------


def _steps(seed: int = 0) -> Iterator[list[Tensor]]:
    """Yield gradients of ever other sizes, one step of them NaN."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(12):
        scale = float(torch.rand((), generator=generator)) * 10
        grads = [torch.randn(shape, generator=generator) * scale for shape in ((3, 2), (4,))]
        if step == 7:
            grads[1][0] = math.nan
        yield grads


def _train(clipper: Clipper, params: list[Tensor], steps: list[list[Tensor]]) -> None:
    optimizer = torch.optim.SGD(params, lr=0.1)
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        if not bool(clipper.clip_().skipped):
            optimizer.step()


def _fresh(policy: AnyPolicy) -> tuple[Clipper, list[Tensor]]:
    params: list[Tensor] = [torch.nn.Parameter(torch.zeros(s)) for s in ((3, 2), (4,))]
    clipper = Clipper([("a", params[0]), ("b", params[1])], policy)
    as_if_attached(clipper)
    return clipper, params


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", ["memory", "fixed"])
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, running: Policy, path: str) -> None:
    policy = running if kind == "memory" else by_name({"a": by_norm(1.0), "b": "norm:2|value:1"})
    steps = list(_steps())
    whole, expected = _fresh(policy)
    _train(whole, expected, steps)

    first, params = _fresh(policy)
    _train(first, params, steps[:6])
    second, resumed = _fresh(policy)
    second.load_state_dict(_through_a_file(first.state_dict()))
    for now, was in zip(resumed, params, strict=True):
        now.data.copy_(was.data)
    _train(second, resumed, steps[6:])

    assert [_bits(p) for p in resumed] == [_bits(p) for p in expected], path
    assert repr(second.state_dict()) == repr(whole.state_dict())
    assert (second.steps, second.skipped) == (12, 1)
    assert second.clipped == whole.clipped > 0


def test_without_its_memory_the_resumed_run_differs(running: Policy) -> None:
    """The test above can fail: a clipper that forgets gives other weights."""
    steps = list(_steps())
    whole, expected = _fresh(running)
    _train(whole, expected, steps)
    first, params = _fresh(running)
    _train(first, params, steps[:6])
    forgetful, _ = _fresh(running)
    forgetful = Clipper([("a", params[0]), ("b", params[1])], running)
    as_if_attached(forgetful)
    _train(forgetful, params, steps[6:])
    assert [_bits(p) for p in params] != [_bits(p) for p in expected]


def test_the_state_is_plain_and_is_a_copy(running: Policy) -> None:
    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {dict}.union(*map(kinds, value.values()), *map(kinds, value))
        if isinstance(value, list):
            return {list}.union(*map(kinds, value))
        return {type(value)}

    clipper, params = _fresh(running)
    _train(clipper, params, list(_steps())[:3])
    state = clipper.state_dict()
    assert kinds(state) <= {dict, list, str, int, float, bool, type(None), Tensor}
    assert state["schema"] == 1
    kept = repr(state)
    _train(clipper, params, list(_steps())[3:6])
    assert repr(state) == kept
    clipper.load_state_dict(state)
    _train(clipper, params, list(_steps())[3:6])
    assert repr(state) == kept


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"schema": 99}, "schema=99 is not usable: this version reads schema 1"),
        ({"schema": None}, "schema=None"),
        ({"policy": "norm:2"}, "policy='norm:2' is not usable: this clipper's policy is 'norm:1'"),
        ({"names": ["a", "c"]}, "names=['b', 'c'] is not usable"),
        ({"names": ["b", "a"]}, "the order of the names"),
    ],
    ids=str,
)
def test_a_state_of_something_else_is_refused(changed: dict[str, Any], told: str) -> None:
    clipper, params = _fresh(by_norm(1))
    _train(clipper, params, list(_steps())[:2])
    before = repr(clipper.state_dict())
    with pytest.raises(PolicyError) as caught:
        clipper.load_state_dict({**clipper.state_dict(), **changed})
    assert told in str(caught.value)
    assert repr(clipper.state_dict()) == before


def test_the_same_policy_in_other_words_is_the_same() -> None:
    clipper, _ = _fresh(by_norm(1))
    other, _ = _fresh(by_norm(max_norm=1.0, order=2))
    clipper.clip_()
    other.load_state_dict(clipper.state_dict())
    assert other.steps == clipper.steps == 1


def test_other_parameters_can_be_bound_while_nothing_is_remembered() -> None:
    clipper, _ = _fresh(by_norm(1.0))
    clipper.clip_()
    new = _param(3.0, 4.0)
    clipper.rebind([("new", new)])
    assert clipper.names == ("new",)
    assert float(clipper.clip_().total_norm) == 5
    assert clipper.steps == 2
    np.testing.assert_allclose(grad_of(new), [0.6, 0.8], 1e-6)


def test_a_state_that_an_older_version_saved_is_read() -> None:
    """Written out as version 0.x saved it, so that the format is held."""
    clipper, _ = _fresh(by_norm(1.0))
    state = {
        "schema": 1,
        "policy": "norm:1.0",
        "names": ["a", "b"],
        "steps": 7,
        "clipped": 3,
        "skipped": 2,
        "in_a_row": 1,
        "memory": [[{}]],
    }
    clipper.load_state_dict(state)
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (7, 3, 2)
    assert clipper.state_dict() == state
    with pytest.raises(PolicyError, match=r"these keys are missing: \['memory'\]"):
        clipper.load_state_dict({k: v for k, v in state.items() if k != "memory"} | {"steps": 9})
    assert clipper.steps == 7  # What cannot be read changes nothing.


def test_what_is_remembered_of_a_parameter_follows_it(running: Policy) -> None:
    clipper, params = _fresh(running)
    _train(clipper, params, list(_steps())[:3])
    a, b = clipper.state_dict()["memory"][0][0]["sum"].tolist()
    clipper.rebind([("new", _param(1.0)), ("b", params[1]), ("a", params[0])])
    assert clipper.names == ("new", "b", "a")
    memory = clipper.state_dict()["memory"][0][0]
    assert memory["sum"].tolist() == [0, b, a]
    assert memory["count"].tolist() == [0, 3, 3]


# ---- a loss scaler's gradients -------------------------------------------------------------


def test_scaled_gradients_are_divided_first(path: str) -> None:
    param = _param(3.0 * 1024, 4.0 * 1024)
    clipper = Clipper([param], "norm:10")
    decision = clipper.decide(clipper.gradients(), scale=torch.tensor(1024.0))
    decision.apply()
    result = clipper.finish(decision)
    assert float(result.total_norm) == 5
    assert param.grad is not None
    assert param.grad.tolist() == [3.0, 4.0], path


# ---- no gradient is touched by a policy that cannot be applied ------------------------------


def test_a_refused_gradient_leaves_the_others(path: str) -> None:
    real, other = _param(3.0), torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    other.grad = torch.ones(1, dtype=torch.complex64)
    with pytest.raises(PolicyError, match=r"gradient w2 dtype='torch\.complex64'"):
        Clipper([("w1", real), ("w2", other)], "value:0.1").clip_()
    assert float(real.grad) == 3, path  # type: ignore[arg-type]
