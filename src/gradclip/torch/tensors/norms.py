"""Norms of whole tensors, their cosines and their singular values, on a CPU and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .gather import DTYPES, PLAIN

__all__ = ["cosine", "decomposed", "device_norms", "host_cosine", "host_norm", "widest"]

_FOREACH_DTYPES = frozenset(DTYPES)
# float64 sums of p-th powers of float32 values can neither overflow nor vanish up to here.
_SAFE_ORDER = 6.0
_CHUNK = 1 << 16


def widest(device: torch.device) -> torch.dtype:
    """The widest float of the device: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def host_norm(tensor: Tensor, order: float) -> float:
    """Return the p-norm of a tensor on the CPU, accumulated in float64."""
    if tensor.numel() == 0:
        return 0.0
    if tensor.dtype.is_complex:
        tensor = _real(tensor, order)
    flat = tensor.reshape(-1)
    if math.isinf(order):
        return float(flat.abs().max())
    plain = flat.dtype != torch.float64 and order <= _SAFE_ORDER
    scale = 1.0 if plain else float(flat.abs().max())
    if scale == 0 or not math.isfinite(scale):
        return scale
    total = 0.0
    for chunk in flat.split(_CHUNK):
        part = chunk.double() / scale if scale != 1 else chunk.double()
        total += float(torch.dot(part, part) if order == 2.0 else part.abs().pow(order).sum())
    try:
        return scale * (math.sqrt(total) if order == 2.0 else total ** (1.0 / order))
    except OverflowError:  # A tiny p: the norm itself is beyond float64.
        return math.inf


def _real(tensor: Tensor, order: float) -> Tensor:
    """Return real values that have the p-norm of the complex ones."""
    if order == 2.0:
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.to(torch.promote_types(tensor.dtype, widest(tensor.device))).abs()


def device_norms(tensors: Sequence[Tensor], order: float) -> Tensor:
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
        if narrow and widest(place) == torch.float64:
            found = torch._foreach_norm(group, order, dtype=torch.float64)  # pyright: ignore[reportPrivateImportUsage]
        else:
            found = [_scaled_norm(tensor, order) for tensor in group]
        for i, norm in zip(members, found, strict=True):
            norms[i] = norm
    return torch.stack([n.to(device=device, dtype=widest(device)) for n in norms if n is not None])


def _single_norm(tensor: Tensor, order: float) -> Tensor:
    """Return the norm of a tensor that the grouped kernels do not take."""
    if tensor.numel() == 0:
        return torch.zeros((), device=tensor.device)
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
    parts = tensor.to(torch.promote_types(scale.dtype, widest(tensor.device))) / scale
    # Not vector_norm: `sum` adds pairwise, which float64 needs to come within 4 eps.
    powers = parts * parts if order == 2.0 else parts.abs() ** order
    return torch.sum(powers) ** (1.0 / order) * scale


def cosine(a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """Return the cosine between two tensors; 1 where they are equal or one is zero."""
    norm_a, norm_b = norm_a.to(a.device), norm_b.to(a.device)
    known = (norm_a > 0) & (norm_b > 0) & torch.any(a != b)
    one = torch.ones_like(norm_a)
    left = a.to(one.dtype) / torch.where(known, norm_a, one)
    share = left * (b.to(one.dtype) / torch.where(known, norm_b, one))
    # Under 1 even where rounding says 1, since that would mean that nothing changed.
    return torch.where(known, torch.sum(share).clamp(max=1 - 2**-53), one)


def host_cosine(a: Tensor, b: Tensor, norm_a: float, norm_b: float) -> float:
    """Return what `cosine` does, of tensors on the CPU: a piece at a time, which a cache holds."""
    if not (norm_a > 0 and norm_b > 0) or torch.equal(a, b):
        return 1.0
    pieces = zip(a.reshape(-1).split(_CHUNK), b.reshape(-1).split(_CHUNK), strict=True)
    shares = [float(torch.dot(x.double() / norm_a, y.double() / norm_b)) for x, y in pieces]
    # Under 1 even where rounding says 1, since that would mean that nothing changed.
    return min(sum(shares), 1 - 2**-53)


def decomposed(value: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return U, σ, Vᵀ of a gradient as a matrix (first axis, rest); None for a vector."""
    if value.ndim < 2:
        return None
    matrix = value.flatten(1)
    finite = torch.isfinite(matrix).all()  # A decomposition of NaN would raise.
    u, s, vh = torch.linalg.svd(torch.where(finite, matrix, 0.0), full_matrices=False)
    return u, torch.where(finite, s, torch.nan), vh
