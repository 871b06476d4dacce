"""Finds the model behind an optimizer, for the names of its parameters."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from torch import Tensor, nn

__all__ = ["find_model", "subclasses"]

# How the wrappers call what they wrap: DDP and DataParallel, torch.compile, FSDP, Fabric.
_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module")


class _Models(nn.ModuleDict):
    """Several models under one roof, each by the name that the script has for it."""


_NOBODY = _Models()


def find_model(params: Sequence[Tensor]) -> nn.Module | None:
    """Return the model that these parameters belong to, so that they get the names it has for them.

    Looks at every module in the process that is part of no other; of those that hold the most of
    the parameters takes the smallest, inside wrappers such as DDP. Where one model does not hold
    them all, the next is added, and names begin with the variable that the script keeps each model
    in, or with the model's class.

    Args:
        params: not mutated.

    Returns:
        None, if no module holds any.
    """
    wanted = {id(p) for p in params}
    held = [(model, ids) for model in _models() if (ids := _parameters(model)) & wanted]
    found: list[nn.Module] = []
    while wanted and held:
        model, ids = max(held, key=lambda each: (len(each[1] & wanted), -len(each[1])))
        if not ids & wanted:
            break
        found.append(_unwrapped(model))
        wanted -= ids
    if len(found) > 1:
        return _together(found)
    return found[0] if found else None


def _models() -> list[nn.Module]:
    """Return every module that is no other's child."""
    # By exact type: `isinstance` asks an object for its __class__, and proxies answer with lies.
    kinds = set(subclasses(nn.Module)) - {_Models}
    modules = [thing for thing in gc.get_objects() if type(thing) in kinds]
    children = {id(child) for module in modules for _, child in _children(module)}
    return [module for module in modules if id(module) not in children]


def subclasses(kind: type) -> Iterator[type]:
    """Yield a class and all classes that are made of it."""
    yield kind
    for each in type.__subclasses__(kind):
        yield from subclasses(each)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    try:
        return [
            (name, child) for name, child in vars(module)["_modules"].items() if child is not None
        ]
    except Exception:  # A module whose construction failed half-way, or a very odd one.
        return []


def _parameters(module: nn.Module) -> set[int]:
    try:
        return {id(p) for _, p in module.named_parameters()}
    except Exception:
        return set()


def _unwrapped(module: nn.Module) -> nn.Module:
    while len(inside := _children(module)) == 1 and not module._parameters:
        name, child = inside[0]
        if name not in _WRAPPED:
            break
        module = child
    return module


def _together(models: Sequence[nn.Module]) -> nn.Module:
    under_one_roof = _Models()
    for model in models:
        name = kind = _variable(model) or type(model).__name__
        count = 1
        while name in under_one_roof:
            count += 1
            name = f"{kind}{count}"
        under_one_roof[name] = model
    return under_one_roof


def _variable(model: nn.Module) -> str | None:
    """Return the variable in which the script keeps a model, of the outermost call that has one."""
    frame: FrameType | None = sys._getframe()
    found = None
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("gradclip.", "torch.")):
            names = (n for n, value in frame.f_locals.items() if _inside(value) is model)
            found = next((n for n in names if not hasattr(_NOBODY, n)), found)
        frame = frame.f_back
    return found


def _inside(value: object) -> object:
    """Return what a wrapper wraps; anything but a module as it is."""
    # By type, for the reason that `_models` gives.
    return _unwrapped(value) if issubclass(type(value), nn.Module) else value  # type: ignore[arg-type]
