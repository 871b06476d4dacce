"""One process of a real job of several, which a fault may strike at a named moment.

    python ranks_worker.py FOLDER JOB

JOB is a `Job` in JSON. Each process writes `FOLDER/RANK.log`: a line of JSON for each step, and one
for what ended it. The others come later than the process that the fault strikes, wherever it is to
be struck while it waits for them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gradclip import Measure, Policy, by_norm
from gradclip.method.threshold.base import Context, Limits, State
from gradclip.parts import Fixed, Rescale
from gradclip.torch import attach, record

STEPS, STRUCK, EVERY = 6, 3, 2
SECONDS = 5.0
"""Time-out of the processes' collectives."""
LATE = 2.0
"""The others come so much later, and the fault strikes after half of it."""


@dataclass(frozen=True)
class Job:
    """A job and its fault.

    Args:
        kind: of the model: "fsdp", "ddp", "verify" (DDP and a self-check), or "groups" (each
            process has parameters of its own).
        moment: when the fault strikes; "" for never.
        how: the fault: kill, term, exit, raise, stop, sleep; or what a process does otherwise:
            policy, parameters, steps, absent.
        rank: the process that it strikes.
        world: how many processes there are.
        launch: how they are started: "python", "gradclip run" or "torchrun".
    """

    kind: str = "fsdp"
    moment: str = ""
    how: str = ""
    rank: int = 1
    world: int = 2
    launch: str = "python"

    def text(self) -> str:
        """Return what a process gets on its command line."""
        return json.dumps(asdict(self))


class Rank:
    """This process: its log, and its fault."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.job, self.number = job, dist.get_rank()
        self.doomed = bool(job.how) and self.number == job.rank
        self.step = 0
        self._file = (folder / f"{self.number}.log").open("w")
        self._lock = threading.Lock()

    def log(self, **row: object) -> None:
        """Write a line that a kill leaves in the file."""
        with self._lock:
            self._file.write(json.dumps({"at": time.time(), **row}) + "\n")
            self._file.flush()

    def strike(self, moment: str) -> None:
        """Have the fault strike this process now, if this is its moment."""
        if self.doomed and self.job.moment == moment:
            self._strike()

    def strike_while_waiting(self, moment: str) -> None:
        """Have the fault strike this process soon, while it waits for the others."""
        if self.job.moment != moment:
            return
        if self.doomed:
            threading.Timer(LATE / 2, self._strike).start()
        else:
            time.sleep(LATE)

    def _strike(self) -> None:
        self.log(struck=self.job.how)
        how = self.job.how
        if how in ("kill", "term", "stop"):
            signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
            os.kill(os.getpid(), signals[how])
            time.sleep(1.0)  # The signal comes at once, or very nearly.
        elif how == "exit":
            sys.exit(0)
        elif how == "raise":
            raise RuntimeError("a fault of this process")
        else:
            assert how == "sleep", how
            time.sleep(1000.0)


_HERE: list[Rank] = []


@dataclass(frozen=True)
class Struck(Fixed):
    """A fixed limit that is asked for between two collectives of one step."""

    def update(self, state: State, norms: Any, context: Context, xp: Any) -> tuple[Limits, State]:
        """Return the limit, or do not come back."""
        if _HERE[0].step == STRUCK:
            _HERE[0].strike("between")
        return super().update(state, norms, context, xp)


def main() -> None:
    """Train, and log how this ends."""
    folder, job = Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))
    torch.set_num_threads(1)
    # Processes that start at once may be seconds apart, which is no fault.
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if job.launch == "torchrun":
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=SECONDS))
    else:
        port = int(os.environ["MASTER_PORT"])
        wait = datetime.timedelta(seconds=60)
        store = TCPStore("localhost", port, world, rank == 0, timeout=wait)
        limit = datetime.timedelta(seconds=SECONDS)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
        store.set_timeout(limit)
    here = Rank(folder, job)
    _HERE.append(here)
    try:
        train(folder, here)
    except BaseException as error:
        here.log(error=f"{type(error).__name__}: {error}")
        raise
    here.log(error=None)


def train(folder: Path, here: Rank) -> None:
    """Train for some steps, with one record for all processes."""
    job = here.job
    model, params = model_of(job, here)
    optimizer = torch.optim.SGD(params, lr=0.1)
    by_run = job.launch == "gradclip run"
    with contextlib.ExitStack() as held:
        here.strike("before attach")
        if not by_run and not (here.doomed and job.how == "absent"):
            here.strike_while_waiting("attach")
            clipper = attach(optimizer, policy_of(here), model=model, **options_of(job))
            if here.number == 0:
                path = folder / "run.jsonl"
                held.enter_context(record(clipper, path, optimizer=optimizer, every=EVERY))
        for step in range(1, STEPS + 1):
            here.step = step
            if here.doomed and job.how == "steps" and step == STRUCK:
                break
            optimizer.zero_grad()
            value = 1.0 + step / 7 + (here.number if job.kind != "groups" else 0.0)
            model(torch.full((4, 4), value)).square().mean().mul(50).backward()
            if step == STRUCK and job.moment == "a skipped step":
                grad = params[0].grad
                assert grad is not None
                (grad.to_local() if isinstance(grad, DTensor) else grad).fill_(torch.nan)
                here.strike_while_waiting("a skipped step")
            if step == 1:
                here.strike_while_waiting("the first norm")
            if step == STRUCK:
                here.strike("a step")
                here.strike_while_waiting("the norm")
            optimizer.step()
            here.log(step=step, weights=weights_of(params))
        here.strike("before the end of the record")
    here.strike("the end")
    dist.barrier()
    dist.destroy_process_group()


def model_of(job: Job, here: Rank) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """Return the model of a job, which is the same in every run."""
    torch.manual_seed(0)
    rows = 6 if here.doomed and job.how == "parameters" else 8
    layers = [torch.nn.Linear(4, rows), torch.nn.Linear(rows, 4)]
    model: torch.nn.Module = torch.nn.Sequential(*layers)
    if job.kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (job.world,)))
    elif job.kind in ("ddp", "verify"):
        model = DistributedDataParallel(model)
    else:
        model = torch.nn.ModuleDict({f"stage{here.number}": model})
        model.forward = model[f"stage{here.number}"].forward
    return model, [*model.parameters()]


def policy_of(here: Rank) -> Any:
    """Return the policy; where it is struck between two collectives, one that has two."""
    if here.job.moment == "between":
        return Policy(Measure("global"), Struck(high=1.0), Rescale()) | by_norm(0.5)
    return "norm:2.0" if here.doomed and here.job.how == "policy" else "norm:1.0"


def options_of(job: Job) -> dict[str, Any]:
    """Return what else `attach` gets."""
    verify = {"verify": "first-step"} if job.kind == "verify" else {}
    return verify | ({"groups": dist.group.WORLD} if job.kind == "groups" else {})


def weights_of(params: list[torch.nn.Parameter]) -> list[float]:
    """Return two numbers that tell this process's weights apart from others."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in params]
    flat = torch.cat([part.detach().reshape(-1) for part in parts]).double()
    return [float(flat.sum()), float(flat @ torch.linspace(1.0, 2.0, len(flat)).double())]


if __name__ == "__main__":
    main()
