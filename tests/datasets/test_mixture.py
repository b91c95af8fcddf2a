"""Several sources in one data set: names, groups that never part, reading, windows of slices without a nodule."""

import dataclasses

import fakes
import ml_collections
import numpy as np
import pytest
from test_crops import ROW
from test_crops import write as write_crops

from auxseg import datasets
from auxseg.base.errors import InputError
from auxseg.datasets import mixture, npz, splits
from configs import base

CLASSES = ("background", "nodule")


def source_of(num, **columns):
    """Returns a Dataset of `num` empty slices whose table has these columns."""
    data = fakes.dataset(np.zeros((num, 16, 16), np.int16), np.zeros((num, 16, 16), np.uint8))
    columns = {name: np.array(values) for name, values in columns.items()}
    return dataclasses.replace(data, table=dataclasses.replace(data.table, **columns))


def settings_of(**values):
    return ml_collections.ConfigDict({"dir": None, "name": "npz", "from_subsets": (), **values})


def test_cases_of_one_series_patient_or_lost_subset_are_one_group(tmp_path):
    crops = source_of(
        5,
        series_uid=["1.2", "1.3", "1.4", "1.5", "1.6"],
        patient=["P1", "P1", "P2", "P3", "P4"],
        subset=np.array([4, -1, 0, 2, 3], np.int8),
    )
    slices = source_of(
        4, series_uid=["1.2", "case001", "1.6", "1.9"], patient=["1.2", "case001", "1.6", "1.9"]
    )
    mixed = mixture.mix(
        {"crops": crops, "slices": slices},
        {
            "crops": settings_of(dir=str(tmp_path / "a")),
            "slices": settings_of(dir=str(tmp_path / "b"), from_subsets=(0, 1, 2)),
        },
    )
    together = mixed.table.together
    # One patient with two series, one of which is a slice too; subsets 0 and 2 with the slice of a lost series.
    expected = [[0, 1, 5], [2, 3, 6], [4, 7], [8]]
    assert [np.flatnonzero(together == together[rows[0]]).tolist() for rows in expected] == expected
    assert mixed.table.case_id[[0, 5]].tolist() == ["crops-case000", "slices-case000"]
    assert mixed.table.series_uid[[5, 6]].tolist() == ["1.2", "slices-case001"]
    assert mixed.table.patient.tolist()[:5] == ["P1", "P1", "P2", "P3", "P4"]
    assert mixed.table.source.tolist() == ["crops"] * 5 + ["slices"] * 4
    apart = {"train": np.array([8]), "val": np.array([2]), "test": np.array([6])}
    with pytest.raises(InputError, match="data.split: together .* is in val and in test"):
        splits.check_splits(mixed.table, apart)


def test_one_slice_of_two_sources_is_one_group(tmp_path):
    pair = {"one": source_of(2), "two": source_of(2)}
    same = {name: settings_of(dir=str(tmp_path)) for name in pair}
    assert len(np.unique(mixture.mix(pair, same).table.group)) == 2
    other = same | {"two": settings_of(dir=str(tmp_path / "other"))}
    assert len(np.unique(mixture.mix(pair, other).table.group)) == 4


def test_sources_that_do_not_fit_are_refused():
    other = dataclasses.replace(source_of(2), size_yx=(8, 8))
    with pytest.raises(InputError, match="data.sources: size_yx differs"):
        mixture.mix({"one": source_of(2), "two": other}, {})


