"""The words that all other files share: the classes of a mask, by name and by value.

Letters are fixed throughout: N examples, D slices, H rows, W columns, C classes or channels.

A set of classes is a tuple of names, in which the place of a name is its mask value: `CLASS_NAMES`, or others
that the data have (`data.classes`). What depends on a certain class asks for it by name (`value_of`).
"""

from __future__ import annotations

import re

import numpy as np

from auxseg.base.errors import InputError

CLASS_NAMES = ("background", "left_lung", "right_lung", "nodule")
"""Class names by mask value, unless the data have others; left and right are the patient's."""
NUM_CLASSES = len(CLASS_NAMES)
LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))
BOTH_LUNGS = "lung"
"""Name of a class that both lungs are together."""
UNKNOWN = 255
"""The value of a pixel that nothing is known of, in every source: it costs no loss and no score."""
NO_CLASS = 254
"""A value that no pixel of a mask has: that of a class which is not there."""


class ByClass(dict):
    """Values by class name; a name that is not there has the one that `missing(name)` gives."""

    def __init__(self, missing, **known):
        super().__init__(**known)
        self._missing = missing

    def __missing__(self, name):
        return self._missing(name)


_MORE_COLOURS = ("#cb4b16", "#6c71c4", "#2aa198", "#b58900", "#d33682")
COLOURS = ByClass(
    lambda name: _MORE_COLOURS[sum(name.encode()) % len(_MORE_COLOURS)],
    left_lung="#d6303a",
    right_lung="#1f9d55",
    nodule="#2563eb",
    lung="#d6303a",
)
"""As in the paper's figures: left lung red, right lung green, nodule blue."""
DIFFERENCE_COLOUR = "#f5c400"
"""Where two masks differ: yellow, as in the paper's figures."""
AIR_HU = -1024
"""The least HU that means anything: scanners write this or less outside their field of view."""


def to_rgb(colour):
    """Returns (red, green, blue), each 0 to 255, of a colour such as '#d6303a'."""
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def check_classes(names, *, where="data.classes"):
    """Returns class names as a tuple.

    Args:
        names: by mask value.
        where: name of the setting, for the message.

    Raises:
        InputError: fewer than two, more than 15, the first is not 'background', or a name that is there twice or
            is no word of small letters, digits and underscores.
    """
    names = tuple(names) if isinstance(names, (tuple, list)) else (names,)
    sound = all(isinstance(name, str) and re.fullmatch("[a-z][a-z0-9_]*", name) for name in names)
    if not sound or not 2 <= len(set(names)) == len(names) <= 15 or names[0] != CLASS_NAMES[0]:
        raise InputError(
            f"{where}: got {names}, expected 2 to 15 different names by mask value, words of small letters, the "
            "first 'background'"
        )
    return names


def value_of(name, classes=CLASS_NAMES):
    """Returns the mask value of a class, or `NO_CLASS` where `classes` lacks it."""
    return classes.index(name) if name in classes else NO_CLASS


def knows(meanings):
    """Returns which classes labels tell apart, bool [..., C]: their value means them alone, and no other value may.

    Args:
        meanings: [..., C, C], above 0 where a value (row) may mean a class (column); NumPy or JAX.
    """
    only = (meanings > 0) == np.broadcast_to(np.eye(meanings.shape[-1], dtype=bool), meanings.shape)
    return only.all(axis=-1) & only.all(axis=-2)


def mirrored(classes=CLASS_NAMES):
    """Returns the value that each class has in the mirror, a tuple: 'left_...' and 'right_...' change places."""
    other = {"left": "right", "right": "left"}

    def turned(name):
        side, _, rest = name.partition("_")
        twin = f"{other.get(side)}_{rest}"
        return twin if twin in classes else name

    return tuple(classes.index(turned(name)) for name in classes)


MIRROR = mirrored()
"""Of `CLASS_NAMES`."""


def classes_of_masks(classes):
    """Returns the names by value of the masks of a scan: `CLASS_NAMES`, unless a network has a class beside them.

    Args:
        classes: of the network.
    """
    return CLASS_NAMES if set(classes) <= set(CLASS_NAMES) else tuple(classes)


def lung_values(classes=CLASS_NAMES):
    """Returns the values of the lungs among `classes`: the left one, the right one, both as one."""
    return tuple(classes.index(name) for name in (*CLASS_NAMES[LEFT:NODULE], BOTH_LUNGS) if name in classes)


def classes_of(data_config):
    """Returns the class names of `config.data`; settings of before `data.classes` mean `CLASS_NAMES`."""
    return check_classes(getattr(data_config, "classes", CLASS_NAMES))
