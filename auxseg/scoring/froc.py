"""Free-response scores of nodules in whole scans, by LUNA16's rule (Setio et al. 2017, doi:10.1016/j.media.2017.06.015).

A finding hits a nodule if it lies closer to the nodule's centre than its radius. Further hits of one nodule count
nothing, findings within the radius of an excluded one count nothing, and the rest are false. Of each scan the 100
most probable findings are kept. Sensitivity is read at 1/8 to 8 false ones a scan, linearly between the points of
the curve; the mean of the seven is the CPM.

Positions are LPS in mm and files are LUNA16's own: `seriesuid,coordX,coordY,coordZ` and then `diameter_mm` of a
nodule or `probability` of a finding.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError

FALSE_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Where the sensitivity is read."""
LEAST_TO_RATE = 10
"""Scans, and nodules, below which there are counts and no rates."""
MOST_FINDINGS = 100
"""Of one scan that are judged, the most probable."""
UNKNOWN_DIAMETER_MM = 10.0
"""Of an excluded finding without a diameter, which the files mark by a negative one."""

_POSITION = ("seriesuid", "coordX", "coordY", "coordZ")


@dataclasses.dataclass(frozen=True)
class Matches:
    """What is found in one scan.

    Attributes:
        hits: float64 [nodules], the highest probability of the findings that hit each; NaN where none does.
        false: float64 [n], the probability of each false finding.
    """

    hits: np.ndarray
    false: np.ndarray


def read_annotations(path):
    """Returns {series UID: float64 [n, 4]} of nodules or excluded findings: x, y, z and diameter in mm.

    A row that is there twice counts once.

    Raises:
        InputError: no such file, columns missing, or a value that is no number.
    """
    found = _read(path, "diameter_mm")
    return {uid: np.array(list(dict.fromkeys(map(tuple, rows.tolist())))) for uid, rows in found.items()}


def read_candidates(path):
    """Returns {series UID: float64 [n, 4]} of findings: x, y, z in mm and probability; errors as above."""
    return _read(path, "probability")


def write_candidates(path, findings):
    """Writes {series UID: [n, 4]} of x, y, z in mm and probability in LUNA16's form."""
    names = (*_POSITION, "probability")
    rows = [
        dict(zip(names, (uid, *map(float, row)), strict=True))
        for uid in sorted(findings)
        for row in findings[uid]
    ]
    files.write_csv(path, rows, names)


def match(findings, nodules, excluded=()):
    """Returns the `Matches` of one scan.

    Args:
        findings: float [n, 4]: x, y, z in mm and probability.
        nodules: float [m, 4]: x, y, z and diameter in mm.
        excluded: the same, of what is neither nodule nor not.
    """
    findings, nodules, excluded = (
        np.asarray(part, np.float64).reshape(-1, 4) for part in (findings, nodules, excluded)
    )
    findings = findings[np.argsort(-findings[:, 3], kind="stable")][:MOST_FINDINGS]
    inside, ignored = _inside(findings, nodules), _inside(findings, excluded)
    probability = np.broadcast_to(findings[:, 3, None], inside.shape)
    hits = np.where(inside, probability, -np.inf).max(axis=0, initial=-np.inf)
    left = ~(inside.any(axis=1) | ignored.any(axis=1))
    return Matches(np.where(np.isfinite(hits), hits, np.nan), findings[left, 3])


def curve(scans):
    """Returns the free-response curve over scans, from the highest threshold to the lowest.

    Args:
        scans: `Matches` of each.

    Returns:
        (false ones a scan, sensitivity), float64 [points] each, beginning at (0, 0); the sensitivity is NaN
        where no scan has a nodule.

    Raises:
        InputError: there is no scan.
    """
    scans = list(scans)
    if not scans:
        raise InputError("froc: no scan was given, expected at least one")
    hits, false = (np.concatenate([getattr(scan, name) for scan in scans]) for name in ("hits", "false"))
    found = hits[~np.isnan(hits)]
    thresholds = np.unique(np.concatenate([found, false]))[::-1]
    num_false = len(false) - np.searchsorted(np.sort(false), thresholds)
    num_found = len(found) - np.searchsorted(np.sort(found), thresholds)
    sensitivity = (
        np.concatenate([[0.0], num_found]) / len(hits) if len(hits) else np.full(len(thresholds) + 1, np.nan)
    )
    return np.concatenate([[0.0], num_false]) / len(scans), sensitivity


