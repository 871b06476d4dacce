"""`python -m experiments`: run the missing runs, then write the docs from the results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console

from .run import perform_all
from .setting import Setting
from .store import RESULTS, Store
from .studies import (
    advisor,
    auto,
    batch_size,
    depth,
    generalization,
    information,
    privacy,
    spikes,
    stability,
    text,
    threshold,
    tune,
)

ROOT = Path(__file__).resolve().parents[1]
STUDIES: dict[str, ModuleType] = {
    "advisor": advisor,
    "auto": auto,
    "stability": stability,
    "text": text,
    "generalization": generalization,
    "depth": depth,
    "threshold": threshold,
    "information": information,
    "batch-size": batch_size,
    "spikes": spikes,
    "tune": tune,
    "privacy": privacy,
}
QUICK = 10
"""A quick run has this fraction of the steps, and one seed."""

console = Console(highlight=False)


def main(
    studies: Annotated[list[str] | None, typer.Argument(help="Only these; default all.")] = None,
    quick: Annotated[
        bool, typer.Option(help="A look: one seed, a tenth of the steps, not for the docs.")
    ] = False,
    docs: Annotated[
        bool, typer.Option(help="Write the docs from the results; run nothing.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Run again what is finished.")] = False,
) -> None:
    """Run the experiments that have not finished yet."""
    names = studies or list(STUDIES)
    if unknown := [name for name in names if name not in STUDIES]:
        raise typer.BadParameter(f"no study {unknown[0]!r}: there are {', '.join(STUDIES)}")
    if docs:
        from .docs import write_docs

        write_docs(Store(), ROOT)
        return
    store = Store(RESULTS / "quick") if quick else Store()
    queue = settings_of(names, quick)
    perform_all(queue, store, shorten=QUICK if quick else 1, fresh=fresh)
    for name in names:
        console.rule(name)
        for part in sections(name, store):
            console.print(part, markup=False, soft_wrap=True)


def settings_of(names: list[str], quick: bool) -> list[Setting]:
    """Return the runs, seed by seed, so that all studies grow together."""
    every = [s for name in names for s in STUDIES[name].settings()]
    if quick:
        return [s for s in every if s.seed == 0]
    return sorted(dict.fromkeys(every), key=lambda setting: setting.seed)


def sections(name: str, store: Store) -> list[str]:
    """Return the text of a study."""
    study = STUDIES[name]
    found = [getattr(study, part) for part in vars(study) if part.startswith("section")]
    return [section(store) for section in found]


if __name__ == "__main__":
    typer.run(main)
