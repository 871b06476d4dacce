"""How the gradients of a model lie on the processes, and the norms of all of it.

A name is an identity: the tensors that have one name in the processes of a group are one parameter
in pieces, and a name that only one process has is a parameter of its own. So every process knows
every parameter, those of other processes by name, shape and norm, and decides as if it were alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import PolicyError
from ...method.measure import combine
from . import placements as shards
from .reduce import Group, Powers, all_reduce, gather_objects, group_of, norms_over

__all__ = ["Layout", "Piece", "layout", "over_all"]


@dataclass(frozen=True)
class Piece:
    """One parameter of the model, as one process knows it.

    Attributes:
        name: its identity in the whole model.
        shape: of the whole of it.
        dtype: of its values.
        own: its place among the parameters of this process; None if others hold it.
        offset: where on the first axis of the whole the part of this process begins.
        spread: the ranks of each group over which its sums add up.
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
    spread: frozenset[tuple[int, ...]]
    copied: frozenset[tuple[int, ...]]
    key: tuple[int, int]
    known: bool = True
    parted: frozenset[tuple[int, ...]] = frozenset()

    def adds_over(self, ranks: tuple[int, ...]) -> bool:
        """Whether these processes of a mesh have parts of it."""
        return ranks in self.spread

    def is_copy(self, ranks: tuple[int, ...]) -> bool:
        """Whether these processes of a mesh have the same of it."""
        return not self.spread or ranks in self.copied


@dataclass
class Layout:
    """What is summed over what, for a list of parameters.

    Attributes:
        pieces: one for each parameter of the model.
        groups: those over which something is spread, in the order of their collectives.
        adds: for each group and piece, whether the norm that is here is a part of its own.
        takes: for each group and piece, whether this process takes the sum.
        over: over these, after the others, everything together is summed.
    """

    pieces: list[Piece]
    groups: list[Group]
    adds: np.ndarray
    takes: np.ndarray
    over: list[Group] = field(default_factory=list)
    checked: bool = False

    @property
    def double(self) -> bool:
        """Whether any value is of double precision."""
        return any(p.dtype in (torch.float64, torch.complex128) for p in self.pieces)

    def norms(self, here: Any, order: float, members: Any, flags: Any = None) -> tuple[Any, Any]:
        """Return the norms of the whole parameters: one collective for each group.

        Args:
            here: shape (n,), a NumPy array or a tensor: the norms of what this process has.
            order: of the norms.
            members: which piece each belongs to, shape (n,).
            flags: shape (m,), numbers that are added up over all groups on the way.
        """
        if not self.groups or not len(members):
            return here, flags
        self._agree()
        plain = isinstance(here, np.ndarray)
        norms = torch.from_numpy(here) if plain else here
        extra = torch.from_numpy(flags) if isinstance(flags, np.ndarray) else flags
        index = np.asarray(members, np.int64)
        adds = [torch.from_numpy(row[index]).to(norms.device) for row in self.adds]
        takes = [torch.from_numpy(row[index]).to(norms.device) for row in self.takes]
        powers = Powers(order, self.double)
        found, extra = norms_over(self.groups, norms, powers, adds, takes, extra)
        if plain:
            return found.numpy(), None if extra is None else extra.numpy()
        return found, extra

    def total(self, here: Any, order: float, xp: Any) -> Any:
        """Return the one norm of everything, where nothing else is asked for.

        What is spread over the same groups is added up first, so that as many numbers travel as
        there are ways to be spread.
        """
        kinds: dict[frozenset[tuple[int, ...]], list[int]] = {}
        for i, piece in enumerate(self.pieces):
            kinds.setdefault(piece.spread, []).append(i)
        first = [members[0] for members in kinds.values()]
        if self.groups and kinds:
            sums = xp.stack([combine(here[members], order, xp) for members in kinds.values()])
            here, _ = self.norms(sums, order, first)
        total = combine(here, order, xp)
        if not self.over:
            return total
        whole = xp.reshape(total, (1,))
        all_of_it = np.ones((len(self.over), 1), bool)
        every = Layout(self.pieces, self.over, all_of_it, all_of_it, checked=True)
        return every.norms(whole, order, [0])[0][0]

    def anywhere(self, numbers: Tensor) -> Tensor:
        """Return the sums of numbers over all groups."""
        for group in self.groups:
            numbers = all_reduce(numbers, group)
        return numbers

    def places(self, member: int, tensor: Any, axis: int) -> np.ndarray:
        """Return where along an axis of the whole parameter this process's values are."""
        piece = self.pieces[member]
        found = shards.places(tensor, axis)
        return found + piece.offset if axis % max(len(piece.shape), 1) == 0 else found

    def units(self, member: int, axis: int | None) -> int:
        """Return how many units the whole parameter has."""
        shape = self.pieces[member].shape
        return 1 if len(shape) < 2 else shape[axis or 0]

    def _agree(self) -> None:
        """Compare, once, the lists of parameters: sums of different ones would be nonsense."""
        if self.checked:
            return
        self.checked = True
        text = "\n".join(f"{p.name} {p.shape} {p.dtype}" for p in self.pieces)
        mine = [zlib.crc32(text.encode()), len(self.pieces), len(self.groups)]
        for group in self.groups:
            pair = torch.tensor([*mine, *(-n for n in mine)], dtype=torch.int64)
            most = all_reduce(pair, group, dist.ReduceOp.MAX).tolist()
            if most[:3] != [-n for n in most[3:]]:
                remedy = (
                    f"the processes {list(group.ranks)} give different lists of parameters: give "
                    "the same, or say with groups= where the others are; verify='first-step' "
                    "names them"
                )
                raise PolicyError.of("params", f"{len(self.pieces)} parameters", remedy)


