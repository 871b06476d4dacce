"""Gradients to clip: parameters whose gradients lie in one buffer, as DDP and FSDP make them.

So a bare read of that buffer reads the very same memory. On a virtual machine two buffers of one
size can differ by half in how fast they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import Parameter

from .shapes import ShapeSet

__all__ = ["GradientSet", "WrongOutput", "make", "norm64", "worst"]

# In doubles: small enough for a cache.
_CHUNK = 1 << 17
# Values of float32 in a cache line, at which a separate gradient would begin.
_ALIGNED = 16
# Larger sets repeat a block of random values: drawing takes longer than measuring.
_DRAWN = 1 << 24


class WrongOutput(AssertionError):
    """The timed call gave a wrong result."""


@dataclass(frozen=True)
class GradientSet:
    """Parameters with gradients, and the first values of the gradients.

    Attributes:
        shapes: what they are shaped like.
        params: one for each tensor, with `.grad` set.
        memory: the buffer that the gradients are views of, with zeros between them.
        flat: the values that the gradients began with, all in one buffer.
        views: the parts of `flat` in the shapes of the gradients.
        norm: the 2-norm of all of them, in float64.
    """

    shapes: ShapeSet
    params: list[Parameter]
    memory: Tensor
    flat: Tensor
    views: list[Tensor]
    norm: float

    @property
    def grads(self) -> list[Tensor]:
        """The gradients."""
        return [param.grad for param in self.params if param.grad is not None]

    @property
    def named(self) -> list[tuple[str, Parameter]]:
        """The parameters as `model.named_parameters()` would give them."""
        return [(n, p) for (n, _), p in zip(self.shapes.named, self.params, strict=True)]

    def restore(self) -> None:
        """Restore the first values."""
        with torch.no_grad():
            torch._foreach_copy_(self.grads, self.views)  # pyright: ignore[reportPrivateImportUsage]

    def double(self) -> None:
        """Double the gradients: after a clip to `norm` or under, the next call clips again."""
        with torch.no_grad():
            torch._foreach_mul_(self.grads, 2.0)  # pyright: ignore[reportPrivateImportUsage]

    def verify(
        self, call: Callable[[], float], *, doubled: bool, limit: float, tolerance: float
    ) -> float:
        """Call once on the first values, or on their doubles, and compare the results with float64.

        Args:
            call: clips the gradients and returns their norm before that.
            doubled: whether the values are doubled, which is exact in floating point.
            limit: what the call clips the norm to.
            tolerance: relative error that the norm may have; values may have that and rounding.

        Returns:
            The relative error of the norm that the call returned.

        Raises:
            WrongOutput: the norm or a gradient is not what float64 says.
        """
        self.restore()
        times = 2.0 if doubled else 1.0
        if doubled:
            self.double()
        norm = self.norm * times
        error = abs(call() - norm) / norm
        if not error <= tolerance:
            raise WrongOutput(f"norm: relative error {error:.2e}, allowed {tolerance:.0e}")
        factor = times * min(1.0, limit / norm)
        rounding = 2 * torch.finfo(self.flat.dtype).eps
        for (name, _), got, first in zip(self.shapes.named, self.grads, self.views, strict=True):
            off = worst(got, first, factor)
            if not off <= tolerance + rounding:
                raise WrongOutput(f"{name}: a value is {off:.2e} off, relative")
        return error


def make(
    shapes: ShapeSet, dtype: torch.dtype = torch.float32, *, spread: bool = True
) -> GradientSet:
    """Return normal random gradients whose total norm is about 1, and zero weights.

    Args:
        shapes: the shapes.
        dtype: of the parameters and the gradients.
        spread: every value is as large as any other; else every tensor has about the same norm,
            and the total norm is about the root of their number.
    """
    flat = torch.empty(shapes.count, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    drawn = flat[: min(_DRAWN, shapes.count)].normal_(generator=generator)
    for part in flat[_DRAWN:].split(_DRAWN):
        part.copy_(drawn[: part.numel()])
    sizes = [math.prod(shape) for _, shape in shapes.named]
    parts = flat.split(sizes)
    views = [part.view(shape) for part, (_, shape) in zip(parts, shapes.named, strict=True)]
    if spread:
        flat.div_(math.sqrt(shapes.count))
    else:
        for view, size in zip(views, sizes, strict=True):
            view.div_(math.sqrt(size))
    params = [Parameter(torch.zeros(shape, dtype=dtype)) for _, shape in shapes.named]
    starts = list(accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0))
    memory = torch.zeros(starts[-1], dtype=dtype)
    for param, view, start in zip(params, views, starts, strict=False):
        param.grad = memory[start : start + view.numel()].view(view.shape).copy_(view)
    return GradientSet(shapes, params, memory, flat, views, norm64(flat))


def norm64(flat: Tensor) -> float:
    """Return the 2-norm, in float64 throughout, without a copy of all values."""
    return math.sqrt(math.fsum(float(c.double().square_().sum()) for c in flat.split(_CHUNK)))


def worst(got: Tensor, first: Tensor, factor: float) -> float:
    """Return the largest relative error of values whose right value is first · factor."""
    if factor == 1 and torch.equal(got, first):  # Fast; and NaN is not equal to itself.
        return 0.0
    largest = 0.0
    for mine, was in zip(got.flatten().split(_CHUNK), first.flatten().split(_CHUNK), strict=True):
        want = was.double() * factor
        off = (mine.double() - want).abs_() / want.abs().clamp_(min=torch.finfo(want.dtype).tiny)
        here = float(off.max())
        if not here <= largest:  # Written so that a NaN counts: each comparison with it is false.
            largest = here
        if math.isnan(largest):
            break
    return largest
