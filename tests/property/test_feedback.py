"""Error feedback loses nothing: what was applied plus what is carried is what there was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gradclip.numpy
from gradclip import by_norm, by_value, clip21, with_feedback, zclip

INNER = [by_norm(1.0), by_value(0.5), by_value(0.5) | by_norm(1.0), zclip(warmup=2), by_norm(0.0)]
values = st.floats(-1e3, 1e3, width=32)
streams = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=values
)


@pytest.mark.parametrize("inner", INNER, ids=str)
@settings(max_examples=40, deadline=None)
@given(stream=streams, bad=st.integers(0, 12))
def test_applied_plus_carried_is_the_sum_of_the_gradients(inner, stream, bad: int) -> None:
    policy = with_feedback(inner)
    state, applied, raw = None, np.zeros(stream.shape[1]), np.zeros(stream.shape[1])
    for step, grad in enumerate(stream):
        given_ = np.where(step == bad, np.nan, grad)
        out, state, result = gradclip.numpy.clip([given_], policy, state)
        if not result.skipped:
            applied, raw = applied + out[0], raw + grad
        carry = state["memory"][0][0]["source"]["0"]["carry"]
        np.testing.assert_allclose(applied + carry, raw, rtol=1e-12, atol=1e-9)


def test_without_feedback_something_is_lost() -> None:
    out, _, _ = gradclip.numpy.clip([np.asarray([3.0, 4.0])], by_norm(1.0))
    assert np.abs(out[0] - [3.0, 4.0]).max() > 1


@settings(max_examples=40, deadline=None)
@given(stream=streams)
def test_clip21_moves_its_estimate_by_no_more_than_the_limit(stream) -> None:
    state, before = None, np.zeros(stream.shape[1])
    for grad in stream:
        out, state, _ = gradclip.numpy.clip([grad], clip21(by_norm(0.5), beta2=0.5), state)
        assert np.linalg.norm(out[0] - before) <= 0.25 * (1 + 1e-12)
        before = out[0]
