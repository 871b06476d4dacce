"""The parameters that a clipper is for: each once, with a name, here or on other processes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import ne
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...errors import PolicyError
from ..processes.exchange import layout
from ..processes.layout import GroupsLike, Layout
from ..processes.sharded import Sharded
from ..processes.turns import Turns
from ..tensors.gradients import Gradients

__all__ = ["Grads", "Parameters", "Params", "empty_like_units", "named_once"]

Params: TypeAlias = Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]
Grads: TypeAlias = Gradients | Sharded


class Parameters:
    """Named parameters, in a fixed order.

    Args:
        params: parameters, or pairs of name and parameter. A parameter listed twice counts once.
        groups: see `Clipper`.

    Attributes:
        groups: as given.
        is_left: whether the groups of processes were left out, as in a pickle.
        names: one for each parameter; a parameter without a name has its number.
        tensors: the parameters; one that only other processes have is on the device "meta".
        layout: how the parameters lie on the processes; None if all of them are whole and here.
        turns: compares the processes from step to step; None without a layout.
        forms: the shape, dtype and device that each had when this was made.

    Raises:
        PolicyError: there are none, or something else was given.
    """

    def __init__(self, params: Params, groups: GroupsLike | None = None) -> None:
        names, tensors = named_once(params)
        self.groups: GroupsLike | None = groups
        self.is_left: bool = False
        self.layout: Layout | None = layout(names, tensors, groups)
        if self.layout is not None:
            names, tensors = _of_the_model(self.layout, tensors)
        self.turns: Turns | None = None if self.layout is None else Turns(self.layout)
        self.names: tuple[str, ...] = names
        self.tensors: tuple[Tensor, ...] = tensors
        self._absent = () if self.layout else tuple(map(empty_like_units, tensors))
        self.forms: tuple[Form, ...] = tuple(map(_form, tensors))

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameters:
        """Return the copies of the parameters; the processes are the same."""
        copied = object.__new__(Parameters)
        copied.__dict__.update(self.__dict__)
        copied.tensors = copy.deepcopy(self.tensors, memo)
        if self.layout is not None:
            copied.layout = replace(self.layout, turn=None)
            copied.turns = Turns(copied.layout)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process can read: no groups of processes."""
        is_left = self.is_left or self.layout is not None
        return {**self.__dict__, "groups": None, "turns": None, "is_left": is_left}

    def refuse_without_groups(self) -> None:
        """Refuse what needs the other processes, if the groups of them were left out.

        Raises:
            PolicyError: says what to do instead.
        """
        if self.is_left:
            remedy = (
                "a pickle holds no groups of processes: make a new Clipper, with the same policy "
                "and groups, in all processes, and load_state_dict() what state_dict() of this "
                "copy returns"
            )
            raise PolicyError.of("clipper", "an unpickled clipper of sharded parameters", remedy)

    def gradients(self) -> Grads:
        """Return the gradients that there are now; they are views, not copies."""
        self.refuse_without_groups()
        found = [param.grad for param in self.tensors]
        if self.layout is not None:
            return Sharded(found, self.tensors, self.layout)
        there = [grad for grad in found if grad is not None]
        if len(there) == len(found):
            return Gradients(there, self.names, self.tensors)
        present = [grad is not None for grad in found]
        pairs = zip(found, self._absent, strict=True)
        tensors = [absent if grad is None else grad for grad, absent in pairs]
        return Gradients(tensors, self.names, self.tensors, present)

    def updates(self, before: Sequence[Tensor]) -> tuple[list[Tensor], Grads]:
        """Return how the parameters differ from `before`, as tensors and as gradients."""
        self.refuse_without_groups()
        updates = [now - old for now, old in zip(self.tensors, before, strict=True)]
        if self.layout is None:
            return updates, Gradients(updates, self.names, before)
        return updates, Sharded(updates, before, self.layout)

    def changed_form(self) -> bool:
        """Return whether a parameter has another shape, dtype or device than it had."""
        return any(map(ne, map(_form, self.tensors), self.forms))

    def shapes(self) -> Grads:
        """Return gradients of all parameters, for what only wants their shapes."""
        if self.layout is not None:
            zeros = [None if p.is_meta else torch.zeros_like(p) for p in self.tensors]
            return Sharded(zeros, self.tensors, self.layout).unexchanged()
        nothing = [torch.empty(form.shape, dtype=form.dtype, device="meta") for form in self.forms]
        # They hold no numbers, and what is remembered of them does.
        host = torch.device("cpu")
        return Gradients(nothing, self.names, self.tensors, begin_on=host)

    def zeros(self) -> Sharded | None:
        """Return gradients of zeros, for what only wants shapes; None without a layout."""
        if self.layout is None:
            return None
        zeros = [torch.zeros_like(p) if p.requires_grad else None for p in self.tensors]
        return Sharded(zeros, self.tensors, self.layout)


class Form(NamedTuple):
    """What the memory of a parameter's values must be like."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _form(param: Tensor) -> Form:
    return Form(param.shape, param.dtype, param.device)


def empty_like_units(param: Tensor) -> Tensor:
    """Return what stands for a missing gradient: no values, but as many units as the parameter."""
    shape = (0,) if param.ndim < 2 else (param.shape[0], 0)
    return torch.empty(shape, dtype=param.dtype, device=param.device)


def named_once(params: Tensor | Iterable[object]) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return names and parameters, each parameter once.

    Raises:
        PolicyError: there are none, or something else was given.
    """
    given = [params] if isinstance(params, Tensor) else list(params)
    found: dict[int, tuple[str, Tensor]] = {}
    for index, item in enumerate(given):
        name, param = (str(index), item) if isinstance(item, Tensor) else _pair(item)
        found.setdefault(id(param), (name, param))
    if not found:
        remedy = "it is empty; a generator such as model.parameters() can be read only once"
        raise PolicyError.of("params", given, remedy)
    return tuple(n for n, _ in found.values()), tuple(p for _, p in found.values())


def _pair(item: object) -> tuple[str, Tensor]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
        return str(item[0]), item[1]
    remedy = "give model.parameters() or model.named_parameters()"
    raise PolicyError.of("params", type(item).__name__, remedy)


def _of_the_model(
    spread: Layout, params: Sequence[Tensor]
) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return the names of the whole model, and its parameters; those elsewhere hold no memory."""
    found = []
    for index, piece in enumerate(spread.pieces):
        if piece.own is None:
            found.append(torch.empty(piece.shape, dtype=piece.dtype, device="meta"))
        else:
            found.append(params[piece.own])
            spread.pieces[index] = replace(piece, own=index)
    return tuple(piece.name for piece in spread.pieces), tuple(found)
