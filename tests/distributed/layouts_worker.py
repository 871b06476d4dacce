"""In each process: a small transformer, trained in every layout as one process trains it."""

from __future__ import annotations

import sys
import traceback
import warnings
from functools import partial
from typing import Any

import torch
from benchmarks.layouts import Laid, alone, batch, ddp, fsdp, model, ways
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

from distributed.launch import begin, tell
from gradclip.torch import Clipper, attach

STEPS = 20
POLICY = "norm:1.0"


def more() -> dict[str, Any]:
    """Return ways to train that go with some layouts."""
    offload, half = CPUOffloadPolicy(pin_memory=False), MixedPrecisionPolicy(torch.bfloat16)
    return {
        "DDP, no_sync": partial(ddp, micro=2),
        "FSDP2, accumulated": partial(fsdp, micro=2),
        "FSDP2, CPU offload": partial(fsdp, offload_policy=offload),
        "FSDP2, bfloat16": partial(fsdp, mp_policy=half),
        "FSDP2, compiled": compiled,
    }


def compiled() -> Laid:
    """Each block is compiled, as users of FSDP2 do; with no backend, which takes a minute."""
    whole = model()
    for block in whole.blocks:
        block.compile(backend="aot_eager")
    return fsdp(whole=whole)


def train(laid: Laid, attached: bool, steps: int = STEPS) -> dict[str, list[float]]:
    """Train and clip; return the losses and the norms."""
    params = [p for _, p in laid.params]
    optimizer = torch.optim.AdamW(params, lr=0.01)
    if attached:
        optimizer.param_groups[0]["param_names"] = [name for name, _ in laid.params]
        clipper = attach(optimizer, POLICY, groups=laid.groups)
    else:
        clipper = Clipper(laid.params, POLICY, groups=laid.groups)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(laid.backward(batch(step)))
        if not attached:
            clipper.clip_()
        optimizer.step()
        assert clipper.last is not None
        norms.append(float(clipper.last.total_norm))
    assert clipper.clipped == steps
    return {"losses": losses, "norms": norms}


def main(folder: str, only: str = "") -> None:
    warnings.simplefilter("ignore")
    begin()
    found: dict[str, Any] = {
        "one process": train(alone(), False),
        "one process, experts": train(alone(experts=True), False),
    }
    for name, make in (ways() | more()).items():
        if only not in name:
            continue
        try:
            found[name] = train(make(), attached="DDP" in name or "expert" in name)
        except Exception:
            print(name, traceback.format_exc(), file=sys.stderr, flush=True)
            found[name] = {"error": traceback.format_exc()[-2000:]}
    tell(folder, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
