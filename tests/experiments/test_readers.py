"""Readers' agreement by hand, and what a results file says of its origin."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import made_by
from experiments.checks import readers

ROWS = [
    {"nodule": "a", "patient": "p", "readers": 3.0, "diameter_mm": 5.0, "consensus_px": 1.0},
    {"nodule": "a", "patient": "p", "readers": 3.0, "diameter_mm": 5.0, "consensus_px": 2.0},
    {"nodule": "b", "patient": "q", "readers": 2.0, "diameter_mm": 12.0, "consensus_px": 2.0},
]


def outlines(*rows):
    return np.array(rows, bool).reshape(len(rows), 1, -1)


def test_agreements_of_three_readers_by_hand():
    """Readers mark 2, 2 and 1 of four pixels; the consensus of two others is what at least one marked."""
    found = readers.list_agreements(outlines([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]))
    assert found[readers.PAIRS] == pytest.approx([0.5, 2 / 3, 2 / 3])
    assert found[readers.OTHERS] == pytest.approx([2 * 1 / 4, 2 * 1 / 4, 2 * 1 / 4])


def test_the_largest_slice_of_each_nodule():
    assert readers.find_largest_slices(ROWS) == [1, 2]


def test_bits_are_readers_and_sizes_are_kept_apart():
    """Slice 1: readers 0 and 1 agree, 2 marks nothing; slice 2: two readers, the same pixels."""
    masks = np.array([[[0, 0]], [[3, 0]], [[3, 3]]], np.uint8)
    pairs = readers.compare(ROWS, masks)[readers.PAIRS]
    assert pairs["under 6 mm"]["dice"] == pytest.approx(1 / 3) and pairs["under 6 mm"]["comparisons"] == 3
    assert pairs["over 10 mm"]["dice"] == 1.0 and pairs["all"]["comparisons"] == 4
    assert pairs["6-10 mm"]["dice"] is None or np.isnan(pairs["6-10 mm"]["dice"])


def test_origin_of_a_result():
    origin = made_by.made_by("python -m x", data="3 slices", seeds=range(2))
    assert json.loads(json.dumps(origin)) == origin and origin["seeds"] == [0, 1]
    assert origin["commit"]


def test_real_readers(real_data, tmp_path):
    command = [sys.executable, "-m", "experiments.checks.readers"]
    folder, out = real_data / "lidc_nodules", tmp_path / "readers.json"
    subprocess.run([*command, f"--data_dir={folder}", f"--out={out}"], check=True, capture_output=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found[readers.PAIRS]["all"]["dice"] == pytest.approx(0.817, abs=0.002)
    assert found["made_by"]["data"].startswith("LIDC-IDRI: 730 nodules")
