"""From probabilities to masks by a threshold and a least size, and how both are chosen; by hand."""

import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.errors import InputError
from auxseg.scoring import matching, operating_point

UNKNOWN = (float("nan"), float("nan"))


def slice_with(*spots, size=24):
    """Returns probabilities [size, size, 4] of left lung with spots (row, column, side, probability) of nodule."""
    probabilities = np.zeros((size, size, 4), np.float32)
    for row, column, side, value in spots:
        probabilities[row : row + side, column : column + side, 3] = value
    probabilities[..., 1] = 1.0 - probabilities[..., 3]
    return probabilities


def mask_of(*spots, size=24):
    mask = np.ones((size, size), np.uint8)
    for row, column, side in spots:
        mask[row : row + side, column : column + side] = 3
    return mask


def test_default_is_the_most_likely_class():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (9, 7)).astype(np.float32)
    mask = operating_point.decide(probabilities, operating_point.Decision(), spacing_yx_mm=(0.7, 0.7))
    np.testing.assert_array_equal(mask, probabilities.argmax(-1))
    assert mask.dtype == np.uint8


def test_threshold_is_a_share_against_the_next_best_class():
    probabilities = np.array([[[0.1, 0.5, 0.0, 0.4], [0.3, 0.3, 0.1, 0.3]]], np.float32)
    for threshold, expected in ((0.44, [3, 3]), (0.45, [1, 3]), (0.49, [1, 3]), (0.51, [1, 0])):
        mask = operating_point.decide(
            probabilities, operating_point.Decision(threshold), spacing_yx_mm=UNKNOWN
        )
        np.testing.assert_array_equal(mask[0], expected)


def test_least_size_is_in_mm_where_the_spacing_is_known_and_in_pixels_elsewhere():
    probabilities = slice_with((2, 2, 2, 0.9), (10, 10, 4, 0.9))  # equivalent diameters 2.26 and 4.51 pixels
    choice = operating_point.Decision(min_mm=3.0, min_px=2.0)
    for spacing, scale, num_pixels in (
        ((0.5, 0.5), 1.0, 0),
        ((1.0, 1.0), 1.0, 16),
        ((2.0, 2.0), 1.0, 20),
        (UNKNOWN, 1.0, 20),
        (UNKNOWN, 2.0, 16),
        (UNKNOWN, 3.0, 0),
    ):
        mask = probabilities.argmax(-1).astype(np.uint8)
        given = operating_point.drop_small(mask, choice, spacing_yx_mm=spacing, pixels_per_pixel=scale)
        assert given is mask
        if scale == 1.0:
            decided = operating_point.decide(probabilities, choice, spacing_yx_mm=spacing)
            np.testing.assert_array_equal(decided, mask)
        assert (mask == 3).sum() == num_pixels
        assert set(np.unique(mask)) <= {1, 3}


def test_the_most_nodules_within_the_false_ones_that_are_allowed():
    cases = [
        (slice_with((4, 4, 4, 0.75)), mask_of((4, 4, 4)), UNKNOWN),  # found up to 0.7
        (slice_with((4, 4, 4, 0.35)), mask_of((4, 4, 4)), UNKNOWN),  # found up to 0.3
        (slice_with((15, 15, 5, 0.55), (4, 4, 5, 0.45)), mask_of(), UNKNOWN),  # false up to 0.5 and 0.4
    ]

    def chosen(max_false):
        return operating_point.tune(iter(cases), max_false=max_false, nominal_pixel_mm=1.0)

    choice, found = chosen(0.7)  # two false ones in three slices are allowed
    assert choice.threshold <= 0.3 and found["chosen"]["found"] == 2 and found["nodules"] == 2
    assert found["chosen"]["false_per_slice"] == pytest.approx(2 / 3)
    choice, found = chosen(0.0)
    assert choice == operating_point.Decision(0.6) and found["chosen"]["found"] == 1
    assert found["chosen"]["dice"] == 0.5 and found["slices"] == 3
    # Where the false ones are the smaller ones, a least size does what no threshold can.
    cases[2] = (slice_with((15, 15, 3, 0.95)), mask_of(), UNKNOWN)
    choice, found = chosen(0.0)
    assert (choice.min_mm, choice.min_px) == (4.0, 4.0) and found["chosen"]["found"] == 2
    assert len(found["all"]) == len(operating_point.THRESHOLDS) * len(operating_point.SIZES_MM)


def test_the_fewest_false_ones_where_none_has_few_enough():
    cases = [(slice_with((2, 2, 9, 0.995), (15, 15, 4, 0.6)), mask_of((15, 15, 4)), UNKNOWN)]
    choice, found = operating_point.tune(cases, max_false=0.5, nominal_pixel_mm=1.0)
    assert found["chosen"]["false_per_slice"] == 1.0 and found["chosen"]["found"] == 1
    assert choice.threshold <= 0.6


def test_the_most_likely_class_where_no_choice_finds_a_nodule():
    """A low threshold would make all of the lung one false nodule: few enough, and no better than none."""
    case = (slice_with((0, 0, 24, 0.3), (3, 3, 2, 0.05)), mask_of((3, 3, 2)), (1.0, 1.0))
    assert (
        operating_point.decide(case[0], operating_point.Decision(0.2), spacing_yx_mm=(1.0, 1.0))[10, 10] == 3
    )
    chosen, about = operating_point.tune([case], max_false=1.0, nominal_pixel_mm=1.0)
    assert chosen == operating_point.Decision() and about["chosen"]["found"] == 0


