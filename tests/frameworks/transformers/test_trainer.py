"""`GradClipCallback` and `install` in real Trainers."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from gradclip import GradclipError, GradclipWarning, PolicyError, read_run
from gradclip.integrations.transformers import GradClipCallback, install
from gradclip.sinks import SCALARS
from gradclip.torch import attach
from integration.sinks.test_sinks import events_in

from .tiny import (
    QUIET,
    STEPS,
    Two,
    arguments,
    features,
    gpt2,
    same,
    steps_of,
    text,
    trainer,
    weights,
)

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET]


class Look(TrainerCallback):
    """Keeps a copy of the gradients that there are after the Trainer's measuring."""

    def __init__(self) -> None:
        self.grads: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        self.grads.append(found)


# ---- the optimizer ----------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_the_optimizer_is_the_one_of_the_arguments(tmp_path: Path, optim: str) -> None:
    """The same weights as with the Trainer's own clipping at the same limit."""
    given: dict[str, Any] = {"optim": optim, "max_grad_norm": 0.3}
    theirs = trainer(tmp_path, **given)
    theirs.train()
    callback = GradClipCallback("norm:0.3", take_over=True)
    ours = trainer(tmp_path, callback, **given)
    ours.train()
    for one in (theirs, ours):
        assert [g["weight_decay"] for g in one.optimizer.param_groups] == [0.1, 0.0]
        assert [g["initial_lr"] for g in one.optimizer.param_groups] == [0.01, 0.01]
    assert type(theirs.optimizer.optimizer) is type(ours.optimizer.optimizer)
    assert callback.clipper is not None
    assert callback.clipper.clipped == STEPS  # Else this compares nothing.
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    free = trainer(tmp_path, optim=optim)
    free.train()
    if optim == "sgd":  # Adam makes little of a factor.
        with pytest.raises(AssertionError):
            torch.testing.assert_close(weights(ours), weights(free), rtol=1e-4, atol=1e-5)


