"""The grid of ratios: one cell is measured, and the page counts the slow ones."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks import grid
from benchmarks.cases_norm import OURS


def test_a_cell_gives_a_ratio_for_each_of_our_calls() -> None:
    threads = torch.get_num_threads()
    try:
        found = grid.measure(grid.Cell(3, 64, torch.bfloat16, 1, clipped=True), grid.LOOK)
    finally:
        torch.set_num_threads(threads)
    assert found.keys() == set(OURS)
    assert min(found.values()) > 0


def test_the_cells_cover_all_dtypes_and_stay_in_memory() -> None:
    found = list(grid.cells())
    assert {cell.dtype for cell in found} == set(grid.DTYPES)
    assert {cell.tensors for cell in found} == set(grid.TENSORS)
    assert max(cell.tensors * cell.values for cell in found) == grid.MOST
    assert len(found) == len(set(found)) == 272


def test_the_page_counts_cells_and_names_the_worst() -> None:
    row = {"tensors": 1, "values": 64, "dtype": "float32", "threads": 2, "clipped": True}
    rows = [{**row, OURS[0]: 1.3, OURS[1]: 0.9}, {**row, "tensors": 10, OURS[0]: 1.0, OURS[1]: 1.0}]
    machine = {"processor": "a processor", "load": 0.1, "load_after": 0.2}
    lines = grid.section({"rows": rows, "machine": machine}).splitlines()
    assert lines[-2:] == [
        f"| {OURS[0]} | 1 of 2 cells over 1.02 | 1.30 | 1 × 64 float32, 2 threads, clipped |",
        f"| {OURS[1]} | 0 of 2 cells over 1.02 | 1.00 | 10 × 64 float32, 2 threads, clipped |",
    ]
