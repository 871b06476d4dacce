"""The references against answers that were worked out by hand."""

from __future__ import annotations

import importlib
import math
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from . import (
    acclip,
    adagc,
    agc,
    aggc,
    auto,
    autoclip,
    centered,
    clip21,
    clippy,
    mean_std,
    moving_average,
    normalise,
    online_quantile,
    quantile,
    skip_zscore,
    smooth,
    spam,
    spectral,
    stable_spam,
    uclip,
    update_rms,
    zclip,
)

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith(("_", "test_")))


def one(value: float) -> list[np.ndarray]:
    """Return a gradient of one number."""
    return [np.array([float(value)])]


def follow(reference: Any, values: list[float]) -> list[float]:
    """Return what the reference makes of a stream of numbers."""
    return [float(reference.step(one(v))[0][0][0]) for v in values]


# Every reference: the common rules


@pytest.fixture(params=NAMES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Return each reference's module in turn."""
    return importlib.import_module(f"{__package__}.{request.param}")


def gradients(seed: int) -> list[np.ndarray]:
    """Return two tensors of ordinary numbers, of one shape as one per worker would be."""
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(3, 4)), draw.normal(size=(3, 4))]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_step_is_skipped_and_forgotten(module: ModuleType, bad: float) -> None:
    reference = module.Reference()
    weights = gradients(9)
    for seed in range(3):
        reference.step(gradients(seed), weights, 1.0)
    before = pickle.dumps(vars(reference))
    broken = gradients(3)
    broken[1][0, 0] = bad
    same, skip = reference.step(broken, weights, 1.0)
    assert skip
    np.testing.assert_equal(same, broken)
    assert pickle.dumps(vars(reference)) == before
    after, skip = reference.step(gradients(4), weights, 1.0)
    assert not skip
    assert all(np.isfinite(g).all() for g in after)


def test_zero_gradients_stay_zero_and_nothing_turns_nan(module: ModuleType) -> None:
    reference = module.Reference()
    weights = gradients(9)
    zeros = [np.zeros((3, 4)), np.zeros((3, 4))]
    for _ in range(3):
        out, skip = reference.step(zeros, weights, 1.0)
        assert not skip
        assert all((g == 0).all() for g in out)
    out, _ = reference.step(gradients(1), weights, 1.0)
    assert all(np.isfinite(g).all() for g in out)


def test_arguments_are_not_changed_and_results_are_new(module: ModuleType) -> None:
    reference = module.Reference()
    grads, weights = gradients(1), gradients(2)
    for _ in range(3):
        out, _ = reference.step(grads, weights, 1.0)
        for result in out:
            result += 1.0
    np.testing.assert_equal(grads, gradients(1))
    np.testing.assert_equal(weights, gradients(2))


def test_only_numpy_and_math_are_imported() -> None:
    for name in NAMES:
        lines = (HERE / f"{name}.py").read_text(encoding="utf-8").splitlines()
        found = {line for line in lines if line.startswith(("import ", "from "))}
        allowed = {"import math", "import numpy as np", "from __future__ import annotations"}
        assert found <= allowed, name


# The bias of clipping in closed form: f = x²/2, noise +9 (probability 0.1) or −1 (0.9), τ = 2


def rest(reference: Any) -> float:
    """Return where the mean step of a rule without memory vanishes, by bisection."""
    low, high = -1.0, 3.0
    for _ in range(60):
        x = (low + high) / 2
        drift = 0.1 * follow(reference, [x + 9])[0] + 0.9 * follow(reference, [x - 1])[0]
        low, high = (x, high) if drift < 0 else (low, x)
    return low


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (online_quantile.Reference(eta=0.0, initial=math.inf), 0.0),
        (online_quantile.Reference(eta=0.0, initial=2.0), 7 / 9),
        (spectral.Reference(c=2.0), 7 / 9),
        (smooth.Reference(2.0, "sqrt"), 0.7809),
        (normalise.Reference(2.0), 1.0),
    ],
)
def test_where_a_rule_without_memory_comes_to_rest(reference: Any, expected: float) -> None:
    assert rest(reference) == pytest.approx(expected, abs=1e-4)


