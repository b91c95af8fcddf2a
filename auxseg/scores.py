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

numpy and scipy alone; nothing here grows with the number of cases but one row a case.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from concurrent import futures

import numpy as np
from scipy import ndimage, spatial

from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError

FOREGROUND = CLASS_NAMES[1:]
LUNGS = ("left_lung", "right_lung")
TOLERANCES = (1, 2)
"""Of the surface Dice: mm, or pixels where the spacing is unknown."""
MIN_OBJECT_IOU = 0.1
"""Below it a predicted component is no hit: half a dozen stray pixels do not find a nodule."""
STRATA = ("under 6 mm", "6-10 mm", "over 10 mm", "unknown size")
NUM_BINS = 15
"""Of the reliability diagram, equally wide."""
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
    """

    row: dict
    objects: tuple[dict, ...]
    calibration: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of many cases.

    Attributes:
        rows: one mapping a case, as `CaseScores.row`.
        objects: one mapping an object, with its case_id and patient.
        calibration: float64 [C + 1, NUM_BINS, 3], summed over the cases, or None.
    """

    rows: tuple[dict, ...]
    objects: tuple[dict, ...]
    calibration: np.ndarray | None


def score_case(*, prediction, reference, spacing_yx_mm, probabilities=None, identity=None):
    """Returns the scores of one case, all classes, by the rules at the top of this file.

    Args:
        prediction: uint8 [H, W], class indices.
        reference: uint8 [H, W], class indices.
        spacing_yx_mm: two floats, mm between the centres of rows and of columns; NaN where unknown.
        probabilities: float [H, W, C], softmax, or None: no calibration.
        identity: what else to keep in the row, such as case_id and patient.

    Raises:
        InputError: shapes differ, a value is no class, a spacing is not positive, probabilities do not sum
            to 1.
    """
    identity = dict(identity or {})
    where = f" (case {identity['case_id']})" if "case_id" in identity else ""
    spacing = _check_spacing(spacing_yx_mm, where)
    prediction = _check_mask("prediction", prediction, where)
    reference = _check_mask("reference", reference, where)
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction{where}: got shape {prediction.shape}, expected the reference's {reference.shape}; "
            "resize the prediction first"
        )
    confusion = count_confusion(prediction=prediction, reference=reference)
    row = identity | {
        "rows": prediction.shape[0],
        "columns": prediction.shape[1],
        "spacing_y_mm": float(spacing[0]),
        "spacing_x_mm": float(spacing[1]),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
    }
    for index, name in enumerate(CLASS_NAMES[1:], start=1):
        scored = score_class(
            prediction=prediction == index, reference=reference == index, spacing_yx_mm=spacing
        )
        row |= {f"{name}_{key}": value for key, value in scored.items()}
    row |= {
        f"pixels_{true}_as_{given}": int(confusion[i, j])
        for i, true in enumerate(CLASS_NAMES)
        for j, given in enumerate(CLASS_NAMES)
    }
    row |= estimate_shift(prediction=prediction, reference=reference)
    nodule = CLASS_NAMES.index("nodule")
    objects = match_objects(
        prediction=prediction == nodule, reference=reference == nodule, spacing_yx_mm=spacing
    )
    row |= {
        f"nodules_{kind}": sum(item["kind"] == kind for item in objects)
        for kind in ("found", "missed", "false")
    }
    calibration = None
    if probabilities is not None:
        calibration = count_calibration(probabilities=probabilities, reference=reference, where=where)
    keys = {key: identity[key] for key in ("case_id", "patient") if key in identity}
    return CaseScores(row, tuple(keys | item for item in objects), calibration)


def collect(cases: Iterable[CaseScores]) -> Evaluation:
    """Returns the evaluation of a stream of cases; holds one row a case and no image.

    Raises:
        InputError: there is no case.
    """
    rows, objects, calibration = [], [], None
    for case in cases:
        rows.append(case.row)
        objects.extend(case.objects)
        if case.calibration is not None:
            calibration = case.calibration if calibration is None else calibration + case.calibration
    if not rows:
        raise InputError("evaluation: got no case, expected at least one; choose a split that is not empty")
    return Evaluation(tuple(rows), tuple(objects), calibration)


