"""Steps that are left out: by which rule, that nothing of them stays, and when it is too many."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import gradclip.numpy
from attached import as_if_attached
from contract.backends import Arrays, start
from gradclip import (
    GradclipWarning,
    NonFiniteError,
    PolicyError,
    by_name,
    by_norm,
    by_value,
    centered,
    clip21,
    skip_above,
    skip_outliers,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy
from gradclip.parts import Context, WindowZScore
from gradclip.torch import Clipper, attach

BACKENDS = ("numpy", "kernel", "fallback", "device")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def _of_norm(norm: float) -> Arrays:
    return [np.asarray([0.6, 0.8]) * norm, np.zeros(3)]


def _skipped(backend: str, policy: AnyPolicy, norms: list[float], losses: Any = None) -> list[int]:
    """Return which of the steps, of these norms and losses, are skipped."""
    steps = start(backend, [np.zeros(2), np.zeros(3)], policy)
    losses = [None] * len(norms) if losses is None else losses
    found = []
    for i, (norm, loss) in enumerate(zip(norms, losses, strict=True)):
        before = _of_norm(norm)
        after, result = steps.step(before, loss)
        if bool(result.skipped):
            found.append(i)
            assert not bool(result.clipped)
        for now, was in zip(after, before, strict=True):
            assert now is not None
            assert was is not None
            assert now.tobytes() == was.tobytes()
    return found


# ---- the rules -----------------------------------------------------------------------------


@each_backend
def test_above_a_norm(backend: str) -> None:
    norms = [1.0, 2.0, math.nextafter(2.0, 3), 0.0, 5.0, math.nan, 2.0]
    # 0.6² + 0.8² is 1 in floating point, so the limit itself is met exactly.
    assert _skipped(backend, skip_above(2.0), norms) == [2, 4, 5]


def _expected(values: list[float], k: float, window: int, minimum: int) -> list[int]:
    """Return which values exceed mean + k·s of the last ones before: the rule, plainly."""
    seen: list[float] = []
    found = []
    for i, value in enumerate(values):
        if not math.isfinite(value):
            found.append(i)
            continue
        last = seen[-window:]
        if len(last) + 1 >= minimum and value > np.mean(last) + k * np.std(last, ddof=1):
            found.append(i)
        seen.append(value)  # An outlier counts too.
    return found


@each_backend
@pytest.mark.parametrize(("k", "window", "minimum"), [(2.0, 8, 4), (0.5, 4, 3), (3.0, 30, 10)])
def test_an_outlier_of_the_norms(backend: str, k: float, window: int, minimum: int) -> None:
    norms = (np.random.default_rng(5).standard_t(2, size=60) ** 2 + 1).tolist()
    norms[20], norms[21], norms[40] = math.nan, math.inf, 0.0  # A drop is no fault.
    expected = _expected(norms, k, window, minimum)
    assert len(expected) > 3
    assert _skipped(backend, skip_outliers(k, window, minimum), norms) == expected


@each_backend
def test_an_outlier_of_the_losses(backend: str) -> None:
    losses = [1.0, 1.2, 0.9, 1.1, 8.0, 1.0, -9.0, 1.0, math.nan, 1.0, math.inf]
    expected = _expected(losses, 3.0, 6, 4)
    assert expected == [4, 8, 10]
    policy = skip_outliers(3.0, 6, 4, of="loss")
    assert _skipped(backend, policy, [1.0] * len(losses), losses) == expected


@each_backend
def test_an_outlier_of_either(backend: str) -> None:
    norms = [1.0, 1.1, 0.9, 1.0, 9.0, 1.0, 1.0, 1.1]
    losses = [2.0, 2.1, 1.9, 2.0, 2.0, 2.0, 8.0, 2.0]
    policy = skip_outliers(3.0, 6, 4) | skip_outliers(3.0, 6, 4, of="loss")
    assert _skipped(backend, policy, norms, losses) == [4, 6]


@each_backend
def test_a_rule_for_some_parameters_skips_the_whole_step(backend: str) -> None:
    policy = by_name({"0": skip_above(2.0), "*": by_norm(1.0)})
    steps = start(backend, [np.zeros(2), np.zeros(3)], policy)
    before: Arrays = [np.asarray([3.0, 0.0]), np.asarray([5.0, 0.0, 0.0])]
    after, result = steps.step(before)
    assert bool(result.skipped)
    assert [a.tolist() for a in after if a is not None] == [[3, 0], [5, 0, 0]]


@each_backend
def test_one_group_skips_before_another_is_changed(backend: str) -> None:
    """Whatever the order of the rules, and however many rules of its own a group has."""
    several = skip_above(9.0) | skip_above(2.0) | by_norm(1.0)
    policy = by_name({"0": by_value(0.5), "1": zclip(warmup=2), "*": several})
    weights: Arrays = [np.zeros(2), np.zeros(2), np.zeros(2)]
    small: Arrays = [np.full(2, 0.1), np.full(2, 0.2), np.full(2, 0.3)]
    large: Arrays = [np.full(2, 3.0), np.full(2, -4.0), np.full(2, 5.0)]
    hit, spared = start(backend, weights, policy), start(backend, weights, policy)
    for steps in (hit, spared):
        _, result = steps.step(small)
        assert not bool(result.skipped)
    after, result = hit.step(large)
    assert bool(result.skipped)
    assert not bool(result.clipped)
    assert (float(result.removed), float(result.coef), float(result.cosine)) == (0, 1, 1)
    for now, was in zip(after, large, strict=True):
        assert now is not None
        assert was is not None
        assert now.tobytes() == was.tobytes()
    for now, was in zip(hit.memory(), spared.memory(), strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize(
    "late",
    [
        lambda: by_norm(1.0) | skip_above(2.0),
        lambda: skip_above(9.0) | by_norm(1.0) | skip_above(2.0),
        lambda: with_feedback(by_norm(1.0)) | skip_above(2.0),
        lambda: by_norm(1.0) | by_name({"0": None, "*": None}) | skip_above(2.0),
        lambda: by_norm(1.0) | by_name({"0": skip_above(2.0), "*": None}),
        lambda: by_norm(1.0) | (skip_above(2.0) | by_norm(1.0)),
    ],
)
def test_a_skip_comes_before_what_changes_gradients(late: Any) -> None:
    with pytest.raises(PolicyError, match=r"goes before .*by_norm\(1\.0\)"):
        late()


@pytest.mark.parametrize("wrap", [with_feedback, centered, clip21])
def test_a_skip_is_not_wrapped(wrap: Any) -> None:
    with pytest.raises(PolicyError, match="goes before the wrapper"):
        wrap(skip_above(2.0) | by_norm(1.0))


# ---- weights -------------------------------------------------------------------------------


def _training(policy: AnyPolicy, **options: Any) -> tuple[torch.nn.Parameter, Any, Clipper]:
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    return weight, optimizer, attach(optimizer, policy, **options)


def _step(weight: torch.nn.Parameter, optimizer: Any, norm: float) -> None:
    weight.grad = torch.tensor([0.6, 0.8], dtype=torch.float64).mul(norm).float()
    optimizer.step()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("policy", [skip_above(2.0), skip_outliers(3.0, 8, 4)], ids=str)
def test_a_skipped_step_does_not_reach_the_weights(policy: AnyPolicy) -> None:
    """Nor the optimizer's moments, nor its count of steps."""
    weight, optimizer, clipper = _training(policy)
    for norm in (1.0, 1.1, 0.9, 1.0):
        _step(weight, optimizer, norm)
    held = optimizer.state[weight]
    before = [t.clone() for t in (weight.detach(), held["exp_avg"], held["exp_avg_sq"])]
    _step(weight, optimizer, 50.0)
    assert clipper.last is not None
    assert bool(clipper.last.skipped)
    assert (clipper.skipped, clipper.steps, int(held["step"])) == (1, 5, 4)
    for now, was in zip(
        (weight.detach(), held["exp_avg"], held["exp_avg_sq"]), before, strict=True
    ):
        assert torch.equal(now, was)
    _step(weight, optimizer, 1.0)
    assert int(held["step"]) == 5
    assert not torch.equal(weight.detach(), before[0])
    clipper.detach()


