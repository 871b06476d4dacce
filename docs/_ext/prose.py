"""The text of all pages: the number of a paper is a link, and no number is broken."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_NUMBER = re.compile(r"(arXiv:(\d{4}\.\d{4,5}(?:v\d+)?))")
_BREAKABLE = re.compile(r"(\d+(?:[.,]\d+)*(?: %|e-\d+))")


class ArxivLinks(SphinxTransform):
    """Make a link of each "arXiv:2301.00001" in a page or a docstring."""

    default_priority = 500

    def apply(self, **_: object) -> None:
        """Replace the texts that hold a number; code and links stay as they are."""
        for text in [*self.document.findall(nodes.Text)]:
            parts = _NUMBER.split(text.astext())
            if len(parts) > 1 and not _is_within(text, nodes.FixedTextElement, nodes.reference):
                text.parent.replace(text, [*_linked(parts)])


class WholeNumbers(SphinxTransform):
    """Keep "37 %" and "1e-7" on one line each, which matters in the narrow cells of a table."""

    default_priority = 510

    def apply(self, **_: object) -> None:
        """Give such numbers a class of their own; code and titles stay as they are."""
        for text in [*self.document.findall(nodes.Text)]:
            parts = _BREAKABLE.split(text.astext())
            if len(parts) > 1 and not _is_within(text, nodes.FixedTextElement, nodes.title):
                found = [nodes.Text(part) for part in parts]
                found[1::2] = [nodes.inline("", part, classes=["whole"]) for part in parts[1::2]]
                text.parent.replace(text, found)


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


def setup(app: Sphinx) -> dict[str, bool]:
    """Change each page after it is read."""
    app.add_transform(ArxivLinks)
    app.add_transform(WholeNumbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
