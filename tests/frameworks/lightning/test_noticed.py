"""`attach` by hand: Lightning's clipping that is left on, and Lightning's wrappers."""

# pyright: reportMissingImports=false
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from gradclip.errors import GradclipWarning, PolicyError
from gradclip.torch import attach

from .training import QUIET, Gan, Net, data, same, trainer, weights

pytestmark = QUIET


class ByHand(Net):
    def __init__(self, policy: str | None = "norm:1.0") -> None:
        super().__init__()
        self.policy = policy

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        self.clipper = attach(optimizer, self.policy, model=self)
        return optimizer


def test_gradient_clip_val_beside_attach_is_said_once() -> None:
    with pytest.warns(GradclipWarning) as said:
        trainer(gradient_clip_val=0.5).fit(ByHand(), data())
    (text,) = [str(each.message) for each in said if each.category is GradclipWarning]
    assert "Trainer(gradient_clip_val=0.5) clips the gradients before gradclip does" in text


@pytest.mark.parametrize(
    ("policy", "arguments"),
    [("norm:1.0", {}), (None, {"gradient_clip_val": 0.5})],
    ids=["no other clipping", "only measured"],
)
def test_else_nothing_is_said(policy: str | None, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = ByHand(policy)
        trainer(**arguments).fit(module, data())
    assert module.clipper.steps == 8
    assert [each for each in said if each.category is GradclipWarning] == []


def test_gradclip_run_says_it_in_its_own_way(tmp_path: Path) -> None:
    """It sees the calls themselves, and may have taken them over."""
    from gradclip.record import RecordWriter
    from gradclip.torch.script.patches import watch
    from gradclip.torch.script.session import Session

    writer = RecordWriter(tmp_path / "a.jsonl")
    session = Session("norm:1.0", writer=writer)
    with warnings.catch_warnings(record=True) as said, watch(session):
        warnings.simplefilter("always")
        trainer(gradient_clip_val=0.5).fit(Net(), data())
    session.close("ok")
    assert [each for each in said if each.category is GradclipWarning] == []
    assert session.notices.keys() == {"clip_grad_norm_"}
    assert session.steps == 8


def test_a_wrapper_of_a_trainer_names_the_optimizer_inside() -> None:
    class Attaches(Net):
        def on_train_start(self) -> None:
            with pytest.raises(
                PolicyError, match=r"LightningSGD.*which is \.optimizer, of class SGD"
            ):
                attach(self.optimizers(), "norm:0.5", model=self)
            self.clipper = attach(self.optimizers().optimizer, "norm:0.5", model=self)

    module = Attaches()
    trainer().fit(module, data())
    assert module.clipper.clipped == 8


def test_a_list_of_wrappers_is_refused_before_anything_is_attached() -> None:
    class Attaches(Gan):
        def on_train_start(self) -> None:
            first, second = self.optimizers()
            with pytest.raises(PolicyError, match=r"which is \.optimizer, of class SGD"):
                attach([first.optimizer, second], "norm:0.5", model=self)
            attach(first.optimizer, "norm:0.5").detach()
            self.reached = True

    module = Attaches()
    trainer().fit(module, data())
    assert module.reached


# ---- Fabric ----------------------------------------------------------------------------------


def by_fabric(steps: range, path: Path | None = None, save: Path | None = None) -> Any:
    fabric = Fabric(accelerator="cpu", devices=1)
    module = Net()
    optimizer = module.configure_optimizers()
    clipper = attach(optimizer, "zclip", model=module)
    model, optimizer = fabric.setup(module, optimizer)
    state = {"model": model, "optimizer": optimizer, "clipper": clipper}
    if path is not None:
        fabric.load(path, state)
    batches = list(data())
    for number in steps:
        optimizer.zero_grad()
        fabric.backward(model.training_step(batches[number], 0))
        optimizer.step()
    if save is not None:
        fabric.save(save, state)
    return weights(module), clipper


def test_fabric_takes_one_line_and_saves_the_clipper(tmp_path: Path) -> None:
    whole, clipper = by_fabric(range(8))
    assert clipper.steps == 8
    by_fabric(range(4), save=tmp_path / "a.ckpt")
    resumed, again = by_fabric(range(4, 8), path=tmp_path / "a.ckpt")
    assert same(whole, resumed)
    assert same(clipper.state_dict(), again.state_dict())


def test_a_wrapper_of_fabric_names_the_optimizer_inside() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module = torch.nn.Linear(8, 1)
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(PolicyError, match=r"FabricSGD.*which is \.optimizer, of class SGD"):
        attach(optimizer, "norm:0.5", model=model)
    clipper = attach(optimizer.optimizer, "norm:0.5", model=module)
    fabric.backward(model(torch.ones(2, 8)).square().mean() * 100)
    optimizer.step()
    assert clipper.clipped == 1