def merge(first: Evaluation, second: Evaluation) -> Evaluation:
    """Returns both evaluations as one, such as those of two processes."""
    sums = [each.calibration for each in (first, second) if each.calibration is not None]
    return Evaluation(first.rows + second.rows, first.objects + second.objects, sum(sums) if sums else None)


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


def count_confusion(*, prediction, reference):
    """Returns int64 [C, C], pixels by reference class (first axis) and predicted class (second)."""
    num_classes = len(CLASS_NAMES)
    codes = reference.astype(np.intp).ravel() * num_classes + prediction.ravel()
    return np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)


def score_class(*, prediction, reference, spacing_yx_mm):
    """Returns the scores of one class, name -> value.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown: then distances are in pixels under names ending in
            px.
    """
    size_yx = reference.shape
    window = bounding_box(prediction | reference)
    prediction, reference = prediction[window], reference[window]
    true_positive = int(np.count_nonzero(prediction & reference))
    predicted, present = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    scores = {"status": _status(present, predicted)}
    scores |= overlap_scores(
        true_positive, predicted - true_positive, present - true_positive, int(np.prod(size_yx))
    )
    scores |= area_scores(predicted, present, spacing_yx_mm)
    return scores | surface_scores(
        prediction=prediction, reference=reference, spacing_yx_mm=spacing_yx_mm, size_yx=size_yx
    )


def bounding_box(mask):
    """Returns two slices around the True pixels of bool [H, W]; empty ones where there is none."""
    spans = [np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1)]
    return tuple(slice(span[0], span[-1] + 1) if len(span) else slice(0, 0) for span in spans)


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
        "accuracy": (true_positive + true_negative) / num_pixels,
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


def surface_scores(*, prediction, reference, spacing_yx_mm, size_yx=None):
    """Returns HD95, ASSD and surface Dice, in mm where the spacing is known, else in pixels.

    Both sets of names are always there; the one that does not apply is NaN.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown.
        size_yx: rows and columns of the whole image, where the masks are cut out of it; its diagonal is the
            worst distance.
    """
    known = bool(np.all(np.isfinite(spacing_yx_mm)))
    unit, other = ("mm", "px") if known else ("px", "mm")
    scale = spacing_yx_mm if known else np.ones(2)
    hd95, assd, surface_dice = _surface_values(prediction, reference, scale, size_yx or reference.shape)
    nan = float("nan")
    scores = {f"hd95_{unit}": hd95, f"assd_{unit}": assd, f"hd95_{other}": nan, f"assd_{other}": nan}
    for tolerance, value in zip(TOLERANCES, surface_dice, strict=True):
        scores |= {f"surface_dice_{tolerance}{unit}": value, f"surface_dice_{tolerance}{other}": nan}
    return scores


def _surface_values(prediction, reference, scale, size_yx):
    if not reference.any():
        return float("nan"), float("nan"), (float("nan"),) * len(TOLERANCES)
    if not prediction.any():
        worst = float(np.hypot(*(np.asarray(size_yx) * scale)))
        return worst, worst, (0.0,) * len(TOLERANCES)
    forward, backward = surface_distances(prediction=prediction, reference=reference, spacing_yx=scale)
    hd95 = float(max(np.percentile(forward, 95), np.percentile(backward, 95)))
    both = np.concatenate([forward, backward])
    return hd95, float(both.mean()), tuple(float(np.mean(both <= each + 1e-9)) for each in TOLERANCES)


