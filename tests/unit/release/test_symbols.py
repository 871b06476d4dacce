"""What a wheel's library may need: the check finds each fault, and none in the library here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gradclip import kernel

symbols = pytest.importorskip("release.symbols")

DECLARED = {"gradclip_norm2", "gradclip_scale"}
GOOD = symbols.Library(
    frozenset(DECLARED), frozenset({"malloc"}), frozenset({"libc.so.6"}), (2, 17)
)
WHEEL = "gradclip-1.0-py3-none-manylinux_2_28_x86_64.whl"


def test_a_good_library_has_no_fault() -> None:
    assert symbols.faults(WHEEL, GOOD, DECLARED) == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (replace(GOOD, exported=frozenset({"gradclip_norm2"})), "not offer the same functions"),
        (replace(GOOD, exported=frozenset({*DECLARED, "helper"})), "['helper']"),
        (replace(GOOD, wanted=frozenset({"PyList_New"})), "functions of Python: ['PyList_New']"),
        (replace(GOOD, needed=frozenset({"libgomp.so.1"})), "than the C library: ['libgomp.so.1']"),
        (replace(GOOD, glibc=(2, 34)), "promises glibc (2, 28), the library asks for (2, 34)"),
    ],
)
def test_each_fault_is_named(bad: object, said: str) -> None:
    (sentence,) = symbols.faults(WHEEL, bad, DECLARED)
    assert said in sentence


def test_a_wheel_for_this_machine_alone_promises_no_glibc() -> None:
    newer = replace(GOOD, glibc=(2, 34))
    assert symbols.faults("gradclip-1.0-py3-none-linux_x86_64.whl", newer, DECLARED) == []


def test_the_library_here_is_read() -> None:
    path = kernel.status().library
    if path is None or not path.endswith(".so"):
        pytest.skip(f"no library to read: {kernel.status().reason or path}")
    library = symbols.read(Path(path).read_bytes())
    declared = set(re.findall(r"\b(gradclip_\w+)\(", symbols.HEADER.read_text()))
    assert symbols.faults(WHEEL, replace(library, glibc=(2, 28)), declared) == []
    assert "malloc" in library.wanted
    assert library.glibc >= (2, 2, 5)
