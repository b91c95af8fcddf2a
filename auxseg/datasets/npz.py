"""The paper's own storage: slices with masks in `.npz` files.

Three forms are read:
* a folder of `.npz`, one slice each, with the arrays `image` [H, W] in HU and `mask` [H, W];
* the same with an `index.csv` that says more about each slice (columns below);
* one `.npz` with stacked arrays: `images` [N, H, W] and `masks` [N, H, W], or `image` and `mask`.
A last axis of length 1 is accepted. Nothing is ever unpickled.

Masks hold class indices, the places of the names in `data.classes`: 0 to 3, unless other classes are given, and 255
where nothing is known. They
may hold LUNA16's own 0, 3, 4, 5 with `data.labels='airway_as_nodule'` (which files of the paper have). lungmask
writes 1 for the right lung and 2 for the left: `data.classes=('background','right_lung','left_lung')`. A slice has no direction matrix: rows must run from anterior to posterior and columns from
the patient's right to the left. The sides of the lungs are checked over all slices.

Columns of `index.csv`, all optional but `id`: `id` (the file's name without `.npz`, or without `ID_` before
it), `slice_index`, `series_uid`, `patient`, `subset`, `pixel_spacing_mm`, `row_spacing_mm` (only where rows
lie at another distance than columns), `slice_spacing_mm`, `num_nodules`. An empty field is unknown.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import threading
import zipfile
import zlib

import numpy as np

from auxseg.base import files, npz
from auxseg.base.classes import CLASS_NAMES, UNKNOWN, value_of
from auxseg.base.errors import InputError
from auxseg.ct import checks
from auxseg.datasets import resize
from auxseg.datasets import scale as scales
from auxseg.datasets.dataset import CaseTable, Dataset
from auxseg.datasets.labels import (
    LUNA16_VALUES,
    check_values,
    distinct,
    from_luna16,
    label_vector,
    side_columns,
)

NAMES = (("image", "mask"), ("images", "masks"))
"""Names of the two arrays in a file."""
_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)

# RuntimeError: an encrypted archive, or (NotImplementedError) one packed in a way that Python cannot unpack

MOST_BYTES = 1 << 36
"""Of one array: a stack of all of LUNA16's lung slices."""
_HEADER_LOCK = threading.Lock()


def read_npz(path, *, size_yx, labels="anatomy", classes=CLASS_NAMES, scale=None):
    """Returns the `Dataset` of a folder of `.npz` files, or of one file with stacked arrays.

    All masks are read once, here, for the table; images are read when asked for.

    Args:
        path: the folder or file.
        size_yx: rows and columns of what the data set's `read` returns; with a scale, of windows of it.
        labels: one of `labels.LABEL_SETS`.
        classes: names by mask value.
        scale: of `scale.read_scale`.

    Raises:
        InputError: nothing there, a file that cannot be read, arrays of other names or shapes, mask values
            that are no classes, an index that does not fit the files, lungs on the wrong sides, one value for both.
    """
    path = pathlib.Path(path)
    source = _Stack(path) if path.is_file() else _Folder(path)
    return _dataset(source, path, tuple(size_yx), labels, classes, scale)


def write_case(path, image_hu, mask):
    """Writes one slice as `.npz`, whole or not at all: int16 [H, W] in HU, uint8 [H, W] class indices."""
    with files.write_whole(path) as file:
        np.savez_compressed(file, image=image_hu.astype(np.int16), mask=mask.astype(np.uint8))


class _Folder:
    """Slices in one file each."""

    def __init__(self, path):
        if not path.is_dir():
            raise InputError(
                f"data.dir: {path} does not exist; expected a folder of .npz files or one .npz file"
            )
        self.files = sorted(file for file in path.glob("*.npz") if not file.name.startswith("."))
        if not self.files:
            raise InputError(f"data.dir: {path} holds no .npz file; expected files with 'image' and 'mask'")
        self.case_ids = [file.stem for file in self.files]
        self.rows, self.notes = _read_index(path / "index.csv", self.case_ids)

    def where(self, index):
        return str(self.files[index])

    def checksums(self):
        return [_checksum(file) for file in self.files]

    def image(self, index):
        return _read_array(self.files[index], 0)

    def mask(self, index):
        return _read_array(self.files[index], 1)


