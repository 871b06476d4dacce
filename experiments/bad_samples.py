"""Plants broken labels and corrupted samples, and counts how many of them a record names.

    PYTHONPATH=. python experiments/bad_samples.py

Two tasks: MNIST (2 % of the labels are wrong, and 5 images are random bytes that nobody divided by
255), and windows of Shakespeare's plays (2 % have their characters in a random order, and 5 are
random characters). Each is trained for some epochs with `samples=`; `gradclip.diagnosis` ranks the
samples from the record alone. The same trainings without anything planted, and others, must raise
no finding.

Figures go to `experiments/results/bad_samples.json`; a run that is in there is not run again.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor, nn

from experiments.tasks.mnist import TRAINED, digits
from experiments.tasks.shakespeare import LENGTH, CharLSTM, CharTransformer, corpus
from gradclip import diagnose, read_run
from gradclip.diagnosis.samples import ranked_samples
from gradclip.record import Trace, traces_of
from gradclip.torch import attach, record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results/bad_samples.json"
SHARE, CORRUPTED, FIRST, KEPT = 0.02, 5, 100, 5
WINDOWS = 4000
KINDS = ("spike-sample", "recurring-samples")
console = Console(highlight=False)


class Data(NamedTuple):
    """A data set, and what was planted in it.

    Attributes:
        x: the inputs, one a sample.
        y: the targets.
        wrong: the places of the samples with broken labels, or with scrambled text.
        corrupted: the places of the corrupted samples.
    """

    x: Tensor
    y: Tensor
    wrong: set[int]
    corrupted: set[int]


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        data: from a seed, and whether to plant, to the data.
        model: from the data to a model.
        lr: of AdamW, or of SGD with momentum.
        batch: the samples of a step.
        epochs: the passes over the data.
        optimizer: "AdamW" or "SGD".
        seeds: how many there are at most; a healthy training has two at most.
    """

    data: Callable[[int, bool], Data]
    model: Callable[[Data], nn.Module]
    lr: float = 1e-3
    batch: int = 64
    epochs: int = 10
    optimizer: str = "AdamW"
    seeds: int = 5


def mnist(seed: int, plant: bool) -> Data:
    """Return the digits, with wrong labels and images of random bytes if planted."""
    images, labels = digits()
    kept = torch.randperm(len(labels), generator=Generator().manual_seed(7))[:TRAINED]
    x, y = images[kept].clone(), labels[kept].clone()
    if not plant:
        return Data(x, y, set(), set())
    draw = Generator().manual_seed(seed + 1000)
    wrong, corrupted = _places(TRAINED, draw)
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=draw)) % 10
    x[corrupted] = torch.randint(256, (CORRUPTED, 784), generator=draw).float()
    return Data(x, y, {*wrong.tolist()}, {*corrupted.tolist()})


def plays(seed: int, plant: bool) -> Data:
    """Return windows of the plays, some scrambled and some random if planted."""
    ids, vocabulary = corpus()
    starts = torch.randint(len(ids) - LENGTH, (WINDOWS, 1), generator=Generator().manual_seed(7))
    windows = ids[starts + torch.arange(LENGTH + 1)].clone()
    if not plant:
        return Data(windows[:, :-1], windows[:, 1:], set(), set())
    draw = Generator().manual_seed(seed + 1000)
    wrong, corrupted = _places(WINDOWS, draw)
    for place in wrong.tolist():
        windows[place] = windows[place][torch.randperm(LENGTH + 1, generator=draw)]
    windows[corrupted] = torch.randint(vocabulary, (CORRUPTED, LENGTH + 1), generator=draw)
    return Data(windows[:, :-1], windows[:, 1:], {*wrong.tolist()}, {*corrupted.tolist()})


