"""The verdict: one sentence and one command, for each way in which a run can go."""

from __future__ import annotations

import ast
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import gradclip.diagnosis
from gradclip import diagnose, read_run
from gradclip.diagnosis import KINDS, PAGES, Verdict, explanation_of, verdict
from gradclip.diagnosis.finding import Kind
from gradclip.errors import PolicyError
from gradclip.record import RecordWriter

SCRIPT = ["my train.py", "--lr", "0.1"]
COMMAND = ["gradclip", "run", "--record", "a b.jsonl"]
AGAIN = "gradclip run --record 'a b.jsonl' 'my train.py' --lr 0.1"


def judged(path: Path, rows: Any, *, end: str | None = "ok", **header: Any) -> Verdict:
    """Return the verdict on a record with these rows."""
    script = header.pop("script", SCRIPT)
    options = {"script": script} if script else {}
    policy = header.get("policy")
    clip = ["--clip", policy] if policy else []
    header = {"command": [*COMMAND, *clip, *script]} | header
    writer = RecordWriter(path / "run.jsonl", if_exists="overwrite", **header, **options)
    writer.optimizer("SGD", [("a", (4, 4), "float32"), ("b", (4,), "float32")], policy=policy)
    for step, row in enumerate(rows, 1):
        writer.step(step=step, **row)
    if end is None:
        writer.flush()
    else:
        writer.end(end)
    run = read_run(path / "run.jsonl")
    found = verdict(run, diagnose(run), path=Path("a b.jsonl"))
    assert found.sentence.endswith("."), found
    assert "\n" not in found.sentence
    assert found.command.startswith("gradclip ") or found.command.startswith("python ")
    assert shlex.split(found.command)
    if end is None:
        writer.end()
    return found


def calm(steps: int = 100, **more: Any) -> list[dict[str, Any]]:
    """A loss that falls, and norms that vary a little."""
    return [
        {"norm": 1.0 + step % 7 / 20, "loss": 3 * 0.99**step + step % 3 / 100, **more}
        for step in range(steps)
    ]


def exploding(steps: int = 100) -> list[dict[str, Any]]:
    rows = calm(steps)
    for i, row in enumerate(rows[60:]):
        row |= {"norm": min(4.0 ** (i + 1), 1e6), "loss": 10.0 + i}
    return rows


def test_a_healthy_run(tmp_path: Path) -> None:
    assert judged(tmp_path, calm(400)) == Verdict(
        "Healthy: 400 steps, the loss fell from 2.882 to 0.09145, nothing to do.",
        "gradclip report 'a b.jsonl'",
    )


def test_an_explosion(tmp_path: Path) -> None:
    assert judged(tmp_path, exploding()) == Verdict(
        "The run exploded at step 61: its norm grew 220-fold in 4 steps.",
        "gradclip advise 'a b.jsonl'",
    )


def test_an_explosion_that_ends_in_nan(tmp_path: Path) -> None:
    rows = exploding()
    for row in rows[70:]:
        row |= {"norm": math.nan, "loss": math.nan, "nonfinite": ["a", "b"]}
    assert judged(tmp_path, rows).sentence == (
        "The run exploded at step 61: its norm grew 220-fold in 4 steps, and from step 71 on it is "
        "lost to inf or NaN."
    )


def test_an_explosion_and_then_an_error(tmp_path: Path) -> None:
    found = judged(tmp_path, exploding(), end="error: ValueError: loss is too high")
    assert found == Verdict(
        "The run exploded at step 61: its norm grew 220-fold in 4 steps; then the script ended "
        "with ValueError: loss is too high after step 100.",
        "gradclip advise 'a b.jsonl'",
    )


def test_an_error_of_the_script(tmp_path: Path) -> None:
    found = judged(tmp_path, calm(40), end="error: ValueError: no such file")
    said = "The script ended with ValueError: no such file after step 40."
    assert found == Verdict(said, AGAIN)


