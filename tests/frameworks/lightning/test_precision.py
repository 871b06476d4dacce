"""16-bit and bf16, with and without a loss scaler, on the CPU."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from gradclip import read_run
from gradclip.integrations.lightning import GradClip

from .training import QUIET, Gan, Net, data, fused_adam, same, sgd, trainer, weights

pytestmark = QUIET


def scaled(start: float = 2.0**10) -> MixedPrecision:
    """Return 16-bit precision with a loss scaler, which `precision="16-mixed"` has on a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=start)
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_the_limit_holds_at_each_step(precision: str) -> None:
    clip = GradClip("norm:0.5")
    seen: list[float] = []
    module = Net(scale=10.0)

    def norm(*_: Any) -> None:
        grads = [p.grad.double().flatten() for p in module.parameters() if p.grad is not None]
        seen.append(float(torch.cat(grads).norm()))

    class Watch(GradClip):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            trainer.optimizers[0].register_step_post_hook(norm)

    clip = Watch("norm:0.5")
    trainer(clip, precision=precision).fit(module, data())
    assert clip.clippers[0].clipped == 8
    assert len(seen) == 8
    assert max(seen) <= 0.5 * (1 + 4 * torch.finfo(module.layers[0].weight.dtype).eps)  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [sgd, fused_adam])
def test_a_scaler_is_taken_off_before_the_norm_is_measured(make: Any, tmp_path: Path) -> None:
    """The scale changes nothing but the last bits: norms, losses and weights are those of 2^1."""
    norms, losses, found = [], [], []
    for start in (2.0, 2.0**12):
        module, path = Net(make, scale=1.0), tmp_path / f"{start}.jsonl"
        clip = GradClip("norm:0.05", record=path)
        trainer(clip, plugins=scaled(start)).fit(module, data())
        assert (clip.clippers[0].steps, clip.clippers[0].clipped) == (8, 8)
        run = read_run(path)
        norms.append(torch.as_tensor(run.column("norm")))
        losses.append(torch.as_tensor(run.column("loss")))
        found.append(weights(module))
        torch.testing.assert_close(
            losses[-1].float(), torch.tensor(module.losses), rtol=1e-3, atol=0
        )
    torch.testing.assert_close(*norms, rtol=1e-2, atol=0)
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("make", [sgd, fused_adam])
def test_a_step_that_the_scaler_leaves_out_is_no_skip_of_ours(make: Any, tmp_path: Path) -> None:
    module = Net(make, bad=(2,), scale=1.0)
    clip = GradClip("norm:0.05", record=tmp_path / "a.jsonl", max_skips=0)
    trainer(clip, plugins=scaled()).fit(module, data())
    clipper = clip.clippers[0]
    assert clipper.skipped == 0
    assert clipper.clipped == 7
    assert all(p.isfinite().all() for p in module.parameters())
    kept = [loss for i, loss in enumerate(module.losses) if i != 2]
    seen = [x for x in read_run(tmp_path / "a.jsonl").column("loss") if abs(x) < float("inf")]
    torch.testing.assert_close(
        torch.tensor(seen), torch.tensor(kept), rtol=1e-3, atol=0, check_dtype=False
    )


def test_a_scaler_and_two_optimizers() -> None:
    clip = GradClip("norm:0.5")
    module = Gan()
    trainer(clip, plugins=scaled(2.0)).fit(module, data())
    assert [c.clipped for c in clip.clippers] == [8, 8]
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_resume_brings_back_scale_and_memory(tmp_path: Path) -> None:
    whole, clip = Net(), GradClip("zclip")
    trainer(clip, max_epochs=2, plugins=scaled()).fit(whole, data())
    resumed, first = Net(), GradClip("zclip")
    used = trainer(first, plugins=scaled())
    used.fit(resumed, data())
    used.save_checkpoint(tmp_path / "a.ckpt")
    resumed, again = Net(), GradClip("zclip")
    used = trainer(again, max_epochs=2, plugins=scaled(2.0))
    used.fit(resumed, data(), ckpt_path=tmp_path / "a.ckpt")
    assert same(weights(whole), weights(resumed))
    assert same(clip.state_dict(), again.state_dict())
