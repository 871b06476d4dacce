"""PyTorch's side of the engine: how to measure gradients, and how to apply factors to them.

On a CPU the decisions are made on the host with NumPy, by the C kernel where it can read the
tensors, else by torch. On an accelerator, and under `torch.compile`, everything stays torch
operations on the device: no value is read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, compress
from typing import Any

import array_api_compat.torch as torch_xp
import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...errors import PolicyError
from ...method.response import Clamp
from ...method.threshold import Limits
from . import units
from .gather import DTYPES, PLAIN, buffers, is_run, runs

__all__ = ["Gradients"]

_FOREACH_DTYPES = frozenset(DTYPES)
# float64 sums of p-th powers of float32 values can neither overflow nor vanish up to here.
_SAFE_ORDER = 6.0
_CHUNK = 1 << 16
# Outside of these norms squares leave float64; the kernel's clamp does not scale them.
_SMALL, _LARGE = 1e-75, 1e75


class Gradients:
    """The gradients of one step, and all that PyTorch can do with them.

    Args:
        tensors: the gradients; mutated by `scale`, `scale_units` and `map`.
        names: one name for each.
        owners: the parameters whose `.grad` these are; a gradient that cannot be written in
            place (overlapping memory, uncoalesced) is replaced in its owner when it changes.
        present: which of the tensors are gradients; by default all.
        loss: the loss of the step, for policies that look at it.
    """

    values_xp: Any = torch_xp
    spread = False
    apart: bool
    """Whether the tensors are known to share no memory."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        owners: Sequence[Tensor] | None = None,
        present: Sequence[bool] | None = None,
        loss: Any = None,
    ) -> None:
        self.names = tuple(names)
        self.loss = loss
        self.present = (True,) * len(tensors) if present is None else tuple(present)
        self.somewhere = self.present
        self._owners = owners
        self._given = tensors
        self._replaced: dict[int, Tensor] = {}
        self._divisor: Any = None
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
        self.xp: Any = np if self.host else torch_xp
        self._helped = False

    @property
    def double(self) -> bool:
        """Whether any of them is of double precision."""
        if self._buffers is not None and not self._rest:
            return kernel.DType.FLOAT64 in self._buffers.dtypes.tobytes()
        return any(t.dtype in (torch.float64, torch.complex128) for t in self._tensors)

    @property
    def path(self) -> str:
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
    def shared(self) -> bool:
        """Whether a gradient cannot be written where it is, and will be replaced if it changes."""
        return bool(self._replaced)

    @property
    def sizes(self) -> Any:
        """The number of elements of each gradient, as floats."""
        # Of a sparse one the zeros count, too.
        return self.array([float(t.numel()) for t in self._given])

    @property
    def weights(self) -> Gradients | None:
        """The parameters themselves, as something to measure."""
        if self._owners is None:
            return None
        return Gradients([owner.detach() for owner in self._owners], self.names)

    def norms(
        self,
        members: Sequence[int],
        order: float,
        relative: tuple[float, float] | None = None,
    ) -> Any:
        """Return the p-norm of each member, shape (members,), float64 where the device has it."""
        norms = self._norms(members, order, relative)
        return norms if self._divisor is None else norms / self._divisor

    def _norms(
        self, members: Sequence[int], order: float, relative: tuple[float, float] | None
    ) -> Any:
        if relative is not None:
            parts = [self._in_units_of_weights(i, relative) for i in members]
            return Gradients(parts, [""] * len(parts)).norms(range(len(parts)), order)
        if not self.host:
            return _device_norms([self._tensors[i] for i in members], order)
        everything = len(members) == len(self._tensors)
        if not (everything and self._buffers and order in (2.0, math.inf)):
            self._helped = self._helped or len(members) > 0
            return np.asarray([_host_norm(self._tensors[i], order) for i in members], float)
        measure = kernel.norm2 if order == 2.0 else kernel.maxabs
        found = measure(self._buffers, self._threads)
        if not self._rest:
            return found
        norms = np.empty(len(self._tensors))
        norms[self._native] = found
        norms[self._rest] = [_host_norm(self._tensors[i], order) for i in self._rest]
        return norms

    def unit_norms(
        self, members: Sequence[int], order: float, axis: int | None
    ) -> tuple[Any, Any, list[int]]:
        """Return each unit's norm and number of values, and how many units each member has."""
        shapes = [units.split(self._tensors[i], axis) for i in members]
        counts = [count for count, _ in shapes]
        sizes = np.repeat([float(size) for _, size in shapes], counts)
        wide = _wide(self.device)
        if not self.host:
            parts = [units.norms(self._tensors[i], order, axis, wide) for i in members]
            parts = [self.array([]), *(part.to(self.device, wide) for part in parts)]
            return torch.cat(parts), self.array(sizes.tolist()), counts
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
        return norms, sizes, counts

    def unit_dots(self, a: Any, b: Any, counts: list[int], *, root: bool = False) -> Any:
        """Return Σ ab, or its root, over each member's units: from (units,) to (members,)."""
        owners = np.repeat(np.arange(len(counts)), counts)
        if self.host:
            sums = np.bincount(owners, a * b, len(counts))
        else:
            index = torch.tensor(owners.tolist(), dtype=torch.int64, device=a.device)
            sums = a.new_zeros(len(counts)).index_add_(0, index, a * b)
        return self.xp.sqrt(sums) if root else sums

    def scale(self, factors: Any) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or (); 1 changes no bit."""
        if not self._tensors or (self.host and np.all(factors == 1)):
            return
        self._install()
        if not self.host:
            _device_scale(self._tensors, factors)
            return
        each = np.broadcast_to(factors, (len(self._tensors),))
        if self._buffers:
            mine = each[self._native] if self._rest else each
            kernel.scale(self._buffers, mine, self._threads)
            self._tell_autograd(list(compress(self._native, (mine != 1).tolist())))
        for i in self._rest:
            if each[i] != 1:
                _multiply(self._tensors[i], float(each[i]))

    def scale_units(self, members: Sequence[int], factors: Any, axis: int | None) -> None:
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
                _multiply(tensor, units.as_factor(each[place], tensor, axis))

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
        _device_scale(self._tensors, scale.double().reciprocal())

    def measure_divided_by(self, scale: Tensor) -> None:
        """Have norms be those of the gradients over a scalar, which somebody else divides by.

        Only for what is done with norms and factors alone; values stay as they are.
        """
        self._divisor = float(scale) if self.host else scale.reshape(()).to(self.device).double()

    def zero_nonfinite(self) -> None:
        """Put 0 for every value that is inf or NaN."""
        for tensor in self._tensors:
            if self.host and math.isfinite(_host_norm(tensor, math.inf)):
                continue
            self._install()
            torch.nan_to_num_(tensor, nan=0.0, posinf=0.0, neginf=0.0)

    def whole(self, members: Sequence[int], norms: Any, cosines: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """Return norms and cosines of whole gradients: these are."""
        return norms, cosines

    def clamp(self, members: Sequence[int], limits: Limits, norms: Any, keep: Any) -> Any:
        """Clamp what the kernel can read between two numbers; return norms and cosines, or None."""
        plain = (norms == 0) | ((norms > _SMALL) & (norms < _LARGE))
        if not self.host or not {*members} <= {*self._native} or not np.all(plain):
            return None
        if bool(keep):
            return norms, np.ones_like(norms)
        self._install()
        memory = buffers([self._tensors[i] for i in members])
        before, after, dot = kernel.clamp(memory, *_bounds(limits), self._threads).T
        self._tell_autograd(members)
        turned = (dot != before) | (after != before)
        known = turned & (before > 0) & (after > 0)
        share = dot / np.sqrt(np.where(known, before * after, 1.0))
        cosine = np.where(known, np.minimum(share, 1 - 2**-53), 1.0)
        return np.where(turned, np.sqrt(after), norms), cosine

    def clamp_all(self, limits: Limits) -> None:
        """Clamp every gradient between two numbers, measuring nothing."""
        self.refuse_complex(range(len(self._tensors)))
        self._install()
        if self._buffers:
            kernel.clamp(self._buffers, *_bounds(limits), self._threads)
            self._tell_autograd(self._native)
        for i in self._rest:
            value = _comparable(self._tensors[i])
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
        self.refuse_complex([member])
        tensor = self._tensors[member]
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)

    def put(
        self, member: int, value: Tensor, keep: Any, *, like: Tensor | None = None
    ) -> tuple[Any, Any]:
        """Store a value; return its 2-norm and its cosine to what was there, or to `like`."""
        self._install()
        tensor = self._tensors[member]
        before = (tensor.clone() if like is None else like).to(tensor.dtype)
        new = _stored(value, tensor.dtype)
        if self.host:
            new = before if bool(keep) else new
        else:
            new = torch.where(keep, tensor, new)
        tensor.copy_(new)
        if not self.host:
            norms = _device_norms([before, new], 2.0)
            return norms[1], _cosine(before, new, norms[0], norms[1])
        found = [_host_norm(before, 2.0), _host_norm(new, 2.0)]
        sizes = torch.tensor(found, dtype=torch.float64, device="cpu")
        return np.float64(sizes[1]), np.float64(_cosine(before, new, sizes[0], sizes[1]))

    def singular(self, member: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return U, σ, Vᵀ of a gradient as a matrix (first axis, rest); None for a vector."""
        value = self.get(member)
        if value.ndim < 2:
            return None
        matrix = value.flatten(1)
        finite = torch.isfinite(matrix).all()  # A decomposition of NaN would raise.
        u, s, vh = torch.linalg.svd(torch.where(finite, matrix, 0.0), full_matrices=False)
        return u, torch.where(finite, s, torch.nan), vh

    def array(self, values: list[float]) -> Any:
        """Return numbers where the decisions are made."""
        if self.host:
            return np.asarray(values)
        return torch.tensor(values, dtype=_wide(self.device), device=self.device)

    def _in_units_of_weights(self, member: int, relative: tuple[float, float]) -> Tensor:
        """Return each value divided by rel·|w| + abs of its weight."""
        tensor = self._tensors[member]
        if self._owners is None:
            raise PolicyError.of("weights", None, "the policy compares with them: give parameters")
        if not tensor.numel():
            return tensor
        wide = _wide(tensor.device)
        rel, least = relative
        return tensor.abs().to(wide) / (rel * self._owners[member].detach().abs().to(wide) + least)

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


