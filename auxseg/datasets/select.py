"""A data set of lungs and nodules with the classes that a network is to tell apart."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from auxseg.base.classes import BOTH_LUNGS, CLASS_NAMES, LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.errors import InputError

MEMBERS = {"left_lung": (LEFT,), "right_lung": (RIGHT,), BOTH_LUNGS: (LEFT, RIGHT), "nodule": (NODULE,)}
"""Values of `CLASS_NAMES` that a class takes together."""


def select(dataset, classes):
    """Returns a `Dataset` whose masks hold the places of `classes`.

    What is in none of them becomes background, but for nodules: a pixel of theirs becomes what the nearest
    pixel without a nodule is, so that lungs have no holes.

    Args:
        dataset: with masks of `CLASS_NAMES`.
        classes: names, 'background' first, the others among `MEMBERS`.

    Raises:
        InputError: a class that the data set does not have, or two that take the same pixels.
    """
    if classes == CLASS_NAMES:
        return dataset
    values = _values(classes, dataset.name)

    def read(indices):
        images, masks = dataset.read(indices)
        return images, np.stack([to_classes(mask, values) for mask in masks]) if len(masks) else masks

    table = dataset.table
    present = [_any_of(table.labels[:, list(MEMBERS[name]) if name in MEMBERS else [0]]) for name in classes]
    return dataclasses.replace(
        dataset,
        name=f"{dataset.name}-{'-'.join(classes[1:])}",
        table=dataclasses.replace(table, labels=np.stack(present, axis=1), classes=classes),
        read=read,
        read_native_mask=lambda index: to_classes(dataset.read_native_mask(index), values),
    )


def _any_of(labels):
    """Returns uint8 [N] of labels [N, members]: 1 where one of them is, else `UNKNOWN` where one may be, else 0."""
    return np.where((labels == 1).any(axis=1), 1, labels.max(axis=1)).astype(np.uint8)


def _values(classes, where):
    """Returns uint8 [256]: the place in `classes` of each of `CLASS_NAMES`; `UNKNOWN` stays."""
    values = np.zeros(UNKNOWN + 1, np.uint8)
    values[UNKNOWN] = UNKNOWN
    for place, name in enumerate(classes[1:], start=1):
        if name not in MEMBERS or values[list(MEMBERS[name])].any():
            raise InputError(
                f"data.classes: got {name!r} among {classes}, expected different structures of {where}: "
                f"{', '.join(MEMBERS)}; 'lung' is both lungs"
            )
        values[list(MEMBERS[name])] = place
    return values


def to_classes(mask, values):
    """Returns a mask uint8 [H, W] of `CLASS_NAMES` with the values of other classes.

    Args:
        mask: uint8 [H, W].
        values: uint8 [256], the new value of each old one; a nodule of value 0 goes to what is nearest.
    """
    nodule = mask == NODULE
    if values[NODULE] == 0 and nodule.any() and not nodule.all():
        places = ndimage.distance_transform_edt(nodule, return_distances=False, return_indices=True)
        mask = mask[tuple(places)]
    return values[mask]
