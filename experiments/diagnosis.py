"""Counts what the diagnosis finds, misses and invents, on trainings with one planted fault each.

    python -m experiments.diagnosis               # all, some minutes; writes results/diagnosis.json
    python -m experiments.diagnosis --markdown    # the table of the docs, from that file

Each case is a real torch training of a second, recorded as `gradclip run` does it. A fault is
*found* if the diagnosis names its kind and, where the fault has one, its place: the layer, the
step, what came first. A *false alarm* is any error or warning on a healthy run, and on a faulty one
any that is neither the fault nor what may follow from it (listed with the case, as `also`).

The rules were made and mended with the seeds of `SEEN`; the others were held out.
"""

from __future__ import annotations

import json
import math
import platform
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import gradclip
from gradclip import diagnose, read_run
from gradclip.diagnosis import Finding
from gradclip.record import RecordWriter, Run
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"
SEEN = (0, 1, 2)
HELD_OUT = (3, 4, 5, 6, 7)
STEPS = 200
AT = 120
"""The step at which a fault with a beginning begins."""

Place = Callable[[Finding], bool]


@dataclass(frozen=True)
class Case:
    """One kind of training.

    Attributes:
        name: what the table calls it.
        train: trains, from a seed; nothing in it knows that it is recorded.
        policy: as given to `gradclip run --clip`.
        expected: the kind of finding that is the fault; None: the run is healthy.
        place: whether a finding of that kind is about this fault.
        also: kinds that follow from the fault and are not false alarms.
    """

    name: str
    train: Callable[[], None]
    policy: str | None = None
    expected: str | None = None
    place: Place = lambda _finding: True
    also: tuple[str, ...] = ()


FAULTS: dict[str, Case] = {}
HEALTHY: dict[str, Case] = {}


def fault(name: str, expected: str, **options: Any) -> Callable[[Callable[[], None]], None]:
    """Enter a training with this fault."""

    def enter(train: Callable[[], None]) -> None:
        FAULTS[name] = Case(name, train, expected=expected, **options)

    return enter


def healthy(name: str, **options: Any) -> Callable[[Callable[[], None]], None]:
    """Enter a training without a fault."""

    def enter(train: Callable[[], None]) -> None:
        HEALTHY[name] = Case(name, train, **options)

    return enter


def between(low: int, high: int) -> Place:
    """Return whether a finding begins in these steps."""
    return lambda finding: finding.step is not None and low <= finding.step <= high


def layer_and_step(key: str, prefix: str, low: int, high: int) -> Place:
    """Return whether a finding names a parameter of this layer, and begins in these steps."""
    here = between(low, high)
    return lambda finding: here(finding) and str(finding.evidence[key]).startswith(prefix)


# ---- The trainings


def classes(batch: int = 32, wide: int = 16, kinds: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches with the labels of a fixed linear teacher."""
    teacher = torch.randn(wide, kinds)
    while True:
        x = torch.randn(batch, wide)
        yield x, (x @ teacher).argmax(1)


def mlp(depth: int = 4, activation: type[nn.Module] = nn.ReLU, width: int = 32) -> nn.Sequential:
    """Return Linear and activation, `depth` times, then a Linear to four classes."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 16, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    before: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda _, x, y: (x, y),
    between: Callable[[int], None] = lambda _: None,
    steps: int = STEPS,
) -> None:
    """Train a classifier; `before` may change a batch, `between` comes after backward."""
    batches = classes()
    for step in range(1, steps + 1):
        x, y = before(step, *next(batches))
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        between(step)
        optimizer.step()


