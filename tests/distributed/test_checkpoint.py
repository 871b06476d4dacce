"""A run of 4 processes is saved by torch's distributed checkpoint, and goes on in 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .checkpoint_worker import POLICIES
from .launch import found_by


def test_four_processes_save_and_two_go_on(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    whole = found_by(2, "checkpoint_worker", tmp_path / "alone", 0, 10, "none")
    begun = found_by(4, "checkpoint_worker", tmp_path, 0, 6, "save")
    ended = found_by(2, "checkpoint_worker", tmp_path, 6, 10, "load")
    for policy in POLICIES:
        for here in ended:
            resumed = [*begun[0][policy], *here[policy]]
            np.testing.assert_allclose(resumed, whole[0][policy], rtol=1e-7)
        assert len({tuple(row) for row in whole[0][policy]}) > 5
