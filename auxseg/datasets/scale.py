"""A fixed scale (`data.mm_per_pixel`): slices of so many millimetres a pixel, in place of slices of one size.

Each slice is resampled to that pixel size, or stays as it is ('own'), and lies at the upper left of a canvas that is
large enough for all of a data set, so that batches have one shape. `CaseTable.filled_yx` says how much of it a case
fills: beyond that is air of which nothing is known, or, of what was cut out of a larger slice, its mirror image.
Training takes windows of `data.size` of it (`training.cutting`); evaluation and prediction see it whole.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.classes import AIR_HU, NODULE, UNKNOWN
from auxseg.base.errors import InputError
from auxseg.datasets import resize
from auxseg.datasets.dataset import Dataset

OWN = "own"
"""The value of `data.mm_per_pixel` at which each slice keeps its own pixels."""
LEAST_MM, MOST_MM = 0.1, 10.0
MOST_SIDE = 4096
"""Rows or columns of a slice at its scale."""
MOST_STEP = 64
"""A network may halve a slice six times, as deep as any is."""
CUT_SOURCES = ("crops", "patches")
"""Sources whose cases are cut at the scan's own resolution, unless a scale is given."""


def read_scale(data_config):
    """Returns `data.mm_per_pixel`: millimetres, `OWN`, or None where slices are brought to one size.

    Raises:
        InputError: it is none of these.
    """
    value = data_config.get("mm_per_pixel")
    if value is None or value == OWN:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST_MM <= value <= MOST_MM:
        raise InputError(
            f"data.mm_per_pixel: got {value!r}, expected {LEAST_MM:g} to {MOST_MM:g} mm, {OWN!r} for the scan's own resolution, "
            "or nothing, for slices of one size"
        )
    return float(value)


def seen_scale(data_config):
    """Returns (the scale at which a network sees whole slices, a line on what is doubtful about it or '').

    Networks of crops and windows alone, which were never resized, see a scan at its own resolution.

    Args:
        data_config: `config.data` that the network was trained with.
    """
    scale, sources = read_scale(data_config), data_config.get("sources", {})
    names = {each.get("name") or data_config.name for each in sources.values()} or {data_config.name}
    cut = names & set(CUT_SOURCES)
    if scale is not None or not cut:
        return scale, ""
    size = "x".join(map(str, data_config.size))
    if names == cut:
        return OWN, (
            f"the network was trained on windows of {size} pixels at the scans' own resolution (data.mm_per_pixel is not set): it sees "
            "this one at its own, which may be another than theirs"
        )
    return None, (
        f"the network was trained on slices of {size} pixels and on {', '.join(sorted(cut))} at their own resolution "
        "(data.mm_per_pixel is not set): it sees whole slices at the former scale, and nodules may look unlike those of the latter"
    )


def name_of(scale):
    """Returns a scale as part of a name: '0.7mm' or 'own'."""
    return OWN if scale == OWN else f"{scale:g}mm"


def describe(scale):
    """Returns a scale in words."""
    return "the scan's own resolution" if scale == OWN else f"{scale:g} mm a pixel"


def check_spacing(scale, spacing_yx_mm, names, *, where, hint):
    """Raises an InputError where a scale in millimetres is asked for and a pixel size is not known.

    Args:
        scale: of `read_scale`.
        spacing_yx_mm: float [N, 2], NaN where unknown.
        names: of the cases.
        where: what they are of.
        hint: what to do.
    """
    unknown = np.flatnonzero(~(np.nan_to_num(np.asarray(spacing_yx_mm)) > 0).all(axis=1))
    if scale is None or scale == OWN or not len(unknown):
        return
    raise InputError(
        f"data.mm_per_pixel: got {scale:g}, but the pixel spacing of {len(unknown)} of {len(names)} in {where} is not known, such "
        f"as {names[unknown[0]]}; {hint}, or leave the setting out"
    )


def filled_size(native_yx, spacing_yx_mm, scale):
    """Returns the rows and columns of a slice at a scale, whole numbers.

    Args:
        native_yx: rows and columns of the slice.
        spacing_yx_mm: of its pixels; of `OWN` without effect.
        scale: of `read_scale`, not None.

    Raises:
        InputError: more than `MOST_SIDE`.
    """
    if scale == OWN:
        return tuple(map(int, native_yx))
    pairs = zip(native_yx, spacing_yx_mm, strict=True)
    size = tuple(max(1, round(round(float(n) * float(mm) / scale, 3))) for n, mm in pairs)
    if max(size) > MOST_SIDE:
        raise InputError(
            f"data.mm_per_pixel: at {scale:g} mm a slice of {tuple(map(int, native_yx))} pixels has {size[0]} x {size[1]}, expected at "
            f"most {MOST_SIDE}; give a larger one"
        )
    return size


