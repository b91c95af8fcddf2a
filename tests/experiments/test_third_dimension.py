"""The studies of the third dimension: arms are alike but for what is studied, and scores are right by hand."""

import types

import numpy as np
import pytest

from auxseg import models
from auxseg.base import files
from auxseg.ct import geometry as ct
from auxseg.runs import run_folder
from auxseg.scoring import froc
from experiments.studies import slab_runs, third_dimension, third_dimension_crops, third_dimension_real


def create_configs(study, kind, tmp_path):
    """Returns the settings of 2D and of a kind in one of the studies."""
    create = {
        "phantom": lambda kind: third_dimension.create_config(kind, 2, 6, 14, tmp_path),
        "crops": lambda kind: third_dimension_crops.create_config(kind, 2, 6, tmp_path),
        "real": lambda kind: third_dimension_real.create_config(kind, 2, 6, 1, tmp_path, tmp_path / "start"),
    }[study]
    return create("2D"), create(kind)


@pytest.mark.parametrize("study", ["phantom", "crops", "real"])
@pytest.mark.parametrize("kind", ["2.5D", "3D"])
def test_arms_differ_in_what_is_studied_alone(study, kind, tmp_path):
    plain, config = create_configs(study, kind, tmp_path)
    models.check_slab(config.model.name, config.data.slab)
    differing = run_folder.list_differences(
        run_folder.config_to_dict(plain), run_folder.config_to_dict(config)
    )
    names = {line.split(":")[0] for line in differing}
    assert "data.slab" in names and names <= {"data.slab", "model.name", "model.base_width"}
    counts = [slab_runs.count_parameters(each) for each in (plain, config)]
    assert abs(counts[1] / counts[0] - 1) < 0.06


def test_voxels_and_scores_by_hand():
    masks = np.zeros((2, 2, 2), np.uint8)
    masks[0, 0] = (1, 1)
    masks[1, 0] = (2, 2)
    reference = {0: np.array([[1, 2], [2, 0]], np.uint8), 1: np.array([[3, 0], [0, 0]], np.uint8)}
    reference = {index: third_dimension.merge(mask) for index, mask in reference.items()}
    counts = third_dimension.count_voxels(masks, reference)
    assert counts[1:] == [[2, 2, 3], [1, 2, 1]]
    # A slice without lung has no nodule:
    assert third_dimension.count_voxels(masks, {0: reference[0]})[2][2] == 0
    matches = [froc.Matches(np.array([1.0, np.nan, 0.15]), np.array([0.5, 0.2, 0.1]))]
    scores = third_dimension.summarise(np.array([counts]), matches)
    assert scores["dice_lungs"] == pytest.approx(4 / 5)
    assert scores["dice_nodules"] == pytest.approx(2 / 3)
    assert (scores["nodules"], scores["nodules_found"], scores["false_a_scan"]) == (3, 2, 3.0)
    assert scores["found_at_1"] == 1  # above 0.2, which the second false one has


def test_larger_nodules_are_more_certain():
    row = {"x_mm": 1.0, "y_mm": 2.0, "z_mm": 3.0, "volume_ml": 0.5}
    rows = [{"structure": "left_lung"}, {"structure": "nodule_1", **row}]
    found = third_dimension.find_candidates(types.SimpleNamespace(measurements=rows))
    assert found.tolist() == [[1.0, 2.0, 3.0, 0.5]]
    assert third_dimension.find_candidates(types.SimpleNamespace(measurements=[])).shape == (0, 4)


def test_a_nodule_s_scores_by_hand():
    readers = np.zeros((2, 2, 4), bool)  # of one slice: two readers
    readers[0, 0, :2] = readers[1, 0, 0] = True
    marked = np.zeros((2, 4), bool)
    marked[0, 0] = marked[0, 3] = True
    alone = np.zeros((2, 4), bool)
    alone[1, 1] = True
    slices = [(1, alone, np.zeros_like(readers)), (0, marked, readers)]
    scores = third_dimension_crops.score_nodule(slices)
    # Half of two readers is one: the consensus has two pixels, one of which is among the three marked. The mark in the
    # other slice touches the first by a corner; the one at the right edge touches no reader's.
    assert scores == {"slices": 2, "dice": 2 * 1 / 5, "found": True, "false": 1}
    few = {"slices": 2, "dice": 0.4, "found": False, "false": 1}
    many = {"slices": 5, "dice": 1.0, "found": True, "false": 0}
    found = third_dimension_crops.summarise([few, many])
    assert (found["dice"], found["found"], found["false_a_nodule"]) == (0.7, 0.5, 0.5)
    assert (found["dice_2_to_4"], found["dice_5_and_more"], found["nodules_5_and_more"]) == (0.4, 1.0, 1)


