"""The docs site: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

from gradclip import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "gradclip"
author = "the gradclip developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["sphinx.ext.autosummary"]  # The tables at the head of the reference's pages.
extensions += ["docstrings", "prose", "page_html", "live_reports"]  # Ours, in _ext.
autosummary_generate = False
exclude_patterns = ["images", "_static", "_ext", "records"]
smartquotes_action = "qe"  # Quotes and dots, but no dash for the two of --option.
# Links such as methods.md#zclip lead to headings.
myst_heading_anchors = 3
# {.cards} above a list is its class.
myst_enable_extensions = ["attrs_block"]

# In our docstrings `x` is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["fastai", "keras"]  # Frameworks that the docs do not install.
# Words that stand for long unions in signatures; the page on policies explains them.
autodoc_type_aliases = {"PolicyLike": "gradclip.PolicyLike"}
autodoc_type_aliases |= {name: name for name in ("Axis", "Limit", "Order", "Scope")}
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
        r"gradclip\..*\b(Call|Grads|Threshold|Fold|Held|Table|Gradients|Sharded|Decision|Rows"
        r"|Counts|Inline|Settings)",
    ),
]

html_theme = "furo"
html_title = f"gradclip {__version__}"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css", "methods.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
