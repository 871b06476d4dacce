"""The docs site: `make docs` builds it into build/docs, and needs no network for it."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

from gradclip import __version__

project = "gradclip"
author = "the gradclip developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["images"]
# Links such as methods.md#zclip lead to headings.
myst_heading_anchors = 3
# A page that lists others by a pattern is right if there is none yet.
suppress_warnings = ["toc.empty_glob"]

# In our docstrings `x` is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Every name of ours must lead somewhere; those of other libraries would need a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!gradclip).*")]

html_theme = "furo"
html_title = f"gradclip {__version__}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_TOLD = re.compile(r"^(Numerics|Source|Formula): (.*)$")


def plain_docstring(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Make reStructuredText of a docstring: |x| is a magnitude there, and no substitution."""
    said: list[str] = []
    for line in lines:
        if line.strip() == "Source: none.":
            continue
        parts = _TOLD.sub(r"**\1.** \2", line).split("`")
        if not line.lstrip().startswith((">>>", "...")):
            parts[::2] = [re.sub(r"([|])", r"\\\1", part) for part in parts[::2]]
        said.append("`".join(parts))
    lines[:] = said


def setup(app: Sphinx) -> None:
    """Read our docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
