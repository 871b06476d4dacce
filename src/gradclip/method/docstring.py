"""The parts of a recipe's docstring, for the pages and the command that show them one by one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Docstring", "read_docstring"]

_HEADING = re.compile(
    r"^(Use when|Avoid when|Args|Returns|Raises|Numerics|Example|Source):(?: (.*))?$"
)
_ARGUMENT = re.compile(r"^    (\w+): (.*)$")


@dataclass(frozen=True)
class Docstring:
    """A docstring in the house's order, in parts; a part that is not there is empty.

    Attributes:
        summary: the first line, one sentence.
        formula: the lines of the formula.
        notes: the paragraphs between the formula and the first section.
        use: when to use the method, from "Use when".
        avoid: when not to use the method, from "Avoid when".
        arguments: the text for each argument, by name.
        returns: what the function returns.
        numerics: what rounding and special values do.
        source: where the formula is from.
    """

    summary: str = ""
    formula: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    use: str = ""
    avoid: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    numerics: str = ""
    source: str = ""


def read_docstring(function: Callable[..., object]) -> Docstring:
    """Return the parts of a function's docstring.

    Example:
        >>> from gradclip import agc
        >>> read_docstring(agc).formula
        ('G·λ·max(‖W‖, ε)/‖G‖ if ‖G‖ > λ·max(‖W‖, ε), else G, for each output row or filter.',)
        >>> sorted(read_docstring(agc).arguments)
        ['axis', 'clipping', 'eps']
    """
    sections = _sections((inspect.getdoc(function) or "").splitlines())
    summary, *rest = "\n".join(sections[""]).strip().split("\n\n")
    formula, *notes = rest or [""]
    return Docstring(
        summary=_joined(summary.splitlines()),
        formula=tuple(formula.splitlines()),
        notes=tuple(_joined(note.splitlines()) for note in notes),
        use=_joined(sections.get("Use when", [])),
        avoid=_joined(sections.get("Avoid when", [])),
        arguments=_arguments(sections.get("Args", [])),
        returns=_joined(sections.get("Returns", [])),
        numerics=_joined(sections.get("Numerics", [])),
        source=_joined(sections.get("Source", [])),
    )


def _sections(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of each section; those before the first heading have the name ""."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in lines:
        heading = _HEADING.match(line)
        if heading is None:
            found[name].append(line)
        else:
            name = heading[1]
            found[name] = [heading[2]] if heading[2] else []
    return found


def _arguments(lines: list[str]) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        entry = _ARGUMENT.match(line)
        if entry is not None:
            name = entry[1]
            texts[name] = [entry[2]]
        elif line.strip():
            texts[name].append(line)
    return {name: _joined(text) for name, text in texts.items()}


def _joined(lines: list[str]) -> str:
    """Return lines as one line."""
    return " ".join(" ".join(lines).split())
