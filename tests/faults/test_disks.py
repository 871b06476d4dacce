"""Real file systems and real permissions: each kind of disk that refuses a record."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gradclip.record import read_run

from .programs import on_small_disk, start

pytestmark = pytest.mark.faults

RECORD = """if True:
    import json, os, sys, tempfile, warnings
    from pathlib import Path
    from gradclip.record import RecordWriter, read_run
    disk, rescue, when = map(Path, sys.argv[1:])
    tempfile.tempdir = str(rescue)
    filler = disk / "filler"

    def fill():
        with open(filler, "wb", buffering=0) as file:
            try:
                while True: file.write(bytes(4096))
            except OSError: pass

    if str(when) == "start": fill()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record = RecordWriter(disk / "a.jsonl", every=10)
        for step in range(1, 2001):
            record.step(step=step, norm=1.0)
            if step == 1000 and str(when) == "later": fill()
        record.end()
    files = [path for folder in (disk, rescue) for path in sorted(folder.glob("a*.jsonl"))]
    steps = [step for path in files for step in read_run(path).steps.tolist()]
    print(json.dumps({
        "told": [str(one.message) for one in told],
        "outcome": record.outcome(),
        "files": list(map(str, files)),
        "all": steps == list(range(1, 2001)),
        "end": read_run(record.path).end.steps if record.error is None else None,
        "lost": record.lost,
    }))
"""


@pytest.mark.parametrize("when", ["start", "later", "by itself"])
def test_a_full_disk(tmp_path: Path, when: str) -> None:
    """The record goes on in the temporary folder, and no row is lost."""
    disk, rescue = tmp_path / "disk", tmp_path / "rescue"
    disk.mkdir()
    rescue.mkdir()
    size = "64k" if when == "by itself" else "8m"
    found = json.loads(on_small_disk(RECORD, disk, size, disk, rescue, when))
    assert found["all"]
    assert found["lost"] == 0
    assert found["end"] == 2000
    (told,) = found["told"]
    assert f"{disk}/a.jsonl cannot be written (No space left on device): the record" in told
    assert found["outcome"] == f"record in {rescue}/a.jsonl"
    assert len(found["files"]) == (1 if when == "start" else 2)


def test_a_full_disk_without_another_place(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    found = json.loads(on_small_disk(RECORD, disk, "64k", disk, disk, "by itself"))
    (told,) = found["told"]
    assert "stops here (No space left on device); the run goes on without it" in told
    assert not found["all"]
    assert 0 < found["lost"] < 2000
    assert found["outcome"].startswith("the record stopped (No space left on device): ")


AS_NOBODY = """if True:
    import os, sys
    from gradclip.errors import RecordError
    from gradclip.record import RecordWriter
    RecordWriter(os.devnull).end()  # Every module is imported while this is possible.
    if os.getuid() == 0:  # No permission holds the superuser back.
        os.setgid(65534)
        os.setuid(65534)
    try:
        RecordWriter(sys.argv[1])
    except RecordError as error:
        print(error)
"""


def _read_only(path: Path) -> None:
    path.parent.chmod(0o555)


def _no_entry(path: Path) -> None:
    path.parent.chmod(0o000)


def _foreign(path: Path) -> None:
    path.write_text('{"kind":"header","schema":1}\n')
    path.chmod(0o000)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _file_as_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


def _long_name(path: Path) -> None:
    path.symlink_to(path.with_name("x" * 300))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a read-only directory": (_read_only, "Permission denied"),
    "a closed directory": (_no_entry, "Permission denied"),
    "a record of somebody else": (_foreign, "Permission denied"),
    "a directory": (_folder, "Is a directory"),
    "a pipe": (_pipe, "Is a pipe"),
    "a loop of links": (_loop, "Too many levels of symbolic links"),
    "a file in place of the directory": (_file_as_folder, "Not a directory|File exists"),
    "a name that is too long": (_long_name, "File name too long"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_place_that_can_hold_no_record_is_refused(tmp_path_factory, kind: str) -> None:
    folder = tmp_path_factory.mktemp("refused")
    for above in (folder, *folder.parents):
        if above.owner() == folder.owner() and above.name.startswith(("pytest", "refused")):
            above.chmod(0o755)
    path = folder / "in" / "a.jsonl"
    path.parent.mkdir()
    make, why = REFUSED[kind]
    make(path)
    try:
        with start(AS_NOBODY, path, stdout=subprocess.PIPE) as child:
            out, _ = child.communicate(timeout=60)
    finally:
        if path.parent.is_dir():
            path.parent.chmod(0o755)
    assert child.returncode == 0
    assert out.startswith(f"{path.parent}/")  # A link has the name of its target.
    assert any(
        f" cannot be written ({reason}): give a path that can" in out for reason in why.split("|")
    )


REMOVED = """if True:
    import shutil, sys, warnings
    from pathlib import Path
    from gradclip.record import RecordWriter
    path = Path(sys.argv[1])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record = RecordWriter(path, every=10)
        for step in range(1, 101):
            record.step(step=step)
            if step == 50: shutil.rmtree(path.parent)
        record.end()
    print(len(told), record.outcome())
"""


def test_a_removed_directory_comes_back_with_every_row(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a.jsonl"
    with start(REMOVED, path, stdout=subprocess.PIPE) as child:
        out, _ = child.communicate(timeout=60)
    assert out.strip() == f"1 record in {path}"
    assert read_run(path).steps.tolist() == list(range(1, 101))


LIMITED = """if True:
    import json, os, resource, sys, tempfile, warnings
    from pathlib import Path
    from gradclip.errors import RecordError
    from gradclip.record import RecordWriter, read_run
    path, kind = Path(sys.argv[1]), sys.argv[2]
    tempfile.tempdir = str(path.parent)
    RecordWriter(os.devnull).end()  # Every module is imported while this is possible.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if kind == "the size of a file":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        record = RecordWriter(path, every=10)
        held = []
        try:
            while kind == "the number of files": held.append(open(os.devnull))
        except OSError: pass
        for step in range(1, 2001):
            record.step(step=step, norm=1.0)
            if step == 1000 and kind == "a removed file": path.unlink()
        for file in held: file.close()
        record.end()
    files = sorted(path.parent.glob("a*.jsonl"))
    steps = {step for each in files for step in read_run(each).steps.tolist()}  # Parts are joined.
    print(json.dumps([len(steps), record.lost, record.outcome(), len(told)]))
"""


@pytest.mark.parametrize("kind", ["the size of a file", "the number of files", "a removed file"])
def test_a_limit_loses_no_row_in_silence(tmp_path: Path, kind: str) -> None:
    """What the system refuses in the middle of a run is in another file, or counted as lost."""
    with start(LIMITED, tmp_path / "a.jsonl", kind, stdout=subprocess.PIPE) as child:
        out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    kept, lost, outcome, told = json.loads(out)
    assert 2000 <= kept + lost <= 2002, outcome  # The rows lost are not all steps.
    assert bool(told) == (lost > 0 or kind != "the number of files")
