"""Where the slices of a stack lie: an even grid for the volume, checked slice by slice against the positions.

Slices that are missing get a place of their own in the grid, so that what lies beyond them stays where it is.
Slices that are unevenly apart lie up to half a step from their place in the grid; their real distances are
kept for measurements.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.ct.checks import ERROR, WARNING, Finding

_EVEN = 0.1
"""Share of a step by which slices may miss the grid: positions are often written to a tenth of a millimetre."""
_MANY_MISSING = 0.25
"""Share of slices that may be filled from their neighbours without --force."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Places of slices in an even grid.

    Attributes:
        places: int [n], the plane of the grid that each slice lies in; the first is 0.
        step_mm: distance between planes along `third`.
        third: unit vector from plane to plane, float64 [3], LPS.
        origin_xyz_mm: position of the first pixel of plane 0.
        tilt_degrees: angle between `third` and the normal, 0.0 where they are one.
        widths_mm: float64 [planes], the thickness that each plane stands for along the normal; None where all
            are one step.
        findings: missing, uneven and shifted slices.
    """

    places: np.ndarray
    step_mm: float
    third: np.ndarray
    origin_xyz_mm: tuple[float, float, float]
    tilt_degrees: float
    widths_mm: np.ndarray | None
    findings: tuple[Finding, ...]


def fit_line(positions, normal, pixel_mm, where, *, lone_step_mm=1.0):
    """Returns the `Line` of a stack.

    Args:
        positions: float [n, 3], LPS, in the order of their heights along the normal, no two at one height.
        normal: unit vector [3] across the slices.
        pixel_mm: the smaller side of a pixel.
        where: what to call the stack in findings.
        lone_step_mm: the step of a single slice.
    """
    positions = np.asarray(positions, np.float64)
    heights = positions @ normal
    first = tuple(float(v) for v in positions[0])
    if len(positions) == 1:
        return Line(np.zeros(1, int), float(lone_step_mm), normal, first, 0.0, None, ())
    places, step, findings = _find_places(heights, where)
    widths, uneven = _find_widths(heights, places, step, where)
    slope, starts, shifted = _find_shifts(positions, heights, normal, pixel_mm, where)
    way = normal + slope
    third = way / np.linalg.norm(way) if slope.any() else normal
    tilt = float(np.degrees(np.arccos(np.clip(third @ normal, -1, 1)))) if slope.any() else 0.0
    origin = first if not shifted else tuple(float(v) for v in starts + heights[0] * normal)
    step_mm = float(step * np.linalg.norm(way)) if slope.any() else float(step)
    return Line(places, step_mm, third, origin, tilt, widths, (*findings, *uneven, *shifted))


def _find_places(heights, where):
    """Returns (place of each slice, step in mm, findings about missing slices)."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    places = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(steps / usual).astype(int)))])
    step = (heights[-1] - heights[0]) / places[-1]
    if np.abs(heights - heights[0] - places * step).max() > 0.3 * step:
        places, step = _round_to_grid(heights, usual)
    return places, float(step), _missing_findings(heights, places, step, where)


def _round_to_grid(heights, usual):
    """Returns (places, step) of the coarsest grid that tells all slices apart, else a plane for each slice."""
    for step in (usual, float(np.diff(heights).min())):
        places = np.rint((heights - heights[0]) / step).astype(int)
        if np.diff(places).min() > 0 and places[-1] + 1 <= 3 * len(heights):
            return places, step
    return np.arange(len(heights)), (heights[-1] - heights[0]) / (len(heights) - 1)


def _missing_findings(heights, places, step, where):
    gaps = np.diff(places) - 1
    missing = int(gaps.sum())
    if not missing:
        return []
    after = np.flatnonzero(gaps)
    at = ", ".join(f"{heights[k]:.1f}" for k in after[:3]) + (", ..." if after.size > 3 else "")
    share = missing / (places[-1] + 1)
    severity = ERROR if share > _MANY_MISSING else WARNING
    text = (
        f"{count_slices(missing, 'missing slice')}: after {at} mm along the normal the next lies more than "
        f"{step:.3g} mm away, in {where}; what is missing is filled from its neighbours; fetch the whole series "
        f"again{_force_hint(severity)}"
    )
    return [Finding(severity, "missing-slices", text)]


def _find_widths(heights, places, step, where):
    """Returns (thickness of each plane or None, findings) from the slices' real heights."""
    apart_mm = np.abs(heights - heights[0] - places * step)
    if apart_mm.max() <= max(_EVEN * step, 0.02):
        return None, []
    real = np.interp(np.arange(places[-1] + 1), places, heights)
    middles = (real[1:] + real[:-1]) / 2
    ends = real[0] - (middles[0] - real[0]), real[-1] + (real[-1] - middles[-1])
    steps = np.diff(heights)
    severity = ERROR if apart_mm.max() > 2 * step else WARNING
    text = (
        f"uneven slices: {steps.min():.3g} to {steps.max():.3g} mm apart, in {where}; volumes are measured with the "
        f"real distances, the mask's grid has {step:.3g} mm and slices lie up to {apart_mm.max():.2g} mm from it"
        f"{_force_hint(severity)}"
    )
    return np.diff([ends[0], *middles, ends[1]]), [Finding(severity, "uneven", text)]


def count_slices(count, what="slice"):
    """Returns '1 slice', '2 slices'."""
    return f"{count} {what}{'s' if count != 1 else ''}"


def _force_hint(severity):
    return " (predict --force goes on)" if severity == ERROR else ""


def _find_shifts(positions, heights, normal, pixel_mm, where):
    """Returns (sideways shift per mm of height [3], position at height 0 [3], findings).

    The line is fitted to the slices that lie on it, and each slice is compared with it.
    """
    sideways = positions - heights[:, None] * normal
    inside = np.ones(len(heights), bool)
    for _ in range(3):
        slope, start = _fit(heights[inside], sideways[inside])
        apart_mm = np.linalg.norm(sideways - start - heights[:, None] * slope, axis=1)
        inside = apart_mm <= max(3 * float(np.median(apart_mm)), 0.1 * pixel_mm)
    if np.linalg.norm(slope) * (heights[-1] - heights[0]) <= 0.5 * pixel_mm:
        slope, start = np.zeros(3), np.median(sideways[inside], axis=0)
        apart_mm = np.linalg.norm(sideways - start, axis=1)
    off = np.flatnonzero(apart_mm > 0.75 * pixel_mm)
    if not off.size:
        return slope, start, []
    listed = ", ".join(f"{heights[k]:.1f}" for k in off[:3]) + (", ..." if off.size > 3 else "")
    severity = ERROR if apart_mm.max() > 2 * pixel_mm else WARNING
    text = (
        f"{count_slices(off.size)} up to {apart_mm.max():.1f} mm beside the line of the others (at {listed} mm along "
        f"the normal), expected a straight stack, in {where}; keep one stack in the folder{_force_hint(severity)}"
    )
    return slope, start, [Finding(severity, "line", text)]


def _fit(heights, sideways):
    """Returns (slope [3], start [3]) of the least squares line sideways = start + height * slope."""
    centred = heights - heights.mean()
    spread = float(centred @ centred)
    slope = centred @ sideways / spread if spread > 0 else np.zeros(3)
    return slope, sideways.mean(0) - heights.mean() * slope
