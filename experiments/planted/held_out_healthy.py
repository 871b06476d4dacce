"""Trainings without a fault that were held out: the rules were not made with them."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from .case import STEPS
from .case import healthy as _healthy
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

healthy = functools.partial(_healthy, held_out=True)


@healthy("regression on targets of size 20: noisy early losses, Adam")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    teacher, optimizer = torch.randn(16) * 5, torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        x = torch.randn(8, 16)
        step_on((model(x).squeeze(1) - x @ teacher).pow(2).mean(), optimizer)


@healthy("MLP with weights in bfloat16, SGD")
def _() -> None:
    model = mlp().bfloat16()
    optimizer = sgd(model)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        step_on(nn.functional.cross_entropy(model(x.bfloat16()).float(), y), optimizer)


@healthy("character LSTM, AdamW, warm-up and cosine, clipped", policy="norm:1")
def _() -> None:
    fit_text(CharLSTM, lambda model: adamw(model, 1e-2), warm_up, steps=120)


@healthy("curriculum: longer sequences every 50 steps, AdamW")
def _() -> None:
    lstm, out = nn.LSTM(2, 24, batch_first=True), nn.Linear(24, 1)
    optimizer = torch.optim.AdamW([*lstm.parameters(), *out.parameters()], lr=5e-3)
    for step in range(STEPS):
        length = 4 + 4 * (step // 50)
        values, places = torch.rand(32, length), torch.rand(32, length).topk(2).indices
        marked = torch.zeros(32, length).scatter(1, places, 1.0)
        states = lstm(torch.stack([values, marked], 2))[0]
        step_on((out(states[:, -1]).squeeze(1) - (values * marked).sum(1)).pow(2).mean(), optimizer)


@healthy("Q-learning with a target network: a loss that rises first, Adam")
def _() -> None:
    model, target = (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in "ab")
    target.load_state_dict(model.state_dict())
    optimizer, worth = torch.optim.Adam(model.parameters(), lr=2e-3), torch.randn(8)
    for step in range(STEPS):
        x, after, action = torch.randn(32, 8), torch.randn(32, 8), torch.randint(4, (32, 1))
        with torch.no_grad():
            goal = (x @ worth) * (action.squeeze(1) == 0) + 0.9 * target(after).max(1).values
        value = model(x).gather(1, action).squeeze(1)
        step_on(nn.functional.smooth_l1_loss(value, goal), optimizer)
        if step % 25 == 24:
            target.load_state_dict(model.state_dict())


@healthy("GAN on a line of points, two Adams")
def _() -> None:
    make = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    makes = torch.optim.Adam(make.parameters(), lr=1e-3, betas=(0.5, 0.999))
    judges = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.999))
    bce = nn.functional.binary_cross_entropy_with_logits
    for _ in range(STEPS):
        along = torch.randn(32, 1)
        real = torch.cat([along, 0.5 * along], 1) + 0.05 * torch.randn(32, 2)
        fake = make(torch.randn(32, 4))
        told, lied = judge(real), judge(fake.detach())
        step_on(bce(told, torch.ones_like(told)) + bce(lied, torch.zeros_like(lied)), judges)
        said = judge(fake)
        step_on(bce(said, torch.ones_like(said)), makes)


@healthy("fine-tuning: a trained body at a small rate, a new head, AdamW")
def _() -> None:
    layers, head = list(mlp())[:-1], nn.Linear(32, 4)
    frozen, body = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{"params": body.parameters(), "lr": 1e-4}, {"params": head.parameters(), "lr": 5e-3}]
    )
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        step_on(nn.functional.cross_entropy(head(body(frozen(x))), y), optimizer)


@healthy("fine-tuning of a model that is trained already, SGD")
def _() -> None:
    teacher = nn.Linear(16, 4)
    model = nn.Linear(16, 4)
    model.load_state_dict(teacher.state_dict())
    optimizer = sgd(model, 0.01)
    with torch.no_grad():
        model.bias.add_(0.3 * torch.randn(4))
    for _ in range(STEPS):
        x = torch.randn(32, 16)
        y = torch.distributions.Categorical(logits=teacher(x).detach()).sample()
        step_on(nn.functional.cross_entropy(model(x), y), optimizer)


@healthy("contrastive learning, two views of each sample, AdamW, clipped", policy="norm:1")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = adamw(model)
    for _ in range(STEPS):
        x = torch.randn(32, 16)
        one, two = (
            nn.functional.normalize(model(x + 0.3 * torch.randn_like(x)), dim=1) for _ in "ab"
        )
        step_on(nn.functional.cross_entropy(one @ two.T / 0.1, torch.arange(32)), optimizer)


@healthy("batches of one sample, SGD")
def _() -> None:
    model = mlp(2)
    optimizer = sgd(model, 0.01, momentum=0)
    for (x, y), _ in zip(classes(1), range(STEPS), strict=False):
        step_on(nn.functional.cross_entropy(model(x), y), optimizer)


@healthy("labels of which a fifth are wrong, dropout, AdamW with weight decay")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4))

    def mislabel(_step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.where(torch.rand(len(y)) < 0.2, torch.randint(4, y.shape), y)

    fit(model, adamw(model, weight_decay=0.1), before=mislabel)


@healthy("a loss that is a sum over the batch, SGD at a small rate")
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.001)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        step_on(nn.functional.cross_entropy(model(x), y, reduction="sum"), optimizer)


@healthy("learning rate in cycles of 50 steps, SGD, character transformer")
def _() -> None:
    def cycles(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        def factor(step: int) -> float:
            return 0.1 + 0.45 * (1 - math.cos(2 * math.pi * step / 50))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    fit_text(CharTransformer, lambda model: adamw(model, 3e-3), cycles, steps=100)
