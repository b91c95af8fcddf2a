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
from auxseg.base.classes import CLASS_NAMES, NODULE
from auxseg.base.errors import InputError
from auxseg.ct import dicom_seg, find, geometry, headers, scans, writers
from auxseg.ct.checks import WARNING, Finding
from auxseg.ct.own import CANDIDATES, DONE
from auxseg.datasets.folder import listing
from auxseg.prediction import done, measure, page_rows, rows, scan_page, segment
from auxseg.prediction.segment import Options
from auxseg.scoring import components, froc

_NO_NODULES = Finding(
    WARNING, "no-nodules", "the networks in the box mark lungs alone: no nodule was looked for"
)


def write_segmentation(folder, result, networks, *, formats, settings, inputs=None):
    """Writes everything about one scan to a folder, `prediction.json` last.

    Args:
        folder: pathlib.Path, exists.
        result: `Segmentation`.
        networks: what made it.
        formats: of the mask, among `writers.FORMATS`; probabilities take the first that is a volume.
        settings: JSON types, kept to know a prediction of the same kind again.
        inputs: `done.describe_input` of the scan.
    """
    scan, span = result.scan, (result.start, result.stop)
    names = []
    makers = page_rows.describe_makers(networks, settings.get("box"))
    measurements = _with_tracking(result, makers) if scan.volume is not None else result.measurements
    for form in formats:
        names.append(_mask_name(form))
        if form == "dicom-seg":
            _write_dicom_seg(folder / names[-1], result, measurements, makers)
        else:
            writers.write_mask(folder / names[-1], result.masks, scan, *span)
    names += _write_probabilities(folder, result, formats)
    names += _write_candidates(folder, result)
    if measurements:
        files.write_csv(folder / "measurements.csv", measurements, digits=files.FEW_DIGITS)
    scan_page.write_pictures(folder, result, makers)
    about = {
        "settings": settings,
        "input": inputs or {},
        "series": rows.describe_series(scan.volume.series if scan.volume else None),
        "skipped": [rows.describe_skipped(one) for one in scan.skipped],
        "name": scan.name,
        "seriesuid": _series_uid(scan),
        "scan": str(scan.path),
        "kind": scan.kind,
        "size_xyz": list(result.geometry.size_xyz),
        "slices": [result.start, result.stop],
        "networks": [
            {"name": one.name, "sha256": one.checksum, "mm_per_pixel": one.scale} for one in networks
        ],
        "box": settings.get("box"),
        "files": names,
        "least_probability": result.found and result.found.least_probability,
        "changed": result.changed,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "classes": list(result.classes),
        "lungs_ml": [_total(result, name) for name in ("left_lung", "right_lung")],
        "others_ml": {name: _total(result, name) for name in result.classes if name not in CLASS_NAMES},
        "nodules": sum(map(measure.is_nodule, measurements)),
        "measurements": measurements,
        "auxseg": __version__,
    }
    files.write_json(folder / DONE, about)


def _with_tracking(result, makers):
    """Returns the measurements with a tracking UID for each nodule: of the same nodule by the same weights the same."""
    return [
        {**row, "tracking_uid": dicom_seg.create_tracking_uid(
            result.scan, makers[0]["sha256"], row["structure"], *(row[name] for name in "ijk"))}
        if measure.is_nodule(row) else row
        for row in result.measurements
    ]  # fmt: skip


def _write_dicom_seg(path, result, measurements, makers):
    """Writes a mask as DICOM-SEG, a segment for each nodule."""
    found = components.find_components(result.masks, NODULE)
    voxels = [[] for _ in found.pieces]
    for index in sorted({k for piece in found.pieces for k in range(piece.slices[0], piece.slices[1] + 1)}):
        numbers = found.read(result.masks, index)
        places = np.argwhere(numbers)
        for number in np.unique(numbers[numbers > 0]).tolist():
            inside = places[numbers[tuple(places.T)] == number]
            voxels[number - 1].append(np.insert(inside, 0, index, axis=1))
    rows = filter(measure.is_nodule, measurements)
    pieces = [
        dicom_seg.Piece(
            page_rows.name_of(row).capitalize(),
            page_rows.describe_nodule(row),
            row["tracking_uid"],
            np.concatenate(parts),
        )
        for row, parts in zip(rows, voxels, strict=True)
    ]
    first = makers[0]
    name = " + ".join(one["name"] for one in (makers[:1] if first["version"] else makers))
    maker = dicom_seg.Maker(name, first["version"] or first["sha256"][:12], first["sha256"])
    span = (result.start, result.stop)
    dicom_seg.write_dicom_seg(path, result.masks, result.scan, *span, pieces=pieces, maker=maker)


