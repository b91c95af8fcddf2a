"""When a pixel is called nodule, and which nodules are too small to keep: one operating point of a network.

A network trained with weights, or on more nodules than there are, gives probabilities that are too high: the
most likely class is then not the best answer. A pixel is nodule where the nodule's share of the two, itself
and the most likely other class, reaches a threshold; 0.5 is the most likely class, the paper's rule. That is
the same as multiplying the nodule's probability by (1 - threshold) / threshold, so it agrees with any linear
resizing. Threshold and least size are chosen on validation alone.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from auxseg.base.classes import NO_CLASS, NODULE, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.scoring import components, matching

NOMINAL_FIELD_MM = 350.0
"""Width of a slice whose spacing is not known, by which a least size in mm becomes pixels."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99)
SIZES_MM = (0.0, 3.0, 4.0, 5.0, 6.0)
"""What `tune` chooses from."""
COUNTED = ("found", "missed", "false", "dice", "with_nodule")
"""What is counted of a choice: nodules; summed over slices, the Dice of the nodules, and 1 for a slice with one."""


LEAST_NODULES = 10
"""A threshold chosen on fewer says so."""


def describe_few(count):
    """Returns a sentence where a threshold was chosen on few nodules; '' where they are enough, or not known."""
    if count is None or count >= LEAST_NODULES:
        return ""
    nodules = "1 nodule" if count == 1 else f"{count} nodules"
    return (
        f"the threshold was chosen on {nodules}, fewer than {LEAST_NODULES}: it may be far off on other scans"
    )


@dataclasses.dataclass(frozen=True)
class Decision:
    """How probabilities become a mask; the default is the most likely class.

    Attributes:
        threshold: least share of the nodule in itself and the most likely other class.
        min_mm: nodules of a smaller equivalent diameter go to what surrounds them.
        min_px: the same where the size of a pixel is not known, in pixels of the network's image.
    """

    threshold: float = 0.5
    min_mm: float = 0.0
    min_px: float = 0.0

    def __post_init__(self):
        if not 0.0 < self.threshold < 1.0:
            raise InputError(f"nodule threshold: got {self.threshold}, expected above 0 and below 1")
        for name in ("min_mm", "min_px"):
            if not 0.0 <= getattr(self, name) < 100.0:
                raise InputError(f"nodule {name}: got {getattr(self, name)}, expected 0 (off) to 100")

    @property
    def nodule_weight(self):
        """The factor of the nodule's probability after which the most likely class is the decision."""
        return (1.0 - self.threshold) / self.threshold

    def class_weights(self, num_classes, nodule=NODULE):
        """Returns float32 [C]: the factors of all classes; `nodule` is its value, `NO_CLASS` where there is none."""
        weights = np.ones(num_classes, np.float32)
        if nodule != NO_CLASS:
            weights[nodule] = self.nodule_weight
        return weights


def decide(probabilities, decision, *, spacing_yx_mm, nodule=NODULE):
    """Returns the mask, uint8 [H, W], of probabilities float32 [H, W, C], at the network's size.

    Args:
        probabilities: softmax.
        decision: Decision.
        spacing_yx_mm: two floats, mm between pixels; NaN where unknown.
        nodule: value of nodules; `NO_CLASS`: there are none to decide on.
    """
    weights = decision.class_weights(probabilities.shape[-1], nodule)
    mask = (probabilities * weights).argmax(-1).astype(np.uint8)
    return drop_small(mask, decision, spacing_yx_mm=spacing_yx_mm, nodule=nodule)


def drop_small(mask, decision, *, spacing_yx_mm, pixels_per_pixel=1.0, nodule=NODULE):
    """Returns a mask uint8 [H, W] without the nodules that are too small for a Decision; changes `mask`.

    Args:
        mask: uint8 [H, W].
        decision: Decision.
        spacing_yx_mm: two floats, mm between pixels; NaN where unknown.
        pixels_per_pixel: how many of these pixels lie along one of the network's image.
        nodule: value of nodules.
    """
    masks, pixel_mm2 = mask[None], float(np.prod(spacing_yx_mm))
    if np.isfinite(pixel_mm2) and decision.min_mm:
        components.drop_small_nodules(masks, decision.min_mm, pixel_mm2, nodule=nodule)
    elif decision.min_px and not np.isfinite(pixel_mm2):
        components.drop_small_nodules(masks, decision.min_px * pixels_per_pixel, 1.0, nodule=nodule)
    return mask


def create_choices(nominal_pixel_mm):
    """Returns the Decisions that `tune` chooses from, thresholds outside and sizes inside.

    Args:
        nominal_pixel_mm: by which a least size becomes pixels where the spacing is not known.
    """
    return [
        Decision(threshold, size_mm, size_mm / nominal_pixel_mm)
        for threshold, size_mm in itertools.product(THRESHOLDS, SIZES_MM)
    ]


