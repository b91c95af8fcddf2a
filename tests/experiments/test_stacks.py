"""Whole slabs of nodules, counted by hand."""

import pytest

from auxseg.base.errors import InputError
from experiments.checks import stacks


def test_whole_slabs_by_hand():
    """Of four slices 2.5 mm apart two have both neighbours; of four at 1.25 mm none has one two slices off on either side."""
    assert stacks.count_whole([(4, 2.5)], 3) == {"slabs": 2, "nodules": 1}
    assert stacks.count_whole([(4, 1.25)], 3) == {"slabs": 0, "nodules": 0}
    assert stacks.count_whole([(5, 1.25), (1, 5.0), (7, 2.5)], 3) == {"slabs": 1 + 0 + 5, "nodules": 2}
    assert stacks.count_whole([(7, 2.5)], 7) == {"slabs": 1, "nodules": 1}


def test_slices_of_a_nodule_are_its_rows(tmp_path):
    path = tmp_path / "index.csv"
    path.write_text("nodule,gap_mm\na,2.5\nb,1.0\na,2.5\n", encoding="utf-8")
    assert stacks.read_stacks(path) == [(2, 2.5), (1, 1.0)]
    with pytest.raises(InputError):
        stacks.read_stacks(tmp_path / "other.csv")
