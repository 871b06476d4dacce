"""The command `gradclip`: one file for each subcommand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ..version import __version__
from .advise import advise
from .demo import demo
from .diagnose import diagnose
from .doctor import doctor
from .explain import explain
from .export import export
from .help import Command
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
_COMMANDS: tuple[tuple[Callable[..., None], str, tuple[str, ...]], ...] = (
    (
        run,
        "Run a training script, clip each step, and record it.",
        (
            "gradclip run --clip norm:1.0 --record runs/a.jsonl train.py",
            "gradclip run -m mypackage.train",
        ),
    ),
    (
        watch,
        "Follow a run in the terminal until it ends.",
        ("gradclip watch runs/a.jsonl", "gradclip watch runs/a.jsonl --once --json"),
    ),
    (
        report,
        "Show or compare runs in one offline HTML page.",
        (
            "gradclip report runs/a.jsonl runs/b.jsonl -o report.html",
            "gradclip report runs/a.jsonl --follow",
        ),
    ),
    (
        export,
        "Write a figure of one or more runs for a paper.",
        (
            "gradclip export runs/a.jsonl -o figure.svg --panel norm",
            "gradclip export runs/a.jsonl runs/b.jsonl -o figure.pdf",
        ),
    ),
    (
        diagnose,
        "Say how a run is, its faults and their remedies.",
        ("gradclip diagnose runs/a.jsonl", "gradclip diagnose runs/a.jsonl --json"),
    ),
    (
        explain,
        "Explain a kind of finding, or list all kinds.",
        ("gradclip explain exploding", "gradclip explain"),
    ),
    (
        advise,
        "Recommend the policy for the next run.",
        ("gradclip advise runs/a.jsonl", "gradclip advise runs/a.jsonl runs/b.jsonl"),
    ),
    (
        import_,
        "Turn a log that you already have into a record.",
        ("gradclip import metrics.csv -o runs/a.jsonl --norm grad_norm",),
    ),
    (
        tune,
        "Compare short runs with many thresholds and rates.",
        (
            "gradclip tune --steps 200 train.py",
            "gradclip tune --policy zclip --policy norm:1.0 --budget 10m train.py",
        ),
    ),
    (
        methods,
        "List all clipping methods, or explain one method.",
        ("gradclip methods", "gradclip methods zclip"),
    ),
    (
        doctor,
        "Show which paths run on this machine.",
        ("gradclip doctor", "gradclip doctor --json"),
    ),
    (
        demo,
        "Train without and with clipping, and compare.",
        ("gradclip demo", "gradclip demo --steps 100 --json"),
    ),
)
"""The commands, each with its summary in the list of commands, and its examples."""

for _command, _summary, _examples in _COMMANDS:
    app.command(
        _command.__name__.rstrip("_"),  # `import` is a word of Python's.
        cls=Command,
        short_help=_summary,
        epilog="\n".join(_examples),
        context_settings=_SCRIPT if _command in (run, tune) else None,
    )(_command)
