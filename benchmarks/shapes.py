"""The shapes of real models' gradients, as data. `count` and `tensors` are checked by a test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["SETS", "ShapeSet", "many", "one"]

Shape = tuple[int, ...]
Named = tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class ShapeSet:
    """The names and shapes of a model's parameters.

    Attributes:
        title: what a table calls it.
        named: a name and a shape for each tensor, in the model's own order.
        warm: whether all of it stays in the processor's cache from one round to the next.
    """

    title: str
    named: Named
    warm: bool = False

    @property
    def tensors(self) -> int:
        """The number of tensors."""
        return len(self.named)

    @property
    def count(self) -> int:
        """The number of values in all tensors."""
        return sum(math.prod(shape) for _, shape in self.named)


def one(elements: int) -> ShapeSet:
    """One vector of this number of values."""
    return ShapeSet(f"1 × {elements:,}", (("weight", (elements,)),), elements < 1_000_000)


def many(tensors: int, elements: int) -> ShapeSet:
    """This number of vectors, each with this number of values."""
    named = tuple((f"layers.{i}.weight", (elements,)) for i in range(tensors))
    return ShapeSet(f"{tensors:,} × {elements}", named, tensors * elements < 1_000_000)


def _gpt2(width: int, blocks: int) -> Named:
    """GPT-2: tied embeddings, so the output layer has no tensor of its own."""
    named: list[tuple[str, Shape]] = [
        ("wte.weight", (50_257, width)),
        ("wpe.weight", (1024, width)),
    ]
    for i in range(blocks):
        named += [
            (f"h.{i}.ln_1.weight", (width,)),
            (f"h.{i}.ln_1.bias", (width,)),
            (f"h.{i}.attn.c_attn.weight", (width, 3 * width)),
            (f"h.{i}.attn.c_attn.bias", (3 * width,)),
            (f"h.{i}.attn.c_proj.weight", (width, width)),
            (f"h.{i}.attn.c_proj.bias", (width,)),
            (f"h.{i}.ln_2.weight", (width,)),
            (f"h.{i}.ln_2.bias", (width,)),
            (f"h.{i}.mlp.c_fc.weight", (width, 4 * width)),
            (f"h.{i}.mlp.c_fc.bias", (4 * width,)),
            (f"h.{i}.mlp.c_proj.weight", (4 * width, width)),
            (f"h.{i}.mlp.c_proj.bias", (width,)),
        ]
    return (*named, ("ln_f.weight", (width,)), ("ln_f.bias", (width,)))


def _resnet50() -> Named:
    """ResNet-50 for 1,000 classes, as torchvision has it."""

    def norm(name: str, width: int) -> list[tuple[str, Shape]]:
        return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]

    named: list[tuple[str, Shape]] = [("conv1.weight", (64, 3, 7, 7)), *norm("bn1", 64)]
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            here = f"layer{stage}.{block}"
            kernels = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, (out, into, side) in enumerate(kernels, start=1):
                named += [(f"{here}.conv{i}.weight", (out, into, side, side))]
                named += norm(f"{here}.bn{i}", out)
            if block == 0:
                named += [(f"{here}.downsample.0.weight", (4 * width, inputs, 1, 1))]
                named += norm(f"{here}.downsample.1", 4 * width)
            inputs = 4 * width
    return (*named, ("fc.weight", (1000, inputs)), ("fc.bias", (1000,)))


def _vit_b16() -> Named:
    """ViT-B/16 at 224 × 224 for 1,000 classes, as timm has it."""
    width, blocks = 768, 12
    named: list[tuple[str, Shape]] = [
        ("cls_token", (1, 1, width)),
        ("pos_embed", (1, 197, width)),
        ("patch_embed.proj.weight", (width, 3, 16, 16)),
        ("patch_embed.proj.bias", (width,)),
    ]
    for i in range(blocks):
        named += [
            (f"blocks.{i}.norm1.weight", (width,)),
            (f"blocks.{i}.norm1.bias", (width,)),
            (f"blocks.{i}.attn.qkv.weight", (3 * width, width)),
            (f"blocks.{i}.attn.qkv.bias", (3 * width,)),
            (f"blocks.{i}.attn.proj.weight", (width, width)),
            (f"blocks.{i}.attn.proj.bias", (width,)),
            (f"blocks.{i}.norm2.weight", (width,)),
            (f"blocks.{i}.norm2.bias", (width,)),
            (f"blocks.{i}.mlp.fc1.weight", (4 * width, width)),
            (f"blocks.{i}.mlp.fc1.bias", (4 * width,)),
            (f"blocks.{i}.mlp.fc2.weight", (width, 4 * width)),
            (f"blocks.{i}.mlp.fc2.bias", (width,)),
        ]
    named += [("norm.weight", (width,)), ("norm.bias", (width,))]
    return (*named, ("head.weight", (1000, width)), ("head.bias", (1000,)))


def _lstm(*, tied: bool) -> Named:
    """The LSTM of PyTorch's word_language_model example: 2 layers of 650, WikiText-2's words."""
    words, width = 33_278, 650
    named: list[tuple[str, Shape]] = [("encoder.weight", (words, width))]
    for layer in range(2):
        named += [
            (f"rnn.weight_ih_l{layer}", (4 * width, width)),
            (f"rnn.weight_hh_l{layer}", (4 * width, width)),
            (f"rnn.bias_ih_l{layer}", (4 * width,)),
            (f"rnn.bias_hh_l{layer}", (4 * width,)),
        ]
    # Tied, the decoder's weight is the encoder's: one parameter, one gradient.
    named += [] if tied else [("decoder.weight", (words, width))]
    return (*named, ("decoder.bias", (words,)))


SETS: Mapping[str, Callable[[], ShapeSet]] = {
    "gpt2": lambda: ShapeSet("GPT-2-small", _gpt2(768, 12)),
    "gpt2-xl": lambda: ShapeSet("GPT-2 XL", _gpt2(1600, 48)),
    "resnet50": lambda: ShapeSet("ResNet-50", _resnet50()),
    "vit": lambda: ShapeSet("ViT-B/16", _vit_b16()),
    "lstm": lambda: ShapeSet("LSTM 2×650, tied", _lstm(tied=True)),
    "lstm-untied": lambda: ShapeSet("LSTM 2×650, untied", _lstm(tied=False)),
    "small": lambda: many(2_000, 64),
    "tiny": lambda: many(20_000, 16),
    "giant": lambda: one(1_000_000_000),
}
"""All sets; each is made on demand, because the long sets have long lists."""
