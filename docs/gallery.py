"""Train the runs of docs/gallery.md and of the landing page, and draw them: `make docs-gallery`.

Each run is real: a training of seconds, recorded as `gradclip run` does it. The records are in
docs/records. `make docs` writes their reports into the site, and this script writes what is
committed: the records, a figure of each, the verdict of `gradclip diagnose` between two marks of a
page, and the picture of the report. `python docs/gallery.py --draw` trains nothing.

    <!-- verdict of NAME -->
    <!-- end of the verdict -->
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments.diagnosis import recorded  # noqa: E402
from experiments.planted.case import FAULTS, HEALTHY, STEPS, Case  # noqa: E402
from experiments.planted.trainings import CharLSTM, fit_text, text  # noqa: E402

from gradclip import diagnose, read_run  # noqa: E402
from gradclip.cli.demo import CLIP  # noqa: E402
from gradclip.diagnosis import verdict  # noqa: E402
from gradclip.export import write_figure  # noqa: E402
from gradclip.report import write_report  # noqa: E402

RECORDS = Path("docs/records")
FIGURES = Path("docs/images/gallery")
PICTURE = Path("docs/images/report.png")
PAGES = (Path("docs/gallery.md"), Path("docs/index.md"))

_MARK = re.compile(
    r"(?P<begin><!-- verdict of (?P<name>[\w-]+) -->\n)(?P<told>.*?)(?P<end><!-- end of the verdict -->)",  # noqa: E501
    re.DOTALL,
)


class CharRNN(nn.Module):
    """Predicts each character with a plain tanh RNN."""

    def __init__(self, vocabulary: int, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.RNN(width, width, batch_first=True)
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits for ids (batch, time)."""
        return self.decode(self.rnn(self.embed(ids))[0])


def exploding() -> None:
    """Train with a learning rate that is far too large for a plain RNN."""
    fit_text(CharRNN, lambda model: torch.optim.SGD(model.parameters(), lr=10))


def spikes() -> None:
    """Train on text with two stretches of four batches that repeat one random character."""
    ids, vocabulary = text()
    model = CharLSTM(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, STEPS + 1):
        starts = torch.randint(len(ids) - 24, (16, 1))
        windows = ids[starts + torch.arange(25)]
        if step in {*range(90, 94), *range(150, 154)}:
            windows = torch.randint(vocabulary, (16, 1)).expand(16, 25)
        logits = model(windows[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


CASES = {
    "exploding-rnn": Case("plain RNN on text, SGD at a learning rate of 10", exploding),
    "nan-in-a-layer": FAULTS["NaN in the backward pass of one layer, every 40th step"],
    "spikes-under-adamw": Case("LSTM on text, AdamW, eight bad batches", spikes),
    "vanishing": FAULTS["sigmoid net of 12 layers"],
    "healthy": HEALTHY["character LSTM on text, SGD, clipped"],
}
"""The runs of the gallery, in the order of the page."""

PANELS = dict.fromkeys(CASES, ("loss", "norm")) | {"vanishing": ("loss", "layers")}
"""The panels of each figure."""

DEMO = {"unclipped": (), "clipped": ("--clip", CLIP)}
"""The two runs of `gradclip demo`, and their flags."""


def reports() -> dict[str, list[Path]]:
    """Return the records of each report: a folder's are compared in one report."""
    found = {"demo": [RECORDS / "demo" / f"{name}.jsonl" for name in DEMO]}
    return found | {name: [RECORDS / f"{name}.jsonl"] for name in CASES}


def train(folder: Path = RECORDS) -> None:
    """Train all runs anew, from the repository's root, and write their records into a folder."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    for name, case in CASES.items():
        recorded(case, 0, folder / f"{name}.jsonl")
    for name, flags in DEMO.items():
        record = ["--record", str(folder / "demo" / f"{name}.jsonl"), "--overwrite"]
        command = ["gradclip", "run", *flags, *record, "examples/char_lm.py", "--seed", "0"]
        subprocess.run([sys.executable, "-m", *command], check=True)


def verdicts(folder: Path = RECORDS) -> dict[str, str]:
    """Return the verdict on each run of the gallery, and on the two runs of the demo."""

    def of(path: Path) -> str:
        run = read_run(path)
        return verdict(run, diagnose(run)).sentence

    told = {name: f"> {of(folder / f'{name}.jsonl')}\n" for name in CASES}
    pair = [of(folder / "demo" / f"{name}.jsonl") for name in DEMO]
    told["demo"] = f"> Without clipping: {pair[0]}\n>\n> With `{CLIP}`: {pair[1]}\n"
    return told


def with_verdicts(page: str, told: dict[str, str]) -> str:
    """Return a page with the text between its marks written anew."""
    return _MARK.sub(lambda mark: f"{mark['begin']}\n{told[mark['name']]}\n{mark['end']}", page)


def draw() -> None:
    """Draw the figures, write the verdicts, and take the picture of the demo's report."""
    told = verdicts()
    FIGURES.mkdir(exist_ok=True)
    for name in CASES:
        figure = FIGURES / f"{name}.svg"
        write_figure(reports()[name], figure, panels=PANELS[name], width=4.2, height=3.2)
        figure.write_text(for_both_themes(figure.read_text("utf-8")), "utf-8")
    for page in PAGES:
        page.write_text(with_verdicts(page.read_text(), told))
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"{PICTURE} stays as it is: no chromium is on the PATH", file=sys.stderr)
    else:
        take_picture(chromium)


def for_both_themes(figure: str) -> str:
    """Return the SVG without its ground, and with ink that is dark or light as the page is."""
    ink = "svg{color:#1b1f24}text{fill:currentColor}"
    dark = "@media(prefers-color-scheme:dark){svg{color:#e7e9ec}}"
    figure = figure.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
    return figure.replace("*{stroke-linejoin", f"{ink}{dark}*{{stroke-linejoin", 1)


def take_picture(chromium: str) -> None:
    """Take the picture of the demo's report, down to the end of the norm's panel."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    page_file = write_report(reports()["demo"], Path("build/picture.html")).resolve()
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_function("Bokeh.documents[0].is_idle")
        end = page.locator("section[aria-labelledby='h-norm']").bounding_box()
        assert end is not None
        page.set_viewport_size({"width": 1280, "height": round(end["y"] + end["height"])})
        page.wait_for_timeout(1000)  # Bokeh draws what has come into view.
        page.screenshot(path=PICTURE)
        browser.close()
    page_file.unlink()
    with Image.open(PICTURE) as picture:  # 256 colours are enough, and take a third of the bytes.
        few = picture.convert("RGB").quantize(256)
    few.save(PICTURE, optimize=True)


def main(train_first: Callable[[], None] | None) -> None:
    """Do all of the work in the repository's root, so that the records hold relative paths."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.chdir(ROOT):
        if train_first is not None:
            train_first()
        draw()


if __name__ == "__main__":
    main(None if "--draw" in sys.argv[1:] else train)
