"""A folder of whole scans with labels: the settings, and the slices that are read from it.

`listing` says which file is what, `label_map` what the labels mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile

import numpy as np
from scipy import ndimage

from auxseg.base.classes import LEFT, NODULE, RIGHT
from auxseg.base.errors import InputError, check_choice
from auxseg.ct import body, checks, headers, label_files, scans
from auxseg.datasets import nodules
from auxseg.datasets.folder import label_map, labels
from auxseg.datasets.folder.listing import list_folder
from auxseg.datasets.labels import side_columns
from auxseg.datasets.slices import SLICES, Images, Slice, choose_slices, name_of_size

__all__ = [
    "Settings",
    "check_scans",
    "create_nodule_reader",
    "files_of",
    "fingerprint",
    "list_folder",
    "open_images",
    "read_slices",
]
FIELDS = ("scan", "body")
_NUM_CHECKED = 24
_EIGHT_NEIGHBOURS = np.ones((3, 3))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides which slices are read and what their masks hold; see `configs/base.py`.

    Attributes:
        size_yx: rows and columns after resizing; None: slices stay as they are.
        slices: one of `SLICES`.
        label_map: text of `label_map.parse`, or None.
        field: one of `FIELDS`.
    """

    size_yx: tuple[int, int] | None = (320, 320)
    slices: str = "middle"
    label_map: str | None = None
    field: str = "scan"

    def __post_init__(self):
        check_choice("data.slices", self.slices, SLICES)
        check_choice("data.field", self.field, FIELDS)
        label_map.parse(self.label_map)

    @property
    def name(self):
        """A name that carries every setting, such as 'lung-lungmask-320x320'."""
        text = self.label_map or "own"
        word = text if text.isalnum() else hashlib.sha256(text.encode()).hexdigest()[:8]
        cut = "-body" if self.field == "body" else ""
        return f"{self.slices}-{word}{cut}-{name_of_size(self.size_yx)}"


