"""Windows of slices that are known to hold no nodule, at the scan's own resolution or a fixed one: what crops lack.

They come from a folder of slices in NPZ form (`npz`) whose masks know nodules. Each window lies about a pixel of
lung, wholly inside its slice, and is the same in every run: the places follow from a seed. They are quieter or
noisier than crops of other scans; what tells the two apart besides nodules, a network may learn.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.classes import CLASS_NAMES, LEFT, NODULE, RIGHT
from auxseg.base.errors import InputError
from auxseg.datasets import npz, resize, select
from auxseg.datasets import scale as scales
from auxseg.datasets.dataset import Dataset
from auxseg.datasets.labels import label_vector

SEED = 11
"""Of the places."""


def load(folder, *, size_yx, classes, per_slice, scale=None):
    """Returns the `Dataset` of windows of a folder's slices without a nodule.

    Args:
        folder: as `npz.read_npz`, with masks of `CLASS_NAMES`.
        size_yx: rows and columns of a window.
        classes: names that `select.select` takes.
        per_slice: windows of each slice.
        scale: of `scale.read_scale`; None: the scan's own.

    Raises:
        InputError: no slice without a nodule, one that is smaller than a window or without lung, or `per_slice` below 1.
    """
    if per_slice < 1:
        raise InputError(f"data.windows: got {per_slice}, expected at least 1")
    slices = npz.read_npz(folder, size_yx=size_yx, scale=scale or scales.OWN)
    free = _slices_without_nodule(slices, folder)
    own_masks = {
        index: resize.resize_mask(slices.read_native_mask(index), slices.filled_size(index))
        for index in free.tolist()
    }
    places = {index: _choose_places(mask, size_yx, per_slice, index) for index, mask in own_masks.items()}
    owners, corners = np.repeat(free, per_slice), np.concatenate([places[index] for index in free.tolist()])

    def window(array, case):
        (row, column), (height, width) = corners[case], size_yx
        return array[row : row + height, column : column + width]

    def read_mask(case):
        return np.array(window(own_masks[owners[case]], case))

    def read(indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        needed = np.unique(owners[indices])
        images = dict(zip(needed.tolist(), slices.read(needed)[0], strict=True))
        cut = [window(images[owners[case]], case) for case in indices.tolist()]
        shape = (len(indices), *size_yx)
        masks = np.array([read_mask(case) for case in indices.tolist()], np.uint8).reshape(shape)
        return np.array(cut, np.int16).reshape(shape), masks

    left_out = len(slices) - len(free)
    notes = (f"windows of {len(free)} slices; {left_out} that show a nodule, or may, are left out",)
    name = f"patches/{slices.name.split('/', 1)[1]}"
    table = _table(slices, owners, per_slice, [read_mask(case) for case in range(len(owners))], size_yx)
    if scale is None:
        table = dataclasses.replace(table, filled_yx=None)
    dataset = Dataset(
        name, table, tuple(size_yx), read, read_mask, notes, fingerprint=slices.fingerprint, scale=scale
    )
    return select.select(dataset, classes)


def _slices_without_nodule(slices, folder):
    table = slices.table
    free = np.flatnonzero((table.labels[:, NODULE] == 0) & (table.num_nodules <= 0))
    if not len(free):
        raise InputError(f"data.dir: {folder} has no slice that is known to hold no nodule")
    return free


def _choose_places(mask, size_yx, num, seed):
    """Returns the upper left corners of windows about pixels of lung, int [num, 2]."""
    rows, columns = np.nonzero((mask == LEFT) | (mask == RIGHT))
    if not len(rows) or any(n < size for n, size in zip(mask.shape, size_yx, strict=True)):
        raise InputError(
            f"data.size: got {tuple(size_yx)}, but a slice of {mask.shape} with {len(rows)} pixels of lung has no "
            "window of that size about lung"
        )
    chosen = np.random.Generator(np.random.PCG64([SEED, int(seed)])).integers(len(rows), size=num)
    centres = np.stack([rows[chosen], columns[chosen]], axis=1)
    return np.clip(centres - np.array(size_yx) // 2, 0, np.array(mask.shape) - size_yx)


def _table(slices, owners, per_slice, masks, size_yx):
    """Returns the `CaseTable` of windows, whose own pixels are those of their slices at its scale."""
    table, size = slices.table, np.full((len(owners), 2), size_yx, np.int32)
    spacing = table.spacing_zyx_mm[owners]
    spacing[:, 1:] *= table.native_size_yx[owners] / table.filled_yx[owners]
    numbers = np.arange(len(owners)) % per_slice
    names = [f"{name}-{n:02d}" for name, n in zip(table.case_id[owners].tolist(), numbers, strict=True)]
    return dataclasses.replace(
        table.rows(owners),
        case_id=np.array(names),
        spacing_zyx_mm=spacing,
        native_size_yx=size,
        filled_yx=size,
        labels=np.stack([label_vector(mask, len(CLASS_NAMES)) for mask in masks]),
        is_cut=np.ones(len(owners), bool),
    )