def sgd(model: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return SGD on all parameters."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adamw(model: nn.Module, lr: float = 2e-3, **options: Any) -> torch.optim.Optimizer:
    """Return AdamW on all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=lr, **options)


def text() -> tuple[Tensor, int]:
    """Return Python's help text as character ids, and the number of distinct characters."""
    topics = pydoc_data.topics.topics
    joined = "".join(topics[name] for name in sorted(topics))[:100_000]
    ids = {character: index for index, character in enumerate(sorted(set(joined)))}
    return torch.tensor([ids[character] for character in joined]), len(ids)


class CharLSTM(nn.Module):
    """Predicts each character from the characters before it."""

    def __init__(self, vocabulary: int, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for ids (batch, time)."""
        return self.decode(self.lstm(self.embed(ids))[0])


class CharTransformer(nn.Module):
    """Predicts characters with causal attention, normalised before each block."""

    def __init__(self, vocabulary: int, width: int = 32, seq: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(seq, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(3)
        )
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for ids (batch, time)."""
        seq = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(seq)
        x = self.embed(ids) + self.places[:seq]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.decode(x)


def fit_text(
    make: Callable[[int], nn.Module],
    optimize: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    steps: int = STEPS,
) -> None:
    """Train a character model on windows of the text."""
    ids, vocabulary = text()
    model = make(vocabulary)
    optimizer = optimize(model)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(steps):
        starts = torch.randint(len(ids) - 24, (16, 1))
        windows = ids[starts + torch.arange(25)]
        loss = nn.functional.cross_entropy(
            model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def warm_up(optimizer: torch.optim.Optimizer) -> Any:
    """Return a schedule that rises over 30 steps and falls as a cosine."""

    def factor(step: int) -> float:
        return (step + 1) / 30 if step < 30 else 0.5 * (1 + math.cos(math.pi * step / STEPS))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# ---- Faults


@fault(
    "gradient of one layer grows by 1.6 a step, from step 120",
    "exploding",
    place=layer_and_step("first_layer", "4.", AT - 2, AT + 15),
    also=("loss-spike", "non-finite", "dead-layers"),
)
def _() -> None:
    model = mlp()

    def grow(step: int) -> None:
        if step >= AT:
            for parameter in model[4].parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(1.6 ** (step - AT + 1))

    fit(model, sgd(model), between=grow)


@fault(
    "learning rate grows by 1.15 a step, from step 60",
    "exploding",
    place=between(60, STEPS),
    also=("loss-spike", "non-finite", "dead-layers", "vanishing"),
)
def _() -> None:
    model = mlp(activation=nn.ReLU)
    optimizer = sgd(model)

    def raise_rate(step: int) -> None:
        if step >= 60:
            optimizer.param_groups[0]["lr"] *= 1.15

    fit(model, optimizer, between=raise_rate)


@fault(
    "tanh net of 20 layers, weights three times too large",
    "exploding",
    place=lambda finding: "per_layer" in finding.evidence,
    also=("loss-spike", "plateau"),
)
def _() -> None:
    model = mlp(20, nn.Tanh)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=3 / math.sqrt(module.in_features))
    fit(model, sgd(model, 1e-3, momentum=0))


@fault(
    "sigmoid net of 12 layers",
    "vanishing",
    place=lambda finding: "per_layer" in finding.evidence,
    also=("plateau",),
)
def _() -> None:
    model = mlp(12, nn.Sigmoid)
    fit(model, sgd(model))


@fault(
    "one step a million times too large saturates a tanh net",
    "vanishing",
    place=between(50, STEPS),
    also=("plateau", "loss-spike", "dead-layers", "exploding"),
)
def _() -> None:
    model = nn.Sequential(*mlp(4, nn.Tanh), nn.Tanh())
    optimizer = sgd(model, 0.1, momentum=0)
    batches = classes()
    for step in range(1, STEPS + 1):
        x, y = next(batches)
        loss = (model(x) - nn.functional.one_hot(y, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 3e5 if step == 60 else 0.1
        optimizer.step()


@fault(
    "ReLU layer whose biases fall to -100 at step 120",
    "dead-layers",
    place=lambda finding: between(AT, AT + 2)(finding) and "4.weight" in finding.evidence["dead"],  # type: ignore[operator]
    also=("loss-spike",),
)
def _() -> None:
    model = mlp()

    def kill(step: int) -> None:
        if step == AT - 1:
            with torch.no_grad():
                model[4].bias.fill_(-100.0)  # type: ignore[union-attr]

    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda *_: kill(len(done)))
    done: list[int] = []
    fit(model, optimizer, between=done.append)


class Root(nn.Module):
    """A square root whose argument is sometimes zero: the gradient is then 0 · inf."""

    step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x, in every 40th step through a root."""
        Root.step += 1
        return torch.sqrt(x * 0 * x) + x if Root.step % 40 == 0 else x


@fault(
    "NaN in the backward pass of one layer, every 40th step",
    "non-finite",
    policy="norm:5",
    place=layer_and_step("source", "1.2", 40, 40),
    also=("skipped",),
)
def _() -> None:
    Root.step = 0
    head, tail = mlp(), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    body = nn.Sequential(*list(head)[:-1])
    middle = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), Root())
    model = nn.Sequential(body, middle, tail)
    fit(model, sgd(model))


@fault(
    "loss scale that overflows every fifth step",
    "skipped",
    place=lambda finding: finding.severity != "note",
    also=("non-finite",),
)
def _() -> None:
    model = mlp()
    optimizer = adamw(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_interval=4)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y) * 8).backward()
        scaler.step(optimizer)
        scaler.update()


@fault(
    "NaN in a quarter of the batches",
    "skipped",
    policy="norm:5",
    place=lambda finding: finding.severity != "note",
    also=("non-finite", "loss-spike"),
)
def _() -> None:
    model = mlp()

    def spoil(_step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * float("nan"), y) if torch.rand(()) < 0.25 else (x, y)

    fit(model, sgd(model), before=spoil)


@fault(
    "the script clips too, to a third of the policy's norm",
    "double-clipping",
    place=lambda finding: finding.severity == "warning",
    policy="norm:1.5",
)
def _() -> None:
    model = mlp()

    def clip(_step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)

    fit(model, sgd(model), between=clip)


@fault("scaled gradients clipped before they are unscaled", "clip-before-unscale",
       also=("double-clipping", "plateau"))  # fmt: skip
def _() -> None:
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu")
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@fault(
    "scaled by hand, and stepped without unscaling",
    "clip-before-unscale",
    policy="norm:1",
    also=("always-binds", "removes-most"),
)
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.02)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) * 65536).backward()
        optimizer.step()


@fault("threshold far above every norm", "never-binds", policy="norm:1000")
def _() -> None:
    model = mlp()
    fit(model, sgd(model))


@fault(
    "threshold under every norm",
    "always-binds",
    place=lambda finding: finding.severity == "warning",
    policy="norm:0.1",
)
def _() -> None:
    fit_text(CharLSTM, lambda model: sgd(model, 2.0, momentum=0))


@fault("threshold at a thousandth of the norm", "removes-most", policy="norm:0.001",
       also=("always-binds", "plateau"))  # fmt: skip
def _() -> None:
    model = mlp()
    fit(model, sgd(model, 0.5))


@fault(
    "a corrupted gradient at step 120 throws the weights",
    "loss-spike",
    place=lambda finding: (
        between(AT, AT + 3)(finding)
        and bool(finding.evidence["after_a_norm_spike"])
        and finding.evidence["norm_steps"][0] == AT
    ),  # type: ignore[index]
    also=("exploding", "dead-layers"),
)
def _() -> None:
    model = mlp(2, nn.Tanh)

    def corrupt(step: int) -> None:
        if step == AT:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(300)

    fit(model, sgd(model), between=corrupt)


@fault(
    "three batches of wrong labels at step 120, clipped",
    "loss-spike",
    policy="norm:1",
    place=lambda finding: (
        between(AT, AT + 2)(finding) and finding.evidence["after_a_norm_spike"] == 0
    ),
)
def _() -> None:
    model = mlp()

    def mislabel(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, (y + 2) % 4) if AT <= step < AT + 3 else (x, y)

    fit(model, adamw(model), before=mislabel)


@fault(
    "learning rate of 1e-7",
    "plateau",
    place=lambda finding: finding.severity == "warning",
)
def _() -> None:
    model = mlp()
    fit(model, sgd(model, 1e-7))


@fault("learning rate falls to nothing at step 60", "plateau", place=between(30, 110))
def _() -> None:
    model = mlp()
    optimizer = sgd(model, 0.2)

    def stop(step: int) -> None:
        if step == 60:
            optimizer.param_groups[0]["lr"] = 1e-6

    fit(model, optimizer, between=stop)


# ---- Healthy runs


@healthy("MLP, SGD with momentum")
def _() -> None:
    model = mlp()
    fit(model, sgd(model))


@healthy("MLP of 8 layers, batch normalisation, AdamW")
def _() -> None:
    blocks = [m for i in range(8) for m in (nn.Linear(32 if i else 16, 32), nn.BatchNorm1d(32), nn.ReLU())]  # noqa: E501  # fmt: skip
    model = nn.Sequential(*blocks, nn.Linear(32, 4))
    fit(model, adamw(model))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        return x + self.f(x)


@healthy("residual net of 12 blocks, AdamW, clipped", policy="norm:1")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), *(Residual() for _ in range(12)), nn.Linear(32, 4))
    fit(model, adamw(model))


@healthy("CNN on generated pictures, SGD")
def _() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    optimizer = sgd(model)
    marks = torch.randn(4, 1, 5, 5)
    for _ in range(STEPS):
        y = torch.randint(4, (32,))
        x = torch.randn(32, 1, 12, 12) * 0.3
        x[:, :, 3:8, 4:9] += marks[y]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@healthy("LSTM on the adding problem, Adam, clipped", policy="norm:1")
def _() -> None:
    lstm, out = nn.LSTM(2, 32, batch_first=True), nn.Linear(32, 1)
    model = nn.ModuleList([lstm, out])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        values = torch.rand(32, 12)
        places = torch.rand(32, 12).topk(2).indices
        marked = torch.zeros(32, 12).scatter(1, places, 1.0)
        states = lstm(torch.stack([values, marked], 2))[0]
        loss = (out(states[:, -1]).squeeze(1) - (values * marked).sum(1)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy("character LSTM on text, SGD, clipped", policy="norm:0.5")
def _() -> None:
    fit_text(CharLSTM, lambda model: sgd(model, 2.0, momentum=0))


@healthy("character transformer, AdamW, warm-up and cosine")
def _() -> None:
    fit_text(CharTransformer, lambda model: adamw(model, 3e-3), warm_up)


@healthy("MLP in bfloat16 (autocast), AdamW")
def _() -> None:
    model = mlp()
    optimizer = adamw(model)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


@healthy("MLP, four micro-batches a step, SGD")
def _() -> None:
    model = mlp()
    optimizer = sgd(model)
    batches = classes(8)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(4):
            x, y = next(batches)
            (nn.functional.cross_entropy(model(x), y) / 4).backward()
        optimizer.step()


@healthy("MLP with a GradScaler and fused AdamW", policy="norm:5")
def _() -> None:
    model = mlp()
    optimizer = adamw(model, fused=True)
    scaler = torch.amp.GradScaler("cpu", growth_interval=60)
    for (x, y), _ in zip(classes(), range(STEPS), strict=False):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


@healthy("regression with an adaptive policy, SGD", policy="zclip")
def _() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
    teacher, optimizer = torch.randn(16), sgd(model, 0.05)
    for _ in range(STEPS):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (model(x).squeeze(1) - torch.tanh(x @ teacher)).pow(2).mean().backward()
        optimizer.step()


# ---- The tally


def recorded(case: Case, seed: int, path: Path) -> Run:
    """Train, recorded as under `gradclip run`, and return the run."""
    torch.manual_seed(1000 + seed)
    writer = RecordWriter(
        path, if_exists="overwrite", policy=case.policy, command=[case.name, str(seed)]
    )
    policy = None if case.policy is None else gradclip.parse(case.policy)
    session = Session(policy, writer=writer, max_skips=STEPS)
    try:
        with watch(session):
            case.train()
    finally:
        session.close("ok")
    return read_run(path)


def tally(case: Case, run: Run) -> dict[str, Any]:
    """Return the tally of the diagnosis of a run."""
    findings = diagnose(run)
    about = [f for f in findings if f.kind == case.expected]
    allowed = {case.expected, *case.also}
    false = [f for f in findings if f.severity != "note" and f.kind not in allowed]
    return {
        "found": None if case.expected is None else any(map(case.place, about)),
        "kinds": sorted({f"{f.kind} ({f.severity})" for f in findings}),
        "sentence": next((f.sentence for f in about if case.place(f)), None),
        "false": [f"{f.kind} ({f.severity}), step {f.step}: {f.sentence}" for f in false],
    }


def run_cases(cases: dict[str, Case], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Train every case with every seed; return the tallies by name and seed."""
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases.values():
            rows = told[case.name] = {"expected": case.expected, "seeds": {}}
            for seed in seeds:
                rows["seeds"][str(seed)] = tally(case, recorded(case, seed, Path(folder) / "r"))
    return told


def markdown(results: dict[str, Any]) -> str:
    """Return the table of the docs."""
    held = {str(seed) for seed in results["setting"]["held_out"]}
    lines = ["| training | fault | found, seen seeds | found, held out | false alarms |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    sums = {"found": [0, 0], "of": [0, 0], "false": 0, "false_held": 0, "runs": 0}
    for part in ("faults", "healthy"):
        for name, case in results[part].items():
            cells = []
            seeds = case["seeds"]
            for column, group in enumerate((seeds.keys() - held, seeds.keys() & held)):
                found = sum(bool(seeds[seed]["found"]) for seed in group)
                if case["expected"]:
                    sums["found"][column] += found
                    sums["of"][column] += len(group)
                cells.append(f"{found} of {len(group)}" if case["expected"] else "–")
            false = [seed for seed in seeds if seeds[seed]["false"]]
            sums["false"] += len(false)
            sums["false_held"] += len([seed for seed in false if seed in held])
            sums["runs"] += len(seeds)
            kind = f"`{case['expected']}`" if case["expected"] else "none"
            alarms = f"{len(false)} of {len(seeds)} runs"
            lines.append(f"| {name} | {kind} | {cells[0]} | {cells[1]} | {alarms} |")
    totals = [f"{a} of {b}" for a, b in zip(sums["found"], sums["of"], strict=True)]
    alarms = f"{sums['false']} of {sums['runs']} runs, {sums['false_held']} held out"
    lines.append(f"| **all** | | **{totals[0]}** | **{totals[1]}** | **{alarms}** |")
    return "\n".join(lines) + "\n"


def main(
    table: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the last run.")
    ] = False,
    only: Annotated[str, typer.Option(help="Only cases with this in their name; no file.")] = "",
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds; no file.")] = None,
) -> None:
    """Train each case with each seed, diagnose it, and count."""
    if table:
        typer.echo(markdown(json.loads(RESULTS.read_text("utf-8"))), nl=False)
        return
    started = time.perf_counter()
    seeds = tuple(seed) if seed else (*SEEN, *HELD_OUT)
    results: dict[str, Any] = {
        "setting": {
            "seen": list(SEEN),
            "held_out": list(HELD_OUT),
            "steps": STEPS,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gradclip": gradclip.__version__,
        }
    }
    for name, cases in (("faults", FAULTS), ("healthy", HEALTHY)):
        kept = {key: case for key, case in cases.items() if only in key}
        results[name] = run_cases(kept, seeds)
        for case, told in results[name].items():
            for number, row in told["seeds"].items():
                if row["found"] is False or row["false"]:
                    typer.echo(f"{case}, seed {number}: {row['kinds']} {row['false']}", err=True)
    results["setting"]["seconds"] = round(time.perf_counter() - started)
    if not only and not seed:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    typer.echo(markdown(results), nl=False)


if __name__ == "__main__":
    typer.run(main)
