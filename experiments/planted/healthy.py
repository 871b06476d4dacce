"""Trainings without a fault, with which the rules were made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .case import STEPS, healthy
from .trainings import (
    CharLSTM,
    CharTransformer,
    adamw,
    classes,
    fit,
    fit_text,
    mlp,
    sgd,
    step_on,
    warm_up,
)


@healthy("MLP, SGD with momentum")
def _() -> None:
    model = mlp()
    fit(model, sgd(model))


@healthy("MLP of 8 layers, batch normalisation, AdamW")
def _() -> None:
    blocks = [m for i in range(8) for m in (nn.Linear(32 if i else 16, 32), nn.BatchNorm1d(32), nn.ReLU())]  # noqa: E501  # fmt: skip
    model = nn.Sequential(*blocks, nn.Linear(32, 4))
    fit(model, adamw(model))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        return x + self.f(x)


@healthy("residual net of 12 blocks, AdamW, clipped", policy="norm:1")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), *(Residual() for _ in range(12)), nn.Linear(32, 4))
    fit(model, adamw(model))


@healthy("CNN on generated pictures, SGD")
def _() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    optimizer = sgd(model)
    marks = torch.randn(4, 1, 5, 5)
    for _ in range(STEPS):
        y = torch.randint(4, (32,))
        x = torch.randn(32, 1, 12, 12) * 0.3
        x[:, :, 3:8, 4:9] += marks[y]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@healthy("LSTM on the adding problem, Adam, clipped", policy="norm:1")
def _() -> None:
    lstm, out = nn.LSTM(2, 32, batch_first=True), nn.Linear(32, 1)
    model = nn.ModuleList([lstm, out])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        values = torch.rand(32, 12)
        places = torch.rand(32, 12).topk(2).indices
        marked = torch.zeros(32, 12).scatter(1, places, 1.0)
        states = lstm(torch.stack([values, marked], 2))[0]
        loss = (out(states[:, -1]).squeeze(1) - (values * marked).sum(1)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy("character LSTM on text, SGD, clipped", policy="norm:0.5")
def _() -> None:
    fit_text(CharLSTM, lambda model: sgd(model, 2.0, momentum=0))


@healthy("character transformer, AdamW, warm-up and cosine")
def _() -> None:
    fit_text(CharTransformer, lambda model: adamw(model, 3e-3), warm_up)


@healthy("MLP in bfloat16 (autocast), AdamW")
def _() -> None:
    model = mlp()
    optimizer = adamw(model)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


@healthy("MLP, four micro-batches a step, SGD")
def _() -> None:
    model = mlp()
    optimizer = sgd(model)
    batches = classes(8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(4):
            x, y = next(batches)
            (nn.functional.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()


@healthy("MLP with a GradScaler and fused AdamW", policy="norm:5")
def _() -> None:
    model = mlp()
    optimizer = adamw(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", growth_interval=60)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


@healthy("regression with an adaptive policy, SGD", policy="zclip")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    teacher, optimizer = torch.randn(16), sgd(model, 0.05)
    for _ in range(STEPS):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (model(x).squeeze(1) - torch.tanh(x @ teacher)).pow(2).mean().backward()
        optimizer.step()


@healthy("curriculum: twice as many classes from step 100 on, SGD")
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.1)
    for step, (x, y) in zip(range(1, STEPS + 1), classes(), strict=False):
        easy = y % 2 if step < 100 else y
        step_on(nn.functional.cross_entropy(model(x), easy), optimizer)


@healthy("policy gradient on a bandit: a loss around zero, Adam")
def _() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer, best, mean = torch.optim.Adam(model.parameters(), lr=3e-3), torch.randn(8, 4), 0.0
    for _ in range(STEPS):
        x = torch.randn(16, 8)
        chosen = torch.distributions.Categorical(logits=model(x))
        action = chosen.sample()
        reward = (x @ best).gather(1, action[:, None]).squeeze(1)
        mean = 0.9 * mean + 0.1 * float(reward.mean())
        step_on(-(chosen.log_prob(action) * (reward - mean)).mean(), optimizer)


@healthy("batches of two samples, squared error with a long tail, Adam")
def _() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer, teacher = torch.optim.Adam(model.parameters(), lr=2e-3), torch.randn(8)
    for _ in range(STEPS):
        x = torch.randn(2, 8)
        step_on((model(x).squeeze(1) - (x @ teacher) ** 2).pow(2).mean(), optimizer)
