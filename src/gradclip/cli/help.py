"""What `--help` of a command shows: the words to type, and examples."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand

__all__ = ["Command", "typed"]

_WORDS: dict[object, str] = {Path: "PATH", int: "N", float: "NUMBER", str: "TEXT"}

# The formatter breaks lines at hyphens, and so the names of files and options; not at these.
_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class Command(TyperCommand):
    """A command whose help says what to type: `RUNS...` and not `{runs}... <list[Path]>`.

    The epilog holds the examples, one on each line.
    """

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        return super().get_help(ctx).replace(_HYPHEN, "-")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the name of the command."""
        arguments = [param for param in self.get_params(ctx) if _is_argument(param)]
        words = [
            typed(self, each) if each.required else f"[{typed(self, each)}]" for each in arguments
        ]
        rest = ["[ARGS]..."] if self.context_settings.get("allow_extra_args") else []
        return ["[OPTIONS]", *words, *rest]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write what the command does."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_whole(inspect.cleandoc(self.help or "")))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows = sections["Arguments" if _is_argument(param) else "Options"]
                rows.append((typed(self, param), _whole(record[1])))
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples, each on a line that can be copied."""
        examples = (self.epilog or "").splitlines()
        with formatter.section("Example" if len(examples) == 1 else "Examples"):
            for example in examples:
                formatter.write(f"  {example}\n")


def typed(command: TyperCommand, param: Any) -> str:
    """Return an argument or an option as a user types it: `RUNS...`, `-o, --output PATH`.

    Args:
        command: the command that has the parameter; not mutated.
        param: an argument or an option of the command; not mutated.
    """
    if _is_argument(param):
        return str(param.name).upper() + "..." * (param.nargs == -1)
    names = ", ".join(param.opts)
    return names if param.is_flag else f"{names} {param.metavar or _word(command, param)}"


def _word(command: TyperCommand, param: Any) -> str:
    """Return the word for the value of an option, from the type in the function's signature."""
    assert command.callback is not None
    kind = get_type_hints(command.callback).get(param.name)
    while get_origin(kind) is not None:  # Such as list[str] or int | None.
        kind = get_args(kind)[0]
    return _WORDS[kind]


def _is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def _whole(text: str) -> str:
    return text.replace("-", _HYPHEN)
