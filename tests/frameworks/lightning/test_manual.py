"""Two optimizers that step by hand: each with its own norm, or with one for both."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from gradclip.errors import PolicyError
from gradclip.integrations.lightning import GradClip
from gradclip.torch import attach

from .training import QUIET, Gan, data, same, trainer, weights

pytestmark = QUIET


class ByHand:
    """Stands for the Trainer of a Gan: its loop without Lightning."""

    def __init__(self, module: Gan) -> None:
        self.made: list[torch.optim.Optimizer] = module.configure_optimizers()
        module.optimizers = lambda: self.made  # type: ignore[method-assign, assignment]
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
        module.toggle_optimizer = lambda _: None  # type: ignore[method-assign]
        module.untoggle_optimizer = lambda _: None  # type: ignore[method-assign]
        self.module = module

    def fit(self, batches: Any) -> None:
        for index, batch in enumerate(batches):
            self.module.training_step(batch, index)


def test_each_network_of_a_gan_has_its_own_norm() -> None:
    ours, clip = Gan(), GradClip("norm:0.5")
    trainer(clip).fit(ours, data())
    assert [c.clipped for c in clip.clippers] == [8, 8]
    assert [c.names for c in clip.clippers] == [
        ("generator.weight", "generator.bias"),
        ("critic.weight", "critic.bias"),
    ]
    by_hand = ByHand(Gan())
    for optimizer in by_hand.made:
        attach(optimizer, "norm:0.5")
    by_hand.fit(data())
    assert same(weights(ours), weights(by_hand.module))


def test_one_norm_over_both_after_one_backward() -> None:
    ours, clip = Gan(in_turn=False), GradClip("norm:0.5", joint=True)
    trainer(clip).fit(ours, data())
    (clipper,) = clip.clippers
    assert (clipper.steps, clipper.clipped) == (8, 8)
    by_hand = ByHand(Gan(in_turn=False))
    shared = attach(by_hand.made, "norm:0.5")
    by_hand.fit(data())
    assert same(weights(ours), weights(by_hand.module))
    assert float(shared.last.total_norm) == float(clipper.last.total_norm)  # type: ignore[union-attr]
    each = GradClip("norm:0.5")
    other = Gan(in_turn=False)
    trainer(each).fit(other, data())
    assert not same(weights(ours), weights(other))


def test_one_norm_over_one_optimizer_is_its_own() -> None:
    from .training import Net

    left, right = Net(), Net()
    trainer(GradClip("norm:0.5", joint=True)).fit(left, data())
    trainer(GradClip("norm:0.5")).fit(right, data())
    assert same(weights(left), weights(right))


def test_one_norm_and_a_loss_scaler_are_refused() -> None:
    """Lightning unscales each optimizer by itself, and updates the scale in between."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    module, clip = Gan(in_turn=False), GradClip("norm:0.5", joint=True)
    with pytest.raises(PolicyError, match=r"joint=True .* use joint=False, or bf16"):
        trainer(clip, plugins=scaled).fit(module, data())


def test_a_closure_of_the_users_is_refused_for_one_norm() -> None:
    class Closes(Gan):
        def training_step(self, batch: torch.Tensor, _index: int) -> None:
            generator, _critic = self.optimizers()

            def closure() -> None:
                generator.zero_grad()
                self.manual_backward(self.critic(self.generator(batch)).square().mean())

            generator.step(closure=closure)

    with pytest.raises(PolicyError, match="attach to each optimizer by itself"):
        trainer(GradClip("norm:0.5", joint=True)).fit(Closes(), data())
    clip = GradClip("norm:0.1")
    trainer(clip).fit(Closes(), data())
    assert [c.steps for c in clip.clippers] == [8, 0]
