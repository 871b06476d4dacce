"""The docstring of each recipe has all parts that the page and the command show."""

from __future__ import annotations

import inspect
import re

import pytest

from gradclip.method import recipes
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.docstring import Docstring, read_docstring

OURS = [row for row in CATALOGUE.values() if row.function.__name__ in recipes.__all__]


def test_the_parts_are_taken_apart() -> None:
    def example() -> None:
        """Do one thing
        in two lines.

        a = b,
        b = c.

        A note.

        Use when: there is
        one thing.

        Avoid when: there are two.

        Args:
            x: the first
                argument.
            y: the second.

        Returns:
            Nothing at all.

        Raises:
            ValueError: never.

        Numerics: none
        are there.

        Example:
            >>> 1 + 1
            2

        Source: ours.
        """

    assert read_docstring(example) == Docstring(
        summary="Do one thing in two lines.",
        formula=("a = b,", "b = c."),
        notes=("A note.",),
        use="there is one thing.",
        avoid="there are two.",
        arguments={"x": "the first argument.", "y": "the second."},
        returns="Nothing at all.",
        numerics="none are there.",
        source="ours.",
    )


def test_one_line_is_a_summary() -> None:
    def example() -> None:
        """Do one thing."""

    assert read_docstring(example) == Docstring(summary="Do one thing.")
    assert read_docstring(lambda: None) == Docstring()


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_a_docstring_says_all(row: object) -> None:
    doc = read_docstring(row.function)  # type: ignore[attr-defined]
    for part in ("summary", "formula", "use", "avoid", "returns", "source"):
        assert getattr(doc, part), f"the docstring lacks the part {part!r}"
    assert list(doc.arguments) == list(inspect.signature(row.function).parameters)  # type: ignore[attr-defined]
    for text in (doc.use, doc.avoid, doc.source, *doc.arguments.values()):
        assert text.endswith((".", "`.", ")")), text


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_the_parts_stand_in_the_order_of_the_house(row: object) -> None:
    order = ["Use when", "Avoid when", "Args", "Returns", "Raises", "Numerics", "Example", "Source"]
    text = inspect.getdoc(row.function) or ""  # type: ignore[attr-defined]
    found = re.findall(rf"^({'|'.join(order)}):", text, re.MULTILINE)
    assert found == [name for name in order if name in found]
