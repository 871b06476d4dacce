"""How the gradients of a model lie on the processes, and the norms of all of it.

A name is an identity: the tensors that have one name in the processes of a group are one parameter
in pieces, and a name that only one process has is a parameter of its own. So every process knows
every parameter, those of other processes by name, shape and norm, and decides as if it were alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...arrays import Namespace, Norms, Scalar
from ...method.axes import Axis, unit_axes
from ...method.measure import combine
from ..tensors.units import split
from . import placements as shards
from .reduce import Group, Powers, all_reduce, norms_over

__all__ = ["GroupLike", "GroupsLike", "Layout", "Mark", "Piece"]

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    GroupLike: TypeAlias = ProcessGroup | DeviceMesh
    """What a user names processes by: a group, or one dimension of a mesh."""
    GroupsLike: TypeAlias = (
        GroupLike | Sequence[GroupLike] | Mapping[str, GroupLike | Sequence[GroupLike] | None]
    )
    """Over which processes parameters are spread: for all of them, or by patterns over names."""
else:  # A process without others does not import what only meshes need.
    GroupLike = GroupsLike = object


@dataclass(frozen=True)
class Piece:
    """One parameter of the model, as one process knows it.

    Attributes:
        name: its identity in the whole model.
        shape: of the whole of it.
        dtype: of its values.
        own: its place among the parameters of this process; None if others hold it.
        offset: where on the first axis of the whole the part of this process begins.
        sum_groups: the ranks of each group over which its sums add up.
        copied: the ranks of each group of its mesh in which it is a copy.
        parted: the ranks of each group, given by the user, in which it is in pieces or elsewhere.
        key: orders the parameters of the model, the same in all processes.
        known: whether its norm, or a part of that, has reached this process.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    own: int | None
    offset: int
    sum_groups: frozenset[tuple[int, ...]]
    copied: frozenset[tuple[int, ...]]
    key: tuple[int, int]
    known: bool = True
    parted: frozenset[tuple[int, ...]] = frozenset()

    def adds_over(self, ranks: tuple[int, ...]) -> bool:
        """Whether these processes of a mesh have parts of it."""
        return ranks in self.sum_groups

    def is_copy(self, ranks: tuple[int, ...]) -> bool:
        """Whether these processes of a mesh have the same of it."""
        return not self.sum_groups or ranks in self.copied


class Mark(Protocol):
    """Puts marks on a collective, and reads those of all processes."""

    def marked(self, order: float, count: int, flags: Tensor | None) -> Tensor:
        """Return the flags of a collective of so many norms, with the mark of this process."""
        ...

    def unmarked(self, flags: Tensor | None) -> Tensor | None:
        """Return the flags of all processes without their marks, which are looked at."""
        ...


@dataclass
class Layout:
    """What is summed over what, for a list of parameters.

    Attributes:
        pieces: one for each parameter of the model.
        groups: those over which something is spread, in the order of their collectives.
        adds: for each group and piece, whether the norm that is here is a part of its own.
        takes: for each group and piece, whether this process takes the sum.
        over: over these, after the others, everything together is summed.
        turn: marks the next collective, the first of a step; None for all others.
    """

    pieces: list[Piece]
    groups: list[Group]
    adds: np.ndarray
    takes: np.ndarray
    over: list[Group] = field(default_factory=list)
    turn: Mark | None = None

    @property
    def double(self) -> bool:
        """Whether any value is of double precision."""
        return any(p.dtype in (torch.float64, torch.complex128) for p in self.pieces)

    def norms(
        self, here: Norms, order: float, members: Sequence[int], flags: Norms | None = None
    ) -> tuple[Norms, Norms | None]:
        """Return the norms of the whole parameters: one collective for each group.

        Args:
            here: shape (n,), a NumPy array or a tensor: the norms of what this process has.
            order: of the norms.
            members: which piece each belongs to, shape (n,).
            flags: shape (m,), numbers that are added up over all groups on the way.
        """
        if not self.groups or not len(members):
            return here, flags
        plain = isinstance(here, np.ndarray)
        norms = torch.from_numpy(here) if plain else here
        extra = torch.from_numpy(flags) if isinstance(flags, np.ndarray) else flags
        turn, self.turn = self.turn if plain else None, None
        if turn is not None:
            extra = turn.marked(order, len(members), extra)
        index = np.asarray(members, np.int64)
        adds = [torch.from_numpy(row[index]).to(norms.device) for row in self.adds]
        takes = [torch.from_numpy(row[index]).to(norms.device) for row in self.takes]
        powers = Powers(order, self.double)
        found, extra = norms_over(self.groups, norms, powers, adds, takes, extra)
        if turn is not None:
            extra = turn.unmarked(extra)
        if plain:
            return found.numpy(), None if extra is None else extra.numpy()
        return found, extra

    def total(self, here: Norms, order: float, xp: Namespace) -> Scalar:
        """Return the one norm of everything, where nothing else is asked for.

        What is spread over the same groups is added up first, so that as many numbers travel as
        there are ways to be spread.
        """
        kinds: dict[frozenset[tuple[int, ...]], list[int]] = {}
        for i, piece in enumerate(self.pieces):
            kinds.setdefault(piece.sum_groups, []).append(i)
        first = [members[0] for members in kinds.values()]
        if self.groups and kinds:
            sums = xp.stack([combine(here[members], order, xp) for members in kinds.values()])
            here, _ = self.norms(sums, order, first)
        total = combine(here, order, xp)
        if not self.over:
            return total
        whole = xp.reshape(total, (1,))
        all_of_it = np.ones((len(self.over), 1), bool)
        every = Layout(self.pieces, self.over, all_of_it, all_of_it)
        return every.norms(whole, order, [0])[0][0]

    def anywhere(self, numbers: Tensor) -> Tensor:
        """Return the sums of numbers over all groups."""
        for group in self.groups:
            numbers = all_reduce(numbers, group)
        return numbers

    def places(self, member: int, tensor: Tensor, axis: int) -> np.ndarray:
        """Return where along an axis of the whole parameter this process's values are."""
        piece = self.pieces[member]
        found = shards.places(tensor, axis)
        return found + piece.offset if axis % max(len(piece.shape), 1) == 0 else found

    def unit_places(self, member: int, tensor: Tensor, axis: Axis) -> np.ndarray:
        """Return where among all units of the whole parameter those of this process are."""
        shape, found = self.pieces[member].shape, np.zeros(1, np.int64)
        for each in unit_axes(axis, len(shape), self.pieces[member].name):
            here = self.places(member, tensor, each)
            found = (found[:, None] * shape[each] + here[None]).ravel()
        return found

    def units(self, member: int, axis: Axis) -> int:
        """Return how many units the whole parameter has."""
        piece = self.pieces[member]
        return split(piece.shape, axis, piece.name)[0]
