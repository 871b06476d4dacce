"""The gradients of all samples of a convolution's weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine.samples import Squares
from .forms import Outer, prefers_rows
from .parts import alive, parts_of, scaled, summing

__all__ = ["Conv", "Convolution"]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Convolution:
    """The gradients of a convolution's weight: outer products over the positions of the output.

    The patches that the positions see are made for a part of the batch, and only for the norms.

    Attributes:
        module: gives the shape, the stride, the dilation and the padding.
        x: the input, shape (B, channels, …).
        g: the gradient of the output, shape (B, channels, …).
    """

    module: Conv
    x: Tensor
    g: Tensor

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return len(self.x)

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self.module.weight.shape

    @property
    def count(self) -> int:
        """How many positions the output has."""
        return math.prod(self.g.shape[2:])

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        module, shape = self.module, self.shape
        values = module.groups * self.count * math.prod(shape[1:]) + self.g[:1].numel()
        return values + min(shape.numel(), 2 * module.groups * self.count**2)

    @property
    def prefers_rows(self) -> bool:
        """Whether the gradients take fewer products than their norms without them."""
        outs, ins = self.shape[0] // self.module.groups, math.prod(self.shape[1:])
        return prefers_rows(self.count, outs, ins)

    @property
    def size(self) -> Tensor:
        """Σ ‖output's gradient‖·‖patch‖ of each sample."""
        return self.part(slice(None)).size

    def part(self, part: slice) -> Outer:
        """Return some of the samples, in float64."""
        left = self.g[part].double()
        groups = self.module.groups
        left = left.reshape(len(left), groups, self.shape[0] // groups, self.count)
        return Outer(left, _patches(self.module, self.x[part]), self.shape)

    def squares(self) -> Squares:
        """Return the squared norms."""
        return self.part(slice(None)).squares()

    def rows(self) -> Tensor:
        """Return the gradients, written out."""
        return self.part(slice(None)).rows()

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], by torch's own derivative."""
        module, dtype = self.module, summing(self.x, self.g)
        shape = self.module.weight.detach().to(dtype)
        total = torch.zeros_like(shape)
        for part in parts_of(self.batch, self.x[:1].numel() + self.g[:1].numel()):
            total += torch.ops.aten.convolution_backward(
                scaled(self.g[part], weights[part], dtype),
                _padded(module, alive(self.x[part], weights[part])).to(dtype),
                shape,
                None,
                module.stride,
                [0] * len(module.kernel_size),
                module.dilation,
                False,
                [0] * len(module.kernel_size),
                module.groups,
                [False, True, False],
            )[1]
        return total


def _padded(module: Conv, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _patches(module: Conv, x: Tensor) -> Tensor:
    """Return what each output position sees, in float64: (B, groups, values, positions)."""
    batch, axes = x.shape[0], len(module.kernel_size)
    patches = _padded(module, x)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(sizes):
        patches = patches.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # From (batch, channels, positions, offsets) to one row of positions for a channel's offset.
    order = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    patches = patches.permute(order)
    filled = torch.empty(patches.shape, dtype=torch.float64, device=x.device).copy_(patches)
    width = module.in_channels // module.groups * math.prod(module.kernel_size)
    return filled.reshape(batch, module.groups, width, math.prod(patches.shape[2 + axes :]))