class _Stack:
    """Slices in one file; the arrays are held in memory, since a compressed one cannot be read in part."""

    def __init__(self, path):
        self.path = path
        self.images, self.masks = (_read_array(path, which, num_dims=3) for which in (0, 1))
        if len(self.images) != len(self.masks):
            raise InputError(f"data.dir: {path} holds {len(self.images)} images and {len(self.masks)} masks")
        if not len(self.masks):
            raise InputError(f"data.dir: {path} holds no slice: its arrays are empty")
        digits = len(str(len(self.masks) - 1))
        self.case_ids = [f"{path.stem}_{index:0{digits}d}" for index in range(len(self.masks))]
        self.rows, self.notes = [{} for _ in self.case_ids], ()

    def where(self, index):
        return f"slice {index} of {self.path}"

    def checksums(self):
        return [_checksum(self.path)]

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]


def _dataset(source, path, size_yx, labels, classes, scale):
    indices = range(len(source.case_ids))
    values = np.unique(np.concatenate(_in_threads(lambda index: distinct(source.mask(index)), indices)))
    to_classes = _mapping(source, values, labels, path, classes)
    nodule = value_of("nodule", classes)

    def read_native_mask(index):
        return to_classes(source.mask(index))

    def read_own(index):
        image, mask = _checked_image(source, index, classes), read_native_mask(index)
        if image.shape != mask.shape:
            raise InputError(
                f"image {image.shape} and mask {mask.shape} differ in shape, in {source.where(index)}"
            )
        return image, mask

    def read_one(index):
        image, mask = read_own(index)
        return resize.resize_image(image, size_yx), resize.resize_mask(mask, size_yx, nodule=nodule)

    def read(chosen):
        chosen = np.asarray(chosen, np.int64).reshape(-1).tolist()
        images, masks = (np.empty((len(chosen), *size_yx), kind) for kind in (np.int16, np.uint8))

        def put(place):
            images[place], masks[place] = read_one(chosen[place])

        _in_threads(put, range(len(chosen)))
        return images, masks

    shown_yx = size_yx if scale is None else None
    facts = _in_threads(lambda index: _mask_facts(read_native_mask(index), shown_yx, classes), indices)
    notes = source.notes + _check_sides(facts, source, path, classes) + _patient_notes(source)
    name = f"npz/{path.stem if path.is_file() else path.resolve().name}"
    table = _table(source, facts, classes)
    if scale is not None:
        return scales.create_dataset(
            name,
            table,
            lambda chosen: _in_threads(read_own, chosen.tolist()),
            read_native_mask,
            scale=scale,
            window_yx=size_yx,
            hint=f"state pixel_spacing_mm in {path / 'index.csv'}",
            nodule=nodule,
            notes=notes,
            fingerprint=_fingerprint(source),
        )
    return Dataset(
        f"{name}-{size_yx[0]}x{size_yx[1]}",
        table,
        size_yx,
        read,
        read_native_mask,
        notes,
        fingerprint=_fingerprint(source),
    )


def _in_threads(function, items):
    """Returns [function(item), ...]: inflating and resizing leave Python's lock, so threads help."""
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def _fingerprint(source):
    """Returns a digest of the names and contents of all slices, by the checksums in their archives."""
    facts = zip(source.case_ids, source.checksums(), strict=False)
    return hashlib.sha256(json.dumps(list(facts)).encode()).hexdigest()


