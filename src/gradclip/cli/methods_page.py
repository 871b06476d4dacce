"""The pages about all methods: docs/methods.md, and the recipes' page of the reference."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict

from ..errors import PolicyError
from ..method.catalogue import CATALOGUE, PURPOSES, Group, Recipe, grouped
from ..method.docstring import read_docstring
from ..method.facts import COSTS, facts_of

__all__ = ["default_of", "notes_on", "page", "papers", "reference"]

_LINKS = re.compile(r"arXiv:(\d{4}\.\d{4,5})|(?<![\w/])(github\.com/[\w.-]+/[\w.-]+)")
_NOTES = {
    "weights": "needs the weights",
    "loss": "needs the loss",
    "carries": "gives more than this step's gradient",
    "enlarges": "may enlarge a gradient",
    "real": "refuses complex gradients",
    "skips": "may skip a step",
}
_PAGE = """\
# All methods

{count} methods, grouped by purpose; `make docs-methods` writes this page from the recipes. Each
method runs on NumPy, PyTorch and JAX. Its text, such as `zclip:z=3.0`, goes wherever a policy goes.
Which one? [Choosing a method](guides/choosing-a-method.md).

Each picture shows the method at work on the very same 240 gradients of three tensors: they begin
large, drift, have a spike in all tensors at step 110 and in a single value at step 170, and vanish
at the end. Grey is the norm before clipping, blue the norm after it, and the dashed line the limit,
where the method limits the norm of the whole gradient. A cross marks a skipped step. The scale is
logarithmic and the same everywhere, and the arguments are those of the example.

## Overview

*Purpose* leads to the group, *adapts* says what the limit follows, and *remembers* counts the
numbers that the example keeps from step to step. *Samples* says whether the method also clips the
gradient of [each sample](guides/per-sample.md). *Cost* is the work at each step:

{costs}

| method | purpose | adapts | remembers | cost | samples |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the catalogue as Markdown: an overview, then each method under its purpose."""
    costs = "\n".join(f"- *{name}*: {text}." for name, text in COSTS.items())
    lines = [_PAGE.format(count=len(CATALOGUE), costs=costs).rstrip("\n")]
    groups = grouped()
    lines += [_overview_row(row) for rows in groups.values() for row in rows]
    for purpose, rows in groups.items():
        lines += ["", f"## {PURPOSES[purpose].heading}", "", PURPOSES[purpose].text]
        for row in rows:
            lines += _section(row)
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the page of the reference that documents every recipe, as Markdown."""
    lines = [
        "# Recipes",
        "",
        "Written by `make docs-methods` from the recipes. Every published method is one function "
        "that returns a",
        "[policy](policies.md). With a picture and when to use each: [all methods](../methods.md). "
        "Which one?",
        "[Choosing a method](../guides/choosing-a-method.md).",
    ]
    groups = grouped()
    for directive in ("autosummary", "autofunction"):
        for purpose, rows in groups.items():
            if directive == "autosummary":
                names = [f"   ~gradclip.{row.function.__name__}" for row in rows]
                block = [".. autosummary::", "   :nosignatures:", "", *names]
                title = f"**[{PURPOSES[purpose].heading}](#{_slug(purpose)})**"
            else:
                block = [f".. autofunction:: gradclip.{row.function.__name__}" for row in rows]
                title = f"## {PURPOSES[purpose].heading}"
            lines += ["", title, "", "```{eval-rst}", *block, "```"]
    return "\n".join(lines) + "\n"


def papers(row: Recipe) -> list[str]:
    """Return the addresses of a method's papers and programs."""
    return [_address(found) for found in _LINKS.finditer(row.paper)]


def default_of(parameter: inspect.Parameter) -> str:
    """Return an argument's default as a user types it, or a dash for an argument without one."""
    if parameter.default is inspect.Parameter.empty:
        return "–"
    return repr(parameter.default).replace("'", '"')


def notes_on(row: Recipe) -> str:
    """Return the traits of the method in words; "" if nothing is out of the ordinary."""
    traits = asdict(row.traits)
    found = [words for name, words in _NOTES.items() if traits[name]]
    return ", ".join(found)


def _overview_row(row: Recipe) -> str:
    facts = facts_of(row.policy)
    cells = [
        f"[`{row.name}`](#{row.name})",
        f"[{row.purpose}](#{_slug(row.purpose)})",
        facts.adapts,
        re.sub(" numbers?", "", facts.remembers),
        facts.cost,
        "yes" if _fits_samples(row) else "no",
    ]
    return f"| {' | '.join(cells)} |"


def _section(row: Recipe) -> list[str]:
    doc, facts = read_docstring(row.function), facts_of(row.policy)
    picture = f"images/methods/{row.name}.svg"
    lines = ["", f"### {row.name}", ""]
    lines += [f"![The norm before and after `{row.example}`, step by step]({picture})", ""]
    lines += [doc.summary]
    if doc.formula:
        lines += ["", "```text", *doc.formula, "```"]
    for heading, text in (("Use it when", doc.use), ("Avoid it when", doc.avoid)):
        if text:
            lines += ["", f"**{heading}** {text}"]
    lines += ["", *_defaults(row)]
    paper = _LINKS.sub(lambda found: f"[{found[0]}]({_address(found)})", row.paper)
    entry = f"{{py:func}}`gradclip.{row.function.__name__}`"
    traits = "; ".join(filter(None, (f"remembers {facts.remembers}", notes_on(row))))
    lines += ["", f"For example `{row.example}`; {traits}."]
    lines += [f"Reference: {entry}. Source: {paper}."]
    return lines


def _defaults(row: Recipe) -> list[str]:
    """Return a table with one column for each argument, and its default below."""
    parameters = inspect.signature(row.function).parameters.values()
    names = " | ".join(f"`{parameter.name}`" for parameter in parameters)
    values = " | ".join(_as_code(default_of(parameter)) for parameter in parameters)
    rule = " | ".join("---" for _ in parameters)
    return [f"| argument | {names} |", f"| --- | {rule} |", f"| default | {values} |"]


def _as_code(default: str) -> str:
    return default if default == "–" else f"`{default}`"


def _fits_samples(row: Recipe) -> bool:
    """Return whether the method clips the gradient of each sample, too."""
    from ..engine.samples import stages_of

    try:
        stages_of(row.policy, ["weight"])
    except PolicyError:
        return False
    return True


def _address(found: re.Match[str]) -> str:
    return f"https://arxiv.org/abs/{found[1]}" if found[1] else f"https://{found[2]}"


def _slug(purpose: Group) -> str:
    """Return the anchor of a purpose's heading."""
    return re.sub(r"[^\w -]", "", PURPOSES[purpose].heading).lower().replace(" ", "-")
