"""Trainings with a fault, with which the rules were made."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .case import AT, STEPS, between, fault, layer_and_step
from .trainings import CharLSTM, adamw, classes, fit, fit_text, mlp, sgd


@fault(
    "gradient of one layer grows by 1.6 a step, from step 120",
    "exploding",
    place=layer_and_step("first_layer", "4.", AT - 2, AT + 15),
    also=("loss-spike", "non-finite", "dead-layers"),
)
def _() -> None:
    model = mlp()

    def grow(step: int) -> None:
        if step >= AT:
            for parameter in model[4].parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(1.6 ** (step - AT + 1))

    fit(model, sgd(model), between=grow)


@fault(
    "learning rate grows by 1.15 a step, from step 60",
    "exploding",
    place=between(60, STEPS),
    also=("loss-spike", "non-finite", "dead-layers", "vanishing"),
)
def _() -> None:
    model = mlp(activation=nn.ReLU)
    optimizer = sgd(model)

    def raise_rate(step: int) -> None:
        if step >= 60:
            optimizer.param_groups[0]["lr"] *= 1.15

    fit(model, optimizer, between=raise_rate)


@fault(
    "tanh net of 20 layers, weights three times too large",
    "exploding",
    place=lambda finding: "per_layer" in finding.evidence,
    also=("loss-spike", "plateau"),
)
def _() -> None:
    model = mlp(20, nn.Tanh)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=3 / math.sqrt(module.in_features))
    fit(model, sgd(model, 1e-3, momentum=0))


@fault(
    "sigmoid net of 12 layers",
    "vanishing",
    place=lambda finding: "per_layer" in finding.evidence,
    also=("plateau",),
)
def _() -> None:
    model = mlp(12, nn.Sigmoid)
    fit(model, sgd(model))


@fault(
    "one step a million times too large saturates a tanh net",
    "vanishing",
    place=between(50, STEPS),
    also=("plateau", "loss-spike", "dead-layers", "exploding"),
)
def _() -> None:
    model = nn.Sequential(*mlp(4, nn.Tanh), nn.Tanh())
    optimizer = sgd(model, 0.1, momentum=0)
    batches = classes()
    for step in range(1, STEPS + 1):
        x, y = next(batches)
        loss = (model(x) - nn.functional.one_hot(y, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 3e5 if step == 60 else 0.1
        optimizer.step()


@fault(
    "ReLU layer whose biases fall to -100 at step 120",
    "dead-layers",
    place=lambda finding: between(AT, AT + 2)(finding) and "4.weight" in finding.evidence["dead"],  # type: ignore[operator]
    also=("loss-spike",),
)
def _() -> None:
    model = mlp()

    def kill(step: int) -> None:
        if step == AT - 1:
            with torch.no_grad():
                model[4].bias.fill_(-100.0)  # type: ignore[union-attr]

    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda *_: kill(len(done)))
    done: list[int] = []
    fit(model, optimizer, between=done.append)


class Root(nn.Module):
    """A square root whose argument is sometimes zero: the gradient is then 0 · inf."""

    step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in every 40th step through a root."""
        Root.step += 1
        return torch.sqrt(x * 0 * x) + x if Root.step % 40 == 0 else x


@fault(
    "NaN in the backward pass of one layer, every 40th step",
    "non-finite",
    policy="norm:5",
    place=layer_and_step("source", "1.2", 40, 40),
    also=("skipped",),
)
def _() -> None:
    Root.step = 0
    head, tail = mlp(), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    body = nn.Sequential(*list(head)[:-1])
    middle = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), Root())
    model = nn.Sequential(body, middle, tail)
    fit(model, sgd(model))


@fault(
    "loss scale that overflows every fifth step",
    "skipped",
    place=lambda finding: finding.severity != "note",
    also=("non-finite",),
)
def _() -> None:
    model = mlp()
    optimizer = adamw(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_interval=4)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y) * 8).backward()
        scaler.step(optimizer)
        scaler.update()


@fault(
    "NaN in a quarter of the batches",
    "skipped",
    policy="norm:5",
    place=lambda finding: finding.severity != "note",
    also=("non-finite", "loss-spike"),
)
def _() -> None:
    model = mlp()

    def spoil(_step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * float("nan"), y) if torch.rand(()) < 0.25 else (x, y)

    fit(model, sgd(model), before=spoil)


