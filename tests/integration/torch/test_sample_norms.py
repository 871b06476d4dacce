"""The samples of a record: the right ones by an independent account, and a training left alone."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sample_oracle as oracle
from gradclip import PolicyError, Run, read_run
from gradclip.errors import GradclipWarning
from gradclip.torch import attach, record
from gradclip.torch.samples.guarded import Guarded
from gradclip.torch.samples.largest import LargestSamples
from integration.training import ReadsBack

BATCH, STEPS = 12, 5
Train = Callable[[nn.Module, torch.optim.Optimizer, int], None]


class Tied(nn.Module):
    """A table that is the head's weight too: a sample's gradients add up before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.table(ids)))


class Odd(nn.Module):
    """Parts without a formula, dropout, and one part under a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.first = nn.Linear(3, 8)
        self.mixed = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.again = nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(torch.relu(self.mixed(self.first(x))), 0.2, self.training)
        h = self.lstm((h * self.scale)[:, None].expand(-1, 3, -1))[0]
        h = h + self.attention(h, h, h)[0]
        h = checkpoint(self.again, h, use_reentrant=False)  # type: ignore[assignment]
        return self.last(h.mean(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))


def batch(step: int, count: int = BATCH) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x, y = torch.randn(count, 3, generator=draw), torch.randn(count, 2, generator=draw)
    y[step % count] *= 30
    return x, y


def loss_at(model: nn.Module, step: int, part: slice = slice(None)) -> Tensor:
    x, y = batch(step)
    return (model(x[part]) - y[part]).square().mean()


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_at(model, step).backward()
    optimizer.step()


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    for part in (slice(0, 5), slice(5, 12)):
        (loss_at(model, step, part) / 2).backward()
    optimizer.step()


def with_evaluation(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    model.eval()
    with torch.no_grad():
        loss_at(model, step + 100)
    loss_at(model, step + 200)  # With gradients, and no backward.
    model.train()
    plain(model, optimizer, step)


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_at(model, step)).backward()
    scaler.step(optimizer)
    scaler.update()


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_at(model, step)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


def twice_over_one_graph(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss = loss_at(model, step)
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    optimizer.step()


def with_penalty(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    x = batch(step)[0].requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (loss_at(model, step) + slope.square().mean()).backward()
    optimizer.step()


def with_gradients_beside(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_at(model, step).backward()
    torch.autograd.grad(loss_at(model, step), [*model.parameters()])  # Adds to no `.grad`.
    optimizer.step()


def compiled(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    fast = torch.compile(model, backend="aot_eager")
    x, y = batch(step)
    (fast(x) - y).square().mean().backward()
    optimizer.step()


def cleared_by_another(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss_at(model, step + 50).backward()  # As a generator's loss through its discriminator.
    plain(model, optimizer, step)


TRAININGS: dict[str, tuple[Callable[[], nn.Module], Train, str]] = {
    "plain": (net, plain, "AdamW"),
    "accumulated": (net, accumulated, "AdamW"),
    "evaluation": (net, with_evaluation, "AdamW"),
    "scaler": (net, scaled, "SGD"),
    "closure": (net, with_closure, "LBFGS"),
    "one graph": (net, twice_over_one_graph, "SGD"),
    "penalty": (net, with_penalty, "SGD"),
    "gradients beside": (net, with_gradients_beside, "SGD"),
    "compiled": (net, compiled, "SGD"),
    "cleared": (net, cleared_by_another, "SGD"),
    "odd parts": (Odd, plain, "AdamW"),
    "odd parts, accumulated": (Odd, accumulated, "AdamW"),
    "no formula": (lambda: Bare(), plain, "SGD"),
}


class Bare(nn.Module):
    """A model whose only parameter is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def trained(
    name: str, path: Path, samples: int, steps: int = STEPS, when: str = "always"
) -> tuple[list[Tensor], Run, list[str]]:
    """Train in one of the ways; return the weights, the record and the warnings."""
    make, train, kind = TRAININGS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    clipper = attach(optimizer, "norm:0.5", model=model)
    options: dict[str, Any] = {"samples": samples, "model": model, "samples_when": when}
    options = options if samples else {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", GradclipWarning)
        with record(clipper, path, optimizer=optimizer, **options):
            for step in range(steps):
                train(model, optimizer, step)
    texts = [str(each.message) for each in seen if each.category is GradclipWarning]
    assert not any(module._forward_hooks for module in model.modules())
    return [p.detach().clone() for p in model.parameters()], read_run(path), texts


@pytest.mark.parametrize("when", ["always", "spikes"])
@pytest.mark.parametrize("name", TRAININGS)
def test_the_weights_are_the_same_bit_for_bit(name: str, when: str, tmp_path: Path) -> None:
    steps = STEPS if when == "always" else 14
    without, run, _ = trained(name, tmp_path / "without", 0, steps)
    with_samples, again, _ = trained(name, tmp_path / "with", 3, steps, when)
    assert len(without) == len(with_samples)
    for one, other in zip(without, with_samples, strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(run.column("norm"), again.column("norm"))


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("plain", 12),
        ("accumulated", 12),
        ("evaluation", 12),
        ("scaler", 12),
        ("one graph", 24),
        ("cleared", 12),
        ("penalty", 12),
        ("gradients beside", 12),
        ("odd parts", 12),
    ],
)
def test_each_step_names_its_largest_samples(name: str, of: int, tmp_path: Path) -> None:
    _, run, texts = trained(name, tmp_path / "r", 3)
    assert texts == []
    steps = run.samples()
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    for step, samples in steps:
        assert samples.of == of
        assert len(samples.at) == len(samples.norms) == 3
        assert samples.at[0] % 12 == step - 1  # The one that is 30 times as large.
        assert list(samples.norms) == sorted(samples.norms, reverse=True)
        assert samples.ids is None


