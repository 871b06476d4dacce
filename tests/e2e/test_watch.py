"""`gradclip watch` as a user has it: a terminal, a pipe, and a run that is being written."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradclip.cli import app
from gradclip.record import RecordWriter
from gradclip.record.place import IfExists

pty = pytest.importorskip("pty")  # none on Windows
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

WATCH = [sys.executable, "-W", "error", "-m", "gradclip", "watch", "run.jsonl", "--every", "0.1"]
PATIENCE = 60.0
CONTROL = re.compile(r"\x1b")


class Terminal:
    """A command in a terminal of its own, and all it wrote to it."""

    def __init__(
        self, command: list[str], folder: Path, rows: int = 30, columns: int = 100
    ) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        env = os.environ | {"TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES"):
            env.pop(name, None)
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def read(self, until: Callable[[str], bool]) -> str:
        """Read until the text is enough, or the command has gone."""
        last = time.monotonic() + PATIENCE
        while not until(self.text):
            assert time.monotonic() < last, self.text[-2000:]
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                more = os.read(self.master, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            self.text += more.decode("utf-8", "replace")
        return self.text

    def end(self) -> int:
        self.read(lambda _: False)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*flags: str, **options: int) -> Terminal:
        opened.append(Terminal([*WATCH, *flags], tmp_path, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def write(
    path: Path, steps: int = 30, status: str | None = "ok", if_exists: IfExists = "part"
) -> RecordWriter:
    record = RecordWriter(path, if_exists=if_exists, policy="norm:1.0", every=1)
    record.optimizer("SGD", [("first.weight", (2,), "float32"), ("last.weight", (2,), "float32")])
    for step in range(1, steps + 1):
        record.step(step=step, loss=2.0, norm=3.0, limit=1.0, clipped=True, norms=[2.5, 0.5])
    if status is not None:
        record.end(status)
    return record


KILLED = """
import sys, time
from pathlib import Path
from e2e.test_watch import write
record = write(Path(sys.argv[1]), status=None)
record.event("note", "Hello.", step=30)
time.sleep(600)
"""


def like_this() -> dict[str, str]:
    """Return an environment in which a child imports what the tests import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_a_terminal_follows_a_real_training(terminal, tmp_path) -> None:
    watched = terminal()
    watched.read(lambda text: "waiting for the file" in text)
    script = tmp_path / "train.py"
    script.write_text(
        "import time, torch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)\n"
        "for step in range(60):\n"
        "    optimizer.zero_grad()\n"
        "    loss = model(torch.randn(16, 4)).pow(2).mean()\n"
        "    (loss * float('nan') if step == 40 else loss).backward()\n"
        "    optimizer.step()\n"
        "    time.sleep(0.1)\n"
    )
    train = [sys.executable, "-m", "gradclip", "run", "--clip", "norm:0.1"]
    command = [*train, "--record", "run.jsonl", "train.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) as training:
        text = watched.read(lambda text: "running" in text and "0.weight" in text)
        assert training.poll() is None, "it was seen while it ran"
        assert watched.end() == 0
        assert training.wait(PATIENCE) == 0
    text = watched.text
    assert "\x1b[?1049h" in text  # a screen of its own, and back
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l")
    assert text.rindex("\x1b[?25l") < text.rindex("\x1b[?25h")  # the cursor shows again
    left = text.partition("\x1b[?1049l")[2]
    for word in ("ended", "step 60", "norm:0.1", "skipped 1, last at step 41", "non-finite"):
        assert word in left
    assert "Traceback" not in text


@pytest.mark.parametrize(("sent", "code"), [(b"\x03", 130), (signal.SIGTERM, 143)])
def test_it_can_be_stopped(terminal, tmp_path, sent, code) -> None:
    record = write(tmp_path / "run.jsonl", status=None)
    watched = terminal()
    watched.read(lambda text: "running" in text)
    if isinstance(sent, bytes):
        os.write(watched.master, sent)
    else:
        watched.process.send_signal(sent)
    assert watched.end() == code
    assert watched.text.rindex("\x1b[?1049h") < watched.text.rindex("\x1b[?1049l")
    assert "Traceback" not in watched.text
    record.end()


def test_once_in_a_terminal(terminal, tmp_path) -> None:
    write(tmp_path / "run.jsonl")
    watched = terminal("--once", columns=60, rows=20)
    assert watched.end() == 0
    assert "\x1b[?1049h" not in watched.text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", watched.text)
    lines = plain.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 60
    assert "clipped 100" in plain
    assert "first.weight" in plain


def test_a_terminal_that_changes_its_size_is_used_whole(terminal, tmp_path) -> None:
    record = write(tmp_path / "run.jsonl", steps=200, status=None)
    watched = terminal(columns=60, rows=20)
    watched.read(lambda text: "running" in text)
    assert "limit 1" not in watched.text
    termios.tcsetwinsize(watched.master, (50, 150))
    watched.read(lambda text: "norm 3  limit 1  log scale" in re.sub(r"\x1b\[[0-9;]*m", "", text))
    record.end()
    assert watched.end() == 0
    left = re.sub(r"\x1b\[[0-9;]*m", "", watched.text.partition("\x1b[?1049l")[2])
    assert 45 <= len(left.splitlines()) <= 50
    assert max(map(len, left.splitlines())) > 120


def piped(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*WATCH, *flags], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "FORCE_COLOR": ""},
    )  # fmt: skip


def test_a_pipe_gets_lines(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    with piped(tmp_path) as watched:
        assert watched.stdout is not None
        stream = watched.stdout
        lines: list[str] = []

        def read_to(start: str) -> None:
            while not (lines and lines[-1].startswith(start)):
                lines.append(stream.readline())
                assert lines[-1], "it ended early"

        read_to("run.jsonl: waiting for the file\n")
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=like_this()) as killed:
            read_to("step 30 ")
            killed.kill()
        with path.open("ab") as file:
            file.write(b'{"kind":"step","st')  # torn, until the run is started again
        time.sleep(0.3)
        record = write(path, 5, status=None, if_exists="overwrite")
        read_to("another run")
        record.end("error: ValueError: no")
        out, err = watched.communicate(timeout=PATIENCE)
    assert watched.returncode == 0, err
    assert err == ""
    text = "".join(lines) + out
    assert not CONTROL.search(text)
    assert "event: note, step 30: Hello.\n" in text
    assert "step 5  loss 2  norm 3 (limit 1)  clipped 100" in text
    assert text.count("always-binds") <= 2  # told once a run
    assert "ended, error: ValueError: no\n" in text


def test_json_is_an_object_a_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run.jsonl")
    monkeypatch.chdir(tmp_path)
    for flags in (["--json"], ["--json", "--once"]):
        watched = CliRunner().invoke(app, ["watch", "run.jsonl", *flags])
        assert (watched.exit_code, watched.stderr) == (0, "")
        row = json.loads(watched.stdout.splitlines()[-1])
        assert (row["state"], row["status"], row["step"]) == ("ended", "ok", 30)
        (optimizer,) = row["optimizers"]
        assert (optimizer["norm"], optimizer["clip_rate"]) == (3.0, 1.0)
        assert optimizer["layers"]["largest"] == [["first.weight", 2.5], ["last.weight", 0.5]]


def test_a_reader_that_leaves_ends_it(tmp_path) -> None:
    record = write(tmp_path / "run.jsonl", status=None)
    with piped(tmp_path, "--json") as watched:
        assert watched.stdout is not None
        assert watched.stderr is not None
        watched.stdout.readline()
        watched.stdout.close()
        assert watched.wait(PATIENCE) != 0
        assert "Traceback" not in watched.stderr.read()
    record.end()
