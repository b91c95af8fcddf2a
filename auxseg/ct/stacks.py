"""Which images of a series belong together: one size, one orientation, one image a place.

What does not belong (scout views, a screenshot, a second acquisition) is left out and named.
"""

from __future__ import annotations

import collections

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import dicom_pixels
from auxseg.ct.checks import ERROR, WARNING, Finding
from auxseg.ct.dicom import normal

SAME_PLACE_MM = 0.01
"""Slices closer than this are at one place."""
_MINORITY = 0.25
"""Share of the images that may be left out without --force."""
_COSINES, _PIXEL = 0.01, 0.005
"""Differences of cosines and of pixel sizes (as a share) between images of one kind: header values jitter."""


def drop_localizers(series):
    """Returns (frames that are no scout view, findings).

    Args:
        series: `dicom.Series` with frames.
    """
    frames = [frame for frame in series.frames if "LOCALIZER" not in frame.image_type]
    dropped = len(series.frames) - len(frames)
    if not frames:
        text = f"{series} holds scout views (localizers) only; give the axial series"
        return list(series.frames), [Finding(ERROR, "localizer", f"DICOM: {text}")]
    findings = [Finding(WARNING, "localizer", f"{dropped} scout views left out")] if dropped else []
    return frames, findings


def drop_pictures(frames, where):
    """Returns (frames with values in HU, findings about the others, such as a screenshot among them).

    Where none is in HU all are kept, with an error.

    Args:
        frames: `dicom.Frame`s.
        where: what to call the series in an error.

    Raises:
        InputError: colour pictures alone.
    """
    kept, others = [one for one in frames if not one.flaw], [one for one in frames if one.flaw]
    if not others:
        return kept, []
    if kept:
        text = f"{len(others)} of {len(frames)} images are left out: {others[0].flaw.text}"
        lost = len(others) > _MINORITY * len(frames)
        hint = " (predict --force goes on without)" if lost else ""
        return kept, [Finding(ERROR if lost else WARNING, "pictures", text + hint)]
    if any(one.flaw.code == "colour" for one in others):
        raise InputError(f"DICOM: {others[0].flaw.text}, in {where}")
    return others, list({one.flaw.code: one.flaw for one in reversed(others)}.values())


def keep_one_kind(frames, where):
    """Returns (frames of one size, orientation and pixel size, findings about the others).

    The kind with the most places is kept.

    Args:
        frames: `dicom.Frame`s with a place.
        where: what to call the series in findings.
    """
    kinds = group_alike(frames)
    if len(kinds) == 1:
        return frames, []
    kinds.sort(key=lambda kind: -count_places(kind))
    kept, others = kinds[0], [frame for kind in kinds[1:] for frame in kind]
    listed = "; ".join(_describe_kind(kind) for kind in kinds[:4]) + ("; ..." if len(kinds) > 4 else "")
    text = (
        f"mixed images in {where}: {listed}; the first kind is segmented, {len(others)} images are left out"
    )
    return kept, [_left_out("mixed-images", text, kept, others, len(frames))]


def group_alike(frames):
    """Returns lists of frames that agree in size, orientation and pixel size within a tolerance."""
    kinds = []
    for frame in frames:
        for kind in kinds:
            if _are_alike(frame, kind[0]):
                kind.append(frame)
                break
        else:
            kinds.append([frame])
    return kinds


def _are_alike(one, other):
    return (
        one.size_yx == other.size_yx
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=_COSINES)
        and np.allclose(one.spacing_yx_mm, other.spacing_yx_mm, rtol=_PIXEL, atol=0)
    )


def _describe_kind(kind):
    frame = kind[0]
    cosines = ", ".join(f"{v:.3g}" for v in frame.orientation)
    rows, columns = frame.size_yx
    return f"{len(kind)} of {rows}x{columns} along ({cosines}) at {frame.spacing_yx_mm[0]:.4g} mm"


def find_heights(frames):
    """Returns the heights of frames along the first one's normal, mm, float64 [n]."""
    return np.array([frame.position_xyz_mm for frame in frames]) @ normal(frames[0])


def count_places(frames):
    """Returns at how many heights frames of one orientation lie."""
    heights = np.sort(find_heights(frames))
    return 1 + int((np.diff(heights) > SAME_PLACE_MM).sum())


