"""The study of the third dimension: its arms are alike but for what is studied, and its scores are right by hand."""

import types

import numpy as np
import pytest

from auxseg import models
from auxseg.runs import run_folder
from auxseg.scoring import froc
from experiments.studies import third_dimension as study


@pytest.mark.parametrize("arm", study.ARMS)
def test_arms_differ_in_what_is_studied_alone(arm, tmp_path):
    plain, config = (study.create_config(each, 2, 6, 14, tmp_path) for each in ("2D", arm))
    models.check_slab(config.model.name, config.data.slab)
    differing = run_folder.list_differences(
        run_folder.config_to_dict(plain), run_folder.config_to_dict(config)
    )
    names = {line.split(":")[0] for line in differing}
    assert names <= {"data.slab", "model.name", "model.base_width"}
    counts = [study.count_parameters(each) for each in (plain, config)]
    assert abs(counts[1] / counts[0] - 1) < 0.06


def test_voxels_and_scores_by_hand():
    masks = np.zeros((2, 2, 2), np.uint8)
    masks[0, 0] = (1, 2)
    masks[1, 0] = (3, 3)
    reference = {0: np.array([[1, 2], [2, 0]], np.uint8), 1: np.array([[3, 0], [0, 0]], np.uint8)}
    counts = study._count(masks, reference)
    assert [list(map(int, each)) for each in counts[1:]] == [[1, 1, 1], [1, 1, 2], [1, 2, 1]]
    assert study._count(masks, {0: reference[0]})[3][2] == 0  # a slice without lung has no nodule
    scores = study._summarise(
        np.array([counts]), [froc.Matches(np.array([1.0, np.nan]), np.array([0.5, 0.2, 0.1]))]
    )
    assert scores["dice_left_lung"] == 1.0 and scores["dice_right_lung"] == pytest.approx(2 / 3)
    assert scores["dice_nodules"] == pytest.approx(2 / 3)
    assert (scores["nodules"], scores["nodules_found"], scores["false_a_scan"]) == (2, 1, 3.0)


def test_larger_nodules_are_more_certain():
    row = {"x_mm": 1.0, "y_mm": 2.0, "z_mm": 3.0, "volume_ml": 0.5}
    rows = [{"structure": "left_lung"}, {"structure": "nodule_1", **row}]
    found = study._candidates(types.SimpleNamespace(measurements=rows))
    assert found.tolist() == [[1.0, 2.0, 3.0, 0.5]]
    assert study._candidates(types.SimpleNamespace(measurements=[])).shape == (0, 4)


def test_the_table_has_means_and_ranges():
    shared = {"parameters": 1000, "epochs": 6, "training_s": 30.0, "nodules": 4, "cpu_seconds_a_scan": 2.0}
    scores = {"dice_left_lung": 0.9, "dice_right_lung": 0.8, "dice_nodules": 0.5, "false_a_scan": 1.0}
    rows = [
        {"budget": "equal time", "arm": "2D", "seed": seed, "nodules_found": seed, **shared, **scores}
        for seed in (1, 2)
    ]
    line = list(study.format_table(rows))[-1]
    assert "| equal time | 2D | 1,000 | 6 | 30 |" in line and "1.5 (1.0-2.0) of 4" in line
