"""A process of a job dies, hangs, or does something else: the others end soon and say why.

No process goes on with weights that a whole job would not have, and the record of the first one can
be read, with at most its last batch lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradclip.record import read_run

from . import ranks_worker as worker
from .ranks_worker import EVERY, SECONDS, STEPS, STRUCK, Job

pytestmark = pytest.mark.faults

MARGIN = 12.0
"""Seconds beyond the time-out that a busy machine may need."""
LOST = (
    # Of torch.distributed, when a connection is closed, a time-out has passed, or the store ended.
    "Connection closed by peer|Connection reset by peer|Timed out|did not come to|"
    "Broken pipe|failed to recv|Failed to recv|Socket|ailed to connect"
)

STRIKES = [
    Job("fsdp", "before attach", "kill"),
    Job("fsdp", "before attach", "raise"),
    Job("fsdp", "before attach", "stop"),
    Job("fsdp", "attach", "kill"),
    Job("fsdp", "attach", "stop"),
    Job("fsdp", "the first norm", "kill"),
    Job("fsdp", "a step", "sleep"),
    Job("fsdp", "a step", "exit"),
    Job("fsdp", "a step", "term"),
    Job("fsdp", "the norm", "kill"),
    Job("fsdp", "the norm", "stop"),
    Job("fsdp", "between", "kill"),
    Job("fsdp", "between", "raise"),
    Job("fsdp", "between", "sleep"),
    Job("fsdp", "a skipped step", "kill"),
    Job("fsdp", "a skipped step", "stop"),
    Job("fsdp", "before the end of the record", "kill"),
    Job("fsdp", "the end", "stop"),
    Job("fsdp", "the norm", "kill", rank=0),
    Job("fsdp", "a step", "stop", rank=0),
    Job("fsdp", "before the end of the record", "kill", rank=0),
    Job("ddp", "before attach", "kill"),
    Job("ddp", "a step", "kill"),
    Job("ddp", "a step", "stop"),
    Job("verify", "attach", "kill"),
    Job("verify", "the first norm", "kill"),
    Job("verify", "the first norm", "stop"),
    Job("groups", "the norm", "kill", world=4, rank=2),
    Job("fsdp", "the norm", "stop", world=3),
    Job("fsdp", "the norm", "kill", launch="gradclip run"),
    Job("ddp", "a step", "raise", launch="gradclip run"),
    Job("fsdp", "a step", "kill", launch="torchrun"),
]
DIFFERENT = [
    (Job("fsdp", how="policy"), "do not do the same: policy is"),
    (Job("verify", how="policy"), "do not do the same: policy is"),
    (Job("fsdp", how="parameters"), "different lists of parameters"),
    (Job("fsdp", how="steps"), LOST),
    (Job("fsdp", how="absent"), "the process 1 did not come to the making of a clipper|" + LOST),
    (Job("groups", how="absent"), "the process 1 did not come to the making of a clipper"),
]


def named(job: Job) -> str:
    parts = [job.launch, job.kind, job.moment, job.how, f"rank {job.rank} of {job.world}"]
    return ", ".join(part for part in parts if part)


@contextlib.contextmanager
def started(job: Job, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes of a job, and leave none behind."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    given = [str(worker.__file__), str(folder), job.text()]
    python = [sys.executable]
    count = job.world
    if job.launch == "gradclip run":
        python += ["-m", "gradclip", "run", "--clip", "norm:1.0", "--record"]
        python += [str(folder / "run.jsonl")]
    elif job.launch == "torchrun":
        python += ["-m", "torch.distributed.run", f"--nproc-per-node={job.world}"]
        python += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        count = 1
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with contextlib.ExitStack() as held:
        children = []
        for rank in range(count):
            own = env | {"RANK": str(rank), "WORLD_SIZE": str(count)} if count > 1 else env
            err = held.enter_context((folder / f"{rank}.err").open("wb"))
            options = {"stdout": err, "stderr": err, "start_new_session": True, "cwd": folder}
            children.append(subprocess.Popen([*python, *given], env=own, **options))
        try:
            yield children
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def logs_of(folder: Path, world: int) -> list[list[dict]]:
    texts = [(folder / f"{rank}.log").read_text() for rank in range(world)]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def run(job: Job, folder: Path) -> tuple[list[int | None], list[list[dict]]]:
    """Run a job until all but the struck process have ended; return exit codes and logs."""
    hangs = job.how in ("stop", "sleep")
    with started(job, folder) as children:
        end = time.monotonic() + 60.0 + MARGIN
        for rank, child in enumerate(children):
            if not (hangs and rank == job.rank):
                child.wait(max(1.0, end - time.monotonic()))
        codes = [child.poll() for child in children]
    return codes, logs_of(folder, job.world)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Return the steps that a job without a fault makes; each kind is run once."""
    kept: dict[tuple[str, bool, int, str], list[list[dict]]] = {}

    def steps_of(job: Job) -> list[list[dict]]:
        moment = job.moment if job.moment in ("between", "a skipped step") else ""
        key = job.kind.replace("verify", "ddp"), False, job.world, moment
        if key not in kept:
            folder = tmp_path_factory.mktemp("whole")
            codes, logs = run(Job(key[0], moment, world=job.world), folder)
            assert codes == [0] * job.world, (folder / "0.err").read_text()[-3000:]
            kept[key] = [[row for row in log if "step" in row] for log in logs]
            assert all(len(log) == STEPS for log in kept[key])
        return kept[key]

    return steps_of


