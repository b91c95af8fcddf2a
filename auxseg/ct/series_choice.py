"""Which series of a DICOM study is the chest CT, and why.

CT before all else; then transverse stacks of more than one place, series that are not named for another part
of the body, original before derived images, those named for the chest, the whole extent, the most places
(the thinnest slices), the lowest number. Images are never counted: a hundred at one place are one.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import stacks
from auxseg.ct.dicom import Series, normal

_CHEST = re.compile(r"chest|thora|lung|pulmo|poumon|lunge", re.IGNORECASE)
_OTHER_PART = re.compile(
    r"abdo|pelvi|head|brain|skull|neck|knee|spine|sinus|hip\b|foot|ankle|wrist", re.IGNORECASE
)
_DERIVED = {"DERIVED", "SECONDARY", "MIP", "MINIP", "MPR", "PROJECTION IMAGE", "REFORMATTED", "AVERAGE"}
_SAME_EXTENT = 0.75
"""Series of at least this share of the longest one show as much of the chest as it does."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A series, and what speaks for and against it.

    Attributes:
        series: the series.
        num_places: heights at which its images lie.
        extent_mm: from the lowest to the highest.
        marks: one bool a criterion of `_CRITERIA`, False is better.
    """

    series: Series
    num_places: int
    extent_mm: float
    marks: tuple[bool, ...]

    @property
    def order(self):
        """What candidates are sorted by."""
        return (*self.marks, -self.num_places, self.series.number, self.series.uid)

    def describe(self):
        """Returns in words what was looked at."""
        kind = "derived" if self.marks[_CRITERIA.index("derived")] else "original"
        return f"{kind}, {self.num_places} places over {self.extent_mm:.0f} mm"


_CRITERIA = ("no CT", "no transverse stack", "another part of the body", "derived", "not named for the chest",
             "a shorter extent")  # fmt: skip


def rank_series(series, wanted=None):
    """Returns the series that may be segmented as `Candidate`s, the best first.

    Args:
        series: from `dicom.merge_series`, at least one, each with images.
        wanted: SeriesInstanceUID or SeriesNumber that the user asks for, or None.

    Raises:
        InputError: `wanted` is none of them; the message lists what there is.
    """
    listing = "; ".join(str(one) for one in series)
    images = series
    if wanted is not None:
        matches = [one for one in series if wanted in (one.uid, str(one.number))]
        if len(matches) != 1:
            raise InputError(f"--series: got {wanted!r}, expected the UID or number of one of: {listing}")
        images = matches
    views = [_view(one) for one in images]
    longest = max((extent for _, extent, transverse in views if transverse), default=0.0)
    return sorted(
        (_create_candidate(one, view, longest) for one, view in zip(images, views)), key=lambda one: one.order
    )


def _create_candidate(series, view, longest_mm):
    num_places, extent_mm, transverse = view
    named, other = _CHEST.search(series.description), _OTHER_PART.search(series.description)
    marks = (
        series.modality not in ("CT", ""),
        not transverse or num_places < 2,
        bool(other) and not named,
        _is_derived(series),
        not named,
        extent_mm < _SAME_EXTENT * longest_mm,
    )
    return Candidate(series, num_places, extent_mm, marks)


def _view(series):
    """Returns (places, extent in mm, whether transverse) of the main stack of a series."""
    placed = [
        frame
        for frame in series.frames
        if None not in (frame.position_xyz_mm, frame.orientation, frame.spacing_yx_mm)
        and "LOCALIZER" not in frame.image_type
    ]
    if not placed:
        return _view_by_location(series)
    main = max(stacks.group_alike(placed), key=stacks.count_places)
    return stacks.count_places(main), float(np.ptp(stacks.find_heights(main))), abs(normal(main[0])[2]) > 0.8


def _view_by_location(series):
    """Returns (places, extent, True) where only SliceLocation says where images lie."""
    heights = {round(frame.location_mm, 2) for frame in series.frames if frame.location_mm is not None}
    return len(heights), max(heights) - min(heights) if heights else 0.0, True


def _is_derived(series):
    """Returns whether most images of a series were computed from others."""
    derived = sum(bool(_DERIVED & set(frame.image_type)) for frame in series.frames)
    return 2 * derived > len(series.frames)


def explain(candidate, chosen, wanted=None):
    """Returns why a series of the study was not chosen, in a few words.

    Args:
        candidate: its `Candidate`, or None where it was not ranked.
        chosen: the `Candidate` that was.
        wanted: what the user asked for, or None.
    """
    if candidate is None:
        return f"--series={wanted} was asked for"
    for name, one, other in zip(_CRITERIA, candidate.marks, chosen.marks):
        if one != other:
            return name if one else f"not usable, though not {name}"
    if candidate.num_places != chosen.num_places:
        fewer = candidate.num_places < chosen.num_places
        return (
            f"{candidate.num_places} places" if fewer else f"not usable, though {candidate.num_places} places"
        )
    return "as many places, a higher number"
