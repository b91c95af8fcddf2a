"""A second data set: in train alone, read after the first, no patient in both."""

import fakes
import numpy as np
import pytest
from test_load import data_config

from auxseg import datasets
from auxseg.base.errors import InputError
from auxseg.datasets import join, splits


def rename(data, prefix):
    names = np.array([prefix + name for name in data.table.case_id])
    table = type(data.table)(**(vars(data.table) | {"case_id": names, "series_uid": names, "patient": names}))
    return type(data)("second", table, data.size_yx, data.read, data.read_native_mask, ("one",))


@pytest.fixture
def pair():
    return fakes.two_discs(30), rename(fakes.two_discs(8, seed=1), "x")


@pytest.mark.parametrize("split", ["paper", "train_val_test", "kfold"])
def test_added_cases_train_and_the_others_are_split_as_without_them(pair, split):
    both = join.add(*pair)
    alone = splits.make_splits(pair[0].table, split=split, seed=3)
    parts = splits.make_splits(both.table, split=split, seed=3)
    np.testing.assert_array_equal(parts["train"], [*alone["train"], *range(30, 38)])
    for name in alone.keys() - {"train"}:
        np.testing.assert_array_equal(parts[name], alone[name])


def test_cases_are_read_from_where_they_are(pair):
    first, second = pair
    both = join.add(first, second)
    images, masks = both.read(np.array([31, 2, 30, 29]))
    for row, (source, index) in enumerate([(second, 1), (first, 2), (second, 0), (first, 29)]):
        image, mask = source.read(np.array([index]))
        np.testing.assert_array_equal(images[row], image[0])
        np.testing.assert_array_equal(masks[row], mask[0])
        at = index + (30 if source is second else 0)
        np.testing.assert_array_equal(both.read_native_mask(at), source.read_native_mask(index))
    assert len(both) == 38 and both.table.case_id[30] == "added-xcase000"
    assert both.notes == ("8 cases of second train too", "one") and both.name == "fake+second"


def test_a_patient_in_both_is_refused(pair):
    with pytest.raises(InputError, match="data.extra_dir: patient case000 is in fake too"):
        join.add(pair[0], fakes.two_discs(3))


def test_folder_of_the_settings(tmp_path, pair):
    for name, data in zip(("a", "b"), pair, strict=True):
        fakes.write_npz(tmp_path / name, data)
    values = {"name": "npz", "dir": str(tmp_path / "a"), "size": (16, 16)}
    assert len(datasets.load(data_config(**values))) == 30
    both = datasets.load(data_config(**values, extra_dir=str(tmp_path / "b")))
    assert len(both) == 38 and both.table.added.sum() == 8
    with pytest.raises(InputError, match="does not exist"):
        datasets.load(data_config(**values, extra_dir=str(tmp_path / "c")))
