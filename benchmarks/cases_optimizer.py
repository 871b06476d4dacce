"""Clip and step with a fused AdamW: the time that clipping adds to the plain step."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_ as torch_clip

import gradclip.torch

from .gradients import GradientSet, WrongOutput, make
from .measure import Side, Times, alternate, timed
from .row import Case, Effort, Figure, Limit, Row
from .shapes import SETS

__all__ = ["CASES"]

BARE, OURS = "bare step", "attach(optimizer, 'norm:…')"
RIVALS = ("clip_grad_norm_ foreach", "clip_grad_norm_ loop")
# So small that a thousand steps do not move the weights.
RATE = 1e-7


def _optimizer(grads: GradientSet) -> torch.optim.AdamW:
    return torch.optim.AdamW(grads.params, lr=RATE, weight_decay=0.01, fused=True)


def _run(key: str, clipped: bool, effort: Effort) -> list[Row]:
    shapes = SETS[key]()
    grads = make(shapes)
    limit = grads.norm if clipped else 10 * grads.norm
    bare, attached = _optimizer(grads), _optimizer(grads)
    clipper = gradclip.torch.attach(attached, f"norm:{limit!r}")

    def clip_and_step(foreach: bool) -> torch.Tensor:
        norm = torch_clip(grads.params, limit, foreach=foreach)
        bare.step()
        return norm

    def check_norm(norm: torch.Tensor) -> None:
        _expect(bool(norm > limit), clipped)

    def check_clipper(_: Any) -> None:
        assert clipper.last is not None
        _expect(bool(clipper.last.clipped), clipped)

    prepare = grads.double if clipped else None
    sides = [
        Side(BARE, timed(bare.step, prepare=prepare)),
        Side(OURS, timed(attached.step, prepare=prepare, check=check_clipper)),
    ]
    for name, foreach in zip(RIVALS, (True, False), strict=True):
        call = functools.partial(clip_and_step, foreach)
        sides.append(Side(name, timed(call, prepare=prepare, check=check_norm)))
    if clipped:
        # The plain step does not clip: gradients that it leaves doubled must not be doubled again.
        sides[0] = Side(BARE, timed(bare.step))
    times = alternate(sides, effort.budget(8.0))
    _verify(grads, limit, clipped)
    title = f"{shapes.title}, fused AdamW, {'clipped' if clipped else 'not clipped'}"
    return [_row(times, title)]


def _row(times: Times, title: str) -> Row:
    rival = times.fastest(*RIVALS)
    if times.extra(rival, BARE) <= 0:  # A ratio to it has no meaning.
        raise RuntimeError(f"too noisy: a step with {rival} was faster than one without")
    return Row(
        f"{title}: added to the step",
        Figure(OURS, times.extra(OURS, BARE)),
        Figure(rival, times.extra(rival, BARE)),
        times.added(OURS, rival, BARE),
        "ours added ÷ rival added",
        Limit("at most", 0.5),
        times.rounds,
        f"the bare step takes {times.median(BARE) / 1e6:.1f} ms",
    )


def _verify(grads: GradientSet, limit: float, clipped: bool) -> None:
    """Take a first step from zero weights, by us and in float64, and compare the weights."""
    with torch.no_grad():
        for param in grads.params:
            param.zero_()
    grads.restore()
    if clipped:
        grads.double()
    optimizer = torch.optim.AdamW(grads.params, lr=1.0, eps=1.0, weight_decay=0.0, fused=True)
    clipper = gradclip.torch.attach(optimizer, f"norm:{limit!r}")
    optimizer.step()
    clipper.detach()
    times = 2.0 if clipped else 1.0
    factor = times * min(1.0, limit / (grads.norm * times))
    for name, param, first in zip(clipper.names, grads.params, grads.views, strict=True):
        scaled = first.double() * factor
        want = -scaled / (scaled.abs() + 1.0)  # Adam's first step: -lr · g / (|g| + eps).
        if not torch.allclose(param.detach().double(), want, rtol=1e-5, atol=1e-12):
            raise WrongOutput(f"{name}: the weights after the step are wrong")


def _expect(found: bool, wanted: bool) -> None:
    if found is not wanted:
        raise WrongOutput(f"clipped is {found}, should be {wanted}")


CASES = tuple(
    Case(
        f"adamw-{key}-{'clipped' if clipped else 'free'}",
        functools.partial(_run, key, clipped),
        slow=key == "gpt2" or not clipped,
    )
    for key in ("gpt2", "resnet50")
    for clipped in (True, False)
)
