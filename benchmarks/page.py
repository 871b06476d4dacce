"""The page of the docs about the stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .row import OWN, QUIET, Row
from .table import markdown

__all__ = ["page"]


def page(found: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown page of the stored results, of one processor after the other."""
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "`python -m benchmarks --markdown` writes this page from the last full runs of",
            "`make bench`, one for each processor on which it ran.",
            "",
            "Both sides of a row ran in one process and took turns, in random order. A time is",
            "the median of all rounds. A ratio is the median of the rounds' ratios, with the 95 %",
            "range from resampling the rounds. The rival is the fastest of its kind. After the",
            "timing, the results of each side were compared with float64. Sets that are marked",
            "warm fit in the processor's cache and stay there from round to round. The gradients",
            "are views of one buffer, as DDP makes them, and `torch.sum, flat` reads this buffer.",
            "Two buffers of one size can differ by half in the speed at which a virtual machine",
            "reads them.",
            "",
            *LIMITS,
            "",
            '"close" means that the limit lies inside the interval; "load" stands where other',
            f"processes used the machine: more than {QUIET + OWN:g} threads were ready to run in",
            f"the minute before the case, in which the case before had {OWN:g}.",
            "",
            *(line for results in found for line in _processor(results)),
        ]
    )


LIMITS = (
    "The limits follow from the bytes that must move. A norm reads every byte once. A clip also",
    "reads and writes every byte once more, three moves in all, when the norm is over the limit.",
    "torch's function multiplies always, so it moves three times the bytes. Where the memory sets",
    "the pace, a call that does not clip can thus be three times faster than torch's, and a call",
    "that clips can only be as fast. `bare C loop` is this limit, measured on the same threads and",
    "the same buffer: one read, or one read and then one read and write. The row says so where no",
    "C compiler could build the loop.",
)


def _processor(results: dict[str, Any]) -> list[str]:
    """Return the section of one processor."""
    machine, rows = results["machine"], [Row.from_dict(data) for data in results["rows"]]
    targets = [row for row in rows if row.limit is not None]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    failed = [f"- {name}: {reason}" for name, reason in results["failed"].items()]
    return [
        f"## {machine['processor']}",
        "",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {caches}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {machine['system']}; "
        f"load {machine['load']} before the run.",
        f"- Versions: Python {machine['python']}, {versions}; commit {machine['commit'][:10]}"
        f"{' with uncommitted changes' if machine['uncommitted'] else ''}.",
        f"- Threads: {machine['torch_threads']}; the C kernel: {machine['kernel']['isa']}.",
        "",
        f"{sum(bool(row.met) for row in targets)} of {len(targets)} targets are met.",
        "",
        markdown(rows),
        *(["Cases that failed:", "", *failed, ""] if failed else []),
    ]
