"""What a setting was before it was there: runs and bundles of then are read, judged and resumed as they were.

Whoever adds a setting to `configs/base.py` names here the value at which everything is as it was without it.
"""

from __future__ import annotations

from auxseg.base.classes import CLASS_NAMES

ADDED = {
    "data": {
        "extra_dir": None,
        "num_folds": 5,
        "slab": 1,
        "field": "scan",
        "classes": list(CLASS_NAMES),
        "label_map": None,
        "meanings": [],
        "sources": {},
        "from_subsets": [],
        "target": "consensus",
        "windows": 12,
        "mm_per_pixel": None,
    },
    "model": {"dropout": 0.5, "deep_supervision": True, "gate": "additive", "lung_first": False},
    "loss": {"shuffle_aux_labels": False, "overlap_weights": [1.0], "hard_fraction": 1.0},
    "optim": {"cosine_epochs": 0},
    "train": {
        "accumulate_steps": 1,
        "nodule_fraction": None,
        "bn_refresh_batches": 0,
        "num_devices": None,
        "deterministic": False,
        "wait_minutes": 240.0,
        "freeze": [],
    },
    "insert": {
        "enabled": False,
        "seed": 1,
        "max_nodules": 2,
        "probability": 0.4,
        "diameter_mm": [3.25, 30.0],
        "kinds": [0.8, 0.1, 0.1],
        "sites": [0.4, 0.3, 0.3],
        "shapes": "drawn",
        "blur_mm": 0.8,
        "outline_mm": 0.2,
        "field_mm": 350.0,
    },
    "augment": {"hu_scale_fraction": 0.0},
    "eval": {"num_pictures": 0, "tune_nodules": False, "max_false_per_slice": 1.0},
}
"""{group: {setting: value}}, JSON types."""
GONE = {"data": ("workers",), "model": ("num_classes",)}
"""Settings that are no more: how many processes prepared scans, and the number of classes, which was always four."""
_BY_CLASS = ("class_weights", "overlap_weights", "tversky_alpha", "tversky_beta")
"""Of `loss`: a number for all classes, which was once stated for each of the four, or alone."""


def complete(settings):
    """Returns settings, JSON types, with those that were not there yet, and without those that are no more."""
    found = dict(settings)
    for group, values in ADDED.items():
        own = found.get(group, {})
        if isinstance(own, dict):
            found[group] = {**values, **_step_of(group, own), **own}
    for group, names in GONE.items():
        if isinstance(found.get(group), dict):
            found[group] = {name: value for name, value in found[group].items() if name not in names}
    if isinstance(found.get("loss"), dict):
        found["loss"] = {name: _by_class(name, value) for name, value in found["loss"].items()}
    return found


def _step_of(group, own):
    """Returns the distance of a slab's slices: they were neighbours; of single slices it means nothing."""
    if group != "data":
        return {}
    return {"slab_step_mm": 2.5 if own.get("slab", 1) == 1 else 0.0}


def _by_class(name, value):
    """Returns a number that is the same for all classes as the list of one that it is written as."""
    if name not in _BY_CLASS:
        return value
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values[:1] if len(set(map(str, values))) == 1 else values
