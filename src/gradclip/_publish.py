"""Says of public classes and functions that they live where one imports them from.

A user writes `from gradclip import Policy`, and reads `gradclip.Policy` in errors, in pickles and
in the docs, whatever private file defines the class. A public package ends with
`publish(__name__, __all__, globals())`. A module that defines its own public names, such as
`gradclip.errors`, has nothing to say.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import get_type_hints

__all__ = ["publish"]

_DEFINING = ("gradclip.errors", "gradclip.numpy")


def publish(module: str, names: Iterable[str], namespace: Mapping[str, object]) -> None:
    """Set `__module__` of the classes and functions among these names.

    A name that two packages publish, one in the other, belongs to the outer one: its line runs
    last.

    Args:
        module: the name of the public package.
        names: its `__all__`.
        namespace: its globals; the classes and functions in it are mutated.
    """
    for name in names:
        value = namespace[name]
        if getattr(value, "__module__", None) in _DEFINING:
            continue
        if isinstance(value, type):
            _keep_source(value)
            value.__module__ = module
        elif inspect.isfunction(value):
            value.__module__ = module


class _Own:
    """An attribute of one class, which its instances and its subclasses do not have."""

    def __init__(self, owner: type, value: object) -> None:
        self.owner = owner
        self.value = value

    def __get__(self, instance: object, owner: type) -> object:
        if instance is not None or owner is not self.owner:
            raise AttributeError
        return self.value


def _keep_source(moved: type) -> None:
    """Let `inspect` and `typing` find what they look for in the module that defines a class.

    `get_type_hints` finds annotations that are evaluated already. `inspect.getsource` looks through
    `__wrapped__`, as for a function under a decorator, and finds a twin that names the old module.
    """
    if "__wrapped__" in vars(moved):
        return
    if own := vars(moved).get("__annotations__"):
        hints = get_type_hints(moved, include_extras=True)
        moved.__annotations__ = {name: hints[name] for name in own}
    place = {"__module__": moved.__module__, "__qualname__": moved.__qualname__}
    if "__firstlineno__" in vars(moved):  # Python 3.13 and later
        place["__firstlineno__"] = vars(moved)["__firstlineno__"]
    twin = type(moved.__name__, (), place)
    type.__setattr__(moved, "__signature__", _Own(moved, inspect.signature(moved)))
    type.__setattr__(moved, "__wrapped__", _Own(moved, twin))
