"""Other policies against the plain global norm: only their own host work may differ."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gradclip
import gradclip.torch
from gradclip import by_name, by_norm
from gradclip.torch import Clipper

from .gradients import GradientSet, WrongOutput, make, norm64, worst
from .measure import Side, alternate, timed
from .row import Case, Effort, Row, at_least, at_most
from .shapes import SETS

__all__ = ["CASES"]

FIXED = "by_norm"
FAR = 10.0
STATEFUL: dict[str, tuple[Callable[[], Any], int]] = {
    # With the number of norms that fill the memory: the cost of a percentile depends on it.
    "autoclip, window 10,000": (gradclip.autoclip, 10_000),
    "quantile, window 100": (gradclip.quantile, 100),
    "zclip": (gradclip.zclip, 200),
    "moving_average": (gradclip.moving_average, 200),
    "mean_std": (gradclip.mean_std, 200),
}


def _stateful(key: str, effort: Effort) -> list[Row]:
    """Measure policies with a full memory, whose limit is over the norm of the gradients."""
    shapes = SETS[key]()
    grads = make(shapes)
    clippers = {FIXED: Clipper(grads.named, by_norm(FAR))}
    for name, (policy, filled) in STATEFUL.items():
        clippers[name] = _remembering(grads, policy(), filled)
    sides = [Side(n, timed(c.clip_, check=_expect(False))) for n, c in clippers.items()]
    times = alternate(sides, effort.budget(8.0))
    for clipper in clippers.values():
        assert clipper.last is not None
        error = abs(float(clipper.last.total_norm) - grads.norm) / grads.norm
        if not error <= 1e-6:
            raise WrongOutput(f"{clipper.policy!r}: the norm is {error:.1e} off")
    title = f"{shapes.title}, not clipped"
    return [at_most(1.1, title, times, name, FIXED) for name in STATEFUL]


def _remembering(grads: GradientSet, policy: Any, steps: int) -> Clipper:
    """Return a clipper that has seen this number of norms, each over the gradients' present norm.

    A tiny parameter makes them: as many passes over the real parameters would take minutes.
    """
    small = torch.nn.Parameter(torch.zeros(1))
    teacher = Clipper([("weight", small)], policy)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        small.grad = 4 * grads.norm * (1 + torch.rand(1, generator=generator))
        teacher.clip_()
    clipper = Clipper(grads.named, policy)
    clipper.load_state_dict(teacher.state_dict() | {"names": list(clipper.names)})
    return clipper


def _grouped(key: str, clipped: bool, effort: Effort) -> list[Row]:
    """Measure one norm for each tensor, and for each of two groups, against one norm for all."""
    shapes = SETS[key]()
    grads = make(shapes, spread=False)
    # Every tensor has a norm of about 1. Doubled before each call, all are over the limit.
    slack = 1.0 if clipped else 2 * FAR
    middle = shapes.tensors // 2
    first, second = grads.named[:middle], grads.named[middle:]
    named = [*((f"first.{n}", p) for n, p in first), *((f"second.{n}", p) for n, p in second)]
    roots = [slack * len(group) ** 0.5 for group in (grads.named, first, second)]
    policies = {
        FIXED: by_norm(roots[0]),
        "by_norm(scope='tensor')": by_norm(slack, scope="tensor"),
        "by_name, two groups": by_name(
            {"first.*": by_norm(roots[1]), "second.*": by_norm(roots[2])}
        ),
    }
    prepare = grads.double if clipped else None
    clippers = {name: Clipper(named, policy) for name, policy in policies.items()}
    sides = [
        Side(name, timed(clipper.clip_, prepare=prepare, check=_expect(clipped)))
        for name, clipper in clippers.items()
    ]
    times = alternate(sides, effort.budget())
    groups = {
        FIXED: [range(shapes.tensors)],
        "by_norm(scope='tensor')": [range(i, i + 1) for i in range(shapes.tensors)],
        "by_name, two groups": [range(middle), range(middle, shapes.tensors)],
    }
    for name, clipper in clippers.items():
        _verify_groups(grads, clipper, groups[name], slack)
    title = f"{shapes.title}, {'clipped' if clipped else 'not clipped'}"
    return [at_most(1.15, title, times, name, FIXED) for name in policies if name != FIXED]


def _verify_groups(grads: GradientSet, clipper: Clipper, groups: list[range], slack: float) -> None:
    """Clip the doubled first values, and compare each group with float64."""
    grads.restore()
    grads.double()
    clipper.clip_()
    for group in groups:
        parts = [norm64(grads.views[i].flatten()) for i in group]
        norm = 2 * sum(part**2 for part in parts) ** 0.5
        factor = 2 * min(1.0, slack * len(group) ** 0.5 / norm)
        for i in group:
            off = worst(grads.grads[i], grads.views[i], factor)
            if not off <= 1e-6:
                raise WrongOutput(f"{clipper.policy!r}: {clipper.names[i]} is {off:.1e} off")


def _agc(clipped: bool, effort: Effort) -> list[Row]:
    """Measure clipping by unit, on weights of the size that an initialisation gives."""
    shapes = SETS["resnet50"]()
    theirs = _adaptive_clip_grad()
    grads = make(shapes, spread=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in grads.params:
            fan_in = max(1, param.numel() // param.shape[0]) if param.ndim > 1 else 1
            param.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
    # A factor at which nearly all units are clipped, or a factor at which no unit is.
    factor = 1e-3 if clipped else 1e3
    clipper = Clipper(grads.named, gradclip.agc(factor, eps=1e-3))
    calls = {
        "gradclip Clipper(agc)": clipper.clip_,
        "timm adaptive_clip_grad": functools.partial(theirs, grads.params, factor, eps=1e-3),
    }
    ours, rival = calls
    checks = {ours: _expect(clipped), rival: None}
    sides = [
        Side(name, timed(call, prepare=grads.restore, check=checks[name]))
        for name, call in calls.items()
    ]
    times = alternate(sides, effort.budget())
    outputs = []
    for call in calls.values():
        grads.restore()
        call()
        outputs.append([grad.clone() for grad in grads.grads])
    for name, mine, other, first, param in zip(
        clipper.names, *outputs, grads.views, grads.params, strict=True
    ):
        want = _agc64(first.double(), param.detach().double(), factor)
        for whose, got in zip(calls, (mine, other), strict=True):
            torch.testing.assert_close(
                got.double(), want, rtol=1e-5, atol=1e-12, msg=f"{whose}: {name}"
            )
    title = f"{shapes.title}, {'clipped' if clipped else 'not clipped'}"
    return [at_least(4.0, title, times, ours, rival)]


def _agc64(grad: torch.Tensor, weight: torch.Tensor, factor: float) -> torch.Tensor:
    """Return Brock et al.'s formula, unit by unit, in the dtype of the input."""
    axes = tuple(range(1, grad.ndim)) or (0,)
    size = torch.linalg.vector_norm(grad, dim=axes, keepdim=True)
    limit = factor * torch.linalg.vector_norm(weight, dim=axes, keepdim=True).clamp(min=1e-3)
    return torch.where(size > limit, grad * (limit / size), grad)


