"""What `attach` does with the optimizers of torch, timm and schedulefree: the table of the docs.

cd tests && python -m frameworks.others.optimizers      prints the table.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from gradclip import PolicyError
from gradclip.torch import attach, clip_grad_norm_
from integration.torch.step.test_left_out import Torchvision, factories, parameters

__all__ = ["PACKAGES", "Row", "rows", "table"]

PACKAGES = {"torch.optim": "torch", "timm.optim": "timm", "schedulefree": "schedulefree"}
LIMIT, LARGEST = 0.5, 1e-4
STEPS = 8  # Lookahead looks back after 6, and RAdamScheduleFree moves nothing before.


@dataclass(frozen=True)
class Row:
    """One optimizer, and what two ways of attaching do."""

    package: str
    name: str
    gradient: str
    update: str


def _others() -> Iterator[tuple[str, str, Any]]:
    """Return the optimizers that want more than parameters."""
    timm = import_module("timm.optim")
    yield "timm.optim", "Lookahead", lambda p: timm.Lookahead(torch.optim.SGD(p, lr=0.1))
    yield "timm.optim", "SGDP", lambda p: timm.SGDP(p, lr=0.1)
    wrapper = import_module("schedulefree").ScheduleFreeWrapper
    yield "schedulefree", "ScheduleFreeWrapper", lambda p: wrapper(torch.optim.SGD(p, lr=0.1))


def _each() -> Iterator[tuple[str, str, Any]]:
    special = list(_others())
    names = {name for _, name, _ in special}
    for package in PACKAGES:
        for name, make in factories(package):
            if name not in names and not name.endswith("Reference"):
                yield package, name, make
        yield from (each for each in special if each[0] == package)


def _gradients(params: list[nn.Parameter], step: int, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        grad = torch.randn(p.shape, generator=generator)
        p.grad = grad.to_sparse(1) if sparse else grad


def _trained(make: Any, *, by: str, sparse: bool) -> tuple[list[Tensor], float]:
    """Train a few steps; return the weights and the largest change in a step.

    Args:
        make: makes an optimizer of parameters.
        by: "attach", "update", or "hand" for a call before each step.
        sparse: whether the gradients are.
    """
    torch.manual_seed(0)
    params, largest = parameters(), 0.0
    optimizer = make(params)
    getattr(optimizer, "train", lambda: None)()
    if by == "attach":
        attach(optimizer, f"norm:{LIMIT}")
    if by == "update":
        attach(optimizer, f"norm:{LARGEST}", on="update")
    for step in range(STEPS):
        torch.manual_seed(step)
        before = [p.detach().clone() for p in params]

        def closure(step: int = step) -> Tensor:
            _gradients(params, step, sparse)
            if by == "hand":
                clip_grad_norm_(params, LIMIT)
            return torch.tensor(1.0)

        closure()
        try:
            optimizer.step()
        except TypeError:  # It wants a closure.
            optimizer.step(closure)
        changes = [(p.detach() - old).norm() for p, old in zip(params, before, strict=True)]
        largest = max(largest, float(torch.stack(changes).norm()))
    return [p.detach() for p in params], largest


def _tried(make: Any, by: str) -> str:
    """Return what one way of attaching does, in a few words."""
    for sparse in (False, True):
        try:
            wanted, usual = _trained(make, by="hand", sparse=sparse)
            break
        except Exception as error:  # Anybody's code, which may want a model or other arguments.
            problem = str(error).splitlines()[0]
    else:
        return f"not tried: {problem}"
    try:
        found, largest = _trained(make, by=by, sparse=sparse)
    except PolicyError as error:
        return f"refused: {str(error).partition(' is not usable: ')[2]}"
    if by == "update":  # A weight near 1 is rounded to 6e-8.
        assert usual > 2 * LARGEST, "there is nothing to clip"
        return "works" if 0 < largest <= LARGEST * 1.01 else f"moved {largest:.3g}"
    same = all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, wanted, strict=True)
    )
    return "works" if same else "differs"


def rows() -> list[Row]:
    """Try every optimizer."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.meta_path.append(Torchvision())
        for package, name, make in _each():
            found.append(Row(package, name, _tried(make, "attach"), _tried(make, "update")))
    return found


def table(found: list[Row]) -> str:
    """Return the table of the docs: optimizers of one package and one outcome share a line."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in found:
        groups.setdefault((row.package, row.gradient, row.update), []).append(row.name)
    lines = ['| package | optimizers | `attach` | `on="update"` |', "| --- | --- | --- | --- |"]
    for (package, gradient, update), names in groups.items():
        lines.append(f"| {PACKAGES[package]} | {', '.join(names)} | {gradient} | {update} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(rows()))
