"""How many steps there were, how many were clipped or skipped, and when to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor

from ..arrays import Flag, Scalar
from ..engine.result import ClipResult, numbers
from ..errors import NonFiniteError, PolicyError

__all__ = ["COUNTERS", "Tally", "blame"]

COUNTERS = ("steps", "clipped", "skipped", "in_a_row")
"""The keys of a saved tally."""


class Tally:
    """Counts the steps of a clipper. On an accelerator the counters stay on the device.

    Args:
        max_skips: more skipped steps in a row than this are too many, ≥ 0.
        unit: what is counted, in the plural, for the message of an error.

    Attributes:
        max_skips: as given.
        step: how many steps were counted: a number, or, after a compiled step, a tensor. A number
            that grows would be compiled anew at each step.
    """

    def __init__(self, max_skips: int, unit: str = "steps") -> None:
        self.max_skips: int = max_skips
        self.step: Scalar | int = 0
        self._unit = unit
        self._clipped: Scalar = 0
        self._skipped: Scalar = 0
        self._in_a_row: Scalar = 0
        self._readable = False
        self._recent: deque[Tensor] = deque(maxlen=max_skips + 1)

    @property
    def now(self) -> Scalar | int:
        """How many steps were counted: a tensor while torch.compile looks, else a number."""
        if torch.compiler.is_dynamo_compiling():
            return torch.as_tensor(self.step)
        return self.steps

    @property
    def steps(self) -> int:
        """How many steps were counted."""
        return int(self.step)

    @property
    def rate(self) -> Scalar:
        """The share of the steps that were clipped, 0 before the first; stays on the device."""
        return self._clipped / max(self.steps, 1)

    @property
    def clipped(self) -> int:
        """How many steps were clipped; reads the device."""
        return int(self._clipped)

    @property
    def skipped(self) -> int:
        """How many steps were skipped; reads the device."""
        return int(self._skipped)

    def count(self, result: ClipResult, *, host: bool, lost: Flag = False) -> None:
        """Count one step.

        Args:
            result: of the step, with tensors for numbers.
            host: whether its numbers can be read without waiting for a device.
            lost: whether a loss scaler skips this step by itself: the step is then not a skip of
                the clipper, and neither lengthens nor ends a row of them.
        """
        compiling = torch.compiler.is_dynamo_compiling()
        self.step = self.now + 1
        result = numbers(result)
        clipped, skipped = result.clipped, result.skipped
        if host:
            clipped, skipped = bool(clipped), bool(skipped)
        ours = skipped > lost
        self._clipped = self._clipped + clipped
        self._skipped = self._skipped + ours
        self._in_a_row = (self._in_a_row + ours) * (skipped | lost)
        if compiling:  # Nobody can look, and a list that grows would be compiled anew.
            self._readable = False
            return
        self._readable = not lost if host else self.steps % (self.max_skips + 1) == 0
        self._recent.append(result.total_norm)

    def count_skip(self) -> None:
        """Count a step, whose evaluations are counted, as a skip after all; reads the device."""
        self._skipped = self.skipped + 1
        self._in_a_row = int(self._in_a_row) + 1
        self._readable = True

    def skips_in_a_row(self) -> int:
        """Return how many of the last steps were skipped; 0 if this is not the time to look.

        On an accelerator that is once in max_skips + 1 steps, so that the others need not wait.
        """
        return int(self._in_a_row) if self._readable else 0

    def refuse_too_many(self, result: ClipResult, untouched: str) -> None:
        """Raise an error if too many steps in a row were skipped.

        Args:
            result: of the last step.
            untouched: the end of the message: what the skips have left as it was.

        Raises:
            NonFiniteError: names the parameters and the last norms.
        """
        count = self.skips_in_a_row()
        if count > self.max_skips:
            norms = ", ".join(f"{float(norm):.4g}" for norm in self._recent)
            raise NonFiniteError(
                f"{count} {self._unit} in a row were skipped (max_skips={self.max_skips}): "
                f"{blame(result)}; the last norms were {norms}; {untouched}"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counters; reads the device."""
        return {
            "steps": self.steps,
            "clipped": self.clipped,
            "skipped": self.skipped,
            "in_a_row": int(self._in_a_row),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what `state_dict` returned; other keys are ignored.

        Raises:
            PolicyError: a counter is no whole number, or more than what it is a part of.
        """
        whole = {name: _count(name, state.get(name)) for name in COUNTERS}
        for part, total in (("clipped", "steps"), ("skipped", "steps"), ("in_a_row", "skipped")):
            if whole[part] > whole[total]:
                raise PolicyError.of(part, whole[part], f"{total} is only {whole[total]}")
        self.step, self._clipped, self._skipped, self._in_a_row = whole.values()
        self._readable = False
        self._recent.clear()

    def allow(self, max_skips: int) -> None:
        """Take another number of skips in a row from now on."""
        self.max_skips = max_skips
        self._recent = deque(self._recent, maxlen=max_skips + 1)


def _count(name: str, value: object) -> int:
    whole = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else -1
    if not 0 <= whole <= 2**53:
        raise PolicyError.of(name, value, "give a whole number from 0 to 2^53, as it was saved")
    return whole


def blame(result: ClipResult) -> str:
    """Say why a step was skipped: which parameters are not finite, or which norm is too large."""
    names = result.nonfinite
    if not names:
        return f"the policy skips a norm of {float(result.total_norm):.6g}"
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the gradient of {shown} holds inf or NaN"
