"""Scores by hand, on degenerate masks, and against SimpleITK, surface-distance, scipy and MONAI."""

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.scoring import calibration, case_scores, matching, surfaces

SPACING = (0.7, 0.9)
UNKNOWN = (math.nan, math.nan)


def disc(shape, center, radius):
    rows, columns = np.indices(shape)
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def paint(shape=(64, 64), **discs):
    """Returns uint8 [H, W] with a disc (row, column, radius) for each named class."""
    mask = np.zeros(shape, np.uint8)
    for name, (row, column, radius) in discs.items():
        mask[disc(shape, (row, column), radius)] = CLASS_NAMES.index(name)
    return mask


def chest(shape=(64, 64)):
    return paint(shape, right_lung=(32, 18, 12), left_lung=(32, 46, 12), nodule=(30, 20, 3))


def score(prediction, reference, spacing=SPACING, **keywords):
    return case_scores.score_case(
        prediction=prediction, reference=reference, spacing_yx_mm=spacing, **keywords
    )


def random_pairs():
    """Returns named pairs of bool masks: blobs, noise, single pixels, at the border, full, nested."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 48, 40))
    blobs = [ndimage.gaussian_filter(each, 3) > 0.02 for each in noise]
    pixel = np.zeros((48, 40), bool)
    pixel[5, 7] = True
    corner = np.zeros((48, 40), bool)
    corner[:6, :9] = True
    full = np.ones((48, 40), bool)
    return {
        **{f"blobs{i}": pair for i, pair in enumerate(itertools.pairwise(blobs))},
        "noise": (noise[0] > 1.2, noise[1] > 1.2),
        "pixel": (pixel, np.roll(pixel, (20, 11), (0, 1))),
        "pixel_blob": (pixel, blobs[0]),
        "corner": (corner, corner[::-1, ::-1]),
        "full": (full, blobs[1]),
        "nested": (disc((48, 40), (24, 20), 15), disc((48, 40), (24, 20), 4)),
        "identical": (blobs[2], blobs[2]),
    }


PAIRS = random_pairs()


def test_overlap_by_hand():
    reference = np.array([[1, 1], [0, 0]], np.uint8)
    prediction = np.array([[1, 0], [1, 0]], np.uint8)
    row = score(prediction, reference).row
    values = [row[f"left_lung_{name}"] for name in ("dice", "iou", "precision", "sensitivity", "specificity")]
    np.testing.assert_allclose(values, [0.5, 1 / 3, 0.5, 0.5, 0.5])
    assert row["left_lung_accuracy"] == row["accuracy"] == 0.5
    assert row["pixels_left_lung_as_background"] == row["pixels_background_as_left_lung"] == 1


def test_surface_by_hand_anisotropic():
    reference = np.zeros((9, 9), bool)
    reference[4, 4] = True
    values = surfaces.surface_scores(
        prediction=np.roll(reference, 2, 0), reference=reference, spacing_yx_mm=np.array([0.5, 3.0])
    )
    assert values["hd95_mm"] == values["assd_mm"] == 1.0
    assert values["surface_dice_1mm"] == values["surface_dice_2mm"] == 1.0
    sideways = surfaces.surface_scores(
        prediction=np.roll(reference, 2, 1), reference=reference, spacing_yx_mm=np.array([0.5, 3.0])
    )
    assert sideways["hd95_mm"] == 6.0 and sideways["surface_dice_2mm"] == 0.0


def test_perfect_prediction():
    row = score(chest(), chest()).row
    for name in case_scores.FOREGROUND:
        assert row[f"{name}_status"] == "scored"
        assert row[f"{name}_dice"] == row[f"{name}_surface_dice_1mm"] == row[f"{name}_sensitivity"] == 1.0
        assert row[f"{name}_hd95_mm"] == row[f"{name}_assd_mm"] == row[f"{name}_area_error_px"] == 0.0
    assert (row["nodules_found"], row["nodules_missed"], row["nodules_false"]) == (1, 0, 0)


def test_missed_takes_the_worst_value():
    reference = chest()
    row = score(np.where(reference == 3, 2, reference).astype(np.uint8), reference).row
    assert row["nodule_status"] == "missed"
    worst = math.hypot(64 * SPACING[0], 64 * SPACING[1])
    assert row["nodule_hd95_mm"] == pytest.approx(worst) == row["nodule_assd_mm"]
    zeros = ("dice", "iou", "precision", "sensitivity", "surface_dice_1mm", "surface_dice_2mm")
    assert [row[f"nodule_{name}"] for name in zeros] == [0.0] * 6
    assert row["nodules_missed"] == 1


def test_no_distance_exceeds_that_of_a_miss():
    reference, prediction = np.zeros((2, 20, 30), np.uint8)
    reference[0, 0] = prediction[-1, -1] = 1
    far = score(prediction, reference).row["left_lung_hd95_mm"]
    assert far < score(np.zeros_like(reference), reference).row["left_lung_hd95_mm"]


def test_false_positive_case_is_in_no_mean_but_counted():
    reference = paint(left_lung=(32, 46, 12))
    row = score(chest(), reference).row
    assert row["nodule_status"] == "false_positive" and row["nodules_false"] == 1
    empty = ("dice", "iou", "precision", "sensitivity", "hd95_mm", "assd_mm", "surface_dice_1mm")
    assert all(math.isnan(row[f"nodule_{name}"]) for name in empty)
    assert row["nodule_predicted_px"] == np.sum(chest() == 3)
    assert row["nodule_specificity"] < 1


def test_absent_class_has_no_score():
    blank = np.zeros((16, 16), np.uint8)
    result = score(blank, blank)
    for name in case_scores.FOREGROUND:
        assert result.row[f"{name}_status"] == "absent"
        assert math.isnan(result.row[f"{name}_dice"]) and result.row[f"{name}_specificity"] == 1.0
    assert result.objects == ()
    assert math.isnan(result.row["shift_y_px"])


def test_full_class_has_no_specificity():
    full = np.ones((4, 4), np.uint8)
    row = score(full, full).row
    assert row["left_lung_dice"] == 1.0 and math.isnan(row["left_lung_specificity"])


def test_unknown_spacing_gives_pixels_under_other_names():
    row = score(np.roll(chest(), 2, 0), chest(), UNKNOWN).row
    assert math.isnan(row["left_lung_hd95_mm"]) and math.isnan(row["left_lung_surface_dice_1mm"])
    assert row["left_lung_hd95_px"] > 0 and row["left_lung_surface_dice_2px"] > 0
    assert math.isnan(row["left_lung_reference_mm2"]) and row["left_lung_reference_px"] > 0
    known = score(np.roll(chest(), 2, 0), chest()).row
    assert math.isnan(known["left_lung_hd95_px"]) and known.keys() == row.keys()


def test_one_unknown_axis_is_unknown():
    assert math.isnan(score(chest(), chest(), (0.7, math.nan)).row["left_lung_hd95_mm"])


@pytest.mark.parametrize("name", PAIRS)
def test_surface_distances_equal_scipys_distance_transform(name):
    prediction, reference = PAIRS[name]
    forward, backward = surfaces.surface_distances(
        prediction=prediction, reference=reference, spacing_yx=SPACING
    )
    edges = [each & ~ndimage.binary_erosion(each) for each in (prediction, reference)]
    fields = [ndimage.distance_transform_edt(~edge, sampling=SPACING) for edge in edges]
    np.testing.assert_allclose(forward, fields[1][edges[0]], atol=1e-9)
    np.testing.assert_allclose(backward, fields[0][edges[1]], atol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_against_simpleitk(name):
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install 'auxseg[test]'")
    prediction, reference = PAIRS[name]
    ours = case_scores.score_class(
        prediction=prediction, reference=reference, spacing_yx_mm=np.array(SPACING)
    )
    images = [itk.GetImageFromArray(each.astype(np.uint8)) for each in (prediction, reference)]
    for image in images:
        image.SetSpacing(SPACING[::-1])
    overlap = itk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images[::-1])
    assert ours["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert ours["iou"] == pytest.approx(overlap.GetJaccardCoefficient())
    fields = [itk.GetArrayFromImage(_distance_to_contour(itk, image)) for image in images]
    edges = [surfaces.contour(each) for each in (prediction, reference)]
    directed = [fields[1][edges[0]], fields[0][edges[1]]]
    assert ours["hd95_mm"] == pytest.approx(max(np.percentile(each, 95) for each in directed), abs=1e-4)
    assert ours["assd_mm"] == pytest.approx(np.concatenate(directed).mean(), abs=1e-4)


def _distance_to_contour(itk, image):
    """Returns SimpleITK's exact distance to its contour; padded: it sees none at the border."""
    padded = itk.ConstantPad(image, (1, 1), (1, 1))
    edge = itk.LabelContour(padded, fullyConnected=False)
    field = itk.SignedMaurerDistanceMap(edge, squaredDistance=False, useImageSpacing=True)
    size = image.GetSize()
    return itk.Extract(itk.Clamp(field, lowerBound=0.0), size, (1, 1))


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_against_surface_distance(name):
    """DeepMind's contour runs between pixels, its pieces weighed by length: equal to half a pixel."""
    library = pytest.importorskip(
        "surface_distance", reason="surface-distance is not installed: auxseg[test]"
    )
    prediction, reference = PAIRS[name]
    theirs = library.compute_surface_distances(reference, prediction, SPACING)
    ours = case_scores.score_class(
        prediction=prediction, reference=reference, spacing_yx_mm=np.array(SPACING)
    )
    assert ours["dice"] == pytest.approx(library.compute_dice_coefficient(reference, prediction))
    if name in ("noise", "corner", "pixel_blob", "full"):
        return  # the percentile over lengths differs from that over pixels: see the table of disagreements
    half_diagonal = math.hypot(*SPACING) / 2
    assert ours["hd95_mm"] == pytest.approx(
        library.compute_robust_hausdorff(theirs, 95), abs=2 * half_diagonal
    )
    assd = np.mean(library.compute_average_surface_distance(theirs))
    assert ours["assd_mm"] == pytest.approx(assd, abs=half_diagonal)


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
def test_degenerate_masks_where_libraries_disagree(monkeypatch):
    """What the README's table of disagreements says about empty masks, read off the libraries."""
    library = pytest.importorskip(
        "surface_distance", reason="surface-distance is not installed: auxseg[test]"
    )
    for name, value in (("NaN", math.nan), ("Inf", math.inf)):  # its release 0.1 predates NumPy 2
        monkeypatch.setattr(np, name, value, raising=False)
    empty, blob = np.zeros((32, 32), bool), disc((32, 32), (16, 16), 6)
    assert math.isnan(library.compute_dice_coefficient(empty, empty))
    missed = library.compute_surface_distances(blob, empty, SPACING)
    assert library.compute_robust_hausdorff(missed, 95) == math.inf
    ours = case_scores.score_class(prediction=empty, reference=blob, spacing_yx_mm=np.array(SPACING))
    assert math.isfinite(ours["hd95_mm"]) and ours["surface_dice_1mm"] == 0
    assert library.compute_surface_dice_at_tolerance(missed, 1) == 0
    assert library.compute_dice_coefficient(empty, blob) == 0
    false_positive = case_scores.score_class(
        prediction=blob, reference=empty, spacing_yx_mm=np.array(SPACING)
    )
    assert math.isnan(false_positive["dice"]) and false_positive["status"] == "false_positive"


