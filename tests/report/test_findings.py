"""Each planted fault raises its own alarm, and a good prediction none of them."""

import math

import made_up_run
import numpy as np
import pytest

from auxseg.report import findings


def find(change=lambda prediction, seed: prediction, **settings):
    known = {
        key: settings.pop(key) for key in ("split", "splits", "finished", "num_steps") if key in settings
    }
    evaluation, _ = made_up_run.make_evaluation(change, **settings)
    return findings.find_all(evaluation, **known)


def titles(found, level):
    return [each.title for each in found if each.level == level]


def test_a_good_prediction_raises_no_fault():
    found = find()
    assert titles(found, "fault") == []
    assert {"Left and right", "Shift", "Left lung found", "Right lung found"} <= set(titles(found, "passed"))


def test_a_trial_of_a_few_steps_says_first_that_its_scores_mean_nothing():
    first = find(num_steps=16)[0]
    assert (first.level, first.title) == ("fault", "These scores mean nothing") and "16 steps" in first.text
    assert not titles(find(num_steps=100), "fault")


def test_shift_by_three_pixels():
    found = find(made_up_run.shift_by_three)
    assert titles(found, "fault") == ["Predictions are shifted"]
    assert found[0].text.startswith("The predicted lungs lie 3.0 px down and 3.0 px to the right")


@pytest.mark.parametrize(("shift", "words"), [((-1, 0), "1.0 px up"), ((0, -2), "2.0 px to the left")])
def test_direction_of_a_shift(shift, words):
    found = find(lambda prediction, seed: np.roll(prediction, shift, (0, 1)))
    assert titles(found, "fault") == ["Predictions are shifted"] and words in found[0].text


def test_scattered_errors_are_no_shift():
    found = find(lambda prediction, seed: np.roll(prediction, (3 * (-1) ** seed, 0), (0, 1)))
    assert "Predictions are shifted" not in titles(found, "fault")


def test_sides_swapped():
    found = find(made_up_run.swap_sides)
    assert titles(found, "fault") == ["Left and right are swapped"]
    assert "In 18 of 18 cases" in found[0].text and "orientation" in found[0].text


def test_sides_swapped_in_one_case():
    found = find(lambda prediction, seed: made_up_run.swap_sides(prediction, 0) if seed == 4 else prediction)
    assert titles(found, "fault") == ["Left and right are swapped"]
    assert "In 1 of 18 cases" in found[0].text and "orientation" not in found[0].text


def test_one_lung_lost():
    found = find(made_up_run.lose_a_lung)
    assert titles(found, "fault") == ["Right lung is never found"]


def test_one_lung_lost_in_some_cases():
    found = find(lambda prediction, seed: made_up_run.lose_a_lung(prediction, 0) if seed < 2 else prediction)
    assert titles(found, "fault") == ["Right lung is lost in 2 of 18 cases"]


def test_nodules_predicted_beside_every_nodule():
    def move(prediction, seed):
        moved = np.where(prediction == 3, 0, prediction).astype(np.uint8)
        if seed % 2:
            moved[:3, :3] = 3
        return moved

    found = [each for each in find(move) if each.level == "fault"]
    assert [each.title for each in found] == ["Nodule is not found"]
    assert "Mean Dice 0.000 in 12 cases" in found[0].text and "6 without a pixel" in found[0].text


def test_pooled_dsc_that_hides_nodules():
    found = find(lambda prediction, seed: np.where(prediction == 3, 0, prediction).astype(np.uint8))
    assert "Nodule is never found" in titles(found, "fault")
    assert "The pooled DSC hides a class" in titles(found, "caution")


def test_too_small_an_area():
    def halve(prediction, seed):
        changed = prediction.copy()
        changed[::2][changed[::2] == 1] = 0
        return changed

    assert "Left lung comes out too small" in titles(find(halve), "caution")


def test_false_positive_cases_are_named():
    def add(prediction, seed):
        return np.where(np.arange(prediction.size).reshape(prediction.shape) < 9, 3, prediction).astype(
            np.uint8
        )

    found = find(add)
    assert "Nodule: false-positive cases" in titles(found, "caution")
    assert "Predicted in 6 of 6 cases" in next(f.text for f in found if f.title.startswith("Nodule: false"))


def test_nodules_above_radiologists_are_doubted():
    perfect, _ = made_up_run.make_evaluation(lambda prediction, seed: made_up_run.make_reference(seed))
    assert "Nodule Dice is above radiologists' agreement" in titles(findings.find_all(perfect), "caution")


def test_unknown_spacing_few_patients_val_split_and_unfinished_run():
    found = find(spacing=(math.nan, math.nan), num_cases=4, split="val", finished=False)
    assert {"Pixel size unknown", "Few patients", "The run has not ended"} <= set(titles(found, "note"))
    assert "Scored on the val split" in titles(found, "caution")


def test_a_case_in_two_splits():
    found = find(splits={"train": ["a", "b"], "test": ["b"]})
    assert titles(found, "fault") == ["Cases are in two splits"] and "1 in train and test" in found[0].text


def test_gravest_first():
    found = find(made_up_run.swap_sides)
    order = [findings.LEVELS.index(each.level) for each in found]
    assert order == sorted(order)


def test_sides_are_not_told_where_lungs_were_hardly_found():
    def leave_little(prediction, seed):
        changed = np.zeros_like(prediction)
        changed[48:50] = made_up_run.swap_sides(prediction, seed)[48:50]
        return changed

    found = find(leave_little)
    assert not any(
        title.startswith("Left and right") for level in findings.LEVELS for title in titles(found, level)
    )