def make_study(judge=lambda workdir, config: {"dice": 0.5, "hits": 1, "all": 4}):
    columns = {"Dice": ("dice", ".2f"), "found": ("hits", ".1f of all")}
    return slab_runs.Study("A study", "python -m x", lambda *about: about, judge, columns, "made-up data")


def test_equal_time_is_that_of_the_dearest(tmp_path, monkeypatch):
    cost = {"2D": 1.0, "2.5D": 2.0, "3D": 8.0}

    def train(config, workdir):
        workdir.mkdir(exist_ok=True)
        files.append_row(workdir / "metrics.jsonl", {"val": {"loss": 0.5}})
        files.write_json(workdir / slab_runs.TRAINED, {})
        return 3.0 + config[2] * cost[config[0]]  # three seconds to start

    monkeypatch.setattr(slab_runs, "train", train)
    monkeypatch.setattr(slab_runs, "count_parameters", lambda config: 1000)
    rows = slab_runs.run(make_study(), tmp_path / "runs", tmp_path / "out.json", seeds=(1, 2), epochs=3)
    epochs = {(row["budget"], row["kind"]): row["epochs"] for row in rows}
    assert [epochs["equal time", kind] for kind in slab_runs.KINDS] == [24, 12, 3]
    assert {epochs["equal epochs", kind] for kind in slab_runs.KINDS} == {3}
    assert files.read_object(tmp_path / "out.json")["seconds_an_epoch"] == cost
    table = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert (
        "| equal time | 2D | 1,000 | 2 | 24 | 1 (1-1) | 27 | 0.50 (0.50-0.50) | 1.0 (1.0-1.0) of 4 |" in table
    )
    assert slab_runs.find_longest(tmp_path / "runs", "2.5D", 2).name == "2_5D_12_2"
    assert slab_runs.find_longest(tmp_path / "runs", "2.5D", 3) is None
    assert "budgets" not in files.read_object(tmp_path / "out.json")["made_by"]["command"]
    some = {"seeds": (1,), "epochs": 3, "budgets": ["equal epochs"]}
    assert len(slab_runs.run(make_study(), tmp_path / "runs", tmp_path / "some.json", **some)) == 3
    command = files.read_object(tmp_path / "some.json")["made_by"]["command"]
    assert command.endswith(' --budgets="equal epochs"')


def test_of_one_epoch_the_shortest_run_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(slab_runs, "train", lambda config, workdir: {1: 9.0, 2: 7.0, 3: None}[config[1]])
    assert slab_runs.measure_epoch(make_study(), "2.5D", tmp_path, (1, 2, 3), 1) == 7.0
    assert files.read_object(tmp_path / "2_5D_epoch.json") == {"seconds": 7.0}


def test_scores_that_are_not_there_are_left_out():
    assert slab_runs.spread([1.0, None, 2.0], ".1f") == "1.5 (1.0-2.0)"
    assert (slab_runs.spread([None], ".1f"), slab_runs.spread([2], ".1f")) == ("none", "2.0")


def test_maps_of_lungs_have_luna16_s_values():
    assert third_dimension_real.to_luna16(np.array([[[0, 1, 2, 9]]], np.uint8)).tolist() == [[[0, 3, 4, 5]]]


def test_scans_are_shrunk_in_place():
    size = 2 * third_dimension_real.MATRIX
    hu = np.zeros((1, size, size), np.int16)
    hu[0, :2, 2:4] = ((1, 2), (4, 9))  # the second block of the first row
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[0, 1, 3] = 4
    geometry = ct.Geometry((size, size, 1), (0.5, 1.0, 2.0), (10.0, 20.0, 30.0))
    hu, lungs, smaller = third_dimension_real.shrink(hu, lungs, geometry)
    assert hu.shape == lungs.shape == (1, size // 2, size // 2)
    assert (hu[0, 0, 1], hu.sum(), lungs[0, 0, 1], lungs.sum()) == (4, 4, 4, 4)
    # The first block's middle lies half a pixel from that of its first pixel.
    assert smaller.spacing_xyz_mm == (1.0, 2.0, 2.0) and smaller.origin_xyz_mm == (10.25, 20.5, 30.0)
