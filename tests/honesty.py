"""What makes a test honest, read from its syntax tree: each way through the test asserts something.

A test can pass and say nothing: it asserts nothing, it returns before it asserts, it asserts only
under a condition, or it states a comparison without `assert`. `faults_of` finds these four.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

PYTEST_CHECKS = {"raises", "warns", "deprecated_call", "fail"}
"""What of pytest's is an assertion."""
PYTEST_ENDS = {"skip", "xfail", "importorskip"}
"""What of pytest's ends a test with a reason."""
CHECKING_NAMES = ("assert", "check", "expect")
"""A function whose name begins so is an assertion by its name."""
EFFECTS = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)
"""Expressions that may do something: any other expression that stands alone does nothing."""
ALWAYS_TRUE = (ast.GeneratorExp, ast.Lambda)
"""Expressions that are true whatever they hold."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one test: where, and what to do."""

    file: str
    line: int
    test: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.test} {self.sentence}"


@dataclass(frozen=True)
class Module:
    """The functions of one file of the tests, and what the file imports."""

    functions: dict[str, Function]
    imported: dict[str, tuple[str, str]]  # name here -> module, name there
    modules: dict[str, str]  # name here -> module


def module_of(tree: ast.Module, name: str) -> Module:
    """Read what a file defines and imports; `name` is the file's dotted name below tests/."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    imported: dict[str, tuple[str, str]] = {}
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                imported[alias.asname or alias.name] = (base, alias.name)
                modules[alias.asname or alias.name] = f"{base}.{alias.name}".lstrip(".")
    return Module(functions, imported, modules)


def read_modules(folder: Path) -> dict[str, Module]:
    """All Python files below a folder, by their dotted names."""
    found: dict[str, Module] = {}
    for file in sorted(folder.rglob("*.py")):
        name = ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        found[name] = module_of(ast.parse(file.read_text()), name)
    return found


def _called(call: ast.Call) -> tuple[str, str]:
    """The name that stands before the dot ("" where there is none), and the one that is called."""
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        return (owner.id if isinstance(owner, ast.Name) else "?"), call.func.attr
    return "", call.func.id if isinstance(call.func, ast.Name) else "?"


@dataclass(frozen=True)
class _Reader:
    """Judges the tests of one file."""

    module: Module
    others: dict[str, Module]

    def helper(self, call: ast.Call) -> Function | None:
        """The function of the tests that is called, where it can be found."""
        owner, name = _called(call)
        if owner:
            home = self.others.get(self.module.modules.get(owner, ""))
            return home.functions.get(name) if home else None
        if name in self.module.functions:
            return self.module.functions[name]
        where, there = self.module.imported.get(name, ("", ""))
        home = self.others.get(where)
        return home.functions.get(there) if home else None

    def asserts(self, node: ast.AST, helpers: bool = True) -> bool:
        """Whether an assertion stands in this node; a helper's own body is read too, one level."""
        for inner in _walk_here(node):
            if isinstance(inner, ast.Assert):
                return True
            if not isinstance(inner, ast.Call):
                continue
            owner, name = _called(inner)
            if owner in ("pytest", "") and name in PYTEST_CHECKS:
                return True
            if name.lstrip("_").startswith(CHECKING_NAMES):
                return True
            helper = self.helper(inner) if helpers else None
            if helper is not None and any(self.asserts(line, False) for line in helper.body):
                return True
        return False

    def ends(self, line: ast.stmt) -> bool:
        """Whether the test ends here with a reason: it is skipped, or it raises."""
        if isinstance(line, ast.Raise):
            return True
        call = line.value if isinstance(line, ast.Expr) else None
        return isinstance(call, ast.Call) and _called(call)[1] in PYTEST_ENDS

    def silent(self, lines: list[ast.stmt]) -> tuple[bool, ast.stmt | None]:
        """Whether one can come to the end with no assertion; and a `return` that one can meet so.

        A loop counts as run, since its length is not known here.
        """
        for line in lines:
            if isinstance(line, ast.Return):
                return False, (None if self.asserts(line) else line)
            if self.ends(line):
                return False, None
            if isinstance(line, ast.If):
                if self.asserts(line.test):
                    return False, None
                ways = [self.silent(line.body), self.silent(line.orelse)]
            elif isinstance(line, ast.Match):
                ways = [self.silent(case.body) for case in line.cases]
                if not any(_takes_all(case) for case in line.cases):
                    ways.append((True, None))
            elif isinstance(line, ast.For | ast.While | ast.With | ast.AsyncWith | ast.AsyncFor):
                heads = line.items if isinstance(line, ast.With | ast.AsyncWith) else []
                if any(self.asserts(head) for head in heads):
                    return False, None
                ways = [self.silent(line.body)]
            elif isinstance(line, ast.Try):
                if not self.silent(line.finalbody)[0] and line.finalbody:
                    return False, None
                ways = [self.silent([*line.body, *line.orelse])]
                ways += [self.silent(handler.body) for handler in line.handlers]
            else:
                if self.asserts(line):
                    return False, None
                continue
            found = next((stop for _, stop in ways if stop is not None), None)
            if found is not None:
                return False, found
            if not any(goes_on for goes_on, _ in ways):
                return False, None
        return True, None