def settle(reference: Any, steps: int = 4000, rate: float = 0.01) -> float:
    """Return the mean of x over the last half of SGD, one +9 in each ten shuffled draws."""
    draw = np.random.default_rng(0)
    noise = np.concatenate([draw.permutation([9.0] + [-1.0] * 9) for _ in range(steps // 10)])
    x, seen = 1.0, []
    for value in noise:
        x -= rate * follow(reference, [x + value])[0]
        seen.append(x)
    return float(np.mean(seen[steps // 2 :]))


@pytest.mark.parametrize(
    ("reference", "expected", "tolerance"),
    [
        (online_quantile.Reference(eta=0.0, initial=2.0), 7 / 9, 0.03),
        (uclip.Reference(2.0), 0.0, 0.03),
        (clip21.Reference(2.0, beta1=0.01, beta2=1.0), 0.0, 0.03),
    ],
)
def test_where_sgd_settles(reference: Any, expected: float, tolerance: float) -> None:
    assert settle(reference) == pytest.approx(expected, abs=tolerance)


def test_clip21_without_its_momentum_keeps_a_bias() -> None:
    assert settle(clip21.Reference(2.0, beta1=1.0, beta2=1.0)) > 0.2


# Each reference on its own


def test_autoclip_takes_the_percentile_with_this_norm_in_it() -> None:
    reference = autoclip.Reference()
    values = [4.0, 1.0, 3.0, 2.0, 10.0, 5.0]
    for i, value in enumerate(values):
        got = follow(reference, [value])[0]
        assert got == pytest.approx(min(value, np.percentile(values[: i + 1], 10)))
    assert follow(autoclip.Reference(window=2), [9, 1, 2])[2] == pytest.approx(1.1)


def test_quantile_forgets_what_left_the_window() -> None:
    reference = quantile.Reference(p=0.5, window=3)
    assert follow(reference, [100, 1, 2, 9]) == pytest.approx([100, 1, 2, 2])
    assert reference.buffer == [1, 2, 9]
    assert follow(quantile.Reference(p=0.5, window=3), [9, 1, 2, 3, 8]) == [9, 1, 2, 2, 3]
    assert follow(quantile.Reference(0.5, 4, "rank"), [4, 3, 2, 9]) == [4, 3, 2, 3]


def test_online_quantile_moves_by_its_factor_and_finds_the_quantile() -> None:
    reference = online_quantile.Reference()
    assert follow(reference, [0.05, 5.0]) == pytest.approx([0.05, 0.1 * math.exp(-0.1)])
    assert reference.limit == pytest.approx(0.1)
    reference = online_quantile.Reference(p=0.3, eta=0.02)
    follow(reference, list(np.random.default_rng(0).uniform(size=4000)))
    assert reference.limit == pytest.approx(0.3, abs=0.05)


def test_auto_starts_at_a_tenth_rises_slowly_and_falls_faster() -> None:
    share = 0.1 + 7e-5 / 0.45**6
    assert follow(auto.Reference(), [5.0, 5.0]) == pytest.approx([0.5, share * 5 * math.exp(-0.03)])
    reference = auto.Reference()
    follow(reference, [1.0, *[1e6] * 100])
    assert reference.level == pytest.approx(-0.03 + 100 * 0.009)
    assert reference.share == 0.7
    follow(reference, [1e-9])
    assert reference.level == pytest.approx(-0.03 + 0.9 - 4 * 0.015)
    assert reference.swing == pytest.approx(0.2, abs=1e-3)
    assert follow(reference, [0.0]) == [0.0]
    assert reference.seen == 102


def test_auto_lifts_its_ceiling_only_over_calm_norms() -> None:
    reference = auto.Reference(usual=2.0)
    assert follow(reference, [100.0] * 6)[-2:] == pytest.approx([2.0, 2 * math.exp(0.04)])
    assert reference.room == pytest.approx(0.08)
    follow(reference, [1e4] * 2)
    assert reference.room == pytest.approx(0.0)


def test_zclip_by_hand() -> None:
    reference = zclip.Reference(warmup=2, eps=0.0)
    assert follow(reference, [1, 3]) == [1, 3]
    assert (reference.mean, reference.variance) == (2.0, 1.0)
    assert follow(reference, [7]) == pytest.approx([2 + 2.5**2 / 5])
    assert reference.mean == pytest.approx(0.97 * 2 + 0.03 * 3.25)
    assert reference.variance == pytest.approx(0.97 + 0.03 * (3.25 - 2.0375) ** 2)
    assert follow(reference, [0.001]) == [0.001]


def test_zclip_remembers_the_norm_before_the_constant_limit() -> None:
    reference = zclip.Reference(warmup=2, max_norm=1.0)
    assert follow(reference, [1, 3, 4]) == pytest.approx([1, 1, 1])
    assert reference.mean == pytest.approx(0.97 * 2 + 0.03 * 4)


def test_adagc_by_hand() -> None:
    reference = adagc.Reference(warmup=2)
    out, _ = reference.step([np.array([3.0]), np.array([4.0])])
    np.testing.assert_allclose(out, [[0.6], [0.8]])
    reference.step([np.array([0.5]), np.array([0.0])])
    assert reference.gamma == pytest.approx([0.5, 0.8])
    out, _ = reference.step([np.array([7.0]), np.array([0.1])])
    np.testing.assert_allclose(out, [[0.525], [0.1]])
    assert reference.gamma == pytest.approx([0.98 * 0.5 + 0.02 * 0.525, 0.98 * 0.8 + 0.002])


def test_adagc_tensor_of_zeros_is_not_locked() -> None:
    reference = adagc.Reference(warmup=2)
    assert follow(reference, [0, 0, 0, 3.0, 3.0]) == [0, 0, 0, 3.0, 3.0]


def test_aggc_band_and_the_lock_of_the_code() -> None:
    code = aggc.Reference(order="code", start="zero")
    assert follow(code, [1.0] * 4) == pytest.approx([1.0, 0.02, 0.02, 0.02])
    paper = aggc.Reference(beta=0.5, low=0.5, high=2.0)
    assert follow(paper, [1.0, 9.0, 0.1]) == pytest.approx([1.0, 9.0, 0.5 * 2.55])
    assert follow(aggc.Reference(0.5, 0.5, 1.0), [1.0, 9.0]) == pytest.approx([1.0, 5.0])
    together = aggc.Reference(beta=0.5, groups=[[0, 1]])
    together.step([np.array([3.0]), np.array([4.0])])
    out, _ = together.step([np.array([6.0]), np.array([8.0])])
    np.testing.assert_allclose(out, [[4.5], [6.0]])


def test_mean_std_and_moving_average() -> None:
    assert follow(mean_std.Reference(), [1, 3, 50])[2] == pytest.approx(2 + 3 * math.sqrt(2))
    assert follow(mean_std.Reference(form="ema", beta=0.5), [1, 3, 50])[2] == pytest.approx(
        7 / 3 + 3 * math.sqrt(8 / 9)
    )
    assert follow(moving_average.Reference(beta=0.5), [1, 3, 50]) == pytest.approx([1, 2, 14 / 3])
    remembered = moving_average.Reference(beta=0.5, remember="clipped")
    assert follow(remembered, [1, 3, 50]) == pytest.approx([1, 2, 10 / 3])


def test_spam_cuts_at_the_second_moment_of_the_past() -> None:
    reference = spam.Reference()
    assert follow(reference, [1.0, -100.0]) == pytest.approx([1.0, -math.sqrt(5)])
    assert reference.moments[0][0] == pytest.approx(0.999e-3 + 5e-3)
    assert follow(spam.Reference(warmup=2), [1.0, -100.0]) == [1.0, -100.0]
    again = spam.Reference(reset_every=3, warmup_after_reset=2)
    assert follow(again, [1, 1, 50, 900, 9e9])[:4] == [1, 1, 50, 900]
    assert again.moments[0][0] < 1e9


def test_stable_spam_by_hand() -> None:
    clip = stable_spam.Reference(normalise=False, gamma3=0.5)
    out, _ = clip.step([np.array([1.0, 0.2])])
    np.testing.assert_array_equal(out[0], [1.0, 0.2])
    out, _ = clip.step([np.array([7.0, 6.0])])
    limit = (0.25 + 3.5) / 0.75
    np.testing.assert_allclose(out[0], [limit, 6 / 7 * limit])
    scale = stable_spam.Reference(clip=False, eps=0.0)
    mean, square = (0.21 + 0.9) / 0.51, (0.09 + 0.9) / 0.19
    assert follow(scale, [1.0, 3.0]) == pytest.approx([1.0, mean / math.sqrt(square)])


def test_stable_spam_shared_counter_makes_the_threshold_jump() -> None:
    steps = [1.0] * 1000
    ours, theirs = stable_spam.Reference(), stable_spam.Reference(shared_reset=1000)
    follow(ours, steps)
    follow(theirs, steps)
    stream = [5000.0]
    assert follow(stable_spam.Reference(), stream)[0] < 1.01
    ours.normalise = theirs.normalise = False
    assert follow(ours, stream)[0] == pytest.approx(0.001 * 5000 / 0.633 + 1, rel=0.01)
    assert follow(theirs, stream)[0] == pytest.approx(min(5000, 5.63 / 0.001999), rel=0.01)


def test_acclip_by_hand() -> None:
    assert follow(acclip.Reference(eps=0.0), [8.0]) == pytest.approx([0.08])
    squares = acclip.Reference(alpha=2.0, eps=0.0)
    assert follow(squares, [8.0, 0.0]) == pytest.approx([0.8, 0.72])


def test_clippy_by_hand() -> None:
    reference = clippy.Reference(0.1, 1e-7)
    out, _ = reference.step([np.array([0.2, 0.0])], [np.array([1.0, 0.0])])
    np.testing.assert_allclose(out[0], [0.1 + 1e-7, 0.0])
    out, _ = reference.step([np.array([1.0, 1.0])], [np.array([1.0, 0.0])])
    np.testing.assert_allclose(out[0], [1e-7, 1e-7])


def test_update_rms_by_hand() -> None:
    out, _ = update_rms.Reference(d=2.0).step([np.array([3.0, -5.0]), np.array([1.0])])
    np.testing.assert_allclose(out[0], np.array([3.0, -5.0]) * 2 / math.sqrt(17))
    assert out[1][0] == 1.0
    adam = update_rms.Reference(form="stableadamw", beta1=0.0, beta2=0.5, eps=0.0)
    assert follow(adam, [2.0, 4.0]) == pytest.approx([1.0, 1.0])
    adam = update_rms.Reference(form="stableadamw", beta1=0.5, beta2=0.5, eps=0.0)
    assert follow(adam, [2.0, 4.0])[1] == pytest.approx((10 / 3) / 4)


def test_agc_by_hand_in_both_layouts() -> None:
    grad, weight = np.array([[3.0, 4.0], [0.001, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0]])
    (out,), _ = agc.Reference().step([grad], [weight])
    np.testing.assert_allclose(out, [[0.006, 0.008], [0.001, 0.0]])
    (other,), _ = agc.Reference(unit_axis=-1).step([grad.T], [weight.T])
    np.testing.assert_array_equal(other.T, out)
    (vector,), _ = agc.Reference().step([np.array([3.0, 4.0])], [np.zeros(2)])
    np.testing.assert_allclose(vector, [0.6e-5, 0.8e-5])
    gain = np.array([[[3.0]], [[4.0]]])
    (squeezed,), _ = agc.Reference(squeeze=True).step([gain], [np.zeros((2, 1, 1))])
    np.testing.assert_allclose(squeezed, gain * 2e-6)


def test_smooth_forms_are_bounded_with_slope_one() -> None:
    for form, at_three in [("sqrt", 1 / math.sqrt(10)), ("rational", 0.25), ("tanh", None)]:
        reference = smooth.Reference(1.0, form)
        expected = math.tanh(3.0) if at_three is None else 3 * at_three
        got = follow(reference, [3.0, 1e-9, 1e12])
        assert got == pytest.approx([expected, 1e-9, 1.0], rel=1e-8)


def test_normalise_per_tensor_and_in_whole() -> None:
    pair = [np.array([3.0]), np.array([4.0])]
    out, _ = normalise.Reference(eps=0.0).step(pair)
    np.testing.assert_allclose(out, [[0.6], [0.8]])
    out, _ = normalise.Reference(eps=0.0, scope="tensor").step(pair)
    np.testing.assert_allclose(out, [[1.0], [1.0]])
    assert follow(normalise.Reference(eps=0.0), [0.0]) == [0.0]


def test_spectral_bounds_singular_values_only() -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 2, 4))
    flat = np.linalg.svd(matrix.reshape(3, 8), compute_uv=False)
    (hard,), _ = spectral.Reference(c=flat[1]).step([matrix])
    np.testing.assert_allclose(
        np.linalg.svd(hard.reshape(3, 8), compute_uv=False), [flat[1], flat[1], flat[2]]
    )
    (soft,), _ = spectral.Reference(c=2.0, form="soft").step([matrix])
    np.testing.assert_allclose(
        np.linalg.svd(soft.reshape(3, 8), compute_uv=False), flat / np.sqrt(1 + flat**2 / 4)
    )
    (newton,), _ = spectral.Reference(c=2.0, form="soft", ns_steps=10).step([matrix])
    np.testing.assert_allclose(newton, soft, rtol=1e-9)
    tall = np.ascontiguousarray(matrix.reshape(3, 8).T)
    (turned,), _ = spectral.Reference(c=2.0, form="soft", ns_steps=10).step([tall])
    np.testing.assert_allclose(turned.T, soft.reshape(3, 8), rtol=1e-9)


def test_skip_needs_its_values_and_is_one_sided() -> None:
    usual = [1.0, 2.0] * 31
    for before, expected in [(62, False), (63, True)]:
        reference = skip_zscore.Reference()
        for value in [*usual, 1.0][:before]:
            assert not reference.step(one(value), loss=value)[1]
        assert reference.step(one(1.0), loss=100.0)[1] is expected
    calm = skip_zscore.Reference(window=8, remember_skipped=False)
    for value in [5.0, 6.0] * 4:
        calm.step(one(value), loss=value)
    assert not calm.step(one(0.001), loss=-100.0)[1]
    assert calm.step(one(1e6))[1]
    assert 1e6 not in calm.norms


@pytest.mark.parametrize("scope", ["global", "element"])
def test_uclip_loses_nothing(scope: str) -> None:
    reference = uclip.Reference(0.5, scope)
    draw = np.random.default_rng(0)
    given, taken = np.zeros(3), np.zeros(3)
    for _ in range(50):
        grad = draw.standard_t(2, size=3)
        (out,), _ = reference.step([grad])
        given, taken = given + grad, taken + out
        assert np.abs(out).max() <= 0.5
    np.testing.assert_allclose(taken + reference.carry[0], given, rtol=1e-12)


def test_clip21_moves_no_further_than_its_limit() -> None:
    reference = clip21.Reference(tau=1.0, beta1=1.0, beta2=0.5)
    assert follow(reference, [10.0, 10.0, 0.9]) == pytest.approx([0.5, 1.0, 0.95])
    assert follow(clip21.Reference(tau=9.0, beta1=0.1, beta2=1.0), [10.0]) == pytest.approx([1.0])


def test_centered_bounds_the_pull_of_each_worker() -> None:
    reference = centered.Reference(tau=1.0)
    workers = [np.array([0.5]), np.array([0.7]), np.array([1e9])]
    (out,), _ = reference.step(workers)
    assert out[0] == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    (many,), _ = centered.Reference(tau=1.0, iterations=60).step(workers)
    assert many[0] == pytest.approx(1.1)  # 0.5 − v + 0.7 − v + 1 = 0
