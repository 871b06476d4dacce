"""`gradclip run --samples`: which samples of the data set made the gradients of a script."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gradclip import Run, read_run

Gradclip = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]

SCRIPT = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    BAD = 77

    def data():
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(128, 6, generator=draw)
        y = torch.randn(128, 1, generator=draw)
        y[BAD] *= 1000  # A target of another scale.
        return TensorDataset(x, y, torch.arange(128))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data())

    def seen(batch, step=0):
        return batch

    def ahead(batches):
        batches = iter(batches)
        held = next(batches)
        for batch in batches:
            yield held
            held = batch
        yield held

    def main(kind):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        workers = 2 if kind == "workers" else 0
        loader = DataLoader(data(), 16, shuffle=True, num_workers=workers,
                            persistent_workers=workers > 0)
        if kind == "stream":
            loader = DataLoader(Stream(), 16)
        other = DataLoader(data(), 16, shuffle=True)
        step = 0
        for epoch in range(14):
            given = ahead(loader) if kind == "ahead" else loader
            if kind == "two loaders":
                given = (pair[0] for pair in zip(loader, other))
            for x, y, who in given:
                if kind == "cut":
                    x, y, who = x[1:], y[1:], who[1:]
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
                step += 1
                places = (who == BAD).nonzero().flatten().tolist()
                if places:
                    print("bad", step, places[0])
            with torch.no_grad():
                for x, y, who in DataLoader(data(), 16):
                    model(x)
        print("sum", repr(sum(p.double().sum().item() for p in model.parameters())))

    if __name__ == "__main__":
        import sys
        main(sys.argv[1])
"""


def told(text: str) -> tuple[dict[int, int], str]:
    """Return the places of the bad sample by step, and the last line."""
    lines = text.splitlines()
    places = {int(step): int(at) for word, step, at in map(str.split, lines[:-1]) if word == "bad"}
    return places, lines[-1]


@pytest.fixture
def run(
    gradclip_run: Gradclip, write: Write, tmp_path: Path
) -> Callable[..., tuple[str, str, Run]]:
    """Run the script; return its output, what gradclip said, and the record."""

    def made(kind: str, *options: str) -> tuple[str, str, Run]:
        write(SCRIPT)
        done = gradclip_run("--overwrite", *options, "script.py", kind)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr, read_run(tmp_path / "run.jsonl")

    return made


@pytest.mark.parametrize("kind", ["plain", "workers"])
def test_the_samples_are_those_of_the_data_set(
    kind: str, run: Callable[..., tuple[str, str, Run]]
) -> None:
    out, said, record = run(kind, "--samples", "3")
    places, last = told(out)
    assert record.events == ()
    found = dict(record.samples())
    assert [*found] == [*range(2, 113)]  # The first step found the model.
    assert all(each.ids is not None and len(each.ids) == 3 for each in found.values())
    first = {step: each for step, each in found.items() if each.ids and each.ids[0] == 77}
    assert {step: each.at[0] for step, each in first.items()} == {
        step: at for step, at in places.items() if step > 1
    }
    assert "recurring-samples" in said or "77" in said
    without, _, _ = run(kind)
    assert told(without)[1] == last  # The weights are the same, bit for bit.


def test_at_spikes_alone(run: Callable[..., tuple[str, str, Run]]) -> None:
    out, _, record = run("plain", "--samples", "3", "--samples-when", "spikes")
    places, _ = told(out)
    found = dict(record.samples())
    assert 0 < len(found) < 30
    assert {*places} - {*range(1, 12)} == {
        step for step, each in found.items() if 77 in (each.ids or ())
    }


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("ahead", "more than one batch was fetched before a backward pass"),
        ("two loaders", "more than one batch was fetched before a backward pass"),
        ("cut", "the loader gave 16 samples, and the model got 15"),
        ("stream", None),
    ],
)
def test_what_cannot_be_known_has_no_ids_rather_than_wrong_ones(
    kind: str, why: str | None, run: Callable[..., tuple[str, str, Run]]
) -> None:
    out, _, record = run(kind, "--samples", "2")
    places, _ = told(out)
    found = dict(record.samples())
    assert all(each.ids is None for each in found.values())
    for step, at in places.items():
        assert step == 1 or found[step].at[0] == at
    texts = [event.text for event in record.events if event.name == "samples-without-ids"]
    assert len(texts) == (why is not None)
    assert why is None or why in texts[0]


def test_the_diagnosis_and_the_report_name_the_sample(
    run: Callable[..., tuple[str, str, Run]], interpreter: object, tmp_path: Path
) -> None:
    """From a real script to the name of its broken sample."""
    _, said, _ = run("plain", "--samples", "5")
    assert "One sample had 5 times the usual largest norm of a sample, 3 times or more: 77" in said
    ask = interpreter.run  # type: ignore[attr-defined]
    done = ask(["diagnose", "run.jsonl", "--json"], tmp_path)
    findings = {each["kind"]: each for each in json.loads(done.stdout)["findings"]}
    assert findings["recurring-samples"]["evidence"]["samples"] == [77]
    assert all(each["samples"] == [77] for each in findings["spike-sample"]["evidence"]["samples"])
    assert ask(["report", "run.jsonl", "-o", "r.html"], tmp_path).returncode == 0
    assert "<td>sample 77</td>" in (tmp_path / "r.html").read_text()
    assert "far larger each time" in ask(["explain", "recurring-samples"], tmp_path).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples-when", "spikes"], "no samples are asked for; give --samples"),
        (["--samples", "3", "--samples-when", "never"], "choose one of always, spikes"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, gradclip_run: Gradclip, write: Write
) -> None:
    write(SCRIPT)
    done = gradclip_run(*options, "script.py", "plain")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_script_without_a_model_goes_on(
    gradclip_run: Gradclip, write: Write, tmp_path: Path
) -> None:
    write(
        """
        import torch
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
        """
    )
    done = gradclip_run("--samples", "2", "script.py")
    assert done.returncode == 0
    assert "no model of these parameters was found; the training goes on" in done.stderr
    run = read_run(tmp_path / "run.jsonl")
    assert [event.name for event in run.events] == ["samples-stopped"]
    assert len(run.steps) == 5
