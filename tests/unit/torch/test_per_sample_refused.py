"""What per-sample clipping refuses: before a step, in one, and in the check on two samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradclip.errors import PolicyError
from gradclip.torch import per_sample

from .sample_training import Positions, backward, data, grads, loss_of, net, step

# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (nn.BatchNorm1d(3), r"1 \(BatchNorm1d\).*use torch\.nn\.GroupNorm"),
        (nn.SyncBatchNorm(3), r"1 \(SyncBatchNorm\).*use torch\.nn\.GroupNorm"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "track_running_stats=False"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "scale_grad_by_freq=False"),
        (nn.Embedding(3, 2, sparse=True), "sparse=False"),
        (nn.DataParallel(nn.Linear(3, 3)), "give the module inside"),
        (nn.Linear(3, 3, dtype=torch.complex64), "the parameter is complex"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_mixes_samples_is_refused_before_the_first_step(part: nn.Module, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(nn.Sequential(nn.Linear(3, 3), part), "norm:1.0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": 3}, "give a torch.nn.Module"),
        ({"model": nn.ReLU()}, "no parameter of it is trained"),
        ({"reduction": "average"}, "choose one of 'mean', 'sum'"),
        ({"nonfinite": "skip"}, "choose one of 'leave-out', 'raise'"),
        ({"expected_batch_size": 0}, "give a number > 0"),
        ({"reduction": "sum", "expected_batch_size": 3}, "a sum is not divided"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        per_sample(**{"model": net(), "policy": "norm:1.0", **arguments})


class Functional(nn.Module):
    """Uses the weights of its table where no module sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.table(x), self.table.weight)


class Random(nn.Module):
    """Has a parameter beside dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x * self.scale, 0.5)


class Recurrent(nn.Module):
    """Returns the outputs of a recurrent layer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)[0]


