"""Text that others wrote: nothing of it controls a terminal, and JSON stays JSON."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradclip.show.json_line import json_line
from gradclip.show.safe import printable

any_text = st.text(st.characters() | st.sampled_from("\x1b\x9b\u202e\u200f\ud800\n\r\x7f\u2028"))


@given(any_text)
def test_no_character_that_is_shown_controls_anything(text: str) -> None:
    for shown in (printable(text), json_line({"name": text, text: [text]})):
        shown.encode()  # A lone surrogate has no UTF-8 form.
        assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(any_text)
def test_json_says_what_it_was_given(text: str) -> None:
    assert json.loads(json_line({"name": text})) == {"name": text}


@pytest.mark.parametrize("text", ["encoder.weight", "größe 漢字", "34\N{NO-BREAK SPACE}%", "a\\b"])
def test_readable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_names_that_differ_are_shown_differently() -> None:
    assert printable("a\x1b") != printable("a\x1c")
