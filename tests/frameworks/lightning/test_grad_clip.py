"""`GradClip` in real Trainers: it clips, logs, refuses, and lets go."""

# pyright: reportMissingImports=false
from __future__ import annotations

import csv
import importlib
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from gradclip.errors import GradclipWarning, NonFiniteError, PolicyError
from gradclip.integrations.lightning import GradClip
from gradclip.torch import attach

from .training import QUIET, Gan, Net, data, fused_adam, same, sgd, trainer, weights

pytestmark = QUIET


def fit(module: Any, clip: Any = None, **arguments: Any) -> Any:
    """Train a module, and return the Trainer."""
    used = trainer(*([] if clip is None else [clip]), **arguments)
    used.fit(module, data())
    return used


def test_the_weights_are_those_of_lightnings_own_clipping() -> None:
    by_lightning, ours, unclipped = Net(), Net(), Net()
    fit(by_lightning, gradient_clip_val=0.5)
    clip = GradClip("norm:0.5")
    fit(ours, clip)
    fit(unclipped)
    (clipper,) = clip.clippers
    assert (clipper.steps, clipper.clipped) == (8, 8)
    for left, right, other in zip(
        weights(by_lightning), weights(ours), weights(unclipped), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(right, other, atol=1e-3)


@pytest.mark.parametrize("make", [sgd, fused_adam])
def test_accumulation_clips_the_whole_sum(make: Any) -> None:
    ours, by_hand = Net(make), Net(make)
    clip = GradClip("norm:0.5")
    fit(ours, clip, accumulate_grad_batches=3)  # 3 + 3 + 2 batches.
    optimizer = by_hand.make(by_hand.parameters())
    clipper = attach(optimizer, "norm:0.5")
    for number, batch in enumerate(data()):
        (by_hand.training_step(batch, 0) / 3).backward()
        if number in (2, 5, 7):
            optimizer.step()
            optimizer.zero_grad()
    assert clip.clippers[0].steps == 3
    assert same(weights(ours), weights(by_hand))
    assert clipper.clipped == clip.clippers[0].clipped == 3


def test_lbfgs_is_clipped_at_each_evaluation() -> None:
    ours = Net(lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=3))
    clip = GradClip("norm:0.5")
    fit(ours, clip, max_steps=2)
    by_hand = Net()
    optimizer = torch.optim.LBFGS(by_hand.parameters(), lr=0.01, max_iter=3)
    attach(optimizer, "norm:0.5")
    for batch, _ in zip(data(), range(2), strict=False):

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = by_hand.training_step(batch, 0)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert clip.clippers[0].steps > 2
    assert same(weights(ours), weights(by_hand))


def test_a_bad_gradient_is_skipped_and_named() -> None:
    whole, clip = Net(bad=(2, 3)), GradClip("norm:0.5")
    fit(whole, clip)
    assert clip.clippers[0].skipped == 2
    assert all(p.isfinite().all() for p in whole.parameters())
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* layers\.0\.weight"):
        fit(Net(bad=(2, 3, 4)), GradClip("norm:0.5", max_skips=2))


# ---- what is logged ------------------------------------------------------------------------