def _bounds(limits: Limits) -> tuple[float, float]:
    low = -math.inf if limits.low is None else limits.low
    return low, math.inf if limits.high is None else limits.high


def _wide(device: torch.device) -> torch.dtype:
    """The widest float of the device: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new, info = value.to(dtype), torch.finfo(dtype)
    return torch.where(torch.isfinite(value), new.clamp(info.min, info.max), new)


def _slices(counts: list[int]) -> list[slice]:
    """Return where each member's units are among all units."""
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _host_norm(tensor: Tensor, order: float) -> float:
    """Return the p-norm of a tensor on the CPU, accumulated in float64."""
    if tensor.numel() == 0:
        return 0.0
    if tensor.dtype.is_complex:
        tensor = _real(tensor, order)
    elif tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    flat = tensor.reshape(-1)
    if math.isinf(order):
        return float(flat.abs().max())
    plain = flat.dtype != torch.float64 and order <= _SAFE_ORDER
    scale = 1.0 if plain else float(flat.abs().max())
    if scale == 0 or not math.isfinite(scale):
        return scale
    total = 0.0
    for chunk in flat.split(_CHUNK):
        wide = chunk.double() / scale if scale != 1 else chunk.double()
        total += float(torch.dot(wide, wide) if order == 2.0 else wide.abs().pow(order).sum())
    try:
        return scale * (math.sqrt(total) if order == 2.0 else total ** (1.0 / order))
    except OverflowError:  # A tiny p: the norm itself is beyond float64.
        return math.inf


