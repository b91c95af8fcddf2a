"""What the values of a mask mean: classes, LUNA16's own values, label vectors.

Classes: 0 background, 1 left lung, 2 right lung, 3 nodule; left and right are the patient's. LUNA16's
`seg-lungs-LUNA16` has 3 for the left lung, 4 for the right lung and 5 for the trachea with the main bronchi:
it holds no nodules. `UNKNOWN` (255) is a pixel that nothing is known of, in every source.
"""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import LEFT, NODULE, NUM_CLASSES, RIGHT, UNKNOWN
from auxseg.base.errors import InputError, check_choice

LUNA16_LEFT, LUNA16_RIGHT, LUNA16_AIRWAY = 3, 4, 5
LUNA16_VALUES = (0, LUNA16_LEFT, LUNA16_RIGHT, LUNA16_AIRWAY)
LABEL_SETS = ("anatomy", "airway_as_nodule")
"""Choices of `data.labels`.

'anatomy': left lung, right lung, and nodules from annotations; the airway is background.
'airway_as_nodule': the paper's reading of the values 3, 4 and 5 as left lung, right lung and nodule (3.2).
What it calls a nodule is the airway. Only there to reproduce the paper's numbers.
"""


def from_luna16(mask, labels, *, where):
    """Returns class indices of a mask with LUNA16's values.

    Args:
        mask: integers [...], values 0, 3, 4, 5, and `UNKNOWN`, which stays.
        labels: one of `LABEL_SETS`.
        where: what the mask belongs to, for the message.

    Returns:
        uint8 [...]: without nodules for 'anatomy', which are painted afterwards.

    Raises:
        InputError: another value in the mask.
    """
    check_choice("data.labels", labels, LABEL_SETS)
    check_values(mask, LUNA16_VALUES, where=where)
    classes = np.zeros(256, np.uint8)
    classes[[LUNA16_LEFT, LUNA16_RIGHT, UNKNOWN]] = LEFT, RIGHT, UNKNOWN
    if labels == "airway_as_nodule":
        classes[LUNA16_AIRWAY] = NODULE
    return classes[np.asarray(mask).astype(np.uint8)]


def check_values(mask, expected, *, where):
    """Raises an InputError that names the values of `mask` (integers or whole floats) not in `expected` or `UNKNOWN`."""
    bad = [value for value in distinct(mask).tolist() if value not in expected and value != UNKNOWN]
    if bad:
        raise InputError(
            f"mask values: got {', '.join(map(str, bad[:8]))}{' ...' if len(bad) > 8 else ''}, expected only "
            f"{', '.join(map(str, expected))}, in {where}"
        )


def distinct(mask):
    """Returns the values in a mask in rising order, at most 300; fast for whole numbers from 0 to 255."""
    if mask.dtype.kind in "iu" and mask.size and mask.min() >= 0 and mask.max() < 256:
        return np.flatnonzero(np.bincount(mask.ravel(), minlength=1))
    return np.unique(mask)[:300]


def side_columns(mask, left, right):
    """Returns how many columns the centre of `left` lies to the right of that of `right` in the image.

    Args:
        mask: [..., H, W] in canonical orientation: above 0 where the sides are right.
        left: value of the left lung.
        right: value of the right lung.

    Returns:
        float, NaN where one of the lungs is not there.
    """
    leading = tuple(range(mask.ndim - 1))
    counts = [np.count_nonzero(mask == value, axis=leading) for value in (left, right)]
    if not all(count.any() for count in counts):
        return np.nan
    columns = np.arange(mask.shape[-1])
    centres = [columns @ count / count.sum() for count in counts]
    return centres[0] - centres[1]


def label_vector(mask, num_classes=NUM_CLASSES):
    """Returns which classes have a pixel in a mask: uint8 [C], 1 where one has.

    A class without one is 0, or `UNKNOWN` where the mask has unknown pixels, which might be of it.
    """
    counts = np.bincount(np.ravel(mask), minlength=UNKNOWN + 1)
    return np.where(counts[:num_classes] > 0, 1, UNKNOWN if counts[UNKNOWN] else 0).astype(np.uint8)