def test_a_csv_logger_gets_each_step_at_its_number(tmp_path: Path) -> None:
    results: list[Any] = []

    class Watch(GradClip):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            self.clippers[0].observers.append(results.append)

    clip = Watch("norm:0.5")
    logger = CSVLogger(tmp_path)
    fit(Net(), clip, logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert len(results) == 4
    for row, result in zip(rows, results, strict=True):
        assert float(row["grad_norm/pre"]) == pytest.approx(float(result.total_norm))
        assert float(row["grad_norm/post"]) == pytest.approx(0.5)
        assert float(row["clip/coef"]) == pytest.approx(float(result.coef))
        assert float(row["clip/rate"]) == 1.0


def test_tensorboard_gets_the_rate_of_the_steps_so_far(tmp_path: Path) -> None:
    from tensorboardX.proto import event_pb2

    logger = TensorBoardLogger(tmp_path)
    clip = GradClip("norm:20.0")
    fit(Net(), clip, logger=logger, log_every_n_steps=2)
    logged: dict[str, dict[int, float]] = {}
    for raw in _events(next(Path(logger.log_dir).glob("events*"))):
        event = event_pb2.Event.FromString(raw)  # type: ignore[attr-defined]
        for value in event.summary.value:
            logged.setdefault(value.tag, {})[event.step] = value.simple_value
    assert list(logged["grad_norm/pre"]) == [1, 3, 5, 7]
    clipper = clip.clippers[0]
    assert 0 < clipper.clipped < 8, "this test needs steps of both kinds"
    assert logged["clip/rate"][7] == pytest.approx(clipper.clipped / 8)
    assert logged["grad_norm/post"][7] == pytest.approx(float(clipper.last.clipped_norm), rel=1e-6)  # type: ignore[union-attr]


def _events(path: Path) -> list[bytes]:
    """Return the records of an event file."""
    rest, found = path.read_bytes(), []
    while rest:
        size = int.from_bytes(rest[:8], "little")
        found.append(rest[12 : 12 + size])
        rest = rest[16 + size :]
    return found


def test_other_callbacks_see_the_numbers_of_each_clipper() -> None:
    used = trainer(GradClip("norm:0.5"), log_every_n_steps=4)
    used.fit(Gan(), data())
    names = {"grad_norm/pre", "grad_norm/post", "clip/coef", "clip/rate"}
    assert used.callback_metrics.keys() == names | {f"{name}_1" for name in names}


def test_barebones_stays_silent() -> None:
    clip = GradClip("norm:0.5")
    off = {"enable_checkpointing": None, "logger": None}
    none = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), None)
    fit(Net(), clip, barebones=True, **off, **none)
    assert clip.clippers[0].clipped == 8


# ---- what is refused -----------------------------------------------------------------------


def test_a_trainer_that_clips_by_itself_is_refused() -> None:
    module = Net()
    before = weights(module)
    with pytest.raises(PolicyError, match=r"gradient_clip_val=0\.5 .* leave gradient_clip_val out"):
        fit(module, GradClip("norm:0.5"), gradient_clip_val=0.5)
    assert same(before, weights(module))
    fit(module, GradClip("norm:0.5"), gradient_clip_val=0)


def test_clipping_of_the_modules_own_is_noticed() -> None:
    class Own(Net):
        def configure_gradient_clipping(self, optimizer: Any, *_args: Any, **_named: Any) -> None:
            self.clip_gradients(optimizer, 0.1, "norm")

    with pytest.warns(GradclipWarning, match="Own.configure_gradient_clipping comes before"):
        fit(Own(), GradClip("norm:0.5"))


def test_wrong_arguments_are_refused_when_they_are_given() -> None:
    with pytest.raises(PolicyError, match="nrom"):
        GradClip("nrom:1.0")
    with pytest.raises(PolicyError, match="if_exists"):
        GradClip("norm:1.0", if_exists="never")  # type: ignore[arg-type]


def test_a_second_clipper_on_an_optimizer_is_refused() -> None:
    class ByHand(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            attach(optimizer, "norm:1.0", model=self)
            return optimizer

    with pytest.raises(PolicyError, match="it has a clipper already"):
        fit(ByHand(), GradClip("norm:0.5"))


# ---- when it lets go -----------------------------------------------------------------------


def is_free(used: Any) -> bool:
    """Whether somebody may attach to the optimizers of a Trainer."""
    for optimizer in used.optimizers:
        attach(optimizer, "norm:1.0").detach()
    return all("step" not in vars(each) for each in used.optimizers)


def test_a_second_fit_begins_anew_as_its_optimizers_do() -> None:
    module, clip = Net(), GradClip("zclip")
    used = fit(module, clip)
    (first,) = clip.clippers
    assert first.attachment is None
    assert is_free(used)
    used.fit_loop.max_epochs = 2
    used.fit(module, data())
    (second,) = clip.clippers
    assert second is not first
    assert (first.steps, second.steps) == (8, 8)
    other = Net()
    fit(other, clip)
    assert clip.clippers[0].params[0] is other.layers[0].weight  # type: ignore[comparison-overlap]
    assert clip.clippers[0].steps == 8
    assert same(weights(other), weights(_fitted("zclip"))), "the memory of a fit before is there"


def _fitted(policy: str) -> Net:
    module = Net()
    fit(module, GradClip(policy))
    return module


def test_an_error_in_the_training_detaches() -> None:
    class Fails(Net):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if index == 3:
                raise ZeroDivisionError("on purpose")
            return super().training_step(batch, index)

    clip = GradClip("norm:0.5")
    used = trainer(clip)
    with pytest.raises(ZeroDivisionError):
        used.fit(Fails(), data())
    assert clip.clippers[0].steps == 3
    assert clip.clippers[0].attachment is None
    assert is_free(used)


def test_a_validation_alone_attaches_to_nothing() -> None:
    clip = GradClip("norm:0.5")
    trainer(clip).validate(Net(), data(), verbose=False)
    assert clip.clippers == []


def test_a_fit_with_validation_counts_only_steps() -> None:
    clip = GradClip("norm:0.5")
    trainer(clip, val_check_interval=2).fit(Net(), data(), data())
    assert clip.clippers[0].steps == 8


# ---- beside other callbacks ------------------------------------------------------------------


class WithNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, torch.nn.BatchNorm1d(4))