@fault(
    "the script clips too, to a third of the policy's norm",
    "double-clipping",
    place=lambda finding: finding.severity == "warning",
    policy="norm:1.5",
)
def _() -> None:
    model = mlp()

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    fit(model, sgd(model), between=clip)


@fault("scaled gradients clipped before they are unscaled", "clip-before-unscale",
       also=("double-clipping", "plateau"))  # fmt: skip
def _() -> None:
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu")
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@fault(
    "scaled by hand, and stepped without unscaling",
    "clip-before-unscale",
    policy="norm:1",
    also=("always-binds", "removes-most"),
)
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.02)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) * 65536).backward()
        optimizer.step()


@fault("threshold far above every norm", "never-binds", policy="norm:1000")
def _() -> None:
    model = mlp()
    fit(model, sgd(model))


@fault(
    "threshold under every norm",
    "always-binds",
    place=lambda finding: finding.severity == "warning",
    policy="norm:0.1",
)
def _() -> None:
    fit_text(CharLSTM, lambda model: sgd(model, 2.0, momentum=0))


@fault("threshold at a thousandth of the norm", "removes-most", policy="norm:0.001",
       also=("always-binds", "plateau"))  # fmt: skip
def _() -> None:
    model = mlp()
    fit(model, sgd(model, 0.5))


@fault(
    "a corrupted gradient at step 120 throws the weights",
    "loss-spike",
    place=lambda finding: (
        between(AT, AT + 3)(finding)
        and bool(finding.evidence["after_a_norm_spike"])
        and finding.evidence["norm_steps"][0] == AT
    ),  # type: ignore[index]
    also=("exploding", "dead-layers"),
)
def _() -> None:
    model = mlp(2, nn.Tanh)

    def corrupt(step: int) -> None:
        if step == AT:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(300)

    fit(model, sgd(model), between=corrupt)


@fault(
    "three batches of wrong labels at step 120, clipped",
    "loss-spike",
    policy="norm:1",
    place=lambda finding: (
        between(AT, AT + 2)(finding) and finding.evidence["after_a_norm_spike"] == 0
    ),
)
def _() -> None:
    model = mlp()

    def mislabel(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, (y + 2) % 4) if AT <= step < AT + 3 else (x, y)

    fit(model, adamw(model), before=mislabel)


@fault(
    "learning rate of 1e-7",
    "plateau",
    place=lambda finding: "since the start" in finding.sentence,
)
def _() -> None:
    model = mlp()
    fit(model, sgd(model, 1e-7))


@fault("learning rate falls to nothing at step 60", "plateau", place=between(30, 110))
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.2)

    def stop(step: int) -> None:
        if step == 60:
            optimizer.param_groups[0]["lr"] = 1e-6

    fit(model, optimizer, between=stop)


@fault(
    "RNN of ReLUs that explodes in its first step",
    "exploding",
    place=lambda finding: between(1, 1)(finding) and finding.evidence["nonfinite_from"] == 2,
)
def _() -> None:
    rnn, out = nn.RNN(4, 32, nonlinearity="relu", batch_first=True), nn.Linear(32, 1)
    recurrence = rnn.get_parameter("weight_hh_l0")
    nn.init.eye_(recurrence)
    recurrence.data.mul_(1.05)
    optimizer = torch.optim.SGD([*rnn.parameters(), *out.parameters()], lr=0.02)
    for _ in range(60):
        x = torch.randn(32, 50, 4)
        loss = (out(rnn(x)[0][:, -1]) - x[:, :, :1].mean(1) * 5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@fault(
    "one NaN among the inputs at step 50, Adam",
    "non-finite",
    place=lambda f: (
        between(50, 50)(f) and f.evidence["cause"] == "batch" and "'skip'" in f.suggestion
    ),
)
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))

    def spoil(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if step == 50:
            x[3, 2] = torch.nan
        return x, y

    fit(model, torch.optim.Adam(model.parameters(), lr=1e-2), before=spoil)


@fault("ReLU layer that is off from the start", "dead-layers",
       place=lambda finding: between(1, 1)(finding) and "2.weight" in finding.evidence["dead"],  # type: ignore[operator]
       also=("plateau",))  # fmt: skip
def _() -> None:
    model = mlp()
    nn.init.constant_(model[2].bias, -50.0)  # type: ignore[arg-type]
    fit(model, adamw(model))
