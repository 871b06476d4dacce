"""Gradients that are gone, or not there yet: of each only its norm is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

__all__ = ["KnownNorms"]


class KnownNorms:
    """The engine's view of norms without gradients: a policy can be asked, nothing is changed.

    Args:
        known: shape (gradients,), their p-norms, on any device; not mutated.
        order: that p. The plan must ask for no other, and for no values.
        names: one for each.
        sizes: shape (gradients,), their numbers of values.
        present: which of them there are.
    """

    xp: Any = torch_xp
    values_xp: Any = torch_xp
    host = False
    spread = False
    loss = None
    weights = None
    path = ""

    def __init__(
        self,
        known: Tensor,
        order: float,
        names: Sequence[str],
        sizes: Tensor,
        present: Sequence[bool],
    ) -> None:
        self._known, self._order = known, order
        self.names, self.sizes = tuple(names), sizes
        self.present = self.somewhere = tuple(present)

    def array(self, values: list[float]) -> Tensor:
        """Return numbers where the norms are."""
        return torch.tensor(values, dtype=self._known.dtype, device=self._known.device)

    def norms(self, members: Sequence[int], order: float, relative: object) -> Tensor:
        """Return the members' norms."""
        assert not members or (order == self._order and relative is None)
        return self._known[list(members)]

    def scale(self, factors: object) -> None:
        """Change nothing: there is nothing to change."""
