"""Breaks the methods and the engine in small ways, and counts the breaks that a test notices.

`python -m release.mutants [COUNT]` changes one operator, number or condition of a copy of
src/gradclip/method and src/gradclip/engine, runs their tests against the copy, and goes on with the
next change. A break that no test notices survives; its line is printed. The breaks of all files
come in the order of a checksum of their text. So a run can be repeated, a longer run begins with
the same breaks, and a change of one line moves no break of another.
"""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gradclip import kernel

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
PARTS = ("method", "engine")
STAGES = (
    (
        "tests/unit/method",
        "tests/reference",
        "tests/unit/test_numpy_per_sample.py",
        "tests/unit/test_numpy_per_sample_parts.py",
        # The pages name the default of each argument of each method.
        "tests/unit/test_docs.py::test_the_catalogue_in_the_docs_is_the_catalogue",
    ),
    ("tests/parity/test_references.py",),
    ("tests/unit/engine", "tests/parity/test_torch_dropins.py", "tests/contract", "tests/property"),
)
"""The tests, the quick ones first: the next ones run where the ones before notice nothing."""
SECONDS = 900
"""A break that makes the tests run longer than that counts as noticed."""

# An editable install finds the package by a hook of the import, before any path. Hypothesis need
# not look for the smallest example that fails.
RUN = """
import sys
import hypothesis
sys.meta_path[:] = [one for one in sys.meta_path if "Redirecting" not in type(one).__name__]
sys.path.insert(0, sys.argv[1])
import gradclip, pytest
assert gradclip.__file__.startswith(sys.argv[1]), gradclip.__file__
phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
hypothesis.settings.register_profile("mutants", phases=phases, derandomize=True)
hypothesis.settings.load_profile("mutants")
sys.exit(pytest.main(sys.argv[2:]))
"""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One break.

    Attributes:
        path: the file, under src/gradclip.
        node: the number of the node in it.
        line: the number of the line.
        text: the line as it is without the break, and the node.
    """

    path: Path
    node: int
    line: int
    text: str

    def source(self) -> str:
        """Return the text of the broken file."""
        tree = ast.parse((ROOT / "src" / "gradclip" / self.path).read_text())
        node = list(ast.walk(tree))[self.node]
        _break(node)
        return ast.unparse(ast.fix_missing_locations(tree))


def find(path: Path) -> Iterator[Mutant]:
    """Yield all breaks of a file; texts, annotations and what only raises an error stay."""
    source = (ROOT / "src" / "gradclip" / path).read_text()
    tree, lines = ast.parse(source), source.splitlines()
    left_out = {
        id(inner) for node in ast.walk(tree) if _is_left_out(node) for inner in ast.walk(node)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in left_out and _can_break(node):
            line: int = getattr(node, "lineno", 0)
            text = f"{lines[line - 1].strip()!r} ({ast.unparse(node)})"
            yield Mutant(path, number, line, text)


def in_order(mutants: Iterable[Mutant]) -> list[Mutant]:
    """Return the breaks in an order that looks random and depends on nothing but their texts."""
    met: Counter[str] = Counter()

    def place(mutant: Mutant) -> str:
        text = f"{mutant.path}: {mutant.text}"
        met[text] += 1
        return hashlib.sha256(f"{text} {met[text]}".encode()).hexdigest()

    return sorted(mutants, key=place)


def _is_left_out(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise | ast.arg | ast.AnnAssign | ast.JoinedStr | ast.Assert)


def _can_break(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return True
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) | ast.Compare(ops=[op]):
            return type(op) in SWAPS
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return True
        case ast.IfExp():
            return True
        case _:
            return False


def _break(node: ast.AST) -> None:
    match node:
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign():
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        case ast.Compare():
            node.ops = [SWAPS[type(node.ops[0])]()]  # type: ignore[list-item]
        case ast.UnaryOp(op=ast.Not()):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.UnaryOp():
            node.op = ast.UAdd()
        case ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case _:
            raise TypeError(f"{type(node).__name__} cannot be broken")


def is_noticed(mutant: Mutant | None) -> bool:
    """Run the tests against the copy with one break; None: without, to see that they pass."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT / "src", COPY)
    library = kernel.status().library
    if library is not None:
        shutil.copy(library, COPY / "gradclip" / "kernel")
    if mutant is not None:
        (COPY / "gradclip" / mutant.path).write_text(mutant.source())
    return any(map(_fails, STAGES))


def _fails(tests: tuple[str, ...]) -> bool:
    """Return whether a test fails against the copy, or takes too long."""
    command = [sys.executable, "-c", RUN, str(COPY), "-x", "-q", "-p", "no:cacheprovider",
               "-W", "ignore::pytest.PytestAssertRewriteWarning",  # Hypothesis is imported already.
               "-m", "not slow and not faults", *tests]  # fmt: skip
    try:
        ran = subprocess.run(
            command, cwd=ROOT, timeout=SECONDS, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return ran.returncode != 0


def main(count: int) -> int:
    """Try a number of breaks, print those that no test notices, and the share of the others."""
    folder = ROOT / "src" / "gradclip"
    paths = [path for part in PARTS for path in sorted((folder / part).rglob("*.py"))]
    all_mutants = in_order(mutant for path in paths for mutant in find(path.relative_to(folder)))
    print(f"{len(all_mutants)} breaks in {len(paths)} files; {count} are tried", flush=True)
    if is_noticed(None):
        print("the tests fail without a break: repair that first", file=sys.stderr)
        return 2
    noticed = 0
    for tried, mutant in enumerate(all_mutants[:count], start=1):
        if is_noticed(mutant):
            noticed += 1
        else:
            print(f"survives: src/gradclip/{mutant.path}:{mutant.line} {mutant.text}", flush=True)
        print(f"{noticed} of {tried} noticed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
