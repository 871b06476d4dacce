"""`python -m benchmarks`: run each case in its own process, and print one table."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import table
from .catalogue import CASES
from .grid import section
from .machine import RESULTS, describe, load, own_results, stored
from .page import page
from .row import QUIET, Case, Effort, Row

ROOT = Path(__file__).resolve().parents[1]
console = Console(highlight=False)
# Readers need the whole table, so it is not cut when the output goes to a file.
wide = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def main(
    quick: Annotated[bool, typer.Option(help="A look, in under two minutes.")] = False,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    names: Annotated[bool, typer.Option("--list", help="Print the cases' names.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the stored results as a page of the docs.")
    ] = False,
    any_load: Annotated[
        bool, typer.Option(help="Write the stored table on a busy machine too.")
    ] = False,
    case: Annotated[str, typer.Option(hidden=True)] = "",
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure gradclip against its rivals."""
    if case:
        assert out is not None
        _child(next(c for c in CASES if c.name == case), Effort(quick), out)
        return
    if markdown:
        print(page(stored("full.json")), end="")
        for found in stored("grid.json"):
            print("\n" + section(found), end="")
        return
    chosen = [c for c in CASES if (only in c.name if only else not (quick and c.slow))]
    if not chosen:
        raise typer.BadParameter(f"no case has {only!r} in its name; --list prints all names")
    if names:
        print("\n".join(c.name for c in chosen))
        return
    name = "partial" if only else ("quick" if quick else "full")
    busy = load()
    if name == "full" and busy is not None and busy > QUIET and not any_load:
        console.print(
            f"[red]The load is {busy}, over {QUIET}: others are at work, and the stored table "
            "stays as it is.[/] Wait until they are done, or give --any-load."
        )
        raise typer.Exit(2)
    folder = own_results() if name == "full" else RESULTS
    raise typer.Exit(_parent(chosen, quick, folder / f"{name}.json"))


def _child(case: Case, effort: Effort, out: Path) -> None:
    rows = case.run(effort)
    out.write_text(json.dumps([row.to_dict() for row in rows]))


def _parent(cases: list[Case], quick: bool, store: Path) -> int:
    """Run the cases, print and store their results; return the exit code."""
    _say_if_busy()
    done = _Done(quick, describe(), store)
    try:
        for case in cases:
            begun, before = time.perf_counter(), load()
            found = _run(case, quick)
            if not isinstance(found, str):
                found = [replace(row, load=before) for row in found]
            done.enter(case.name, found, time.perf_counter() - begun)
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted: this is what there is.[/]")
    wide.print(table.terminal(done.rows))
    for name, reason in done.failed.items():
        console.print(f"[red]{name} failed[/red]:", end=" ")
        console.print(reason, markup=False)
    targets = [row for row in done.rows if row.limit is not None]
    console.print(
        f"{sum(bool(row.met) for row in targets)} of {len(targets)} targets met, "
        f"{len(done.failed)} cases failed, {sum(done.seconds.values()):.0f} s; "
        f"stored in {store.relative_to(ROOT)}"
    )
    return 1 if done.failed or len(done.seconds) < len(cases) else 0


@dataclass
class _Done:
    """The results of the cases so far; stored after each case, so that none is lost."""

    quick: bool
    machine: dict[str, Any]
    store: Path
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def enter(self, name: str, found: list[Row] | str, seconds: float) -> None:
        """Add the rows of a case, or the reason why it has no rows."""
        self.seconds[name] = round(seconds, 1)
        if isinstance(found, str):
            self.failed[name] = found
        else:
            self.rows += found
        results = {
            "quick": self.quick,
            "machine": self.machine | {"load_after": load()},
            "seconds": self.seconds,
            "failed": self.failed,
            "rows": [row.to_dict() for row in self.rows],
        }
        self.store.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        state = "failed" if name in self.failed else "done"
        console.print(f"[dim]{name}: {state} in {seconds:.1f} s[/dim]")


def _run(case: Case, quick: bool) -> list[Row] | str:
    """Return the rows of a case, or the last lines of its error."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", "--case", case.name, "--out", str(out)]
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode == 0:
            return [Row.from_dict(data) for data in json.loads(out.read_text())]
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _say_if_busy() -> None:
    busy = load()
    if busy is not None and busy > QUIET:
        console.print(f"[yellow]The load is {busy}: others are at work, figures will be noisy.[/]")


if __name__ == "__main__":
    typer.run(main)