def _series_uid(scan):
    """Returns what tables of nodules call a scan: its SeriesInstanceUID, or its name, as LUNA16 names its files."""
    return scan.volume.series.uid if scan.volume is not None else scan.name


def _write_candidates(folder, result):
    """Writes all that the second look judged in LUNA16's form, what it dropped too; returns the file's name."""
    if result.found is None:
        return []
    corner = (0, *result.box.start_yx)
    rows = [
        [
            *geometry.index_to_mm(result.scan.geometry, np.add(one["centre_zyx"], corner)[::-1]),
            one["probability"],
        ]
        for one in result.found.candidates
    ]
    froc.write_candidates(folder / CANDIDATES, {_series_uid(result.scan): rows})
    return [CANDIDATES]


def _mask_name(form):
    return "mask.dcm" if form == "dicom-seg" else f"mask.{form}"


def _total(result, name):
    values = [row["volume_ml"] for row in result.measurements if row["structure"] == name]
    return round(values[0], 3) if values and np.isfinite(values[0]) else None


def _write_probabilities(folder, result, formats):
    if result.probabilities is None:
        return []
    form = next((one for one in formats if one in writers.VOLUME_FORMATS and one != "npz"), "nrrd")
    names = []
    for value, name in enumerate(result.classes[1:], start=1):
        names.append(f"probability_{name}.{form}")
        stored = geometry.from_canonical(result.probabilities[value], result.scan.orientation)
        writers.write_volume(folder / names[-1], stored, result.geometry, "float32")
    return names


def predict(
    path,
    output,
    networks,
    *,
    options=Options(),
    formats=("nii.gz",),
    series=None,
    box=None,
    overwrite=False,
    part=(1, 1),
):
    """Returns one dict a scan (name, status, seconds, lungs, nodules, reason), after writing all outputs.

    A scan that is done is skipped; one that fails is listed and the others go on. With several scans each
    has a folder of its own in `output`. `scans.csv` there has these rows, and one for everything else that was
    handed in and is not segmented.

    Args:
        path: a scan, or a folder of scans.
        output: folder to write to.
        networks: `networks.Network`s.
        options: `Options`.
        formats: of the masks.
        series: SeriesInstanceUID or SeriesNumber, where the input is one DICOM study.
        box: `box.Box` that the networks are of, which the outputs then name, or None.
        overwrite: segment again what is done.
        part: (k, n): the k-th of n parts of the scans, 1 to n, each for a machine of its own.

    Raises:
        InputError: nothing to do, or the only scan cannot be used.
    """
    _check_formats(formats, segment.find_classes(networks))
    found = find.survey(path)
    if series is not None and len(found.sources) > 1:
        raise InputError(f"--series: {path} holds {len(found.sources)} scans; give it with one of them")
    job = _Job(
        networks,
        options,
        tuple(formats),
        series,
        box,
        overwrite,
        _describe_settings(networks, options, formats, series, box),
    )
    with _claimed(pathlib.Path(output), part) as folder:
        return _predict_all(found, folder, job, part)


