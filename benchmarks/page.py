"""The page of the docs about a stored run."""

from __future__ import annotations

from typing import Any

from .row import QUIET, Row
from .table import markdown

__all__ = ["page"]


def page(results: dict[str, Any]) -> str:
    """Return the Markdown page of a run's stored results."""
    machine, rows = results["machine"], [Row.from_dict(data) for data in results["rows"]]
    targets = [row for row in rows if row.limit is not None]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    failed = [f"- {name}: {reason}" for name, reason in results["failed"].items()]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "`python -m benchmarks --markdown` writes this page from the last full run of",
            "`make bench`.",
            "",
            f"- Machine: {machine['processor']}, {machine['cores']} cores, {caches}, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB; {machine['system']}; "
            f"load {machine['load']} before the run.",
            f"- Versions: Python {machine['python']}, {versions}; commit {machine['commit'][:10]}"
            f"{' with uncommitted changes' if machine['uncommitted'] else ''}.",
            f"- Threads: {machine['torch_threads']}; the C kernel: {machine['kernel']['isa']}.",
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
            f"{sum(bool(row.met) for row in targets)} of {len(targets)} targets are met.",
            '"close" means that the limit lies inside the interval; "load" stands where other',
            f"processes used the machine: more than {QUIET} were ready to run before the case.",
            "",
            markdown(rows),
            *(["Cases that failed:", "", *failed, ""] if failed else []),
        ]
    )