def test_nothing_is_chosen_without_a_nodule():
    with pytest.raises(InputError, match="none of the 1 validation slices has a nodule"):
        operating_point.tune([(slice_with(), mask_of(), UNKNOWN)], max_false=1.0, nominal_pixel_mm=1.0)


def test_a_decision_out_of_range_is_refused():
    for change in ({"threshold": 1.0}, {"min_mm": -1.0}, {"min_px": 100.0}):
        with pytest.raises(InputError, match="nodule .*: got .*, expected"):
            operating_point.Decision(**change)


def noisy_case(seed, *, size=48, spacing=(0.9, 0.8)):
    """Returns probabilities with hundreds of small nodules, and a reference with a few."""
    generator = np.random.default_rng(seed)
    logits = ndimage.gaussian_filter(generator.normal(size=(size, size, 4)), (0.7, 0.7, 0)) * 6
    probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    reference = np.ones((size, size), np.uint8)
    reference[ndimage.gaussian_filter(logits[..., 3] + generator.normal(size=(size, size)) * 4, 1) > 1.8] = 3
    return probabilities, reference, spacing


def count_plainly(choice, probabilities, reference, spacing):
    """The rule in its own words: decide, and match the objects."""
    found = operating_point.decide(probabilities, choice, spacing_yx_mm=spacing) == 3
    true = reference == 3
    objects = matching.match_objects(
        prediction=found, reference=true, spacing_yx_mm=np.asarray(spacing, float)
    )
    kinds = [each["kind"] for each in objects]
    dice = 2.0 * np.sum(found & true) / (found.sum() + true.sum()) if true.any() else 0.0
    return (*(kinds.count(kind) for kind in ("found", "missed", "false")), dice, float(true.any()))


@pytest.mark.parametrize("spacing", [(0.9, 0.8), UNKNOWN])
def test_counts_of_all_choices_are_those_of_each_by_the_plain_rule(spacing):
    cases = [noisy_case(seed, spacing=spacing) for seed in range(2)]
    cases.insert(0, (np.round(cases[0][0] * 4) / 4, cases[0][1], spacing))  # with ties
    cases.append((cases[1][0], np.ones((48, 48), np.uint8), spacing))  # no nodule there
    choices = operating_point.create_choices(0.7)
    for case in cases:
        expected = [count_plainly(choice, *case) for choice in choices]
        np.testing.assert_array_equal(operating_point._count_case(choices, *case), expected)
    assert max(row[2] for row in expected) > 50  # many false ones, and
    assert len({row[2] for row in expected}) > 20  # other numbers of them by threshold and by size
    counts = operating_point.count(cases, nominal_pixel_mm=0.7)
    assert counts.slices == 4 and counts.sums[0, 4] == 3.0
    assert counts.sums[:, 0].max() > 0


def test_counts_add_up():
    cases = [noisy_case(seed) for seed in range(3)]
    whole = operating_point.count(cases, nominal_pixel_mm=1.0)
    parts = [operating_point.count(part, nominal_pixel_mm=1.0) for part in (cases[:1], cases[1:])]
    total = parts[0] + parts[1]
    assert total.slices == whole.slices
    np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-12)
    chosen, found = operating_point.choose(whole, max_false=3.0, nominal_pixel_mm=1.0)
    assert (chosen, found) == operating_point.tune(cases, max_false=3.0, nominal_pixel_mm=1.0)


def test_no_more_false_nodules_than_allowed():
    # Two slices; the first choice finds one nodule with one false one a slice, the second three with one and a half.
    sums = np.zeros((len(operating_point.create_choices(1.0)), len(operating_point.COUNTED)))
    sums[:, operating_point.COUNTED.index("with_nodule")] = 2
    sums[:2, operating_point.COUNTED.index("found")] = 1, 3
    sums[:2, operating_point.COUNTED.index("false")] = 2, 3
    counts = operating_point.ChoiceCounts(2, sums)
    for allowed, found in ((1.0, 1), (1.49, 1), (1.5, 3)):
        _, about = operating_point.choose(counts, max_false=allowed, nominal_pixel_mm=1.0)
        assert about["chosen"]["found"] == found


def test_a_least_size_in_pixels_goes_by_the_pixels_that_are_taken_for_granted():
    sizes = {(choice.min_mm, choice.min_px) for choice in operating_point.create_choices(0.5)}
    assert sizes == {(0.0, 0.0), (3.0, 6.0), (4.0, 8.0), (5.0, 10.0), (6.0, 12.0)}


def test_a_least_size_in_pixels_is_for_slices_of_unknown_spacing_alone():
    decision = operating_point.Decision(0.5, 0.0, 5.0)
    for spacing, left in (((0.7, 0.7), 1), ((np.nan, np.nan), 0)):
        mask = np.zeros((5, 5), np.uint8)
        mask[2, 2] = 3
        assert (operating_point.drop_small(mask, decision, spacing_yx_mm=spacing) == 3).sum() == left


def test_a_threshold_chosen_on_few_nodules_is_said_to_be():
    assert (
        operating_point.describe_few(None)
        == operating_point.describe_few(operating_point.LEAST_NODULES)
        == ""
    )
    few = operating_point.LEAST_NODULES - 1
    assert operating_point.describe_few(few).startswith(
        f"the threshold was chosen on {few} nodules, fewer than"
    )
    assert operating_point.describe_few(1).startswith("the threshold was chosen on 1 nodule, fewer than")
