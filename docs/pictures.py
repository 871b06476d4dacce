"""Draw each method at work on the same gradients, into docs/images/methods: `make docs-methods`.

The NumPy backend clips 240 gradients of three tensors. Their norms begin large, drift, have two
spikes and vanish at the end. One picture shows the norm before clipping, the norm after it, and the
limit if this is one of the norm of the whole gradient. All pictures have the same scale.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gradclip.numpy
from gradclip import Chain, Policy
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.policy import AnyPolicy

FOLDER = Path(__file__).parent / "images" / "methods"
STEPS = 240
ALL_SPIKE, ONE_SPIKE = 110, 170
"""The steps of the spike in all tensors, and of the spike in a single value."""
LOW, HIGH = 0.02, 500.0
"""The ends of the axis of norms."""
WIDTH, HEIGHT = 240, 110
TENTHS = 10
"""The lines are drawn on a grid of a tenth of a unit, so that all numbers are whole."""

STYLE = """\
text{font:8px sans-serif;fill:#57606a}
path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:#d0d7de;stroke-width:.6}
.before{stroke:#9aa4af;stroke-width:3}
.after{stroke:#0969da;stroke-width:1.5}
.limit{stroke:#bc4c00;stroke-width:1.3;stroke-dasharray:4 2}
.skip{stroke:#cf222e;stroke-width:1.5}
@media(prefers-color-scheme:dark){
text{fill:#adb5bd}.grid{stroke:#3d444d}.before{stroke:#6e7781}.after{stroke:#6cb6ff}
.limit{stroke:#f0883e}.skip{stroke:#ff7b72}}"""


@dataclass(frozen=True)
class Lines:
    """What a method did; NaN where there is nothing to draw.

    Attributes:
        before: the norm of each gradient.
        after: the norm of what is left of it; NaN at a skipped step.
        limit: the limit of the norm of the whole gradient.
    """

    before: list[float]
    after: list[float]
    limit: list[float]


def stream() -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Return the weights of three tensors, and their gradients at each step."""
    rng = np.random.default_rng(20)
    shapes = ((6, 4), (4, 6), (8,))
    weights = [rng.normal(size=shape) for shape in shapes]
    usual = [rng.normal(size=shape) for shape in shapes]
    steps = []
    for step in range(STEPS):
        grads = [mean + 0.7 * rng.normal(size=mean.shape) for mean in usual]
        size = math.sqrt(sum(float(np.sum(grad * grad)) for grad in grads))
        scale = _norm(step) * math.exp(0.18 * float(rng.normal())) / size
        grads = [grad * scale for grad in grads]
        if step == ONE_SPIKE:
            grads[1][2, 3] = 60.0
        steps.append(grads)
    return weights, steps


def _norm(step: int) -> float:
    """Return the norm at a step, without noise: a start, a drift, a spike, an end."""
    if step == ALL_SPIKE:
        return 220.0
    start = 9.0 * math.exp(-step / 8)
    drift = 0.7 * math.exp(math.sin(step / 38))
    return (start + drift) * math.exp(-max(0, step - 195) / 12)


def run(policy: AnyPolicy) -> Lines:
    """Clip the stream by a policy."""
    weights, steps = stream()
    state, before, after, limits = None, [], [], []
    shown = _limits_the_whole(policy)
    for grads in steps:
        _, state, result = gradclip.numpy.clip(grads, policy, state, weights=weights)
        before.append(float(result.total_norm))
        after.append(math.nan if result.skipped else float(result.clipped_norm))
        limits.append(float(result.limit) if shown else math.nan)
    return Lines(before, after, limits)


def _limits_the_whole(policy: AnyPolicy) -> bool:
    """Return whether the limit is one of the norm that the picture shows."""
    first = policy.policies[0] if isinstance(policy, Chain) else policy
    return isinstance(first, Policy) and first.measure.scope == "global"


def picture(name: str, lines: Lines) -> str:
    """Return the picture as SVG."""
    limited = any(map(math.isfinite, lines.limit))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 30} {HEIGHT + 22}">',
        f"<title>{name}: the norm before and after clipping, over {STEPS} steps</title>",
        f"<style>{STYLE}</style>",
        *_axis(),
        f'<g transform="translate(26 6) scale(1 {1 / TENTHS})">',
        f'<path class="before" d="{_path(lines.before)}"/>',
        f'<path class="after" d="{_path(lines.after)}"/>',
    ]
    if limited:
        parts.append(f'<path class="limit" d="{_path(lines.limit)}"/>')
    parts += [*_crosses(lines), "</g>", *_legend(limited, any(map(math.isnan, lines.after)))]
    return "\n".join([*parts, "</svg>", ""])


def _axis() -> list[str]:
    found = []
    for norm in (0.1, 1, 10, 100):
        y = 6 + _y(norm) / TENTHS
        found += [
            f'<path class="grid" d="M26 {y:g}h{WIDTH}"/>',
            f'<text x="23" y="{y + 2.5:g}" text-anchor="end">{norm}</text>',
        ]
    return found


def _legend(limited: bool, skips: bool) -> list[str]:
    words = {"before": "before", "after": "after"}
    words |= {"limit": "limit"} if limited else {}
    words |= {"skip": "skipped"} if skips else {}
    found, y = [], HEIGHT + 17
    for place, (kind, word) in enumerate(words.items()):
        x = 26 + 58 * place
        mark = f"M{x + 4} {y - 6}l6 6m0-6l-6 6" if kind == "skip" else f"M{x} {y - 3}h14"
        found += [f'<path class="{kind}" d="{mark}"/>', f'<text x="{x + 18}" y="{y}">{word}</text>']
    return found


def _crosses(lines: Lines) -> list[str]:
    """Return a cross at the norm of each skipped step."""
    at = [step for step, after in enumerate(lines.after) if math.isnan(after)]
    marks = [f"M{step - 3} {_y(lines.before[step]) - 30}l6 60m0-60l-6 60" for step in at]
    return [f'<path class="skip" d="{"".join(marks)}"/>'] if marks else []


def _path(values: list[float]) -> str:
    """Return a line through the values, one unit to the right at each step; NaN is a gap.

    A value between two gaps is a short line across its step.
    """
    found = ""
    ys = [None, *(_y(value) if math.isfinite(value) else None for value in values), None]
    for step, (last, y, following) in enumerate(zip(ys, ys[1:], ys[2:], strict=False)):
        if y is None:
            continue
        if last is not None:
            found += f"l1 {y - last}"
        elif following is not None:
            found += f"M{step} {y}"
        else:
            found += f"M{step - 5} {y}l10 0"
    return found.replace(" -", "-")


def _y(norm: float) -> int:
    """Return the place of a norm from the top, in tenths."""
    share = math.log(HIGH / min(max(norm, LOW), HIGH)) / math.log(HIGH / LOW)
    return round(share * HEIGHT * TENTHS)


def pictures() -> dict[str, str]:
    """Return the picture of each method, by the name of its file."""
    rows = CATALOGUE.values()
    return {f"{row.name}.svg": picture(row.example, run(row.policy)) for row in rows}


def main(folder: Path = FOLDER) -> None:
    """Write all pictures, and remove those of methods that are no longer there."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures()
    for old in folder.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, text in drawn.items():
        (folder / name).write_text(text)
    sizes = [len(text.encode()) for text in drawn.values()]
    sys.stdout.write(f"{len(drawn)} pictures, {sum(sizes)} bytes, the largest {max(sizes)}\n")


if __name__ == "__main__":
    main()
