"""The command `gradclip`: one file for each subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from .advise import advise
from .demo import demo
from .diagnose import diagnose
from .doctor import doctor
from .explain import explain
from .export import export
from .import_ import import_
from .methods import methods
from .report import report
from .run import run
from .tune import tune
from .watch import watch

__all__ = ["app"]

EXIT_CODES = """Exit codes: 0 done; 1 the reader of the output has closed; 2 a wrong argument, file
or record, or a missing package, with one line that names the error; 130 Ctrl-C. `run` returns the
script's own code, or 3 if the script ended well but made no optimizer step. With findings of
`diagnose`, and after a run that failed under `watch`, the code is 0."""

app: typer.Typer = typer.Typer(
    help="Gradient clipping that is exact, fast, and shows what it did.",
    epilog=EXIT_CODES.replace("\n", " "),
    no_args_is_help=True,
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


# All arguments after the script go to the script, so the command must not read its options.
_SCRIPT = {"allow_extra_args": True, "allow_interspersed_args": False}
_COMMANDS = (
    (run, "gradclip run --clip norm:1.0 --record runs/a.jsonl train.py"),
    (watch, "gradclip watch runs/a.jsonl"),
    (report, "gradclip report runs/a.jsonl runs/b.jsonl -o report.html"),
    (export, "gradclip export runs/a.jsonl -o figure.svg --panel norm"),
    (diagnose, "gradclip diagnose runs/a.jsonl --json"),
    (explain, "gradclip explain exploding"),
    (advise, "gradclip advise runs/a.jsonl"),
    (import_, "gradclip import metrics.csv -o runs/a.jsonl --norm grad_norm"),
    (tune, "gradclip tune --steps 200 train.py"),
    (methods, "gradclip methods zclip"),
    (doctor, "gradclip doctor"),
    (demo, "gradclip demo --steps 100"),
)
for _command, _example in _COMMANDS:
    _settings = _SCRIPT if _command in (run, tune) else None
    _name = _command.__name__.rstrip("_")  # `import` is a word of Python's.
    app.command(_name, epilog=f"Example:  {_example}", context_settings=_settings)(_command)