@pytest.mark.parametrize("name", ["no formula", "compiled"])
def test_a_training_without_norms_goes_on_and_one_warning_says_so(
    name: str, tmp_path: Path
) -> None:
    _, run, texts = trained(name, tmp_path / "r", 3)
    (text,) = texts
    (event,) = run.events
    assert "the norms of the samples cannot be had" in text
    assert event.name == "samples-stopped"
    assert run.samples() == []
    assert len(run.steps) == STEPS


def test_what_the_norms_leave_out_is_in_the_record(tmp_path: Path) -> None:
    _, run, _ = trained("odd parts", tmp_path / "r", 3)
    texts = {event.name: event.text for event in run.events}
    assert texts.keys() == {"samples-approximate", "samples-partial"}
    assert "BatchNorm mixes the samples" in texts["samples-approximate"]
    assert (
        "leave out 10% of the parameters, scale, mixed.weight, mixed.bias"
        in texts["samples-partial"]
    )


def squares_of(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> list[float]:
    return [oracle.norm(each) for each in oracle.sample_gradients(model, loss, x, y)]


def ids_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    return nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)


def square_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean(1)


@pytest.mark.parametrize("tied", [False, True])
def test_the_norms_are_those_of_each_sample_alone(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = Tied() if tied else net()
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(9, (2, BATCH, 5), generator=draw)
    x, y = (ids[0], ids[1]) if tied else batch(1)
    loss = ids_loss if tied else square_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    clipper = attach(optimizer, None, model=model)
    names = [f"{i}.png" for i in range(BATCH)]
    with record(clipper, tmp_path / "r", samples=4, model=model) as recorder:
        recorder.sample_ids(names)
        loss(model, x, y).mean().backward()
        optimizer.step()
    ((_, samples),) = read_run(tmp_path / "r").samples()
    exact = np.array(squares_of(model, x, y, loss)) / BATCH  # The loss is their mean.
    order = np.argsort(-exact)[:4]
    assert list(samples.at) == order.tolist()
    assert samples.ids == tuple(f"{i}.png" for i in order)
    np.testing.assert_allclose(samples.norms, exact[order], rtol=2e-5)
    np.testing.assert_allclose(samples.total, np.sqrt((exact**2).sum()), rtol=2e-5)
    np.testing.assert_allclose(samples.median, np.sort(exact)[BATCH // 2 - 1], rtol=2e-5)


def test_only_the_parameters_of_the_optimizer_count(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = net()
    head = model[3]  # type: ignore[index]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
    clipper = attach(optimizer, None, model=model)
    x, y = batch(1)
    with record(clipper, tmp_path / "r", samples=BATCH, model=model):
        square_loss(model, x, y).mean().backward()
        optimizer.step()
    run = read_run(tmp_path / "r")
    ((_, samples),) = run.samples()
    each = oracle.sample_gradients(model, square_loss, x, y)
    exact = [oracle.norm({n: g for n, g in one.items() if n[0] == "3"}) / BATCH for one in each]
    np.testing.assert_allclose(samples.norms, sorted(exact, reverse=True), rtol=2e-5)
    assert run.events == ()


def test_positions_count_over_the_micro_batches_and_so_do_ids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, None, model=model)
    with record(clipper, tmp_path / "r", samples=1, model=model) as recorder:
        for part in (slice(0, 5), slice(5, 12)):
            recorder.sample_ids(torch.arange(100, 112)[part])
            loss_at(model, 9, part).backward()
        optimizer.step()
    ((_, samples),) = read_run(tmp_path / "r").samples()
    assert (samples.of, samples.at, samples.ids) == (12, (9,), (109,))


def test_ids_in_another_number_are_left_out_with_an_event(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, None, model=model)
    with record(clipper, tmp_path / "r", samples=1, model=model) as recorder:
        for step in range(3):
            recorder.sample_ids([1, 2, 3])
            plain(model, optimizer, step)
    run = read_run(tmp_path / "r")
    assert [each.ids for _, each in run.samples()] == [None] * 3
    (event,) = run.events
    assert event.name == "samples-without-ids"
    assert "3 ids were given for 12 samples" in event.text


def test_a_module_whose_input_has_another_first_axis_is_left_out(tmp_path: Path) -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(5, 6)
            self.words = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.words(ids) + self.places(torch.arange(5)))

    model = Places()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, None, model=model)
    with record(clipper, tmp_path / "r", samples=1, model=model):
        for _ in range(2):
            ids = torch.randint(9, (2, BATCH, 5))
            ids_loss(model, ids[0], ids[1]).mean().backward()
            optimizer.step()
    run = read_run(tmp_path / "r")
    assert [each.of for _, each in run.samples()] == [BATCH, BATCH]
    (event,) = run.events
    assert "places.weight: places: its input begins with 5, not with the batch of 12" in event.text


def test_a_fault_of_ours_stops_the_norms_alone(tmp_path: Path) -> None:
    """A formula that cannot run here, since the module was given a batch of no axes."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weighed = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.weighed(each) for each in x])

    model = Flat()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, None, model=model)
    recorder = record(clipper, tmp_path / "r", samples=1, model=model)
    for step in range(4):
        warns = pytest.warns(GradclipWarning, match="weighed: .*has no batch axis")
        with warns if step == 2 else nullcontext():
            plain(model, optimizer, step)
    recorder.close()
    assert read_run(tmp_path / "r").samples() == []


def test_a_fault_of_a_hook_stops_the_norms_alone() -> None:
    told: list[str] = []
    model = net()
    largest = LargestSamples(model, [*model.parameters()], 3, lambda *texts: told.extend(texts))

    def faulty(*_: Any) -> None:
        raise ZeroDivisionError("division by zero")

    hook = Guarded(faulty, largest, is_last=True)
    hook(model[0], (), {}, torch.ones(2, requires_grad=True))  # type: ignore[index]
    assert largest.off
    assert told == ["samples-stopped", "the norms of the samples cannot be had: division by zero"]
    assert not any(module._forward_hooks for module in model.modules())


def test_samples_that_hold_nan_come_first(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, "norm:1.0", model=model)
    with record(clipper, tmp_path / "r", samples=3, model=model):
        x, y = batch(0)
        x[7, 0] = float("nan")
        (model(x) - y).square().mean().backward()
        optimizer.step()
    ((_, samples),) = read_run(tmp_path / "r").samples()
    assert samples.at[:2] == (7, 0)
    assert np.isnan(samples.norms[0])
    assert np.isfinite([*samples.norms[1:], samples.median]).all()


def test_a_model_with_hooks_can_be_saved_and_loads_without_gradclip(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, None, model=model)
    recorder = record(clipper, tmp_path / "r", samples=1, model=model)
    plain(model, optimizer, 0)
    file = io.BytesIO()
    torch.save(model, file)
    text = pickle.dumps(model)
    recorder.close()
    assert b"gradclip" not in file.getvalue() + text
    file.seek(0)
    for again in (torch.load(file, weights_only=False), pickle.loads(text)):
        x = batch(0)[0]
        assert torch.equal(again(x), model(x))


def test_samples_need_a_model_and_ids_need_samples(tmp_path: Path) -> None:
    clipper = attach(torch.optim.SGD(net().parameters(), lr=0.1), None)
    with pytest.raises(PolicyError, match="give model=model"):
        record(clipper, tmp_path / "r", samples=3)
    with pytest.raises(PolicyError, match="samples"):
        record(clipper, tmp_path / "r", samples=-1)
    recorder = record(clipper, tmp_path / "r")
    with pytest.raises(PolicyError, match="samples=5, model=model"):
        recorder.sample_ids([1])
    recorder.close()


def test_the_schema_of_the_samples(tmp_path: Path) -> None:
    _, run, _ = trained("plain", tmp_path / "r", 2)
    rows = map(json.loads, (tmp_path / "r").read_text().splitlines())
    row = next(row for row in rows if row["kind"] == "step")
    assert list(row["samples"]) == ["of", "at", "norms", "median", "total"]
    assert tuple(row["samples"]["norms"]) == run.samples()[0][1].norms


def test_at_spikes_alone_the_same_norms_are_computed(tmp_path: Path) -> None:
    def run(when: Any) -> Run:
        torch.manual_seed(0)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        clipper = attach(optimizer, None, model=model)
        with record(clipper, tmp_path / when, samples=2, model=model, samples_when=when) as rec:
            for step in range(30):
                rec.sample_ids(torch.arange(BATCH) + 100 * step)
                x, y = batch(5)
                y[5] *= 40 if step == 20 else 1
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
        return read_run(tmp_path / when)

    always, spikes = dict(run("always").samples()), dict(run("spikes").samples())
    assert list(always) == list(range(1, 31))
    assert spikes == {21: always[21]}
    assert spikes[21].ids is not None
    assert spikes[21].ids[0] == 2005


def test_several_passes_a_step_are_measured_in_each(tmp_path: Path) -> None:
    _, run, _ = trained("accumulated", tmp_path / "r", 3, when="spikes")
    assert [step for step, _ in run.samples()] == [1, 2, 3, 4, 5]
    assert {samples.of for _, samples in run.samples()} == {12}
    assert [event.name for event in run.events] == ["samples-always"]


@pytest.mark.parametrize(("when", "each_step"), [("always", 0), ("spikes", 1)])
def test_no_step_reads_the_device_unless_it_waits_for_spikes(
    when: Any, each_step: int, tmp_path: Path
) -> None:
    """The clipping itself reads the norm here: what is counted is what the samples add."""

    def reads(**options: Any) -> int:
        torch.manual_seed(0)
        model = Tied()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        clipper = attach(optimizer, None, model=model)
        given = {**options, "model": model} if options else {}
        ids = torch.randint(9, (2, BATCH, 5), generator=torch.Generator().manual_seed(4))
        with record(clipper, tmp_path / str(options), every=99, **given), ReadsBack() as counted:
            for _ in range(12):
                ids_loss(model, ids[0], ids[1]).mean().backward()
                optimizer.step()
            return counted.count

    assert reads(samples=2, samples_when=when) == reads() + 12 * each_step
