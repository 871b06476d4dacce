"""A plain install, and one with each extra alone, simulated: all other packages are blocked."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from extras import (
    COMMANDS,
    EXTRAS,
    check_outcome,
    others_than,
    requirements,
    with_others,
    write_inputs,
)

WORKER = Path(__file__).parent / "commands_without.py"


def _is_installed(extra: str) -> bool:
    for text in requirements([extra]):
        try:
            importlib.metadata.version(Requirement(text).name)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_each_command_works_or_names_the_extra_that_it_needs(
    extra: str | None, tmp_path: Path
) -> None:
    if extra is not None and not _is_installed(extra):
        pytest.skip(f"the packages of the extra {extra} are not installed here")
    extras = set() if extra is None else with_others(extra)
    write_inputs(tmp_path)
    missing = {name: command.missing(extras) for name, command in COMMANDS.items()}
    lines = {
        name: command.args
        for name, command in COMMANDS.items()
        if missing[name] is not None or not command.spawns
    }
    hidden = others_than(requirements(extras))
    ran = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(hidden), json.dumps(lines)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for name in lines:
        code, message, error = found[name]
        assert not error, (name, error)
        check_outcome(name, code, message, missing[name])
    for extra_of_run in ("pandas", "parquet"):
        code, message, error = found[extra_of_run]
        assert not error
        check_outcome(extra_of_run, code, message, None if extra_of_run in extras else extra_of_run)
