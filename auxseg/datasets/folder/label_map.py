"""What the values and names of other people's labels mean: `data.label_map`.

A label map is a text: the name of a convention, or pairs KEY:CLASS with commas, or both. A key is a value, or the name of
a structure; `*` is all that is not named. The classes are background, left_lung, right_lung, nodule and unknown.

    lungmask
    1:left_lung,2:right_lung,9:background
    totalsegmentator,200:nodule
    GTV-1:nodule,*:background
"""

from __future__ import annotations

import dataclasses
import re

from auxseg.base.classes import CLASS_NAMES, LEFT, NODULE, RIGHT, UNKNOWN
from auxseg.base.errors import InputError

CONVENTIONS = {
    "lungmask": {0: 0, 1: RIGHT, 2: LEFT},
    "luna16": {0: 0, 3: LEFT, 4: RIGHT, 5: 0},
    "totalsegmentator": {10: LEFT, 11: LEFT, 12: RIGHT, 13: RIGHT, 14: RIGHT, "*": 0},
    "msd_task06": {0: 0, 1: NODULE},
}
"""Label maps by name; `totalsegmentator` has the values of its second version."""
CLASSES = {**{name: value for value, name in enumerate(CLASS_NAMES)}, "unknown": UNKNOWN}
_REST = "*"
_OURS = (*range(len(CLASS_NAMES)), UNKNOWN)
_SIDES = {"left": LEFT, "l": LEFT, "lt": LEFT, "right": RIGHT, "r": RIGHT, "rt": RIGHT}
_NODULES = {"nodule", "nodules", "tumor", "tumors", "tumour", "tumours", "cancer", "lesion", "lesions"}
_NO_LUNG = {
    "background", "clear label", "airway", "airways", "trachea", "bronchi", "trachea bronchi", "bronchus",
    "bronchial tree", "body", "external", "heart",
    "esophagus", "oesophagus", "aorta", "spinal cord", "spinalcord", "cord", "mediastinum", "skin",
}  # fmt: skip
"""Structures whose names say that they are none of ours."""
_FILLERS = {
    "lung",
    "lungs",
    "lobe",
    "upper",
    "middle",
    "lower",
    "superior",
    "inferior",
    "of",
    "the",
    "and",
    "primary",
}


@dataclasses.dataclass(frozen=True)
class LabelMap:
    """What labels mean.

    Attributes:
        classes: {value (int) or name in small letters (str): class}; '*' is the rest.
        own: whether values that are not in `classes` stand for our own classes.
        setting: by which it is given, for messages.
    """

    classes: dict
    own: bool = False
    setting: str = "data.label_map"

    @property
    def knows_nodules(self):
        """Whether a nodule would be marked as one."""
        return self.own or NODULE in self.classes.values()

    def class_of(self, keys, path):
        """Returns the class of a structure.

        Args:
            keys: what it is called: names, the telling one first, and its value.
            path: where it is, for the message.

        Raises:
            InputError: the map does not say.
        """
        for key in keys:
            key = key if isinstance(key, int) else key.strip().lower()
            if key in self.classes:
                return self.classes[key]
        names = [key for key in keys if isinstance(key, str)]
        by_name = [found for found in map(recognise, names) if found is not None]
        if by_name:
            return by_name[0]
        if _REST in self.classes:
            return self.classes[_REST]
        if not names and self.own and keys[-1] in _OURS:
            return keys[-1]
        what = f"the structure {names[0]!r}" if names else f"the value {keys[-1]}"
        more = f"{names[0] if names else keys[-1]}:CLASS"
        # The first pair takes away that values stand for our own classes.
        more = (
            f"add {more}"
            if names or not self.own
            else f"name all values, such as 1:left_lung,2:right_lung,{more},"
        )
        raise InputError(
            f"{self.setting}: does not say what {what} of {path} is; {more} with one of {', '.join(CLASSES)}, or "
            f"*:background, or name a convention ({', '.join(CONVENTIONS)})"
        )


def parse(text, setting="data.label_map"):
    """Returns the `LabelMap` of a text; None or '': our own values 0 to 3 and 255, and names that speak for themselves.

    Args:
        text: pairs and conventions.
        setting: by which it is given, for messages.

    Raises:
        InputError: it is neither pairs nor a convention.
    """
    classes, parts = {}, [part.strip() for part in (text or "").split(",") if part.strip()]
    for part in parts:
        key, colon, name = part.rpartition(":")
        if not colon and part.lower() in CONVENTIONS:
            classes |= CONVENTIONS[part.lower()]
        elif colon and name.strip().lower() in CLASSES:
            key = key.strip()
            classes[int(key) if re.fullmatch("-?[0-9]+", key) else key.lower()] = CLASSES[
                name.strip().lower()
            ]
        else:
            raise InputError(
                f"{setting}: got {part!r}, expected VALUE:CLASS or NAME:CLASS with one of {', '.join(CLASSES)}, or a "
                f"convention: {', '.join(CONVENTIONS)}"
            )
    if parts and not any(isinstance(key, str) for key in classes):
        classes.setdefault(0, 0)
    return LabelMap(classes, own=not parts, setting=setting)


def recognise(name):
    """Returns the class that the name of a structure speaks of, or None: 'Lung_L', 'lung_upper_lobe_left', 'Nodule 3'."""
    words = [word for word in re.split("[^a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()) if word]
    if " ".join(words) in _NO_LUNG or any(word in _NO_LUNG for word in words) and "lung" not in words:
        return 0
    if any(word in _NODULES for word in words):
        return (
            NODULE
            if all(word in _NODULES | _FILLERS or word in _SIDES or word == "annotation" for word in words)
            else None
        )
    sides = {_SIDES[word] for word in words if word in _SIDES}
    rest = [word for word in words if word not in _SIDES]
    if len(sides) == 1 and {"lung", "lungs"} & set(rest) and all(word in _FILLERS for word in rest):
        return sides.pop()
    return None