# ---- too many in a row ----------------------------------------------------------------------


@pytest.mark.usefixtures("path")
def test_too_many_in_a_row_stop_the_run_and_name_the_last_norms() -> None:
    weight, optimizer, clipper = _training(skip_above(2.0), max_skips=2)
    _step(weight, optimizer, 1.0)
    before = weight.detach().clone()
    told = r"[35] steps in a row were skipped \(max_skips=2\).*last norms were (5, 6|7, 7), 7;"
    with pytest.raises(NonFiniteError, match=told):  # noqa: PT012 - a device looks every 3rd step
        for norm in (5.0, 6.0, 7.0, 7.0, 7.0):
            _step(weight, optimizer, norm)
    assert torch.equal(weight.detach(), before)
    clipper.detach()


@pytest.mark.usefixtures("path")
def test_a_step_that_is_taken_ends_the_row() -> None:
    weight, optimizer, clipper = _training(skip_above(2.0), max_skips=2)
    for norm in (5.0, 6.0, 1.0, 5.0, 6.0, 1.0, 5.0, 6.0):
        _step(weight, optimizer, norm)
    assert clipper.skipped == 6
    clipper.detach()


def test_no_skip_is_allowed_where_max_skips_is_none() -> None:
    weight, optimizer, clipper = _training(skip_above(2.0), max_skips=0)
    with pytest.raises(NonFiniteError, match=r"1 steps? in a row .*the last norms were 5"):
        _step(weight, optimizer, 5.0)
    clipper.detach()


