"""Reads a scan for prediction: each slice once, a batch at a time, as every network sees it."""

from __future__ import annotations

import concurrent.futures
import dataclasses

import numpy as np

from auxseg.base import disk_arrays
from auxseg.base.classes import AIR_HU
from auxseg.datasets import scale, slabs
from auxseg.datasets.resize import resize_image
from auxseg.prediction import overlay


@dataclasses.dataclass(frozen=True)
class Form:
    """How a network sees a slice.

    Attributes:
        size_yx: rows and columns that it takes.
        slab: slices that it sees together.
        apart: slices of the scan from one of them to the next.
        filled_yx: rows and columns of these that the field fills, air below and to the right; None: all.
    """

    size_yx: tuple[int, int]
    slab: int
    apart: int
    filled_yx: tuple[int, int] | None = None

    @property
    def shown_yx(self):
        """Rows and columns that the field fills."""
        return self.filled_yx or self.size_yx

    @property
    def sizes(self):
        """What a slice is resized to, and what is made of that by air around it."""
        return self.shown_yx, self.size_yx

    @property
    def reach(self):
        """Slices of the scan that it sees on either side."""
        return self.slab // 2 * self.apart


def find_form(network, scan, view):
    """Returns the `Form` in which a network sees the slices of a scan.

    Args:
        network: `networks.Network`.
        scan: `scans.Scan`.
        view: `view.View` of the scan.

    Raises:
        InputError: the network has a scale in mm, and the scan no known spacing or too many pixels at that scale.
    """
    spacing_mm = scan.geometry.spacing_zyx_mm[0] if scan.has_geometry else np.nan
    apart = slabs.slices_apart(spacing_mm, network.slab_step_mm) if network.slab > 1 else 1
    if network.scale is None:
        return Form(network.size_yx, network.slab, apart)
    spacing_yx = scan.geometry.spacing_zyx_mm[1:] if scan.has_geometry else (np.nan, np.nan)
    hint = "state it in the scan, or take a network of another kind"
    scale.check_spacing(network.scale, [spacing_yx], [scan.name], where=str(scan.path), hint=hint)
    filled = scale.filled_size(view.field.padded_yx, spacing_yx, network.scale)
    return Form(scale.round_up(filled, network.step), network.slab, apart, filled)


def read_batches(scan, start, stop, batch_size, forms, view, *, pictures, volume):
    """Yields (first slice, {form: int16 [batch, *size] or [batch, *size, slab]}, count).

    Each slice is read and resized once; of those around a slab only what is still to be seen is kept. Slices are
    read a batch ahead, in a thread. The last batch is filled up with air.

    Args:
        scan: `scans.Scan`.
        start, stop: slices to give; neighbours beyond them are read too.
        batch_size: slices at once.
        forms: set of `Form`.
        view: `view.View` of the scan.
        pictures: list to which JPEGs of the slices are appended.
        volume: int16 [stop - start, h, w] that receives what lies in the view's box, or None.
    """
    reach, sizes = max(form.reach for form in forms), {form.sizes for form in forms}
    low, high = max(0, start - reach), min(scan.num_slices, stop + reach)
    window, first = {}, start
    for begin, resized, encoded in _read_ahead(
        scan, range(low, high, batch_size), high, sizes, view, (start, stop, volume)
    ):
        pictures += encoded
        window |= {begin + place: images for place, images in enumerate(resized)}
        end = begin + len(resized)
        while first < stop and (end == high or first + batch_size + reach <= end):
            count = min(batch_size, stop - first)
            yield first, _stack_all(window, forms, range(first, first + count), batch_size, scan), count
            first += count
            for place in [place for place in window if place < first - reach]:
                del window[place]


def _read_ahead(scan, begins, high, sizes, view, wanted):
    """Yields (first slice, [{sizes of a form: int16 [H, W]}], pictures) of blocks of slices, one block ahead in a thread."""
    start, stop, volume = wanted

    def read(begin):
        end = min(begin + begins.step, high)
        images = scan.read(begin, end)
        seen = view.box.cut(images)
        inside = slice(max(start, begin) - begin, max(0, min(stop, end) - begin))
        if volume is not None:
            place = volume[max(start, begin) - start : max(0, min(stop, end) - start)]
            place[:] = seen[inside]
            disk_arrays.release(place)
        encoded = [overlay.encode_picture(one) for one in images[inside]]
        return begin, _resize_all(seen, view.field, sizes), encoded

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = []
        for begin in begins:
            waiting.append(pool.submit(read, begin))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        yield waiting.pop(0).result()


def _resize_all(images, field, sizes):
    """Returns [{sizes of a form: int16 [H, W]}], one a slice: padded to the square, resized, and padded again."""
    before = np.array(field.offset_yx)
    after = np.array(field.padded_yx) - field.size_yx - before
    padded = np.pad(images, ((0, 0), *zip(before, after)), constant_values=AIR_HU)
    return [
        {(shown, size): scale.fit(resize_image(image, shown), size) for shown, size in sizes}
        for image in padded
    ]


def _stack_all(window, forms, indices, batch_size, scan):
    """Returns {form: what its networks see of slices}, filled up with air."""
    return {form: _stack(window, form, indices, batch_size, scan.num_slices) for form in forms}


def _stack(window, form, indices, batch_size, in_scan):
    filled = np.full((batch_size, *form.size_yx, form.slab), AIR_HU, np.int16)
    for row, index in enumerate(indices):
        around = slabs.places_around(index, num_slices=form.slab, apart=form.apart, in_scan=in_scan)
        for channel, place in enumerate(around.tolist()):
            filled[row, ..., channel] = window[place][form.sizes]
    return filled[..., 0] if form.slab == 1 else filled
