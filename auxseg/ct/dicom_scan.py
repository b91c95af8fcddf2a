"""The volume of a DICOM study that is segmented, and its planes: those missing are filled from their neighbours."""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct import dicom_pixels, dicom_volume, series_choice
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.find import Skipped

_FALLBACK_EXTENT = 0.5
"""Share of the best series' extent that another one must have to take its place."""


def choose_volume(source, wanted, *, force):
    """Returns (volume of the best usable series, findings that say why, the other series as `Skipped`).

    Where the best series cannot be used, the next one of about its extent is.

    Args:
        source: `find.Source` of kind 'dicom'.
        wanted: UID or number of a series, or None.
        force: leave out images that cannot be read.

    Raises:
        InputError: there is none; of the best one, why not.
    """
    ranked = series_choice.rank_series(source.series, wanted)
    chosen, volume, failures = _first_usable(ranked, force)
    by_series = {id(one.series): one for one in ranked}
    others = [one for one in source.series if one is not chosen.series]
    reasons = {id(one.series): reason for one, reason in failures}
    explained = [
        reasons.get(id(one)) or series_choice.explain(by_series.get(id(one)), chosen, wanted)
        for one in others
    ]
    text = f"segmented: {chosen.series}; {chosen.describe()}"
    text += ", as asked for" if wanted else f", the best of {len(source.series)} series" if others else ""
    findings = [Finding(INFO, "series", text)]
    findings += [
        Finding(INFO, "other-series", f"not segmented: {one}: {why}") for one, why in zip(others, explained)
    ]
    findings += [
        Finding(WARNING, "passed-over", f"{one.series} would come first and cannot be used: {reason}")
        for one, reason in failures
    ]
    skipped = tuple(
        Skipped(f"series {one.number} of {source.name}", one.paths[0].parent, why, len(one.paths), one)
        for one, why in zip(others, explained)
    )
    return volume, findings, skipped


def _first_usable(ranked, force):
    """Returns (`Candidate`, its volume, [(candidate passed over, why)]).

    Without any that is free of errors, the best one that makes a volume, for --force.
    """
    best, failures, flawed = ranked[0], [], None
    for one in ranked:
        if one is not best and not _can_replace(one, best):
            continue
        try:
            volume = _create_checked(one.series, force)
        except InputError as error:
            failures.append((one, error))
            continue
        errors = [finding.text for finding in volume.findings if finding.severity == ERROR]
        if not errors:
            return one, volume, [(other, str(why)) for other, why in failures]
        flawed = flawed or (one, volume)
        failures.append((one, errors[0]))
    if flawed is None:
        raise failures[0][1]
    before = failures[: [one for one, _ in failures].index(flawed[0])]
    return *flawed, [(one, str(why)) for one, why in before]


def _can_replace(candidate, best):
    """Returns whether a candidate shows about what the best one should have shown."""
    flaws = candidate.marks[:3]  # no CT, no transverse stack, another part of the body
    return flaws <= best.marks[:3] and candidate.extent_mm >= _FALLBACK_EXTENT * best.extent_mm


def _create_checked(series, force):
    """Returns the volume of a series whose pixels can be read: of the middle image, with force of all."""
    if force:
        series, lost = _drop_unreadable(series)
    volume = dicom_volume.create_volume(series)
    dicom_pixels.read_frame(volume.frames[len(volume.frames) // 2])
    return dataclasses.replace(volume, findings=(*volume.findings, *lost)) if force else volume


def _drop_unreadable(series):
    """Returns (the series without images that cannot be read, findings).

    Raises:
        InputError: none of them can be.
    """
    kept, problem = [], None
    for frame in series.frames:
        try:
            dicom_pixels.read_frame(frame)
            kept.append(frame)
        except InputError as error:
            problem = problem or error
    if not kept:
        raise problem
    if problem is None:
        return series, []
    text = f"{len(series.frames) - len(kept)} images cannot be read and were left out: {problem}"
    return dataclasses.replace(series, frames=tuple(kept)), [Finding(WARNING, "unreadable", text)]


def create_read_plane(volume):
    """Returns plane -> int16 [H, W] in HU; between slices that exist, in proportion to their distances."""
    frames = dict(zip(volume.places, volume.frames))

    def read_plane(plane):
        if plane in frames:
            return dicom_pixels.read_frame(frames[plane])
        after = bisect.bisect(volume.places, plane)
        low, high = volume.places[after - 1], volume.places[after]
        share = (plane - low) / (high - low)
        ends = [dicom_pixels.read_frame(frames[place]).astype(np.float32) for place in (low, high)]
        return np.rint((1 - share) * ends[0] + share * ends[1]).astype(np.int16)

    return read_plane