def test_a_skip_without_attach_is_told_once() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    clipper = Clipper([weight], skip_above(1.0))
    weight.grad = torch.tensor([3.0, 4.0])
    with pytest.warns(GradclipWarning, match=r"skips a norm of 5: .*not result\.skipped"):
        clipper.clip_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipper.clip_()


# ---- the loss -------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("loss", [1.5, torch.tensor(1.5), torch.tensor([1.5]), np.float64(1.5)])
def test_a_loss_may_be_a_number_or_a_tensor(loss: Any) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    clipper = Clipper([weight], skip_outliers(3.0, 8, 3, of="loss"))
    as_if_attached(clipper)  # As if attached: no warning of a skip.
    weight.grad = torch.ones(2)
    for value in (1.0, 1.1, loss):
        skipped = bool(clipper.clip_(loss=value).skipped)
    assert skipped


def test_a_loss_that_is_needed_is_asked_for() -> None:
    with pytest.raises(PolicyError, match=r"loss=None is not usable.*pass it to the step"):
        gradclip.numpy.clip([np.ones(2)], skip_outliers(of="loss") | by_norm(1.0))


@pytest.mark.parametrize("seen", [2, 3, 5, 6, 7, 11])
def test_the_limit_of_an_outlier_is_that_of_the_values_in_the_window(seen: int) -> None:
    """Not of the empty places in it, which hold zeros."""
    values = 5 + np.random.default_rng(0).normal(size=seen)
    rule = WindowZScore(2.0, 6, 3)
    state = rule.init(np.zeros(1), np)
    for value in values:
        _, state = rule.update(state, np.asarray([value]), Context(), np)
    limits, _ = rule.update(state, np.asarray([5.0]), Context(), np)
    held = values[-6:]
    assert limits.high[0] == pytest.approx(held.mean() + 2 * held.std(ddof=1), rel=1e-12)
