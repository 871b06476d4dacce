"""What a shell is offered: each offer begins with the text, and can be typed as it stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gradclip import parse
from gradclip.cli.complete import kinds, method_names, policies
from gradclip.cli.export import _panels
from gradclip.diagnosis import KINDS
from gradclip.export import PANELS
from gradclip.method.catalogue import CATALOGUE

Offers = Callable[[str], list[tuple[str, str]]]
OFFERS: list[tuple[Offers, dict[str, str]]] = [
    (method_names, {name: row.summary for name, row in CATALOGUE.items()}),
    (policies, {row.example: row.summary for row in CATALOGUE.values()}),
    (kinds, {kind: row.title for kind, row in KINDS.items()}),
]


@pytest.mark.parametrize(("offers", "known"), OFFERS)
def test_all_are_offered_with_a_summary_and_those_that_begin_with_the_text(
    offers: Offers, known: dict[str, str]
) -> None:
    assert len(known) > 5
    assert dict(offers("")) == known
    for text in known:
        begun = text[:4]
        assert dict(offers(begun)) == {k: v for k, v in known.items() if k.startswith(begun)}
    assert not offers("no such thing")


def test_each_policy_that_is_offered_is_a_policy() -> None:
    for text, _ in policies(""):
        assert parse(str(parse(text))) == parse(text)


def test_panels() -> None:
    assert _panels("") == [*PANELS]
    assert _panels("dis") == ["distribution"]