def test_attach_before_there_is_an_optimizer(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    with pytest.raises(PolicyError, match=r"makes its own in train\(\): use .*install\(trainer"):
        attach(one.optimizer, "norm:1.0")
    one.train()
    remedy = "'AcceleratedOptimizer' is not usable: .* the one inside, which is .optimizer"
    with pytest.raises(PolicyError, match=f"{remedy}, of class AdamW"):
        attach(one.optimizer, "norm:1.0")
    attach(one.optimizer.optimizer, "norm:1.0").detach()


def test_model_init_makes_an_optimizer_for_each_training(tmp_path: Path) -> None:
    callback = GradClipCallback("autoclip:50")
    one = trainer(tmp_path, callback, model_init=gpt2)
    one.train()
    first, before = callback.clipper, weights(one)
    assert first is not None
    one.args.learning_rate = 0.001
    one.train()
    assert callback.clipper is not None
    assert callback.clipper is not first
    assert first.attachment is None
    assert callback.clipper.steps == STEPS
    assert callback.clipper.clipped > 0
    assert one.optimizer.param_groups[0]["initial_lr"] == 0.001
    again = trainer(tmp_path, GradClipCallback("autoclip:50"), model_init=gpt2)
    again.args.learning_rate = 0.001
    again.train()
    assert same(weights(again), weights(one))
    assert not same(before, weights(one))


def test_a_second_training_of_one_model_goes_on(tmp_path: Path) -> None:
    """As its optimizer does, which the Trainer keeps."""
    one = trainer(tmp_path)
    callback = install(one, "autoclip:50")
    one.train()
    first = callback.clipper
    one.train()
    assert callback.clipper is first
    assert first is not None
    assert first.steps == 2 * STEPS


# ---- the Trainer's own clipping and measuring -------------------------------------------------


def test_the_default_limit_of_the_arguments_is_refused(tmp_path: Path) -> None:
    message = r"max_grad_norm=1.0 is not usable: .* max_grad_norm=0.0 .* take_over=True"
    with pytest.raises(PolicyError, match=message):
        trainer(tmp_path, GradClipCallback("norm:1.0"), max_grad_norm=1.0)
    one = trainer(tmp_path, max_grad_norm=1.0)
    callbacks, log = list(one.callback_handler.callbacks), one.log
    with pytest.raises(PolicyError, match=message):
        install(one, "norm:1.0")
    assert one.callback_handler.callbacks == callbacks
    assert one.log == log
    install(one, "norm:1.0", take_over=True)
    late = trainer(tmp_path, GradClipCallback("norm:1.0"))
    late.args.max_grad_norm = 1.0
    with pytest.raises(PolicyError, match=message):
        late.train()


def test_a_limit_that_is_taken_over_clips_nothing(tmp_path: Path) -> None:
    free = trainer(tmp_path, optim="sgd")
    free.train()
    taken = trainer(tmp_path, optim="sgd", max_grad_norm=1e-9)
    callback = install(taken, None, take_over=True, record=tmp_path / "r.jsonl")
    taken.train()
    assert same(weights(taken), weights(free))
    assert callback.clipper is not None
    assert callback.clipper.steps == STEPS
    (event,) = read_run(tmp_path / "r.jsonl").events
    assert event.text == "taken over: max_grad_norm=1e-09 clips nothing"


def test_one_inf_is_named_and_spreads_to_nothing(tmp_path: Path) -> None:
    data = features(STEPS * 4, bad=9)
    given: dict[str, Any] = {"model": Two(), "data": data, "optim": "sgd"}
    given["train_sampling_strategy"] = "sequential"
    theirs = Look()
    trainer(tmp_path, theirs, **given | {"model": Two()}).train()
    look, callback = Look(), GradClipCallback("norm:1.0", record=tmp_path / "r.jsonl")
    one = trainer(tmp_path, look, callback, **given)
    one.train()
    assert theirs.grads[2]["b"].isnan().all(), "the Trainer's measuring spreads an inf no more"
    assert look.grads[2]["b"].isfinite().all()
    assert not look.grads[2]["a"].isfinite().all()
    run = read_run(tmp_path / "r.jsonl")
    assert run.nonfinite == [(3, ("a",))]
    assert run.column("skipped").tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert all(p.isfinite().all() for p in weights(one))
    norms, skipped = steps_of(one, "grad_norm", "clip/skipped")
    assert math.isinf(norms[2])
    assert skipped == [0, 0, 1, 1, 1, 1, 1, 1]


def test_too_many_skips_in_a_row_end_the_training(tmp_path: Path) -> None:
    callback = GradClipCallback("norm:1.0", max_skips=0)
    one = trainer(tmp_path, callback, model=Two(), data=features(STEPS * 4, bad=9))
    with pytest.raises(GradclipError, match="the gradient of a holds inf or NaN"):
        one.train()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"optim": "lomo"}, "optim='lomo' is not usable: it steps inside of backward"),
        ({"optim": "galore_adamw_layerwise"}, "optim='galore_adamw_layerwise' is not usable"),
    ],
)
def test_optimizers_that_step_in_backward_are_refused(
    tmp_path: Path, argument: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        install(trainer(tmp_path, **argument), "norm:1.0")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("is_deepspeed_enabled", "deepspeed=None is not usable: DeepSpeed clips and steps"),
        ("is_fsdp_enabled", "use version 2"),
    ],
)
def test_engines_that_clip_by_themselves_are_refused(
    tmp_path: Path, flag: str, message: str
) -> None:
    one = trainer(tmp_path)
    setattr(one, flag, True)
    with pytest.raises(PolicyError, match=message):
        install(one, "norm:1.0")


