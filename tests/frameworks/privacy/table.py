"""Prints the part of docs/parity.md about samples: `make docs-parity` adds it to the page."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from . import jax_steps, opacus_steps
from .models import CASES, UNTIED, Case

__all__ = ["HEAD", "ROWS", "TEXT"]

TEXT = """
## Clipping of each sample

This table compares `per_sample` with Opacus (`make_private` without noise) and with jax-privacy
(`clipped_grad`), in float64, with limits that clip half of the samples. Each figure is the largest
difference in the clipped gradients of a batch, relative to the largest value. Opacus divides by n +
1e-6 where gradclip divides by the norm n, so the results differ by up to 2e-6 here; the figures are
what remains when this is accounted for. Opacus refuses the transformer's tied weights in the mode
`ghost`: there the head has weights of its own. The limits of `online_quantile` are those of
Opacus's clipping `adaptive`, which keeps them in float32. `tests/frameworks/privacy` has the
bounds.
"""


def _opacus(clipping: opacus_steps.Clipping, mode: opacus_steps.Mode) -> Callable[[Case], float]:
    return lambda case: opacus_steps.difference(case, clipping, mode).rest


def _jax_privacy(ours: str) -> Callable[[Case], float]:
    return lambda case: jax_steps.difference(case, ours).grads


ROWS: dict[tuple[str, str], Callable[[Case], float]] = {
    ("gradclip.torch.per_sample", "Opacus, flat"): _opacus("flat", "hooks"),
    ("gradclip.torch.per_sample", "Opacus, per_layer"): _opacus("per_layer", "hooks"),
    ("gradclip.torch.per_sample", "Opacus, flat, ghost"): _opacus("flat", "ghost"),
    ("gradclip.torch.per_sample", "jax_privacy.clipped_grad"): _jax_privacy("torch"),
    ("gradclip.jax.per_sample", "jax_privacy.clipped_grad"): _jax_privacy("jax"),
}
HEAD = f"| gradclip | rival | {' | '.join(CASES)} |\n| --- | --- |{' --- |' * len(CASES)}"


def _line(ours: str, theirs: str, difference: Callable[[Case], float]) -> str:
    ghost = theirs.endswith("ghost")
    cases = [UNTIED if ghost and name == "transformer" else case for name, case in CASES.items()]
    figures = [f"{difference(case):.1e}" for case in cases]
    return f"| `{ours}` | `{theirs}` | {' | '.join(figures)} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Opacus and jax-privacy warn of what they call.
    print(TEXT)
    print(HEAD)
    for (ours, theirs), difference in ROWS.items():
        print(_line(ours, theirs, difference))
