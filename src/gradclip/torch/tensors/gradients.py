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
from ...engine.one_clamp import clamped
from ...errors import PolicyError
from ...method.axes import Axis
from ...method.plan import Plan
from ...method.response import Clamp
from ...method.threshold import Limits
from . import units
from .apply import as_pair, device_scale, enlarge, multiply, stored
from .aside import Aside, is_one_clamp, writes_often
from .gather import PLAIN, buffers, is_run, runs
from .norms import cosine, decomposed, device_norms, host_cosine, host_norm, widest
from .overlap import overlaps_itself, sharing
from .places import constants, spread, summed, taken
from .standin import Narrow, StandIn, Table, set_apart

__all__ = ["Gradients", "Owner", "floats", "one_value"]

# Outside of these norms squares leave float64; the kernel's clamp does not scale them.
_SMALL, _LARGE = 1e-75, 1e75


Asked = tuple[tuple[int, ...], Axis]
"""Members and the axis of their units."""


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
            place (memory that is shared, uncoalesced) is replaced in its owner when it changes.
        present: which of the tensors are gradients; by default all.
        begin_on: where what is remembered of their norms begins, if they are not on the host; by
            default where the first one is.

    Raises:
        PolicyError: a gradient does not hold floats.

    Attributes:
        apart: whether the tensors are known to share no memory.
        saturates: whether a factor may be over 1, and what is finite stays so; see `saturate`.
    """

    values_xp: Namespace = torch_xp

    def __init__(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        owners: Sequence[Owner] | None = None,
        present: Sequence[bool] | None = None,
        begin_on: torch.device | None = None,
    ) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self._begin_on = begin_on
        self._present = (True,) * len(tensors) if present is None else tuple(present)
        self._owners = owners
        self._given = tensors
        self._replaced: dict[int, Tensor] = {}
        self._stand_ins: dict[int, StandIn] = {}
        self._sparse: dict[int, Tensor] = {}
        self._divisor: Scalar | None = None
        self._aside: Aside | None = None
        self._is_written = False
        self._units_known: tuple[Asked, kernel.Buffers | None, list[bool]] | None = None
        compiling = torch.compiler.is_compiling()
        usable = not compiling and kernel.available()
        memory = runs(tensors) if usable else None
        self.apart: bool = memory is not None
        self._threads = torch.get_num_threads() if usable else 0
        self.host: bool = True
        if memory is not None:
            self._tensors, self._buffers = list(tensors), memory
            self._native, self._rest = list(range(len(tensors))), []
        else:
            self._tensors = self._writable(tensors, compiling)
            self.host = not compiling and all(
                type(t) in PLAIN and t.device.type == "cpu" for t in self._tensors
            )
            self._divide(usable and self.host)
        self._usable = usable and self.host
        self.xp: Namespace = np if self.host else torch_xp
        self._helped = False
        self.saturates: bool = False

    def _divide(self, usable: bool) -> None:
        """Say which tensors the kernel reads, and which are torch's to read."""
        self._units_known = None
        self._native = [i for i, t in enumerate(self._tensors) if usable and is_run(t)]
        self._rest = sorted(set(range(len(self._tensors))) - set(self._native))
        mine = [self._tensors[i] for i in self._native]
        self._buffers = buffers(mine) if mine else None

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
        """The gradients, or what is worked on in their place; of a sparse one its values."""
        return self._tensors

    @property
    def is_empty(self) -> bool:
        """Whether there is no gradient at all."""
        return not any(self._present)

    @property
    def has_replacements(self) -> bool:
        """Whether a gradient cannot be written where it is, and will be replaced if it changes."""
        return bool(self._replaced or self._stand_ins)

    @property
    def sizes(self) -> Sizes:
        """The number of elements of each gradient, as floats."""
        # Of a sparse one the zeros count, too.
        return self._array([float(t.numel()) for t in self._given])

    def mean_loss(self, loss: Tensor | float | None) -> Tensor | float | None:
        """Return the loss of the step, from any float dtype, where the decisions are made."""
        if loss is None or (self.host and not isinstance(loss, Tensor)):
            return loss
        if not isinstance(loss, Tensor):  # Filled on the device: a copy to it could wait.
            return torch.full((), loss, dtype=widest(self.device), device=self.device)
        value = one_value("loss", loss)
        return float(value) if self.host else value.to(self.device, widest(self.device))

    def weights(self) -> Gradients:
        """Return the parameters themselves, as something to measure."""
        assert self._owners is not None
        return Gradients([floats(owner.detach()) for owner in self._owners], self.names)

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
            mine = [self._tensors[i] for i in members]
            if mine:
                return device_norms(mine, order)
            place = self._begin_on or self.device
            return constants([], widest(place), place)
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

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        """Return each unit's norm and number of values, and how many units each member has."""
        self._spread(members)
        shapes = [self._split(i, axis) for i in members]
        counts = [count for count, _ in shapes]
        if not self.host:
            wide = widest(self.device)
            parts = [self._norms_of_units(i, order, axis) for i in members]
            parts = [self._array([]), *(part.to(self.device, wide) for part in parts)]
            sizes = spread(self._array([float(size) for _, size in shapes]), counts)
            return Units(torch.cat(parts), sizes, counts, self._present)
        sizes = np.repeat([float(size) for _, size in shapes], counts)
        norms = np.empty(len(sizes))
        memory, mine = None, [False] * len(members)
        if order in (2.0, math.inf):
            memory, mine = self._units(members, counts, axis)
        if memory is not None:
            measure = kernel.norm2 if order == 2.0 else kernel.maxabs
            norms[np.repeat(mine, counts)] = measure(memory, self._threads)
        for place, i, own in zip(_slices(counts), members, mine, strict=True):
            if not own:
                norms[place] = self._norms_of_units(i, order, axis).numpy()
        return Units(norms, sizes, counts, self._present)

    def _split(self, member: int, axis: Axis) -> tuple[int, int]:
        """Return a member's units, and how many values each has; none of a missing gradient."""
        if self._present[member]:
            return units.split(self._tensors[member].shape, axis, self.names[member])
        shape = self._tensors[member].shape
        if self._owners is not None:
            shape = self._owners[member].detach().shape
        return units.split(shape, axis, self.names[member])[0], 0

    def _norms_of_units(self, member: int, order: float, axis: Axis) -> Tensor:
        """Return the p-norm of each unit of one member by torch, shape (units,)."""
        if self._present[member]:
            return units.norms(self._tensors[member], order, axis, widest(self.device))
        return torch.zeros(self._split(member, axis)[0], dtype=widest(self.device))

    def take(self, values: Norms, places: Sequence[int]) -> Norms:
        """Return values[places], shape (places,)."""
        return values[list(places)] if self.host else taken(values, places)

    def spread(self, values: Norms, counts: list[int]) -> Norms:
        """Return each member's value once for each of its units: from (members,) to (units,)."""
        return np.repeat(values, counts) if self.host else spread(values, counts)

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,)."""
        if self.host:
            sums = np.bincount(np.repeat(np.arange(len(counts)), counts), a * b, len(counts))
        else:
            sums = summed(a * b, counts)
        return self.xp.sqrt(sums) if root else sums

    def scale(self, factors: Factors) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        if not self._tensors or (self.host and _all_one(factors)):
            return
        self._install()
        if not self.host:
            device_scale(self._tensors, factors, saturate=self.saturates)
            self._give_back(range(len(self._tensors)))
            return
        if isinstance(factors, float) and not factors > 1 and self._buffers and not self._rest:
            kernel.scale(self._buffers, factors, self._threads)
            self._tell_autograd(self._native)
            self._give_back(self._native)
            return
        each = np.broadcast_to(factors, (len(self._tensors),))
        if np.any(each > 1):
            each = self._without_overflow(each)
        if self._buffers:
            mine = each[self._native] if self._rest else each
            kernel.scale(self._buffers, mine, self._threads)
            self._tell_autograd(list(compress(self._native, (mine != 1).tolist())))
        for i in self._rest:
            if each[i] != 1:
                multiply(self._tensors[i], float(each[i]))
        self._give_back(range(len(self._tensors)))

    def saturate(self) -> None:
        """Have what is finite stay finite on a device; on the host the factors are looked at."""
        self.saturates = True

    def _without_overflow(self, factors: Factors) -> Factors:
        """Apply the factors that take a finite value beyond its dtype; return the others."""
        left = factors.copy()
        for i in np.flatnonzero(factors > 1).tolist():
            if self._overflows(i, float(factors[i])):
                enlarge(self._tensors[i], float(factors[i]))
                left[i] = 1
        return left

    def _overflows(self, member: int, factor: float) -> bool:
        """Whether a factor, or the largest value of a member times the factor, leaves the dtype."""
        tensor = self._tensors[member]
        # torch takes a number as float32, in which the factor would be inf.
        if factor > torch.finfo(torch.promote_types(tensor.dtype, torch.float32)).max:
            return True
        return host_norm(tensor, math.inf) * factor > torch.finfo(tensor.dtype).max

    def scale_units(self, members: Sequence[int], factors: Factors, axis: Axis) -> None:
        """Multiply each unit of each member by its factor, shape (units,)."""
        if self.host and np.all(factors == 1):
            return
        self._spread(members)
        self._install()
        counts = [self._split(i, axis)[0] for i in members]
        if self.host and np.any(factors > 1):
            factors = self._units_without_overflow(members, factors, counts, axis)
        memory, mine = self._units(members, counts, axis)
        if memory is not None:
            kernel.scale(memory, factors[np.repeat(mine, counts)], self._threads)
            self._tell_autograd([i for i, own in zip(members, mine, strict=True) if own])
        each = torch.as_tensor(factors)
        for place, i, own in zip(_slices(counts), members, mine, strict=True):
            if not own and self._present[i]:
                tensor = self._tensors[i]
                write = enlarge if self.saturates and not self.host else multiply
                write(tensor, units.as_factor(each[place], tensor, axis))
        self._give_back(members)

    def _units_without_overflow(
        self, members: Sequence[int], factors: Factors, counts: list[int], axis: Axis
    ) -> Factors:
        """Do what `_without_overflow` does, for units."""
        left = factors.copy()
        for place, i in zip(_slices(counts), members, strict=True):
            mine = factors[place]
            if self._present[i] and np.any(mine > 1) and self._overflows(i, float(mine.max())):
                tensor = self._tensors[i]
                enlarge(tensor, units.as_factor(torch.as_tensor(mine), tensor, axis))
                left[place] = 1
        return left

    def _units(
        self, members: Sequence[int], counts: list[int], axis: Axis
    ) -> tuple[kernel.Buffers | None, list[bool]]:
        """Return the units' memory as far as the kernel can take it, and of which members."""
        asked = tuple(members), axis
        if self._units_known is None or self._units_known[0] != asked:
            self._units_known = asked, *self._find_units(members, counts, axis)
        return self._units_known[1:]

    def _find_units(
        self, members: Sequence[int], counts: list[int], axis: Axis
    ) -> tuple[kernel.Buffers | None, list[bool]]:
        native = {*self._native}
        mine = [
            i in native and self._present[i] and units.are_runs(self._tensors[i], axis)
            for i in members
        ]
        if not any(mine):
            return None, mine
        if all(mine) and len(mine) == len(self._tensors) == len(self._native):
            assert self._buffers is not None
            return units.unit_buffers(self._buffers, counts), mine
        memory = buffers([self._tensors[i] for i, own in zip(members, mine, strict=True) if own])
        own_counts = [count for count, own in zip(counts, mine, strict=True) if own]
        return units.unit_buffers(memory, own_counts), mine

    def unscale(self, scale: Tensor) -> None:
        """Divide every gradient by a scalar tensor, as a loss scaler would."""
        self._install()
        device_scale(self._tensors, scale.double().reciprocal())
        self._give_back(range(len(self._tensors)))

    def work_aside(self, plan: Plan) -> None:
        """Change copies until `put_in_place`, where the plan would write several times.

        Not on an accelerator, where the memory counts for more, nor for sparse gradients.
        """
        natives = len(self._native) == len(self._tensors)
        if not self.host or self._sparse or not writes_often(plan):
            return
        if natives and is_one_clamp(plan):
            return
        plain = [i for i, there in enumerate(self._present) if there and self._is_plain(i)]
        self._aside = Aside([self._tensors[i] for i in plain])
        for i, copied in zip(plain, self._aside.copies, strict=True):
            self._tensors[i] = copied
        self._divide(self._usable)

    def _is_plain(self, member: int) -> bool:
        """Whether a member is its owner's gradient, and not what stands in for one."""
        return member not in self._stand_ins and member not in self._replaced

    def put_in_place(self) -> None:
        """Store what was changed since `work_aside`."""
        aside, self._aside = self._aside, None
        if aside is None or not self._is_written:
            return
        aside.put_in_place()
        self._install()
        self._give_back(range(len(self._tensors)))

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
        self._give_back(range(len(self._tensors)))

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
        if not isinstance(change, ClampTo) or not _leaves_zero(change.limits):
            self._spread(members)
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
        if not (self.host and bool(keep)):
            self._give_back(members)
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
        if not self._kernel_clamps(members, change.limits):
            return None
        if not np.all((norms == 0) | ((norms > _SMALL) & (norms < _LARGE))):
            return None
        if bool(keep):
            return norms, np.ones_like(norms)
        self._install()
        memory = buffers([self._tensors[i] for i in members])
        sums = kernel.clamp(memory, *as_pair(change.limits), self._threads)
        self._tell_autograd(members)
        self._give_back(members)
        return clamped(norms, sums)

    def clamp_all(self, limits: Limits) -> None:
        """Clamp every gradient between two numbers, measuring nothing."""
        self.refuse_complex(range(len(self._tensors)))
        self._install()
        by_torch = self._rest
        if self._buffers and self._kernel_clamps(self._native, limits):
            kernel.clamp(self._buffers, *as_pair(limits), self._threads)
            self._tell_autograd(self._native)
        else:
            by_torch = range(len(self._tensors))
        for i in by_torch:
            tensor = self._tensors[i]
            tensor.copy_(Clamp().values(tensor, None, limits, torch_xp))
        self._give_back(range(len(self._tensors)))

    def _kernel_clamps(self, members: Sequence[int], limits: Limits) -> bool:
        """Whether the kernel, which reads memory as it lies, clamps as torch would.

        Not where torch negates the values as they are read, nor to a limit beyond a dtype.
        """
        tensors = [self._tensors[i] for i in members]
        finite = [abs(limit) for limit in as_pair(limits) if math.isfinite(limit)]
        beyond = {t.dtype for t in tensors if any(f > torch.finfo(t.dtype).max for f in finite)}
        return not beyond and not any(map(Tensor.is_neg, tensors))

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
        sizes = host_norm(before, 2.0), host_norm(new, 2.0)
        return np.float64(sizes[1]), np.float64(host_cosine(before, new, *sizes))

    def _array(self, values: list[float]) -> Array:
        """Return numbers where the decisions are made."""
        if self.host:
            return np.asarray(values)
        return constants(values, widest(self.device), self.device)

    def _number(self, value: float) -> Scalar:
        """Return one number where the decisions are made, without a copy from the host."""
        if self.host:
            return np.float64(value)
        return torch.full((), value, dtype=widest(self.device), device=self.device)

    def _in_units_of_weights(self, member: int, relative: Relative) -> Tensor:
        """Return each value divided by rel·|w| + least of its weight."""
        self._spread([member])
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

    def _writable(self, tensors: Sequence[Tensor], compiling: bool) -> list[Tensor]:
        """Return dense tensors to work on, noting what must be replaced or given back."""
        values = [t if t.layout == torch.strided else _stored_values(t) for t in tensors]
        again = {i for i, t in enumerate(values) if overlaps_itself(t)}
        if compiling:  # Addresses are not known there, but one tensor given twice is.
            known = [id(t) for t in tensors]
            again |= {i for i, one in enumerate(known) if one in known[:i]}
        else:
            again |= sharing([t.new_empty(0) if i in again else t for i, t in enumerate(values)])
        return [self._one_writable(i, t, again=i in again) for i, t in enumerate(tensors)]

    def _one_writable(self, index: int, tensor: Tensor, *, again: bool) -> Tensor:
        """Return what to work on; a gradient whose memory is met again gets memory of its own."""
        if self._present[index] and not (tensor.is_floating_point() or tensor.is_complex()):
            argument = f"gradient {self.names[index]} dtype".replace("  ", " ")
            raise PolicyError.of(argument, str(tensor.dtype), "a gradient holds floats")
        if again:
            tensor = self._replaced[index] = set_apart(tensor)
        if tensor.layout == torch.sparse_coo and not tensor.is_coalesced():
            tensor = self._replaced[index] = tensor.coalesce()
        if tensor.layout != torch.strided:
            self._sparse[index] = tensor
            return tensor.values()
        if tensor.dtype.itemsize > 1:
            return tensor
        narrow = self._stand_ins[index] = Narrow(tensor, tensor.float())
        return narrow.values

    def _spread(self, members: Sequence[int]) -> None:
        """Work on whole tables from now on, where the members are sparse."""
        mine = self._sparse.keys() & set(members)
        if not mine:
            return
        for i in mine:
            sparse = self._sparse.pop(i)
            table = Table(sparse, sparse.to_dense())
            self._stand_ins[i], self._tensors[i] = table, table.values
        self._divide(self._usable)

    def _give_back(self, members: Sequence[int]) -> None:
        """Store in the gradients what was done to those that stand in for them."""
        if not self._stand_ins or self._aside is not None:
            return
        for i in members:
            new = self._stand_ins[i].give_back() if i in self._stand_ins else None
            if new is not None:
                assert self._owners is not None
                self._owners[i].grad = new

    def replace_if_changed(self, member: int) -> None:
        """Note that the tensor is not the owner's gradient, but becomes it if it changes."""
        self._replaced[member] = self._tensors[member]

    def _install(self) -> None:
        """Put the replacements in place: only now, so that measuring changes nothing."""
        self._is_written = True
        if self._aside is not None:
            return
        for index, tensor in self._replaced.items():
            assert self._owners is not None
            self._owners[index].grad = tensor
        self._replaced.clear()


