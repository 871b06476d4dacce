"""Docstrings and signatures as the reference shows them."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature

_SECTION = re.compile(r"^(Use when|Avoid when|Numerics|Source): (.*)$")

# Objects of these classes come from functions: their constructors are not for users.
_MADE_BY_US = re.compile(
    r"gradclip\.(Run|Finding|Advice|ClipResult|parts\.(Threshold|Context)|numpy\.SampleResult"
    r"|jax\.ClipState|advisor\.\w+|record\.(?!RecordWriter|Parameter)\w+"
    r"|torch\.(InBackward|PerSampleResult|Recorder))"
)
_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")


def plain_docstring(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Turn a docstring into reStructuredText: |x| is a magnitude and not a substitution."""
    plain: list[str] = []
    example = False
    for line in lines:
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if example:
            plain.append(line)
        elif line != "Source: none.":
            parts = _SECTION.sub(r"**\1.** \2", line).split("`")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            plain.append("`".join(parts))
    lines[:] = plain


def plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, _options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Leave out the arguments of classes that only gradclip makes, and write aliases as words."""
    if what == "class" and _MADE_BY_US.fullmatch(name):
        return "", returns
    if what == "class" and name.startswith("gradclip.integrations.") and "__init__" in vars(obj):
        # A base class of the framework hides the arguments of ours.
        aliases = app.config.autodoc_type_aliases
        given = signature_of(obj.__init__, bound_method=True, type_aliases=aliases)
        options = {"show_return_annotation": False, "unqualified_typehints": True}
        signature = stringify_signature(given, **options)
    return signature and _ALIAS.sub(r"\1", signature), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Change docstrings before napoleon reads them, and signatures."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