def surface_distances(*, prediction, reference, spacing_yx):
    """Returns the distances from each contour pixel of the prediction to the reference's contour, and back.

    Args:
        prediction: bool [H, W] with at least one True.
        reference: bool [H, W] with at least one True.
        spacing_yx: two floats; the distances have their unit.

    Returns:
        Two float64 arrays, as long as the contours.
    """
    points = [np.argwhere(contour(mask)) * spacing_yx for mask in (prediction, reference)]
    trees = [spatial.cKDTree(each, balanced_tree=False, compact_nodes=False) for each in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def contour(mask):
    """Returns bool [H, W]: pixels of a mask bool [H, W] with a 4-neighbour outside it or beyond the image."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def estimate_shift(*, prediction, reference):
    """Returns how far the predicted lungs lie from the reference's, and their Dice with and without that.

    A systematic shift (an off-by-some in a crop, a resize or a flip) moves every lung of every case the
    same way. The shift is the mean difference of the centroids of the lungs that overlap by an IoU of at
    least 0.3 (of one that is swapped or lost there is no shift to speak of); NaN where there is none.

    Args:
        prediction: uint8 [H, W].
        reference: uint8 [H, W].

    Returns:
        shift_y_px and shift_x_px (prediction minus reference), lungs_dice (mean over those lungs), and
        lungs_dice_moved_back: the same after the prediction is moved back by the shift in whole pixels.
    """
    pairs = [(prediction == index, reference == index) for index in map(CLASS_NAMES.index, LUNGS)]
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


def match_objects(*, prediction, reference, spacing_yx_mm):
    """Returns one mapping for each object: kind ('found', 'missed' or 'false'), size, place and IoU.

    Args:
        prediction: bool [H, W].
        reference: bool [H, W].
        spacing_yx_mm: float64 [2], NaN where unknown: then the stratum is 'unknown size'.

    Returns:
        A list, found and missed in the order of the reference's components, then the false ones. Size and
        centre are the reference's, or of a false one its own; iou is that with its partner, 0 without one.
    """
    window = bounding_box(prediction | reference)
    overlaps = find_overlaps(prediction[window], reference[window])
    partners = match(overlaps)
    taken = {index for index, _ in partners.values()}
    origin = [each.start for each in window]
    found = _describe(overlaps.true_labels, overlaps.true_px, spacing_yx_mm, origin)
    false = _describe(overlaps.given_labels, overlaps.given_px, spacing_yx_mm, origin)
    for index, item in enumerate(found):
        item |= {
            "kind": "found" if index in partners else "missed",
            "iou": partners.get(index, (0, 0.0))[1],
        }
    return found + [
        item | {"kind": "false", "iou": 0.0} for index, item in enumerate(false) if index not in taken
    ]


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """The objects of two masks, 8-connected, and where they lie on each other.

    Attributes:
        true_labels: int32 [H, W], the reference's objects from 1 on, 0 elsewhere.
        given_labels: the same of the prediction.
        true_px: int64 [objects of the reference], pixels of each.
        given_px: int64 [objects of the prediction].
        true: int64 [pairs], indices from 0 of the objects that share pixels.
        given: int64 [pairs].
        shared_px: int64 [pairs].
    """

    true_labels: np.ndarray
    given_labels: np.ndarray
    true_px: np.ndarray
    given_px: np.ndarray
    true: np.ndarray
    given: np.ndarray
    shared_px: np.ndarray


def find_overlaps(prediction, reference):
    """Returns the Overlaps of two masks, bool [H, W]."""
    eight = np.ones((3, 3))
    true, num_true = ndimage.label(reference, eight)
    given, num_given = ndimage.label(prediction, eight)
    codes = true.astype(np.int64) * (num_given + 1) + given
    pairs, shared = np.unique(codes[(true > 0) & (given > 0)], return_counts=True)
    rows, columns = np.divmod(pairs, num_given + 1)
    return Overlaps(
        true_labels=true,
        given_labels=given,
        true_px=np.bincount(true.ravel(), minlength=num_true + 1)[1:],
        given_px=np.bincount(given.ravel(), minlength=num_given + 1)[1:],
        true=rows - 1,
        given=columns - 1,
        shared_px=shared,
    )


def match(overlaps, kept=None):
    """Returns {object of the reference: (object of the prediction, IoU)}, one to one, largest IoU first.

    Args:
        overlaps: Overlaps.
        kept: bool [objects of the prediction], those to match; None: all.
    """
    areas = overlaps.true_px[overlaps.true] + overlaps.given_px[overlaps.given]
    ious = overlaps.shared_px / (areas - overlaps.shared_px)
    partners, taken = {}, set()
    for at in np.argsort(-ious, kind="stable"):
        row, column = int(overlaps.true[at]), int(overlaps.given[at])
        if kept is not None and not kept[column]:
            continue
        if ious[at] >= MIN_OBJECT_IOU and row not in partners and column not in taken:
            partners[row] = (column, float(ious[at]))
            taken.add(column)
    return partners


def _describe(labelled, areas, spacing_yx_mm, origin):
    """Returns size and place of each object of int [H, W], in the order of its labels 1 to len(areas)."""
    rows, columns = np.nonzero(labelled)
    labels = labelled[rows, columns]
    centers = [
        np.bincount(labels, axis, len(areas) + 1)[1:] / areas + start
        for axis, start in zip((rows, columns), origin, strict=True)
    ]
    diameters = 2 * np.sqrt(areas / np.pi)
    to_mm = np.sqrt(np.prod(spacing_yx_mm))
    return [
        {
            "stratum": stratum(diameter * to_mm),
            "diameter_mm": float(diameter * to_mm),
            "diameter_px": float(diameter),
            "area_px": int(area),
            "center_y_px": float(y),
            "center_x_px": float(x),
        }
        for area, diameter, y, x in zip(areas, diameters, *centers, strict=True)
    ]


def stratum(diameter_mm):
    """Returns the size class of an equivalent diameter in mm: under 6, 6-10 (both ends included), over 10."""
    if not np.isfinite(diameter_mm):
        return STRATA[3]
    return STRATA[0] if diameter_mm < 6 else STRATA[1] if diameter_mm <= 10 else STRATA[2]


def count_calibration(*, probabilities, reference, where=""):
    """Returns float64 [C + 1, NUM_BINS, 3]: pixels, sum of confidence and hits by bin of confidence.

    Entry c < C is class c against the rest; the last is the most probable class. Bins are equally wide; 1.0
    lies in the last.

    Args:
        probabilities: float [H, W, C], softmax.
        reference: uint8 [H, W].
        where: appended to the name in an error.

    Raises:
        InputError: another shape, or the probabilities of a pixel do not sum to 1.
    """
    probabilities = np.asarray(probabilities, np.float32)
    expected = (*reference.shape, len(CLASS_NAMES))
    if probabilities.shape != expected:
        raise InputError(f"probabilities{where}: got shape {probabilities.shape}, expected {expected}")
    if not np.allclose(probabilities.sum(-1), 1, atol=1e-2):
        raise InputError(
            f"probabilities{where}: got sums from {probabilities.sum(-1).min():.3g} to "
            f"{probabilities.sum(-1).max():.3g}, expected 1 in every pixel; give the softmax, not logits"
        )
    sums = [_bin(probabilities[..., index], reference == index) for index in range(len(CLASS_NAMES))]
    top = probabilities.argmax(-1)
    return np.stack([*sums, _bin(probabilities.max(-1), top == reference)])


def _bin(confidence, hit):
    confidence = confidence.ravel()
    index = np.minimum(confidence * NUM_BINS, NUM_BINS - 1).astype(np.uint8)
    return np.stack(
        [
            np.bincount(index, minlength=NUM_BINS),
            np.bincount(index, confidence, NUM_BINS),
            np.bincount(index[hit.ravel()], minlength=NUM_BINS),
        ],
        axis=-1,
    ).astype(np.float64)


def _check_mask(name, mask, where):
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iub":
        raise InputError(
            f"{name}{where}: got {mask.dtype} of shape {mask.shape}, expected class indices [H, W]"
        )
    if mask.min() < 0 or mask.max() >= len(CLASS_NAMES):
        raise InputError(
            f"{name}{where}: got values {mask.min()} to {mask.max()}, expected class indices "
            f"0 to {len(CLASS_NAMES) - 1}"
        )
    return mask.astype(np.uint8, copy=False)


def _check_spacing(spacing_yx_mm, where):
    spacing = np.asarray(spacing_yx_mm, np.float64)
    if spacing.shape != (2,) or np.isinf(spacing).any() or (spacing <= 0).any():
        raise InputError(
            f"spacing_yx_mm{where}: got {spacing_yx_mm}, expected two positive numbers of mm, or NaN where "
            "unknown"
        )
    return spacing if np.isfinite(spacing).all() else np.full(2, np.nan)
