"""Options of gradclip that stand after the script's name, where they go to the script."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from .output import say

__all__ = ["say_misplaced"]


def say_misplaced(context: typer.Context, target: str) -> None:
    """Name the options of this command that stand after the script; the script may want them.

    An option that stands before the script too is surely meant for the script.

    Args:
        context: of a command that passes all arguments after its target to the script.
        target: the script, or the module.
    """
    for name in _misplaced(context):
        say(
            f"gradclip: note: {name} stands after {target}, so it went to the script; for "
            f"gradclip, put it before {target}",
            err=True,
        )


def _misplaced(context: typer.Context) -> Iterable[str]:
    ours = {
        name: param.name
        for param in context.command.params
        if param.param_type_name == "option"
        for name in param.opts
        if name.startswith("--")
    }
    words = context.args[: context.args.index("--")] if "--" in context.args else context.args
    for word in dict.fromkeys(word.partition("=")[0] for word in words):
        source = context.get_parameter_source(ours.get(word) or "")
        if word in ours and (source is None or source.name != "COMMANDLINE"):
            yield word
