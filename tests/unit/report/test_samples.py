"""The report lists the samples behind a spike, and those that come back."""

from pathlib import Path

from gradclip.record import read_run, traces_of
from gradclip.report import write_report
from gradclip.report.samples import samples_of
from unit.diagnosis.test_samples import write


def test_both_lists_are_in_the_page(tmp_path: Path) -> None:
    path = write(tmp_path / "r", lambda _, id: 40.0 if id == 17 else 1.0)
    (spikes, at_spikes), (again, ranked) = samples_of(traces_of([read_run(path)]))
    assert {row.name for row in at_spikes[:-1]} <= {"sample 17"}
    assert (ranked[0].name, ranked[0].text[:7]) == ("sample 17", "8 times")
    assert len(ranked) == 21
    assert ranked[-1].text.endswith("more are in `gradclip diagnose --json`")
    page = write_report(path, tmp_path / "r.html").read_text()
    assert f">{spikes}</h2>" in page
    assert f">{again}</h2>" in page
    assert page.count("<td>sample 17</td>") == len(at_spikes) + 1


def test_a_record_without_samples_has_no_such_section(tmp_path: Path) -> None:
    path = write(tmp_path / "r", at=set())
    assert samples_of(traces_of([read_run(path)])) == []
    assert "largest norms of their batch" not in write_report(path, tmp_path / "r.html").read_text()
