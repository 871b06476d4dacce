"""PyTorch's side of the engine: how to measure gradients, and how to apply factors to them.

On a CPU the decisions are made on the host with NumPy, by the C kernel where it can read the
tensors, else by torch. On an accelerator, and under `torch.compile`, everything stays torch
operations on the device: no value is read back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, compress
from typing import Protocol

import array_api_compat.torch as torch_xp
import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...arrays import Array, Cosines, Factors, Flag, Namespace, Norms, Scalar, Sizes
from ...engine.backend import Change, ClampTo, Measured, Relative, Units
from ...errors import PolicyError
from ...method.response import Clamp
from ...method.threshold import Limits
from . import units
from .apply import as_pair, device_scale, multiply, stored
from .gather import PLAIN, buffers, is_run, runs
from .norms import comparable, cosine, decomposed, device_norms, host_norm, widest

__all__ = ["Gradients", "Owner"]

# Outside of these norms squares leave float64; the kernel's clamp does not scale them.
_SMALL, _LARGE = 1e-75, 1e75


class Owner(Protocol):
    """Whatever has the gradients in its `grad`: a parameter, or what stands for one."""

    @property
    def grad(self) -> Tensor | None:
        """The gradient."""
        ...

    @grad.setter
    def grad(self, value: Tensor | None) -> None: ...

    def detach(self) -> Tensor:
        """Return the values, to be read."""
        ...


class Gradients:
    """The gradients of one step, and all that PyTorch can do with them.

    Args:
        tensors: the gradients; mutated by `scale`, `scale_units` and `edit`.
        names: one name for each.
        owners: the parameters whose `.grad` these are; a gradient that cannot be written in
            place (overlapping memory, uncoalesced) is replaced in its owner when it changes.
        present: which of the tensors are gradients; by default all.

    Attributes:
        apart: whether the tensors are known to share no memory.
    """

    values_xp: Namespace = torch_xp

    def __init__(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        owners: Sequence[Owner] | None = None,
        present: Sequence[bool] | None = None,
    ) -> None:
        self.names = tuple(names)
        self._present = (True,) * len(tensors) if present is None else tuple(present)
        self._owners = owners
        self._given = tensors
        self._replaced: dict[int, Tensor] = {}
        self._divisor: Scalar | None = None
        compiling = torch.compiler.is_compiling()
        usable = not compiling and kernel.available()
        memory = runs(tensors) if usable else None
        self.apart = memory is not None
        self._threads = torch.get_num_threads() if usable else 0
        if memory is not None:
            self.host, self._tensors, self._buffers = True, list(tensors), memory
            self._native, self._rest = list(range(len(tensors))), []
        else:
            self._tensors = [self._writable(i, t) for i, t in enumerate(tensors)]
            self.host = not compiling and all(
                type(t) in PLAIN and t.device.type == "cpu" for t in self._tensors
            )
            usable = usable and self.host
            self._native = [i for i, t in enumerate(self._tensors) if usable and is_run(t)]
            self._rest = sorted(set(range(len(self._tensors))) - set(self._native))
            mine = [self._tensors[i] for i in self._native]
            self._buffers = buffers(mine) if mine else None
        self.xp: Namespace = np if self.host else torch_xp
        self._helped = False

    @property
    def double(self) -> bool:
        """Whether any of them is of double precision."""
        if self._buffers is not None and not self._rest:
            return kernel.DType.FLOAT64 in self._buffers.dtypes.tobytes()
        return any(t.dtype in (torch.float64, torch.complex128) for t in self._tensors)

    @property
    def ran(self) -> str:
        """What does the work: the kernel with its instruction set, torch, or both."""
        if not self._native:
            return "torch"
        native = f"c-{kernel.status().isa}"
        return f"{native}+torch" if self._rest or self._helped else native

    @property
    def device(self) -> torch.device:
        """Where the decisions are made."""
        return self._tensors[0].device if self._tensors else torch.device("cpu")

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The gradients, dense."""
        return self._tensors

    @property
    def has_replacements(self) -> bool:
        """Whether a gradient cannot be written where it is, and will be replaced if it changes."""
        return bool(self._replaced)

    @property
    def sizes(self) -> Sizes:
        """The number of elements of each gradient, as floats."""
        # Of a sparse one the zeros count, too.
        return self.array([float(t.numel()) for t in self._given])

    def mean_loss(self, loss: Tensor | float | None) -> Tensor | float | None:
        """Return the loss of the step as it is: there is one process."""
        return loss

    def weights(self) -> Gradients:
        """Return the parameters themselves, as something to measure."""
        assert self._owners is not None
        return Gradients([owner.detach() for owner in self._owners], self.names)

    def measure(self, order: float) -> Measured:
        """Return the p-norm of every gradient, and which there are."""
        return Measured(self.norms(range(len(self._tensors)), order), self._present)

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Norms:
        """Return the p-norm of each member, shape (members,), float64 where the device has it."""
        norms = self._norms(members, order, relative)
        return norms if self._divisor is None else norms / self._divisor

    def _norms(self, members: Sequence[int], order: float, relative: Relative | None) -> Norms:
        if relative is not None:
            parts = [self._in_units_of_weights(i, relative) for i in members]
            return Gradients(parts, [""] * len(parts)).norms(range(len(parts)), order)
        if not self.host:
            return device_norms([self._tensors[i] for i in members], order)
        everything = len(members) == len(self._tensors)
        if not (everything and self._buffers and order in (2.0, math.inf)):
            self._helped = self._helped or len(members) > 0
            return np.asarray([host_norm(self._tensors[i], order) for i in members], float)
        measure = kernel.norm2 if order == 2.0 else kernel.maxabs
        found = measure(self._buffers, self._threads)
        if not self._rest:
            return found
        norms = np.empty(len(self._tensors))
        norms[self._native] = found
        norms[self._rest] = [host_norm(self._tensors[i], order) for i in self._rest]
        return norms

    def unit_norms(self, members: Sequence[int], order: float, axis: int | None) -> Units:
        """Return each unit's norm and number of values, and how many units each member has."""
        shapes = [units.split(self._tensors[i], axis) for i in members]
        counts = [count for count, _ in shapes]
        sizes = np.repeat([float(size) for _, size in shapes], counts)
        wide = widest(self.device)
        if not self.host:
            parts = [units.norms(self._tensors[i], order, axis, wide) for i in members]
            parts = [self.array([]), *(part.to(self.device, wide) for part in parts)]
            found = torch.cat(parts), self.array(sizes.tolist())
            return Units(*found, counts, self._present)
        norms = np.empty(len(sizes))
        memory, mine = None, [False] * len(members)
        if order in (2.0, math.inf):
            memory, mine = self._units(members, counts, axis)
        if memory is not None:
            measure = kernel.norm2 if order == 2.0 else kernel.maxabs
            norms[np.repeat(mine, counts)] = measure(memory, self._threads)
        for place, i, own in zip(_slices(counts), members, mine, strict=True):
            if not own:
                norms[place] = units.norms(self._tensors[i], order, axis, wide).numpy()
        return Units(norms, sizes, counts, self._present)

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,)."""
        owners = np.repeat(np.arange(len(counts)), counts)
        if self.host:
            sums = np.bincount(owners, a * b, len(counts))
        else:
            index = torch.tensor(owners.tolist(), dtype=torch.int64, device=a.device)
            sums = a.new_zeros(len(counts)).index_add_(0, index, a * b)
        return self.xp.sqrt(sums) if root else sums

    def scale(self, factors: Factors) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        if not self._tensors or (self.host and np.all(factors == 1)):
            return
        self._install()
        if not self.host:
            device_scale(self._tensors, factors)
            return
        each = np.broadcast_to(factors, (len(self._tensors),))
        if self._buffers:
            mine = each[self._native] if self._rest else each
            kernel.scale(self._buffers, mine, self._threads)
            self._tell_autograd(list(compress(self._native, (mine != 1).tolist())))
        for i in self._rest:
            if each[i] != 1:
                multiply(self._tensors[i], float(each[i]))

    def scale_units(self, members: Sequence[int], factors: Factors, axis: int | None) -> None:
        """Multiply each unit of each member by its factor, shape (units,)."""
        if self.host and np.all(factors == 1):
            return
        self._install()
        counts = [units.split(self._tensors[i], axis)[0] for i in members]
        memory, mine = self._units(members, counts, axis)
        if memory is not None:
            kernel.scale(memory, factors[np.repeat(mine, counts)], self._threads)
            self._tell_autograd([i for i, own in zip(members, mine, strict=True) if own])
        each = torch.as_tensor(factors)
        for place, i, own in zip(_slices(counts), members, mine, strict=True):
            if not own:
                tensor = self._tensors[i]
                multiply(tensor, units.as_factor(each[place], tensor, axis))

    def _units(
        self, members: Sequence[int], counts: list[int], axis: int | None
    ) -> tuple[kernel.Buffers | None, list[bool]]:
        """Return the units' memory as far as the kernel can take it, and of which members."""
        native = {*self._native}
        mine = [i in native and units.are_runs(self._tensors[i], axis) for i in members]
        if not any(mine):
            return None, mine
        memory = buffers([self._tensors[i] for i, own in zip(members, mine, strict=True) if own])
        own_counts = [count for count, own in zip(counts, mine, strict=True) if own]
        return units.unit_buffers(memory, own_counts), mine

    def unscale(self, scale: Tensor) -> None:
        """Divide every gradient by a scalar tensor, as a loss scaler would."""
        self._install()
        device_scale(self._tensors, scale.double().reciprocal())

    def measure_divided_by(self, scale: Tensor) -> None:
        """Have norms be those of the gradients over a scalar, which somebody else divides by.

        Only for what is done with norms and factors alone; values stay as they are.
        """
        self._divisor = float(scale) if self.host else scale.reshape(()).to(self.device).double()

    def zero_nonfinite(self) -> None:
        """Put 0 for every value that is inf or NaN."""
        for tensor in self._tensors:
            if self.host and math.isfinite(host_norm(tensor, math.inf)):
                continue
            self._install()
            torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)

    def edit(
        self,
        members: Sequence[int],
        change: Change,
        keep: Flag,
        like: Mapping[int, Tensor] | None = None,
        *,
        measured: bool = True,
    ) -> tuple[Norms, Cosines]:
        """Change the values of each member; return their new norms, and cosines to the old."""
        self.refuse_complex(members)
        done = self.clamp(members, change, keep) if isinstance(change, ClampTo) else None
        if done is not None:
            return done
        norms = [self._number(0.0)] * len(members)
        cosines = [self._number(1.0)] * len(members)
        for place, i in enumerate(members):
            if not self._present[i]:
                continue
            value = self.get(i)
            new = change(i, value, partial(decomposed, value))
            if new is None:
                continue
            if not measured:
                self.put(i, new, keep)
                continue
            was = None if like is None else like[i]
            norms[place], cosines[place] = self.put_measured(i, new, keep, was)
        if not measured or not members:
            count = (len(members),)
            zeros = self.xp.broadcast_to(self._number(0.0), count)
            return zeros, self.xp.broadcast_to(self._number(1.0), count)
        return self.xp.stack(norms), self.xp.stack(cosines)

    def clamp(
        self, members: Sequence[int], change: ClampTo, keep: Flag
    ) -> tuple[Norms, Cosines] | None:
        """Clamp by the kernel, if it can read all members; return norms and cosines, or None."""
        norms = change.norms
        if not self.host or not {*members} <= {*self._native}:
            return None
        if not np.all((norms == 0) | ((norms > _SMALL) & (norms < _LARGE))):
            return None
        if bool(keep):
            return norms, np.ones_like(norms)
        self._install()
        memory = buffers([self._tensors[i] for i in members])
        before, after, dot = kernel.clamp(memory, *as_pair(change.limits), self._threads).T
        self._tell_autograd(members)
        turned = (dot != before) | (after != before)
        known = turned & (before > 0) & (after > 0)
        share = dot / np.sqrt(np.where(known, before * after, 1.0))
        cosines = np.where(known, np.minimum(share, 1 - 2**-53), 1.0)
        return np.where(turned, np.sqrt(after), norms), cosines

    def clamp_all(self, limits: Limits) -> None:
        """Clamp every gradient between two numbers, measuring nothing."""
        self.refuse_complex(range(len(self._tensors)))
        self._install()
        if self._buffers:
            kernel.clamp(self._buffers, *as_pair(limits), self._threads)
            self._tell_autograd(self._native)
        for i in self._rest:
            value = comparable(self._tensors[i])
            self._tensors[i].copy_(Clamp().values(value, None, limits, torch_xp))

    def refuse_complex(self, members: Sequence[int]) -> None:
        """Refuse what has no order, before anything is changed."""
        for i in members:
            if self._tensors[i].dtype.is_complex:
                argument = f"gradient {self.names[i]} dtype".replace("  ", " ")
                remedy = "complex values have no order: clip by norm"
                raise PolicyError.of(argument, str(self._tensors[i].dtype), remedy)

    def get(self, member: int) -> Tensor:
        """Return a copy of one gradient in at least float32."""
        tensor = self._tensors[member]
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)

    def put(self, member: int, value: Tensor, keep: Flag) -> None:
        """Store a value, unless `keep` is true."""
        tensor = self._tensors[member]
        if not self.host:
            self._install()
            tensor.copy_(torch.where(keep, tensor, stored(value, tensor.dtype)))
        elif not bool(keep):
            self._install()
            tensor.copy_(stored(value, tensor.dtype))

    def put_measured(
        self, member: int, value: Tensor, keep: Flag, like: Tensor | None = None
    ) -> tuple[Scalar, Scalar]:
        """Store a value; return its 2-norm and its cosine to what was there, or to `like`."""
        self._install()
        tensor = self._tensors[member]
        before = (tensor.clone() if like is None else like).to(tensor.dtype)
        new = stored(value, tensor.dtype)
        if self.host:
            new = before if bool(keep) else new
        else:
            new = torch.where(keep, tensor, new)
        tensor.copy_(new)
        if not self.host:
            norms = device_norms([before, new], 2.0)
            turned = cosine(before, new, norms[0], norms[1])
            return norms[1].to(self.device), turned.to(self.device)
        found = [host_norm(before, 2.0), host_norm(new, 2.0)]
        sizes = torch.tensor(found, dtype=torch.float64, device="cpu")
        return np.float64(sizes[1]), np.float64(cosine(before, new, sizes[0], sizes[1]))

    def array(self, values: list[float]) -> Array:
        """Return numbers where the decisions are made."""
        if self.host:
            return np.asarray(values)
        return torch.tensor(values, dtype=widest(self.device), device=self.device)

    def _number(self, value: float) -> Scalar:
        """Return one number where the decisions are made, without a copy from the host."""
        if self.host:
            return np.float64(value)
        return torch.full((), value, dtype=widest(self.device), device=self.device)

    def _in_units_of_weights(self, member: int, relative: Relative) -> Tensor:
        """Return each value divided by rel·|w| + least of its weight."""
        tensor, (rel, least, weights) = self._tensors[member], relative
        assert isinstance(weights, Gradients)
        if not tensor.numel():
            return tensor
        wide = widest(tensor.device)
        return tensor.abs().to(wide) / (rel * weights.tensors[member].abs().to(wide) + least)

    def _tell_autograd(self, members: Sequence[int]) -> None:
        """Count the kernel's writes as in-place changes, which torch cannot see by itself."""
        all_of_them = len(members) == len(self._tensors)
        changed = self._tensors if all_of_them else [self._tensors[i] for i in members]
        torch.autograd.graph.increment_version(changed)

    def _writable(self, index: int, tensor: Tensor) -> Tensor:
        """Return a dense tensor over the gradient's values, noting what must be replaced."""
        if tensor.layout == torch.sparse_coo:
            if not tensor.is_coalesced():
                tensor = tensor.coalesce()
                self._replaced[index] = tensor
            return tensor.values()
        if tensor.layout != torch.strided:
            return tensor.values()
        if any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            self._replaced[index] = tensor
        return tensor

    def replace_if_changed(self, member: int) -> None:
        """Note that the tensor is not the owner's gradient, but becomes it if it changes."""
        self._replaced[member] = self._tensors[member]

    def _install(self) -> None:
        """Put the replacements in place: only now, so that measuring changes nothing."""
        for index, tensor in self._replaced.items():
            assert self._owners is not None
            self._owners[index].grad = tensor
        self._replaced.clear()


def _slices(counts: list[int]) -> list[slice]:
    """Return where each member's units are among all units."""
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
