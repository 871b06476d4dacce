"""The command `gradclip`: one file for each subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .advise import advise
from .demo import demo
from .diagnose import diagnose
from .doctor import doctor
from .methods import methods
from .report import report
from .run import run
from .tune import tune

__all__ = ["app"]

app = typer.Typer(
    help="Gradient clipping that is exact, fast, and shows what it did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gradclip {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gradient clipping that is exact, fast, and shows what it did."""


# Everything after the script belongs to the script, so its options are not ours to read.
_SCRIPT = {"allow_extra_args": True, "allow_interspersed_args": False}
app.command(context_settings=_SCRIPT)(run)
app.command(context_settings=_SCRIPT)(tune)
app.command()(report)
app.command()(diagnose)
app.command()(advise)
app.command()(methods)
app.command()(doctor)
app.command()(demo)
