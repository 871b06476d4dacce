"""Where a step is decided, and which passes write its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from gradclip.torch.tensors.gradients import Gradients
from integration.training import decided_on_device


@pytest.fixture(params=["host", "device"])
def decided(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with decisions on the host, and with decisions that stay on the device."""
    with decided_on_device() if request.param == "device" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each pass over the gradients that writes them."""
    seen: list[str] = []

    def note(name: str) -> None:
        original = getattr(Gradients, name)

        def noted(self: Gradients, *args: Any) -> Any:
            seen.append(name)
            return original(self, *args)

        monkeypatch.setattr(Gradients, name, noted)

    for name in ("scale", "unscale", "scale_units", "put", "clamp"):
        note(name)
    return seen
