"""`Tally`: what is counted, on the host and on a device, and when it is time to stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gradclip import ClipResult, NonFiniteError
from gradclip.torch import Clipper
from gradclip.torch.tally import Tally, blame


def _result(norm: float = 2.0, *, clipped: bool = False, skipped: bool = False) -> ClipResult:
    """Return the result of a step of one parameter."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([norm])
    result = Clipper([("w", weight)], None, nonfinite="propagate").clip_()
    return replace(result, clipped=torch.tensor(clipped), skipped=torch.tensor(skipped))


GOOD, BAD = _result(clipped=True), _result(float("nan"), skipped=True)


@pytest.mark.parametrize("host", [True, False], ids=["host", "device"])
def test_steps_clips_skips_and_the_row_are_counted(host: bool) -> None:
    tally = Tally(9)
    for result in (GOOD, BAD, BAD, _result(), BAD, BAD, BAD):
        tally.count(result, host=host)
    expected = {"steps": 7, "clipped": 1, "skipped": 5, "in_a_row": 3}
    assert tally.state_dict() == expected
    other = Tally(9)
    other.load_state_dict({**expected, "memory": 0})
    assert other.state_dict() == expected


@pytest.mark.parametrize("host", [True, False], ids=["host", "device"])
def test_a_step_that_a_loss_scaler_skips_neither_lengthens_nor_ends_a_row(host: bool) -> None:
    tally = Tally(9)
    lost = True if host else torch.tensor(True)
    for flag in (False, lost, lost, False):
        tally.count(BAD, host=host, lost=flag)
    assert tally.state_dict() == {"steps": 4, "clipped": 0, "skipped": 2, "in_a_row": 2}


def test_more_skips_in_a_row_than_allowed_raise() -> None:
    tally = Tally(1, "backwards")
    tally.count(BAD, host=True)
    tally.refuse_too_many(BAD, "nothing was changed")
    tally.count(BAD, host=True)
    with pytest.raises(NonFiniteError) as caught:
        tally.refuse_too_many(BAD, "nothing was changed")
    assert str(caught.value) == (
        "2 backwards in a row were skipped (max_skips=1): the gradient of w holds inf or NaN; "
        "the last norms were nan, nan; nothing was changed"
    )


def test_a_device_is_looked_at_once_in_max_skips_and_one_steps() -> None:
    tally = Tally(2)
    rows = []
    for _ in range(6):
        tally.count(BAD, host=False)
        rows.append(tally.skips_in_a_row())
    assert rows == [0, 0, 3, 0, 0, 6]


def test_a_skip_of_the_policy_is_blamed_on_the_norm() -> None:
    assert blame(_result(2.0)) == "the policy skips a norm of 2"
    assert blame(BAD) == "the gradient of w holds inf or NaN"
