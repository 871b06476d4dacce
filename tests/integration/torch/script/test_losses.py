"""The loss of a step of several backward calls: a sum where the script divides, else a mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradclip import Run, read_run
from gradclip.record import RecordWriter
from gradclip.torch.script import weights
from gradclip.torch.script.losses import Losses
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session
from gradclip.torch.script.weights import weights_of
from integration.training import loss_at, net

Way = Callable[[Tensor], object]
N = 4


@pytest.fixture
def trained(tmp_path: Any) -> Callable[..., tuple[Run, np.ndarray]]:
    """Train in groups of backward calls; return the record, and the sum and number of each."""

    def run(way: Way, groups: Sequence[int] = (N, N)) -> tuple[Run, np.ndarray]:
        model, micro, found = net(), 0, []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        session = Session(None, writer=RecordWriter(tmp_path / "run.jsonl"))
        with watch(session):
            for size in groups:
                losses = []
                for _ in range(size):
                    loss = loss_at(model, micro)
                    losses.append(loss.item())
                    way(loss)
                    micro += 1
                optimizer.step()
                optimizer.zero_grad()
                found.append(sum(losses))
        session.close("ok")
        return read_run(tmp_path / "run.jsonl"), np.array(found)

    return run


def _scaled(loss: Tensor) -> None:
    torch.amp.GradScaler("cpu", init_scale=3000.0).scale(loss / N).backward()


def _in_place(loss: Tensor) -> None:
    loss /= N
    loss.backward()


def _heads(loss: Tensor) -> None:
    (0.25 * loss / N + 0.75 * loss / N).backward()


def _parts(loss: Tensor) -> None:
    torch.autograd.backward([0.25 * loss / N, 0.75 * loss / N])


DIVIDED: dict[str, Way] = {
    "by a number": lambda loss: (loss / N).backward(),
    "by a float": lambda loss: loss.div(float(N)).backward(),
    "by a tensor": lambda loss: (loss / torch.tensor(N)).backward(),
    "multiplied": lambda loss: (loss * (1 / N)).backward(),
    "multiplied from the left": lambda loss: ((1 / N) * loss).backward(),
    "by a tensor from the left": lambda loss: (torch.tensor(1 / N) * loss).backward(),
    "cast after that": lambda loss: (loss / N).double().backward(),
    "cast before that": lambda loss: (loss.double() / N).backward(),
    "of one element": lambda loss: (loss / N).reshape(1).sum().backward(),
    "by a function": lambda loss: torch.autograd.backward(loss / N),
    "by keyword": lambda loss: torch.autograd.backward(tensors=loss / N),
    "in place": _in_place,
    "scaled": _scaled,
    "heads": _heads,
    "parts": _parts,
}


@pytest.mark.parametrize("way", DIVIDED)
def test_losses_that_were_divided_are_summed(way: str, trained: Any) -> None:
    run, sums = trained(DIVIDED[way])
    np.testing.assert_allclose(run.column("loss"), sums / N, rtol=1e-6)
    (event,) = run.events
    assert (event.name, event.step) == ("loss-summed", 1)
    assert event.text == "the loss is the sum of 4 backward calls: each was divided by 4 before"


WHOLE: dict[str, tuple[Way, float]] = {
    "as it is": (lambda loss: loss.backward(), 1),
    "times a weight": (lambda loss: (0.1 * loss).backward(), 0.1),
    "by the size of a batch": (lambda loss: (loss / 16).backward(), 1 / 16),
    "plus a part that is divided": (lambda loss: (loss + loss / N).backward(), 1 + 1 / N),
    "by a gradient": (lambda loss: loss.backward(torch.tensor(0.25)), 1),
}


@pytest.mark.parametrize("way", WHOLE)
def test_others_are_averaged(way: str, trained: Any) -> None:
    step, factor = WHOLE[way]
    run, sums = trained(step)
    np.testing.assert_allclose(run.column("loss"), factor * sums / N, rtol=1e-5)
    assert [(event.name, event.step) for event in run.events] == [("loss-mean", 1)]
    assert "mean of 4 backward calls" in run.events[0].text


def test_one_backward_a_step_is_what_it_is(trained: Any) -> None:
    run, sums = trained(lambda loss: (loss / 4).backward(), (1, 1, 1))
    np.testing.assert_allclose(run.column("loss"), sums / 4, rtol=1e-6)
    assert not run.events


def test_a_last_group_that_is_not_complete(trained: Any) -> None:
    run, sums = trained(lambda loss: (loss / N).backward(), (4, 4, 3))
    np.testing.assert_allclose(run.column("loss"), sums / 4, rtol=1e-6)


def test_a_last_group_that_is_divided_by_its_own_number(trained: Any) -> None:
    left = iter([4] * 4 + [3] * 3)
    run, sums = trained(lambda loss: (loss / next(left)).backward(), (4, 3))
    np.testing.assert_allclose(run.column("loss"), sums / [4, 3], rtol=1e-6)


def test_weights_that_add_up_to_one(trained: Any) -> None:
    values: list[float] = []

    def way(loss: Tensor) -> None:
        part = (0.5, 0.3, 0.2)[len(values) % 3]
        values.append(part * loss.item())
        (loss * part).backward()

    run, _ = trained(way, (3, 3))
    np.testing.assert_allclose(run.column("loss"), [sum(values[:3]), sum(values[3:])], rtol=1e-6)
    assert "add up to 1" in run.events[0].text


def test_the_weights_of_a_graph_that_is_freed_are_read_before(trained: Any) -> None:
    def way(loss: Tensor) -> None:
        part = loss / N
        part.backward()
        with pytest.raises(RuntimeError):
            _ = part.grad_fn._saved_other  # type: ignore[union-attr]

    assert trained(way)[0].events[0].name == "loss-summed"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x, []),
        (lambda x: x.detach(), []),
        (lambda x: -x / 4, [0.25]),
        (lambda x: x * x, []),
        (lambda x: x / 0, []),
        (lambda x: (x / 2) / 4, [0.125, 0.25, 0.5]),
        (lambda x: (x / 4 + 3) / 1, [0.25, 0.25, 1]),
        (lambda x: (x / 4).expand(2), []),
        (lambda x: x / torch.tensor(4.0, requires_grad=True), []),
    ],
)
def test_weights(change: Callable[[Tensor], Tensor], found: list[float]) -> None:
    loss = nn.Linear(2, 1)(torch.ones(1, 2)).square().mean()
    assert sorted(weights_of(change(loss))) == found


def test_what_the_trainer_of_transformers_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its `training_step` does: the number of targets is that of all micro-batches."""
    monkeypatch.setitem(weights.sys.modules, "transformers.trainer", SimpleNamespace())
    said: list[str] = []

    def total(accepts: bool, num_items: int | None) -> float:
        losses = Losses(lambda _, text: said.append(text))

        class Trainer:
            model_accepts_loss_kwargs = accepts
            compute_loss_func = None

            def training_step(self, loss: Tensor, num_items_in_batch: int | None) -> None:
                assert num_items_in_batch is num_items
                losses.see(loss, by_framework=weights.summed_by_framework())

        for _ in range(4):
            Trainer().training_step(torch.tensor(2.0), num_items)
        taken = losses.take(None)
        assert taken is not None
        return float(taken)

    assert total(True, 64) == 8
    assert "transformers divided each" in said[-1]
    assert total(True, None) == total(False, 64) == 2
    assert weights.summed_by_framework() is None