def _takes_all(case: ast.match_case) -> bool:
    pattern = case.pattern
    return case.guard is None and isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _walk_here(node: ast.AST) -> list[ast.AST]:
    """The node and all below it, without the bodies of functions that are only defined there."""
    if isinstance(node, Function | ast.Lambda | ast.ClassDef):
        return []
    found = [node]
    for child in ast.iter_child_nodes(node):
        found += _walk_here(child)
    return found


def _idle(lines: list[ast.stmt], raising: bool) -> list[ast.stmt]:
    """The expressions among these lines that stand alone and do nothing."""
    found: list[ast.stmt] = []
    for number, line in enumerate(lines):
        if isinstance(line, ast.Expr):
            value = line.value
            text = isinstance(value, ast.Constant) and (number == 0 or value.value is ...)
            if not isinstance(value, EFFECTS) and not text and not raising:
                found.append(line)
            continue
        inside = raising or (isinstance(line, ast.With) and any(map(_expects_error, line.items)))
        for field in ("body", "orelse", "finalbody"):
            found += _idle(getattr(line, field, []), inside)
        for handler in [*getattr(line, "handlers", []), *getattr(line, "cases", [])]:
            found += _idle(handler.body, inside)
    return found


def _expects_error(item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and _called(call)[1] in {"raises", "warns", "suppress"}


def _says_nothing(node: ast.Assert) -> bool:
    value = node.test
    if isinstance(value, ast.Constant):
        return bool(value.value)
    return isinstance(value, ALWAYS_TRUE) or (isinstance(value, ast.Tuple) and bool(value.elts))


def _compares_in_the_message(node: ast.Assert) -> bool:
    """Whether `assert a, b == c` was written where `assert (a, b) == c` was meant."""
    return isinstance(node.msg, ast.Compare | ast.BoolOp)


def _tests_of(tree: ast.Module) -> list[Function]:
    """The test functions of a file: at its top, and in its `Test...` classes."""
    bodies = [tree.body] + [
        node.body for node in tree.body if isinstance(node, ast.ClassDef) if "Test" in node.name
    ]
    every = [line for body in bodies for line in body]
    return [line for line in every if isinstance(line, Function) if line.name.startswith("test")]


def faults_of(text: str, file: str, name: str, others: dict[str, Module]) -> list[Fault]:
    """What is wrong with the tests of one file.

    Args:
        text: The file's text.
        file: The file's path, as the message shows it.
        name: The file's dotted name below tests/.
        others: All files of the tests, as `read_modules` gives them: where helpers are looked up.

    Returns:
        One fault for each thing that is wrong, in the order of the lines of each test.
    """
    tree = ast.parse(text)
    reader = _Reader(module_of(tree, name), others)
    found: list[Fault] = []
    for test in _tests_of(tree):

        def fault(node: ast.stmt, sentence: str, test: Function = test) -> None:
            found.append(Fault(file, node.lineno, test.name, sentence))

        goes_on, stop = reader.silent(test.body)
        if stop is not None:
            fault(
                stop,
                "returns before it asserts: parametrise the test over the rows that the promise "
                "is about, or call pytest.skip with the reason where the machine lacks something",
            )
        elif goes_on and any(reader.asserts(line) for line in test.body):
            fault(
                test,
                "asserts only under a condition: parametrise the test over the cases that the "
                "condition picks, or assert something in the other case too",
            )
        elif goes_on:
            fault(
                test,
                "asserts nothing: say with `assert` or pytest.raises what must be true at the end",
            )
        for line in _idle(test.body, raising=False):
            fault(
                line,
                "has a stray expression: write `assert` before a comparison, make an `if` of a "
                "choice, and delete what does nothing",
            )
        for node in ast.walk(test):
            if isinstance(node, ast.Assert) and _says_nothing(node):
                fault(node, "asserts what is always true: assert on what the code computed")
            if isinstance(node, ast.Assert) and _compares_in_the_message(node):
                fault(
                    node,
                    "has a comparison where the message of an assertion stands: put brackets "
                    "around both sides, as in `assert (a, b) == c`",
                )
    return found