@pytest.mark.parametrize("name", PAIRS)
def test_against_monai(name):
    monai = pytest.importorskip("monai.metrics", reason="MONAI (with PyTorch) is no requirement of the tests")
    torch = pytest.importorskip("torch")
    prediction, reference = PAIRS[name]
    tensors = [torch.tensor(each[None, None].astype(np.float32)) for each in (prediction, reference)]
    ours = case_scores.score_class(
        prediction=prediction, reference=reference, spacing_yx_mm=np.array(SPACING)
    )
    hd95 = monai.compute_hausdorff_distance(*tensors, percentile=95, spacing=SPACING)
    assd = monai.compute_average_surface_distance(*tensors, symmetric=True, spacing=SPACING)
    assert ours["hd95_mm"] == pytest.approx(float(hd95), abs=1e-4)
    assert ours["assd_mm"] == pytest.approx(float(assd), abs=1e-4)
    for tolerance in surfaces.TOLERANCES:
        surface_dice = monai.compute_surface_dice(*tensors, [float(tolerance)], spacing=SPACING)
        assert ours[f"surface_dice_{tolerance}mm"] == pytest.approx(float(surface_dice), abs=1e-6)


def test_objects_are_matched_one_to_one_by_iou():
    reference = np.zeros((40, 40), bool)
    reference[2:8, 2:8] = reference[20:24, 20:24] = True
    prediction = np.zeros_like(reference)
    prediction[3:8, 2:8] = prediction[30:34, 5:9] = prediction[20, 24] = True
    found = matching.match_objects(
        prediction=prediction, reference=reference, spacing_yx_mm=np.array([1.0, 1.0])
    )
    assert [each["kind"] for each in found] == ["found", "missed", "false", "false"]
    assert found[0]["iou"] == pytest.approx(30 / 36)
    assert (found[1]["center_y_px"], found[1]["center_x_px"], found[1]["area_px"]) == (21.5, 21.5, 16)
    assert found[0]["diameter_mm"] == pytest.approx(2 * math.sqrt(36 / math.pi))


