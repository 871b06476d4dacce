"""Trainers made from the Trainer, and models with adapters."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from gradclip import PolicyError, read_run
from gradclip.integrations.transformers import STATE, GradClipCallback, install

from .tiny import QUIET, STEPS, WORDS, arguments, gpt2, same, steps_of, trainer, weights

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET]

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 62 words, made here."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    own = Tokenizer(WordLevel(words, unk_token="<pad>"))
    own.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="<eos>")


def sft(folder: Path, *callbacks: Any, peft: bool = False, **given: Any) -> Any:
    """Return an SFTTrainer of the language model."""
    lines = [" ".join(f"w{2 + (i * j) % 60}" for j in range(8)) for i in range(64)]
    return SFTTrainer(
        gpt2(),
        args=arguments(folder, SFTConfig, bf16=False, **given),
        train_dataset=Dataset.from_dict({"text": lines}),
        processing_class=tokenizer(),
        peft_config=LoraConfig(**LORA) if peft else None,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("peft", [False, True], ids=["whole", "lora"])
def test_sft(tmp_path: Path, peft: bool) -> None:
    with pytest.raises(PolicyError, match=r"max_grad_norm=1\.0 is not usable"):
        sft(tmp_path, GradClipCallback("autoclip:50"), max_grad_norm=1.0)
    saves = {"save_strategy": "steps", "save_steps": STEPS // 2, "peft": peft}
    callback = GradClipCallback("autoclip:50", record=tmp_path / "r.jsonl")
    whole = sft(tmp_path, callback, **saves)
    whole.train()
    post, pre, loss = steps_of(whole, "grad_norm/post", "grad_norm", "loss")
    assert any(a < b for a, b in zip(post, pre, strict=True))
    assert read_run(tmp_path / "r.jsonl").column("loss").tolist() == pytest.approx(loss, abs=1e-6)
    assert all("entropy" in row or "mean_token_accuracy" in row for row in logged(whole))
    checkpoint = tmp_path / f"checkpoint-{STEPS // 2}"
    assert (checkpoint / STATE).exists()
    again = sft(tmp_path / "again", **saves)
    install(again, "autoclip:50")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole), weights(again))
    assert steps_of(again, "grad_norm/post") == [post]


def logged(one: Any) -> list[dict[str, float]]:
    """Return what TRL has added to the rows of the steps."""
    return [row for row in one.state.log_history if "loss" in row]


def test_only_adapters_are_measured(tmp_path: Path) -> None:
    """Names, count and norm are those of the weights that LoRA trains."""
    callback = GradClipCallback("norm:0.01")
    one = trainer(tmp_path, callback, model=get_peft_model(gpt2(), LoraConfig(**LORA)))
    one.train()
    assert callback.clipper is not None
    trained = {name for name, p in one.model.named_parameters() if p.requires_grad}
    assert set(callback.clipper.names) == trained
    assert len(trained) == 2
    assert all("lora_" in name for name in trained)
    assert callback.clipper.clipped == STEPS