@pytest.fixture
def config(tmp_path):
    """Settings of three crops of two patients, and windows of one of two slices."""
    for name in ("crops", "slices"):
        (tmp_path / name).mkdir()
    readers = np.zeros((3, 20, 20), np.uint8)
    readers[:, 9:12, 9:12] = 1
    readers[0, 9, 9:12] = 3
    rows = [ROW | {"k": str(k), "readers": "2"} for k in (0, 1)]
    rows.append(ROW | {"patient": "P2", "nodule": "P2/0", "readers": "2"})
    write_crops(tmp_path / "crops", np.full((3, 20, 20), 100, np.uint8), readers, rows)
    image = np.arange(64 * 64, dtype=np.int16).reshape(64, 64) % 900 - 900
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 8:28], mask[16:48, 36:56] = 2, 1
    npz.write_case(tmp_path / "slices" / "a.npz", image, mask)
    mask[30:33, 40:43] = 3
    npz.write_case(tmp_path / "slices" / "b.npz", image, mask)
    data = base.get_config().data
    with data.unlocked():
        data.update({"classes": CLASSES, "size": (16, 16), "target": "share", "dir": str(tmp_path / "crops")})
        data.sources.crops = ml_collections.ConfigDict({"name": "crops", "dir": None, "share": 2})
        data.sources.free = ml_collections.ConfigDict(
            {"name": "patches", "dir": str(tmp_path / "slices"), "share": 1, "windows": 5}
        )
    return data


def test_crops_and_windows_of_slices_without_a_nodule(config):
    mixed = datasets.load(config)
    assert mixture.read_shares(config) == {"crops": 2, "free": 1}
    assert mixed.table.source.tolist() == ["crops"] * 3 + ["free"] * 5
    assert mixed.table.labels.tolist() == [[1, 1]] * 3 + [[1, 0]] * 5
    assert mixed.table.case_id[[0, 3]].tolist() == ["crops-P1_0-0", "free-a-00"]
    assert mixed.table.is_cut.all() and mixed.readers.tolist() == [[2, 3]] * 2 + [[2, 1]] + [[0, 0]] * 5
    assert "1 that show a nodule, or may, are left out" in mixed.notes[0]
    images, masks = mixed.read(np.array([3, 0, 7]))
    assert not masks[[0, 2]].any() and masks[1].max() <= 1
    # A window is a piece of its slice: neighbours in a row differ by one, rows by 64, but where 900 is passed.
    assert set(np.unique(np.diff(images[0], axis=1))) <= {1, -899}
    # Votes of the two readers, in the middle, where a crop trains; a window has none.
    _, votes = mixed.read_train(np.array([0, 3]))
    assert votes[0, 7, 6:10].tolist() == [128, 131, 131, 131] and votes[0, 8, 7] == 129
    assert not votes[1].any()
    outline = mixed.read_outline(0)
    assert outline.nodule == "P1/0" and mixed.read_outline(3) is None


def test_crops_beside_a_second_set_keep_their_votes_and_outlines(config, tmp_path):
    with config.unlocked():
        config.sources = ml_collections.ConfigDict()
        config.update({"name": "crops", "extra_dir": str(tmp_path / "more")})
    (tmp_path / "more").mkdir()
    image, mask = np.full((16, 16), -850, np.int16), np.zeros((16, 16), np.uint8)
    image[:2], mask[4:6, 4:6] = -1000, 1
    npz.write_case(tmp_path / "more" / "a.npz", image, mask)
    both = datasets.load(config)
    assert both.table.added.tolist() == [False] * 3 + [True]
    assert both.readers.tolist() == [[2, 3]] * 2 + [[2, 1], [0, 0]]
    _, votes = both.read_train(np.array([0, 3]))
    assert votes[0, 7, 6:10].tolist() == [128, 131, 131, 131] and (votes[1] == mask).all()
    assert both.read_outline(0).nodule == "P1/0" and both.read_outline(3) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0}, "data.sources.free.share: got 0, expected whole cases of each batch"),
        ({"wndows": 3}, "data.sources.free: got 'wndows', expected 'share' and settings of data"),
        ({"windows": 0}, "data.windows: got 0, expected at least 1"),
        ({"name": "npz"}, "holds|values"),
    ],
)
def test_settings_of_a_source_that_cannot_be_used(config, change, message):
    with config.unlocked():
        config.sources.free.update(change)
    with pytest.raises(InputError, match=message):
        datasets.load(config)
