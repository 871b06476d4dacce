"""Write a live run as lines of text and as plain data."""

from __future__ import annotations

from pathlib import Path

from ..diagnosis import Finding
from ..record import Event, Header
from ..show.safe import printable
from ..show.words import duration, number, percent
from .state import LiveOptimizer, LiveRun

__all__ = ["counts", "event_line", "finding_line", "state_of", "step_line", "to_dict"]


SILENT = 30
"""The seconds without a new row after which the state says so."""


def state_of(run: LiveRun) -> str:
    """Return the state of the run in words."""
    if run.end is not None:
        return "ended" if run.end.status == "ok" else f"ended, {printable(run.end.status)}"
    if run.missing:
        return "waiting for the file" if run.header is None else "the file is gone"
    if run.header is None:
        return "waiting for the first row"
    if not any(each.steps for each in run.optimizers.values()):
        silent = f" for {duration(run.age)}" if run.age >= SILENT else ""
        return f"waiting for the first step of {_script_of(run.header)}{silent}"
    return "running" if run.age < SILENT else f"no new row for {duration(run.age)}"


def _script_of(header: Header) -> str:
    words = [word for word in (*header.script, *header.command) if word.endswith(".py")]
    return printable(Path(words[0]).name) if words else "the script"


def step_line(run: LiveRun, optimizer: LiveOptimizer) -> str:
    """Return an optimizer's latest step in one line."""
    last = optimizer.last
    parts = [f"step {int(last.get('step') or 0):,}"]
    if len(run.optimizers) > 1:
        parts.insert(0, f"{printable(optimizer.class_name) or 'optimizer'} {optimizer.id}")
    if last.get("loss") is not None:
        parts.append(f"loss {number(last['loss'])}")
    limit = "" if last.get("limit") is None else f" (limit {number(last['limit'])})"
    parts.append(f"norm {number(last.get('norm'))}{limit}")
    return "  ".join([*parts, *counts(optimizer)])


def counts(optimizer: LiveOptimizer) -> list[str]:
    """Return the clip rate, and the numbers of skipped and non-finite steps."""
    if not optimizer.steps:
        return ["no step yet"]
    recent = f"{percent(optimizer.recent_clip_rate)} of the last {len(optimizer.recent)}"
    parts = [f"clipped {percent(optimizer.clip_rate)} ({recent})"]
    if optimizer.skipped:
        parts.append(f"skipped {optimizer.skipped:,}, last at step {optimizer.last_skipped:,}")
    else:
        parts.append("skipped 0")
    if optimizer.nonfinite:
        parts.append(f"non-finite {optimizer.nonfinite:,}")
    return parts


def finding_line(found: Finding) -> str:
    """Return a finding in one line."""
    where = "" if found.step is None else f", step {found.step:,}"
    return f"{found.severity}: {found.kind}{where}: {printable(found.sentence)}"


def event_line(event: Event) -> str:
    """Return an event of the record in one line."""
    where = "" if event.step is None else f", step {event.step:,}"
    return f"event: {printable(event.name)}{where}: {printable(event.text)}"


def to_dict(run: LiveRun) -> dict[str, object]:
    """Return the run as plain data; numbers may be inf or NaN."""
    return {
        "run": str(run.path),
        "state": run.state,
        "status": run.end.status if run.end else None,
        "step": run.step,
        "steps_per_second": run.speed,
        "seconds_since_write": round(run.age, 1),
        "restarts": run.restarts,
        "policy": run.header.policy if run.header else None,
        "optimizers": [_optimizer(run, each) for each in run.optimizers.values()],
        "findings": [
            {**found.to_dict(), "current": key in run.current}
            for key, found in run.findings.items()
        ],
        "events": [
            {"step": event.step, "name": event.name, "text": event.text} for event in run.events
        ],
    }


def _optimizer(run: LiveRun, each: LiveOptimizer) -> dict[str, object]:
    layers = run.layers(each.id)
    return {
        "id": each.id,
        "class": each.class_name,
        "policy": each.policy,
        "steps": each.steps,
        **each.last,
        "clipped": each.clipped,
        "clip_rate": each.clip_rate,
        "recent_clip_rate": each.recent_clip_rate,
        "recent_steps": len(each.recent),
        "skipped": each.skipped,
        "last_skipped": each.last_skipped,
        "nonfinite": each.nonfinite,
        "layers": {
            "largest": [list(pair) for pair in layers.largest],
            "growing": [list(pair) for pair in layers.growing],
            "growing_over_steps": layers.over,
            "nonfinite": [list(pair) for pair in each.nonfinite_layers.most_common(5)],
        },
    }
