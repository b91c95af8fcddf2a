"""Splits of LUNA16's size and of small sets."""

import csv
import json

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.datasets import splits
from auxseg.datasets.dataset import CaseTable


def make_table(patients, nodules, subsets=None, order=None):
    """Returns a table with one case for each entry of `patients`."""
    order = np.arange(len(patients)) if order is None else order
    num = len(patients)
    names = np.array([f"case{index:04d}" for index in range(num)])
    labels = np.ones((num, 4), np.uint8)
    labels[:, 3] = nodules
    return CaseTable(
        case_id=names[order],
        series_uid=names[order],
        patient=np.asarray(patients)[order],
        subset=np.asarray(np.full(num, -1) if subsets is None else subsets, np.int8)[order],
        slice_index=np.zeros(num, np.int32),
        spacing_zyx_mm=np.ones((num, 3), np.float32),
        native_size_yx=np.full((num, 2), 512, np.int32),
        num_nodules=np.asarray(nodules, np.int32)[order],
        labels=labels[order],
    )


def luna16_table(order=None):
    """888 cases of 887 patients, 51 with a nodule, subsets of 88 and 89."""
    patients = [f"p{index}" for index in range(887)] + ["p0"]
    nodules = np.zeros(888, int)
    nodules[::18] = 1
    nodules[5:7] = 1
    return make_table(patients, nodules[:888], np.arange(888) % 10, order)


def test_paper_split_is_799_and_89():
    parts = splits.make_splits(luna16_table(), split="paper", seed=1)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 799, "val": 89}


def test_train_val_test_is_70_10_20():
    parts = splits.make_splits(luna16_table(), split="train_val_test", seed=1)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 621, "val": 89, "test": 178}


@pytest.mark.parametrize("split", splits.SPLITS)
def test_no_patient_is_in_two_splits_and_no_case_is_lost(split):
    table = luna16_table()
    for seed in range(5):
        parts = splits.make_splits(table, split=split, fold=seed, seed=seed)
        patients = [set(table.patient[indices]) for indices in parts.values()]
        assert len(set.union(*patients)) == sum(map(len, patients))
        cases = np.sort(np.concatenate(list(parts.values())))
        assert len(cases) == len(set(cases))
        assert len(cases) >= (887 if split == "folds" else 888)
        assert all(np.all(np.diff(indices) > 0) for indices in parts.values())


@pytest.mark.parametrize("split", ["paper", "train_val_test", "kfold"])
def test_nodules_have_their_share(split):
    table = luna16_table()
    parts = splits.make_splits(table, split=split, seed=3)
    total = table.labels[:, 3].sum()
    for indices in parts.values():
        expected = total * len(indices) / len(table)
        assert table.labels[indices, 3].sum() == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_split_does_not_depend_on_the_order_of_the_table(split):
    order = np.random.default_rng(0).permutation(888)
    tables = luna16_table(), luna16_table(order)
    members = [
        {name: set(table.case_id[indices]) for name, indices in parts.items()}
        for table in tables
        for parts in [splits.make_splits(table, split=split, fold=2, seed=7)]
    ]
    assert members[0] == members[1]


