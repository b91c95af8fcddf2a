"""Counts of pixels on the device and the scores made of them: summed first, divided once.

Letters: N cases, H rows, W columns, C classes.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from auxseg.base.classes import UNKNOWN


class Counts(NamedTuple):
    """Pixels per case and class, float32 [N, C]: exact up to 2^24 pixels.

    Attributes:
        overlap: in prediction and reference.
        predicted: in the prediction.
        reference: in the reference.
    """

    overlap: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray


def count_pixels(*, predictions, masks, num_classes):
    """Returns the Counts of hard masks.

    Args:
        predictions: integers [N, H, W], class indices.
        masks: integers [N, H, W], class indices; pixels of `UNKNOWN` are in no count.
        num_classes: C.
    """
    classes = jnp.arange(num_classes)
    predictions = jnp.where(masks == UNKNOWN, -1, predictions.astype(jnp.int32))
    predicted = predictions[..., None] == classes[None, None, None]
    reference = masks[..., None].astype(jnp.int32) == classes[None, None, None]
    pixels = (predicted & reference, predicted, reference)
    return Counts(*(p.sum(axis=(1, 2), dtype=jnp.float32) for p in pixels))


def dice_per_case(counts):
    """Returns hard Dice, float64 [N, C]; NaN where neither mask has the class (not counted)."""
    overlap, predicted, reference = (np.asarray(c, np.float64) for c in counts)
    total = predicted + reference
    return np.divide(2.0 * overlap, total, out=np.full(total.shape, np.nan), where=total > 0)


def mean_dice(counts):
    """Returns (mean Dice float64 [C], number of cases int [C]) over the cases whose reference has the class.

    A class that no reference has gets NaN and 0. A case without the class in its reference but with it
    in the prediction is a false positive: it is counted by `false_positive_cases`, not here.
    """
    present = np.asarray(counts.reference) > 0
    dice = np.where(present, np.nan_to_num(dice_per_case(counts)), 0.0)
    number = present.sum(axis=0)
    return np.divide(dice.sum(axis=0), number, out=np.full(number.shape, np.nan), where=number > 0), number


def false_positive_cases(counts):
    """Returns how many cases predict a class that their reference does not have, int [C]."""
    return ((np.asarray(counts.reference) == 0) & (np.asarray(counts.predicted) > 0)).sum(axis=0)


def pooled_dsc(counts):
    """Returns the paper's score: Dice over the pixels of all cases and classes, background included.

    For hard masks this equals `pooled_accuracy`: every pixel has one class in each mask. Two large
    lungs and the background decide it; a nodule does not. Never report it alone.
    """
    overlap, predicted, reference = (np.asarray(c, np.float64).sum() for c in counts)
    return float(2.0 * overlap / (predicted + reference)) if reference else float("nan")


def pooled_accuracy(counts):
    """Returns the fraction of the known pixels of all cases that have the right class; NaN where none is known."""
    overlap, _, reference = (np.asarray(c, np.float64).sum() for c in counts)
    return float(overlap / reference) if reference else float("nan")