def _check_formats(formats, classes):
    unknown = [name for name in classes if name not in CLASS_NAMES]
    if "dicom-seg" in formats and unknown:
        raise InputError(
            f"--format=dicom-seg: has codes for {', '.join(CLASS_NAMES[1:])} alone, and the network marks "
            f"{', '.join(unknown)}; use another format"
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is done to each scan: the arguments of `predict`, and its settings as JSON types."""

    networks: list
    options: Options
    formats: tuple[str, ...]
    series: str | None
    box: object
    overwrite: bool
    settings: dict


def _predict_all(found, output, job, part):
    """Returns the rows of a part of the scans and of what was skipped, written to the table as they come."""
    alone, chosen = len(found.sources) == 1, take_part(found.sources, part)
    _clear([output] if alone else [output / source.name for source in chosen])
    others = (
        [rows.create_skipped_row(rows.describe_skipped(one)) for one in found.skipped] if part[0] == 1 else []
    )
    segmented = []

    def keep(row):
        segmented.append(row)
        files.write_csv(output / table_name(part), [*segmented, *others], digits=files.FEW_DIGITS)

    tracked = chosen if alone else progress.track(chosen, total=len(chosen), label="segmenting", unit="scan")
    for source in tracked:
        if alone:
            row, more = _predict_alone(source, output, job, keep)
        else:
            row, more = _predict_guarded(source, output / source.name, job)
        others += more
        keep(row)
    return [*segmented, *others]


def take_part(sources, part):
    """Returns the k-th of n parts (k, n) of sources; what is named as a label map is dealt out after the scans.

    Label maps are refused at once: a part that had most of them would be done long before the others.
    """
    scans = {one.path for one in listing.tell_labels(sources)[0]}
    dealt = sorted(sources, key=lambda one: one.path not in scans)  # stable: by name within each
    return sorted(dealt[part[0] - 1 :: part[1]], key=lambda one: one.name)


def table_name(part):
    """Returns the name of the table of a part (k, n) of the scans."""
    return "scans.csv" if part[1] == 1 else f"scans-{part[0]}-of-{part[1]}.csv"


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
def _claimed(output, part=(1, 1)):
    """Holds an output folder, or a part of its scans, for one process."""
    if output.is_file() or output.name.lower().endswith((*headers.SUFFIXES, ".dcm", ".npz", ".zip")):
        raise InputError(f"--output: got {output}, expected a folder; the mask's format is --format")
    held = output if part[1] == 1 else output / f".part-{part[0]}-of-{part[1]}"
    try:
        with files.locked(held, name="--output", hint="give another folder"):
            yield output
    finally:
        if held != output:
            with contextlib.suppress(OSError):
                held.rmdir()


def _clear(folders):
    """Removes what a killed process left in the folders of scans."""
    for folder in folders:
        for left in folder.glob(".scratch-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in folder.glob(".*.part"):
            left.unlink(missing_ok=True)


def _predict_alone(source, folder, job, keep):
    """Returns what `_predict_one` does; where that raises, `keep` gets the row of a failure first.

    The table beside a former prediction stays: it is of that.
    """
    start = time.monotonic()
    try:
        return _predict_one(source, folder, job, show_progress=True)
    except InputError as error:
        row = rows.create_row(source, "failed", time.monotonic() - start, reason=" ".join(str(error).split()))
        with contextlib.suppress(InputError):  # the disk may be full; what went wrong first is said
            if not (folder / DONE).exists():
                keep(row)
        raise


def _predict_guarded(source, folder, job):
    """Returns (row of one scan among many, rows skipped); whatever goes wrong with it is its own affair."""
    start = time.monotonic()
    try:
        return _predict_one(source, folder, job)
    except Exception as error:
        if not isinstance(error, (InputError, OSError)):
            traceback.print_exc()
            error = f"fault of auxseg: {type(error).__name__}: {error}"
        reason = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing was written
        return rows.create_row(source, "failed", time.monotonic() - start, reason=reason), []


def _predict_one(source, folder, job, show_progress=False):
    """Returns (row of a scan, rows of the series of its study that were skipped)."""
    start = time.monotonic()
    if source.kind == "broken":
        raise InputError(source.problem)
    status = "done"
    if (folder / DONE).exists() and not job.overwrite:
        status, about = "done before", done.read_done(folder, source, job.settings)
    else:
        done.check_targets(folder, map(_mask_name, job.formats), source, overwrite=job.overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        _segment_to(folder, source, job, show_progress)
        about = done.read_about(folder)
    seconds = 0.0 if status == "done before" else time.monotonic() - start
    skipped = [rows.create_skipped_row(one) for one in about.get("skipped", ())]
    return rows.create_row(source, status, seconds, about), skipped


def _segment_to(folder, source, job, show_progress):
    inputs = done.describe_input(source)
    with _room_in(folder), tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
        scan = scans.open_scan(source, scratch, series=job.series, force=job.options.force)
        if show_progress:
            _print_series(scan)
        for form in job.formats:
            writers.check_format(form, scan)
        result = segment.segment_scan(
            scan,
            job.networks,
            job.options,
            pathlib.Path(scratch),
            second=job.box and job.box.nodules,
            show_progress=show_progress,
        )
        if job.box is not None and job.box.nodules is None:
            result = dataclasses.replace(result, findings=(*result.findings, _NO_NODULES))
        if (folder / DONE).exists():
            done.remove_done(folder)
        write_segmentation(
            folder, result, job.networks, formats=job.formats, settings=job.settings, inputs=inputs
        )


@contextlib.contextmanager
def _room_in(folder):
    """Says of a full disk that it is the output's, where a scan's voxels lie while it is segmented."""
    try:
        yield
    except OSError as error:
        if error.errno not in files.FULL_DISK:
            raise
        raise InputError(
            f"--output: {folder}: {error.strerror}; a scan's voxels lie there while it is segmented: make room, or give "
            "another folder"
        ) from error


def _print_series(scan):
    """Says which series of a DICOM study is segmented, where there was a choice."""
    lines = [finding.text for finding in scan.findings if finding.code in ("series", "other-series")]
    for line in lines if len(lines) > 1 else ():
        print(line, file=sys.stderr, flush=True)