def test_one_prediction_over_two_nodules_finds_one():
    reference = np.zeros((20, 20), bool)
    reference[2:8, 2:8] = reference[2:8, 10:14] = True
    prediction = np.zeros_like(reference)
    prediction[2:8, 2:14] = True
    kinds = [
        each["kind"]
        for each in matching.match_objects(
            prediction=prediction, reference=reference, spacing_yx_mm=np.ones(2)
        )
    ]
    assert sorted(kinds) == ["found", "missed"]


def test_diagonal_pixels_are_one_object():
    eye = np.eye(6, dtype=bool)
    found = matching.match_objects(prediction=eye, reference=eye, spacing_yx_mm=np.ones(2))
    assert [each["kind"] for each in found] == ["found"]


@pytest.mark.parametrize(
    ("diameter", "name"),
    [
        (5.99, "under 6 mm"),
        (6.0, "6-10 mm"),
        (10.0, "6-10 mm"),
        (10.01, "over 10 mm"),
        (math.nan, "unknown size"),
    ],
)
def test_stratum(diameter, name):
    assert matching.stratum(diameter) == name


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (-2, 4), (3, 3)])
def test_shift_is_measured(shift):
    result = case_scores.estimate_shift(prediction=np.roll(chest(), shift, (0, 1)), reference=chest())
    assert (result["shift_y_px"], result["shift_x_px"]) == pytest.approx(shift)
    assert result["lungs_dice_moved_back"] == pytest.approx(1.0)