def fingerprint(folder, settings):
    """Returns 16 hex digits that change when the files or the settings do; no file is read.

    Files count by place, size and time of change.
    """
    digest = hashlib.sha256(settings.name.encode())
    for file in sorted(_files_of(folder)):
        if file.exists():
            stat = file.stat()
            digest.update(f"{file.relative_to(folder.path)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    for scan in folder.scans:
        digest.update(f"{scan.uid}|{scan.patient}|{scan.value_names}\n".encode())
    digest.update("\n".join(folder.problems).encode())
    return digest.hexdigest()[:16]


def _files_of(folder):
    """Returns the files that the slices depend on."""
    files = {folder.annotations} if folder.annotations else set()
    return files.union(*map(files_of, folder.scans))


def files_of(scan):
    """Returns the files that a scan and its labels are in; the labels may say which series of a study is taken."""
    series = [path for one in scan.source.series for path in one.paths]
    labels = [
        part for one in scan.labels for part in (label_files.list_structures(one) if one.is_dir() else [one])
    ]
    paths = [*(series or [scan.source.path]), *labels]
    return sorted({file for path in paths for file in (path, *headers.find_voxel_files(path))})


def create_nodule_reader(folder, settings):
    """Returns the function scan -> its nodules of `annotations.csv` as spheres; None where there is no such file.

    Raises:
        InputError: the annotations cannot be read.
    """
    del settings
    if folder.annotations is None:
        return lambda scan: None
    spheres = nodules.read_annotations(folder.annotations)

    def nodules_of(scan):
        return [
            sphere for uid in dict.fromkeys((scan.uid, *scan.series_uids)) for sphere in spheres.get(uid, ())
        ]

    return nodules_of


def check_scans(folder, settings, nodules_of):
    """Returns (scans to read, one line for each that cannot be used, notes); no voxel is read."""
    del settings
    notes = list(folder.notes)
    if folder.annotations is not None and not any(map(nodules_of, folder.scans)):
        notes.append(f"{folder.annotations}: none of its series is the name or the series of a scan")
    return list(folder.scans), list(folder.problems), tuple(notes)


def read_slices(scan, settings, nodules_of):
    """Returns the slices of a scan that the settings ask for, and notes.

    Args:
        scan: `listing.Scan`.
        settings: `Settings`; `size_yx` has no effect.
        nodules_of: from `create_nodule_reader`.

    Returns:
        (list of `Slice`s in rising order, tuple of str); no slice where 'nodule' finds none.

    Raises:
        InputError: the scan or a label cannot be used, they do not fit, or there is no lung where lung is asked for.
    """
    meaning = label_map.parse(settings.label_map)
    with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
        image = _open(scan, scratch)
        masks = labels.read_classes(scan.labels, image.geometry, scratch, meaning, scan.value_names)
        labels.forget_unmarked(masks)
        spheres = nodules_of(scan)
        _paint_spheres(masks, spheres, image.geometry)
        chosen = _choose(masks, settings.slices, scan.uid)
        _check_sides(masks, chosen)
        box = _find_box(image, settings)
        knows = spheres is not None or meaning.knows_nodules
        slices = [_read_slice(image, masks, index, box, knows) for index in chosen]
    return slices, tuple(
        f"{scan.uid}: {one.text}" for one in image.findings if one.severity == checks.WARNING
    )


@contextlib.contextmanager
def open_images(scan, settings):
    """Yields the `Images` of a scan.

    Raises:
        InputError: as `read_slices`.
    """
    with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
        image = _open(scan, scratch)
        box = _find_box(image, settings)
        yield Images(image.num_slices, _spacing(image)[0], lambda index: _read_image(image, index, box))


def _open(scan, scratch):
    """Returns the `scans.Scan`: of a study the series that the labels were drawn on.

    Raises:
        InputError: as `scans.open_scan`; the values are no HU.
    """
    referenced = {label_files.read_referenced(path) for path in scan.labels} & set(scan.series_uids)
    image = scans.open_scan(scan.source, scratch, series=min(referenced) if len(referenced) == 1 else None)
    checks.raise_errors(image.findings, image.path)
    indices = checks.pick_slices(image.num_slices, _NUM_CHECKED)
    images = np.concatenate([image.read(int(index), int(index) + 1) for index in indices])
    checks.raise_errors(checks.check_values(images, image.dtype), image.path)
    return image


def _paint_spheres(masks, spheres, grid):
    patches = [nodules.sphere_patches(grid, sphere) for sphere in spheres or ()]
    for index, crossing in nodules.by_slice(patches).items():
        masks[index] = nodules.paint(masks[index], crossing)


def _choose(masks, slices, uid):
    """Returns the rising indices of the slices to read."""
    if slices == "middle":
        return [len(masks) // 2]
    lung = np.array([bool(((mask == LEFT) | (mask == RIGHT)).any()) for mask in masks])
    marked = np.array([bool((mask == NODULE).any()) for mask in masks])
    if slices == "lung" and not lung.any():
        raise InputError("the labels have no lung (data.slices='lung' takes the slices with lung)")
    return choose_slices(lung if lung.any() else ~marked, np.flatnonzero(marked).tolist(), slices, uid)


def _check_sides(masks, chosen):
    """Raises an InputError where the left lung lies on the patient's right."""
    seen = [masks[chosen[k]] for k in checks.pick_slices(len(chosen), _NUM_CHECKED)] if chosen else []
    if seen and side_columns(np.stack(seen), LEFT, RIGHT) < 0:
        raise InputError(
            "the labels have the left lung on the patient's right: which value is which? (data.label_map; lungmask has 1 "
            "for the right lung)"
        )


def _find_box(image, settings):
    """Returns the `body.Box` that slices are cut to, None for whole ones."""
    if settings.field == "scan":
        return None
    return body.find_body(image.read, image.num_slices, _spacing(image)[1:])


def _spacing(image):
    return image.geometry.spacing_zyx_mm if image.has_geometry else (np.nan,) * 3


def _read_image(image, index, box):
    hu = image.read(index, index + 1)[0]
    return hu if box is None else box.cut(hu)


def _read_slice(image, masks, index, box, knows_nodules):
    """Returns a `Slice`; the number of nodules is -1 where the labels do not know them."""
    hu, mask = _read_image(image, index, box), np.array(masks[index])
    mask = mask if box is None else box.cut_mask(mask)
    count = ndimage.label(mask == NODULE, _EIGHT_NEIGHBOURS)[1] if knows_nodules else -1
    return Slice(index, hu, mask, _spacing(image), count)