def test_an_error_of_a_script_that_records_itself(tmp_path: Path) -> None:
    options = {"script": [], "command": ["my train.py", "3"]}
    found = judged(tmp_path, calm(40), end="error: ValueError", **options)
    assert found.command == "python 'my train.py' 3"
    options = {"script": [], "command": ["-c"]}
    found = judged(tmp_path, calm(40), end="error: ValueError", **options)
    assert found.command == "gradclip explain ended-early"


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGSEGV"])
def test_a_run_that_a_signal_ended(tmp_path: Path, signal: str) -> None:
    found = judged(tmp_path, calm(), end=f"error: killed by {signal}")
    assert found == Verdict(f"The run was killed by {signal} after step 100.", AGAIN)


def test_an_interrupted_run(tmp_path: Path) -> None:
    found = judged(tmp_path, calm(), end="error: KeyboardInterrupt")
    assert found.sentence.startswith(
        "The run was interrupted by hand after step 100; until then no fault, the loss fell from "
    )
    assert found.command == AGAIN


def test_an_interrupted_run_that_had_exploded(tmp_path: Path) -> None:
    found = judged(tmp_path, exploding(), end="error: KeyboardInterrupt")
    assert found.sentence == "The run exploded at step 61: its norm grew 220-fold in 4 steps."


def test_no_steps(tmp_path: Path) -> None:
    found = judged(tmp_path, [])
    assert "without an optimizer step" in found.sentence
    assert found.command == "gradclip explain no-steps"
    found = judged(tmp_path, [], end="error: ImportError: no module named x")
    assert "ImportError: no module named x before its first optimizer step" in found.sentence
    assert found.command == AGAIN


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    found = judged(tmp_path, [], end=None)
    assert "no steps yet, and no end" in found.sentence
    assert found.command == "gradclip watch 'a b.jsonl'"
    found = judged(tmp_path, calm(), end=None)
    assert found.sentence.startswith("Healthy: 100 steps, the loss fell from ")
    assert found.sentence.endswith("; the record has no end, so the run goes on or was killed.")


def test_one_bad_batch(tmp_path: Path) -> None:
    rows = calm()
    for row in rows[50:]:
        row |= {"norm": math.nan, "loss": math.nan, "nonfinite": ["a", "b"]}
    said = "The run was lost at step 51: one bad batch made the weights inf or NaN."
    skip = "gradclip run --clip {} --nonfinite skip{} 'my train.py' --lr 0.1"
    assert judged(tmp_path, rows) == Verdict(said, skip.format("none", ""))
    found = judged(tmp_path, rows, policy="zclip:z=2.5")
    assert found == Verdict(said, skip.format("zclip:z=2.5", ""))
    command = [*COMMAND, "--clip", "norm:1.0", "--take-over", *SCRIPT]
    found = judged(tmp_path, rows, policy="norm:1.0", command=command)
    assert found.command == skip.format("norm:1.0", " --take-over")
    found = judged(tmp_path, rows, script=[], command=["train.py"])
    assert found.command == "gradclip explain non-finite", "--clip needs `gradclip run`"


def test_nothing_was_ever_finite(tmp_path: Path) -> None:
    rows = calm(60, nonfinite=["a", "b"])
    for row in rows:
        row |= {"norm": math.nan, "loss": math.nan}
    assert judged(tmp_path, rows) == Verdict(
        "The run was lost at step 1: nothing was ever finite.", "gradclip explain non-finite"
    )


def test_skipped_steps(tmp_path: Path) -> None:
    rows = calm()
    for row in rows[20:23]:
        row |= {"norm": math.nan, "skipped": True, "nonfinite": ["b"]}
    found = judged(tmp_path, rows, policy="norm:5.0")
    assert found == Verdict(
        "3 of 100 gradients were inf or NaN, from step 21, first in b; these steps were skipped.",
        "gradclip explain non-finite",
    )