def test_the_dice_before_a_shift_is_undone_by_hand():
    """Squares of 16 pixels that lie one column further share 12: 2 * 12 / 32."""
    reference = np.zeros((8, 20), np.uint8)
    reference[2:6, 2:6], reference[2:6, 12:16] = 2, 1
    result = case_scores.estimate_shift(prediction=np.roll(reference, 1, 1), reference=reference)
    assert (result["lungs_dice"], result["lungs_dice_moved_back"]) == (0.75, 1.0)


def test_a_lost_lung_is_no_shift():
    prediction = np.where(chest() == 1, 0, chest()).astype(np.uint8)
    result = case_scores.estimate_shift(prediction=prediction, reference=chest())
    assert result["shift_x_px"] == 0.0 and result["lungs_dice"] == 1.0


def test_calibration_counts_by_hand():
    probabilities = np.array([[[0.9, 0.1, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0]]], np.float32)
    sums = calibration.count_calibration(probabilities=probabilities, reference=np.array([[0, 0]], np.uint8))
    assert sums.shape == (5, calibration.NUM_BINS, 3)
    top = sums[4]
    assert top[:, 0].sum() == 2 and top[:, 2].sum() == 1
    np.testing.assert_allclose(top[:, 1].sum(), 1.7, rtol=1e-6)
    np.testing.assert_allclose(sums[0, int(0.2 * calibration.NUM_BINS)], [1, 0.2, 1], rtol=1e-6)