class Picky(nn.Module):
    """Refuses a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("one is too few")
        return x * self.scale


WRONG: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "functional": (
        Functional,
        lambda: torch.randint(0, 5, (4, 6)),
        r"'table\.weight'.*only through its module",
    ),
    "positions": (
        Positions,
        lambda: torch.randint(0, 5, (4, 6)),
        r"places\.input.*=6 .*expand what all samples share",
    ),
    "random": (Random, lambda: torch.randn(4, 3), r"Random \(Random\).*without dropout"),
    "picky": (Picky, lambda: torch.randn(4, 3), r"Picky \(Picky\).*one is too few"),
    "random in turn": (
        lambda: Recurrent(nn.GRU(3, 2, 2, dropout=0.5, batch_first=True)),
        lambda: torch.randn(4, 5, 3),
        r"part \(GRU\).*draws random numbers",
    ),
    "time first": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Flatten(0, 1), nn.Linear(3, 3)),
        lambda: torch.randn(4, 5, 3),
        r"2\.input.*=20 .*must be the batch, of 4 as for \'0\'",
    ),
    "no batch": (lambda: nn.Linear(3, 2), lambda: torch.randn(3), "has no batch axis"),
    "no batch, conv": (lambda: nn.Conv1d(3, 2, 1), lambda: torch.randn(3, 4), "has no batch axis"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_taken_apart_is_refused_in_the_first_step(name: str) -> None:
    make, inputs, says = WRONG[name]
    torch.manual_seed(0)
    model = make()
    clipper = per_sample(model, "norm:1.0", "sum")
    model(inputs()).pow(2).sum().backward()
    before = grads(model)
    with pytest.raises(PolicyError, match=says):
        clipper.clip_()
    assert all(torch.equal(grads(model)[n], before[n]) for n in before)
    assert clipper.steps == 0


def test_an_input_that_was_overwritten_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3))
    clipper = per_sample(model, "norm:1.0", "sum")
    model(x := torch.randn(4, 3)).sum().backward()
    x.mul_(2.0)
    with pytest.raises(PolicyError, match=r"module='0'.*was changed in place after the call"):
        clipper.clip_()


def test_a_copy_of_the_model_is_not_watched() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    loss_of(copy.deepcopy(model), x, y).sum().backward()
    assert not clipper._kept.uses
    assert len(step(clipper, model, x, y).sample_norms) == 4


def test_two_backward_passes_need_accumulate() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    for _ in range(2):
        backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"call accumulate\(\) after each"):
        clipper.clip_()
    # The refused batch is gone; the next step is whole.
    assert len(step(clipper, model, x, y).sample_norms) == 4


def test_a_parameter_that_is_trained_since_is_refused() -> None:
    model, (x, y) = net(), data(4)
    model[0].weight.requires_grad_(False)
    clipper = per_sample(model, "norm:1.0", "sum")
    model[0].weight.requires_grad_(True)
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=r"'0\.weight'.*make a new clipper"):
        clipper.clip_()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (torch.ones(3), r"weights\.shape=\(3,\).*give 4 numbers"),
        (torch.tensor([1.0, 1.0, 1.5, 1.0]), "from 0 to 1"),
        (torch.tensor([1.0, 1.0, math.nan, 1.0]), "from 0 to 1"),
    ],
    ids=["shape", "large", "nan"],
)
def test_weights_that_are_not_weights_are_refused(weights: Tensor, says: str) -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    backward(clipper, model, x, y)
    with pytest.raises(PolicyError, match=says):
        clipper.clip_(weights)


def test_weights_come_with_their_batch() -> None:
    model, (x, y) = net(), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    backward(clipper, model, x, y)
    clipper.accumulate()
    with pytest.raises(PolicyError, match=r"give them to accumulate\(\)"):
        clipper.clip_(torch.ones(4))
    clipper.clip_()


# ---- the check on two samples -----------------------------------------------------------------


LOSSES: dict[str, tuple[Any, Any, str | None]] = {
    "mean": (lambda losses, _out: losses.mean(), "mean", None),
    "sum": (lambda losses, _out: losses.sum(), "sum", None),
    "sum for mean": (lambda losses, _out: losses.sum(), "mean", "give reduction='sum'"),
    "mean for sum": (lambda losses, _out: losses.mean(), "sum", "give reduction='mean'"),
    "contrast": (lambda _, out: (out @ out.T).logsumexp(1).mean(), "mean", "mixes samples"),
    "not one": (lambda losses, _out: losses, "mean", r"loss\.shape=\(2,\).*give one number"),
    "zero": (lambda losses, _out: 0 * losses.sum(), "sum", "finite and not all zero"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_two_samples_tell_what_the_loss_is(name: str) -> None:
    reduced, reduction, says = LOSSES[name]
    model, (x, y) = net(), data(6)
    model.append(nn.Dropout(0.5))
    clipper = per_sample(model, "norm:1.0", reduction)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        return reduced(((out - y) ** 2).sum(1), out)

    if says is None:
        state = torch.get_rng_state()
        clipper.check(loss, x, y)
        assert torch.equal(torch.get_rng_state(), state), "nothing was drawn"
    else:
        with pytest.raises(PolicyError, match=says):
            clipper.check(loss, x, y)
    assert grads(model) == {}
    assert all(part.training for part in model.modules())
    assert not clipper._kept.uses
    assert not clipper._kept.paused


def test_two_samples_tell_that_the_model_mixes() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    model, (x, y) = nn.Sequential(Centred(), net()), data(4)
    clipper = per_sample(model, "norm:1.0", "sum")
    with pytest.raises(PolicyError, match="mixes samples"):
        clipper.check(lambda x, y: loss_of(model, x, y).sum(), x, y)


def test_an_axis_that_happens_to_be_as_long_as_the_batch_is_found() -> None:
    model = Positions()
    clipper = per_sample(model, "norm:1.0", "sum")
    words = torch.randint(0, 5, (6, 6))
    model(words).pow(2).sum().backward()
    clipper.clip_()  # Here nothing tells that the 6 positions are not the 6 samples.
    with pytest.raises(PolicyError, match=r"places\.input.*=6 .*of 2 samples that check\(\) took"):
        clipper.check(lambda x: model(x).pow(2).sum(), words)
    assert not clipper._kept.uses


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), ()])
def test_the_check_needs_two_samples(sizes: tuple[int, ...]) -> None:
    clipper = per_sample(net(), "norm:1.0")
    with pytest.raises(PolicyError, match="two samples or more"):
        clipper.check(lambda *_: torch.zeros(()), *(torch.zeros(n, 3) for n in sizes))