def test_a_spike_of_the_loss(tmp_path: Path) -> None:
    rows = calm(200)
    for row in rows[150:160]:
        row["loss"] = 9.0
    rows[149]["norm"] = 60.0
    found = judged(tmp_path, rows)
    assert found.sentence.startswith("The loss spiked once, worst at step 151, where it rose by ")
    assert found.command == "gradclip advise 'a b.jsonl'"


def test_a_second_optimizer_is_named(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "two.jsonl") as writer:
        for id in (0, 1):
            writer.optimizer("SGD", [("a", (4,), "float32")])
            for step, row in enumerate(exploding() if id else calm(), 1):
                writer.step(step=step, optimizer=id, **row)
    run = read_run(tmp_path / "two.jsonl")
    found = verdict(run, diagnose(run), path=Path("two.jsonl"))
    assert found.sentence.startswith("Optimizer 1: The run exploded at step 61")
    assert found.command == "gradclip advise two.jsonl --optimizer 1"


def test_clipping_twice(tmp_path: Path) -> None:
    rows = calm(100, limit=1.5)
    for row in rows[::2]:
        row["norm"] = 1.301
    found = judged(tmp_path, rows, policy="norm:1.5")
    assert found.sentence.startswith("The gradient is clipped by something else, then by norm:1.5")
    assert found.command == "gradclip run --clip norm:1.5 --take-over 'my train.py' --lr 0.1"


def test_a_plateau_is_no_fault(tmp_path: Path) -> None:
    rows = calm(300)
    for i, row in enumerate(rows[60:]):
        row["loss"] = 1.7 + i % 3 / 100
    found = judged(tmp_path, rows)
    assert found.sentence.startswith("No fault in 300 steps, but the loss made no progress after")
    assert found.command == "gradclip explain plateau"


def test_little_is_called_little(tmp_path: Path) -> None:
    assert judged(tmp_path, calm(1)).sentence == (
        "No fault in 1 step, too few for a judgement; the loss stayed at 3."
    )
    assert judged(tmp_path, [{"norm": 1.0}] * 60).sentence == (
        "No fault in the gradients of 60 steps, but the record has no loss."
    )
    rising = [{"norm": 1.0 + i % 5, "loss": 1 + i / 99} for i in range(60)]
    assert judged(tmp_path, rising).sentence == (
        "No fault in the gradients of 60 steps, but the loss rose from 1.045 to 1.54."
    )


def test_a_record_whose_name_begins_with_a_dash(tmp_path: Path) -> None:
    judged(tmp_path, calm())
    run = read_run(tmp_path / "run.jsonl")
    found = verdict(run, diagnose(run), path=Path("-x.jsonl"))
    assert found.command == "gradclip report ./-x.jsonl"


# ---- The explanations


def kinds_in_the_code() -> set[str]:
    """Return the first argument of each `Finding(...)` in the package of the diagnosis."""
    folder = Path(gradclip.diagnosis.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}, line {node.lineno}"
                found.add(node.args[0].value)
    return found


def test_every_kind_that_a_finding_can_have_is_explained_and_no_other() -> None:
    assert kinds_in_the_code() == set(KINDS) == set(PAGES)
    assert set(KINDS) == set(Kind.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_is_whole(kind: Kind) -> None:
    row = KINDS[kind]
    assert row.kind == kind
    assert not row.title.endswith(".")
    for text in (row.meaning, row.signs, row.cause, row.remedy):
        assert re.fullmatch(r"[A-Z0-9`].*\.", text), text
        assert "docs/" not in text
    assert row.docs.endswith(f"/findings.html#{kind}")
    assert row.to_dict()["background"].startswith("https://")


def test_a_wrong_kind_gets_the_nearest() -> None:
    assert explanation_of("LOSS_SPIKE").kind == "loss-spike"
    with pytest.raises(PolicyError, match="did you mean 'loss-spike' or 'norm-spike'"):
        explanation_of("los-spike")
