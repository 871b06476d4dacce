"""In each process: every method of the catalogue on spread gradients, against whole ones."""

from __future__ import annotations

import sys
import traceback
import warnings
from dataclasses import fields
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from contract.methods import ROWS
from distributed.launch import Collectives, begin, tell
from distributed.spread import Model, draw
from gradclip import Measure, Policy, by_norm, by_value
from gradclip.method.policy import AnyPolicy
from gradclip.method.read import as_policy
from gradclip.parts import Fixed, Rescale
from gradclip.torch import Clipper

SCALES = (1.0, 0.2, 5.0, 30.0, 0.5)
MORE: dict[str, AnyPolicy] = {
    "norm:1,order=1": as_policy("norm:1,order=1"),
    "norm:1,order=3": as_policy("norm:1,order=3"),
    "norm:1,order=20": as_policy("norm:1,order=20"),
    "norm:1,order=inf": as_policy("norm:1,order=inf"),
    "rms": as_policy("norm:0.1,order=rms"),
    "tensor": as_policy("norm:0.5,scope=tensor"),
    "tensor inf": as_policy("norm:0.5,scope=tensor,order=inf"),
    "unit": as_policy("norm:0.5,scope=unit"),
    "unit of columns": Policy(Measure("unit", axis=-1), Fixed(high=0.5), Rescale()),
    "unit of kernels": as_policy(
        {"filters": "norm:0.5,scope=unit,axis=0+1", "*": "agc:0.1,axis=-1+0"}
    ),
    "unit inf": as_policy("norm:0.5,scope=unit,order=inf"),
    "by name": as_policy({"rows": "norm:0.5", "b*": "value:0.1", "copy": None, "*": "norm:1"}),
    "chain": by_value(0.5) | by_norm(1.0),
    "none": as_policy({"*": None}),
}

DOUBLE = {"norm": by_norm(0.5), **{k: MORE[k] for k in ("norm:1,order=20", "unit", "chain")}}


def policies() -> dict[str, AnyPolicy]:
    """Return every row of the table of methods, and more ways to measure."""
    rows: dict[str, AnyPolicy] = {}
    for row in ROWS:
        rows[f"{row.recipe}{' of the loss' if row.traits.loss else ''}"] = row.policy
    return rows | MORE


def compare(policy: AnyPolicy, dtype: torch.dtype) -> dict[str, Any]:
    """Clip a few steps both ways; return the largest differences."""
    sharded_svd = "spectral" in str(policy)
    model = Model(dtype, experts=not sharded_svd)
    ours = Clipper(list(model.params.items()), policy, groups=model.groups)
    alone = Clipper(list(model.whole.items()), policy)
    worst: dict[str, float] = {"gradients": 0.0}
    changed, talks = False, []
    for step, scale in enumerate(SCALES):
        grads: dict[str, Any] = draw(1 + step, dtype, scale)
        if step == 2:
            grads["rows"] = None  # A parameter that this step did not use.
        model.give(grads)
        with Collectives() as seen:
            here = ours.clip_(loss=scale)
        talks.append(seen.total)
        expected = alone.clip_(loss=scale)
        assert here.names == expected.names
        for field in fields(here):
            if field.name in ("names", "ran"):
                continue
            a, b = (torch.as_tensor(getattr(r, field.name)).double() for r in (here, expected))
            same = (a == b) | (a.isnan() & b.isnan())
            gap = torch.where(same, 0.0, (a - b).abs() / (b.abs() + 1e-9))
            if field.name == "removed":
                gap = torch.where(same, 0.0, (a - b).abs())
            worst[field.name] = max(worst.get(field.name, 0.0), float(gap.max()))
        worst["gradients"] = max(worst["gradients"], model.gap())
        changed = changed or bool(here.clipped) or bool(here.skipped)
    memory = zip(
        _arrays(ours.state_dict()["memory"]), _arrays(alone.state_dict()["memory"]), strict=False
    )
    state = [
        # Of numbers above 1 the relative difference.
        float(((a.double() - b.double()) / b.double().abs().clamp(min=1)).abs().nan_to_num().max())
        for a, b in memory
        if a.shape == b.shape and a.numel()
    ]
    layout = ours._parameters.layout
    return {
        "worst": worst,
        "changed": changed,
        "collectives": talks,
        "groups": len(layout.groups) if layout else 0,
        "memory": max(state, default=0.0),
    }


def _arrays(memory: Any) -> list[torch.Tensor]:
    if isinstance(memory, dict):
        return [a for value in memory.values() for a in _arrays(value)]
    if isinstance(memory, list):
        return [a for value in memory for a in _arrays(value)]
    # What has a value for each of a DTensor's is one, so that it can be saved and divided anew.
    return [memory.full_tensor() if isinstance(memory, DTensor) else memory]


def main(folder: str) -> None:
    warnings.simplefilter("ignore")
    begin()
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64):
        # Only what is done with the norms on their way differs between the types.
        some = policies() if dtype == torch.float32 else DOUBLE
        for name, policy in some.items():
            case = f"{name}, {str(dtype).removeprefix('torch.')}"
            try:
                found[case] = compare(policy, dtype)
            except Exception:
                print(case, traceback.format_exc(), file=sys.stderr, flush=True)
                found[case] = {"error": traceback.format_exc()[-1500:]}
    tell(folder, found)


if __name__ == "__main__":
    main(sys.argv[1])