def test_what_install_refuses(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    wrong: dict[str, dict[str, Any]] = {
        "method='nrm' is not usable": {"policy": "nrm:1"},
        "nonfinite='skp' is not usable": {"nonfinite": "skp"},
        "max_skips=-1 is not usable": {"max_skips": -1},
    }
    for message, given in wrong.items():
        with pytest.raises(PolicyError, match=message):
            install(one, **given)
    with pytest.raises(PolicyError, match="trainer='int' is not usable: give a transformers"):
        install(1, "norm:1.0")
    with pytest.raises(PolicyError, match=r"report='a\.html' is not usable: .* give record= too"):
        install(one, "norm:1.0", report="a.html")
    install(one, "norm:1.0")
    with pytest.raises(PolicyError, match="it has a GradClipCallback already"):
        install(one, "norm:1.0")
    with pytest.raises(GradclipError, match="was called by no Trainer"):
        GradClipCallback("norm:1.0").on_init_end(None, None, None)


def test_a_callback_that_is_added_later_clips_too(tmp_path: Path) -> None:
    callback = GradClipCallback("norm:0.01")
    one = trainer(tmp_path)
    one.add_callback(callback)
    one.train()
    (post,) = steps_of(one, "grad_norm/post")
    assert max(post) <= 0.01 * (1 + 1e-6)


# ---- what is logged ---------------------------------------------------------------------------


def test_numbers_reach_log_history_and_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    plain = trainer(tmp_path)
    plain.train()
    callback = GradClipCallback("autoclip:50", record=tmp_path / "r.jsonl")
    one = trainer(tmp_path, callback, report_to="tensorboard")
    one.train()
    run = read_run(tmp_path / "r.jsonl")
    pre, post, coef, rate = steps_of(
        one, "grad_norm/pre", "grad_norm/post", "clip/coef", "clip/rate"
    )
    assert steps_of(one, "grad_norm") == [pre]
    assert pre[0] == pytest.approx(steps_of(plain, "grad_norm")[0][0], rel=1e-5)
    for key, logged in (("norm", pre), ("clipped_norm", post), ("coef", coef)):
        assert logged == pytest.approx(run.column(key).tolist())
    clipped = [bool(each) for each in run.column("clipped")]
    assert True in clipped
    assert False in clipped
    assert rate == [sum(clipped[: i + 1]) / (i + 1) for i in range(STEPS)]
    stored = events_in(tmp_path / "tb")
    for key, logged in (("grad_norm/pre", pre), ("grad_norm/post", post), ("clip/rate", rate)):
        assert list(stored[f"train/{key}"].values()) == pytest.approx(logged)
    keys = {key for row in one.state.log_history for key in row} & SCALARS.keys()
    assert keys == SCALARS.keys() - {"lr", "clip/nonfinite"}


@pytest.mark.parametrize("rows", [128, 28])
def test_the_recorded_loss_is_the_logged_one(tmp_path: Path, rows: int) -> None:
    """Under accumulation, with a last group of an epoch that is not complete, and of Two."""
    for model, data in ((gpt2(), text(rows)), (Two(), features(rows))):
        path = tmp_path / f"{type(model).__name__}.jsonl"
        one = trainer(
            tmp_path,
            GradClipCallback("norm:0.1", record=path),
            model=model,
            data=data,
            gradient_accumulation_steps=2,
        )
        one.train()
        (logged,) = steps_of(one, "loss")
        assert read_run(path).column("loss").tolist() == pytest.approx(logged, abs=1e-6)
        assert len(logged) == STEPS


def test_accumulation_clips_the_sum(tmp_path: Path) -> None:
    """Two micro-batches of 2 are as one of 4."""
    found = []
    for size, parts in ((4, 1), (2, 2)):
        callback = GradClipCallback("norm:0.1")
        given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        one = trainer(tmp_path, callback, optim="sgd", **given)
        one.train()
        assert callback.clipper is not None
        assert callback.clipper.steps == STEPS
        found.append((weights(one), steps_of(one, "grad_norm")[0]))
    (whole, norms), (parts, sums) = found
    torch.testing.assert_close(parts, whole)
    assert sums == pytest.approx(norms, rel=1e-4)


def test_bf16(tmp_path: Path) -> None:
    callback = GradClipCallback("norm:0.1")
    one = trainer(tmp_path, callback, bf16=True)
    one.train()
    (post,) = steps_of(one, "grad_norm/post")
    assert max(post) <= 0.1 * (1 + 1e-6)
    assert callback.clipper is not None
    assert callback.clipper.clipped == STEPS
    assert all(p.isfinite().all() for p in weights(one))


def test_a_record_and_its_page(tmp_path: Path) -> None:
    record, page = tmp_path / "r.jsonl", tmp_path / "pages" / "r.html"
    callback = GradClipCallback("norm:0.1", record=record, report=page)
    one = trainer(tmp_path, callback)
    one.train()
    run = read_run(record)
    assert len(run.steps) == STEPS
    assert run.end is not None
    assert run.end.status == "ok"
    assert run.column("lr")[0] == pytest.approx(0.01)
    assert "<html" in page.read_text()
    assert callback.clipper is not None
    assert callback.clipper.observers == []


def test_a_page_that_cannot_be_written_does_not_cost_the_training(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    record = tmp_path / "r.jsonl"
    callback = GradClipCallback("norm:0.1", record=record, report=tmp_path / "page.html")
    with pytest.warns(GradclipWarning, match=r"the report was not written: .*; the record is"):
        trainer(tmp_path, callback).train()
    run = read_run(record)
    assert run.end is not None
    assert run.end.status == "ok"


def test_nothing_is_warned_of_without_a_reason(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer(tmp_path, GradClipCallback("zclip"), save_strategy="steps", save_steps=4).train()
    assert [each for each in found if issubclass(each.category, GradclipWarning)] == []


# ---- the docs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("documented", [GradClipCallback, install])
def test_the_example_of_a_docstring_runs(
    documented: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, example = documented.__doc__.partition("Example::\n")
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "max_steps": 2}
    names: dict[str, Any] = {"model": gpt2(), "data": text()}
    names["trainer"] = Trainer(gpt2(), arguments(tmp_path, max_grad_norm=1.0), train_dataset=text())
    for key, value in quiet.items():  # An example should not have to say so.
        example = example.replace("max_grad_norm=0.0)", f"max_grad_norm=0.0, {key}={value!r})")
    exec(textwrap.dedent(example), names)
    steps = [row for row in names["trainer"].state.log_history if "clip/coef" in row]
    assert steps or (tmp_path / "runs" / "a.html").exists()


def test_a_trainer_without_the_callback_clips_by_itself_again(tmp_path: Path) -> None:
    callback = GradClipCallback("norm:0.3", take_over=True)
    one = trainer(tmp_path, callback, max_grad_norm=1.0)
    one.train()
    assert "clip_grad_norm_" not in vars(one.accelerator)
    assert one.remove_callback(callback) is None
    clipper = callback.clipper
    assert clipper is not None
    clipper.detach()
    before = clipper.steps
    one.train()
    assert clipper.steps == before
    assert one.state.log_history[0]["grad_norm"] > 0  # The Trainer has measured.


# ---- attach by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.0, 0.0])
def test_attach_says_once_that_the_trainer_clips_too(tmp_path: Path, limit: float) -> None:
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper = attach(optimizer, "norm:0.3", model=model)
    given = arguments(tmp_path, max_grad_norm=limit)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Trainer(model, given, train_dataset=text(), optimizers=(optimizer, None)).train()
    assert clipper.steps == STEPS
    found = [str(each.message) for each in said if each.category is GradclipWarning]
    assert len(found) == (limit > 0)
    if found:
        assert "TrainingArguments(max_grad_norm=1.0) clips the gradients before" in found[0]
