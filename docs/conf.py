"""The docs site: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

from gradclip import __version__

project = "gradclip"
author = "the gradclip developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["images", "_static"]
# Links such as methods.md#zclip lead to headings.
myst_heading_anchors = 3

# In our docstrings `x` is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# Each name of gradclip must have a target. The names of other libraries would need a network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!gradclip\b).*"),
    # Types that users do not name and that the reference does not list.
    (
        "py:class",
        r"gradclip\..*\b(Call|Grads|Threshold|Fold|Held|Table|Gradients|Sharded|Decision|Rows)",
    ),
]

html_theme = "furo"
html_title = f"gradclip {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_SECTION = re.compile(r"^(Numerics|Source): (.*)$")


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


def setup(app: Sphinx) -> None:
    """Change the docstrings before napoleon reads them."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