def _checksum(path):
    """Returns {array: CRC-32 of its bytes} of a file, as its archive states them."""
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def _read_array(path, which, num_dims=2):
    """Returns the image (which 0) or mask (1) of a file, [H, W] or [N, H, W]."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            names = [pair[which] for pair in NAMES if pair[which] in found]
            array = _read_member(archive, f"{names[0]}.npy") if names else None
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as .npz: {error}; copy or write it again") from error
    if array is None:
        expected = " or ".join(repr(pair[which]) for pair in NAMES)
        raise InputError(f"{path} holds the arrays {found}, expected {expected}")
    return _with_dims(array, num_dims, path, names[0])


def _read_member(archive, name):
    """Returns one array of an archive, read-only; never unpickles.

    In place of `numpy.load`, whose parsing of the header is not safe in threads: it goes through `ast`, which
    in Python up to 3.11.7 and 3.12.1 counts its recursion over all threads together and then fails now and
    then with a SystemError (CPython issue 106905). Here one thread at a time parses, and all inflate.
    """
    with archive.open(name) as file:
        with _HEADER_LOCK:
            header = npz.check_header(file, name, archive.getinfo(name).file_size, MOST_BYTES)
        shape, is_fortran, dtype = header
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if is_fortran else "C")


def _with_dims(array, num_dims, path, name):
    if array.ndim == num_dims + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != num_dims or array.dtype.kind not in "iufb":
        hint = (
            "; give the file itself as data.dir for stacked arrays"
            if (array.ndim, num_dims) == (3, 2)
            else ""
        )
        raise InputError(
            f"{path}: {name!r} is {array.dtype} of shape {array.shape}, expected numbers with {num_dims} "
            f"axes{hint}"
        )
    return array


def _mapping(source, values, labels, path, classes):
    """Returns the function from a mask as stored to uint8 class indices."""
    places, found = range(len(classes)), set(values.tolist()) - {UNKNOWN}
    if found <= set(places):
        return lambda mask: mask.astype(np.uint8)
    if classes == CLASS_NAMES and found <= set(LUNA16_VALUES):
        if labels != "airway_as_nodule":
            raise InputError(
                f"data.dir: the masks in {path} have LUNA16's own values 0, 3, 4, 5, where 5 is the airway "
                "and no nodule; set data.labels='airway_as_nodule' for the paper's reading, or write class "
                "indices 0 to 3"
            )
        return lambda mask: from_luna16(mask, labels, where=path)
    for index in range(len(source.case_ids)):
        check_values(source.mask(index), places, where=f"{source.where(index)}; data.classes names them")
    raise AssertionError("no mask has a value that the set of all values has")


def _checked_image(source, index, classes):
    """Returns an image of the source, float or int [H, W], whose values are HU as those of a scan must be.

    Where no class is a lung, as in small windows, an image may show no air, or nothing else than tissue.
    """
    image, where = source.image(index), source.where(index)
    low, high = image.min(), image.max()
    if not (-32768 <= low and high <= 32767):  # also False for NaN
        raise InputError(f"image values: got {low} to {high}, expected HU within int16, in {where}")
    findings = checks.check_values(np.rint(image).astype(np.int16)[None], image.dtype)
    if not any("lung" in name for name in classes):
        findings = [finding for finding in findings if finding.code not in ("no-air", "no-intercept")]
    checks.raise_errors(findings, where)
    return image


def _mask_facts(mask, size_yx, classes):
    """Returns what the table holds of a mask: its labels at a size, or as it is where that is None."""
    left, right, nodule = (value_of(name, classes) for name in ("left_lung", "right_lung", "nodule"))
    return {
        "labels": label_vector(resize.resize_mask(mask, size_yx or mask.shape, nodule=nodule), len(classes)),
        "native_size_yx": mask.shape,
        "side": side_columns(mask, left, right),
    }


def _patient_notes(source):
    """Returns what is to be said where slices have no patient: those of one scan could part."""
    alone = sum(not (row.get("patient") or row.get("series_uid")) for row in source.rows)
    if not alone:
        return ()
    return (
        f"{alone} of {len(source.rows)} slices name no patient and no series (columns of index.csv): each is taken "
        "for a patient of its own. If some are of one scan, they may train and be tested: give index.csv",
    )


def _check_both_lungs(facts, path, classes):
    """Refuses masks in which one value stands for both lungs: a mirrored slice would change it."""
    values = {name: value_of(name, classes) for name in ("left_lung", "right_lung")}
    if not set(values) <= set(classes):
        return
    seen = [name for name, value in values.items() if any(fact["labels"][value] == 1 for fact in facts)]
    if len(seen) == 1 and len(facts) > 1:
        raise InputError(
            f"data.dir: the masks in {path} have the value {values[seen[0]]} ({seen[0]}) and never that of the other "
            "lung; where it stands for both, name it so: data.classes=('background','lung')"
        )


def _check_sides(facts, source, path, classes):
    """Returns notes on slices whose lungs are on the wrong sides; refuses where that is the rule."""
    _check_both_lungs(facts, path, classes)
    left, right = (value_of(name, classes) for name in ("left_lung", "right_lung"))
    sides = [fact["side"] for fact in facts]
    wrong = [source.case_ids[index] for index, side in enumerate(sides) if side < 0]
    num_both = int(np.isfinite(sides).sum())
    if len(wrong) > num_both / 2:
        raise InputError(
            f"data.dir: in {len(wrong)} of {num_both} slices in {path} the left lung ({left}) lies left of the "
            f"right lung ({right}) in the image, expected the patient's left at the higher columns; flip the "
            "slices, or swap the two names in data.classes (lungmask: 'background','right_lung','left_lung')"
        )
    if not wrong:
        return ()
    named = ", ".join(wrong[:10]) + (" ..." if len(wrong) > 10 else "")
    matter = "have the left lung on the image's left (prone or mirrored)"
    return (f"{len(wrong)} of {num_both} slices {matter}: {named}",)


def _table(source, facts, classes):
    rows = source.rows
    series = [row.get("series_uid") or case_id for row, case_id in zip(rows, source.case_ids, strict=True)]
    patients = [row.get("patient") or uid for row, uid in zip(rows, series, strict=True)]
    return CaseTable(
        case_id=np.array(source.case_ids),
        series_uid=np.array(series),
        patient=np.array(patients),
        subset=np.array([_number(row, "subset", int, -1) for row in rows], np.int8),
        slice_index=np.array([_number(row, "slice_index", int, -1) for row in rows], np.int32),
        spacing_zyx_mm=np.array([_spacing_zyx_mm(row) for row in rows], np.float32),
        native_size_yx=np.array([fact["native_size_yx"] for fact in facts], np.int32),
        num_nodules=np.array([_number(row, "num_nodules", int, -1) for row in rows], np.int32),
        labels=np.stack([fact["labels"] for fact in facts]),
        classes=classes,
    )


def _spacing_zyx_mm(row):
    column_mm = _number(row, "pixel_spacing_mm", float, np.nan)
    row_mm = _number(row, "row_spacing_mm", float, column_mm)
    return _number(row, "slice_spacing_mm", float, np.nan), row_mm, column_mm


def _read_index(path, case_ids):
    """Returns (one row, {} where none, for each case; notes)."""
    if not path.is_file():
        return [{} for _ in case_ids], ()
    rows = files.read_cells(path, ("id",), hint="mend it, or delete it to go without an index")
    by_case = _by_case(rows, case_ids, path)
    unlisted = [case_id for case_id in case_ids if case_id not in by_case]
    notes = (f"{len(unlisted)} slices are not in index.csv, such as {unlisted[0]}",) if unlisted else ()
    return [by_case.get(case_id, {}) for case_id in case_ids], notes


def _by_case(rows, case_ids, path):
    known, by_case = set(case_ids), {}
    for number, row in enumerate(rows, start=2):
        name = row["id"].strip()
        case_id = next((choice for choice in (name, f"ID_{name}") if choice in known), None)
        if case_id is None:
            raise InputError(
                f"{path}, line {number}: there is no {name}.npz or ID_{name}.npz; is the copy complete?"
            )
        if case_id in by_case:
            raise InputError(f"{path}, line {number}: id {name!r} appears twice")
        by_case[case_id] = {key: value.strip() for key, value in row.items() if value}
        by_case[case_id]["where"] = f"{path}, line {number}"
    return by_case


def _number(row, name, kind, unknown):
    text = row.get(name, "")
    if text == "":
        return unknown
    try:
        value = kind(text)
    except ValueError as error:
        raise InputError(f"{row['where']}: {name} is {text!r}, expected a number or nothing") from error
    if name.endswith("_mm") and not 0 < value < 100:
        raise InputError(f"{row['where']}: {name} is {text}, expected millimetres above 0")
    if name == "subset" and not -1 <= value <= 9:
        raise InputError(f"{row['where']}: subset is {text}, expected 0 to 9")
    return value
