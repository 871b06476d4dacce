"""The C kernel's names: each begins with ``gradclip_``, and only the public ones are exported."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gradclip import kernel

NATIVE = Path(__file__).parents[3] / "native"
HEADER = NATIVE / "gradclip.h"


def _defined(*arguments: str | Path) -> set[str]:
    """Return the global symbols that an object file or library defines, as ``nm`` prints them."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("there is no `nm` to read symbols with")
    done = subprocess.run(
        [nm, "--defined-only", *arguments], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[2] for row in rows if len(row) == 3}


def _foreign(names: set[str]) -> list[str]:
    """Return the names that break the rule of the prefix."""
    return sorted(name for name in names if not name.startswith("gradclip_"))


def _objects(folder: Path, sources: list[Path]) -> list[Path]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make object files with")
    made = []
    for source in sources:
        made.append(folder / f"{source.stem}.o")
        command = [
            compiler,
            "-std=gnu11",
            "-O0",
            "-DGRADCLIP_THREADS",
            "-c",
            source,
            "-o",
            made[-1],
        ]
        subprocess.run(command, check=True)
    return made


def _declared() -> set[str]:
    """Return the functions that gradclip.h declares."""
    return set(re.findall(r"GRADCLIP_API[^;]*?\b(gradclip_\w+)\(", HEADER.read_text()))


def test_the_library_exports_what_the_header_declares_and_nothing_else() -> None:
    library = kernel.status().library
    if library is None or not library.endswith(".so"):
        pytest.skip(f"no library to read: {kernel.status().reason or library}")
    runtime = {"_init", "_fini", "_edata", "_end", "__bss_start"}  # The linker's, in some versions.
    assert _defined("-D", library) - runtime == _declared()


def test_every_symbol_that_files_share_has_the_prefix(tmp_path: Path) -> None:
    shared: set[str] = set()
    for made in _objects(tmp_path, sorted(NATIVE.glob("*.c"))):
        shared |= _defined("-g", made)
    assert shared > _declared(), "the inner symbols are missing: the check saw too little"
    foreign = _foreign(shared)
    assert not foreign, f"make these static or prefix them with gradclip_: {foreign}"


def test_the_prefix_check_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "odd.c"
    source.write_text("int add_up(int x) { return x; }\nstatic int hidden;\nint *at = &hidden;\n")
    (made,) = _objects(tmp_path, [source])
    assert _foreign(_defined("-g", made)) == ["add_up", "at"]


def test_the_public_header_includes_nothing_but_the_c_library() -> None:
    assert re.findall(r"#include\s+(\S+)", HEADER.read_text()) == ["<stdint.h>"]


def test_python_calls_what_the_header_declares() -> None:
    sources = Path(kernel.__file__).parent.glob("*.py")
    called = {
        name for file in sources for name in re.findall(r"\.(gradclip_\w+)", file.read_text())
    }
    assert called == _declared()


def test_the_two_sum_stands_once() -> None:
    """An error term ``term - added`` in a second place is a second copy."""
    files = [file.name for file in sorted(NATIVE.iterdir()) if "total - added" in file.read_text()]
    assert files == ["compensated.h"]
