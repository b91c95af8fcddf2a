"""What a network sees of a scan: all of each slice, or the square around the body, made as high as wide."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import body
from auxseg.runs import masks

_MAX_SIDE = 8192
_UNKNOWN_MM = 0.7  # of a scan without a pixel size, whose body is found all the same


@dataclasses.dataclass(frozen=True)
class View:
    """The part of each slice that the network sees, and where it lies.

    Attributes:
        box: rows and columns of the slice; perhaps beyond it.
        field: the box with air around it, as high as wide; the box itself for networks of a fixed scale.
        shape_yx: of a slice.
    """

    box: body.Box
    field: masks.Field
    shape_yx: tuple[int, int]

    @property
    def shown_yx(self):
        """Rows and columns of the box, as slices, that the scan holds."""
        return self.box.shown(self.shape_yx)

    def paste_probabilities(self, parts):
        """Returns probabilities [C, n, h, w] of the box as those of whole slices: background outside it."""
        whole = self.box.paste(parts, self.shape_yx)
        outside = self.box.paste(np.ones(parts.shape[-2:], bool), self.shape_yx)
        whole[0][..., ~outside] = 1.0
        return whole


def create_view(scan, networks):
    """Returns the `View` that networks were trained with.

    Raises:
        InputError: the networks see other fields each, or slices are far from as high as wide.
    """
    fields = {one.field for one in networks}
    if len(fields) > 1:
        raise InputError(
            "--workdir: some of the networks see the body alone and some the whole slice (data.field); "
            "average networks of one kind"
        )
    shape = tuple(scan.geometry.shape_zyx[1:])
    box = _body_box(scan) if fields == {"body"} else None
    box = box or body.Box((0, 0), shape)
    if all(one.scale is not None for one in networks):
        return View(box, masks.Field(box.size_yx, box.size_yx, (0, 0)), shape)
    return View(box, _create_field(scan, box.size_yx), shape)


def _body_box(scan):
    spacing = scan.geometry.spacing_zyx_mm[1:] if scan.has_geometry else (_UNKNOWN_MM, _UNKNOWN_MM)
    return body.find_body(scan.read, scan.num_slices, spacing)


def _create_field(scan, size_yx):
    spacing = scan.geometry.spacing_zyx_mm[1:]
    side_mm = max(n * mm for n, mm in zip(size_yx, spacing))
    padded = tuple(max(n, round(side_mm / mm)) for n, mm in zip(size_yx, spacing))
    if max(padded) > _MAX_SIDE:
        raise InputError(
            f"scan: {scan.path} has slices of {scan.geometry.shape_zyx[1:]} pixels of {spacing} mm, expected a field "
            "about as high as wide; check the spacing"
        )
    return masks.Field(size_yx, padded, tuple((p - n) // 2 for p, n in zip(padded, size_yx)))