def sensitivities(scans):
    """Returns the sensitivity at each of `FALSE_PER_SCAN`, float64 [7]; NaN where no scan has a nodule."""
    return np.interp(FALSE_PER_SCAN, *curve(scans))


def summarise(scans, *, num_resamples=1000, seed=0):
    """Returns the scores of some scans as a dict, ready for JSON.

    Args:
        scans: `Matches` of each.
        num_resamples: of the bootstrap over scans.
        seed: of the bootstrap.

    Returns:
        `num_scans`, `num_nodules`, `num_found` at any threshold, `num_false`; `found_at` {false ones a scan: nodules
        found}; `sensitivity` {false ones a scan: value}, `cpm`, and 95 % intervals of both, `sensitivity_interval` and
        `cpm_interval`. These are None with fewer than `LEAST_TO_RATE` scans or nodules: a handful is counted.
    """
    scans = list(scans)
    hits = np.concatenate([scan.hits for scan in scans])
    summary = {
        "num_scans": len(scans),
        "num_nodules": len(hits),
        "num_found": int((~np.isnan(hits)).sum()),
        "num_false": sum(len(scan.false) for scan in scans),
        "found_at": {
            f"{rate:g}": int((hits >= choose_threshold(scans, rate)).sum()) for rate in FALSE_PER_SCAN
        },
    }
    rates = dict.fromkeys(("sensitivity", "sensitivity_interval", "cpm", "cpm_interval"))
    if min(len(scans), len(hits)) >= LEAST_TO_RATE:
        values, drawn = sensitivities(scans), _resample(scans, num_resamples, seed)
        names = [f"{rate:g}" for rate in FALSE_PER_SCAN]
        limits = np.nanpercentile(drawn, (2.5, 97.5), axis=0).T
        rates = {
            "sensitivity": dict(zip(names, values.tolist())),
            "sensitivity_interval": dict(zip(names, limits.tolist())),
            "cpm": float(values.mean()),
            "cpm_interval": np.nanpercentile(drawn.mean(axis=1), (2.5, 97.5)).tolist(),
        }
    return summary | rates


def choose_threshold(scans, false_per_scan):
    """Returns the lowest probability at which no more than `false_per_scan` are false on average; inf where none is.

    Args:
        scans: `Matches` of each.
        false_per_scan: that are allowed.
    """
    scans = list(scans)
    false = np.sort(np.concatenate([scan.false for scan in scans]))[::-1]
    allowed = math.floor(false_per_scan * len(scans) + 1e-9)
    if allowed >= len(false):
        return 0.0
    return float(np.nextafter(false[allowed], np.inf))


def _inside(findings, nodules):
    """Returns whether each finding lies closer to each nodule than its radius, bool [findings, nodules]."""
    distance = np.square(findings[:, None, :3] - nodules[None, :, :3]).sum(axis=2)
    diameter = np.where(nodules[:, 3] < 0, UNKNOWN_DIAMETER_MM, nodules[:, 3])
    return distance < np.square(diameter / 2.0)[None]


def _resample(scans, num_resamples, seed):
    """Returns the sensitivities of scans drawn with replacement, float64 [num_resamples, 7]; NaN without a nodule."""
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = (generator.integers(len(scans), size=len(scans)) for _ in range(num_resamples))
    return np.array([sensitivities([scans[i] for i in rows]) for rows in drawn])


def _read(path, last):
    path = pathlib.Path(path).expanduser()
    found = {}
    rows = files.read_cells(path, (*_POSITION, last), hint="expected LUNA16's CSV")
    for number, row in enumerate(rows, start=2):
        try:
            values = [float(row[name]) for name in (*_POSITION[1:], last)]
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; expected LUNA16's CSV") from error
        if not all(map(math.isfinite, values)):
            raise InputError(f"{path}, line {number}: holds a value that is not finite")
        found.setdefault(row["seriesuid"].strip(), []).append(values)
    return {uid: np.array(rows) for uid, rows in found.items()}
