"""In each process: DTensors are clipped inside of a compiled function, and outside of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from distributed.launch import begin, tell
from gradclip.torch import Clipper, clip_grad_norm_, clip_grad_value_, get_total_norm

STEPS = 3
SHAPES = (((8, 4), Shard(0)), ((6,), Shard(0)), ((4, 4), Replicate()))
Params = Sequence[torch.nn.Parameter]


def parameters(mesh: DeviceMesh) -> Params:
    """Return sharded and copied parameters with gradients, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape, place in SHAPES:
        value, grad = (torch.randn(shape, generator=generator) for _ in range(2))
        params.append(torch.nn.Parameter(distribute_tensor(value, mesh, [place])))
        params[-1].grad = distribute_tensor(grad, mesh, [place])
    return params


def norm_of(params: Params) -> Tensor:
    """Clip the norm by the drop-in."""
    return clip_grad_norm_(params, 1.0)


def value_of(params: Params) -> None:
    """Clip the values by the drop-in."""
    clip_grad_value_(params, 0.5)


def total_of(params: Params) -> Tensor:
    """Measure by the drop-in."""
    return get_total_norm([p.grad for p in params if p.grad is not None])


def with_clipper(params: Params) -> Callable[[], Tensor]:
    """Return a step of a clipper."""
    clipper = Clipper([(str(i), p) for i, p in enumerate(params)], "norm:1.0")
    return lambda: clipper.clip_().total_norm


def compared(
    make: Callable[[Params], Callable[[], Any]], mesh: DeviceMesh, *, fullgraph: bool
) -> dict[str, Any]:
    """Run a call compiled and plain; return the graphs, or the error, and the differences."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    mine, theirs = parameters(mesh), parameters(mesh)
    plain, compiled = make(theirs), torch.compile(make(mine), fullgraph=fullgraph, backend=counter)
    apart = [0.0]
    for _ in range(STEPS):
        for param in (*mine, *theirs):
            assert param.grad is not None
            param.grad.mul_(3)
        try:
            found, expected = compiled(), plain()
        except Unsupported as error:
            return {"refused": str(error)}
        if found is not None:
            apart.append(abs(float(found) / float(expected) - 1))
        apart += [
            float((whole(a) - whole(b)).abs().max()) for a, b in zip(mine, theirs, strict=True)
        ]
    changed = float((whole(mine[0]) - whole(parameters(mesh)[0])).abs().max())
    return {"graphs": counter.frame_count, "apart": max(apart), "changed": changed}


def whole(param: Tensor) -> Tensor:
    """Return the whole gradient."""
    assert isinstance(param.grad, DTensor)
    return param.grad.full_tensor()


def main(folder: str) -> None:
    """Compare the drop-ins and a clipper."""
    _, world = begin()
    mesh = init_device_mesh("cpu", (world,))
    calls = {"clip_grad_norm_": norm_of, "clip_grad_value_": value_of, "get_total_norm": total_of}
    found = {
        name: compared(lambda params, call=call: lambda: call(params), mesh, fullgraph=True)
        for name, call in calls.items()
    }
    found["Clipper"] = compared(with_clipper, mesh, fullgraph=world == 1)
    tell(folder, found)


if __name__ == "__main__":
    main(sys.argv[1])
