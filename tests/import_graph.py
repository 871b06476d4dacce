"""Reads which module of a package imports which, from its source text alone.

Every ``import`` statement counts, also one inside a function or under ``if TYPE_CHECKING``, and so
does ``importlib.import_module("name")``. Exempt are three kinds of import: ``import_module`` with a
name that the program computes; the packages above a module, which Python runs first; and a folder
without ``__init__.py``, which holds a script and not a module.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported module or name.

    Attributes:
        source: The module that imports, with dots.
        target: The module that is imported, with dots; of a third party only its first name.
        line: Where the statement stands in the file of ``source``.
        kind: ``"inside"``, ``"outside"`` (a third party), or ``"absolute"`` (inside, but written
            with the package's own name instead of dots).
    """

    source: str
    target: str
    line: int
    kind: str

    @property
    def place(self) -> str:
        """The importing module and the line, for a message."""
        return f"{self.source}, line {self.line},"


def imports_of(folder: Path) -> list[Import]:
    """Return all imports of the package that lies in ``folder``."""
    modules = {_name(folder, path): path for path in sorted(_files(folder))}
    return [found for name, path in modules.items() for found in _imports(name, path, set(modules))]


def modules_of(folder: Path) -> set[str]:
    """Return the dotted names of the package's modules."""
    return {_name(folder, path) for path in _files(folder)}


def cycles(imports: list[Import]) -> list[list[str]]:
    """Return the groups of modules that import each other (Tarjan's components, smallest first)."""
    arrows: dict[str, set[str]] = {}
    for one in imports:
        if one.kind != "outside" and one.source != one.target:
            arrows.setdefault(one.source, set()).add(one.target)
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in sorted(arrows.get(module, ())):
            if target not in number:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == number[module]:
            at = stack.index(module)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in sorted(arrows):
        if module not in number:
            visit(module)
    return sorted(found, key=len)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.py"):
        inner = [parent for parent in path.parents if folder in (parent, *parent.parents)]
        if all((parent / "__init__.py").is_file() for parent in inner):
            yield path


def _name(folder: Path, path: Path) -> str:
    parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, path: Path, modules: set[str]) -> list[Import]:
    root = module.partition(".")[0]
    seen: dict[Import, None] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
            relative = False
        elif isinstance(node, ast.ImportFrom):
            relative = node.level > 0
            base = _base(module, path, node)
            targets = [_target(base, alias.name, modules) for alias in node.names]
        elif isinstance(node, ast.Call) and (called := _called(node)):
            targets = [called]
            relative = False
        else:
            continue
        for target in targets:
            top = target.partition(".")[0]
            if top == root:
                kind = "inside" if relative else "absolute"
                seen[Import(module, _known(target, modules), node.lineno, kind)] = None
            elif top not in sys.stdlib_module_names:
                seen[Import(module, top, node.lineno, "outside")] = None
    return list(seen)


def _called(node: ast.Call) -> str | None:
    """Return the name that a call of ``import_module`` imports, if it stands in the source."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name != "import_module" or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    return str(node.args[0].value).lstrip(".")


def _base(module: str, path: Path, node: ast.ImportFrom) -> str:
    """Return the dotted name after ``from``, with the dots at its front resolved."""
    if node.level == 0:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - (node.level - 1)]
    return ".".join([*above, *([node.module] if node.module else [])])


def _target(base: str, name: str, modules: set[str]) -> str:
    """Return the module that ``from base import name`` reads: a submodule, or ``base`` itself."""
    return f"{base}.{name}" if f"{base}.{name}" in modules else base


def _known(target: str, modules: set[str]) -> str:
    """Return the longest beginning of a dotted name that is a module."""
    while target not in modules and "." in target:
        target = target.rpartition(".")[0]
    return target
