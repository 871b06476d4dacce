"""A net of three layers on scikit-learn's digits."""

import argparse

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]  # make experiments installs it
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.3)
args = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
for _ in range(400):
    rows = torch.randint(len(images), (64,))
    loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
