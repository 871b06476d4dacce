"""Two processes under `torchrun`, on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from distributed.launch import processes
from gradclip import read_run

from .tiny import same


def test_two_processes(tmp_path: Path) -> None:
    """Equal weights and memory in both, a resumed run that is equal, one warning, one record."""
    script = Path(__file__).parent / "ranks.py"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, str(script), str(tmp_path)]
    done = processes(command, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(one["whole"], two["whole"])
    assert same(one["whole"], one["again"])
    assert same(two["whole"], two["again"])
    assert (len(one["told"]), len(two["told"])) == (1, 0)
    assert len(read_run(tmp_path / "r.jsonl").column("norm")) == 8 + 4 + 4
    assert sorted(path.name for path in tmp_path.glob("r*.jsonl")) == ["r.jsonl"]
