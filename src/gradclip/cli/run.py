"""`gradclip run`: run a training script with a record, and with clipping if --clip is given."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import PolicyError
from ..method.read import parse
from ..record import RecordWriter
from ..record.place import IfExists
from .complete import policies
from .ending import say_ending
from .failure import exit_on_user_error, require
from .misplaced import say_misplaced

if TYPE_CHECKING:
    from ..torch.script.children import Elsewhere
    from ..torch.script.session import Session

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
            help="The record's file. If the file exists, the record is NAME.2.jsonl, and so on. "
            "Default: runs/NAME-TIME.jsonl."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --record, erase a record that exists.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="With --record, go on in a record that exists."),
    ] = False,
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
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="With --clip, the script's own calls of clip_grad_norm_ and the like only "
            "measure, and --clip clips in their place.",
        ),
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many samples each step names: those with the largest gradient norms of "
            "their batch, with their places in the data set of a DataLoader.",
        ),
    ] = None,
    samples_when: Annotated[
        str | None,
        typer.Option(
            help="With --samples, 'always', or 'spikes': only at steps whose norm is unusual, "
            "which costs next to no time. Default: always."
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
    The exit code is the script's, or 3 if the script ended well but made no optimizer step that
    was seen. SIGTERM and SIGHUP end the record and then the process, unless the script handles
    them. With --clip, the processes that the script starts clip too (multiprocessing, and the
    other ranks of Lightning and Fabric). Where a rank runs without gradclip, or with other
    settings, the first step is refused.
    """
    policy = None if clip is None else parse(clip)
    _check(clip, nonfinite, max_skips)
    _check_take_over(clip, take_over)
    _check_samples(samples, samples_when)
    if_exists = _if_exists(record, overwrite, append)
    check_target(target, module)
    require("run", "torch", "torch")
    from ..torch.script.children import Elsewhere, Script, part_of_a_run, reach_children
    from ..torch.script.runner import run_script
    from ..torch.script.session import Session
    from ..torch.script.signals import before_death

    path, folder = record or _default_path(target, module), Path.cwd()
    _check_is_not_target(path, target, module)
    writer, elsewhere = None, part_of_a_run()
    # One record for a job: of rank 0, and not of a rank that this script has started itself.
    leads = elsewhere is None and os.environ.get("RANK", "0") == "0"
    settings = {
        "policy": policy,
        "nonfinite": nonfinite or "skip",
        "max_skips": 10 if max_skips is None else max_skips,
        "take_over": take_over,
    }
    with ExitStack() as around:
        others = Elsewhere(elsewhere)
        around.callback(others.close)
        if leads:
            say_misplaced(context, target)
            writer = RecordWriter(
                path,
                if_exists=if_exists,
                policy=clip,
                command=["gradclip", *sys.argv[1:]],
                sinks=sink or (),
                script=[*["-m"] * module, target, *context.args],
            )
        session = Session(
            **settings,  # type: ignore[arg-type]
            writer=writer,
            samples=samples or 0,
            samples_when="spikes" if samples_when == "spikes" else "always",
        )
        if writer is not None:
            around.enter_context(
                before_death(partial(_end_killed, session, writer, folder, others))
            )
        if policy is not None:
            options = tuple(sys.argv[1 : len(sys.argv) - len(context.args) - 1])
            script = Script(target if module else str(Path(target).absolute()), module, options)
            around.enter_context(reach_children(script, settings, others.path))
        code = run_script(target, context.args, session, module=module)
        if writer is not None and session.here:
            say_ending(session, writer, folder, others.count())
            if code == 0 and session.steps == 0:
                code = NOTHING_SEEN
    raise typer.Exit(code)


def _end_killed(
    session: Session, writer: RecordWriter, folder: Path, others: Elsewhere, name: str
) -> None:
    """End the record of a run that a signal is about to end."""
    session.close(f"error: killed by {name}")
    say_ending(session, writer, folder, others.count())
    others.close()


def _check(clip: str | None, nonfinite: str | None, max_skips: int | None) -> None:
    if nonfinite not in (None, *_DECISIONS):
        raise PolicyError.of("--nonfinite", nonfinite, f"choose one of {', '.join(_DECISIONS)}")
    for option, value in (("--nonfinite", nonfinite), ("--max-skips", max_skips)):
        if clip is None and value is not None:
            remedy = "without --clip a run is only recorded and nothing changes; give --clip too"
            raise PolicyError.of(option, value, remedy)


def _check_take_over(clip: str | None, take_over: bool) -> None:
    if take_over and clip is None:
        remedy = "without --clip nothing would clip in place of the script; give --clip too"
        raise PolicyError.of("--take-over", take_over, remedy)


def _check_samples(samples: int | None, when: str | None) -> None:
    if when not in (None, "always", "spikes"):
        raise PolicyError.of("--samples-when", when, "choose one of always, spikes")
    if when is not None and samples is None:
        raise PolicyError.of("--samples-when", when, "no samples are asked for; give --samples")


def _if_exists(record: Path | None, overwrite: bool, append: bool) -> IfExists:
    """Return what becomes of a record that exists."""
    for option, value in (("--overwrite", overwrite), ("--append", append)):
        if value and record is None:
            raise PolicyError.of(option, value, "without --record the file is new; give --record")
    if overwrite and append:
        raise PolicyError.of("--overwrite", True, "--append keeps what it erases: give one")
    return "overwrite" if overwrite else "append" if append else "part"


def _check_is_not_target(path: Path, target: str, module: bool) -> None:
    """Refuse a record whose path is the script, also an empty script."""
    if not module and path.exists() and path.samefile(target):
        raise PolicyError.of("--record", str(path), "the path is the script; give another path")


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