def check_weights(logs: list[list[dict]], whole: list[list[dict]]) -> None:
    """Each step that a process made is that of the whole job."""
    for log, right in zip(logs, whole, strict=True):
        made = [row for row in log if "step" in row]
        assert [(r["step"], r["weights"]) for r in made] == [
            (r["step"], r["weights"]) for r in right[: len(made)]
        ]


def check_record(path: Path, log: list[dict]) -> None:
    """The record holds the steps of the first process, but for the last batch of a killed one."""
    made = sum("step" in row for row in log)
    if made < EVERY and (not path.exists() or path.stat().st_size == 0):
        return
    found = read_run(path)
    assert found.steps.tolist() == list(range(1, len(found.steps) + 1))
    assert made - EVERY <= len(found.steps) <= made + 1
    if any("error" in row for row in log):  # It ended by itself, and so did the record.
        assert found.end is not None
        assert len(found.steps) >= made


@pytest.mark.parametrize("job", STRIKES, ids=named)
def test_a_process_that_is_struck(job: Job, tmp_path: Path, whole) -> None:
    codes, logs = run(job, tmp_path)
    check_weights(logs, whole(job))
    check_record(tmp_path / "run.jsonl", logs[0])
    struck = [row for row in logs[job.rank] if "struck" in row]
    assert len(struck) == 1, "the fault did not happen"
    if job.launch == "torchrun":
        assert codes == [1]
        return
    for rank, (code, log) in enumerate(zip(codes, logs, strict=True)):
        if rank == job.rank:
            continue
        (end,) = (row for row in log if "error" in row)
        assert end["at"] - struck[0]["at"] < SECONDS + worker.LATE + MARGIN
        shown = (tmp_path / f"{rank}.err").read_text()
        assert code not in (None, 0), shown
        assert end["error"] is not None
        assert any(part in end["error"] for part in LOST.split("|")), end["error"]
        made = sum("step" in row for row in log)
        assert made <= (STRUCK if "step" in job.moment or "norm" in job.moment else STEPS)


@pytest.mark.parametrize(
    ("job", "why"), DIFFERENT, ids=lambda p: named(p) if isinstance(p, Job) else ""
)
def test_a_process_that_does_something_else(job: Job, why: str, tmp_path: Path, whole) -> None:
    codes, logs = run(job, tmp_path)
    assert codes[0] != 0
    (end,) = (row for row in logs[0] if "error" in row)
    assert any(part in str(end["error"]) for part in why.split("|")), end
    if job.how in ("policy", "parameters"):
        assert codes[1] != 0
        assert not any("step" in row for log in logs for row in log)
    check_weights(logs[:1], whole(job)[:1])
    check_record(tmp_path / "run.jsonl", logs[0])
