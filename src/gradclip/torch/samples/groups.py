"""The modules of a model with a formula, those together that share parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..processes.placements import is_sharded
from .gathered import gather
from .ghost import ghost_of
from .kept import Kept, Unit, Use
from .measured import squares_of

__all__ = ["Group", "groups_of", "units_with_formula"]


class Group:
    """Units that share parameters: their gradients add up before a norm is taken.

    Attributes:
        units: at least one.
        failed: whether the group is left out.
        parameters: those that are trained.
    """

    def __init__(self, units: list[Unit]) -> None:
        self.units = units
        self.failed = False
        named: dict[Tensor, str] = {
            p: name for unit in units for name, p in unit.module.named_parameters()
        }
        self._index = {parameter: place for place, parameter in enumerate(named)}
        self._names = list(named.values())
        self.parameters: tuple[Tensor, ...] = tuple(p for p in named if p.requires_grad)

    def squares(self, uses: list[Use]) -> list[Tensor]:
        """Return the squared norms of each parameter's gradients, each of shape (B,)."""
        gathered = gather(Kept(uses=uses[::-1], passes={0}), self._index, self._names)
        return [squares_of(form).values for form in gathered.forms if form is not None]


def groups_of(units: Sequence[Unit]) -> list[Group]:
    """Return the units, those together that share a parameter."""
    groups: list[tuple[set[Tensor], list[Unit]]] = []
    for unit in units:
        own: set[Tensor] = {*unit.module.parameters()}
        joined = [unit]
        apart = []
        for params, members in groups:
            if params & own:
                own |= params
                joined = [*members, *joined]
            else:
                apart.append((params, members))
        groups = [*apart, (own, joined)]
    return [Group(members) for _, members in groups]


def units_with_formula(model: nn.Module, params: set[Tensor]) -> list[Unit]:
    """Return the modules whose samples' gradients a formula knows, also within unknown ones.

    Args:
        model: not mutated.
        params: a module without any of these is left out.
    """
    found = []
    for name, module in model.named_modules():
        ghost = ghost_of(module)
        trained = [p for p in module.parameters() if p.requires_grad and p in params]
        if ghost is None or not trained or any(is_sharded(p) or p.is_complex() for p in trained):
            continue
        if not getattr(module, "scale_grad_by_freq", False):  # Which counts over the batch.
            found.append(Unit(name or type(module).__name__, module, ghost))
    return found
