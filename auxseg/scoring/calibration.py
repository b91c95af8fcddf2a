"""Calibration of probabilities: counts by bin, expected calibration error, reliability diagram."""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import NUM_CLASSES, UNKNOWN
from auxseg.base.errors import InputError

NUM_BINS = 15
"""Of the reliability diagram, equally wide."""


def count_calibration(*, probabilities, reference, num_classes=NUM_CLASSES, where=""):
    """Returns float64 [C + 1, NUM_BINS, 3]: pixels, sum of confidence and hits by bin of confidence.

    Entry c < C is class c against the rest; the last is the most probable class. Bins are equally wide; 1.0
    lies in the last.

    Args:
        probabilities: float [H, W, C], softmax.
        reference: uint8 [H, W]; pixels of `UNKNOWN` are left out.
        num_classes: C.
        where: appended to the name in an error.

    Raises:
        InputError: another shape, or the probabilities of a pixel do not sum to 1.
    """
    probabilities = np.asarray(probabilities, np.float32)
    expected = (*reference.shape, num_classes)
    if probabilities.shape != expected:
        raise InputError(f"probabilities{where}: got shape {probabilities.shape}, expected {expected}")
    if not np.allclose(probabilities.sum(-1), 1, atol=1e-2):
        raise InputError(
            f"probabilities{where}: got sums from {probabilities.sum(-1).min():.3g} to "
            f"{probabilities.sum(-1).max():.3g}, expected 1 in every pixel; give the softmax, not logits"
        )
    known = reference != UNKNOWN
    probabilities, reference = probabilities[known], reference[known]
    sums = [_bin(probabilities[..., index], reference == index) for index in range(num_classes)]
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


def calibration_error(bins, *, skip_lowest=False):
    """Returns the expected calibration error in [0, 1] from float [B, 3]: pixels, confidence, hits by bin.

    Source: Naeini et al., AAAI 2015: the mean gap of confidence and frequency, weighted by pixels.

    Args:
        bins: one class of `case_scores.CaseScores.calibration`, summed over cases.
        skip_lowest: leaves out the first bin. Most pixels are far from a small class and lie there, rightly
            sure; with them any network looks calibrated.
    """
    bins = np.asarray(bins, np.float64)[1 if skip_lowest else 0 :]
    total = bins[:, 0].sum()
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total) if total else float("nan")


def reliability(bins):
    """Returns two float64 [B]: mean confidence and frequency of hits by bin, NaN in an empty one."""
    bins = np.asarray(bins, np.float64)
    counts = np.where(bins[:, 0] > 0, bins[:, 0], np.nan)
    return bins[:, 1] / counts, bins[:, 2] / counts