def _left_out(code, text, kept, others, total):
    """Returns the finding about images left out: an error where that may be a part of the chest."""
    lost = len(others) > _MINORITY * total and not _covers(kept, others)
    hint = "; give one kind alone, or use predict --force" if lost else ""
    return Finding(ERROR if lost else WARNING, code, text + hint)


def _covers(kept, others):
    """Returns whether images left out lie no further up or down than those kept."""
    heights = find_heights(kept)
    margin = 0.1 * float(np.ptp(heights)) + SAME_PLACE_MM
    places = np.array([frame.position_xyz_mm for frame in others]) @ normal(kept[0])
    return bool(places.min() >= heights.min() - margin and places.max() <= heights.max() + margin)


def keep_one_a_place(frames, where):
    """Returns (frames in the order of their heights, one a height, findings).

    Copies are dropped. Where different images lie at one height, one acquisition is kept.

    Args:
        frames: `dicom.Frame`s of one kind.
        where: what to call the series in findings.
    """
    places, num_copies = _drop_copies(frames)
    findings = []
    if num_copies:
        text = f"{num_copies} images are copies of others and were left out"
        findings.append(Finding(WARNING, "duplicates", text))
    if all(len(place) == 1 for place in places):
        return [place[0] for place in places], findings
    kept, finding = _choose_acquisition([frame for place in places for frame in place], where)
    return kept, [*findings, finding]


def _drop_copies(frames):
    """Returns (the different frames at each height, from low to high, number of copies)."""
    heights = find_heights(frames)
    order = sorted(range(len(frames)), key=lambda k: (heights[k], frames[k].sop_uid, frames[k].index))
    places, last, num_copies = [], -np.inf, 0
    for k in order:
        if heights[k] - last > SAME_PLACE_MM:
            places.append([frames[k]])
            last = heights[k]
        elif any(_same_pixels(frames[k], other) for other in places[-1]):
            num_copies += 1
        else:
            places[-1].append(frames[k])
    return places, num_copies


def _same_pixels(one, other):
    """Returns whether two frames hold the same values; one that cannot be read is no copy."""
    try:
        return np.array_equal(dicom_pixels.read_frame(one), dicom_pixels.read_frame(other))
    except InputError:
        return False


_KEYS = {
    "acquisition": lambda frame: frame.acquisition,
    "kind of image": lambda frame: "\\".join(frame.image_type),
    "kernel": lambda frame: frame.kernel,
    "acquisition time": lambda frame: " ".join(frame.times).strip(),
}
"""What tells the acquisitions in one series apart, in the order tried."""


def _choose_acquisition(frames, where):
    """Returns (frames of one acquisition by height, finding that names what was left out)."""
    place = ", ".join(f"{v:.1f}" for v in _doubled(frames).position_xyz_mm)
    head = f"different images at one position, such as ({place}) mm, in {where}"
    for name, key in _KEYS.items():
        groups = collections.defaultdict(list)
        for frame in frames:
            groups[key(frame)].append(frame)
        chosen = min(groups, key=lambda one: (-count_places(groups[one]), one))
        kept = groups[chosen]
        if len(groups) > 1 and count_places(kept) == len(kept):
            others = [frame for one, group in groups.items() if one != chosen for frame in group]
            names = ", ".join(repr(one) for one in sorted(groups) if one != chosen)
            text = (
                f"{head}: {name} {chosen!r} with {len(kept)} images is segmented, {len(others)} images of {name} "
                f"{names} are left out"
            )
            return _by_height(kept), _left_out("acquisitions", text, kept, others, len(frames))
    kept = _first_at_each(frames)
    text = (
        f"DICOM: {head}, and nothing says which belong together; put each acquisition in a folder of its own "
        "(predict --force takes the first image at each position)"
    )
    return kept, Finding(ERROR, "acquisitions", text)


def _doubled(frames):
    """Returns a frame at whose height another one lies."""
    ordered = _by_height(frames)
    heights = find_heights(ordered)
    return ordered[int(np.flatnonzero(np.diff(heights) <= SAME_PLACE_MM)[0])]


def _by_height(frames):
    heights = find_heights(frames)
    return [frames[k] for k in np.argsort(heights, kind="stable")]


def _first_at_each(frames):
    """Returns the frame of the lowest image number at each height."""
    ordered = _by_height(sorted(frames, key=lambda frame: (frame.number, frame.sop_uid, frame.index)))
    kept = ordered[:1]
    for frame in ordered[1:]:
        if np.ptp(find_heights([kept[-1], frame])) > SAME_PLACE_MM:
            kept.append(frame)
    return kept
