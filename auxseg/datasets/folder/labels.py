"""A folder of labels, of whichever software: what each is called, which files it has, what its values are named."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from auxseg.base import files
from auxseg.base.classes import LEFT, RIGHT, UNKNOWN
from auxseg.ct import dicom, label_files, own

LABEL_END = re.compile(
    r"(^|[-_. ])(labels?|masks?|segs?|segmentations?|lungs?|lungmask|nodules?|gt|reference|annotations?)$",
    re.IGNORECASE,
)
"""How the name of a label may end that begins with its scan's."""
CHANNEL = re.compile(r"_(\d{4})$")
"""How nnU-Net ends the names of images."""


@dataclasses.dataclass(frozen=True)
class Label:
    """Files that hold the labels of one scan.

    Attributes:
        name: as it is written, without the ending of a label.
        names: by which a scan may be called, in small letters.
        paths: files, or one folder of structures.
        study_uid: of DICOM, else ''.
    """

    name: str
    names: frozenset[str]
    paths: tuple[pathlib.Path, ...]
    study_uid: str = ""


def list_labels(folder):
    """Returns (`Label`s of a folder by name, paths that are none); of folders that `predict` wrote the masks."""
    if (folder / own.DONE).is_file():
        return [_read_own(folder)], []
    labels, others = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if (entry / own.DONE).is_file():
            labels.append(_read_own(entry))
            continue
        paths, study_uid = _label_paths(entry)
        if paths:
            name = label_files.stem(entry) if entry.is_file() else entry.name
            labels.append(
                Label(LABEL_END.sub("", name) or name, _names(name, CHANNEL, LABEL_END), paths, study_uid)
            )
        else:
            others.append(entry)
    return labels, others


def _read_own(folder):
    """Returns the `Label` of a scan that `predict` segmented."""
    about = files.read_object(folder / own.DONE)
    masks = [folder / name for name in about.get("files", ()) if name.startswith("mask.")]
    name = str(about.get("name", folder.name))
    return Label(name, _names(name, CHANNEL), tuple(masks[:1]))


def _names(name, *endings):
    """Returns the names that a label's name stands for, in small letters: itself, and without each ending."""
    names = {name}
    for ending in endings:
        names |= {ending.sub("", one) for one in names}
    return frozenset(one.lower() for one in names if one)


def _label_paths(entry):
    """Returns (paths, StudyInstanceUID or '') of an entry of a folder of labels; () where it is none."""
    if entry.is_dir():
        if label_files.list_structures(entry):
            return (entry,), ""
        inside = [
            file for file in sorted(entry.rglob("*")) if file.is_file() and label_files.read_modality(file)
        ]
        return tuple(inside), dicom.read_file(inside[0]).study_uid if inside else ""
    if label_files.is_image(entry):
        return (entry,), ""
    return ((entry,), dicom.read_file(entry).study_uid) if label_files.read_modality(entry) else ((), "")


def read_value_names(labels):
    """Returns {value: name} of the `labels` of a dataset.json: MSD's {'1': 'cancer'}, nnU-Net's {'cancer': 1}."""
    names = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        for number, name in ((key, value), (value, key)):
            if isinstance(name, str) and re.fullmatch("[0-9]+", str(number)):
                names[int(number)] = name
                break
    return names


def read_classes(paths, grid, scratch, meaning, value_names):
    """Returns the classes of labels on a grid, uint8 [D, H, W] in a file of `scratch`.

    Args:
        paths: of a `Label`.
        grid: canonical `geometry.Geometry`.
        scratch: folder, which must outlive the array.
        meaning: `label_map.LabelMap`.
        value_names: {value: name}, of `read_value_names`.

    Raises:
        InputError: as `label_files.read_labels`; the map does not say what a value is.
    """

    def class_of(keys, path):
        names = [value_names[key] for key in keys if key in value_names]
        return meaning.class_of((*names, *keys), path)

    return label_files.read_labels(paths, grid, scratch, class_of)


def forget_unmarked(masks):
    """Makes what is not marked unknown, in place, where no lung is marked: every chest has one, so it was not looked for."""
    if not any(((mask == LEFT) | (mask == RIGHT)).any() for mask in masks):
        for mask in masks:
            mask[mask == 0] = UNKNOWN
