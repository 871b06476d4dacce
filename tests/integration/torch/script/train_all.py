"""A script that trains in many ways, and saves every bit of what came out. Knows no gradclip."""

import sys

import torch
from torch import nn

STEPS = 6


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)
    return 30 * (model(x) - y).square().mean()


def grads(model):
    return [p.grad for p in model.parameters() if p.grad is not None]


def plain(make, bad=()):
    def train(kept):
        model = net()
        optimizer = make(model.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if step in bad:
                grads(model)[0][0, 0] = bad[step]
            optimizer.step()
            schedule.step()
            kept += [grad.clone() for grad in grads(model)]
        kept += [p.detach() for p in model.parameters()]
        kept.append(optimizer.state_dict()["state"])

    return train


def scaled(make, unscale):
    def train(kept):
        model = net()
        optimizer = make(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=3000.0, growth_interval=2)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 3:
                grads(model)[0][0, 0] = float("inf")
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            kept += [grad.clone() for grad in grads(model)]
        kept += [p.detach() for p in model.parameters()]
        kept += [optimizer.state_dict()["state"], scaler.state_dict()]

    return train


def lbfgs(kept):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        kept.append(optimizer.step(closure).detach())
    kept += [p.detach() for p in model.parameters()]


def accumulated(kept):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        for micro in range(3):
            (loss_of(model, 10 * step + micro) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    kept += [p.detach() for p in model.parameters()]


def odd_gradients(kept):
    """Sparse and not coalesced, expanded, and missing ones."""
    torch.manual_seed(0)
    table = nn.Embedding(7, 3, sparse=True)
    bias, unused = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([table.weight, bias, unused], lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (table(torch.tensor([1, 1, 5])).square().sum() + bias.sum()).backward()
        rows, ones = table.weight.grad, bias.grad
        optimizer.step()
        assert rows is not None
        assert ones is not None
        kept.append([table.weight.grad is rows, bias.grad is ones])
        kept.append([rows.is_coalesced(), ones.stride()])
    kept += [table.weight.detach(), bias.detach(), unused.grad]


CASES = {
    "SGD with momentum": plain(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "AdamW, fused": plain(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)),
    "NaN": plain(lambda p: torch.optim.SGD(p, lr=0.01), {4: float("nan")}),
    "inf, then NaN": plain(
        lambda p: torch.optim.AdamW(p, lr=0.01), {3: float("inf"), 4: float("nan")}
    ),
    "GradScaler": scaled(lambda p: torch.optim.AdamW(p, lr=0.01), False),
    "GradScaler, fused": scaled(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), False),
    "GradScaler, fused SGD": scaled(lambda p: torch.optim.SGD(p, lr=0.01, fused=True), False),
    "GradScaler, fused, unscaled": scaled(
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), True
    ),
    "LBFGS": lbfgs,
    "accumulation": accumulated,
    "odd gradients": odd_gradients,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for name, case in CASES.items():
        case(results.setdefault(name, []))
    torch.save([results, torch.rand(3)], sys.argv[1])
