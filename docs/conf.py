"""The docs site: `make docs` builds it into build/docs, without a network."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature

from gradclip import __version__
from gradclip.report import write_report

project = "gradclip"
author = "the gradclip developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["sphinx.ext.autosummary"]  # The tables at the head of the reference's pages.
autosummary_generate = False
exclude_patterns = ["images", "_static", "records"]
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
html_static_path = ["_static"]
html_css_files = ["site.css", "methods.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_SECTION = re.compile(r"^(Use when|Avoid when|Numerics|Source): (.*)$")


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


# Objects of these classes come from functions: their constructors are not for users.
_MADE_BY_US = re.compile(
    r"gradclip\.(Run|Finding|Advice|ClipResult|parts\.(Threshold|Context)|numpy\.SampleResult"
    r"|jax\.ClipState|advisor\.\w+|record\.(?!RecordWriter|Parameter)\w+"
    r"|torch\.(InBackward|PerSampleResult|Recorder))"
)
_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")


def plain_signature(
    _app: Sphinx, what: str, name: str, obj: Any, _options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Leave out the arguments of classes that only gradclip makes, and write aliases as words."""
    if what == "class" and _MADE_BY_US.fullmatch(name):
        return "", returns
    if what == "class" and name.startswith("gradclip.integrations.") and "__init__" in vars(obj):
        # A base class of the framework hides the arguments of ours.
        given = signature_of(obj.__init__, bound_method=True, type_aliases=autodoc_type_aliases)
        options = {"show_return_annotation": False, "unqualified_typehints": True}
        signature = stringify_signature(given, **options)
    return signature and _ALIAS.sub(r"\1", signature), returns


class ArxivLinks(SphinxTransform):
    """Make a link of each "arXiv:2301.00001" in a page or a docstring."""

    default_priority = 500
    number = re.compile(r"(arXiv:(\d{4}\.\d{4,5}(?:v\d+)?))")

    def apply(self, **_: Any) -> None:
        """Replace the texts that hold a number; code and links stay as they are."""
        for text in [*self.document.findall(nodes.Text)]:
            parts = self.number.split(text.astext())
            if len(parts) > 1 and not _is_within(text, nodes.FixedTextElement, nodes.reference):
                text.parent.replace(text, [*_linked(parts)])


def _is_within(text: nodes.Text, *kinds: type[nodes.Node]) -> bool:
    node = text.parent
    while node is not None and not isinstance(node, (*kinds, nodes.literal)):
        node = node.parent
    return node is not None


def _linked(parts: list[str]) -> list[nodes.Node]:
    """Return the nodes of a text that was split into (text, name, number, text, …)."""
    found: list[nodes.Node] = [nodes.Text(parts[0])]
    for name, number, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found += [nodes.reference("", name, refuri=f"https://arxiv.org/abs/{number}")]
        found += [nodes.Text(after)]
    return found


def write_live_reports(app: Sphinx, failure: Exception | None) -> None:
    """Write the report of each record in docs/records, and of each folder of records.

    A report takes over a megabyte, and a tenth of that is its record: only records are committed.
    """
    root = Path(app.srcdir).parent
    if failure is not None or app.builder.format != "html":
        return
    with contextlib.chdir(root):  # The reports show the paths of their records.
        records = Path(app.srcdir).relative_to(root) / "records"
        for entry in sorted(records.iterdir()) if records.is_dir() else []:
            runs = sorted(entry.glob("*.jsonl"), reverse=True) if entry.is_dir() else [entry]
            write_report(runs, Path(app.outdir) / "reports" / f"{entry.stem}.html")


def name_levels(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: nodes.Node | None
) -> None:
    """Mend two things that a screen reader stumbles over.

    Sphinx's captions are headings without a level, and the parameters in a long signature are a
    list of descriptions without terms.
    """
    for key in ("furo_navigation_tree", "body"):
        text = context.get(key)
        if isinstance(text, str):
            text = text.replace('role="heading">', 'role="heading" aria-level="2">')
            context[key] = re.sub(
                r'(<span class="sig-paren">[(\[]</span>\s*)<dl>',
                r'\1<dl role="presentation">',
                text,
            )


def setup(app: Sphinx) -> None:
    """Change docstrings before napoleon reads them, signatures, and what Sphinx writes after."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("html-page-context", name_levels, priority=900)
    app.connect("build-finished", write_live_reports)
    app.add_transform(ArxivLinks)