def count(cases, *, nominal_pixel_mm, nodule=NODULE):
    """Returns a ChoiceCounts of these cases; those of several sets of cases add up (`ChoiceCounts.__add__`).

    Args:
        cases: iterable of (probabilities float32 [H, W, C], reference mask uint8 [H, W], spacing_yx_mm two
            floats, NaN where unknown).
        nominal_pixel_mm: as `create_choices`.
        nodule: value of nodules.
    """
    choices = create_choices(nominal_pixel_mm)
    total = ChoiceCounts(0, np.zeros((len(choices), len(COUNTED))))
    for case in cases:
        total += ChoiceCounts(1, _count_case(choices, *case, nodule=nodule))
    return total


@dataclasses.dataclass(frozen=True)
class ChoiceCounts:
    """What each choice finds on some slices.

    Attributes:
        slices: how many.
        sums: float64 [choices, COUNTED].
    """

    slices: int
    sums: np.ndarray

    def __add__(self, other):
        return ChoiceCounts(self.slices + other.slices, self.sums + other.sums)


def choose(counts, *, max_false, nominal_pixel_mm):
    """Returns (Decision, what it and all others found, JSON types): the operating point of some ChoiceCounts.

    It finds the most nodules of those with at most `max_false` false ones a slice (where none has so few:
    those with the fewest); where none of these finds any it is the most likely class, as nothing speaks for
    another (a low threshold would make lungs nodule, and cost none of what is counted); among equals it has
    the best mean Dice over the slices with a nodule, then the fewest false ones, then the lowest threshold
    and size.

    Args:
        counts: ChoiceCounts.
        max_false: false nodules a slice.
        nominal_pixel_mm: that the counts were made with.

    Raises:
        InputError: no case has a nodule: nothing could be chosen.
    """
    choices = create_choices(nominal_pixel_mm)
    found, missed, false, dice, with_nodule = counts.sums.T
    if not with_nodule[0]:
        raise InputError(
            f"nodule threshold: none of the {counts.slices} validation slices has a nodule, so that none can be "
            "chosen; take a split that has some (data.split, data.split_seed)"
        )
    rows = [
        {**dataclasses.asdict(choice), "found": int(f), "false_per_slice": float(n), "dice": float(d)}
        for choice, f, n, d in zip(choices, found, false / counts.slices, dice / with_nodule, strict=True)
    ]
    allowed = max(max_false, min(row["false_per_slice"] for row in rows))
    best = max(
        (row for row in rows if row["false_per_slice"] <= allowed),
        key=lambda row: (
            row["found"],
            row["dice"],
            -row["false_per_slice"],
            -row["threshold"],
            -row["min_mm"],
        ),
    )
    decision = choices[rows.index(best)] if best["found"] else Decision()
    best = rows[choices.index(decision)]
    num_nodules = int((found + missed).max())  # as many for every choice
    about = {"slices": counts.slices, "nodules": num_nodules, "max_false_per_slice": max_false}
    return decision, {**about, "chosen": best, "all": rows}


def tune(cases, *, max_false, nominal_pixel_mm):
    """Returns (Decision, what it and all others found, JSON types): `choose` on the `count` of the cases."""
    counts = count(cases, nominal_pixel_mm=nominal_pixel_mm)
    return choose(counts, max_false=max_false, nominal_pixel_mm=nominal_pixel_mm)


def _count_case(choices, probabilities, reference, spacing_yx_mm, *, nodule=NODULE):
    """Returns what `decide` with each choice, scored by `matching.match_objects`, finds: float64 [choices, COUNTED].

    Only nodules count, so that what surrounds one that is too small need not be looked for; the pieces of a
    threshold are found once and left out by size.
    """
    others = np.delete(probabilities, nodule, axis=-1).max(axis=-1)
    true, known = reference == nodule, reference != UNKNOWN
    pieces = {
        weight: matching.find_overlaps(probabilities[..., nodule] * np.float32(weight) > others, true, known)
        for weight in {choice.nodule_weight for choice in choices}
    }
    pixel_mm2, counted = float(np.prod(spacing_yx_mm)), np.zeros((len(choices), len(COUNTED)))
    for row, choice in zip(counted, choices, strict=True):
        overlaps = pieces[choice.nodule_weight]
        least, scale = (choice.min_mm, pixel_mm2) if np.isfinite(pixel_mm2) else (choice.min_px, 1.0)
        kept = components.equivalent_diameter(overlaps.given_px * scale) >= least
        found = len(matching.match(overlaps, kept))
        total = overlaps.given_px[kept].sum() + true.sum()
        dice = 2.0 * overlaps.shared_px[kept[overlaps.given]].sum() / total if true.any() else 0.0
        row[:] = found, len(overlaps.true_px) - found, kept.sum() - found, dice, true.any()
    return counted