def step_of(size_yx):
    """Returns a power of two such that a network of windows of `data.size` takes any multiple of it."""
    return min(MOST_STEP, *(int(n) & -int(n) for n in size_yx))


def round_up(size_yx, step):
    """Returns rows and columns, each the next multiple of `step`."""
    return tuple(-(-int(n) // step) * step for n in size_yx)


def fit(image, size_yx, *, is_cut=False):
    """Returns an image [h, w, ...] in HU at the upper left of one of `size_yx`: air around it, or its mirror image.

    Args:
        image: no larger than `size_yx`.
        size_yx: rows and columns.
        is_cut: whether it was cut out of a larger slice: beyond its edges is no air.
    """
    if tuple(image.shape[:2]) == tuple(size_yx):
        return image
    pads = [(0, size - n) for size, n in zip(size_yx, image.shape, strict=False)]
    pads += [(0, 0)] * (image.ndim - 2)
    return np.pad(image, pads, mode="symmetric") if is_cut else np.pad(image, pads, constant_values=AIR_HU)


def fit_mask(mask, size_yx):
    """Returns a mask [h, w] at the upper left of one of `size_yx`, unknown around it."""
    pads = [(0, size - n) for size, n in zip(size_yx, mask.shape, strict=True)]
    return np.pad(mask, pads, constant_values=UNKNOWN)


def refit(images, masks, table, size_yx):
    """Returns images and masks of a smaller canvas on one of `size_yx`; `table`: the `CaseTable` of these cases."""
    if masks.shape[1:] == tuple(size_yx):
        return images, masks
    cut = np.zeros(len(masks), bool) if table.is_cut is None else table.is_cut
    filled = [tuple(slice(n) for n in size) for size in table.filled_yx.tolist()]
    pairs = list(zip(filled, images, masks, cut, strict=True))
    return (
        np.stack([fit(image[part], size_yx, is_cut=one) for part, image, _, one in pairs]),
        np.stack([fit_mask(mask[part], size_yx) for part, _, mask, _ in pairs]),
    )


def lay_out(table, *, scale, window_yx, where, hint):
    """Returns (the `CaseTable` with `filled_yx`, rows and columns of the canvas).

    Args:
        table: of slices at their own resolution.
        scale: of `read_scale`, not None.
        window_yx: `data.size`, which the canvas is not smaller than.
        where, hint: as `check_spacing`.

    Raises:
        InputError: a pixel spacing that is needed and not known.
    """
    spacing, native = table.spacing_zyx_mm[:, 1:], table.native_size_yx
    check_spacing(scale, spacing, table.case_id, where=where, hint=hint)
    filled = [filled_size(*pair, scale) for pair in zip(native.tolist(), spacing.tolist(), strict=True)]
    filled = np.array(filled, np.int32).reshape(len(table), 2)
    largest = np.maximum(filled.max(axis=0, initial=1), window_yx)
    return dataclasses.replace(table, filled_yx=filled), round_up(largest, step_of(window_yx))


def create_dataset(name, table, read_slices, read_native_mask, *, scale, window_yx, hint, nodule=NODULE, notes=(), fingerprint=""):  # fmt: skip
    """Returns the `Dataset` at a scale of slices that are read as they are.

    Args:
        name: without the scale.
        table: `CaseTable` of the slices as they are.
        read_slices: indices int [n] -> iterable of (image [h, w] in HU, mask uint8 [h, w]).
        read_native_mask, notes, fingerprint: as of `Dataset`.
        scale, window_yx, hint: as `lay_out`.
        nodule: value of nodules.
    """
    table, size_yx = lay_out(table, scale=scale, window_yx=window_yx, where=name, hint=hint)

    def read(indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        images, masks = (np.empty((len(indices), *size_yx), kind) for kind in (np.int16, np.uint8))
        for row, (image, mask) in enumerate(read_slices(indices)):
            filled = tuple(table.filled_yx[indices[row]].tolist())
            images[row] = fit(resize.resize_image(image, filled), size_yx)
            masks[row] = fit_mask(resize.resize_mask(mask, filled, nodule=nodule), size_yx)
        return images, masks

    return Dataset(
        f"{name}-{name_of(scale)}", table, size_yx, read, read_native_mask, notes,
        fingerprint=fingerprint, scale=scale,
    )  # fmt: skip
