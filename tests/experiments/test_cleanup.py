"""Tests of the study of what prediction's options do to the scores."""

import json

import fake_network
import fakes
import numpy as np
import pytest

from auxseg import datasets
from auxseg.base.errors import InputError
from auxseg.datasets.dataset import CaseTable, Dataset
from auxseg.runs import run_folder
from configs import base
from experiments.checks import cleanup


def _stack(count=6, size=48):
    """Returns (images, masks) of a body with two lungs, a vessel in the left one and air that is no lung."""
    images = np.full((count, size, size), -1000, np.int16)
    masks = np.zeros((count, size, size), np.uint8)
    images[:, 4:-4, 3:-3] = 40
    for columns, value in ((slice(28, 42), 1), (slice(6, 20), 2)):
        images[:, 10:36, columns], masks[:, 10:36, columns] = -850, value
    images[:, 20:22, 33:35] = 40  # of 4.5 mm, which the thresholds take for a nodule
    images[:, 38:42, 30:36] = -850
    return images, masks


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a run's folder whose data set is a stack of two scans, read by a network of thresholds."""
    images, masks = _stack()
    count = len(images)
    table = CaseTable(
        case_id=np.array([f"c{i}" for i in range(count)]),
        series_uid=np.array(["a"] * 4 + ["b"] * 2),
        patient=np.array(["a"] * 4 + ["b"] * 2),
        subset=np.full(count, -1, np.int8),
        slice_index=np.array([7, 6, 5, 2, 0, 1], np.int32),
        spacing_zyx_mm=np.full((count, 3), 2.0, np.float32),
        native_size_yx=np.full((count, 2), images.shape[1], np.int32),
        num_nodules=np.zeros(count, np.int32),
        labels=np.ones((count, 4), np.uint8),
    )
    data = Dataset("made up", table, images.shape[1:], lambda i: (images[i], masks[i]), lambda i: masks[i])
    members = {"train": np.zeros(0, int), "test": np.arange(count)}
    monkeypatch.setattr(
        cleanup, "load_network", lambda path: fake_network.create(images.shape[1:], path.name)
    )
    monkeypatch.setattr(datasets, "load", lambda settings: data)
    monkeypatch.setattr(cleanup, "read_splits", lambda path, dataset: members)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run_folder.claim_config(tmp_path / name, base.get_config())
    return tmp_path


def test_slices_that_follow_one_another_make_a_stack(run):
    _, stacks = cleanup._read_stacks([run / "one"], None)
    assert [one.tolist() for one in stacks] == [[3], [2, 1, 0], [4, 5]]


def test_every_option_is_compared_with_the_plain_prediction(run, capsys):
    out = run / "cleanup.json"
    fakes.call(cleanup.main, runs=[run / "one", run / "two"], slices=None, out=str(out))
    result = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["option"]: row for row in result["rows"]}
    assert set(rows) == {"plain", *cleanup.CLEANED, "flip", "ensemble", "ensemble, flip"}
    assert (result["cases"], result["patients"], result["stacks"]) == (6, 2, 3)
    plain, largest, dropped = rows["plain"], rows["largest_components"], rows["min_nodule_mm=5"]
    assert largest["left_lung_dice"] > plain["left_lung_dice"]
    assert largest["left_lung_dice_change"][0] == pytest.approx(
        largest["left_lung_dice"] - plain["left_lung_dice"], abs=2e-5
    )
    assert (plain["nodules_false"], rows["min_nodule_mm=3"]["nodules_false"], dropped["nodules_false"]) == (
        6,
        6,
        0,
    )
    assert plain["nodule_dice"] is None
    assert rows["ensemble"]["left_lung_dice_change"] == [0, 0, 0]  # both runs are the same network
    assert "| fill_holes |" in capsys.readouterr().out


def test_nodules_stay_where_the_pixel_size_is_not_known(run):
    table = datasets.load(None).table
    table.spacing_zyx_mm[:4] = np.nan
    rows = {row["option"]: row for row in cleanup.measure([run / "one"])["rows"]}
    assert rows["min_nodule_mm=5"]["nodules_false"] == 4
    assert rows["plain"]["left_lung_hd95_mm_cases"] == 2 and rows["plain"]["left_lung_dice_cases"] == 6


def test_runs_of_other_splits_are_refused(run, monkeypatch):
    splits = iter([np.arange(6), np.arange(5)])
    monkeypatch.setattr(cleanup, "read_splits", lambda path, dataset: {"test": next(splits)})
    with pytest.raises(InputError, match="was split in another way"):
        cleanup.measure([run / "one", run / "two"])
