"""The memory of a clipper, through other parameters, other policies and saved states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...arrays import Array, Memory
from ...engine.memory import init
from ...engine.saved import sound_memory
from ...errors import PolicyError
from ...method.axes import Axis
from ...method.plan import AnyStage, Plan, WrappedStage
from ..processes.placements import as_parts, is_sharded, local
from ..processes.sharded import Sharded
from ..processes.written_out import written_out
from ..tally import COUNTERS
from ..tensors.carried import Remembered, carry_over
from ..tensors.gather import PLAIN
from ..tensors.memory import map_arrays
from .parameters import Grads, Parameters

__all__ = [
    "begin",
    "follows_shapes",
    "memory_for_others",
    "memory_to_save",
    "origins",
    "saved_memory",
    "sound_tensor",
    "state_alike",
]

_FLOATS = (torch.float32, torch.float64)


def begin(plan: Plan, grads: Grads) -> Memory:
    """Return the memory of before the first step."""
    return init(plan, grads.unexchanged() if isinstance(grads, Sharded) else grads)


def follows_shapes(plan: Plan) -> bool:
    """Return whether a plan remembers something for each value, or each unit, of a parameter."""
    return any(_follows_shapes(stage) for layer in plan for stage in layer)


def _follows_shapes(stage: AnyStage) -> bool:
    if isinstance(stage, WrappedStage):
        return True
    by_value = stage.policy.measure.scope in ("element", "singular", "unit")
    return by_value and bool(stage.policy.threshold.init(torch.zeros(1), torch_xp))


def memory_for_others(
    memory: Memory, old: tuple[Plan, Parameters], new: tuple[Plan, Parameters]
) -> Memory:
    """Return a memory for other parameters, or for another plan over the same ones.

    A parameter is the same if it is the same tensor, or, if that one is gone, has its name.

    Args:
        memory: what the old plan remembers; not mutated.
        old: the plan and the parameters of before.
        new: those of now.
    """
    (plan_before, before), (plan, params) = old, new
    devices = [form.device for form in params.forms]
    return carry_over(
        Remembered(plan_before, memory, lambda axis: _unit_counts(before, axis)),
        Remembered(plan, _empty(plan, params), lambda axis: _unit_counts(params, axis)),
        origins(before, params),
        devices,
        same_policy=before is not params,
    )


def saved_memory(saved: object, plan: Plan, params: Parameters, where: str = "memory") -> Memory:
    """Return a copy of a saved memory, as the plan could have left it; None is no memory.

    Args:
        saved: whatever was saved; not mutated.
        plan: the layers of stages.
        params: the parameters whose gradients the plan is for.
        where: the name of the memory in the saved state.

    Raises:
        PolicyError: names the entry that is wrong.
    """
    if saved is None:
        return None
    devices = [form.device for form in params.forms]

    def convert(where: str, value: object, like: Array, member: int | None) -> Tensor:
        return sound_tensor(where, value, like, None if member is None else devices[member])

    with torch.no_grad():
        return sound_memory(plan, saved, _empty(plan, params), torch_xp, convert, where)


def state_alike(state: Mapping[str, object], plan: Plan) -> str:
    """Return the part of a saved state that is the same in all processes, as text.

    What is remembered of single values, or of units, belongs to the process that holds them.

    Args:
        state: from `state_dict`; not mutated.
        plan: the layers of stages.
    """
    counts = {name: state.get(name) for name in COUNTERS}
    memory = state.get("memory")
    parts = (
        [
            part
            for layer, stages in zip(memory, plan, strict=True)
            for part, stage in zip(layer, stages, strict=True)
            if not _follows_shapes(stage)
        ]
        if isinstance(memory, list)
        else memory
    )
    return written_out([counts, parts])


def sound_tensor(
    where: str, value: object, like: Tensor, device: torch.device | None = None
) -> Tensor:
    """Return a copy of a saved tensor, with the dtype of its like.

    Args:
        where: the name of the entry, for the error.
        value: whatever was saved; of a DTensor the local values count.
        like: has the shape and the dtype.
        device: where the copy is; by default where the tensor is.

    Raises:
        PolicyError: it is no plain tensor of floats of that shape.
    """
    if not isinstance(value, Tensor) or not (type(value) in PLAIN or is_sharded(value)):
        raise PolicyError.of(where, value, "give a tensor, as it was saved")
    tensor = local(value).detach()
    plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
    if not plain or tensor.dtype not in (*_FLOATS, like.dtype):
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise PolicyError.of(where, kind, f"give a dense tensor of {like.dtype}")
    if tensor.shape != like.shape:
        remedy = f"its shape is {tuple(like.shape)} here"
        raise PolicyError.of(where, tuple(tensor.shape), remedy)
    return tensor.to(device=device, dtype=like.dtype, copy=True).contiguous()


def memory_to_save(memory: Memory, plan: Plan, params: Parameters) -> Memory:
    """Return the memory as tensors; of sharded parameters as a checkpoint can divide it."""
    if params.layout is not None:
        zeros = params.zeros()
        if memory is None and zeros is not None:
            memory = begin(plan, zeros)  # A distributed checkpoint is read into what is there.
        memory = as_parts(map_arrays(memory, torch.as_tensor), params.tensors)
    return map_arrays(memory, lambda array: torch.as_tensor(array).clone())


def _empty(plan: Plan, params: Parameters) -> Memory:
    """Return the memory of before the first step as tensors, of which shapes and dtypes count."""
    return map_arrays(begin(plan, params.shapes()), torch.as_tensor)


def _unit_counts(params: Parameters, axis: Axis) -> Sequence[int]:
    everything = range(len(params.names))
    return params.shapes().unit_norms(everything, 2.0, axis).counts


def origins(before: Parameters, now: Parameters) -> dict[int, int]:
    """Return from the place of each parameter now to the place that it had."""
    places = {id(tensor): place for place, tensor in enumerate(before.tensors)}
    found = {i: places[id(t)] for i, t in enumerate(now.tensors) if id(t) in places}
    gone = set(places.values()) - set(found.values())
    names = {before.names[place]: place for place in gone}
    for i, name in enumerate(now.names):
        if i not in found and name in names:
            found[i] = names.pop(name)
    return found
