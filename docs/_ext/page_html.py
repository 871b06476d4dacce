"""The HTML of a page: what Sphinx and the theme leave out for screen readers and for searches."""

from __future__ import annotations

import html
import re
import struct
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 160
"""The letters of a description that a search engine shows."""

WIDE = 600
"""The width in pixels over which a picture would have tiny letters on a phone."""

_IMAGE = re.compile(r'<img(?P<rest>[^>]*src="[^"]*_images/(?P<name>[^"]+)")')


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


def describe(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], doctree: nodes.Node | None
) -> None:
    """Give the page its first sentences as its description."""
    first = next(doctree.findall(nodes.paragraph), None) if doctree else None
    if first is not None:
        text = shortened(" ".join(first.astext().split()))
        tag = f'<meta name="description" content="{html.escape(text)}">'
        context["metatags"] = f"{context.get('metatags', '')}\n{tag}"


def shortened(text: str) -> str:
    """Return the whole sentences that fit, or the words if these sentences are few."""
    if len(text) <= LONGEST:
        return text
    head = text[:LONGEST]
    sentences = head.rpartition(". ")[0]
    return sentences + "." if len(sentences) > LONGEST / 3 else head.rpartition(" ")[0] + " …"


def size_images(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: nodes.Node | None
) -> None:
    """Give each image its size, so that nothing moves when it loads, and load it when it is near.

    So a link to a heading leads there, whatever pictures are above.
    """
    files = {name: Path(app.srcdir, path) for path, name in app.builder.images.items()}

    def sized(tag: re.Match[str]) -> str:
        width, height = size_of(files[tag["name"]].read_bytes())
        wide = ' class="wide"' if width > WIDE else ""
        return f'<img{wide} loading="lazy" width="{width}" height="{height}"{tag["rest"]}'

    if isinstance(body := context.get("body"), str):
        context["body"] = _IMAGE.sub(sized, body)


def size_of(image: bytes) -> tuple[int, int]:
    """Return the width and the height of a PNG or an SVG, in pixels of CSS."""
    if image.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", image[16:24])
        return width, height
    head = image[: image.index(b">", image.index(b"<svg"))].decode()
    unit, found = 96 / 72, re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', head)
    if found is None:
        unit, found = 1, re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', head)
    assert found is not None, "an SVG needs a viewBox"
    return round(float(found[1]) * unit), round(float(found[2]) * unit)


def setup(app: Sphinx) -> dict[str, bool]:
    """Change what the theme is given for a page."""
    app.connect("html-page-context", name_levels, priority=900)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", size_images)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
