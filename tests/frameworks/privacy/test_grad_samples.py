"""Against the gradients of samples that Opacus writes out, over more kinds of modules."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from gradclip import by_norm
from gradclip.torch import per_sample

B = 6
pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus 1.6 warns about torch's own hooks.


class Tokens(nn.Module):
    """A small model of words, with one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.table(x))
        return self.head(torch.tanh(self.middle(torch.tanh(self.middle(x)))))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 4, 4),
    )


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "tokens": (Tokens, lambda: torch.randint(0, 11, (B, 7))),
    "images": (images, lambda: torch.randn(B, 3, 8, 8)),
    "waves": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, dilation=2), nn.RMSNorm(5), nn.Linear(5, 2)),
        lambda: torch.randn(B, 2, 9),
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_norms_and_the_clipped_sum_are_those_of_opacus(case: str, reduction: Any) -> None:
    torch.manual_seed(0)
    make, inputs = CASES[case]
    model, x = make().double(), inputs()
    x = x.double() if x.is_floating_point() else x
    theirs = make().double()
    theirs.load_state_dict(model.state_dict())
    theirs = GradSampleModule(theirs, loss_reduction=reduction)

    def backward(which: nn.Module) -> None:
        losses = (which(x) - 1).square().flatten(1).sum(1)
        (losses.mean() if reduction == "mean" else losses.sum()).backward()

    backward(theirs)
    samples = [p.grad_sample.flatten(1) for p in theirs.parameters()]
    norms = torch.cat(samples, 1).norm(dim=1)
    limit = float(norms.median())
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)  # Opacus's divisor.
    divisor = B if reduction == "mean" else 1

    clipper = per_sample(model, by_norm(limit), reduction)
    backward(model)
    result = clipper.clip_()
    torch.testing.assert_close(result.sample_norms, norms, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(result.sample_coef, factor, rtol=1e-6, atol=0.0)
    for p, rows in zip(model.parameters(), samples, strict=True):
        assert p.grad is not None
        expected = torch.einsum("b,bn->n", factor, rows) / divisor
        torch.testing.assert_close(p.grad.flatten(), expected, rtol=1e-5, atol=1e-7 * limit)


def test_opacus_gives_the_padding_row_a_gradient_that_torch_does_not_have() -> None:
    model = nn.Embedding(5, 2, padding_idx=0)
    theirs = GradSampleModule(nn.Embedding(5, 2, padding_idx=0), loss_reduction="sum")
    words = torch.tensor([[0, 1, 0], [2, 3, 4]])
    theirs(words).sum().backward()
    clipper = per_sample(model, "norm:100", "sum")
    model(words).sum().backward()
    assert clipper.clip_().sample_norms.square().tolist() == pytest.approx([2.0, 6.0])
    rows = next(theirs.parameters()).grad_sample.flatten(1)
    assert rows.square().sum(1).tolist() == [10.0, 6.0]
