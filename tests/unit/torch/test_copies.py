"""Whatever holds a clipper can be copied, pickled and saved; the copy is attached to nothing."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from contract.methods import ROWS
from gradclip import GradclipWarning
from gradclip.torch import Clipper, attach, attach_in_backward

POLICIES = [row.policy for row in ROWS if "loss" not in str(row.policy)]


def _saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": _saved,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Estimator:
    """Holds a model, its optimizer and its clipper, as estimators do."""

    def __init__(self, policy: Any = "zclip") -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.clipper = attach(self.optimizer, policy, model=self.model, max_skips=99)
        self.model.clipper = self.clipper  # type: ignore[assignment]
        self.clipper.observers.append(lambda _: None)

    def step(self, seed: int = 0) -> None:
        self.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        self.model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        self.optimizer.step()


@every_way
def test_the_copy_is_detached_and_the_original_is_not(way: Callable[[Any], Any]) -> None:
    estimator = Estimator("norm:0.001")
    estimator.step()
    copied = way(estimator)
    assert copied.model.clipper is copied.clipper
    assert copied.clipper.attachment is None
    assert copied.clipper.observers == []
    assert copied.clipper.scaled_because == "the clipper is not attached to an optimizer"
    assert repr(copied.clipper).endswith("; a copy, not attached)")
    assert all(a is b for a, b in zip(copied.clipper.params, copied.model.parameters()))  # noqa: B905
    assert repr(copied.clipper.state_dict()) == repr(estimator.clipper.state_dict())
    copied.step()
    estimator.step()
    assert (copied.clipper.steps, estimator.clipper.steps) == (1, 2)
    with pytest.warns(GradclipWarning, match="a copy of an attached one, and no optimizer's steps"):
        assert copied.clipper.last is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copied.clipper.last is None
        copied.clipper.detach()
        assert estimator.clipper.last is not None


@every_way
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_attached_anew_the_copy_goes_on_as_the_original(
    way: Callable[[Any], Any], policy: Any
) -> None:
    estimator = Estimator(policy)
    for seed in range(4):
        estimator.step(seed)
    copied = way(estimator)
    state = copied.clipper.state_dict()
    copied.clipper = attach(copied.optimizer, policy, model=copied.model, max_skips=99)
    copied.clipper.load_state_dict(state)
    for seed in range(4, 7):
        estimator.step(seed)
        copied.step(seed)
    assert torch.equal(copied.model.weight, estimator.model.weight)
    assert repr(copied.clipper.state_dict()) == repr(estimator.clipper.state_dict())


@pytest.mark.parametrize("way", [*WAYS.values(), copy.copy])
def test_a_copy_counts_for_itself(way: Callable[[Any], Any]) -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    clipper = Clipper([("p", param)], "zclip")
    param.grad = torch.ones(2)
    clipper.clip_()
    copied = way(clipper)
    copied.params[0].grad = torch.full((2,), 9.0)
    before = repr(clipper.state_dict())
    assert float(copied.clip_().total_norm) > 9
    assert (copied.steps, clipper.steps) == (2, 1)
    assert repr(clipper.state_dict()) == before
    assert copied.last is not None
    assert "copy" not in repr(copied)  # It was never attached: clip_() is how it is used.


@every_way
def test_what_clips_in_backward_is_copied_detached(way: Callable[[Any], Any]) -> None:
    model = torch.nn.Linear(2, 1)
    optimizers = [torch.optim.SGD([param], lr=0.1) for param in model.parameters()]
    model.clipper = attach_in_backward(optimizers, "zclip", model=model)  # type: ignore[assignment]
    model(torch.ones(3, 2)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    copied = way(model)
    assert copied.clipper.handles == []
    assert repr(copied.clipper).endswith("; a copy, not attached)")
    assert repr(copied.clipper.state_dict()) == repr(model.clipper.state_dict())
    with pytest.warns(GradclipWarning, match="this InBackward is a copy"):
        assert copied.clipper.last is None
    with pytest.raises(AttributeError, match="call detach"):
        model.clipper.policy = "norm:1.0"  # type: ignore[assignment]