def one_value(argument: str, value: Tensor) -> Tensor:
    """Return a tensor of one value without axes, in float64 where there is one."""
    if value.numel() != 1 or value.is_complex():
        shape = f"a {value.dtype} tensor of shape {tuple(value.shape)}"
        raise PolicyError.of(argument, shape, "give one real number")
    return value.detach().reshape(()).to(widest(value.device))


def floats(weight: Tensor) -> Tensor:
    """Return weights as floats: those that are never trained may be whole numbers."""
    return weight if weight.is_floating_point() or weight.is_complex() else weight.float()


def _stored_values(sparse: Tensor) -> Tensor:
    """Return the values that a sparse tensor holds, as they lie."""
    return sparse._values() if sparse.layout == torch.sparse_coo else sparse.values()


def _all_one(factors: Factors) -> bool:
    """Whether all factors are 1; of one number at a tenth of NumPy's time."""
    return factors == 1 if isinstance(factors, float) else bool(np.all(factors == 1))


def _leaves_zero(limits: Limits) -> bool:
    """Whether a clamp is known to keep 0, as the rows that a sparse gradient does not hold.

    A limit that moves on its device is not read, and so is not known.
    """
    low, high = as_pair(limits)
    known = not isinstance(low, Tensor) and not isinstance(high, Tensor)
    return known and low <= 0 <= high


def _slices(counts: list[int]) -> list[slice]:
    """Return where each member's units are among all units."""
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
