"""The steps of one clipper on many processes: all of them mean the same from step to step.

At the first step the processes compare what each would do. After that a change in one process
alone, such as another policy, would meet the collective of an unchanged one: of another length,
which ends the program. So a mark travels with the first collective of each step. A process that
was changed first takes part once more in the collective that an unchanged one makes, with its mark:
then both know. On an accelerator nobody reads the mark, and nothing is compared after the first
step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import PolicyError
from .agree import Said, agree
from .layout import Layout
from .reduce import Powers, all_reduce, norms_over

__all__ = ["Turns"]


class Form(NamedTuple):
    """What decides of how many numbers the first collective of a step is, and what it does."""

    order: float
    norms: int
    flags: int


class Turns:
    """Compares the processes at the first step, and after each change.

    Args:
        layout: of the parameters, with the groups of processes.

    Attributes:
        is_changed: whether this process was changed since its last step.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._forms: dict[str, Form] = {}
        self._kind = ""
        self._before = ""
        self._compared = False
        self.is_changed: bool = False

    def begin(self, kind: str, said: Callable[[], Said]) -> None:
        """Begin a pass over the gradients: compare, where that is due.

        Args:
            kind: of the pass: passes of one kind follow each other in the same order.
            said: returns what all processes must say alike.

        Raises:
            PolicyError: in all processes: they do not say the same, or only some were changed.
        """
        if not self._layout.groups:
            return
        if self.is_changed and self._compared:
            self.tell()
            self._compared = False
        if not self._compared:
            self._compare(said)
        self._compared, self.is_changed = True, False
        self._before, self._kind = self._kind, kind
        self._layout.turn = self

    def tell(self) -> None:
        """Take part in the collective of an unchanged process, and tell of a change.

        Raises:
            PolicyError: in all processes: others were not changed.
        """
        form = self._forms.get(self._kind, self._forms.get(""))  # At first: as the first pass.
        if form is None:
            return
        nothing = torch.zeros(form.norms, dtype=torch.float64)
        rows = [torch.zeros(form.norms, dtype=torch.bool)] * len(self._layout.groups)
        flags = torch.zeros(form.flags + 2, dtype=torch.float64)
        flags[-2] = 1.0
        powers = Powers(form.order, self._layout.double)
        _, flags = norms_over(self._layout.groups, nothing, powers, rows, rows, flags)
        assert flags is not None
        if float(flags[-1]) > 0:
            raise _some_changed("this process was changed, and others were not")

    def marked(self, order: float, count: int, flags: Tensor | None) -> Tensor:
        """Return the flags with the mark of an unchanged process; see `Mark`."""
        own = torch.zeros(0, dtype=torch.float64) if flags is None else flags
        self._forms[self._before] = Form(order, count, len(own))
        return torch.cat([own, own.new_tensor([0.0, 1.0])])

    def unmarked(self, flags: Tensor | None) -> Tensor | None:
        """Return the flags without the marks; see `Mark`.

        Raises:
            PolicyError: in all processes: one was changed.
        """
        assert flags is not None
        if float(flags[-2]) > 0:
            raise _some_changed("another process was changed, and this one was not")
        return flags[:-2] if len(flags) > 2 else None

    def _compare(self, said: Callable[[], Said]) -> None:
        """Compare what all processes say: a few numbers for each group, and all of it on a fault.

        Every group hears of what another has found, so that no process is left alone.
        """
        mine = said()
        text = "\0".join(f"{name}\0{value.same}" for name, value in sorted(mine.items()))
        number = zlib.crc32(text.encode())
        differs = 0
        for group in self._layout.groups:
            pair = torch.tensor([number, -number, differs], dtype=torch.int64)
            most, least, differs = all_reduce(pair, group, dist.ReduceOp.MAX).tolist()
            differs = max(differs, int(most != -least))
        if differs:
            agree(self._layout.groups, lambda _: mine, topic="the first step after a change")
            raise PolicyError("the processes do not do the same: give the same to all clippers")


def _some_changed(what: str) -> PolicyError:
    return PolicyError(
        f"{what}: set the policy, nonfinite and max_skips, load a state and add parameters in all "
        "processes, between the same two steps. No gradient was clipped"
    )
