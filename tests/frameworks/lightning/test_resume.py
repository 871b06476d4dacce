"""A fit that goes on from a checkpoint is the fit that was never interrupted, bit for bit."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from gradclip.errors import GradclipWarning, PolicyError
from gradclip.integrations.lightning import GradClip

from .training import QUIET, Gan, Net, data, fused_adam, same, sgd, trainer, weights

pytestmark = QUIET


def saving(folder: Path) -> dict[str, Any]:
    """Return what has a Trainer save its checkpoints after each epoch."""
    kept = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    return {"callback": kept, "arguments": {"enable_checkpointing": True, "max_epochs": 2}}


def uninterrupted(module: Any, clip: GradClip, folder: Path, **arguments: Any) -> Path:
    """Train two epochs of 8 batches; return the checkpoint of the first."""
    use = saving(folder)
    trainer(clip, use["callback"], **use["arguments"], **arguments).fit(module, data())
    (found,) = folder.glob("epoch=0.ckpt")
    return found


@pytest.mark.parametrize("make", [sgd, fused_adam])
@pytest.mark.parametrize("policy", ["zclip", "auto", "agc:0.01", "feedback(norm:0.5)"])
def test_weights_and_memory_are_equal(policy: str, make: Any, tmp_path: Path) -> None:
    whole, clip = Net(make, scale=10.0), GradClip(policy)
    path = uninterrupted(whole, clip, tmp_path)
    resumed, again = Net(make, scale=10.0), GradClip(policy)
    trainer(again, max_epochs=2).fit(resumed, data(), ckpt_path=path)
    assert clip.clippers[0].steps == again.clippers[0].steps == 16
    assert resumed.batches == 8, "this test has not resumed"
    assert same(weights(whole), weights(resumed))
    assert same(clip.state_dict(), again.state_dict())


def test_what_was_remembered_matters(tmp_path: Path) -> None:
    """Else the test above would pass for a checkpoint that nobody has read."""
    whole, clip = Net(scale=10.0), GradClip("auto")
    path = uninterrupted(whole, clip, tmp_path)
    state = torch.load(path, weights_only=True)
    del state["callbacks"]["gradclip"]
    torch.save(state, tmp_path / "without.ckpt")
    resumed, again = Net(scale=10.0), GradClip("auto")
    with pytest.warns(GradclipWarning, match="saved without GradClip"):
        trainer(again, max_epochs=2).fit(resumed, data(), ckpt_path=tmp_path / "without.ckpt")
    assert again.clippers[0].steps == 8
    assert not same(weights(whole), weights(resumed))
    assert not same(clip.state_dict(), again.state_dict())


def test_a_sum_of_batches_and_two_optimizers(tmp_path: Path) -> None:
    whole, clip = Gan(), GradClip("zclip")
    path = uninterrupted(whole, clip, tmp_path)
    resumed, again = Gan(), GradClip("zclip")
    trainer(again, max_epochs=2).fit(resumed, data(), ckpt_path=path)
    assert [c.steps for c in again.clippers] == [16, 16]
    assert same(weights(whole), weights(resumed))
    assert same(clip.state_dict(), again.state_dict())
    (tmp_path / "b").mkdir()
    whole, clip = Net(), GradClip("zclip")
    path = uninterrupted(whole, clip, tmp_path / "b", accumulate_grad_batches=2)
    resumed, again = Net(), GradClip("zclip")
    trainer(again, max_epochs=2, accumulate_grad_batches=2).fit(resumed, data(), ckpt_path=path)
    assert again.clippers[0].steps == 8
    assert same(weights(whole), weights(resumed))
    assert same(clip.state_dict(), again.state_dict())


class After(SingleDeviceStrategy):
    """Loads a checkpoint when the fit has started, as strategies of sharded models do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def test_a_strategy_may_load_when_the_clipper_is_attached(tmp_path: Path) -> None:
    whole, clip = Net(scale=10.0), GradClip("auto")
    path = uninterrupted(whole, clip, tmp_path)
    resumed, again = Net(scale=10.0), GradClip("auto")
    used = trainer(again, max_epochs=2, strategy=After(torch.device("cpu")))
    used.fit(resumed, data(), ckpt_path=path)
    assert resumed.batches == 8
    assert same(weights(whole), weights(resumed))
    assert same(clip.state_dict(), again.state_dict())


def test_a_fit_after_the_fit_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole, clip = Net(), GradClip("zclip")
    uninterrupted(whole, clip, tmp_path)
    module, twice = Net(), GradClip("zclip")
    used = trainer(twice)
    used.fit(module, data())
    used.save_checkpoint(tmp_path / "end.ckpt")
    used.fit_loop.max_epochs = 2
    used.fit(module, data(), ckpt_path=tmp_path / "end.ckpt")
    assert twice.clippers[0].steps == 16
    assert same(weights(whole), weights(module))
    assert same(clip.state_dict(), twice.state_dict())


def test_the_checkpoint_is_plain_and_has_a_fixed_key(tmp_path: Path) -> None:
    class Named(GradClip):
        pass

    path = uninterrupted(Net(), Named("zclip"), tmp_path)
    state = torch.load(path, weights_only=True)
    assert state["callbacks"]["gradclip"]["clippers"][0]["steps"] == 8


def test_a_checkpoint_that_a_validation_has_read_is_not_for_the_next_fit(tmp_path: Path) -> None:
    path = uninterrupted(Net(), GradClip("zclip"), tmp_path)
    clip = GradClip("zclip")
    used = trainer(clip)
    used.validate(Net(), data(), ckpt_path=path, verbose=False)
    used.fit(Net(), data())
    assert clip.clippers[0].steps == 8


def test_another_policy_or_other_clippers_are_refused(tmp_path: Path) -> None:
    path = uninterrupted(Net(), GradClip("zclip"), tmp_path)
    module, clip = Net(), GradClip("norm:1.0")
    used = trainer(clip, max_epochs=2)
    with pytest.raises(PolicyError, match="zclip"):
        used.fit(module, data(), ckpt_path=path)
    assert module.batches == 0
    assert clip.clippers[0].attachment is None
    (tmp_path / "b").mkdir()
    path = uninterrupted(Gan(in_turn=False), GradClip("norm:1.0"), tmp_path / "b")
    with pytest.raises(PolicyError, match="this fit has 1 clippers"):
        trainer(GradClip("norm:1.0", joint=True), max_epochs=2).fit(
            Gan(in_turn=False), data(), ckpt_path=path
        )