def _real(tensor: Tensor, order: float) -> Tensor:
    """Return real values that have the p-norm of the complex ones."""
    if order == 2.0:
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.to(torch.promote_types(tensor.dtype, _wide(tensor.device))).abs()


def _device_norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """Return the p-norms, shape (tensors,), as tensors on the first one's device."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    device = tensors[0].device
    norms: list[Tensor | None] = [None] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if type(tensor) in PLAIN and tensor.dtype in _FOREACH_DTYPES and tensor.numel():
            groups.setdefault((tensor.device, tensor.dtype), []).append(i)
        else:
            norms[i] = _single_norm(tensor, order)
    for (place, dtype), members in groups.items():
        group = [tensors[i] for i in members]
        narrow = dtype != torch.float64 and (order <= _SAFE_ORDER or math.isinf(order))
        wide = _wide(place)
        if narrow and wide == torch.float64:
            found = torch._foreach_norm(group, order, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
        else:
            found = [_scaled_norm(tensor, order) for tensor in group]
        for i, norm in zip(members, found, strict=True):
            norms[i] = norm
    return torch.stack([n.to(device=device, dtype=_wide(device)) for n in norms if n is not None])


def _single_norm(tensor: Tensor, order: float) -> Tensor:
    """Return the norm of a tensor that the grouped kernels do not take."""
    if tensor.numel() == 0:
        return torch.zeros((), device=tensor.device)
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    norm = _scaled_norm(_real(tensor, order) if tensor.dtype.is_complex else tensor, order)
    # A sharded tensor's norm is sharded too; this is the sum over its shards.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator]


def _scaled_norm(tensor: Tensor, order: float) -> Tensor:
    """Return m·‖x/m‖ with m = max|x|: safe where squares would overflow or vanish."""
    largest = torch.linalg.vector_norm(tensor, math.inf)
    usable = (largest > 0) & torch.isfinite(largest)
    scale = torch.where(usable, largest, torch.ones_like(largest))
    if math.isinf(order):
        return largest
    parts = tensor.to(torch.promote_types(scale.dtype, _wide(tensor.device))) / scale
    # Not vector_norm: `sum` adds pairwise, which float64 needs to come within 4 eps.
    powers = parts * parts if order == 2.0 else parts.abs() ** order
    return torch.sum(powers) ** (1.0 / order) * scale


def _device_scale(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply in place on the device, without reading a factor."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (place, dtype), members in groups.items():
        group = [tensors[i] for i in members]
        # The grouped kernel wants its factor in the gradients' type; a half is too coarse.
        double = dtype in (torch.float64, torch.complex128)
        precise = torch.float64 if double else torch.float32
        local = factors.to(place, precise)
        if any(type(t) not in PLAIN for t in group) or dtype.itemsize == 1:
            for i, tensor in zip(members, group, strict=True):
                _multiply(tensor, local if local.ndim == 0 else local[i])
        elif local.ndim == 0:
            torch._foreach_mul_(group, local)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_mul_(group, [local[i] for i in members])  # pyright: ignore[reportPrivateImportUsage]


def _comparable(tensor: Tensor) -> Tensor:
    """Return the values in a type that can be compared: float8 cannot."""
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def _multiply(tensor: Tensor, factor: float | Tensor) -> None:
    if isinstance(factor, Tensor) and factor.ndim:
        tensor.copy_(tensor * factor)
    elif tensor.dtype.itemsize == 1:
        tensor.copy_(tensor.float() * factor)
    else:
        tensor.mul_(factor)


def _cosine(a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """Return the cosine between two tensors; 1 where they are equal or one is zero."""
    norm_a, norm_b = norm_a.to(a.device), norm_b.to(a.device)
    known = (norm_a > 0) & (norm_b > 0) & torch.any(_comparable(a) != _comparable(b))
    one = torch.ones_like(norm_a)
    left = a.to(one.dtype) / torch.where(known, norm_a, one)
    share = left * (b.to(one.dtype) / torch.where(known, norm_b, one))
    # Under 1 even where rounding says 1, since that would mean that nothing changed.
    return torch.where(known, torch.sum(share).clamp(max=1 - 2**-53), one)