def _places(count: int, draw: Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(count, generator=draw)[: round(count * SHARE) + CORRUPTED]
    return chosen[CORRUPTED:], chosen[:CORRUPTED]


def _net(*widths: int) -> Callable[[Data], nn.Module]:
    def made(_: Data) -> nn.Module:
        pairs = itertools.pairwise(widths)
        layers = [part for pair in pairs for part in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    return made


def _transformer(_: Data) -> nn.Module:
    return CharTransformer(corpus()[1], 48, 2)


def _lstm(_: Data) -> nn.Module:
    return CharLSTM(corpus()[1], 48, 1)


PLANTED = {
    "mnist": Case(mnist, _net(784, 128, 128, 10)),
    "text": Case(plays, _transformer, lr=3e-3, epochs=8, seeds=3),
}
HEALTHY = {
    **PLANTED,
    "mnist, batches of 16": Case(mnist, _net(784, 128, 128, 10), batch=16, epochs=5),
    "mnist, batches of 256": Case(mnist, _net(784, 128, 128, 10), batch=256, epochs=15),
    "mnist, SGD": Case(mnist, _net(784, 128, 128, 10), lr=0.05, optimizer="SGD", epochs=15),
    "mnist, slow": Case(mnist, _net(784, 128, 128, 10), lr=3e-5),
    "mnist, linear": Case(mnist, _net(784, 10), epochs=15),
    "mnist, linear, SGD": Case(mnist, _net(784, 10), lr=0.003, optimizer="SGD", epochs=15),
    "mnist, deep": Case(mnist, _net(784, *[64] * 8, 10), epochs=15),
    "text, LSTM": Case(plays, _lstm, lr=3e-3, epochs=5, seeds=1),
    "text, slow": Case(plays, _transformer, lr=1e-4, epochs=4, seeds=1),
}


def train(case: Case, seed: int, plant: bool, path: Path) -> Data:
    """Train once, with all norms of the samples in the record."""
    data = case.data(seed, plant)
    torch.manual_seed(seed)
    model = case.model(data)
    if case.optimizer == "SGD":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=case.lr, momentum=0.9
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr)
    clipper = attach(optimizer, None, model=model)
    order = Generator().manual_seed(seed + 2000)
    loss = torch.tensor(0.0)
    with record(
        clipper, path, optimizer=optimizer, loss=lambda: loss, samples=case.batch, model=model
    ) as recorder:
        for _ in range(case.epochs):
            for rows in torch.randperm(len(data.x), generator=order).split(case.batch):
                recorder.sample_ids(rows)
                optimizer.zero_grad()
                logits = model(data.x[rows])
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), data.y[rows].flatten())
                loss.backward()
                optimizer.step()
    return data


def kept(trace: Trace, most: int) -> Trace:
    """Return a trace whose rows name fewer samples, as with a smaller `samples=`."""
    run = trace.run
    rows = tuple(
        (
            row,
            each._replace(at=each.at[:most], norms=each.norms[:most], ids=(each.ids or ())[:most]),
        )
        for row, each in run._samples
    )
    fewer = type(run)(**{**vars_of(run), "_samples": rows})
    return Trace(trace.label, fewer, trace.optimizer)


def vars_of(run: Any) -> dict[str, Any]:
    """Return the fields of a run."""
    return {name: getattr(run, name) for name in type(run).__dataclass_fields__}


def rankings(trace: Trace, count: int) -> dict[str, list[int]]:
    """Return the places of all samples in the order of each way to rank them."""
    rows = trace.samples
    seen, rank, once, last = (np.zeros(count) for _ in range(4))
    hits, energy = np.zeros(count), np.zeros(count)
    for _, each in rows:
        ids, norms = np.array(each.ids), np.array(each.norms)
        seen[ids] += 1
        rank[ids] += np.arange(len(ids)) / each.of
        once[ids] = np.maximum(once[ids], norms)
        last[ids] = norms / each.median
        hits[ids[:KEPT]] += 1
        energy[ids[:KEPT]] += (norms[:KEPT] / each.total) ** 2
    ours = [int(each.id) for each in ranked_samples(kept(trace, KEPT), count)]
    scores = {
        "hits, of all steps": hits + 1e-6 * energy,
        "share of the gradient": energy,
        "largest norm once": once,
        "mean rank": -rank / np.maximum(seen, 1),
        "last epoch alone": last,
    }
    found = {name: np.argsort(-score, kind="stable").tolist() for name, score in scores.items()}
    return {"gradclip": ours, **found}


