"""Count the faults, and end the run with a table: how many of each kind, and how many got through.

A test is one fault; one with the parameter `count` is as many. A test that fails is one fault lost.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

KINDS = {
    "test_kill_9_loses_at_most_the_last_batch": "kill -9",
    "test_kill": "signals and stops",
    "test_disks": "disks",
    "test_ranks": "ranks that die or hang",
    "test_mutated_records": "fuzz: records",
    "test_mutated_parquet_files": "fuzz: Parquet",
    "test_mutated_states_of_a_tuning": "fuzz: tune states",
    "test_mutated_logs": "fuzz: logs of others",
    "test_policy_texts": "fuzz: policy texts",
    "test_policies": "long and hostile policy texts",
    "test_readers": "names and sizes in records",
    "test_payloads": "hostile HTML and terminal",
    "test_growth": "growth over 200,000 steps",
    "test_writers": "concurrency",
    "test_together": "concurrency",
    "test_soak": "soak",
}
"""The kind of a test, by the name of its function or its module."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Function) -> None:
    """Note what a test injects; the note travels with its report, also between processes."""
    module = item.path.stem
    kind = KINDS.get(item.originalname, KINDS.get(module, module))
    params = item.callspec.params if hasattr(item, "callspec") else {}
    item.user_properties.append(("fault", [kind, params.get("count", 1)]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a row for each kind of fault."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            fault = dict(getattr(report, "user_properties", ())).get("fault")
            if fault is not None and (report.when == "call" or outcome == "error"):
                kind, count = fault
                rows[str(kind)][0] += int(count)  # type: ignore[call-overload] - see above
                rows[str(kind)][1] += outcome != "passed"
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'':32} {'injected':>9} {'survived':>9} {'lost':>6}")
    order = list(dict.fromkeys(KINDS.values()))
    for kind in sorted(rows, key=lambda kind: order.index(kind) if kind in order else len(order)):
        injected, lost = rows[kind]
        line = f"{kind:32} {injected:9,} {injected - lost:9,} {lost:6,}"
        terminalreporter.write_line(line, red=bool(lost))
