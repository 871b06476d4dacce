"""What a wheel asks of the machine that installs it: `python -m release.symbols WHEEL...`.

A wheel of gradclip serves every Python 3 of its platform, since Python loads the C kernel with
ctypes. So the library may need nothing of Python, nothing but the C library, and no newer C
library than the wheel's tag promises. abi3audit cannot say so: it looks at extension modules.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile  # pyright: ignore[reportMissingImports]

HEADER = Path(__file__).parents[1] / "native" / "gradclip.h"
C_LIBRARY = re.compile(
    r"lib(c|m|dl|pthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+|libc\.musl-\w+\.so\.\d+"
)
RUNTIME = {"_init", "_fini", "_edata", "_end", "__bss_start"}
"""Names that some versions of the linker export."""

Version = tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """What the dynamic linker reads of a shared library.

    Attributes:
        exported: the functions that it offers.
        wanted: the functions that others must offer.
        needed: the libraries that it names.
        glibc: the newest version of glibc that one of its functions asks for.
    """

    exported: frozenset[str]
    wanted: frozenset[str]
    needed: frozenset[str]
    glibc: Version


def read(data: bytes) -> Library:
    """Read a library in the ELF format, which Linux uses."""
    elf: Any = ELFFile(io.BytesIO(data))
    symbols = [one for one in elf.get_section_by_name(".dynsym").iter_symbols() if one.name]
    defined = {one.name for one in symbols if one["st_shndx"] != "SHN_UNDEF"}
    dynamic = elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
    asked = elf.get_section_by_name(".gnu.version_r")  # musl has no versions of symbols.
    groups = [group for _, group in asked.iter_versions()] if asked else []
    versions = [version.name for group in groups for version in group]
    return Library(
        frozenset(defined - RUNTIME),
        frozenset({one.name for one in symbols} - defined),
        frozenset(tag.needed for tag in dynamic),
        max((_version(name[6:]) for name in versions if name.startswith("GLIBC_")), default=()),
    )


def faults(name: str, library: Library, declared: set[str]) -> list[str]:
    """Return what is wrong with the library of the wheel of this name, one sentence each."""
    found = []
    if library.exported != declared:
        odd = sorted(library.exported ^ declared)
        found.append(f"the library and gradclip.h do not offer the same functions: {odd}")
    if python := sorted(one for one in library.wanted if re.match("_?Py", one)):
        found.append(f"the library needs functions of Python: {python}")
    if others := sorted(one for one in library.needed if not C_LIBRARY.fullmatch(one)):
        found.append(f"the library needs others than the C library: {others}")
    allowed = max(map(_version, re.findall(r"manylinux_(\d+_\d+)_", name)), default=None)
    if allowed is not None and library.glibc > allowed:
        found.append(f"the tag promises glibc {allowed}, the library asks for {library.glibc}")
    return found


def main(wheels: list[str]) -> int:
    """Check wheels, and print what they need; return the exit code."""
    declared = set(re.findall(r"GRADCLIP_API[^;]*?\b(gradclip_\w+)\(", HEADER.read_text()))
    wrong = 0
    for path in map(Path, wheels):
        with zipfile.ZipFile(path) as archive:
            names = [one for one in archive.namelist() if re.search(r"\.(so|dylib|dll|pyd)$", one)]
            data = [archive.read(one) for one in names if one.endswith(".so")]
        found = [] if "-py3-none-" in path.name else ["the tag is not py3-none-PLATFORM"]
        size = f"{path.stat().st_size / 1024:.0f} KiB"
        if len(names) > 1:
            found.append(f"there is more than one library: {names}")
        if data and data[0].startswith(b"\x7fELF"):
            library = read(data[0])
            found += faults(path.name, library, declared)
            glibc = ".".join(map(str, library.glibc)) or "any"
            print(f"{path.name}: {size}, {len(library.exported)} functions, glibc >= {glibc}")
        else:
            print(f"{path.name}: {size}, {names[0] if names else 'no C kernel'}")
        for sentence in found:
            print(f"{path.name}: {sentence}", file=sys.stderr)
        wrong += len(found)
    return 1 if wrong or not wheels else 0


def _version(text: str) -> Version:
    return tuple(map(int, re.findall(r"\d+", text)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
