"""What a clipper warns of: likely mistakes in the code that uses it."""

from __future__ import annotations

import warnings

from ...engine.result import ClipResult
from ...errors import GradclipWarning
from ..tally import blame

__all__ = ["Mistakes"]

_COPY = (
    "this clipper is a copy of an attached one, and no optimizer's steps reach it: "
    "call gradclip.torch.attach with the copied optimizer, and load_state_dict() "
    "what state_dict() of this copy returns"
)
_NO_GRADIENT = (
    "no parameter has a gradient: nothing was clipped. Call clip_() between backward and "
    "zero_grad(); for optimizers that step inside of backward there is "
    "gradclip.torch.attach_in_backward"
)
_SKIPPED = (
    "the gradients are untouched. Call optimizer.step() only if "
    "not result.skipped, or let gradclip.torch.attach(optimizer, policy) see to it"
)


class Mistakes:
    """Warns of the first mistake in the use of one clipper, and of no other.

    A warning names the line of the user: that of `Clipper.last`, or of `Clipper.clip_`.

    Attributes:
        told: whether there was a warning.
    """

    def __init__(self) -> None:
        self.told: bool = False

    def unused_copy(self) -> None:
        """Warn that nothing reaches this copy; called by `Clipper.last`."""
        if not self.told:
            self.told = True
            warnings.warn(_COPY, GradclipWarning, stacklevel=3)

    def no_gradient(self) -> None:
        """Warn that there is nothing to clip; called below `Clipper.clip_`."""
        if not self.told:
            self.told = True
            warnings.warn(_NO_GRADIENT, GradclipWarning, stacklevel=4)

    def skip_for_the_caller(self, result: ClipResult) -> None:
        """Warn that a skip is left to the caller; called below `Clipper.clip_`."""
        if not self.told:
            self.told = True
            warnings.warn(f"{blame(result)}: {_SKIPPED}", GradclipWarning, stacklevel=4)
