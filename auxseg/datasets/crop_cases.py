"""The data set that crops of nodules make: moved, cut or brought to a scale, with what each reader marked."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import crops as crops_lib
from auxseg.datasets import resize
from auxseg.datasets import scale as scales
from auxseg.datasets.dataset import CaseTable, Dataset

_MIDDLE = (0, 0)


def load(folder, *, size_yx, classes, slab=1, step_mm=0.0, target="consensus", scale=None):
    """Returns the `Dataset` of a folder of crops: nodule or not, by consensus, at the crops' own resolution or a fixed one.

    At a scale cases are whole crops, of which training takes windows; else squares of `size_yx` are cut out. Every crop
    is moved by up to `crops.MOST_SHIFT_PX` of its pixels, always by the same, so that no score is helped by the place.
    Where there is augmentation, those that train lie in the middle (`read_train`): it moves them, each time anew.

    Args:
        folder: as `crops.read_crops` takes it.
        size_yx: of what is cut out, a square no larger than the crops; with a scale any, of the windows.
        classes: `crops.CLASSES`; `crops.meanings_of` says what they are among others.
        slab: slices of the nodule around each, which the network sees together; its outermost ones are repeated, since
            no slice beyond the readers' marks is there.
        step_mm: between them, as in `slabs`.
        target: one of `crops.TARGETS`, of those that train.
        scale: of `scale.read_scale`.

    Raises:
        InputError: other classes or another size, or the folder cannot be read.
    """
    if tuple(classes) != crops_lib.CLASSES:
        raise InputError(
            f"data.classes: got {tuple(classes)}, but crops tell nodule from the rest alone; set "
            f"data.classes={crops_lib.CLASSES}"
        )
    crops = crops_lib.read_crops(folder)
    _check_target(target, slab, crops, folder)
    cases, words = _lay_out(crops, pathlib.Path(folder), size_yx, scale, target)
    name = f"crops/{pathlib.Path(folder).resolve().name}-{words}"
    dataset = Dataset(
        name,
        cases.table,
        cases.canvas_yx,
        cases.read,
        cases.read_native_mask,
        read_outline=cases.read_outline,
        read_train=cases.read_train,
        readers=np.stack([crops.num_readers.astype(np.uint8), crops.reader_bits], axis=1),
        scale=scale,
    )
    if slab == 1:
        return dataset
    around = crops_lib.neighbours(crops, slab, step_mm)
    return dataclasses.replace(
        dataset,
        name=f"{name}-slab{slab}x{step_mm:g}mm",
        read_slabs=lambda indices: cases.read_slabs(indices, around),
        slab=slab,
        read_train=None,
        readers=None,
    )


@dataclasses.dataclass(frozen=True)
class _Cases:
    """Crops as they are shown.

    Attributes:
        crops: `crops.Crops`.
        shifts: int32 [N, 2], how far each is moved where it is scored.
        size: rows and columns that are cut out of a crop.
        table: `CaseTable`.
        canvas_yx: rows and columns of what is read.
        scale: of `scale.read_scale`.
        target: one of `crops.TARGETS`.
    """

    crops: crops_lib.Crops
    shifts: np.ndarray
    size: int
    table: CaseTable
    canvas_yx: tuple[int, int]
    scale: float | str | None
    target: str

    def read(self, indices):
        """Returns images and masks, moved: `Dataset.read`."""
        return self._read(indices, lambda i: self.shifts[i], self._read_mask)

    def read_train(self, indices):
        """Returns images and what they are trained on, not moved: `Dataset.read_train`."""
        return self._read(indices, lambda i: _MIDDLE, self._read_votes)

    def read_slabs(self, indices, around):
        """Returns int16 [n, H, W, slab]; `around`: the rows of each slab, int [N, slab]."""
        indices = np.asarray(indices).reshape(-1)
        slices = [self._read_image(i, place, self.shifts[i]) for i in indices for place in around[i]]
        shape = (len(indices), around.shape[1], *self.canvas_yx)
        return np.moveaxis(np.array(slices, np.int16).reshape(shape), 1, -1)

    def read_native_mask(self, index):
        """Returns the consensus in the crop's own pixels, moved, uint8 [size, size]."""
        return _cut_mask(self.crops, index, self.shifts[index], self.size)

    def read_outline(self, index):
        """Returns the `dataset.Outline`, moved."""
        return crops_lib.outline(self.crops, index, self._read_marks(index, self.shifts[index]))

    def _read(self, indices, shift_of, read_mask):
        indices = np.asarray(indices).reshape(-1)
        images = [self._read_image(i, i, shift_of(i)) for i in indices]
        masks = [scales.fit_mask(read_mask(i), self.canvas_yx) for i in indices]
        shape = (-1, *self.canvas_yx)
        return np.array(images, np.int16).reshape(shape), np.array(masks, np.uint8).reshape(shape)

    def _read_image(self, index, place, shift):
        """Returns the slice of row `place` as the crop `index` is shown, [H, W] in HU."""
        limits = np.iinfo(np.int16)
        image = crops_lib.cut(self.crops.image_hu(place), shift, self.size)
        image = np.clip(np.round(image), limits.min, limits.max)
        if self.scale is not None:
            image = resize.resize_image(image, self._filled(index))
        return scales.fit(image, self.canvas_yx, is_cut=True)

    def _read_mask(self, index):
        marks = self._read_marks(index, self.shifts[index])
        return crops_lib.consensus(marks, self.crops.num_readers[index]).astype(np.uint8)

    def _read_votes(self, index):
        marks = self._read_marks(index, _MIDDLE)
        if self.target == "consensus":
            return crops_lib.consensus(marks, self.crops.num_readers[index]).astype(np.uint8)
        return marks + np.uint8(crops_lib.VOTES)

    def _read_marks(self, index, shift):
        """Returns the bits of the readers of a crop as it is shown, uint8 [h, w]."""
        return resize_marks(crops_lib.cut(self.crops.readers[index], shift, self.size), self._filled(index))

    def _filled(self, index):
        filled = self.table.filled_yx
        return (self.size, self.size) if filled is None else tuple(filled[index].tolist())


