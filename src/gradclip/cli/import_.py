"""`gradclip import`: turn a log of another program into a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RecordError
from ..record.foreign import import_log, read_log
from ..show.files import replace_file
from ..show.words import counted
from .failure import exit_on_user_error
from .output import say, say_json

__all__ = ["import_"]

_NONE = "'none': no column. Default: a usual name."


@exit_on_user_error
def import_(
    log: Annotated[
        Path,
        typer.Argument(
            help="TensorBoard's event file or folder, W&B's .wandb file or CSV export, Trainer's "
            "trainer_state.json, Lightning's metrics.csv, or a CSV file with named columns."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The record to write.")],
    norm: Annotated[
        str | None, typer.Option(help=f"The column of the gradient norm. {_NONE}")
    ] = None,
    loss: Annotated[str | None, typer.Option(help=f"The column of the loss. {_NONE}")] = None,
    lr: Annotated[
        str | None, typer.Option(help=f"The column of the learning rate. {_NONE}")
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            help="The column of the steps in a table. Default: a usual name, or the rows."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an old record.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Turn a log that you already have into a record for diagnose, advise, report and export.

    The record has the loss, the gradient norm before clipping and the learning rate, as far as the
    log has them, and no norms by layer.
    """
    if output.exists() and not overwrite:
        raise RecordError(f"{output} exists: give another --output, or --overwrite to replace it")
    read = read_log(log, step)
    made = import_log(log, read, {"norm": norm, "loss": loss, "lr": lr})
    replace_file(output, made.text, may_be_record=overwrite)
    if json:
        say_json({"record": str(output), "kind": read.kind, "steps": made.steps,
                  "columns": made.columns, "notes": made.notes})  # fmt: skip
        return
    chosen = ", ".join(f"{role} from {name!r}" for role, name in made.columns.items())
    say(f"{output}: {counted(made.steps, 'step')} of {read.kind}; {chosen}")
    for note in made.notes:
        say(f"note: {note}")
