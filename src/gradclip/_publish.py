"""Says of public classes and functions that they live where one imports them from.

A user writes `from gradclip import Policy`, and reads `gradclip.Policy` in errors, in pickles and
in the docs, whatever private file defines the class. The file that defines public names ends with
`publish("gradclip", [...], globals())`, because the public package imports that file only when
someone asks for a name. A module that is public itself, such as `gradclip.errors`, has nothing to
say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import ForwardRef

__all__ = ["publish"]


def publish(module: str, names: Iterable[str], namespace: Mapping[str, object]) -> None:
    """Set `__module__` of the classes and functions among these names.

    Args:
        module: the name of the public package.
        names: public names, which `namespace` holds.
        namespace: the globals of the module that defines the names; the classes and functions in
            it are mutated.
    """
    for name in names:
        value = namespace[name]
        if isinstance(value, type):
            if "__wrapped__" not in vars(value):
                _keep_source(value)
                value.__module__ = module
        elif isinstance(value, FunctionType):
            value.__module__ = module


class _Own:
    """An attribute of one class, which its instances and its subclasses do not have."""

    def __init__(self, owner: type, find: Callable[[], object]) -> None:
        self.owner = owner
        self.find = find

    def __get__(self, instance: object, owner: type) -> object:
        if instance is not None or owner is not self.owner:
            raise AttributeError
        return self.find()


def _keep_source(moved: type) -> None:
    """Let `inspect` and `typing` find what they look for in the module that defines a class.

    An annotation says in which module `get_type_hints` is to evaluate it. `inspect.getsource` looks
    through `__wrapped__`, as for a function under a decorator, and finds a twin that names the old
    module.
    """
    defined = moved.__module__
    if own := vars(moved).get("__annotations__"):
        moved.__annotations__ = {
            name: _evaluated_in(defined, written) for name, written in own.items()
        }
    place = {"__module__": defined, "__qualname__": moved.__qualname__}
    if "__firstlineno__" in vars(moved):  # Python 3.13 and later
        place["__firstlineno__"] = vars(moved)["__firstlineno__"]

    def twin() -> object:
        return type(moved.__name__, (), place)

    type.__setattr__(moved, "__signature__", _Own(moved, lambda: _signature(moved)))
    type.__setattr__(moved, "__wrapped__", _Own(moved, twin))


def _evaluated_in(module: str, written: object) -> object:
    """Return an annotation that is text, or that NamedTuple wrapped, with the module's name."""
    text = written.__forward_arg__ if isinstance(written, ForwardRef) else written
    return ForwardRef(text, module=module, is_class=True) if isinstance(text, str) else written


def _signature(moved: type) -> object:
    """Return the signature of a class, which `inspect` would read from the twin."""
    import inspect  # Of all who import a public class, hardly one asks for this.

    own = moved.__new__ if moved.__init__ is object.__init__ else moved.__init__
    found = inspect.signature(own)
    return found.replace(parameters=list(found.parameters.values())[1:])
