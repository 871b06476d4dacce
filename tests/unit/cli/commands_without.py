"""Run commands where some packages are not to be found: `python commands_without.py HIDDEN LINES`.

Both arguments are JSON: the `distributions` and top-level `modules` to hide, and the arguments of
each command by name. It prints what each command came to, in JSON: its exit code, what it wrote to
stderr, and the exception that it let through, if any.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from packaging.utils import canonicalize_name


class _Others(importlib.abc.MetaPathFinder):
    """Asks all finders that there were, unless the module is one of those to hide."""

    def __init__(self, modules: set[str], distributions: set[str]) -> None:
        self._modules, self._distributions = modules, distributions
        self._finders = [*sys.meta_path]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self._modules:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in self._finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *args: object) -> Iterator[importlib.metadata.Distribution]:
        finders = [getattr(finder, "find_distributions", None) for finder in self._finders]
        for distribution in itertools.chain.from_iterable(find(*args) for find in finders if find):
            if canonicalize_name(distribution.name) not in self._distributions:
                yield distribution


def main(
    hidden: dict[str, list[str]], lines: dict[str, list[str]]
) -> dict[str, tuple[int, str, str]]:
    """Return what each command came to."""
    modules = set(hidden["modules"])
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    sys.meta_path[:] = [_Others(modules, set(hidden["distributions"]))]
    from typer.testing import CliRunner

    import gradclip
    from gradclip.cli import app

    found = {}
    for name, args in lines.items():
        ran = CliRunner().invoke(app, args, prog_name="gradclip")
        clean = ran.exception is None or isinstance(ran.exception, SystemExit)
        found[name] = (ran.exit_code, ran.stderr, "" if clean else repr(ran.exception))
    run = gradclip.read_run("ok.jsonl")
    for name, call in (
        ("pandas", run.to_pandas),
        ("parquet", lambda: run.to_parquet("ok.parquet")),
    ):
        try:
            call()
            found[name] = (0, "", "")
        except gradclip.GradclipError as error:
            found[name] = (2, f"{error}\n", "")
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), json.loads(sys.argv[2]))))
