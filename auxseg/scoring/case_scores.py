"""Scores of one case at a time, from hard masks: the judge.

The rules, in one place; `RULES` states them for the reader of a table:

* A class that is in neither mask is 'absent': not counted. In the prediction only, it is a 'false_positive'
  case: counted as such, with its pixels, and no part of any mean. In the reference only, it is 'missed':
  Dice, IoU, precision, sensitivity and surface Dice are 0, distances the worst value that the image allows,
  its diagonal.
* The contour of a mask is its pixels with at least one of four neighbours outside it; beyond the image is
  outside. Distances run between pixel centres, exactly (a k-d tree over the contour), in mm from the
  spacing of each axis.
* HD95 is the larger of the two directed 95th percentiles (linear interpolation); ASSD the mean over the
  pixels of both contours; surface Dice the part of both contours that lies within the tolerance of the
  other.
* Objects are 8-connected components in the slice, matched one to one, largest IoU first, from
  `MIN_OBJECT_IOU`.
* Pixels of `UNKNOWN` in the reference are in no score: the prediction there is left out, beside them is no
  contour, and a predicted object counts by its other pixels.
* Where labels do not tell all classes apart (`meaning`), a prediction that a label may mean is right, and only the
  classes that they tell apart are scored; the others are 'unknown'.

numpy and scipy alone; nothing here grows with the number of cases but one row a case.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from concurrent import futures

import numpy as np

from auxseg.base.classes import BOTH_LUNGS, CLASS_NAMES, UNKNOWN, knows, value_of
from auxseg.base.errors import InputError
from auxseg.scoring import matching, surfaces
from auxseg.scoring.calibration import count_calibration
from auxseg.scoring.matching import MIN_OBJECT_IOU

FOREGROUND = CLASS_NAMES[1:]
LUNGS = ("left_lung", "right_lung")
RULES = (
    "Means are over the cases whose reference has the class; their number stands beside each mean.",
    "Missed (in the reference, not predicted): Dice, IoU, precision, sensitivity and surface Dice count as "
    "0, HD95 and ASSD as the diagonal of the image. Nothing is dropped.",
    "False-positive case (predicted, not in the reference): in no mean, counted in a column of its own.",
    "In neither mask: not counted. Specificity and accuracy count every case: they have a value without the "
    "class.",
    "Contour: pixels with a 4-neighbour outside the mask; beyond the image is outside. Distances run between "
    "pixel centres.",
    "HD95: the larger of the two directed 95th percentiles. ASSD: mean over the pixels of both contours. "
    "Surface Dice: the part of both contours within the tolerance of the other.",
    "Millimetres come from the case's own spacing. Where it is unknown, distances are in pixels, in columns "
    "of their own, and never mixed with millimetres.",
    f"Nodules as objects: 8-connected components in the slice, one to one, largest IoU first, IoU at least "
    f"{MIN_OBJECT_IOU}. Size: equivalent diameter in the slice; found and missed by the reference, false by "
    "the prediction.",
    "Pooled DSC (paper): over all pixels of all cases and all classes, background included. For hard masks "
    "it equals pixel accuracy, and says little about a nodule.",
)


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        row: name -> str, int or float; NaN where a score does not apply. One line of `cases.csv`.
        objects: one mapping for each nodule that was found or missed and each false one.
        calibration: float64 [C + 1, NUM_BINS, 3]: pixels, sum of confidence, sum of hits; for each class
            against the rest, then for the predicted class. None without probabilities.
        classes: C names by mask value.
    """

    row: dict
    objects: tuple[dict, ...]
    calibration: np.ndarray | None
    classes: tuple[str, ...] = CLASS_NAMES


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of many cases.

    Attributes:
        rows: one mapping a case, as `CaseScores.row`.
        objects: one mapping an object, with its case_id and patient.
        calibration: float64 [C + 1, NUM_BINS, 3], summed over the cases, or None.
        classes: C names by mask value.
    """

    rows: tuple[dict, ...]
    objects: tuple[dict, ...]
    calibration: np.ndarray | None
    classes: tuple[str, ...] = CLASS_NAMES

    @property
    def foreground(self):
        """Names of the classes but the background."""
        return self.classes[1:]


def score_case(
    *,
    prediction,
    reference,
    spacing_yx_mm,
    probabilities=None,
    identity=None,
    classes=CLASS_NAMES,
    meaning=None,
):
    """Returns the scores of one case, all classes, by the rules at the top of this file.

    Args:
        prediction: uint8 [H, W], class indices.
        reference: uint8 [H, W], class indices, and `UNKNOWN`.
        spacing_yx_mm: two floats, mm between the centres of rows and of columns; NaN where unknown.
        probabilities: float [H, W, C], softmax, or None: no calibration.
        identity: what else to keep in the row, such as case_id and patient.
        classes: names by mask value; scores of the lungs' shift and of nodules as objects need theirs.
        meaning: uint8 [C, C], 1 where a value of the reference (first axis) may mean a class (second); None: each
            means its own.

    Raises:
        InputError: shapes differ, a value is no class, a spacing is not positive, probabilities do not sum
            to 1.
    """
    identity = dict(identity or {})
    where = f" (case {identity['case_id']})" if "case_id" in identity else ""
    spacing = _check_spacing(spacing_yx_mm, where)
    prediction = _check_mask("prediction", prediction, len(classes), where)
    reference = _check_mask("reference", reference, len(classes), where, unknown=True)
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction{where}: got shape {prediction.shape}, expected the reference's {reference.shape}; "
            "resize the prediction first"
        )
    told = np.ones(len(classes), bool)
    if meaning is not None:
        prediction, told = relabel(prediction, reference, meaning), knows(meaning)
    confusion = count_confusion(prediction=prediction, reference=reference, num_classes=len(classes))
    row = identity | {
        "rows": prediction.shape[0],
        "columns": prediction.shape[1],
        "spacing_y_mm": float(spacing[0]),
        "spacing_x_mm": float(spacing[1]),
        "accuracy": float(np.trace(confusion) / confusion.sum()) if confusion.any() else float("nan"),
    }
    known = reference != UNKNOWN
    for index, name in enumerate(classes[1:], start=1):
        scored = score_class(
            prediction=prediction == index, reference=reference == index, spacing_yx_mm=spacing, known=known
        )
        row |= {f"{name}_{key}": value if told[index] else _untold(key) for key, value in scored.items()}
    row |= {
        f"pixels_{true}_as_{given}": int(confusion[i, j])
        for i, true in enumerate(classes)
        for j, given in enumerate(classes)
    }
    told_names = tuple(name if told[i] else "" for i, name in enumerate(classes))
    row |= estimate_shift(prediction=prediction, reference=reference, classes=told_names)
    nodule = value_of("nodule", told_names)
    objects = matching.match_objects(
        prediction=prediction == nodule, reference=reference == nodule, spacing_yx_mm=spacing, known=known
    )
    row |= {
        f"nodules_{kind}": sum(item["kind"] == kind for item in objects)
        for kind in ("found", "missed", "false")
    }
    calibration = None
    if probabilities is not None:
        calibration = count_calibration(
            probabilities=probabilities, reference=reference, num_classes=len(classes), where=where
        )
        calibration[~np.append(told, told.all())] = 0
    keys = {key: identity[key] for key in ("case_id", "patient") if key in identity}
    return CaseScores(row, tuple(keys | item for item in objects), calibration, classes)


def _untold(key):
    return "unknown" if key == "status" else float("nan")


def relabel(prediction, reference, meaning):
    """Returns predicted values in place of predicted classes, uint8 [H, W], as `pixel_counts.relabel` does.

    Args:
        prediction: uint8 [H, W], class indices.
        reference: uint8 [H, W], values and `UNKNOWN`.
        meaning: [C, C], as `score_case`.
    """
    labels, means = np.where(reference == UNKNOWN, 0, reference), meaning > 0
    return np.where(means[labels, prediction], labels, means.argmax(axis=0)[prediction]).astype(np.uint8)


def collect(cases: Iterable[CaseScores]) -> Evaluation:
    """Returns the evaluation of a stream of cases; holds one row a case and no image.

    Raises:
        InputError: there is no case.
    """
    rows, objects, calibration, classes = [], [], None, CLASS_NAMES
    for case in cases:
        classes = case.classes
        rows.append(case.row)
        objects.extend(case.objects)
        if case.calibration is not None:
            calibration = case.calibration if calibration is None else calibration + case.calibration
    if not rows:
        raise InputError("evaluation: got no case, expected at least one; choose a split that is not empty")
    return Evaluation(tuple(rows), tuple(objects), calibration, classes)


def merge(first: Evaluation, second: Evaluation) -> Evaluation:
    """Returns both evaluations as one, such as those of two processes."""
    sums = [each.calibration for each in (first, second) if each.calibration is not None]
    return Evaluation(
        first.rows + second.rows,
        first.objects + second.objects,
        sum(sums) if sums else None,
        first.classes,
    )


def score_cases(cases: Iterable[Mapping], *, num_threads=2) -> Evaluation:
    """Returns the evaluation of a stream of keyword arguments of `score_case`, in order.

    Args:
        cases: read as the threads need them: at most 2 * num_threads are in memory.
        num_threads: scipy and numpy let go of the interpreter's lock for most of the work.
    """
    return collect(stream(lambda case: score_case(**case), cases, num_threads=num_threads))


def stream(function, items, *, num_threads):
    """Yields function(item) for each item, in order, by threads that read no further ahead than they need."""
    pending = collections.deque()
    with futures.ThreadPoolExecutor(num_threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def resized_spacing(spacing_yx_mm, *, native_size_yx, size_yx):
    """Returns float64 [2], the spacing after a resize that keeps the field of view, in mm.

    Args:
        spacing_yx_mm: two floats of the native slice; NaN stays NaN.
        native_size_yx: rows and columns of the native slice.
        size_yx: rows and columns after the resize.
    """
    return np.asarray(spacing_yx_mm, np.float64) * np.asarray(native_size_yx) / np.asarray(size_yx)


def count_confusion(*, prediction, reference, num_classes):
    """Returns int64 [C, C], known pixels by reference class (first axis) and predicted class (second)."""
    known = reference != UNKNOWN
    codes = reference[known].astype(np.intp) * num_classes + prediction[known]
    return np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)


def score_class(*, prediction, reference, spacing_yx_mm, known=None):
    """Returns the scores of one class, name -> value.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown: then distances are in pixels under names ending in
            px.
        known: bool [H, W], the pixels that count; None: all.
    """
    size_yx, unknown = reference.shape, None
    num_pixels = int(np.prod(size_yx))
    if known is not None and not known.all():
        prediction, num_pixels = prediction & known, int(np.count_nonzero(known))
        # With a margin, so that the contour knows what lies beside the masks.
        window = tuple(
            slice(max(0, span.start - 1), span.stop + 1)
            for span in matching.bounding_box(prediction | reference)
        )
        unknown = ~known[window]
    else:
        window = matching.bounding_box(prediction | reference)
    prediction, reference = prediction[window], reference[window]
    true_positive = int(np.count_nonzero(prediction & reference))
    predicted, present = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    scores = {"status": _status(present, predicted)}
    scores |= overlap_scores(true_positive, predicted - true_positive, present - true_positive, num_pixels)
    scores |= area_scores(predicted, present, spacing_yx_mm)
    return scores | surfaces.surface_scores(
        prediction=prediction,
        reference=reference,
        spacing_yx_mm=spacing_yx_mm,
        size_yx=size_yx,
        unknown=unknown,
    )


def _status(present, predicted):
    if present:
        return "scored" if predicted else "missed"
    return "false_positive" if predicted else "absent"


def overlap_scores(true_positive, false_positive, false_negative, num_pixels):
    """Returns Dice, IoU, precision, sensitivity, specificity and accuracy from counts of pixels.

    The first four are NaN without the class in the reference; precision is 0 where nothing was predicted.
    """
    true_negative = num_pixels - true_positive - false_positive - false_negative
    present = true_positive + false_negative
    predicted = true_positive + false_positive

    def of_present(above, below):
        return above / below if present and below else (0.0 if present else float("nan"))

    return {
        "dice": of_present(2 * true_positive, present + predicted),
        "iou": of_present(true_positive, present + false_positive),
        "precision": of_present(true_positive, predicted),
        "sensitivity": of_present(true_positive, present),
        "specificity": true_negative / (true_negative + false_positive)
        if num_pixels > present
        else float("nan"),
        "accuracy": (true_positive + true_negative) / num_pixels if num_pixels else float("nan"),
    }


def area_scores(predicted, present, spacing_yx_mm):
    """Returns the areas in pixels and mm2 and their errors, predicted minus reference.

    The relative error is NaN without the class in the reference; areas in mm2 are NaN without a spacing.
    """
    pixel_mm2 = float(np.prod(spacing_yx_mm))
    return {
        "reference_px": present,
        "predicted_px": predicted,
        "area_error_px": predicted - present,
        "reference_mm2": present * pixel_mm2,
        "predicted_mm2": predicted * pixel_mm2,
        "area_error_mm2": (predicted - present) * pixel_mm2,
        "area_error_relative": (predicted - present) / present if present else float("nan"),
    }


def estimate_shift(*, prediction, reference, classes=CLASS_NAMES):
    """Returns how far the predicted lungs lie from the reference's, and their Dice with and without that.

    A systematic shift (an off-by-some in a crop, a resize or a flip) moves every lung of every case the
    same way. The shift is the mean difference of the centroids of the lungs that overlap by an IoU of at
    least 0.3 (of one that is swapped or lost there is no shift to speak of); NaN where there is none.

    Args:
        prediction: uint8 [H, W].
        reference: uint8 [H, W].
        classes: names by mask value.

    Returns:
        shift_y_px and shift_x_px (prediction minus reference), lungs_dice (mean over those lungs), and
        lungs_dice_moved_back: the same after the prediction is moved back by the shift in whole pixels.
    """
    lungs = [value_of(name, classes) for name in (*LUNGS, BOTH_LUNGS)]
    known = reference != UNKNOWN
    pairs = [((prediction == value) & known, reference == value) for value in lungs]
    pairs = [(given, true) for given, true in pairs if np.sum(given & true) > 0.3 * np.sum(given | true)]
    if not pairs:
        return dict.fromkeys(
            ("shift_y_px", "shift_x_px", "lungs_dice", "lungs_dice_moved_back"), float("nan")
        )
    shift = np.mean([_centroid(given) - _centroid(true) for given, true in pairs], axis=0)
    back = tuple(-np.rint(shift).astype(int))
    return {
        "shift_y_px": float(shift[0]),
        "shift_x_px": float(shift[1]),
        "lungs_dice": float(np.mean([_dice(given, true) for given, true in pairs])),
        "lungs_dice_moved_back": float(np.mean([_dice(_move(given, back), true) for given, true in pairs])),
    }


def _centroid(mask):
    return np.array([np.average(np.arange(mask.shape[axis]), weights=mask.sum(1 - axis)) for axis in (0, 1)])


def _dice(first, second):
    return 2 * np.sum(first & second) / (np.sum(first) + np.sum(second))


def _move(mask, shift_yx):
    moved = np.zeros_like(mask)
    target = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift_yx, mask.shape, strict=True))
    source = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(shift_yx, mask.shape, strict=True))
    moved[target] = mask[source]
    return moved


def _check_mask(name, mask, num_classes, where, *, unknown=False):
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iub":
        raise InputError(
            f"{name}{where}: got {mask.dtype} of shape {mask.shape}, expected class indices [H, W]"
        )
    largest = mask.max(initial=0, where=mask != UNKNOWN) if unknown else mask.max()
    if mask.min() < 0 or largest >= num_classes:
        raise InputError(
            f"{name}{where}: got values {mask.min()} to {largest}, expected class indices "
            f"0 to {num_classes - 1}"
        )
    return mask.astype(np.uint8, copy=False)


def _check_spacing(spacing_yx_mm, where):
    spacing = np.asarray(spacing_yx_mm, np.float64)
    if spacing.shape != (2,) or np.isinf(spacing).any() or (spacing <= 0).any():
        raise InputError(
            f"spacing_yx_mm{where}: got {spacing_yx_mm}, expected two positive numbers of mm, or NaN where "
            "unknown"
        )
    return spacing if np.isfinite(spacing).all() else np.full_like(spacing, np.nan)