@pytest.mark.parametrize("kind", [Net, WithNorm])
def test_stochastic_weight_averaging(kind: type[Net]) -> None:
    """With batch normalisation it adds an epoch, in which Lightning steps once without backward."""
    module, clip = kind(), GradClip("norm:0.5")
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    used = trainer(clip, swa, max_epochs=3)
    used.fit(module, data())
    assert clip.clippers[0].steps == used.global_step >= 24
    by_lightning = kind()
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    trainer(swa, max_epochs=3, gradient_clip_val=0.5).fit(by_lightning, data())
    for left, right in zip(weights(module), weights(by_lightning), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_a_search_for_the_learning_rate_leaves_the_fit_clipped() -> None:
    from lightning.pytorch.callbacks import LearningRateFinder

    class Rated(Net):
        lr = 0.01

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    module, clip = Rated(), GradClip("norm:0.5")
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-6, max_lr=1e-4)
    trainer(finder, clip).fit(module, data())
    assert clip.clippers[0].steps == clip.clippers[0].clipped == 8


# ---- the two packages ------------------------------------------------------------------------

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
{imports}
import torch

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def training_step(self, batch, _index):
        return self.layer(batch).square().mean() * 1000
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

clip = GradClip("norm:1.0")
off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
trainer = pl.Trainer(
    max_steps=2, accelerator="cpu", enable_checkpointing=False, callbacks=[clip], **off
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 8), batch_size=4))
assert clip.clippers[0].clipped == 2
print(sorted({{"lightning", "pytorch_lightning"}} & set(sys.modules)))
"""
OURS = "from gradclip.integrations.lightning import GradClip"


def test_pytorch_lightning_takes_it_and_the_other_package_is_not_loaded() -> None:
    """Also if the import of `GradClip` comes first."""
    code = f"{OURS}\nimport pytorch_lightning as pl"
    command = [sys.executable, "-c", SCRIPT.format(imports=code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['pytorch_lightning']"


def test_both_packages_take_it_in_one_process() -> None:
    before = GradClip("norm:1.0")
    other = importlib.import_module("pytorch_lightning")
    exec(SCRIPT.format(imports="pl = other"), {"other": other, "GradClip": GradClip})
    assert isinstance(before, other.Callback)
    fit(Net(), before)
    assert before.clippers[0].clipped == 8


def test_without_lightning_the_error_names_the_extra() -> None:
    code = """
        import sys
        sys.modules["lightning"] = None
        from gradclip.errors import GradclipError
        from gradclip.integrations.lightning import GradClip
        try:
            GradClip("norm:1.0")
        except GradclipError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("needs lightning: pip install 'gradclip[lightning]'")


def test_it_can_be_sent_to_a_process_before_and_after_a_fit() -> None:
    clip = GradClip("zclip", record="never.jsonl")
    assert pickle.loads(pickle.dumps(clip)).state_key == "gradclip"
    clip = GradClip("zclip")
    fit(Net(), clip)
    again = pickle.loads(pickle.dumps(clip))
    assert same(again.state_dict(), clip.state_dict())
