"""Start real processes by torchrun, and collect what each of them found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parents[1]
# Now and then torch 2.13 aborts while a gloo process ends, with or without gradclip.
_TORCH_ABORTS = "terminate called without an active exception"


def torchrun(
    world: int, *command: object, cwd: Path, timeout: int = 240
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` a module, in so many processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    return processes(
        [*launch, *map(str, command)], cwd=cwd, timeout=timeout, env={"PYTHONPATH": paths}
    )


def processes(
    command: list[str], *, cwd: Path, timeout: int = 240, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that starts gloo processes; run it again where torch aborted at the end."""
    tries = 4
    before = set(cwd.iterdir())
    while True:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        tries -= 1
        if tries == 0 or done.returncode == 0 or _TORCH_ABORTS not in done.stderr:
            return done
        for path in set(cwd.iterdir()) - before:  # What the try that was aborted has left.
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def found_by(world: int, worker: str, folder: Path, *args: object) -> list[dict[str, Any]]:
    """Run one of the workers beside this file; return what each process told by `tell`."""
    done = torchrun(world, "-m", f"distributed.{worker}", folder, *args, cwd=folder)
    files = [folder / f"{rank}.json" for rank in range(world)]
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads(file.read_text()) for file in files]


# ---- in the processes --------------------------------------------------------------------


def begin(seconds: int = 60) -> tuple[int, int]:
    """Join the other processes; return this one's number and how many there are."""
    import datetime

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))
    return dist.get_rank(), dist.get_world_size()


def tell(folder: str, found: dict[str, Any]) -> None:
    """Leave what was found for the test, and part from the others."""
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


class Collectives:
    """Counts the collectives of torch.distributed in a `with` block, by name."""

    NAMES = (
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_object",
        "all_to_all",
        "all_to_all_single",
        "broadcast",
        "reduce_scatter_tensor",
        "barrier",
    )

    def __enter__(self) -> Collectives:
        """Start to count, functional collectives and those of DTensor, too."""
        from torch.distributed.tensor.debug import CommDebugMode

        self.calls: dict[str, int] = {}
        self._undo = []
        for name in self.NAMES:
            original = getattr(dist, name)

            def counted(*args: Any, _name: str = name, _of: Any = original, **kwargs: Any) -> Any:
                self.calls[_name] = self.calls.get(_name, 0) + 1
                return _of(*args, **kwargs)

            setattr(dist, name, counted)
            self._undo.append((name, original))
        self._mode = CommDebugMode()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        self._mode.__exit__(*error)
        for name, original in self._undo:
            setattr(dist, name, original)
        by_mode = {str(op): n for op, n in self._mode.get_comm_counts().items() if n}
        self.functional = {k: n for k, n in by_mode.items() if "c10d_functional" in k}

    @property
    def total(self) -> int:
        """How many there were."""
        return sum(self.calls.values()) + sum(self.functional.values())
