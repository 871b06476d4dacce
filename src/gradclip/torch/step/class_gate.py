"""The gate in a class's `step`: for calls that do not come by way of the instance.

Such a call is that of a bound `step` from before `attach` (wrappers keep one), of the class's own
`SGD.step(optimizer)`, and the step that was running already when the clipper came. torch wraps the
`step` of an optimizer's class in a function that runs the hooks. This gate stands in that function,
between the hooks and the class's code: there even a call on its way passes.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import torch

from .classes import levels_of, run_hooks_in
from .gate import Call, Keeper, methods_of, through, uncompiled_alone

__all__ = ["keep", "put_gates"]

# By the id of each optimizer, which may be that of a later one.
_kept: dict[int, tuple[weakref.ref[torch.optim.Optimizer], weakref.ref[Keeper]]] = {}


def keep(optimizer: torch.optim.Optimizer, keeper: Keeper) -> Callable[[], None]:
    """Have the gates of the optimizer's class ask a keeper; return what ends that.

    Args:
        optimizer: not kept.
        keeper: not kept; asked until it is gone.
    """
    place = id(optimizer)
    methods_of(type(keeper))

    def end(_: object = None) -> None:
        if _kept.get(place) is pair:
            del _kept[place]

    pair = weakref.ref(optimizer, end), weakref.ref(keeper)
    _kept[place] = pair
    return end


def put_gates(kind: type[torch.optim.Optimizer]) -> bool:
    """Put a gate into each `step` of an optimizer's classes; other optimizers do not notice it.

    Args:
        kind: mutated, with its parents.

    Returns:
        Whether each gate stands behind the hooks: not if somebody else's function runs these. The
        gate then stands before that function, and a `step` from before `attach` does not pass it.
    """
    run_hooks_in(kind)
    behind = True
    for level in levels_of(kind):
        step = vars(level)["step"]
        place = _behind_hooks(step)
        if place is not None:
            if not _is_gate(place.cell_contents):
                place.cell_contents = _gate(place.cell_contents)
            continue
        behind = False
        if not _is_gate(step):
            level.step = _gate(step)  # type: ignore[method-assign]
    return behind


def _gate(step: Call) -> Call:
    """Return a gate before what takes the optimizer as its first argument."""
    passage = through()

    def gate(*args: Any, **kwargs: Any) -> Any:
        pair = _kept.get(id(args[0])) if args else None
        keeper = pair[1]() if pair is not None and pair[0]() is args[0] else None
        if keeper is None:
            return step(*args, **kwargs)
        call = functools.partial(step, args[0])
        return passage(keeper, args[0], call, args[1:], kwargs, hooks_ran=True)

    found = functools.wraps(step)(uncompiled_alone(gate))
    vars(found)["is_gate"] = True
    return found


def _is_gate(step: object) -> bool:
    return bool(getattr(step, "is_gate", False))


def _behind_hooks(step: object) -> CellType | None:
    """Return where torch's function that runs the hooks has the step that it calls."""
    while step is not None:
        if isinstance(step, FunctionType) and step.__code__ is _RUNS_HOOKS:
            names = step.__code__.co_freevars
            return (step.__closure__ or ())[names.index("func")] if "func" in names else None
        step = getattr(step, "__wrapped__", None)
    return None


def _nothing(_: torch.optim.Optimizer) -> None:
    """Stand for a step, to learn how torch wraps one."""


_RUNS_HOOKS = getattr(torch.optim.Optimizer.profile_hook_step(_nothing), "__code__", None)
