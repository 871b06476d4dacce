"""Find gradients that vanish towards the input, and layers whose gradient is zero."""

from __future__ import annotations

import numpy as np

from ..record.trace import Trace
from ..show.words import counted
from .depth import MONOTONE, OFTEN, STEEP, profiles
from .finding import Finding
from .links import NORMALISATION, online
from .spikes import began_at
from .window import median

__all__ = ["find_dead_layers", "find_vanished", "find_vanishing"]

DEAD_STEPS = 5
"""A layer is dead if its gradient is exactly zero in this many last steps."""

GONE = 1e-6
"""A norm under this share of the first norm has vanished, unless the loss fell too."""

LEARNED = 0.1
"""A fall of the loss by this share of the first loss explains a small gradient."""

TAIL = 20
"""The number of last steps that stand for the end of a run."""


def find_vanishing(trace: Trace) -> list[Finding]:
    """Return a finding if norms fall geometrically towards the input."""
    every = profiles(trace)
    steep = [p for p in every if p.trend >= MONOTONE and p.ratio >= STEEP]
    if not steep or (every[-1] is not steep[-1] and len(steep) < OFTEN * len(every)):
        return []
    lasts = every[-1] is steep[-1]
    worst = max(steep, key=lambda profile: profile.ratio)
    until = "" if lasts else ", but no longer at the end"
    return [
        Finding(
            "vanishing",
            "warning" if lasts else "note",
            steep[0].step,
            f"The gradient vanishes towards the input: its norm changes by a factor of about "
            f"{worst.per_layer:.2g} a layer over {len(worst.names)} layers, so that the norm of "
            f"the first layers is {1 / worst.ratio:.1g} of the norm of the last layers{until}.",
            "Clipping cannot help here. Use activations that do not saturate (ReLU, GELU), a "
            f"matching initialisation, residual connections, or normalisation "
            f"({online(NORMALISATION)}).",
            {
                "ratio": worst.ratio,
                "per_layer": worst.per_layer,
                "trend": worst.trend,
                "stretches": len(steep),
                "of": len(every),
                "profile": [[n, float(v)] for n, v in zip(worst.names, worst.norms, strict=True)],
            },
            trace.optimizer,
        )
    ]


def find_dead_layers(trace: Trace) -> list[Finding]:
    """Return a finding if parameters get a gradient of exactly zero until the end."""
    steps, names, matrix = trace.norms
    dead: list[tuple[int, str]] = []
    for index, name in enumerate(names):
        known = np.flatnonzero(~np.isnan(matrix[:, index]))
        alive = np.flatnonzero(matrix[known, index] != 0)
        since = int(alive[-1]) + 1 if len(alive) else 0
        if len(known) - since >= DEAD_STEPS:
            dead.append((int(steps[known[since]]), name))
    if not dead:
        return []
    first = min(step for step, _ in dead)
    some = ", ".join(name for _, name in dead[:3])
    more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    verb = "gets" if len(dead) == 1 else "get"
    return [
        Finding(
            "dead-layers",
            "warning",
            first,
            f"{len(dead)} of {counted(len(names), 'parameter')} {verb} a gradient of "
            f"exactly zero, from step {first:,} to the end: {some}{more}.",
            "These parameters do not learn. Their units are off for every input, their output "
            "does not reach the loss, or their gradient underflowed. A smaller learning rate, "
            f"another activation, or normalisation ({online(NORMALISATION)}) keeps units alive.",
            {
                "dead": [name for _, name in dead],
                "since": [step for step, _ in dead],
                "parameters": len(names),
            },
            trace.optimizer,
        )
    ]


def find_vanished(trace: Trace) -> list[Finding]:
    """Return a finding if the whole gradient vanished while the loss did not fall."""
    norm = trace.column("norm")
    norm = norm[np.isfinite(norm)]
    if len(norm) < 2 * TAIL:
        return []
    start, end = float(norm[0]), median(norm[-TAIL:])
    if not end < GONE * start:
        return []
    loss = trace.column("loss")
    began, ended = began_at(loss), median(loss[-TAIL:])
    if ended < began - LEARNED * abs(began):
        return []
    low = np.flatnonzero(trace.column("norm") < GONE * start)
    return [
        Finding(
            "vanishing",
            "error",
            int(trace.steps[low[0]]),
            f"The whole gradient vanished: its norm fell from {start:.3g} to {end:.3g} but the "
            "loss did not fall.",
            "The model is saturated, often after a step that was too large: use a smaller "
            "learning rate, clip from the first step on, and check the initialisation.",
            {"start": start, "end": end, "loss_start": began, "loss_end": ended},
            trace.optimizer,
        )
    ]
