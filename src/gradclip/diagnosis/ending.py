"""Say how a run ended that did not end well, and that a run made no steps."""

from __future__ import annotations

from ..record.run import Run
from .finding import Finding
from .links import PAGES, online

__all__ = ["find_ending"]

_INTERRUPTS = ("KeyboardInterrupt", "killed by SIGINT")
_STOPS = ("killed by SIGTERM", "killed by SIGHUP", "killed by SIGUSR1", "killed by SIGUSR2")


def find_ending(run: Run) -> list[Finding]:
    """Return a finding if the run ended with an error or a signal, or ended without steps.

    A run without an end row may still run: it has no finding, unless its steps tell one.
    """
    if run.end is None:
        return []
    last = max(run.steps.tolist(), default=None)
    status = run.end.status
    found = [] if status == "ok" else [_of_end(status.removeprefix("error: "), last)]
    if status == "ok" and last is None:
        found.append(
            Finding(
                "no-steps",
                "error",
                None,
                "The run ended without an optimizer step in its record, so there is nothing to "
                "judge.",
                "Check that the script trains in this process and with a torch optimizer; "
                "`gradclip run` says at its end what it saw. For other frameworks see "
                f"{online(PAGES['no-steps'])}.",
                {"status": status},
            )
        )
    return found


def _of_end(error: str, last: int | None) -> Finding:
    name = error.partition(":")[0].strip()
    after = (
        "before its first optimizer step, so there is nothing to judge"
        if last is None
        else f"after step {last:,}"
    )
    if name in _INTERRUPTS:
        return Finding(
            "ended-early",
            "note",
            last,
            f"The run was interrupted by hand {after}.",
            "Nothing in the training ended this run."
            if last is not None
            else "Record a longer run.",
            {"status": error},
        )
    if name.startswith("killed by"):
        stopped = name in _STOPS
        return Finding(
            "ended-early",
            "warning" if stopped else "error",
            last,
            f"The run was {name} {after}.",
            "Something outside stopped the run, such as a time limit of the cluster; the gradients "
            "did not."
            if stopped
            else "The process died: check its memory and its own output.",
            {"status": error},
        )
    return Finding(
        "ended-early",
        "error",
        last,
        f"The script ended with {error.strip().rstrip('.')} {after}.",
        "Correct this error first. The other findings may say whether "
        "the training went wrong before it.",
        {"status": error},
    )