def _adaptive_clip_grad() -> Callable[..., None]:
    """Return timm's function from its own file: to import the package needs torchvision."""
    package = importlib.util.find_spec("timm")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("timm is not installed: pip install --no-deps timm")
    file = Path(package.submodule_search_locations[0]) / "utils" / "agc.py"
    spec = importlib.util.spec_from_file_location("timm_agc", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.adaptive_clip_grad


def _expect(wanted: bool) -> Callable[[Any], None]:
    """Return a check that a result is clipped, or that it is not."""

    def check(result: Any) -> None:
        if bool(result.clipped) is not wanted:
            raise WrongOutput(f"limit {float(result.limit):g}: clipped should be {wanted}")

    return check


def _cases() -> Iterator[Case]:
    for key in ("gpt2", "resnet50"):
        yield Case(f"stateful-{key}", functools.partial(_stateful, key), slow=key == "gpt2")
    for key, clipped in itertools.product(("gpt2", "resnet50"), (False, True)):
        name = f"groups-{key}-{'clipped' if clipped else 'free'}"
        yield Case(name, functools.partial(_grouped, key, clipped), slow=key == "gpt2")
    for clipped in (True, False):
        name = f"agc-{'clipped' if clipped else 'free'}"
        yield Case(name, functools.partial(_agc, clipped), slow=not clipped)


CASES = tuple(_cases())