def layout(names: Sequence[str], params: Sequence[Any], groups: object = None) -> Layout | None:
    """Return how the parameters lie on the processes; None if all of them are here.

    With groups, all processes of each group call this at the same time: they exchange names.

    Args:
        names: of the parameters.
        params: any mix of plain tensors and DTensors, of any meshes.
        groups: where parameters are spread that do not say so themselves: a ProcessGroup or one
            dimension of a DeviceMesh, or several, for all; or such by patterns over names, of
            which the first that matches holds. None for a pattern: they are copies.

    Raises:
        PolicyError: a group is none, or a pattern matches no name of any process.
    """
    if groups is None and not shards.any_sharded(params):
        return None
    rules = _rules(groups)
    known: shards.Known = {}
    order: dict[Group, None] = {}
    pieces = []
    mine = dist.get_rank()
    for i, (name, param) in enumerate(zip(names, params, strict=True)):
        spread, copied = shards.spread_over(param, name, known)
        order.update(dict.fromkeys(spread))
        ranks = (frozenset(group.ranks for group in groups_) for groups_ in (spread, copied))
        pieces.append(Piece(name, tuple(param.shape), param.dtype, i, 0, *ranks, key=(mine, i)))
    meshes = list(order)
    if rules is None:
        adds = [
            [p.adds_over(g.ranks) or (p.is_copy(g.ranks) and not g.place) for p in pieces]
            for g in meshes
        ]
        takes = [[p.adds_over(g.ranks) or p.is_copy(g.ranks) for p in pieces] for g in meshes]
        both = np.asarray([adds, takes], bool).reshape(2, len(meshes), len(pieces))
        return Layout(pieces, meshes, both[0], both[1])
    return _exchanged(pieces, meshes, rules)


def over_all(params: Sequence[Any], groups: object = None) -> Layout | None:
    """Return the layout of parameters without names, for their total norm alone.

    Args:
        params: any mix of plain tensors and DTensors, of any meshes.
        groups: a group, or several, over which all of them are spread.
    """
    if isinstance(groups, Mapping):
        remedy = "these parameters have no names: give groups, or use a Clipper"
        raise PolicyError.of("groups", groups, remedy)
    found = layout([""] * len(params), params)
    rules = _rules(groups)
    if found is not None:
        found.checked = True  # Lists of two stages differ, and only sums travel.
    if rules is None:
        return found
    if found is None:
        mine = dist.get_rank()
        pieces = [
            Piece("", tuple(p.shape), p.dtype, i, 0, frozenset(), frozenset(), (mine, i))
            for i, p in enumerate(params)
        ]
        none = np.zeros((0, len(pieces)), bool)
        found = Layout(pieces, [], none, none, checked=True)
    for group in rules["*"]:
        if group not in found.groups:
            found.over.append(group)
            continue
        place = found.groups.index(group)
        found.adds[place] = found.takes[place] = True
    return found


Rules = dict[str, list[Group]]


