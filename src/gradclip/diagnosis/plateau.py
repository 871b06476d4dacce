"""Find a loss that stopped falling."""

from __future__ import annotations

import numpy as np

from ..record.trace import Trace
from .finding import Finding
from .ruin import ruin_of
from .spikes import began_at
from .window import SIGMA

__all__ = ["find_plateau"]

MIN_LOSSES = 100
"""The smallest number of losses for the rule."""

BLOCKS = 20
"""The number of stretches whose medians the rule compares."""

STILL = 0.4
"""The share of the run without progress, at its end, that makes a plateau."""

PROGRESS = 0.02
"""The share of the whole fall that counts as progress."""

NOISE = 3.0
"""A fall under this many standard errors of a stretch's median is noise. The number is large
because the rule makes nineteen comparisons."""


LEARNT = 0.2
"""A loss that fell to under this share of its first level has converged: this is not a plateau."""


def find_plateau(trace: Trace) -> list[Finding]:
    """Return a finding if the loss made no progress over the last part of the run.

    It is a note, also if the loss stood still from the start: so does the loss of a model that was
    trained before, of batches of one sample, of a game (GAN) or of reinforcement learning.
    """
    if ruin_of(trace) is not None:  # The run was lost, which is more than a plateau.
        return []
    seen = trace.seen("loss") & np.isfinite(trace.column("loss"))
    loss, steps = trace.column("loss")[seen], trace.steps[seen]
    if len(loss) < MIN_LOSSES:
        return []
    blocks = np.array_split(np.arange(len(loss)), BLOCKS)
    level = np.array([np.median(loss[block]) for block in blocks])
    spread = [np.median(np.abs(loss[b] - m)) for b, m in zip(blocks, level, strict=True)]
    noise = NOISE * SIGMA * float(np.median(spread)) * 1.25 / np.sqrt(len(loss) / BLOCKS)
    fall = float(level[0] - level.min())
    enough = max(PROGRESS * fall, noise)
    last = 0
    for block in range(1, BLOCKS):
        if level[block] < level[last] - enough:
            last = block
    still = 1 - (last + 1) / BLOCKS
    if still < STILL:
        return []
    if 0 < level[last] < LEARNT * max(float(level[0]), began_at(loss)):
        return []
    never = last == 0
    step = int(steps[blocks[last][0] if never else blocks[last][-1]])
    sentence = (
        f"The loss has not fallen since the start: {level[0]:.4g} then, {level[-1]:.4g} now."
        if never
        else f"The loss made no progress after step {step:,}: {level[last]:.4g} there, "
        f"{level[-1]:.4g} at the end."
    )
    return [
        Finding(
            "plateau",
            "note",
            step,
            sentence,
            "The loss of a game (GAN), of reinforcement learning or of a model that is trained "
            "already need not fall. For any other loss, check whether gradients vanish or clipping "
            "removes them; else change the learning rate."
            if never
            else "The run may have converged; if not, lower the learning rate.",
            {
                "level": float(level[last]),
                "end": float(level[-1]),
                "share_of_run": still,
                "noise": noise,
            },
            trace.optimizer,
        )
    ]
