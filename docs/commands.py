"""Write the commands' part of docs/cli.md from the command line itself: `make docs-cli`."""

from __future__ import annotations

import inspect
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from gradclip.cli import app

PAGE = Path(__file__).parent / "cli.md"
BEGIN = "<!-- Written by make docs-cli: the commands. -->\n"
END = "<!-- The end of the commands. -->\n"


def with_commands(page: str) -> str:
    """Return the page with the part between its two marks written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_commands()}\n{END}{after}"


def _commands() -> str:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    lines = ["| command | what it does |", "| --- | --- |"]
    for name, command in group.commands.items():
        summary = inspect.cleandoc(command.help or "").splitlines()[0]
        lines.append(f"| [`gradclip {name}`](#gradclip-{name}) | {summary} |")
    lines += ["", "Options of `gradclip` itself:", "", *_options(group.params)]
    for name, command in group.commands.items():
        lines += ["", f"## gradclip {name}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["```bash", command.epilog or "", "```"]
        if command.params:
            lines += ["", *_options(command.params)]
    return "\n".join(lines) + "\n"


def _options(params: object) -> list[str]:
    """Return the table of a command's arguments, then its options."""
    lines = ["| argument or option | default | meaning |", "| --- | --- | --- |"]
    assert isinstance(params, list)
    for param in params:
        assert isinstance(param, TyperArgument | TyperOption)
        if param.hidden:
            continue
        if isinstance(param, TyperArgument):
            name = param.name.upper() if param.name else ""
            names = f"`{name}...`" if param.nargs == -1 else f"`{name}`"
        else:
            names = ", ".join(f"`{text}`" for text in param.opts)
        default = param.default
        is_empty = default is None or default is False or default == () or callable(default)
        text = (param.help or "").replace("|", "\\|")
        lines.append(f"| {names} | {'' if is_empty else f'`{default}`'} | {text} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(with_commands(PAGE.read_text()))