def test_seeds_differ_and_repeat():
    table = luna16_table()
    first, again, other = (splits.make_splits(table, split="paper", seed=seed)["val"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 40


def test_official_folds_take_whole_subsets():
    table = luna16_table()
    parts = splits.make_splits(table, split="folds", fold=9, seed=1)
    np.testing.assert_array_equal(parts["test"], np.flatnonzero(table.subset == 9))
    assert set(table.subset[parts["val"]]) == {0}
    assert set(table.subset[parts["train"]]) == set(range(1, 9))


def test_other_scan_of_a_test_patient_is_left_out():
    table = luna16_table()  # the patient p0 has a case in subset 0 and one in subset 7
    parts = splits.make_splits(table, split="folds", fold=0, seed=1)
    assert 0 in parts["test"] and not any(887 in parts[name] for name in ("train", "val"))


def test_folds_without_subsets_say_so():
    with pytest.raises(InputError, match="subset of 6 of 6 cases is not known; use 'kfold'"):
        splits.make_splits(make_table(list("abcdef"), [0] * 6), split="folds")
    few = make_table(list("abcd"), [0] * 4, [0, 0, 1, 2])
    with pytest.raises(InputError, match="fold=2: no case is in subset 3, the val split; present: 0, 1, 2"):
        splits.make_splits(few, split="folds", fold=2)
    with pytest.raises(InputError, match="data.fold: got 10, expected 0 to 9"):
        splits.make_splits(luna16_table(), split="folds", fold=10)
    with pytest.raises(InputError, match="data.split: got 'random', expected one of 'paper'"):
        splits.make_splits(luna16_table(), split="random")


def test_kfold_tests_every_case_once():
    table = luna16_table()
    parts = [splits.make_splits(table, split="kfold", fold=fold, seed=2, num_folds=4) for fold in range(4)]
    tests = [each["test"] for each in parts]
    for fold, each in enumerate(parts):
        np.testing.assert_array_equal(each["val"], tests[(fold + 1) % 4])  # the next fold
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(888))
    assert max(map(len, tests)) - min(map(len, tests)) <= 1


def test_patients_with_a_nodule_are_dealt_out_first():
    """Dealt out last they would all go beside the fold of the patient with four slices."""
    table = make_table([*"abc", *"dddd", *"ef"], [1, 1, 1, 0, 0, 0, 0, 0, 0])
    for fold in range(3):
        parts = splits.make_splits(table, split="kfold", fold=fold, seed=fold, num_folds=3)
        assert table.labels[parts["test"], 3].sum() == 1


def test_many_slices_a_patient_still_fill_every_split():
    patients = np.repeat([f"p{index}" for index in range(6)], 20)
    table = make_table(patients, np.arange(120) % 20 < 8)
    parts = splits.make_splits(table, split="train_val_test", seed=1)
    assert {name: len(set(patients[indices])) for name, indices in parts.items()} == {
        "train": 4,
        "val": 1,
        "test": 1,
    }


def test_three_nodules_reach_all_three_splits():
    table = make_table([f"p{index}" for index in range(40)], np.arange(40) < 3)
    for seed in range(10):
        parts = splits.make_splits(table, split="train_val_test", seed=seed)
        assert all(table.labels[indices, 3].any() for indices in parts.values())


def test_too_few_patients_are_refused():
    with pytest.raises(InputError, match="got 2 patients, expected at least one for each of 3"):
        splits.make_splits(make_table(list("aabb"), [0] * 4), split="train_val_test")


def test_check_splits_names_what_is_shared():
    table = make_table(list("abca"), [0] * 4)
    with pytest.raises(InputError, match="patient a is in train and in val"):
        splits.check_splits(table, {"train": np.array([0, 1]), "val": np.array([2, 3])})


def test_check_splits_finds_a_case_that_is_twice_in_one():
    table = make_table(list("abcd"), [0] * 4)
    with pytest.raises(InputError, match="the test split has a case twice"):
        splits.check_splits(table, {"train": np.array([0, 1]), "test": np.array([2, 3, 2])})


def real_table(real_data):
    """Returns the table of LUNA16's 888 middle slices, with the nodules that cross them."""
    subsets = json.loads((real_data / "csv" / "subset_of_uid.json").read_text(encoding="utf-8"))
    with open(real_data / "csv" / "middle_slice_nodules.csv", newline="") as file:
        with_nodule = {row["uid"] for row in csv.DictReader(file)}
    nodules = [int(uid in with_nodule) for uid in subsets]
    return make_table([splits.patient_of(uid) for uid in subsets], nodules, list(subsets.values()))


def test_series_of_one_patient_are_in_luna16(real_data):
    table = real_table(real_data)
    assert (len(table), len(set(table.patient.tolist()))) == (888, 887)
    assert table.subset[table.patient == splits.SAME_PATIENT_ID].tolist() == [2, 6]


def test_real_middle_slices_are_799_and_89_with_nodules_in_both(real_data):
    table = real_table(real_data)
    for seed in range(5):
        parts = splits.make_splits(table, split="paper", seed=seed)
        found = {name: (len(rows), int(table.labels[rows, 3].sum())) for name, rows in parts.items()}
        assert found == {"train": (799, 46), "val": (89, 5)}


def test_real_folds_leave_out_one_case_in_four_of_ten(real_data):
    table = real_table(real_data)
    used = [sum(map(len, splits.make_splits(table, split="folds", fold=fold).values())) for fold in range(10)]
    assert used == [888, 887, 887, 888, 888, 887, 887, 888, 888, 888]
