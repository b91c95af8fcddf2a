"""Which cases are shown, and outlines that are exactly the masks."""

import base64
import io
import re

import made_up_run
import numpy as np
import pytest
from PIL import Image

from auxseg.report import viewer


def fill(path, shape):
    """Returns bool [H, W]: the pixels inside an SVG path of h and v lines, by the even-odd rule."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for loop in re.findall(r"M(\d+) (\d+)([^z]*)z", path):
        start_x, y = int(loop[0]), int(loop[1])
        x, first = start_x, int(loop[1])
        for way, length in re.findall(r"([hv])(-?\d+)", loop[2]):
            if way == "h":
                x += int(length)
            else:
                crossings[min(y, y + int(length)) : max(y, y + int(length)), x] += 1
                y += int(length)
        assert x == start_x or y == first  # the closing line is straight
        crossings[min(y, first) : max(y, first), x] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def random_masks():
    rng = np.random.default_rng(0)
    ring = np.ones((5, 6), bool)
    ring[1:4, 1:5] = False
    return [rng.random((7, 9)) < share for share in (0.1, 0.5, 0.9)] + [
        np.eye(4, dtype=bool),
        np.ones((3, 2), bool),
        ring,
    ]


@pytest.mark.parametrize("mask", random_masks())
def test_outline_encloses_exactly_the_mask(mask):
    np.testing.assert_array_equal(fill(viewer.outline(mask), mask.shape), mask)


def test_outline_of_nothing():
    assert viewer.outline(np.zeros((3, 3), bool)) == ""


def test_outline_of_a_pixel_by_hand():
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    assert viewer.outline(mask) == "M2 1h1v1h-1z"


def test_cases_are_chosen_by_score():
    evaluation, _ = made_up_run.make_evaluation()
    chosen = viewer.choose_cases(evaluation)
    dice = {row["case_id"]: row["nodule_dice"] for row in evaluation.rows if row["nodule_reference_px"]}
    worst = next(case for case, reasons in chosen.items() if "nodule: worst" in reasons)
    best = next(case for case, reasons in chosen.items() if "nodule: best" in reasons)
    assert dice[worst] == min(dice.values()) and dice[best] == max(dice.values())
    assert len([reason for reasons in chosen.values() for reason in reasons]) == 9


def test_the_largest_false_positive_is_chosen():
    def add(prediction, seed):
        changed = prediction.copy()
        changed[: 2 + seed, :2] = 3
        return changed

    evaluation, _ = made_up_run.make_evaluation(add, num_cases=7)
    assert "nodule: largest false positive" in viewer.choose_cases(evaluation)["case_006"]


def test_page_data_is_exact():
    evaluation, pixels = made_up_run.make_evaluation(num_cases=3)
    case = made_up_run.make_cases(evaluation, pixels)[0]
    page = viewer.to_item(case)
    codes = np.array(Image.open(io.BytesIO(base64.b64decode(page["codes"].split(",")[1]))))
    np.testing.assert_array_equal(codes // 16, case.reference)
    np.testing.assert_array_equal(codes % 16, case.prediction)
    for value, name in enumerate(("left_lung", "right_lung", "nodule"), start=1):
        np.testing.assert_array_equal(fill(page["truth"][name], codes.shape), case.reference == value)
        np.testing.assert_array_equal(fill(page["prediction"][name], codes.shape), case.prediction == value)
    assert page["row"]["case_id"] == case.case_id


def test_gray_levels_of_the_window():
    image = np.array([[-2000, -1000, -300, 400, 2000]], np.int16)
    assert viewer.to_gray(image, (-1000.0, 400.0)).tolist() == [[0, 0, 128, 255, 255]]


def test_panels_hold_no_case_twice():
    evaluation, pixels = made_up_run.make_evaluation()
    cases = viewer.choose_panels(made_up_run.make_cases(evaluation, pixels), 6)
    assert len({case.case_id for case in cases}) == len(cases) <= 6
    assert "nodule: median" in cases[0].reasons
