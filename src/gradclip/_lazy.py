"""Public names whose modules are imported when a name is first used.

`import gradclip` is light, because the modules wait until someone asks for one of their names. A
public package says under `TYPE_CHECKING` which name comes from which module, for type checkers and
readers, and gives the same table to `lazily`; a test compares the two.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

__all__ = ["later", "lazily"]


def lazily(
    package: str,
    homes: Mapping[str, Iterable[str]],
    names: Collection[str],
    *,
    modules: Iterable[str] = (),
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: the name of the package, which is being imported.
        homes: from the name of a module inside of the package to the public names in it.
        names: the package's `__all__`.
        modules: the public modules, which one may use without an import of their own.
    """
    home_of = {name: module for module, inside in homes.items() for name in inside}
    public = frozenset(modules)

    def get(name: str) -> object:
        if name in home_of:
            value = later(package, home_of[name], name)
        elif name in public:
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *public})

    return get, names_of


def later(package: str, module: str, name: str) -> Any:
    """Return what a module of a package has under a name."""
    return getattr(importlib.import_module(f".{module}", package), name)
