"""`gradclip run` around a script that has the callback already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradclip import read_run
from gradclip.integrations.transformers import GradClipCallback

from .tiny import QUIET, STEPS, same, steps_of, trainer, weights

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET]

SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from frameworks.transformers.tiny import trainer, weights
from gradclip.integrations.transformers import GradClipCallback
folder = Path(sys.argv[1])
one = trainer(folder, GradClipCallback("autoclip:50"), gradient_accumulation_steps=2)
one.train()
torch.save(weights(one), folder / "weights.pt")
"""


def test_a_script_with_the_callback_is_not_clipped_twice(tmp_path: Path) -> None:
    plain = trainer(tmp_path, GradClipCallback("autoclip:50"), gradient_accumulation_steps=2)
    plain.train()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2])))
    under = ["-m", "gradclip", "run", "--clip", "norm:1e-6", "--record", str(tmp_path / "r.jsonl")]
    command = [sys.executable, *under, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(weights(plain), torch.load(tmp_path / "weights.pt"))
    run = read_run(tmp_path / "r.jsonl")
    assert len(run.column("norm")) == STEPS
    assert 0 < run.column("clipped").sum() < STEPS
    (event,) = [each for each in run.events if each.name == "script-clips"]
    assert "AdamW by itself, with autoclip" in event.text
    assert "--clip is left out" in event.text
    (logged,) = steps_of(plain, "loss")
    assert run.column("loss").tolist() == pytest.approx(logged, abs=1e-6)
