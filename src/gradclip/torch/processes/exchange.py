"""How every process learns which parameters the others have: names and shapes travel once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ...errors import PolicyError
from . import placements as shards
from .agree import many_processes, refusing
from .layout import GroupsLike, Layout, Piece
from .reduce import Group, gather_objects, group_of

__all__ = ["layout", "over_all", "patterns", "together"]


def together(params: Sequence[object], groups: GroupsLike | None = None) -> list[Group]:
    """Return the groups of processes that make one clipper at the same time.

    These are all groups of the meshes, in which a parameter is spread or a copy, and those given.

    Args:
        params: parameters, or pairs of name and parameter; what is neither is passed over.
        groups: see `layout`.

    Raises:
        PolicyError: a group is none; the processes of the meshes hear of it.
    """
    if not many_processes():
        return []
    tensors = [each[-1] if isinstance(each, tuple) and each else each for each in params]
    known: shards.GroupCache = {}
    found: dict[Group, None] = {}
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not shards.is_sharded(tensor):
            continue
        if tensor.device_mesh.get_coordinate() is not None:
            summed, copied = shards.sum_groups(tensor, "", known)
            found.update(dict.fromkeys([*summed, *copied]))
    with refusing(list(found)):
        rules = _rules(groups) or {}
    found.update(dict.fromkeys(group for several in rules.values() for group in several))
    return list(found)


def patterns(groups: GroupsLike | None, here: Group) -> str:
    """Return what the processes of a group must all say of the argument `groups`.

    Args:
        groups: see `layout`.
        here: the group. Other groups have other processes in each of these.
    """
    texts = []
    for pattern, several in (_rules(groups) or {}).items():
        kinds = ["these processes" if g == here else "others" for g in several]
        texts.append(f"{pattern!r}: {' and '.join(kinds) or None}")
    return f"{{{', '.join(texts)}}}" if texts else "None"


def layout(
    names: Sequence[str], params: Sequence[Tensor], groups: GroupsLike | None = None
) -> Layout | None:
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
    known: shards.GroupCache = {}
    order: dict[Group, None] = {}
    pieces = []
    mine = dist.get_rank()
    for i, (name, param) in enumerate(zip(names, params, strict=True)):
        summed, copied = shards.sum_groups(param, name, known)
        order.update(dict.fromkeys(summed))
        ranks = (frozenset(group.ranks for group in groups_) for groups_ in (summed, copied))
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


def over_all(params: Sequence[Tensor], groups: GroupsLike | None = None) -> Layout | None:
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
    if rules is None:
        return found
    if found is None:
        mine = dist.get_rank()
        pieces = [
            Piece("", tuple(p.shape), p.dtype, i, 0, frozenset(), frozenset(), (mine, i))
            for i, p in enumerate(params)
        ]
        none = np.zeros((0, len(pieces)), bool)
        found = Layout(pieces, [], none, none)
    for group in rules["*"]:
        if group not in found.groups:
            found.over.append(group)
            continue
        place = found.groups.index(group)
        found.adds[place] = found.takes[place] = True
    return found


Rules = dict[str, list[Group]]


def _rules(groups: GroupsLike | None) -> Rules | None:
    """Return the groups by pattern."""
    if groups is None:
        return None
    if not dist.is_available() or not dist.is_initialized():
        remedy = "there are no processes yet: call torch.distributed.init_process_group first"
        raise PolicyError.of("groups", groups, remedy)
    given: Mapping[str, object] = groups if isinstance(groups, Mapping) else {"*": groups}
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
    fault: PolicyError | None = None
    for group in groups:
        adds: dict[str, bool] = {}
        takes: dict[str, bool] = {}
        tables: list[dict[str, Piece]] = gather_objects(table, group)
        merged = list(dict.fromkeys(name for each in tables for name in each))
        for name in merged:
            there = [each.get(name) for each in tables]
            mesh = group in meshes
            try:
                piece, adds[name], takes[name] = _after_exchange(name, there, group, rules, mesh)
            except PolicyError as error:  # The processes of the other groups still wait.
                fault = fault or error
                piece = next(each for each in there if each is not None)
            table[name] = piece
        rows.append((adds, takes))
    if fault is not None:
        raise fault
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


def _after_exchange(
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
