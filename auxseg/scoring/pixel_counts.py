"""Counts of pixels on the device and the scores made of them: summed first, divided once.

Letters: N cases, H rows, W columns, C classes.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from auxseg.base.classes import UNKNOWN, knows


class Counts(NamedTuple):
    """Pixels per case and class, float32 [N, C]: exact up to 2^24 pixels.

    Attributes:
        overlap: in prediction and reference.
        predicted: in the prediction.
        reference: in the reference.
        known: bool [N, C], whether the case's labels tell the class from all others; None: they do. Of a class that
            is not known the counts are those of a value, see `relabel`.
    """

    overlap: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray
    known: np.ndarray | None = None


def count_pixels(*, predictions, masks, num_classes, meanings=None):
    """Returns the Counts of hard masks.

    Args:
        predictions: integers [N, H, W], class indices.
        masks: integers [N, H, W], class indices; pixels of `UNKNOWN` are in no count.
        num_classes: C.
        meanings: [N, C, C], 1 where a value (second axis) may mean a class (third); None: each means its own.
    """
    classes, known = jnp.arange(num_classes), None
    if meanings is not None:
        predictions = relabel(predictions, masks, meanings)
        known = knows(meanings)
    predictions = jnp.where(masks == UNKNOWN, -1, predictions.astype(jnp.int32))
    predicted = predictions[..., None] == classes[None, None, None]
    reference = masks[..., None].astype(jnp.int32) == classes[None, None, None]
    pixels = (predicted & reference, predicted, reference)
    return Counts(*(p.sum(axis=(1, 2), dtype=jnp.float32) for p in pixels), known)


def relabel(predictions, masks, meanings):
    """Returns predicted values in place of predicted classes, integers [N, H, W].

    A predicted class that the label may mean becomes the label; another becomes the first value that may mean it.

    Args:
        predictions: integers [N, H, W], class indices.
        masks: integers [N, H, W], values and `UNKNOWN`.
        meanings: [N, C, C], 1 where a value (second axis) may mean a class (third).
    """
    num = meanings.shape[-1]
    labels = jnp.where(masks == UNKNOWN, 0, masks).astype(jnp.int32)
    codes = (labels * num + predictions).reshape(len(masks), -1)
    first = jnp.argmax(meanings > 0, axis=1)
    flat = jnp.where(
        jnp.take_along_axis(meanings.reshape(len(meanings), -1) > 0, codes, axis=1),
        labels.reshape(len(masks), -1),
        jnp.take_along_axis(first, predictions.reshape(len(masks), -1), axis=1),
    )
    return flat.reshape(masks.shape)


def has_class(counts):
    """Returns bool [N, C]: whether the reference has the class, and its labels know it."""
    present = counts.reference > 0
    return present if counts.known is None else present & counts.known


def dice_per_case(counts):
    """Returns hard Dice, float64 [N, C]; NaN where neither mask has the class (not counted)."""
    overlap, predicted, reference = (np.asarray(c, np.float64) for c in counts[:3])
    total = predicted + reference
    return np.divide(2.0 * overlap, total, out=np.full(total.shape, np.nan), where=total > 0)


def mean_dice(counts):
    """Returns (mean Dice float64 [C], number of cases int [C]) over the cases whose reference has the class.

    A class that no reference has gets NaN and 0. A case without the class in its reference but with it
    in the prediction is a false positive: it is counted by `false_positive_cases`, not here.
    """
    present = np.asarray(has_class(counts))
    dice = np.where(present, np.nan_to_num(dice_per_case(counts)), 0.0)
    number = present.sum(axis=0)
    return np.divide(dice.sum(axis=0), number, out=np.full(number.shape, np.nan), where=number > 0), number


def false_positive_cases(counts):
    """Returns how many cases predict a class that their reference is known not to have, int [C]."""
    false = (np.asarray(counts.reference) == 0) & (np.asarray(counts.predicted) > 0)
    return (false if counts.known is None else false & np.asarray(counts.known)).sum(axis=0)


def pooled_dsc(counts):
    """Returns the paper's score: Dice over the pixels of all cases and classes, background included.

    For hard masks this equals `pooled_accuracy`: every pixel has one class in each mask. Two large
    lungs and the background decide it; a nodule does not. Never report it alone.
    """
    overlap, predicted, reference = (np.asarray(c, np.float64).sum() for c in counts[:3])
    return float(2.0 * overlap / (predicted + reference)) if reference else float("nan")


def pooled_accuracy(counts):
    """Returns the fraction of the known pixels of all cases that have the right class; NaN where none is known."""
    overlap, _, reference = (np.asarray(c, np.float64).sum() for c in counts[:3])
    return float(overlap / reference) if reference else float("nan")
