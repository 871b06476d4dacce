"""`gradclip report --follow`: the page grows with the run, and the reader's place stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.report_page import CHROMIUM
from gradclip.record import RecordWriter

PATIENCE = 60.0


@contextmanager
def following(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command; a test that fails leaves no process behind."""
    command = [sys.executable, "-W", "error", "-m", "gradclip", "report", "run.jsonl", "--follow"]
    with subprocess.Popen(
        [*command, "--every", "0.3", *more], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(true: Callable[[], object]) -> None:
    last = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < last
        time.sleep(0.05)


def steps(record: RecordWriter, first: int, last: int) -> None:
    for step in range(first, last + 1):
        record.step(step=step, loss=3.0 - step / 100, norm=1.0 + step % 5, norms=[1.0])


def test_the_page_is_written_while_the_run_grows_and_ends_with_it(tmp_path) -> None:
    page = tmp_path / "report.html"
    with following(tmp_path) as command:
        assert command.stderr is not None
        assert command.stderr.readline() == "waiting for the first row of run.jsonl\n"
        assert not page.exists()
        with RecordWriter(tmp_path / "run.jsonl", every=1) as record:
            steps(record, 1, 3)
            wait_for(page.exists)
            wait_for(lambda: "3 steps" in page.read_text("utf-8"))
            first = page.stat().st_mtime_ns
            time.sleep(1.0)
            assert page.stat().st_mtime_ns == first  # Only when the record has grown.
            assert "frame-src" in page.read_text("utf-8")
            steps(record, 4, 60)
            wait_for(lambda: "60 steps" in page.read_text("utf-8"))
        out, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 0, err
    assert out.splitlines()[0].startswith("run.jsonl: Healthy: 60 steps")
    assert out.splitlines()[-1] == "report.html"
    assert err == "report.html: follows the runs; Ctrl-C ends\n"
    assert "frame-src" not in page.read_text("utf-8")


def test_ctrl_c_leaves_a_page_that_does_not_load_itself(tmp_path) -> None:
    page = tmp_path / "report.html"
    record = RecordWriter(tmp_path / "run.jsonl", every=1)
    steps(record, 1, 5)
    with following(tmp_path) as command:
        wait_for(page.exists)
        time.sleep(0.3)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert out.splitlines()[-1] == "report.html"
    assert "frame-src" not in page.read_text("utf-8")
    record.end()


def test_what_is_no_record_is_refused_at_once(tmp_path) -> None:
    (tmp_path / "run.jsonl").write_text("hello\n")
    with following(tmp_path) as command:
        _, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 2
    assert err.startswith("gradclip: run.jsonl is not a gradclip record")
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
def test_the_open_page_loads_itself_only_when_it_changed(browser, tmp_path) -> None:
    page = browser.new_context(viewport={"width": 1280, "height": 700}).new_page()
    told: list[str] = []
    page.on("pageerror", lambda error: told.append(str(error)))
    report = tmp_path / "report.html"
    record = RecordWriter(tmp_path / "run.jsonl", every=1)
    record.optimizer("SGD", [("a", (1,), "float32")])
    steps(record, 1, 30)
    with following(tmp_path) as command:
        wait_for(report.exists)
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.click("summary:has(#numbers)")
        page.select_option("#smooth", "0.95")
        page.fill("#goal", "20")
        page.keyboard.press("Enter")
        page.wait_for_timeout(800)
        page.evaluate("scrollTo(0, 500); window.sameDocument = true")
        page.wait_for_timeout(1500)
        assert page.evaluate("window.sameDocument")  # The record did not grow.
        steps(record, 31, 60)
        page.wait_for_function("!window.sameDocument", timeout=1000 * PATIENCE)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_timeout(600)
        assert page.input_value("#to") == "30"  # Where the reader had zoomed to.
        assert page.get_attribute("#goal", "max") == "60"
        assert page.input_value("#goal") == "20"
        assert page.input_value("#smooth") == "0.95"
        assert page.evaluate("document.querySelector('details:has(#numbers)').open")
        assert abs(page.evaluate("scrollY") - 500) < 40
        page.evaluate("window.sameDocument = true")
        record.end()
        assert command.wait(PATIENCE) == 0
        page.wait_for_function("!window.sameDocument", timeout=1000 * PATIENCE)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.evaluate("window.sameDocument = true")
        page.wait_for_timeout(1500)
        assert page.evaluate("window.sameDocument")  # The last page looks no more.
        assert page.locator("iframe").count() == 0
    assert told == []
    page.context.close()