def test_calibration_puts_certainty_in_the_last_bin():
    probabilities = np.zeros((2, 2, 4), np.float32)
    probabilities[..., 0] = 1.0
    sums = calibration.count_calibration(probabilities=probabilities, reference=np.zeros((2, 2), np.uint8))
    assert sums[4, -1].tolist() == [4, 4, 4] and sums[1, 0].tolist() == [4, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": np.zeros((4, 5), np.uint8)}, "got shape (4, 5), expected the reference's (4, 4)"),
        ({"prediction": np.full((4, 4), 5, np.uint8)}, "got values 5 to 5, expected class indices 0 to 3"),
        ({"reference": np.zeros((4, 4), np.float32)}, "reference (case a): got float32 of shape (4, 4)"),
        ({"reference": np.zeros((0, 4), np.uint8)}, "expected class indices [H, W]"),
        ({"spacing_yx_mm": (0.0, 1.0)}, "expected two positive numbers of mm"),
        ({"probabilities": np.zeros((4, 4, 4), np.float32)}, "expected 1 in every pixel"),
        ({"probabilities": np.zeros((4, 4, 3), np.float32)}, "expected (4, 4, 4)"),
    ],
)
def test_bad_input_is_one_clear_line(change, words):
    good = {"prediction": np.zeros((4, 4), np.uint8), "reference": np.zeros((4, 4), np.uint8)}
    good |= {"spacing_yx_mm": (1.0, 1.0), "identity": {"case_id": "a"}}
    with pytest.raises(InputError) as error:
        case_scores.score_case(**good | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_collect_streams_and_merges():
    uniform = np.full((64, 64, 4), 0.25, np.float32)
    common = {"reference": chest(), "spacing_yx_mm": SPACING, "probabilities": uniform}
    cases = [
        common | {"prediction": np.roll(chest(), i, 0), "identity": {"case_id": str(i), "patient": "p"}}
        for i in range(7)
    ]
    threaded = case_scores.score_cases(iter(cases), num_threads=3)
    plain = case_scores.collect(case_scores.score_case(**case) for case in cases)
    assert [row["case_id"] for row in threaded.rows] == list("0123456")
    assert threaded.foreground == ("left_lung", "right_lung", "nodule")
    assert str(threaded.rows) == str(plain.rows) and threaded.objects == plain.objects
    halves = [
        case_scores.collect(case_scores.score_case(**case) for case in part)
        for part in (cases[:3], cases[3:])
    ]
    merged = case_scores.merge(*halves)
    assert str(merged.rows) == str(plain.rows)
    np.testing.assert_allclose(merged.calibration, plain.calibration)


def test_threads_hold_few_cases():
    alive, most = [], []

    def cases():
        for i in range(20):
            alive.append(i)
            most.append(len(alive))
            yield {"prediction": chest(), "reference": chest(), "spacing_yx_mm": SPACING}

    for _ in case_scores.stream(lambda case: case_scores.score_case(**case), cases(), num_threads=2):
        alive.pop()
    assert max(most) <= 5


def test_memory_does_not_grow_with_the_number_of_cases():
    """A row and its calibration take a few kB; the images of a case would take eighty."""

    def cases(count):
        for i in range(count):
            probabilities = np.full((64, 64, 4), 0.25, np.float32)
            yield {
                "prediction": np.roll(chest(), i % 5, 0),
                "reference": chest(),
                "spacing_yx_mm": SPACING,
                "probabilities": probabilities,
            }

    peaks = []
    for count in (20, 20, 80):
        tracemalloc.start()
        case_scores.score_cases(cases(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 60 < 20e3


def test_no_case_is_refused():
    with pytest.raises(InputError, match="got no case"):
        case_scores.collect([])


def test_resized_spacing_keeps_the_field_of_view():
    spacing = case_scores.resized_spacing((0.7, 0.8), native_size_yx=(512, 512), size_yx=(320, 320))
    np.testing.assert_allclose(spacing * 320, np.array([0.7, 0.8]) * 512)


def test_888_cases_take_under_a_minute():
    """Forty cases with large lungs; processor time, so that a busy machine does not fail it."""
    reference = paint((320, 320), right_lung=(160, 90, 70), left_lung=(160, 230, 70), nodule=(150, 90, 6))
    probabilities = np.full((320, 320, 4), 0.25, np.float32)
    start = time.process_time()
    for i in range(40):
        score(np.roll(reference, i % 4, 0), reference, probabilities=probabilities)
    assert (time.process_time() - start) / 40 * 888 < 60


def test_real_masks_shifted(real_data):
    files = sorted((real_data / "luna16_middle").glob("*.npz"))[:12]
    for file in files:
        mask = np.load(file)["mask"]
        row = score(np.roll(mask, (3, 3), (0, 1)), mask, (0.7, 0.7)).row
        assert (row["shift_y_px"], row["shift_x_px"]) == pytest.approx((3, 3), abs=0.2)
        assert 0.9 < row["left_lung_dice"] < 0.999 and row["lungs_dice_moved_back"] > row["lungs_dice"]


def test_areas_and_their_errors_in_square_millimetres():
    scores = case_scores.area_scores(3, 5, (2.0, 1.5))
    assert (scores["reference_mm2"], scores["predicted_mm2"], scores["area_error_mm2"]) == (15.0, 9.0, -6.0)
    assert (scores["area_error_px"], scores["area_error_relative"]) == (-2, -0.4)


def test_surface_dice_ends_at_its_tolerance():
    reference, prediction = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    reference[4, :], prediction[6, :] = True, True  # two lines, 2 mm apart
    scores = case_scores.score_class(prediction=prediction, reference=reference, spacing_yx_mm=np.ones(2))
    assert (scores["surface_dice_1mm"], scores["surface_dice_2mm"]) == (0.0, 1.0)


def test_calibration_error_by_hand():
    # 10 pixels of 0.4 of which 7 are right, 30 of 0.9 of which 24 are: gaps of 3 and 3 pixels in 40.
    bins = [[10, 4.0, 7], [30, 27.0, 24]]
    assert calibration.calibration_error(bins) == pytest.approx(6 / 40)
    assert calibration.calibration_error(bins, skip_lowest=True) == pytest.approx(3 / 30)
    assert np.isnan(calibration.calibration_error([[0, 0.0, 0]]))


def test_reliability_of_an_empty_bin_is_unknown_and_no_division_by_nothing():
    with np.errstate(all="raise"):
        confidence, frequency = calibration.reliability([[0, 0.0, 0], [4, 2.0, 1]])
    np.testing.assert_array_equal(confidence, [np.nan, 0.5])
    np.testing.assert_array_equal(frequency, [np.nan, 0.25])


def test_rows_and_columns_keep_their_own_spacing():
    row = score(chest((64, 60)), chest((64, 60)), spacing=(0.5, 3.0), identity={}).row
    assert (row["rows"], row["columns"], row["spacing_y_mm"], row["spacing_x_mm"]) == (64, 60, 0.5, 3.0)
