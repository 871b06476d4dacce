"""Where the tests of this folder run: on a card, or on CPU tensors that take the card's path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

from integration.training import ReadsBack, decided_on_device

__all__ = ["NEEDS_A_CARD", "PLACES", "Place", "nothing_is_read"]

_HAS_CARD = torch.cuda.is_available()
NEEDS_A_CARD = pytest.mark.skipif(not _HAS_CARD, reason="torch.cuda.is_available() is False")


@dataclass(frozen=True)
class Place:
    """One place.

    Attributes:
        name: "cuda", or "forced": CPU tensors on the path of a card.
        device: where the tensors are.
    """

    name: str
    device: torch.device

    @contextlib.contextmanager
    def turned(self) -> Iterator[None]:
        """Have a clipper that is called by hand decide on the device."""
        forced = mock.patch("torch.compiler.is_compiling", return_value=True)
        with contextlib.nullcontext() if self.name == "cuda" else forced:
            yield

    @contextlib.contextmanager
    def turned_in_steps(self) -> Iterator[None]:
        """Have a clipper that is attached decide on the device; the optimizer notices nothing."""
        with contextlib.nullcontext() if self.name == "cuda" else decided_on_device():
            yield


PLACES = [
    pytest.param(Place("cuda", torch.device("cuda")), id="cuda", marks=NEEDS_A_CARD),
    pytest.param(Place("forced", torch.device("cpu")), id="forced"),
]


@contextlib.contextmanager
def nothing_is_read(place: Place) -> Iterator[None]:
    """Assert that no value comes back to the host: on a card torch itself raises an error."""
    if place.name == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with ReadsBack() as reads:
        yield
    assert reads.count == 0, f"{reads.count} values were read back"
