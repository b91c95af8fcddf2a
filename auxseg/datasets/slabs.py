"""Slabs of neighbouring slices around a slice: what networks with depth see, in training and in prediction.

The slices of a slab lie as near to a stated distance in millimetres as whole slices allow, and never less than one
slice apart (`slices_apart`). So a slab shows the same depth in scans of 0.6 mm and of 2.5 mm; by number it would
show a quarter of it in the former. A scan whose slices lie further apart than that gives its neighbours as they are:
nothing is interpolated, which would make up what lies between. At the ends of a scan its outermost slice is repeated.

The cases of a data set, their masks and their own slices stay as they are; its slabs are read from the same scans
once and kept in the cache as one array file, which training reads in place (memory-mapped).
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np

from auxseg.base import disk_arrays, files, progress
from auxseg.base.errors import InputError
from auxseg.datasets import resize, scale
from auxseg.datasets.layouts import layout_of


def slices_apart(spacing_mm, step_mm):
    """Returns how many slices of a scan lie from one slice of a slab to the next, at least 1.

    Args:
        spacing_mm: between the slices of the scan; NaN where unknown, for neighbours.
        step_mm: wanted between the slices of a slab; 0.0 for neighbours, whatever their distance.
    """
    return max(1, round(step_mm / spacing_mm)) if spacing_mm > 0 else 1


def places_around(index, *, num_slices, apart, in_scan):
    """Returns the slices of the slab around a slice, int [num_slices], the ends of the scan repeated.

    Args:
        index: of the slice in the middle.
        num_slices: of the slab, odd.
        apart: as `slices_apart`.
        in_scan: slices of the scan.
    """
    steps = np.arange(-(num_slices // 2), num_slices // 2 + 1)
    return np.clip(index + apart * steps, 0, in_scan - 1)


def attach(dataset, scans, settings, *, num_slices, step_mm, cache_dir):
    """Returns the `Dataset` with `read_slabs`, after writing the slabs where they are not there.

    Args:
        dataset: of whole scans.
        scans: {series UID: scan} of a layout (`auxseg.datasets.layouts`).
        settings: of that layout, which the dataset was read with.
        num_slices: in a slab, odd.
        step_mm: between them, as `slices_apart`.
        cache_dir: where slabs are kept.

    Raises:
        InputError: a scan is missing or cannot be read.
    """
    uids = sorted(set(dataset.table.series_uid.tolist()))
    missing = set(uids) - scans.keys()
    if missing:
        raise InputError(
            f"data.slab: {dataset.name} has no scan {min(missing)}, whose neighbouring slices are needed"
        )
    name = f"{dataset.name}-slab{num_slices}x{step_mm:g}mm"
    layout, scans = layout_of(settings), {uid: scans[uid] for uid in uids}
    file = _file(name, dataset, scans, layout, pathlib.Path(cache_dir))
    if not file.is_file():
        _write(file, dataset, scans, lambda scan: layout.open_images(scan, settings), num_slices, step_mm)
    slabs = np.load(file, mmap_mode="r", allow_pickle=False)
    return dataclasses.replace(
        dataset,
        name=name,
        read_slabs=lambda indices: np.asarray(slabs[np.asarray(indices, np.int64).reshape(-1)]),
        slab=num_slices,
    )


def _file(name, dataset, scans, layout, cache_dir):
    """Returns the path of the slabs, whose name changes with cases, size, distances and scan files."""
    size = "" if dataset.scale is None else f" {dataset.size_yx}"  # else it is in the name
    digest = hashlib.sha256(f"{name}{size}\n".encode())
    for case_id in dataset.table.case_id.tolist():
        digest.update(f"{case_id}\n".encode())
    for uid, scan in scans.items():
        for stat in (path.stat() for path in layout.files_of(scan) if path.exists()):
            digest.update(f"{uid} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return cache_dir.expanduser() / "slabs" / f"{digest.hexdigest()[:16]}.npy"


def _write(file, dataset, scans, open_images, num_slices, step_mm):
    """Writes int16 [cases, H, W, num_slices], whole or not at all; each slice is read once."""
    shape = (len(dataset), *dataset.size_yx, num_slices)
    table = dataset.table
    with files.write_whole(file) as written:
        slabs = disk_arrays.create_array(written.name, np.int16, shape)
        for uid, scan in progress.track(
            scans.items(), total=len(scans), label="Preparing slabs", unit="scan"
        ):
            rows = np.flatnonzero(table.series_uid == uid)
            filled = dataset.filled_size(rows[0])  # of one scan all alike
            with open_images(scan) as images:
                around = _places(images, table.slice_index[rows], num_slices, step_mm)
                for index in np.unique(around).tolist():
                    image = scale.fit(resize.resize_image(images.read(index), filled), dataset.size_yx)
                    for case, place in np.argwhere(around == index):
                        slabs[rows[case], ..., place] = image
        slabs.flush()


def _places(images, indices, num_slices, step_mm):
    """Returns the slices of the slabs around slices of a scan, int [cases, num_slices]."""
    apart, in_scan = slices_apart(images.spacing_mm, step_mm), images.num_slices
    return np.stack([
        places_around(index, num_slices=num_slices, apart=apart, in_scan=in_scan) for index in indices.tolist()
    ])  # fmt: skip
