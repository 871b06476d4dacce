"""`gradclip run`: run a training script with a record, and with clipping if --clip is given."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PolicyError
from ..method.read import parse
from ..record import RecordWriter
from .complete import policies
from .failure import exit_on_user_error, require

if TYPE_CHECKING:
    from ..torch.script.runner import Session

__all__ = ["check_target", "run"]

NOTHING_SEEN = 3
_DECISIONS = ("skip", "zero", "raise", "propagate")


@exit_on_user_error
def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="The script, or with -m the module.")],
    clip: Annotated[
        str | None,
        typer.Option(
            help="The policy, such as norm:1.0. Without a policy the run is only recorded.",
            autocompletion=policies,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="The record's file; an old file is replaced. Default: runs/NAME-TIME.jsonl."
        ),
    ] = None,
    nonfinite: Annotated[
        str | None,
        typer.Option(
            help="With --clip, what to do about inf or NaN: skip, zero, raise or propagate. "
            "Default: skip."
        ),
    ] = None,
    max_skips: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --clip, more skipped steps in a row than this end the run. Default: 10.",
        ),
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:WHERE",
            help="A tracker that gets the steps too: tensorboard:FOLDER, wandb:PROJECT, "
            "mlflow:EXPERIMENT or trackio:PROJECT. May be repeated.",
        ),
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", help="TARGET is a module, as for python -m.")
    ] = False,
) -> None:
    """Run a training script, clip each optimizer step, and record each step.

    The script does not change. All arguments after TARGET go to the script.
    The exit code is the script's, or 3 if the script ended well but made no optimizer step.
    """
    policy = None if clip is None else parse(clip)
    _check(clip, nonfinite, max_skips)
    check_target(target, module)
    require("run", "torch", "torch")
    from ..torch.script.runner import Session, run_script

    writer, path = None, record or _default_path(target, module)
    if os.environ.get("RANK", "0") == "0":  # One record for a job; torchrun sets the ranks.
        command = ["gradclip", *sys.argv[1:]]
        writer = RecordWriter(path, policy=clip, command=command, sinks=sink or ())
    session = Session(
        policy,
        nonfinite=nonfinite or "skip",  # type: ignore[arg-type]
        max_skips=10 if max_skips is None else max_skips,
        writer=writer,
    )
    code = run_script(target, context.args, session, module=module)
    if writer is not None and session.here:
        _say_what_was_seen(session, path)
        if code == 0 and session.steps == 0:
            code = NOTHING_SEEN
    raise typer.Exit(code)


def _check(clip: str | None, nonfinite: str | None, max_skips: int | None) -> None:
    if nonfinite not in (None, *_DECISIONS):
        raise PolicyError.of("--nonfinite", nonfinite, f"choose one of {', '.join(_DECISIONS)}")
    for option, value in (("--nonfinite", nonfinite), ("--max-skips", max_skips)):
        if clip is None and value is not None:
            remedy = "without --clip a run is only recorded and nothing changes; give --clip too"
            raise PolicyError.of(option, value, remedy)


def check_target(target: str, module: bool) -> None:
    """Raise a PolicyError if the script or the module does not exist."""
    if module:
        sys.path.insert(0, str(Path.cwd()))
        try:
            known = importlib.util.find_spec(target.partition(".")[0]) is not None
        except ValueError:  # The name is empty, or the module has no spec.
            known = False
        del sys.path[0]
        if not known:
            raise PolicyError.of("TARGET", target, "there is no such module; a script needs no -m")
    elif not Path(target).exists():
        raise PolicyError.of("TARGET", target, "there is no such file; a module needs -m before it")


def _default_path(target: str, module: bool) -> Path:
    name = target if module else Path(target).stem
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"


def _say_what_was_seen(session: Session, path: Path) -> None:
    if session.steps == 0:
        _say(
            "ERROR: no step of any torch optimizer was seen, so nothing was clipped or recorded. "
            "Does the script train in another process (mp.spawn, a DataLoader's worker), or with "
            "an optimizer that is not a torch.optim.Optimizer?",
            color="red",
        )
        return
    count = session.optimizers.total()
    hooked = ", ".join(f"{n}× {c}" if n > 1 else c for c, n in session.optimizers.items())
    done = f"{session.clipped} clipped, {session.skipped} skipped"
    _say(
        f"{count} optimizer{'s' * (count != 1)} hooked ({hooked}), {session.steps} steps seen, "
        f"{done}; record in {path}"
    )
    for text in session.notices.values():
        _say(f"note: {text}")


def _say(text: str, color: str | None = None) -> None:
    """Write a line to stderr, because stdout belongs to the script."""
    typer.secho(f"gradclip: {text}", err=True, fg=color, bold=color is not None)
