"""A figure for a paper: its size, its text, and names that Matplotlib would read as code."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradclip.errors import GradclipError, GradclipWarning
from gradclip.export import FORMATS, PANELS, write_figure
from gradclip.record import RecordWriter, read_run

pytest.importorskip("matplotlib")
image = pytest.importorskip("PIL.Image")

EVIL = "$x_1^2$ <script>&\x07"


def write(path: Path, rows: list[dict], names=("a.weight", EVIL), **header: Any) -> Path:
    with RecordWriter(path, command=["train.py"], **header) as record:
        record.optimizer("SGD", [(name, (1,), "float32") for name in names])
        for step, row in enumerate(rows, 1):
            record.step(step=step, time=0.0, **row)
    return path


def usual(limit: float, steps: int = 80) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(steps):
        norm = float(np.exp(rng.normal()))
        coef = min(limit / norm, 1.0)
        rows.append({
            "loss": 3 / (step + 1), "norm": norm, "limit": limit, "coef": coef,
            "clipped": coef < 1, "norms": [norm / 2, norm / 3], "skipped": step == 7,
        })  # fmt: skip
    return rows


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{name}.jsonl", usual(x)) for name, x in (("_a $\\x$", 1), ("b", 2))]


def text_of(path: Path) -> list[str]:
    texts = ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in texts]


def test_an_svg_has_its_text_as_text_and_names_as_they_are(runs, tmp_path) -> None:
    out = write_figure(runs, tmp_path / "new" / "fig.svg", panels=PANELS)
    told = text_of(out)
    for text in ("_a $\\x$", "b", "loss", "gradient norm", "clip coefficient", "step", "a.weight"):
        assert text in told
    assert any(text.startswith("$x_1^2$ <") and text.endswith("ript>&\\x07") for text in told)
    assert "<script" not in out.read_text("utf-8")


@pytest.mark.parametrize("kind", FORMATS)
def test_its_size_is_what_was_asked_for_and_it_can_be_made_again(runs, tmp_path, kind) -> None:
    one, two = (
        write_figure(runs, tmp_path / f"{name}.{kind}", width=3.25, height=2.5, dpi=200)
        for name in "ab"
    )
    assert one.read_bytes() == two.read_bytes()
    if kind == "png":
        with image.open(one) as picture:
            assert picture.size == (650, 500)
    if kind == "svg":
        root = ET.parse(one).getroot()
        assert (root.get("width"), root.get("height")) == ("234pt", "180pt")
    if kind == "pdf":
        assert b"/MediaBox [ 0 0 234 180 ]" in one.read_bytes()


def test_lines_differ_by_dash_and_by_colour(runs, tmp_path) -> None:
    out = write_figure(runs, tmp_path / "fig.svg", panels=["loss"])
    svg = out.read_text("utf-8")
    from gradclip.show.style import style_of

    assert style_of(0).colour in svg
    assert style_of(1).colour in svg
    assert "stroke-dasharray" in svg


def test_clipped_steps_are_all_shown_or_the_thinning_is_said(tmp_path) -> None:
    few = write(tmp_path / "few.jsonl", usual(1.0, 150))
    count = sum(row["clipped"] for row in usual(1.0, 150))
    assert 40 < count <= 100
    svg = write_figure(few, tmp_path / "few.svg", panels=["norm"])
    drawn = svg.read_text("utf-8").count("<use ")
    assert not [text for text in text_of(svg) if "shown" in text]
    many = write(tmp_path / "many.jsonl", usual(1.0, 900))
    count = sum(row["clipped"] for row in usual(1.0, 900))
    thinned = write_figure(many, tmp_path / "many.svg", panels=["norm"])
    assert [text for text in text_of(thinned) if "shown" in text] == [
        f"100 of {count} clipped steps shown"
    ]
    assert drawn > 40
    assert thinned.stat().st_size < 200_000


def test_the_limit_has_no_trace_s_dash_and_many_runs_keep_their_names(tmp_path) -> None:
    from gradclip.export.style import dashes, limit_style

    assert limit_style(0)["linestyle"] not in [dashes(index) for index in range(36)]
    runs = [write(tmp_path / f"run {i}.jsonl", usual(1.0, 40)) for i in range(12)]
    told = text_of(write_figure(runs, tmp_path / "fig.svg", width=5))
    assert {f"run {i}" for i in range(12)} <= set(told)


HARD = {
    "no steps": [],
    "one step": [{"norm": 1.0, "loss": 1.0, "norms": [1.0, 2.0]}],
    "nan": [{"norm": math.nan, "loss": math.nan, "coef": math.nan, "norms": [math.nan] * 2}] * 30,
    "inf": [{"norm": math.inf, "loss": math.inf, "limit": math.inf, "norms": [math.inf] * 2}] * 30,
    "zero": [{"norm": 0.0, "loss": 0.0, "coef": 0.0, "norms": [0.0] * 2, "clipped": True}] * 30,
    "negative": [{"norm": -1.0, "loss": -1.0, "clipped": True}] * 30,
    "extreme": [
        {"norm": norm, "loss": norm, "norms": [norm] * 2, "clipped": True}
        for norm in (1e300, 1e-300, 1e-12, 1e12)
    ],
    "alike": [{"norm": 1.0, "loss": 1.0, "norms": [1.0, 1.0]}] * 30,
}


@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
def test_hard_records_make_a_figure(tmp_path, rows) -> None:
    run = write(tmp_path / "hard.jsonl", rows)
    panels = [name for name in PANELS if name != "layers" or rows]
    out = write_figure(run, tmp_path / "fig.png", panels=panels, dpi=60)
    with image.open(out) as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 3


def test_letters_that_the_font_lacks_are_told_and_stay_in_an_svg(tmp_path) -> None:
    runs = [write(tmp_path / f"{name}.jsonl", usual(1.0, 5)) for name in ("梯度", "b")]
    with pytest.warns(GradclipWarning, match="font lacks"):
        out = write_figure(runs, tmp_path / "fig.svg")
    assert "梯度" in text_of(out)


def test_it_leaves_matplotlib_s_settings_alone(runs, tmp_path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_figure(runs, tmp_path / "fig.svg")
    assert dict(mpl.rcParams) == before


WRONG = {
    "format": ({"out": "fig.gif"}, r"out='fig.gif' is not usable: end its name in one of \.svg"),
    "no format": ({"out": "fig"}, "out='fig' is not usable"),
    "no panel": ({"panels": ()}, r"panels=\(\) is not usable"),
    "panel": ({"panels": ["heat"]}, "panel='heat' is not usable: choose of loss, norm"),
    "twice": ({"panels": ["loss", "loss"]}, "panel='loss' is not usable: give it once"),
    "width": ({"width": math.nan}, "width=nan is not usable: give inches"),
    "height": ({"height": 0}, "height=0 is not usable: give inches"),
    "dpi": ({"dpi": 0}, "dpi=0 is not usable: give dots an inch"),
    "no runs": ({"runs": []}, r"runs=\[\] is not usable: give at least one record"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input(tmp_path, monkeypatch, wrong) -> None:
    monkeypatch.chdir(tmp_path)
    run = read_run(write(tmp_path / "run.jsonl", usual(1.0, 3)))
    changed, text = WRONG[wrong]
    with pytest.raises(GradclipError, match=text):
        write_figure(**({"runs": run, "out": "fig.svg"} | changed))
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_no_norms_by_layer(tmp_path) -> None:
    run = write(tmp_path / "run.jsonl", [{"norm": 1.0}])
    with pytest.raises(GradclipError, match="have no norms by layer"):
        write_figure(run, tmp_path / "fig.svg", panels=["layers"])


def test_it_opens_no_window(tmp_path) -> None:
    run = write(tmp_path / "run.jsonl", usual(1.0, 3))
    code = (
        "import sys; from gradclip.export import PANELS, write_figure\n"
        "write_figure(sys.argv[1], sys.argv[2], panels=PANELS)\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, run, tmp_path / "fig.svg"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_importing_it_imports_no_matplotlib() -> None:
    code = "import gradclip.export, gradclip.cli, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
