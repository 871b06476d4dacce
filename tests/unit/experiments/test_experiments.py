"""The experiments' own logic, and that the docs say what the results say."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradclip import read_run

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # The experiments are no part of what is installed.

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments import run, train  # noqa: E402
from experiments.advised import follow  # noqa: E402
from experiments.docs import pages  # noqa: E402
from experiments.evidence import SECTIONS  # noqa: E402
from experiments.figures import FOLDER, draw_all  # noqa: E402
from experiments.intervals import paired, share  # noqa: E402
from experiments.outcome import complete, loss_of, steps_to  # noqa: E402
from experiments.page import insert  # noqa: E402
from experiments.problem import Problem  # noqa: E402
from experiments.setting import ADVISED, Setting  # noqa: E402
from experiments.spikes import Spikes  # noqa: E402
from experiments.store import RESULTS, Store  # noqa: E402
from experiments.studies import advisor, information, privacy, threshold  # noqa: E402
from experiments.sums import Sums  # noqa: E402
from experiments.tasks import TASKS  # noqa: E402
from experiments.verdicts import verdicts  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- The docs and the results


def test_the_docs_say_what_the_results_say(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("experiments.figures.FOLDER", tmp_path)
    alts = draw_all(Store())
    for page, text in pages(Store(), ROOT, alts).items():
        assert page.read_text("utf-8") == text, f"{page.name}: run make docs-experiments"
    for name, alt in alts.items():
        drawn = (FOLDER / f"{name}.svg").read_text("utf-8")
        assert drawn == (tmp_path / f"{name}.svg").read_text("utf-8"), name
        assert len(alt) > 40
    shown = re.compile(r"!\[(.*?)\]\((?:\.\./)*images/experiments/(.*?)\.svg\)")
    for page in (ROOT / "docs").rglob("*.md"):
        for alt, name in shown.findall(page.read_text("utf-8")):
            assert alt == alts[name], f"{page.name}: copy the description of {name}.svg"


def test_the_evidence_begins_with_the_claims_and_folds_the_tables() -> None:
    text = (ROOT / "docs/evidence.md").read_text("utf-8")
    top, *studies = re.split(r"^## ", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| \*\*(.+?)\*\* \|", top, re.MULTILINE)
    assert rows == [(v.claim, v.word) for v in verdicts(Store())]
    found = {part.partition("\n")[0]: part for part in studies}
    for section in SECTIONS:
        shown, _, folded = found[section.title].partition("<details>")
        assert f"images/experiments/{section.figure}.svg)" in shown
        assert "\n| " not in shown
        assert "\n| " in folded
        assert folded.rstrip().endswith("</details>")


def test_a_result_that_changes_makes_the_docs_wrong(tmp_path: Path) -> None:
    for file in RESULTS.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text("utf-8"), "utf-8")
    store = Store(tmp_path)
    case = advisor.CASES["char_lm hot"]
    before = advisor.section(store)
    figures = store.get(case)
    assert figures is not None
    store.put(case, {**figures, "loss": 0.001})
    assert advisor.section(Store(tmp_path)) != before


def test_only_the_marked_part_of_a_page_changes() -> None:
    page = "a\n<!-- written by make docs-experiments: x -->\nold\n<!-- end -->\nb"
    assert insert(page, "x", "new").split("\n") == [
        "a",
        "<!-- written by make docs-experiments: x -->",
        "",
        "new",
        "",
        "<!-- end -->",
        "b",
    ]
    with pytest.raises(ValueError, match="no <!-- written by make docs-experiments: y -->"):
        insert(page, "y", "new")


def test_nothing_finished_is_said_to_be_nothing(tmp_path: Path) -> None:
    for verdict in verdicts(Store(tmp_path)):
        assert (verdict.word, verdict.seeds) == ("not shown", "0"), verdict
    assert len(SECTIONS) == 10
    assert sum(section.claims for section in SECTIONS) == len(verdicts(Store(tmp_path)))


# ---- The store


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    settings = [Setting("quadratic", 0.01, seed=seed, steps=20) for seed in range(4)]
    ran: list[int] = []

    def perform(setting: Setting) -> dict[str, Any]:
        if setting.seed == 2 and len(ran) < 3:
            ran.append(-1)
            raise KeyboardInterrupt
        ran.append(setting.seed)
        return {"loss": math.nan if setting.seed else 1.0, "worst": math.inf}

    monkeypatch.setattr(run, "perform", perform)
    with pytest.raises(KeyboardInterrupt):
        run.perform_all(settings, Store(tmp_path))
    run.perform_all(settings, Store(tmp_path))
    assert ran == [0, 1, -1, 2, 3]
    kept = [Store(tmp_path).get(setting) for setting in settings]
    assert [figures is not None and figures["worst"] for figures in kept] == [math.inf] * 4
    assert kept[1] is not None
    assert math.isnan(kept[1]["loss"])
    json.loads((tmp_path / "quadratic.json").read_text(), parse_constant=pytest.fail)


def test_a_key_names_one_setting() -> None:
    base = Setting("mnist", 0.1, options=(("depth", 3),))
    changed = [
        base.with_(lr=0.2),
        base.with_(policy="norm:1"),
        base.with_(seed=1),
        base.with_(steps=5),
        base.with_(optimizer="adamw"),
        base.with_(options={"depth": 4}),
        base.with_(options={"noise": 0.4}),
        base.with_(spikes=True),
        base.with_(stop=True),
        base.with_(sums=True),
        base.with_(noise=0.0),
        base.with_(noise=0.4),
    ]
    assert len({setting.key for setting in (base, *changed)}) == 13


# ---- The courses that follow the advice


def test_a_course_follows_the_advice_to_its_rest(tmp_path: Path) -> None:
    setting = Setting("adding", 0.03, steps=60, options=(("length", 5),))
    asked: list[str] = []

    def perform(policy: str) -> Any:
        asked.append(policy)
        file = tmp_path / f"{len(asked)}.jsonl"
        train.train(setting.with_(policy=policy), file)
        return read_run(file)

    course = follow("norm:0.01", perform)
    assert course.policies == asked
    assert asked[:2] == ["norm:0.01", "auto"], "the limit takes most of the gradient"
    assert course.kept in asked
    assert course.askings == len(asked) <= 4


# ---- The intervals


def test_the_interval_is_students() -> None:
    found = paired([1.0, 2.0, 4.0], [2.0, 2.5, 4.0])
    half = 4.302652729911275 * np.std([1.0, 0.5, 0.0], ddof=1) / math.sqrt(3)
    assert (found.value, found.count) == (0.5, 3)
    assert found.low == pytest.approx(0.5 - half)
    assert found.high == pytest.approx(0.5 + half)
    assert not found.excludes_zero
    assert math.isnan(paired([1.0], [2.0]).low)
    assert math.isnan(paired([1.0, 2.0], [math.nan, 2.0]).value)
    assert "one seed" in paired([1.0], [2.0]).text()


def test_the_interval_of_a_share_is_wilsons() -> None:
    found = share(8, 10)
    z, p, n = 1.959963984540054, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


def test_arms_are_compared_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    store, arms = Store(tmp_path), {"a": Setting("t", 1), "b": Setting("t", 2)}
    for name, seed in (("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)):
        store.put(arms[name].with_(seed=seed), {"loss": seed + (10 if name == "b" else 0)})
    runs = complete(store, arms, (0, 1, 2))
    assert [run["loss"] for run in runs["a"]] == [1, 2]
    assert [run["loss"] for run in runs["b"]] == [11, 12]


def test_a_loss_above_no_skill_is_no_skill() -> None:
    assert loss_of({"loss": math.nan, "trivial": 2.0}) == 2.0
    assert loss_of({"loss": 9.0, "trivial": 2.0}) == 2.0
    assert loss_of({"loss": 1.0, "trivial": 2.0}) == 1.0


def test_steps_to_a_loss() -> None:
    figures = {"curve": [3.0, 2.0, 1.0, 1.5], "ran": 40}
    assert steps_to(figures, 2.0, 40) == 20
    assert steps_to(figures, 0.5, 40) == math.inf


# ---- The training


class Line(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(4.0))


def line(seed: int) -> Problem:
    """Return w²/2, whose gradient is w."""
    del seed
    model = Line()
    return Problem(
        model,
        lambda: model.w**2 / 2,
        lambda: {"loss": float(model.w) ** 2 / 2, "w": float(model.w)},
        8.0,
        lambda seen: seen["w"] < 1,
    )


def test_the_loop_is_plain_descent(monkeypatch: Any) -> None:
    monkeypatch.setitem(TASKS, "line", line)
    figures = train.train(Setting("line", 0.1, "norm:1.0", steps=9, sums=True))
    w, raw, cut = 4.0, 0.0, 0.0
    for step in range(9):
        rate = 0.1 * min((9 - step) / 3, 1.0)
        raw, cut = raw + w, cut + min(w, 1.0)
        w -= rate * min(w, 1.0)
    assert figures["w"] == pytest.approx(w, rel=1e-6)
    assert figures["drift"] == pytest.approx((raw - cut) / raw, rel=1e-6)
    assert figures["clip_rate"] == 1
    assert (figures["ran"], figures["diverged"], figures["loss_spikes"]) == (9, False, 0)


def test_a_run_can_stop_and_can_diverge(monkeypatch: Any) -> None:
    monkeypatch.setitem(TASKS, "line", line)
    stopped = train.train(Setting("line", 0.1, steps=200, stop=True))
    assert (stopped["solved_at"], stopped["ran"], stopped["solved"]) == (25, 25, True)
    lost = train.train(Setting("line", 300.0, steps=60))
    assert lost["diverged"]
    assert lost["ran"] < 60


def test_a_spike_is_of_the_size_it_says() -> None:
    params = [torch.zeros(50), torch.zeros(3, 3)]
    spikes = Spikes(params, seed=0)
    ratios = []
    for _ in range(2000):
        for param in params:
            param.grad = torch.ones_like(param)
        before = spikes.planted
        spikes.plant()
        added = math.sqrt(sum(float(((p.grad - 1) ** 2).sum()) for p in params))  # type: ignore[operator]
        assert (added > 0) == (spikes.planted > before)
        if added:
            ratios.append(added / math.sqrt(59))
    assert 20 < len(ratios) < 60  # 2 % of 2,000, give or take three deviations.
    assert min(ratios) >= 10 * (1 - 1e-4)
    # The median of a Pareto distribution with tail index 1.2 is 2^(1/1.2) = 1.78.
    assert 13 < np.median(ratios) < 27


def test_sums_add_up() -> None:
    param = nn.Parameter(torch.zeros(2))
    sums = Sums([param])
    for raw, clipped in (([3.0, 4.0], [0.6, 0.8]), ([0.0, 0.0], [0.0, 0.0])):
        param.grad = torch.tensor(raw)
        sums.raw()
        param.grad = torch.tensor(clipped)
        sums.clipped()
    assert sums.drift == pytest.approx(0.8)


def test_adding_and_order_are_what_they_say() -> None:
    from experiments.tasks.recurrent import _orders, sums

    x, y = sums(50, 10, torch.Generator().manual_seed(0))
    assert x[:, :, 1].sum(1).eq(2).all()
    assert x[:, :5, 1].sum(1).eq(1).all()
    for row, target in zip(x, y, strict=True):
        assert float(target) == pytest.approx(float(row[row[:, 1] == 1, 0].sum()))
    x, y = _orders(200, 40, torch.Generator().manual_seed(0))
    for row, target in zip(x.argmax(2), y, strict=True):
        marks = row[row < 2]
        assert len(marks) == 2
        assert int(target) == 2 * int(marks[0]) + int(marks[1])
    assert y.bincount().min() > 25


def test_the_nets_are_as_deep_and_as_steep_as_they_say() -> None:
    from experiments.tasks.mnist import Deep
    from experiments.tasks.recurrent import TanhNet

    _, around, *_ = TanhNet(2, 1, 1.2).recurrent.parameters()
    radius = torch.linalg.eigvals(around.detach()).abs().max()
    assert float(radius) == pytest.approx(1.2, rel=1e-4)
    layers = Deep(20, 8, "relu", "none", False, "scaled").modules()
    assert len([layer for layer in layers if isinstance(layer, nn.Linear)]) == 20


def test_clipping_the_parabola_is_biased_as_computed() -> None:
    """A known answer: the resting place of norm clipping at 2 is 7/9, that of none 0."""
    for policy, place in (("norm:2.0", 7 / 9), ("none", 0.0)):
        found = train.train(Setting("quadratic", 0.01, policy, steps=4000))
        assert found["place"] == pytest.approx(place, abs=0.12)
    assert information.PARABOLA["norm:2.0"] == 7 / 9


def test_every_policy_is_one() -> None:
    from gradclip import parse

    studies = (threshold, information, privacy)
    settings = [setting for study in studies for setting in study.settings((0,))]
    texts = {setting.policy for setting in settings} - {ADVISED}
    assert texts
    for text in texts:
        # The keys of stored results keep the hyphens of before.
        assert str(parse(text)).partition(":")[0] == text.partition(":")[0].replace("-", "_")
