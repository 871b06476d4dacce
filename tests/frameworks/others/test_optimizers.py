"""The table of optimizers in the docs is what they do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from frameworks.guides import GUIDES
from frameworks.others import optimizers
from frameworks.others.optimizers import PACKAGES, Row, rows, table

PAGE = GUIDES.parent / "optimizers.md"


@pytest.fixture(scope="module")
def found() -> list[Row]:
    return rows()


def test_the_docs_have_the_table(found: list[Row]) -> None:
    assert table(found) in PAGE.read_text(), (
        "the table is out of date: cd tests && python -m frameworks.others.optimizers"
    )


def test_many_optimizers_of_each_package_work(found: list[Row]) -> None:
    works = Counter(row.package for row in found if row.gradient == "works")
    least = {"torch.optim": 14, "timm.optim": 12, "schedulefree": 5}
    assert works.keys() == PACKAGES.keys() == least.keys()
    assert all(works[package] >= count for package, count in least.items())
    assert {"Muon", "SparseAdam", "LBFGS"} <= {r.name for r in found if r.gradient == "works"}


def test_no_optimizer_does_something_else(found: list[Row]) -> None:
    for row in found:
        for outcome in (row.gradient, row.update):
            assert outcome.startswith(("works", "refused: ", "not tried: ")), row


def test_an_optimizer_that_is_not_clipped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "attach", lambda *_, **__: None)
    make = torch.optim.SGD
    assert optimizers._tried(make, "attach") == "differs"
    assert optimizers._tried(make, "update").startswith("moved ")
