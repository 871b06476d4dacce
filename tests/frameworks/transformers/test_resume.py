"""A run that stops and resumes is the run that does not stop, bit for bit."""

# pyright: reportMissingImports=false
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradclip import GradclipWarning, PolicyError, read_run
from gradclip.integrations.transformers import STATE, GradClipCallback, install

from .tiny import QUIET, STEPS, same, steps_of, trainer, weights

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET]

SAVED = STEPS // 2


def run(
    folder: Path, policy: str | None, *, resume: Path | bool = False, **given: Any
) -> tuple[Any, GradClipCallback]:
    """Train, and return the Trainer and its callback."""
    callback = GradClipCallback(policy)
    saves = {"save_strategy": "steps", "save_steps": SAVED}
    one = trainer(folder, callback, **saves, **given)
    one.train(resume_from_checkpoint=str(resume) if isinstance(resume, Path) else resume)
    return one, callback


def leaves(value: Any) -> list[Any]:
    """Return all that is in a state, in order."""
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in [key, *leaves(each)]]
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def equal(one: Any, other: Any) -> bool:
    """Whether two states are bit for bit equal."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize(
    "policy", ["auto", "autoclip:50", "zclip:warmup=2,z=0.5", "feedback(norm:0.1)"]
)
@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 2, "bf16": True}], ids=str)
def test_resumed_equals_uninterrupted(tmp_path: Path, policy: str, given: dict[str, Any]) -> None:
    whole, one = run(tmp_path / "whole", policy, **given)
    checkpoint = tmp_path / "whole" / f"checkpoint-{SAVED}"
    again, other = run(tmp_path / "again", policy, resume=checkpoint, **given)
    assert one.clipper is not None
    assert other.clipper is not None
    assert same(weights(whole), weights(again))
    assert equal(whole.optimizer.state_dict(), again.optimizer.state_dict())
    assert equal(one.clipper.state_dict(), other.clipper.state_dict())
    assert other.clipper.steps == STEPS
    keys = ("grad_norm/post", "clip/rate")
    assert steps_of(whole, *keys) == steps_of(again, *keys)
    assert torch.load(checkpoint / STATE, weights_only=True)["steps"] == SAVED
    assert [path.name for path in checkpoint.glob("gradclip*")] == [STATE]


def test_a_checkpoint_without_a_state_is_told_of_once(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, "autoclip:50")
    (tmp_path / f"checkpoint-{STEPS}").rename(tmp_path / "last")
    (tmp_path / f"checkpoint-{SAVED}" / STATE).unlink()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        again, callback = run(tmp_path, "autoclip:50", resume=True)
    told = [str(each.message) for each in found if each.category is GradclipWarning]
    (text,) = told
    assert f"checkpoint-{SAVED} has no {STATE}: it was saved without gradclip" in text
    assert callback.clipper is not None
    assert callback.clipper.steps == STEPS - SAVED
    assert not same(weights(whole), weights(again)), "this memory makes no difference: test another"


def test_a_trainer_that_goes_back_forgets_what_came_after(tmp_path: Path) -> None:
    """Also where the checkpoint has no state: the clipper of before would know too much."""
    one, callback = run(tmp_path, "autoclip:50")
    first = callback.clipper
    checkpoint = tmp_path / f"checkpoint-{SAVED}"
    (checkpoint / STATE).unlink()
    with pytest.warns(GradclipWarning, match="begins anew"):
        one.train(resume_from_checkpoint=str(checkpoint))
    assert callback.clipper is not None
    assert callback.clipper is not first
    assert callback.clipper.steps == STEPS - SAVED


def test_a_state_of_another_policy_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "autoclip:50")
    checkpoint = tmp_path / f"checkpoint-{SAVED}"
    with pytest.raises(
        PolicyError, match=r"policy='autoclip.*' is not usable: .* policy is 'zclip"
    ):
        run(tmp_path, "zclip", resume=checkpoint)


def test_a_trainer_that_failed_goes_on(tmp_path: Path) -> None:
    """The same Trainer and callback: a record of both parts, and the memory of the checkpoint."""

    class Stop(Exception):
        pass

    whole, _ = run(tmp_path / "whole", "autoclip:50")
    saves = {"save_strategy": "steps", "save_steps": SAVED}
    one = trainer(tmp_path / "one", **saves)
    callback = install(one, "autoclip:50", record=tmp_path / "r.jsonl")
    compute_loss = one.compute_loss

    def fail(*args: Any, **kwargs: Any) -> Any:
        if one.state.global_step == SAVED + 1:
            raise Stop
        return compute_loss(*args, **kwargs)

    one.compute_loss = fail
    with pytest.raises(Stop):
        one.train()
    one.compute_loss = compute_loss
    one.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(one))
    assert callback.clipper is not None
    assert callback.clipper.steps == STEPS
    recorded = read_run(tmp_path / "r.jsonl")
    assert len(recorded.column("norm")) == STEPS + 1  # One step was made twice.


def test_a_checkpoint_that_is_elsewhere_is_told_of(tmp_path: Path) -> None:
    """As in a hyperparameter search, where each trial has a folder."""
    one = trainer(tmp_path, save_strategy="steps", save_steps=STEPS)
    install(one, "autoclip:50")
    one._save_checkpoint = lambda *_: None
    with pytest.warns(GradclipWarning, match=rf"checkpoint-{STEPS} is not there: .* not saved"):
        one.train()


def test_no_state_where_there_is_none_of_the_optimizer(tmp_path: Path) -> None:
    run(tmp_path, "autoclip:50", save_only_model=True)
    assert not list(tmp_path.rglob("gradclip*"))
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