def run(name: str, seed: int, plant: bool) -> dict[str, Any]:
    """Train once, and return what the record tells."""
    case = (PLANTED if plant else HEALTHY)[name]
    torch.set_num_threads(1)
    path = Path(tempfile.mkdtemp()) / "run.jsonl"
    data = train(case, seed, plant, path)
    whole = traces_of([read_run(path)])[0]
    trace = kept(whole, KEPT)
    found = [each for each in diagnose(trace.run) if each.kind in KINDS]
    figures: dict[str, Any] = {
        "findings": [each.kind for each in found],
        "last_loss": float(np.mean(trace.column("loss")[-20:])),
    }
    if plant:
        ranked = rankings(whole, len(data.x))
        figures["wrong"] = {n: len(data.wrong & {*ids[:FIRST]}) for n, ids in ranked.items()}
        figures["corrupted"] = {
            n: len(data.corrupted & {*ids[:FIRST]}) for n, ids in ranked.items()
        }
        figures["first_20"] = {
            n: len((data.wrong | data.corrupted) & {*ids[:20]}) for n, ids in ranked.items()
        }
        behind = [each for each in found if each.kind == "spike-sample"]
        spikes = [spike for each in behind for spike in each.evidence["samples"]]  # type: ignore[attr-defined]
        named = {id for spike in spikes for id in spike["samples"]}
        figures["corrupted_behind_spikes"] = len(data.corrupted & named)
        figures["named_behind_spikes"] = len(named)
    return figures


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Return the table of the planted runs, a line for each way to rank."""
    table = []
    for task in PLANTED:
        runs = [each for key, each in found["runs"].items() if key.startswith(f"planted, {task},")]
        if not runs:
            continue
        for name in runs[0]["wrong"]:
            wrong, corrupted, first = (
                [each[key][name] for each in runs] for key in ("wrong", "corrupted", "first_20")
            )
            table.append(
                [
                    task,
                    name,
                    f"{statistics.mean(wrong):.1f} ({min(wrong)} to {max(wrong)})",
                    f"{statistics.mean(corrupted):.1f}",
                    f"{statistics.mean(first):.1f}",
                ]
            )
    return table


def alarms(found: dict[str, Any]) -> list[list[str]]:
    """Return how many runs of each kind raised each finding."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, each in found["runs"].items():
        groups.setdefault(key.rpartition(", seed")[0], []).append(each)
    return [
        [name, str(len(runs)), *(str(sum(kind in r["findings"] for r in runs)) for kind in KINDS)]
        for name, runs in groups.items()
    ]


HEADINGS = ("task", "ranking", "of 80 wrong, in the first 100", "of 5 corrupted", "of the first 20")
ALARMS = ("training", "runs", *KINDS)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to this less 1.")] = 5,
    markdown: Annotated[bool, typer.Option(help="Print the stored results for the docs.")] = False,
) -> None:
    """Train with planted samples and without, and count."""
    setting = {"python": platform.python_version(), "torch": torch.__version__}
    found: dict[str, Any] = {"setting": setting, "runs": {}}
    if RESULTS.exists():
        stored = json.loads(RESULTS.read_text())
        found = stored if markdown or stored["setting"] == setting else found
    cases = [("planted", name, case, seeds) for name, case in PLANTED.items()]
    cases += [("healthy", name, case, min(seeds, 2)) for name, case in HEALTHY.items()]
    plan = [(how, name, seed) for how, name, case, n in cases for seed in range(min(n, case.seeds))]
    plan.sort(key=lambda each: each[2])
    plan = [] if markdown else plan
    for how, name, seed in track(
        plan, "training", console=console, disable=not console.is_terminal
    ):
        key = f"{how}, {name}, seed {seed}"
        if key not in found["runs"]:
            found["runs"][key] = run(name, seed, how == "planted")
            RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for headings, table in ((HEADINGS, rows(found)), (ALARMS, alarms(found))):
        if markdown:
            lines = [list(headings), ["---"] * len(headings), *table]
            print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")
            continue
        shown = Table(*headings)
        for line in table:
            shown.add_row(*line)
        console.print(shown)


if __name__ == "__main__":
    typer.run(main)