def _rules(groups: object) -> Rules | None:
    """Return the groups by pattern."""
    if groups is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        remedy = "there are no processes yet: call torch.distributed.init_process_group first"
        raise PolicyError.of("groups", groups, remedy)
    given: Mapping[Any, Any] = groups if isinstance(groups, Mapping) else {"*": groups}
    rules: Rules = {}
    for pattern, value in given.items():
        if not isinstance(pattern, str):
            remedy = "give glob patterns over parameter names, such as 'experts.*'"
            raise PolicyError.of("groups", pattern, remedy)
        several = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        rules[pattern] = [group_of(each, f"groups[{pattern!r}]") for each in several]
    return rules


def _matched(name: str, rules: Rules) -> list[Group]:
    return next((found for pattern, found in rules.items() if fnmatchcase(name, pattern)), [])


def _exchanged(pieces: list[Piece], meshes: list[Group], rules: Rules) -> Layout:
    """Return the layout of all that the processes of all groups have.

    Group after group, in the order of the collectives, each process learns what the others know.
    """
    own = list(dict.fromkeys(group for found in rules.values() for group in found))
    groups = meshes + [group for group in own if group not in meshes]
    table = {piece.name: piece for piece in pieces}
    if len(table) < len(pieces):
        names = [p.name for p in pieces]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise PolicyError.of("params", twice, "with groups each parameter needs a name of its own")
    rows: list[tuple[dict[str, bool], dict[str, bool]]] = []
    for group in groups:
        adds: dict[str, bool] = {}
        takes: dict[str, bool] = {}
        tables: list[dict[str, Piece]] = gather_objects(table, group)
        merged = list(dict.fromkeys(name for each in tables for name in each))
        for name in merged:
            there = [each.get(name) for each in tables]
            piece, adds[name], takes[name] = _met(name, there, group, rules, group in meshes)
            table[name] = piece
        rows.append((adds, takes))
    unused = [p for p in rules if p != "*" and not any(fnmatchcase(n, p) for n in table)]
    if unused:
        remedy = f"it matches no parameter of any process; the names are {_some(list(table))}"
        raise PolicyError.of("groups", unused[0], remedy)
    found = sorted(table.values(), key=lambda piece: piece.key)
    shape = len(groups), len(found)
    both = [
        np.asarray([[row[i].get(p.name, False) for p in found] for row in rows], bool).reshape(
            shape
        )
        for i in range(2)
    ]
    return Layout(found, groups, both[0], both[1])


def _met(
    name: str, there: list[Piece | None], group: Group, rules: Rules, mesh: bool
) -> tuple[Piece, bool, bool]:
    """Return a parameter as it is known after a group's exchange, and if it adds and takes.

    Args:
        name: of the parameter.
        there: what each process of the group knew of it before.
        group: of these processes.
        rules: the groups by pattern.
        mesh: whether the group belongs to a mesh: then only who has a part learns the sum.
    """
    knowing = [place for place, piece in enumerate(there) if piece is not None and piece.known]
    some = [piece for piece in there if piece is not None]
    mine, here = there[group.place], group.place
    cut = any(piece.adds_over(group.ranks) for piece in some)
    parted = group in _matched(name, rules)
    base = mine if mine is not None else replace(some[0], own=None, known=False)
    base = replace(base, key=min(piece.key for piece in some))
    if parted:
        base = replace(base, parted=base.parted | {group.ranks})
    # Elsewhere in the mesh there are other parts of it.
    apart = mesh and not (parted or cut or all(piece.is_copy(group.ranks) for piece in some))
    adds = here in knowing and not apart and (parted or cut or here == knowing[0])
    if parted and not cut and len(knowing) > 1 and base.shape:
        shapes = sorted({piece.shape[1:] for piece in some if piece.known})
        if len(shapes) > 1 or not all(piece.shape for piece in some):
            remedy = (
                f"the processes {list(group.ranks)} have different parameters of this name: give "
                "names that tell them apart, as with model= or model.named_parameters()"
            )
            raise PolicyError.of("params", name, remedy)
        counts = {place: _rows(there[place]) for place in knowing}
        before = sum(count for place, count in counts.items() if place < here)
        shape = (sum(counts.values()), *base.shape[1:])
        base = replace(base, shape=shape, offset=base.offset + before)
    knows = base.known or ((not mesh or parted) and bool(knowing))
    return replace(base, known=knows), adds, knows and not apart


def _rows(piece: Piece | None) -> int:
    assert piece is not None
    return piece.shape[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
