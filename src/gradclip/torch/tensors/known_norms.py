"""Gradients that are gone, or not there yet: only the norm of each is known."""

from __future__ import annotations

from collections.abc import Sequence

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...arrays import Namespace
from ...engine.backend import Measured, Relative, Units
from ...errors import PolicyError
from ...method.axes import Axis
from .places import spread, summed, taken

__all__ = ["KnownNorms"]


class KnownNorms:
    """The engine's `Reader` of norms without gradients: a policy can be asked, nothing is changed.

    Args:
        known: shape (gradients,), their p-norms, on any device; not mutated.
        order: that p.
        names: one for each.
        sizes: shape (gradients,), their numbers of values.
        present: which of them there are.

    Raises:
        PolicyError: from every method that is asked for anything but these norms.
    """

    xp: Namespace = torch_xp
    values_xp: Namespace = torch_xp
    host = False

    def __init__(
        self,
        known: Tensor,
        order: float,
        names: Sequence[str],
        sizes: Tensor,
        present: Sequence[bool],
    ) -> None:
        self._known, self._order, self._present = known, order, tuple(present)
        self.names: tuple[str, ...] = tuple(names)
        self.sizes: Tensor = sizes

    def measure(self, order: float) -> Measured:
        """Return all norms, and which gradients there were."""
        return Measured(self.norms(range(len(self.names)), order), self._present)

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Tensor:
        """Return the members' norms."""
        if members and (order != self._order or relative is not None):
            asked = "relative norms" if relative is not None else f"norms of order {order:g}"
            remedy = f"only norms of order {self._order:g} are known before all gradients are there"
            raise PolicyError.of("policy", asked, remedy)
        return taken(self._known, members)

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        """Refuse: norms of tensors do not tell those of their units."""
        del members, order, axis
        remedy = "only norms of whole tensors are known before all gradients are there"
        raise PolicyError.of("policy", "norms of units", remedy)

    def take(self, values: Tensor, places: Sequence[int]) -> Tensor:
        """Return values[places], shape (places,)."""
        return taken(values, places)

    def spread(self, values: Tensor, counts: list[int]) -> Tensor:
        """Return each member's value once for each of its units: from (members,) to (units,)."""
        return spread(values, counts)

    def unit_dots(self, a: Tensor, b: Tensor, counts: list[int], *, root: bool = False) -> Tensor:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,)."""
        sums = summed(a * b, counts)
        return torch.sqrt(sums) if root else sums
