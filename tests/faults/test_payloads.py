"""Hostile texts in every place of a record: the page stays a page, and the terminal is not obeyed.

The page is read by a parser of HTML: it has the tags and the attributes of a page without the
payload, and no script holds an end tag that a text has put there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradclip.record import RecordWriter, read_run

from .test_readers import DRAWN, QUICK, SLOW, run, unsafe_in

pytestmark = pytest.mark.faults

MARK = "pwned"
HTML = {
    "a script": f"<script>{MARK}()</script>",
    "the end of a script": f"</script><script>{MARK}()</script>",
    "the end of a script in capitals": f"</SCRIPT ><img src=x onerror={MARK}()>",
    "a comment in a script": f"<!--<script>{MARK}",
    "the end of a comment": f"--><svg onload={MARK}()>",
    "the end of a title": f"</title><b onclick={MARK}()>",
    "the end of a textarea": f"</textarea></style><i onclick={MARK}()>",
    "an attribute": f'" onmouseover="{MARK}()',
    "an attribute in single quotes": f"' autofocus onfocus='{MARK}()",
    "a frame": f"<iframe srcdoc='<script>{MARK}()</script>'>",
    "a URL with a script": f"javascript:{MARK}()",
    "a URL with data": f"data:text/html,<script>{MARK}()</script>",
    "a link": f"[x](javascript:{MARK}()) <a href=javascript:{MARK}()>x</a>",
    "CSS": f"}}</style><style>*{{background:url(//{MARK}.example)}}",
    "CSS in an attribute": f"red;background:url(javascript:{MARK}())",
    "an entity": f"&lt;script&gt;{MARK}()&lt;/script&gt;&#60;b&#62;",
    "a template of Jinja": f"{{{{ config.__class__ }}}}{{% raw %}}{MARK}",
    "a template of JavaScript": f"`${{{MARK}()}}`",
    "a template of Bokeh": f"@{{norm}}{{%s}}$name<b onclick={MARK}()>",
    "the separators of lines": f"\u2028{MARK}()\u2029",
    "mathematics": rf"$$\href{{javascript:{MARK}()}}{{x}}$$ \unicode{{<script>}}",
}
TERMINAL = {
    "a link (OSC 8)": f"\x1b]8;;http://{MARK}.example\x1b\\x\x1b]8;;\x1b\\",
    "the clipboard (OSC 52)": "\x1b]52;c;cHduZWQ=\x07",
    "a title (OSC 0)": f"\x1b]0;{MARK}\x07",
    "a cleared screen": "\x1b[2J\x1b[H\x1b[3J",
    "colors": "\x1b[31;1m\x9b32m",
    "a device's answer": "\x1b[6n\x1b[c\x1bP$qm\x1b\\",
    "another screen": "\x1b[?1049h\x1b[?25l",
    "a reset": "\x1bc\x0e\x0f",
    "a line that is written over": "good\rbad\x08\x08\x7f\x1b[K",
    "more lines": "a\n\n\x0b\x0cgradclip: ok\n",
    "from right to left": "\u202egnp.exe\u202c \u2066x\u2069\u200f\u061c",
    "no width": "a\u200b\u200c\u200d\ufeff\u00adb",
    "half a character": "\ud800x\udfff\udc80",
    "NUL": "a\x00b",
    "the markup of rich": "[bold red]x[/bold red][link=http://x]y[/link][/]",
    "emoji of rich": ":pile_of_poo: [@click=app.bell()]x[/]",
    "a format": "%s%n{0.__class__}{norm!r:>999}",
    "a huge name": "n" * 100_000,
    "many marks on one letter": "e" + "\u0301" * 5000,
    "not a character": "\ufffe\uffff\U0010ffff\ue000",
}
PAYLOADS = {**HTML, **TERMINAL}
COMMANDS = (*QUICK, *SLOW, *DRAWN)


def write(path: Path, text: str) -> Path:
    """Write a run with one text in every place that holds a text."""
    with RecordWriter(path, policy=text, command=["train.py", text], versions={text: text}) as to:
        parameters = [(f"{text}{i}", (2, 2), text) for i in range(3)]
        to.optimizer(text, parameters, policy=text)
        to.optimizer(text, [(text, (2, 2), text)], policy=text)
        to.event(text, text, step=2)
        to.event("script-clips", text, step=3)
        for step in range(1, 41):
            bad = [text + "1"] if step == 33 else []
            norms = [0.0, 1.0, float("inf") if step == 35 else 3.0]
            norm = 90.0 if step == 20 else 2.0
            to.step(step=step, norm=norm, loss=1.0, nonfinite=bad, norms=norms, ran=text)
            to.step(step=step, optimizer=1, norm=1.0, norms=[1.0])
        to.end(f"error: {text}")
    return path


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, its links, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [v or "" for name, v in attrs if name in ("href", "src", "srcdoc", "action")]
        self.handlers += [v or "" for name, v in attrs if name.startswith("on")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run whose texts are harmless."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("report -o page.html", write(folder / "run.jsonl", "harmless")) == 0
    return Page((folder / "page.html").read_text("utf-8"))


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_hostile_text_in_every_place(
    kind: str, tmp_path: Path, plain: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "run.jsonl", PAYLOADS[kind])
    assert len(read_run(path).steps) == 80
    for command in COMMANDS:
        assert run(command, path) == 0, command
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert {*page.tags} == {*plain.tags}
    assert page.tags.count(("script",)) == plain.tags.count(("script",))
    assert page.handlers == plain.handlers
    assert not [link for link in page.links if MARK in link or "javascript:" in link.lower()]
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    assert not unsafe_in(body.replace("\n", "").replace("\t", ""))
    figure = (tmp_path / "figure.svg").read_text("utf-8")
    assert not re.search(r"<(script|foreignObject|iframe|image|a)\b", figure)


@pytest.mark.parametrize("kind", TERMINAL)
def test_a_hostile_name_of_a_method_or_a_policy(kind: str, tmp_path: Path) -> None:
    """`methods`, `tune` and `run` say what is wrong with an argument, safely."""
    text = TERMINAL[kind].replace("\x00", "\x01")  # No argument of a process can hold a NUL.
    text = text.encode(errors="replace").decode()
    (tmp_path / "train.py").write_text("")
    for given in (
        ["methods", text],
        ["tune", "--policy", text, "train.py"],
        ["run", "--clip", text, "train.py"],
    ):
        command = [sys.executable, "-m", "gradclip", *given]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 2, said
        assert "Traceback" not in said
        assert not unsafe_in(said)
        assert len(said) < 4000
