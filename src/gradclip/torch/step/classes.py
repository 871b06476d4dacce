"""Where in an optimizer's classes the gradients are ready: some change them inside of `step`.

A class may override `step`, change the gradients (an all-reduce, noise, surgery) and then call its
parent's. The right moment to clip is then the parent's step. Whether a class does that is read off
the names that its code uses, and the code that it calls, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dis import get_instructions
from types import CodeType, FunctionType

import torch

__all__ = ["levels_of", "ready_level", "run_hooks_in"]

# Names that tell nothing about a change of the gradients.
_HARMLESS = frozenset(
    {"zero_grad", "no_grad", "enable_grad", "set_grad_enabled", "requires_grad", "is_grad_enabled"}
)
_CHANGES = ("grad", "reduce", "sync", "unscale")


def run_hooks_in(kind: type[torch.optim.Optimizer]) -> None:
    """Have each `step` of an optimizer's classes run hooks.

    torch does the same to the class of each optimizer that `Optimizer.__init__` makes. A class
    that does not call it (timm's Lookahead), and a parent class that nobody has used by itself,
    run no hooks until then.

    Args:
        kind: mutated, with its parents.
    """
    for level in levels_of(kind):
        step = vars(level)["step"]
        if not getattr(step, "hooked", False):
            hooked = torch.optim.Optimizer.profile_hook_step(step)
            hooked.hooked = True  # type: ignore[attr-defined]
            level.step = hooked  # type: ignore[method-assign]


def ready_level(kind: type[torch.optim.Optimizer]) -> int:
    """Return how many steps up, from the class to its parents, the gradients are ready.

    0 is the step of the class itself.
    """
    depth, levels = 0, levels_of(kind)
    for i, level in enumerate(levels[:-1]):
        names = set(_names_in(kind, vars(level)["step"], set()))
        parents = {parent.__name__ for parent in levels[i + 1 :]}
        calls_parent = "step" in names and ("super" in names or bool(parents & names))
        if not calls_parent:
            break
        if any(mark in name.lower() for name in names - _HARMLESS for mark in _CHANGES):
            depth = i + 1
    return depth


def levels_of(kind: type[torch.optim.Optimizer]) -> list[type[torch.optim.Optimizer]]:
    """Return the classes that define a step of their own, the class itself first."""
    base = torch.optim.Optimizer
    return [k for k in kind.__mro__ if k is not base and "step" in vars(k)]


def _names_in(kind: type, function: object, seen: set[CodeType]) -> Iterator[str]:
    """Return the names that a function uses, with those of the functions that it names.

    Those are methods of the optimizer's classes, and functions of the same module that write; none
    of torch's.
    """
    function = _undecorated(function)
    if function is None or function.__code__ in seen:
        return
    seen.add(function.__code__)
    for name in _names_of(function.__code__):
        yield name
        if name == "step":  # Of the parent, or of another optimizer.
            continue
        methods = (vars(level)[name] for level in kind.__mro__ if name in vars(level))
        method = _undecorated(next(methods, None))
        if method is not None and not method.__module__.startswith("torch."):
            yield from _names_in(kind, method, seen)
        helper = _undecorated(function.__globals__.get(name))
        if helper is not None and helper.__module__ == function.__module__ and _writes(helper):
            yield from _names_in(kind, helper, seen)


def _writes(helper: FunctionType) -> bool:
    """Whether a function may change gradients that it is given, and not only look at them."""
    if any(i.opname == "STORE_ATTR" and i.argval == "grad" for i in get_instructions(helper)):
        return True
    in_place = (n for n in _names_of(helper.__code__) if n.endswith("_") and n[-2:] != "__")
    return any(name not in _HARMLESS for name in in_place) or any(
        mark in name for name in _names_of(helper.__code__) for mark in ("reduce", "sync")
    )


def _undecorated(function: object) -> FunctionType | None:
    """Return the function under its decorators."""
    function = getattr(function, "__func__", function)
    while isinstance(wrapped := getattr(function, "__wrapped__", None), Callable):  # type: ignore[arg-type]
        function = wrapped
    return function if isinstance(function, FunctionType) else None


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)
