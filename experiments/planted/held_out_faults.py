"""Trainings with a fault that were held out: the rules were not made with them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .case import AT, STEPS, between, layer_and_step
from .case import fault as _fault
from .trainings import CharLSTM, adamw, classes, fit, fit_text, mlp, sgd

fault = functools.partial(_fault, held_out=True)


def because(cause: str, low: int, high: int):
    """Return whether a finding begins in these steps and names this cause."""
    here = between(low, high)
    return lambda finding: here(finding) and finding.evidence["cause"] == cause


def regress(model: nn.Module, optimizer: torch.optim.Optimizer, spoil=lambda _, x, y: (x, y)):
    """Fit a fixed linear map by squares; `spoil` may change a batch."""
    teacher = torch.randn(16)
    for step in range(1, STEPS + 1):
        x = torch.randn(32, 16)
        x, y = spoil(step, x, x @ teacher)
        loss = (model(x).squeeze(1) - y).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def two_layers() -> nn.Sequential:
    """Return a regression model."""
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))


@fault("SGD at a learning rate of 5 on a regression", "exploding",
       place=between(1, 6), also=("loss-spike", "dead-layers"))  # fmt: skip
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    regress(model, torch.optim.SGD(model.parameters(), lr=5.0))


@fault("linear net of 6 layers at eight times the initialisation, SGD", "exploding",
       place=between(1, 3), also=("loss-spike",))  # fmt: skip
def _() -> None:
    model = nn.Sequential(
        nn.Linear(16, 32), *(nn.Linear(32, 32) for _ in range(4)), nn.Linear(32, 1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    regress(model, sgd(model, 0.05))


@fault("RNN of ReLUs, recurrence of 1.15, for 40 steps of time", "exploding", place=between(1, 5),
       also=("loss-spike",))  # fmt: skip
def _() -> None:
    rnn, out = nn.RNN(4, 24, nonlinearity="relu", batch_first=True), nn.Linear(24, 1)
    recurrence = rnn.get_parameter("weight_hh_l0")
    nn.init.eye_(recurrence)
    recurrence.data.mul_(1.15)
    optimizer = torch.optim.SGD([*rnn.parameters(), *out.parameters()], lr=0.01)
    for _ in range(60):
        x = torch.randn(16, 40, 4)
        loss = (out(rnn(x)[0][:, -1]) - x[:, :, :1].mean(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@fault("a batch scaled by a million at step 120, SGD", "exploding", place=between(AT, AT + 2),
       also=("loss-spike", "dead-layers"))  # fmt: skip
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    regress(model, sgd(model, 0.01), lambda step, x, y: (x * 1e6 if step == AT else x, y))


@fault("an infinite target at step 80, SGD", "non-finite", place=because("batch", 80, 80))
def _() -> None:
    model = two_layers()
    regress(model, sgd(model, 0.02), lambda step, x, y: (x, y / 0 if step == 80 else y))


@fault("one NaN among the inputs at step 7, AdamW", "non-finite", place=because("batch", 7, 7))
def _() -> None:
    model = mlp()

    def spoil(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == 7:
            x[3, 2] = torch.nan
        return x, y

    fit(model, adamw(model), before=spoil)


@fault("logarithm of zero in the loss at step 100", "non-finite", place=because("batch", 100, 100))
def _() -> None:
    model = mlp()
    optimizer = adamw(model)
    for step, (x, y) in zip(range(1, STEPS + 1), classes(), strict=False):
        chances = model(x).softmax(1).gather(1, y[:, None])
        loss = -(chances * (step != 100)).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@fault("NaN in the gradient of one layer at step 120, then in all weights", "non-finite",
       place=lambda finding: because("batch", AT, AT)(finding)
       and layer_and_step("source", "4.", AT, AT)(finding))  # fmt: skip
def _() -> None:
    model = mlp()

    def poison(step: int) -> None:
        if step == AT:
            model[4].weight.grad.fill_(torch.nan)  # type: ignore[union-attr]

    fit(model, sgd(model), between=poison)


@fault("data of NaN from the first step on", "non-finite", place=because("start", 1, 1))
def _() -> None:
    model = mlp()
    fit(model, sgd(model), before=lambda _, x, y: (x * torch.nan, y))


@fault("learning rate of AdamW jumps to 1e30 at step 90", "non-finite",
       place=because("rate", 90, 91), also=("loss-spike",))  # fmt: skip
def _() -> None:
    model = two_layers()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def jump(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == 90:
            optimizer.param_groups[0]["lr"] = 1e30
        return x, y

    regress(model, optimizer, jump)


@fault("tanh net of 16 layers, weights at a third", "vanishing",
       place=lambda finding: "per_layer" in finding.evidence, also=("plateau",))  # fmt: skip
def _() -> None:
    model = mlp(16, nn.Tanh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3)
    fit(model, sgd(model, 0.01))


@fault("threshold far above every norm of an LSTM", "never-binds", policy="norm:10000")
def _() -> None:
    fit_text(CharLSTM, lambda model: adamw(model, 3e-3), steps=100)


@fault("weights overwritten with noise at step 120", "loss-spike", place=between(AT, AT + 2),
       also=("exploding",))  # fmt: skip
def _() -> None:
    model = mlp()

    def overwrite(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == AT:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))
        return x, y

    fit(model, adamw(model), before=overwrite)


@fault("AdamW at a learning rate of zero", "plateau",
       place=lambda finding: "since the start" in finding.sentence)  # fmt: skip
def _() -> None:
    model = mlp()
    fit(model, adamw(model, 0.0))


@fault("the script raises an error at step 40", "ended-early",
       place=lambda f: f.step == 40 and "ZeroDivisionError" in f.sentence)  # fmt: skip
def _() -> None:
    model = mlp()
    fit(
        model,
        sgd(model),
        before=lambda step, x, y: (x / (41 - step and 1) if step < 41 else x / (1 // 0), y),
    )


@fault("interrupted by hand at step 60", "ended-early",
       place=lambda f: f.step == 60 and "by hand" in f.sentence)  # fmt: skip
def _() -> None:
    model = mlp()

    def interrupt(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step > 60:
            raise KeyboardInterrupt
        return x, y

    fit(model, sgd(model), before=interrupt)


@fault("a loop that never calls step", "no-steps")
def _() -> None:
    model = mlp()
    for (x, y), _ in zip(classes(), range(20), strict=False):
        nn.functional.cross_entropy(model(x), y).backward()