def _lay_out(crops, folder, size_yx, scale, target):
    """Returns (`_Cases`, the size or scale as part of a name)."""
    size = _choose_size(crops, size_yx, scale)
    shifts = crops_lib.draw_shifts(len(crops), most_px=crops_lib.MOST_SHIFT_PX, seed=crops_lib.SHIFT_SEED)
    table = _table(crops, [_cut_mask(crops, index, shift, size) for index, shift in enumerate(shifts)], size)
    if scale is None:
        return _Cases(crops, shifts, size, table, (size, size), scale, target), f"{size}x{size}"
    where, hint = f"crops/{folder.name}", "correct spacing_mm in index.csv"
    table, canvas = scales.lay_out(table, scale=scale, window_yx=size_yx, where=where, hint=hint)
    return _Cases(crops, shifts, size, table, canvas, scale, target), scales.name_of(scale)


def _check_target(target, slab, crops, folder):
    check_choice("data.target", target, crops_lib.TARGETS)
    if slab > 1 and target != "consensus":
        raise InputError(
            f"data.target: got {target!r} with data.slab={slab}; slabs of crops train on the 'consensus'"
        )
    if target != "consensus" and int(crops.reader_bits.max()) >> crops_lib.MOST_VOTERS:
        raise InputError(
            f"data.target={target!r}: {folder} has more than {crops_lib.MOST_VOTERS} readers of a nodule; take 'consensus'"
        )


def _cut_mask(crops, index, shift, size):
    """Returns the consensus of a slice in its own pixels, moved, uint8 [size, size]."""
    marks = crops_lib.cut(crops.readers[index], shift, size)
    return crops_lib.consensus(marks, crops.num_readers[index]).astype(np.uint8)


def _choose_size(crops, size_yx, scale):
    """Returns rows, as many as columns, of what is cut out of crops: `size_yx`, or with a scale all that there is."""
    most = min(crops.images.shape[1:])
    if scale is not None:
        return most
    if size_yx[1] != size_yx[0] or size_yx[0] > most:
        raise InputError(
            f"data.size: got {tuple(size_yx)}, expected a square of at most {most} pixels, which crops have; they are never "
            "resized, unless data.mm_per_pixel says so"
        )
    return size_yx[0]


def resize_marks(readers, size_yx):
    """Returns the bits of readers, uint8 [H, W], in another size: what each of them marks by itself, none is lost."""
    if readers.shape == tuple(size_yx):
        return readers
    marks = [
        resize.resize_mask(crops_lib.reader_mask(readers, bit).astype(np.uint8), size_yx, nodule=1) << bit
        for bit in range(int(readers.max(initial=0)).bit_length())
    ]
    return np.bitwise_or.reduce(marks, axis=0) if marks else np.zeros(size_yx, np.uint8)


def _table(crops, masks, size):
    labels = np.array([[not mask.all(), mask.any()] for mask in masks], np.uint8)
    return CaseTable(
        case_id=np.array(
            [f"{name}-{k}".replace("/", "_") for name, k in zip(crops.nodule, crops.place, strict=True)]
        ),
        series_uid=crops.series_uid,
        patient=crops.patient,
        subset=crops.subset,
        slice_index=np.full(len(crops), -1, np.int32),
        spacing_zyx_mm=np.stack([crops.gap_mm, crops.spacing_mm, crops.spacing_mm], axis=1),
        native_size_yx=np.full((len(crops), 2), size, np.int32),
        num_nodules=labels[:, 1].astype(np.int32),
        labels=labels,
        classes=crops_lib.CLASSES,
        is_cut=np.ones(len(crops), bool),
    )
