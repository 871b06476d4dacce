"""A recurrent net of ReLUs that explodes in its first step."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Reads a sequence and returns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(32, 1)
        with torch.no_grad():
            dict(self.rnn.named_parameters())["weight_hh_l0"].copy_(1.05 * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 1) for sequences (batch, time, 4)."""
        return self.out(self.rnn(x)[0][:, -1])


torch.manual_seed(0)
torch.set_num_threads(1)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
for _ in range(300):
    inputs = torch.randn(32, 50, 4)
    targets = inputs[:, :, 0].mean(1, keepdim=True) * 5
    loss = (model(inputs) - targets).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
