"""`gradclip run --clip` reaches every process that trains a replica, or refuses the first step."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gradclip.record import read_run

from .launch import TESTS, processes, torchrun

# It starts the other process by multiprocessing, as Lightning does, or where nobody sees it.
SCRIPT = """
    import os, socket, subprocess, sys
    import torch, torch.distributed as dist, torch.multiprocessing as mp

    def work(rank, port):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 3), 1.0 + rank)).square().mean().mul(50).backward()
            optimizer.step()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        both = [torch.empty(3) for _ in range(2)]
        dist.all_gather(both, model.module.weight.detach()[0])
        print(f"rank {rank}: equal {torch.equal(*both)}, norm {norm:.3f}\\n", end="", flush=True)
        dist.barrier()
        dist.destroy_process_group()

    if __name__ == "__main__":
        assert sys.argv[1:2] in (["spawn"], ["again"], ["shell"]), sys.argv
        rank = int(os.environ.get("LOCAL_RANK", 0))
        if rank:
            work(rank, os.environ["PORT"])
            sys.exit()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        if sys.argv[1] == "spawn":
            mp.spawn(work, (port,), nprocs=2)
            sys.exit()
        command = [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]
        env = os.environ | {"LOCAL_RANK": "1", "PORT": port}
        if sys.argv[1] == "again":
            other = subprocess.Popen(command, env=env)
        else:
            other = subprocess.Popen("exec " + " ".join(command), env=env, shell=True)
        work(0, port)
        sys.exit(other.wait())
"""
OURS = ("-m", "gradclip", "run", "--clip", "norm:1", "--record", "run.jsonl", "script.py")


def run(how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    return processes(
        [sys.executable, *OURS, how], cwd=folder, timeout=120, env={"PYTHONPATH": str(TESTS)}
    )


@pytest.mark.parametrize("how", ["spawn", "again"])
def test_the_processes_that_a_script_starts_clip_too(how: str, tmp_path: Path) -> None:
    done = run(how, tmp_path)
    found = sorted(re.findall(r"rank (\d): equal True, norm 1\.000", done.stdout))
    assert found == ["0", "1"], done.stderr
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["run.jsonl"]
    if how == "again":
        assert done.returncode == 0, done.stderr
        assert "3 steps seen, 3 clipped" in done.stderr
        assert "the record has no steps of another process that trained too" in done.stderr
    else:  # All steps were made where no record is.
        assert done.returncode == 3
        assert "all optimizer steps were made in 2 other processes: clipped and" in done.stderr


def test_a_process_without_gradclip_is_named_before_the_first_step(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run("shell", tmp_path)
    assert done.returncode == 2
    assert "in the process 0 and not in the process 1, which does not run under" in done.stderr
    assert "torchrun --nproc-per-node=N -m gradclip run" in done.stderr
    assert time.monotonic() - start < 60
    record = read_run(tmp_path / "run.jsonl")
    assert not len(record.steps)
    assert record.end is not None
    assert record.end.status.startswith("error: PolicyError")


TORCHRUN = """
    import os, sys, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    if dist.get_rank() == 0 or sys.argv[1] == "both":
        weight = torch.nn.Parameter(torch.ones(2))
        weight.sum().backward()
        torch.optim.SGD([weight], lr=0.1).step()
    dist.barrier()
    dist.destroy_process_group()
"""
# Each rank is started with its own policy.
LAUNCHER = """
    import os, sys
    policy = f"norm:{1 + int(os.environ['RANK']) * (sys.argv[1] == 'both')}"
    ours = ["-m", "gradclip", "run", "--clip", policy, "--record", "run.jsonl", "script.py"]
    os.execv(sys.executable, [sys.executable, *ours, *sys.argv[1:]])
"""


@pytest.mark.parametrize("which", ["both", "one"])
def test_ranks_compare_their_policies_also_with_one_that_never_steps(
    which: str, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(TORCHRUN))
    (tmp_path / "launcher.py").write_text(textwrap.dedent(LAUNCHER))
    done = torchrun(2, "launcher.py", which, cwd=tmp_path)
    if which == "one":
        assert done.returncode == 0, done.stderr
        assert "1 step seen" in done.stderr
        return
    assert done.returncode != 0
    assert "--clip is by_norm(1) in the process 0 and by_norm(2) in the process 1" in done.stderr
