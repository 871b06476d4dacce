"""`GradClip` in a `Learner`: where it clips, what it skips, what it saves and shows."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import SGD, Adam

from gradclip import NonFiniteError, read_run
from gradclip.integrations.fastai import GradClip

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:fastai"),
]


def _loaders(batches: int = 6, nan_at: int | None = None) -> DataLoaders:
    torch.manual_seed(0)
    x, y = torch.randn(batches * 4, 8), torch.randn(batches * 4, 1)
    if nan_at is not None:
        x[4 * nan_at, 0] = float("nan")
    rows = list(zip(x, y, strict=True))
    return DataLoaders(*(DataLoader(rows, bs=4, shuffle=False, num_workers=0) for _ in range(2)))


def _learner(*callbacks: Any, opt: Any = SGD, folder: Path | None = None, **data: Any) -> Learner:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 1))
    learn = Learner(
        _loaders(**data),
        model,
        loss_func=torch.nn.functional.mse_loss,
        opt_func=opt,
        lr=0.5,
        cbs=list(callbacks),
        path=folder,
    )
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda _: None
    return learn


def _fit(learn: Learner, epochs: int = 1) -> Learner:
    with learn.no_logging(), learn.no_bar():
        learn.fit(epochs)
    return learn


def _weights(learn: Learner) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in learn.model.parameters()]


def test_it_is_fastais_own_clipping() -> None:
    ours, theirs = _learner(GradClip("norm:0.01")), _learner(GradientClip(0.01))
    for one, other in zip(_weights(_fit(ours)), _weights(_fit(theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    clipper = ours.grad_clip.clipper
    assert clipper.steps == clipper.clipped == 6
    assert clipper.names == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_an_accumulated_gradient_is_clipped_once() -> None:
    accumulated = GradientAccumulation(n_acc=8)
    ours, theirs = (
        _learner(GradClip("norm:0.01"), accumulated),
        _learner(GradientClip(0.01), GradientAccumulation(n_acc=8)),
    )
    for one, other in zip(_weights(_fit(ours)), _weights(_fit(theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-8)
    assert ours.grad_clip.clipper.steps == 3


class ScaledOnTheHost(MixedPrecision):
    """fastai's callback, with the scaler that torch has for the CPU."""

    def before_fit(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        self.autocast, self.learn.scaler, self.scales = torch.autocast("cpu"), scaler, []


def test_unscaled_gradients_are_clipped_and_the_scalers_skips_are_its_own() -> None:
    learn = _learner(GradClip("norm:0.01"), ScaledOnTheHost(), nan_at=2)
    before = _weights(learn)
    _fit(learn)
    clipper = learn.grad_clip.clipper
    assert (clipper.steps, clipper.clipped, clipper.skipped) == (5, 5, 0)
    moved = sum(((a - b) ** 2).sum() for a, b in zip(_weights(learn), before, strict=True)) ** 0.5
    assert 0 < moved <= 5 * 0.5 * 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_skip_leaves_weights_state_and_the_scaler_well(scaled: bool) -> None:
    """A policy that skips, so that a loss scaler does not skip before it."""
    callbacks = [ScaledOnTheHost()] if scaled else []
    learn = _learner(GradClip("skip_above:0.0"), *callbacks, opt=Adam)
    before = _weights(learn)
    learn.grad_clip._asked = ("skip_above:0.0", "skip", 100)
    _fit(learn)
    for one, other in zip(_weights(learn), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert learn.grad_clip.clipper.skipped == 6
    assert all("grad_avg" not in state for state in learn.opt.state.values())


def test_a_nan_is_skipped_where_fastai_alone_is_ruined() -> None:
    learn = _fit(_learner(GradClip("norm:1.0"), nan_at=2))
    assert learn.grad_clip.clipper.skipped == 1
    assert all(np.isfinite(w).all() for w in _weights(learn))
    theirs = _fit(_learner(GradientClip(1.0), nan_at=2))
    assert not all(np.isfinite(w).all() for w in _weights(theirs))


def test_too_many_skips_stop_the_fit() -> None:
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        _fit(_learner(GradClip("skip_above:0.0", max_skips=2)))


def test_a_run_that_was_saved_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def make() -> Learner:
        return _learner(GradClip("zclip:z=0.5,warmup=3"), opt=Adam, folder=tmp_path)

    whole, half = make(), make()
    _fit(whole)
    _fit(whole)
    _fit(half)
    half.save("half")
    torch.save(half.grad_clip.state_dict(), tmp_path / "clip.pt")
    again = make()
    again.create_opt()
    again.load("half")
    again.grad_clip.load_state_dict(torch.load(tmp_path / "clip.pt", weights_only=True))
    _fit(again)
    assert again.grad_clip.clipper.steps == whole.grad_clip.clipper.steps == 12
    assert again.grad_clip.clipper.clipped == whole.grad_clip.clipper.clipped > 0
    for one, other in zip(_weights(again), _weights(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_exported_learner_has_its_clipper(tmp_path: Path) -> None:
    import io

    learn = _fit(_learner(GradClip("norm:0.01"), folder=tmp_path))
    file = io.BytesIO()
    torch.save(learn.grad_clip.clipper, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).steps == 6


def test_a_search_for_a_learning_rate_teaches_nothing(tmp_path: Path) -> None:
    learn = _fit(_learner(GradClip("zclip"), folder=tmp_path))
    before = learn.grad_clip.state_dict()
    with learn.no_bar():
        learn.lr_find(num_it=10, show_plot=False)
    assert str(learn.grad_clip.state_dict()) == str(before)
    _fit(learn)
    assert learn.grad_clip.clipper.steps == 12


def test_the_table_and_the_record_have_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    learn = _fit(_learner(GradClip("norm:0.01", path=path), nan_at=None))
    names = list(learn.recorder.metric_names)
    assert names[3:7] == ["grad_norm", "clipped_norm", "clip_rate", "skips"]
    norm, clipped_norm, rate, skips = learn.recorder.values[-1][2:6]
    assert norm > clipped_norm == pytest.approx(0.01)
    assert (rate, skips) == (1.0, 0)
    run = read_run(path)
    assert len(run.column("norm")) == 6
    assert run.column("lr").tolist() == [0.5] * 6
    assert np.isfinite(run.column("loss")).all()
    assert not list(learn.metrics), "the columns are the callback's"


def test_frozen_layers_are_left_out() -> None:
    learn = _learner(GradClip("norm:0.01"))
    for p in learn.model[0].parameters():
        p.requires_grad_(False)
    _fit(learn)
    assert learn.grad_clip.clipper.clipped == 6
    assert learn.grad_clip.clipper.last.norms[:2].tolist() == [0.0, 0.0]
