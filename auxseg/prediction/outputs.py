"""Segments scans to folders: one a scan, written whole, skipped when it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

import numpy as np

from auxseg import __version__
from auxseg.base import files, progress
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.ct import dicom_seg, geometry, headers, scans, writers
from auxseg.ct.checks import INFO, WARNING, Finding
from auxseg.prediction import scan_page, segment
from auxseg.prediction.segment import Options

DONE = "prediction.json"
_NO_NODULES = Finding(
    WARNING, "no-nodules", "the networks in the box mark lungs alone: no nodule was looked for"
)


def write_segmentation(folder, result, networks, *, formats, settings):
    """Writes everything about one scan to a folder, `prediction.json` last.

    Args:
        folder: pathlib.Path, exists.
        result: `Segmentation`.
        networks: what made it.
        formats: of the mask, among `writers.FORMATS`; probabilities take the first that is a volume.
        settings: JSON types, kept to know a prediction of the same kind again.
    """
    scan, span = result.scan, (result.start, result.stop)
    names = []
    for form in formats:
        names.append("mask.dcm" if form == "dicom-seg" else f"mask.{form}")
        if form == "dicom-seg":
            makers = " + ".join(one.name for one in networks)
            checksum = networks[0].checksum
            dicom_seg.write_dicom_seg(
                folder / names[-1], result.masks, scan, *span, model_name=makers, checksum=checksum
            )
        else:
            writers.write_mask(folder / names[-1], result.masks, scan, *span)
    names += _write_probabilities(folder, result, formats)
    if result.measurements:
        files.write_csv(folder / "measurements.csv", result.measurements, digits=files.FEW_DIGITS)
    scan_page.write_pictures(folder, result, networks)
    about = {
        "settings": settings,
        "scan": str(scan.path),
        "kind": scan.kind,
        "size_xyz": list(result.geometry.size_xyz),
        "slices": [result.start, result.stop],
        "networks": [{"name": one.name, "sha256": one.checksum} for one in networks],
        "box": settings.get("box"),
        "files": names,
        "changed": result.changed,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "lungs_ml": [_total(result, name) for name in ("left_lung", "right_lung")],
        "nodules": sum(row["structure"].startswith("nodule") for row in result.measurements),
        "auxseg": __version__,
    }
    files.write_json(folder / DONE, about)


def _total(result, name):
    values = [row["volume_ml"] for row in result.measurements if row["structure"] == name]
    return round(values[0], 3) if values and np.isfinite(values[0]) else None


def _write_probabilities(folder, result, formats):
    if result.probabilities is None:
        return []
    form = next((one for one in formats if one in writers.VOLUME_FORMATS and one != "npz"), "nrrd")
    names = []
    for value, name in enumerate(CLASS_NAMES[1:], start=1):
        names.append(f"probability_{name}.{form}")
        stored = geometry.from_canonical(result.probabilities[value], result.scan.orientation)
        writers.write_volume(folder / names[-1], stored, result.geometry, "float32")
    return names


def predict(path, output, networks, *, options=Options(), formats=("nii.gz",), series=None, box=None):
    """Returns one dict a scan (name, status, seconds, lungs, nodules, reason), after writing all outputs.

    A scan that is done is skipped; one that fails is listed and the others go on. With several scans each
    has a folder of its own in `output`, and `scans.csv` there has these rows.

    Args:
        path: a scan, or a folder of scans.
        output: folder to write to.
        networks: `networks.Network`s.
        options: `Options`.
        formats: of the masks.
        series: SeriesInstanceUID or SeriesNumber, where the input is one DICOM study.
        box: `box.Box` that the networks are of, which the outputs then name, or None.

    Raises:
        InputError: nothing to do, or the only scan cannot be used.
    """
    found = scans.find_scans(path)
    if series is not None and len(found) > 1:
        raise InputError(f"--series: {path} holds {len(found)} scans; give it with one of them")
    settings = _describe_settings(networks, options, formats, series, box)
    with _claimed(pathlib.Path(output)) as folder:
        if len(found) == 1:
            return [_predict_one(found[0], folder, networks, options, formats, settings, box, series, True)]
        rows = []
        for source in progress.track(found, total=len(found), label="segmenting", unit="scan"):
            args = networks, options, formats, settings, box
            rows.append(_predict_guarded(source, folder / source.name, *args))
            files.write_csv(folder / "scans.csv", rows, digits=files.FEW_DIGITS)
        return rows


def _describe_settings(networks, options, formats, series, box):
    return {
        **dataclasses.asdict(dataclasses.replace(options, batch_size=1)),
        "slices": str(options.slices),
        "formats": list(formats),
        "series": series,
        "networks": [one.checksum for one in networks],
        "box": None if box is None else {"version": box.version, "sha256": box.checksum},
    }


@contextlib.contextmanager
def _claimed(output):
    """Holds an output folder for one process and clears what a killed one left behind."""
    if output.is_file() or output.name.lower().endswith((*headers.SUFFIXES, ".dcm", ".npz", ".zip")):
        raise InputError(f"--output: got {output}, expected a folder; the mask's format is --format")
    with files.locked(output, name="--output", hint="give another folder"):
        _clear(output)
        yield output


def _clear(output):
    """Removes what a killed process left in an output folder."""
    for left in [*output.glob(".scratch-*"), *output.glob("*/.scratch-*")]:
        shutil.rmtree(left, ignore_errors=True)
    for left in [*output.glob(".*.part"), *output.glob("*/.*.part")]:
        left.unlink(missing_ok=True)


def _predict_guarded(source, folder, *args):
    """Returns the row of one scan among many; whatever goes wrong with it is its own affair."""
    start = time.monotonic()
    try:
        return _predict_one(source, folder, *args)
    except Exception as error:
        if not isinstance(error, (InputError, OSError)):
            traceback.print_exc()
            error = f"fault of auxseg: {type(error).__name__}: {error}"
        reason = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing was written
        return _row(source, "failed", time.monotonic() - start, reason=reason)


def _predict_one(source, folder, networks, options, formats, settings, box, series=None, show_progress=False):
    start = time.monotonic()
    settings = {**settings, "input": _fingerprint(source)}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / DONE).exists():
        return _row(source, "done before", 0.0, _read_done(folder, settings))
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
        scan = scans.open_scan(source, scratch, series=series)
        if show_progress:
            _print_series(scan)
        for form in formats:
            writers.check_format(form, scan)
        result = segment.segment_scan(
            scan,
            networks,
            options,
            pathlib.Path(scratch),
            second=box and box.nodules,
            show_progress=show_progress,
        )
        if box is not None and box.nodules is None:
            result = dataclasses.replace(result, findings=(*result.findings, _NO_NODULES))
        write_segmentation(folder, result, networks, formats=formats, settings=settings)
    return _row(source, "done", time.monotonic() - start, _read_about(folder))


def _print_series(scan):
    """Says which series of a DICOM study is segmented, where there was a choice."""
    lines = [finding.text for finding in scan.findings if finding.code in ("series", "other-series")]
    for line in lines if len(lines) > 1 else ():
        print(line, file=sys.stderr, flush=True)


def _fingerprint(source):
    """Returns what tells whether an input is still the same: number, bytes and newest change of its files.

    Raises:
        InputError: the source is broken.
    """
    if source.kind == "broken":
        raise InputError(source.problem)
    paths = {frame.path for one in source.series for frame in one.frames} or {source.path}
    beside = {path.with_suffix(suffix) for path in paths for suffix in (".raw", ".zraw", ".gz")}
    stats = [path.stat() for path in paths | {path for path in beside if path.is_file()}]
    return [len(stats), sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)]


def _read_about(folder):
    return files.read_object(folder / DONE, hint="remove it and start again")


def _read_done(folder, settings):
    """Returns what `prediction.json` says.

    Raises:
        InputError: the prediction there was made from another input or with other settings.
    """
    about = _read_about(folder)
    old = about.get("settings", {})
    different = sorted(name for name in settings.keys() | old.keys() if settings.get(name) != old.get(name))
    if different:
        raise InputError(
            f"--output: {folder} holds a prediction that differs in {', '.join(different)}; give another "
            f"folder, or remove {folder / DONE}"
        )
    return about


def _row(source, status, seconds, about=None, reason=""):
    about = about or {}
    left, right = about.get("lungs_ml", (None, None))
    warnings = [one["text"] for one in about.get("findings", []) if one["severity"] != INFO]
    return {
        "scan": source.name, "status": status, "seconds": float(seconds), "left_lung_ml": left,
        "right_lung_ml": right, "nodules": about.get("nodules"), "warnings": len(warnings),
        "reason": reason or "; ".join(warnings), "path": str(source.path),
    }  # fmt: skip
