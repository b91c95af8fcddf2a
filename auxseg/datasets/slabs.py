"""Slabs of neighbouring slices around each case's slice, for networks that see in three dimensions.

The cases, their masks and their own slices are a data set as ever; its slabs are read from the same scans
once and kept in the cache as one array file, which training reads in place (memory-mapped). At the ends of a scan its
outermost slice is repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np

from auxseg.base import files, progress
from auxseg.base.errors import InputError
from auxseg.ct import images
from auxseg.datasets import resize
from auxseg.datasets.luna16 import layout
from auxseg.datasets.luna16.records import RECORDS_FILE


def attach(dataset, path, *, num_slices, cache_dir):
    """Returns the `Dataset` with `read_slabs`, after writing the slabs where they are not there.

    Args:
        dataset: of the LUNA16 folder `path`.
        path: the folder of the scans.
        num_slices: in a slab, odd.
        cache_dir: where slabs are kept.

    Raises:
        InputError: a folder of records without the scans, or a scan that cannot be read.
    """
    if (pathlib.Path(path) / RECORDS_FILE).is_file():
        raise InputError(
            f"data.slab: {path} holds records of single slices; give the folder of the scans they were prepared from"
        )
    found = {scan.uid: scan.path for scan in layout.list_folder(path).scans}
    missing = set(dataset.table.series_uid.tolist()) - found.keys()
    if missing:
        raise InputError(
            f"data.slab: {path} has no scan {min(missing)}, whose neighbouring slices are needed"
        )
    file = _file(dataset, found, num_slices, pathlib.Path(cache_dir))
    if not file.is_file():
        _write(file, dataset, found, num_slices)
    slabs = np.load(file, mmap_mode="r", allow_pickle=False)
    return dataclasses.replace(
        dataset,
        name=f"{dataset.name}-slab{num_slices}",
        read_slabs=lambda indices: np.asarray(slabs[np.asarray(indices, np.int64).reshape(-1)]),
        slab=num_slices,
    )


def _file(dataset, paths, num_slices, cache_dir):
    """Returns the path of the slabs, whose name changes with cases, size and scan files."""
    digest = hashlib.sha256(f"{dataset.name} {num_slices}\n".encode())
    for case_id in dataset.table.case_id.tolist():
        digest.update(f"{case_id}\n".encode())
    for uid in sorted(set(dataset.table.series_uid.tolist())):
        stat = paths[uid].stat()
        digest.update(f"{uid} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return cache_dir.expanduser() / "slabs" / f"{digest.hexdigest()[:16]}.npy"


def _write(file, dataset, paths, num_slices):
    """Writes int16 [cases, H, W, num_slices], whole or not at all."""
    shape = (len(dataset), *dataset.size_yx, num_slices)
    table = dataset.table
    scans = sorted(set(table.series_uid.tolist()))
    with files.write_whole(file) as written:
        slabs = files.create_array(written.name, np.int16, shape)
        for uid in progress.track(scans, total=len(scans), label="Preparing slabs", unit="scan"):
            rows = np.flatnonzero(table.series_uid == uid)
            for row, slab in zip(
                rows, read_slabs(paths[uid], table.slice_index[rows], num_slices), strict=True
            ):
                for place, image in enumerate(slab):
                    slabs[row, ..., place] = resize.resize_image(image, dataset.size_yx)
        slabs.flush()


def read_slabs(path, indices, num_slices):
    """Yields int16 [num_slices, H, W] in HU around each slice of a scan, of the scan's own size.

    Args:
        path: the scan file.
        indices: int, of the middle slices.
        num_slices: odd.
    """
    header = images.read_header(path)
    last, reach = header.geometry.size_xyz[2] - 1, num_slices // 2
    for index in np.asarray(indices).tolist():
        around = np.clip(np.arange(index - reach, index + reach + 1), 0, last)
        wanted, places = np.unique(around, return_inverse=True)
        yield images.read_slices(path, wanted, header=header)[places]
