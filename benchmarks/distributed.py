"""`python -m benchmarks.distributed`: measure our norm and torch's in every layout.

Starts 2 and 4 gloo processes on this machine and keeps what they found; with `--markdown` it prints
the table of docs/distributed.md from what was kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "results" / "distributed.json"
ROUNDS = 30


def main(arguments: list[str]) -> None:
    """Run, or print the results of the last run."""
    if "--markdown" in arguments:
        print(table(json.loads(KEPT.read_text())), end="")
        return
    rows: list[dict[str, Any]] = []
    for world in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            rows += _run(world, Path(folder) / "rows.json")
    KEPT.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows), end="")


def _run(world: int, out: Path) -> list[dict[str, Any]]:
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", __spec__.name]
    done = None
    for _ in range(3):  # torch 2.13 sometimes aborts while a gloo process ends.
        done = subprocess.run(
            [*launch, "--worker", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if out.exists():
            return json.loads(out.read_text())
    raise SystemExit("" if done is None else done.stderr[-3000:])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| layout | processes | tensors | error, gradclip | error, torch | collectives, gradclip "
        "| torch | a tensor at a time | time, gradclip / torch | / a tensor at a time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, theirs, each = row["ours"], row["torch"], row["each"]
        cells = [
            row["layout"],
            str(row["world"]),
            str(row["tensors"]),
            f"{ours['error']:.1e}",
            theirs.get("fails") or f"{theirs['error']:.1e}",
            str(ours["collectives"]),
            str(theirs.get("collectives", "–")),
            str(each["collectives"]),
            f"{ours['ms'] / theirs['ms']:.2f}" if "ms" in theirs else "–",
            f"{ours['ms'] / each['ms']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _worker(out: str) -> None:
    """Measure each layout; the first process writes the results."""
    import torch
    import torch.distributed as dist

    from gradclip.torch import Clipper, clip_grad_norm_

    from .layouts import alone, batch, ways

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = []
    for name, make in ways().items():
        whole = alone(experts="expert" in name)
        whole.backward(batch(0))
        grads = [p.grad.double().reshape(-1) for _, p in whole.params if p.grad is not None]
        exact = float(torch.linalg.vector_norm(torch.cat(grads)))
        laid = make()
        laid.backward(batch(0))
        params = [p for _, p in laid.params]
        clipper = None
        if "expert" in name:  # Only the clipper takes rules by name.
            clipper = Clipper(laid.params, "norm:1e9", groups=laid.groups)

        def ours(laid: Any = laid, params: Any = params, clipper: Any = clipper) -> Any:
            if clipper is not None:
                return clipper.clip_().total_norm
            return clip_grad_norm_(params, 1e9, groups=laid.groups)

        def theirs(params: Any = params) -> Any:
            total: Any = torch.nn.utils.clip_grad_norm_(params, 1e9)
            return total.full_tensor() if hasattr(total, "full_tensor") else total

        def a_tensor_at_a_time(params: Any = params) -> Any:
            norms = [torch.linalg.vector_norm(p.grad) for p in params]
            each = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]
            return torch.linalg.vector_norm(torch.stack(each))

        rows.append(
            {
                "layout": name,
                "world": dist.get_world_size(),
                "tensors": len(params),
                "ours": _measured(ours, exact),
                "torch": _measured(theirs, exact),
                "each": _measured(a_tensor_at_a_time, exact),
            }
        )
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def _measured(norm: Callable[[], Any], exact: float) -> dict[str, Any]:
    """Return the error, the collectives and the time of a norm; or why there is no norm."""
    import torch.distributed as dist

    try:
        error = abs(float(norm()) - exact) / exact
    except RuntimeError as failure:
        return {"fails": f"raises {type(failure).__name__}", "text": str(failure)[:200]}
    count = _collectives(norm)
    times = []
    for _ in range(ROUNDS):
        dist.barrier()
        start = time.perf_counter()
        norm()
        times.append(time.perf_counter() - start)
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return {"error": max(errors), "collectives": count, "ms": 1e3 * sorted(times)[ROUNDS // 2]}


def _collectives(norm: Callable[[], Any]) -> int:
    """Return the number of collectives of one call."""
    import torch.distributed as dist
    from torch.distributed.tensor.debug import CommDebugMode

    calls, original = [0], dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(*args, **kwargs)

    dist.all_reduce = counted
    try:
        with CommDebugMode() as mode:
            norm()
    finally:
        dist.all_reduce = original
    functional = {str(op): n for op, n in mode.get_comm_counts().items()}
    return calls[0] + sum(n for op, n in functional.items() if "c10d_functional" in op)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _worker(sys.argv[-1])
    else:
        main(sys.argv[1:])
