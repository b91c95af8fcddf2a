"""Segments the lungs and nodules of any chest CT, or of a folder of them, with a trained network.

    python -m auxseg.predict --workdir=RUN --input=PATH --output=DIR [--slice=middle] [--format=nii.gz]

RUN is a run's folder or an exported bundle; several, separated by commas, are averaged. PATH is a DICOM
folder, a zip of one, .mhd, .mha, .nrrd, .nii, .nii.gz, .npz, or a folder of many scans. DIR receives, for
each scan, the mask in the scan's own geometry, measurements.csv, overview.png, report.html and, last,
prediction.json: a scan that has it is done and is skipped when the command is repeated.

From Python: `segment(PATH, [load_network(RUN)])`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from auxseg import __version__, native, outputs
from auxseg.base import command, progress
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError, check_choice
from auxseg.ct import checks, dicom_seg, headers, scans, writers
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.geometry import from_canonical, index_to_mm
from auxseg.datasets.resize import AIR_HU, resize_image
from auxseg.models import interface
from auxseg.runs.networks import load_network
from auxseg.scoring import components as scoring_components
from auxseg.scoring import operating_point
from auxseg.scoring.components import Component, equivalent_diameter, find_components, surrounding_lung

LEFT, RIGHT, NODULE = (CLASS_NAMES.index(name) for name in ("left_lung", "right_lung", "nodule"))
DONE = "prediction.json"
NUM_CHECKED, NUM_PANELS = 16, 12
_MAX_SIDE = 8192
_FORCED = ("not-a-chest", "spacing")
"""Findings that --force makes warnings of."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to segment.

    Attributes:
        slices: 'all', 'middle' (slice n // 2, the paper's), or a 0-based index from inferior to superior.
        batch_size: slices that the network takes at once.
        flip: test-time augmentation: averages with the mirrored slice, left and right exchanged back.
        clean: clean-up of the mask.
        probabilities: keep the probabilities of each class.
        force: segment also what does not look like a chest, and keep a mask without lungs.
        nodule_threshold: least share of the nodule's probability in it and the most likely other class; 0.5
            is the most likely class (`decision`).
    """

    slices: str | int = "all"
    batch_size: int = 8
    flip: bool = False
    clean: scoring_components.Options = scoring_components.Options()
    probabilities: bool = False
    force: bool = False
    nodule_threshold: float = 0.5

    def __post_init__(self):
        operating_point.Decision(self.nodule_threshold)
        if not 1 <= self.batch_size <= 1024:
            raise InputError(f"--batch_size: got {self.batch_size}, expected 1 to 1024")
        if self.slices not in ("all", "middle") and not str(self.slices).isdigit():
            raise InputError(f"--slice: got {self.slices!r}, expected 'all', 'middle' or an index from 0")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What was found in one scan.

    Attributes:
        scan: the scan.
        start, stop: the slices segmented, canonical.
        masks: uint8 [stop - start, H, W], canonical: 0 background, 1 left lung, 2 right lung, 3 nodule.
        probabilities: float32 [C, stop - start, H, W], canonical, or None.
        findings: about the scan and the mask.
        changed: voxels that each step of the clean-up changed.
        measurements: one dict a lung and nodule.
        pictures: JPEGs of the slices.
    """

    scan: scans.Scan
    start: int
    stop: int
    masks: np.ndarray
    probabilities: np.ndarray | None
    findings: tuple[Finding, ...]
    changed: dict
    measurements: tuple[dict, ...]
    pictures: tuple[bytes, ...]

    @property
    def geometry(self):
        """Geometry of `stored_masks`: the scan's own, of the slices segmented."""
        return writers.crop_geometry(self.scan, self.start, self.stop)

    @property
    def stored_masks(self):
        """The mask with the axes of the file, uint8 [z, y, x]; a view."""
        return from_canonical(self.masks, self.scan.orientation)


def segment(path, networks, *, options=Options(), series=None):
    """Returns the `Segmentation` of one scan, with its arrays in memory.

    Args:
        path: the scan, in any form that `scans.find_scans` knows.
        networks: `bundle.Network`s; their probabilities are averaged.
        options: `Options`.
        series: SeriesInstanceUID or SeriesNumber of a DICOM study, or None for the chest CT.

    Raises:
        InputError: no scan or several there, or it cannot be used; the line says why and what to do.
    """
    found = scans.find_scans(path)
    if len(found) != 1:
        names = ", ".join(source.name for source in found[:5])
        raise InputError(f"input: {path} holds {len(found)} scans ({names}, ...), expected one")
    with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
        scan = scans.open_scan(found[0], scratch, series=series)
        result = segment_scan(scan, networks, options, pathlib.Path(scratch))
        probabilities = None if result.probabilities is None else np.array(result.probabilities)
        return dataclasses.replace(result, masks=np.array(result.masks), probabilities=probabilities)


def segment_scan(scan, networks, options, scratch, *, show_progress=False):
    """Returns the `Segmentation` of an open scan; its arrays lie on disk, in `scratch`.

    Args:
        scan: `scans.Scan`.
        networks: `bundle.Network`s, at least one.
        options: `Options`.
        scratch: folder for temporary files; must outlive the result.
        show_progress: draw a bar.

    Raises:
        InputError: the scan's values are no HU, it shows no chest, or no lung was found in it.
    """
    if not options.force:
        checks.raise_errors(scan.findings, scan.path)
    findings = [*scan.findings, *_network_findings(networks), *_check(scan, options)]
    start, stop = choose_slices(scan, options.slices)
    shape = (stop - start, *scan.geometry.shape_zyx[1:])
    masks = np.lib.format.open_memmap(scratch / "masks.npy", "w+", np.uint8, shape)
    kept = (len(CLASS_NAMES), *shape)
    probabilities = (
        np.lib.format.open_memmap(scratch / "probabilities.npy", "w+", np.float32, kept)
        if options.probabilities
        else None
    )
    pictures = []
    batches = _read_batches(
        scan, start, stop, options.batch_size, {one.size_yx for one in networks}, pictures
    )
    if show_progress:
        total = -(-(stop - start) // options.batch_size)
        batches = progress.track(batches, total=total, label=f"segmenting {scan.name}", unit="batch")
    for first, mask, probability in _predict_batches(batches, networks, options, _field(scan)):
        masks[first - start : first - start + len(mask)] = mask
        if probabilities is not None:
            probabilities[:, first - start : first - start + len(mask)] = probability
    pixel_mm2 = float(np.prod(scan.geometry.spacing_zyx_mm[1:])) if scan.has_geometry else np.nan
    field = _field(scan)
    # A least size in pixels is of the network's image, whose pixels are larger than the scan's.
    scale = field.padded_yx[1] / networks[0].size_yx[1]
    clean = dataclasses.replace(options.clean, min_nodule_px=options.clean.min_nodule_px * scale)
    changed = scoring_components.clean(masks, clean, pixel_mm2=pixel_mm2)
    findings += [
        Finding(INFO, "clean-up", f"{name}: {count} voxels changed") for name, count in changed.items()
    ]
    findings += check_masks(masks, whole=options.slices == "all")
    if not options.force:
        checks.raise_errors(findings, scan.path)
    rows = measure(masks, scan, start)
    return Segmentation(scan, start, stop, masks, probabilities, tuple(findings), changed, tuple(rows),
                        tuple(pictures))  # fmt: skip


def choose_slices(scan, slices):
    """Returns (start, stop) of the canonical slices that an option names.

    Raises:
        InputError: the index is outside the scan.
    """
    if slices == "all":
        return 0, scan.num_slices
    index = scan.num_slices // 2 if slices == "middle" else int(slices)
    if index >= scan.num_slices:
        raise InputError(f"--slice: got {index}, expected 0 to {scan.num_slices - 1}, in {scan.path}")
    return index, index + 1


def _network_findings(networks):
    if all(one.labels == "anatomy" for one in networks):
        return []
    text = (
        "the network was trained with the airway in place of nodules (data.labels): its 'nodule' is "
        "the airway"
    )
    return [Finding(WARNING, "labels", text)]


def _check(scan, options):
    """Returns the findings about a sample of slices; stops at the first error."""
    indices = checks.pick_slices(scan.num_slices, NUM_CHECKED)
    images = np.concatenate([scan.read(int(k), int(k) + 1) for k in indices])
    spacing = scan.geometry.spacing_zyx_mm[1:] if scan.has_geometry else None
    findings = checks.check_scan(images, spacing_yx_mm=spacing, native_dtype=scan.dtype)
    if options.force:
        return [dataclasses.replace(f, severity=WARNING) if f.code in _FORCED else f for f in findings]
    checks.raise_errors(findings, scan.path)
    return findings


def _field(scan):
    size, spacing = scan.geometry.shape_zyx[1:], scan.geometry.spacing_zyx_mm[1:]
    side_mm = max(n * mm for n, mm in zip(size, spacing))
    padded = tuple(max(n, round(side_mm / mm)) for n, mm in zip(size, spacing))
    if max(padded) > _MAX_SIDE:
        raise InputError(
            f"scan: {scan.path} has slices of {size} pixels of {spacing} mm, expected a field about as "
            "high as wide; "
            "check the spacing"
        )
    return native.Field(size, padded, tuple((p - n) // 2 for p, n in zip(padded, size)))


def _read_batches(scan, start, stop, batch_size, sizes, pictures):
    """Yields (first slice, {size: int16 [batch, *size]}, count), one batch read ahead in a thread.

    The last batch is filled up with air; JPEGs of the slices are appended to `pictures`.
    """
    field = _field(scan)

    def read(first):
        last = min(first + batch_size, stop)
        images = scan.read(first, last)
        return (
            first,
            _prepare(images, field, sizes, batch_size),
            [outputs.encode_picture(one) for one in images],
        )

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = []
        for first in range(start, stop, batch_size):
            waiting.append(pool.submit(read, first))
            if len(waiting) > 1:
                yield _take(waiting.pop(0).result(), pictures)
        yield _take(waiting.pop(0).result(), pictures)


def _take(batch, pictures):
    first, inputs, encoded = batch
    pictures += encoded
    return first, inputs, len(encoded)


def _prepare(images, field, sizes, batch_size):
    """Returns {size: int16 [batch_size, *size]}: padded to the square, resized, filled up with air."""
    before = np.array(field.offset_yx)
    after = np.array(field.padded_yx) - field.size_yx - before
    padded = np.pad(images, ((0, 0), *zip(before, after)), constant_values=AIR_HU)
    filled = {size: np.full((batch_size, *size), AIR_HU, np.int16) for size in sizes}
    for size, array in filled.items():
        for index, image in enumerate(padded):
            array[index] = resize_image(image, size)
    return filled


def _predict_batches(batches, networks, options, field):
    """Yields (first slice, masks uint8 [n, H, W], probabilities [C, n, H, W] or None).

    One batch is computed while the one before it is brought to the slices' size.
    """
    decide = native.create_decide(field, probabilities=options.probabilities)
    before = None
    weights = np.ones(len(CLASS_NAMES), np.float32)
    weights[NODULE] = operating_point.Decision(options.nodule_threshold).nodule_weight
    for first, inputs, count in batches:
        maps = [predict_probabilities(one, inputs[one.size_yx], flip=options.flip) for one in networks]
        finish = decide([_weigh(each, weights) for each in maps] if weights[NODULE] != 1.0 else maps)
        if before is not None:
            yield _finish(*before, weights)
        before = first, count, finish
    yield _finish(*before, weights)


@jax.jit
def _weigh(probabilities, weights):
    """Returns probabilities [N, h, w, C] times weights [C], of the same dtype."""
    return probabilities * jnp.broadcast_to(weights, probabilities.shape).astype(probabilities.dtype)


def _finish(first, count, finish, weights):
    masks, probabilities = finish()
    if probabilities is not None:
        probabilities = np.moveaxis(probabilities[:count] / weights, -1, 0)
    return first, masks[:count], probabilities


def read_decision(workdirs, *, flip=False):
    """Returns the `decision.Decision` that was chosen for all of some runs.

    Args:
        workdirs: paths of runs or bundles.
        flip: whether their probabilities are averaged with the mirrored slices'.

    Raises:
        InputError: none was chosen for one of them, or with the other `flip`, or they differ.
    """
    chosen = {
        workdir: operating_point.read_decision(pathlib.Path(workdir), flip=flip) for workdir in workdirs
    }
    if len(set(chosen.values())) > 1:
        listed = ", ".join(f"{one.threshold:g} in {workdir}" for workdir, one in chosen.items())
        raise InputError(
            f"--tuned: the runs have other nodule thresholds or sizes each ({listed}); give one with "
            "--nodule_threshold and --min_nodule_mm"
        )
    return next(iter(chosen.values()))


def predict_probabilities(network, images, *, flip):
    """Returns a network's probabilities, float32 [N, h, w, C], perhaps still being computed.

    Args:
        network: `bundle.Network`.
        images: int16 [N, h, w] in HU, of the network's size.
        flip: average with the mirrored images, left and right exchanged back.
    """
    probabilities = jnp.asarray(network.probabilities(images))
    if not flip:
        return probabilities
    mirrored = network.probabilities(np.ascontiguousarray(images[:, :, ::-1]))
    return _average_mirrored(probabilities, jnp.asarray(mirrored))


@jax.jit
def _average_mirrored(probabilities, mirrored):
    return 0.5 * (probabilities + interface.turn_back(mirrored))


def check_masks(masks, *, whole):
    """Returns the findings about a mask: no lung at all, or left and right on the wrong sides.

    Args:
        masks: uint8 [D, H, W], canonical.
        whole: whether that is a whole scan, in which a lung must be.
    """
    columns = np.arange(masks.shape[2])
    sums = {value: np.zeros(2) for value in (LEFT, RIGHT)}
    for mask in masks:
        for value, total in sums.items():
            profile = (mask == value).sum(0)
            total += (profile.sum(), (profile * columns).sum())
    if not sums[LEFT][0] and not sums[RIGHT][0]:
        text = "no lung was found; the network is untrained, or the scan unlike what it has seen"
        return [
            Finding(
                ERROR if whole else WARNING,
                "no-lung",
                f"{text} (--force keeps the empty mask)" if whole else text,
            )
        ]
    missing = [CLASS_NAMES[value] for value, total in sums.items() if not total[0]]
    if missing:
        return [Finding(WARNING, "one-lung", f"no {missing[0].replace('_', ' ')} was found")]
    if sums[LEFT][1] / sums[LEFT][0] < sums[RIGHT][1] / sums[RIGHT][0]:
        text = (
            "the left lung lies to the right of the right lung: the scan may be mirrored; check its "
            "orientation"
        )
        return [Finding(WARNING, "sides", text)]
    return []


def measure(masks, scan, start):
    """Returns one dict a lung and nodule: where it is and how large.

    Positions are LPS in mm; 'slice' counts from 0, from inferior to superior; i, j, k is the voxel in the
    file. Areas and equivalent diameters (of the circle of that area) are those of the slice in which the
    structure is largest. Volumes are empty for a single slice of a scan, millimetres where the voxel size is
    not known. Lungs are measured without the nodules in them.

    Args:
        masks: uint8 [D, H, W], canonical.
        scan: `scans.Scan`.
        start: the scan's slice that masks[0] is.
    """
    matrix = np.reshape(scan.geometry.direction, (3, 3)) * scan.geometry.spacing_xyz_mm
    known = scan.has_geometry
    voxel_mm3 = abs(np.linalg.det(matrix)) if known and (len(masks) > 1 or scan.num_slices == 1) else np.nan
    pixel_mm2 = float(np.prod(scan.geometry.spacing_zyx_mm[1:])) if known else np.nan
    rows = []
    for value in (LEFT, RIGHT):
        piece = _whole_class(masks, value)
        if piece is not None:
            rows.append(_measure_piece(CLASS_NAMES[value], "", piece, scan, start, voxel_mm3, pixel_mm2))
    components = find_components(masks, NODULE)
    for number, piece in enumerate(components.pieces, start=1):
        side = _find_side(masks, components, number)
        rows.append(_measure_piece(f"nodule_{number}", side, piece, scan, start, voxel_mm3, pixel_mm2))
    return rows


def _whole_class(masks, value):
    """Returns all of a class as one `Component`, or None where there is none."""
    pixels = np.zeros(len(masks), int)
    sums = np.zeros(3)
    for index, mask in enumerate(masks):
        chosen = mask == value
        pixels[index] = chosen.sum()
        by_row, by_column = chosen.sum(1), chosen.sum(0)
        sums += (
            pixels[index] * index,
            by_row @ np.arange(len(by_row)),
            by_column @ np.arange(len(by_column)),
        )
    if not pixels.any():
        return None
    slices = np.flatnonzero(pixels)
    centre = tuple(float(one) for one in sums / pixels.sum())
    return Component(
        int(pixels.sum()), centre, int(pixels.argmax()), int(pixels.max()), (int(slices[0]), int(slices[-1]))
    )


def _find_side(masks, components, number):
    """Returns the lung around a nodule, by the classes next to it in its largest slice; '' where "
    "neither is."""
    index = components.pieces[number - 1].largest_slice
    value = surrounding_lung(masks[index], components.read(masks, index) == number)
    return CLASS_NAMES[value] if value else ""


def _measure_piece(name, side, piece, scan, start, voxel_mm3, pixel_mm2):
    z, y, x = piece.centre_zyx
    place = index_to_mm(scan.geometry, (x, y, z + start)) if scan.has_geometry else (np.nan,) * 3
    stored = _stored_index(scan, (x, y, z + start))
    area = piece.largest_pixels * pixel_mm2
    return {
        "structure": name,
        "inside": side,
        "voxels": piece.voxels,
        "volume_ml": piece.voxels * voxel_mm3 / 1000.0,
        "volume_mm3": piece.voxels * voxel_mm3,
        "area_mm2": area,
        "equivalent_diameter_mm": float(equivalent_diameter(area)),
        "area_pixels": piece.largest_pixels,
        "slice": piece.largest_slice + start,
        "first_slice": piece.slices[0] + start,
        "last_slice": piece.slices[1] + start,
        **{f"{axis}_mm": float(v) for axis, v in zip("xyz", place)},
        **dict(zip("ijk", stored)),
    }


def _stored_index(scan, index_xyz):
    """Returns the voxel (i, j, k) of the file at a canonical index."""
    stored = [0, 0, 0]
    for value, axis, flipped in zip(index_xyz, scan.orientation.axes, scan.orientation.flips):
        last = scan.stored.size_xyz[axis] - 1
        stored[axis] = int(np.clip(round(last - value if flipped else value), 0, last))
    return stored


def write_segmentation(folder, result, networks, *, formats, settings):
    """Writes everything about one scan to a folder, `prediction.json` last.

    Args:
        folder: pathlib.Path, exists.
        result: `Segmentation`.
        networks: what made it.
        formats: of the mask, among `outputs.FORMATS`; probabilities take the first that is a volume.
        settings: JSON types, kept to know a prediction of the same kind again.
    """
    scan, span = result.scan, (result.start, result.stop)
    files = []
    for form in formats:
        files.append("mask.dcm" if form == "dicom-seg" else f"mask.{form}")
        if form == "dicom-seg":
            names = " + ".join(one.name for one in networks)
            checksum = networks[0].checksum
            dicom_seg.write_dicom_seg(
                folder / files[-1], result.masks, scan, *span, model_name=names, checksum=checksum
            )
        else:
            writers.write_mask(folder / files[-1], result.masks, scan, *span)
    files += _write_probabilities(folder, result, formats)
    if result.measurements:
        outputs.write_table(folder / "measurements.csv", result.measurements)
    write_pictures(folder, result, networks)
    about = {
        "settings": settings,
        "scan": str(scan.path),
        "kind": scan.kind,
        "size_xyz": list(result.geometry.size_xyz),
        "slices": [result.start, result.stop],
        "networks": [{"name": one.name, "sha256": one.checksum} for one in networks],
        "files": files,
        "changed": result.changed,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "lungs_ml": [_total(result, name) for name in ("left_lung", "right_lung")],
        "nodules": sum(row["structure"].startswith("nodule") for row in result.measurements),
        "auxseg": __version__,
    }
    outputs.write_json(folder / DONE, about)


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
        stored = from_canonical(result.probabilities[value], result.scan.orientation)
        writers.write_volume(folder / names[-1], stored, result.geometry, "float32")
    return names


def write_pictures(folder, result, networks):
    scan, masks = result.scan, result.masks
    spacing = scan.geometry.spacing_zyx_mm[1:]
    heights = [index_to_mm(scan.geometry, (0, 0, k))[2] for k in range(result.start, result.stop)]
    labels = [f"slice {k}" + (f", z {mm:.1f} mm" if scan.has_geometry else "")
              for k, mm in zip(range(result.start, result.stop), heights)]  # fmt: skip
    shown = choose_panels(result)
    outputs.write_overview(
        folder / "overview.png", [result.pictures[k] for k in shown], [masks[k] for k in shown],
        [labels[k] for k in shown], spacing,
    )  # fmt: skip
    nodules = [row for row in result.measurements if row["structure"].startswith("nodule")]
    first = nodules[0]["slice"] - result.start if nodules else len(masks) // 2
    facts = [{"scan": scan.path.name, "form": scan.kind, "size": " x ".join(map(str, scan.stored.size_xyz)),
              "spacing mm": " x ".join(f"{v:.3g}" for v in scan.stored.spacing_xyz_mm)}]  # fmt: skip
    models = [{"network": one.name, "SHA-256 of the weights": one.checksum} for one in networks]
    tables = [("Measurements", shorten_rows(result.measurements)), ("Scan", facts), ("Made by", models)]
    outputs.write_report(
        folder / "report.html",
        title=f"Lungs and nodules: {scan.name}",
        pictures=result.pictures,
        masks=masks,
        labels=labels,
        spacing_yx_mm=spacing,
        tables=tables,
        notes=[(finding.severity, finding.text) for finding in result.findings],
        start=first,
    )


def shorten_rows(measurements):
    """Returns what of `measure`'s rows fits the width of a page, in words and rounded; the CSV has it all."""
    rows = []
    for row in measurements:
        place = [row[f"{axis}_mm"] for axis in "xyz"]
        rows.append({
            "structure": row["structure"].replace("_", " "),
            "inside": row["inside"].replace("_", " "),
            "volume, mL": _digits(row["volume_ml"]),
            "largest area, mm2": _digits(row["area_mm2"]),
            "its diameter, mm": _digits(row["equivalent_diameter_mm"]),
            "its slice": row["slice"],
            "slices": f"{row['first_slice']} to {row['last_slice']}",
            "centre x, y, z, mm (LPS)": ", ".join(f"{v:.0f}" for v in place) if np.isfinite(place).all() else "",
        })  # fmt: skip
    return rows


def _digits(value):
    """Returns a number with three digits, or all those before the point; '' where it is not known."""
    if not np.isfinite(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def choose_panels(result):
    """Returns the slices to show: the largest of the largest nodules, and others spread over the lungs."""
    nodules = [
        row["slice"] - result.start for row in result.measurements if row["structure"].startswith("nodule")
    ]
    lungs = [row for row in result.measurements if row["structure"].endswith("lung")]
    low = min((row["first_slice"] for row in lungs), default=result.start) - result.start
    high = max((row["last_slice"] for row in lungs), default=result.stop - 1) - result.start
    shown = list(dict.fromkeys(nodules))[: NUM_PANELS // 2]
    spread = np.rint(np.linspace(low, high, NUM_PANELS + 2)[1:-1]).astype(int).tolist()
    shown += [k for k in dict.fromkeys(spread) if k not in shown][: NUM_PANELS - len(shown)]
    return sorted(shown)


def predict(path, output, networks, *, options=Options(), formats=("nii.gz",), series=None):
    """Returns one dict a scan (name, status, seconds, lungs, nodules, reason), after writing all outputs.

    A scan that is done is skipped; one that fails is listed and the others go on. With several scans each
    has a folder of its own in `output`, and `scans.csv` there has these rows.

    Args:
        path: a scan, or a folder of scans.
        output: folder to write to.
        networks: `bundle.Network`s.
        options: `Options`.
        formats: of the masks.
        series: SeriesInstanceUID or SeriesNumber, where the input is one DICOM study.

    Raises:
        InputError: nothing to do, or the only scan cannot be used.
    """
    found = scans.find_scans(path)
    if series is not None and len(found) > 1:
        raise InputError(f"--series: {path} holds {len(found)} scans; give it with one of them")
    settings = _describe_settings(networks, options, formats, series)
    with _claimed(pathlib.Path(output)) as folder:
        if len(found) == 1:
            return [_predict_one(found[0], folder, networks, options, formats, settings, series, True)]
        rows = []
        for source in progress.track(found, total=len(found), label="segmenting", unit="scan"):
            rows.append(_predict_guarded(source, folder / source.name, networks, options, formats, settings))
            outputs.write_table(folder / "scans.csv", rows)
        return rows


def _describe_settings(networks, options, formats, series):
    return {
        **dataclasses.asdict(dataclasses.replace(options, batch_size=1)),
        "slices": str(options.slices),
        "formats": list(formats),
        "series": series,
        "networks": [one.checksum for one in networks],
    }


@contextlib.contextmanager
def _claimed(output):
    """Holds an output folder for one process and clears what a killed one left behind."""
    if output.is_file() or output.name.lower().endswith((*headers.SUFFIXES, ".dcm", ".npz", ".zip")):
        raise InputError(f"--output: got {output}, expected a folder; the mask's format is --format")
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--output: another process is writing to {output}; wait for it") from error
        try:
            _clear(output)
            yield output
        finally:
            (output / ".lock").unlink(missing_ok=True)


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


def _predict_one(source, folder, networks, options, formats, settings, series=None, show_progress=False):
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
        result = segment_scan(scan, networks, options, pathlib.Path(scratch), show_progress=show_progress)
        write_segmentation(folder, result, networks, formats=formats, settings=settings)
    return _row(source, "done", time.monotonic() - start, outputs.read_json(folder / DONE))


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
    files = {frame.path for one in source.series for frame in one.frames} or {source.path}
    beside = {path.with_suffix(suffix) for path in files for suffix in (".raw", ".zraw", ".gz")}
    stats = [path.stat() for path in files | {path for path in beside if path.is_file()}]
    return [len(stats), sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)]


def _read_done(folder, settings):
    """Returns what `prediction.json` says.

    Raises:
        InputError: the prediction there was made from another input or with other settings.
    """
    about = outputs.read_json(folder / DONE)
    old = about.get("settings", {})
    different = sorted(name for name in settings.keys() | old.keys() if settings.get(name) != old.get(name))
    if different:
        raise InputError(
            f"--output: {folder} holds a prediction that differs in {', '.join(different)}; give "
            "another folder, or "
            f"remove {folder / DONE}"
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


def _define_flags():
    flags.DEFINE_string("workdir", None, "a run's folder or a bundle; several, with commas, are averaged")
    flags.DEFINE_string("input", None, "the scan, or a folder of scans")
    flags.DEFINE_string("output", None, "folder for the results")
    flags.DEFINE_string("slice", "all", "'all', 'middle' (n // 2), or an index from 0, counted from the feet")
    flags.DEFINE_list("format", ["nii.gz"], f"of the mask: {', '.join(writers.FORMATS)}; several with commas")
    flags.DEFINE_string("series", None, "DICOM: UID or number of the series; default: the chest CT")
    flags.DEFINE_bool("probabilities", False, "also write the probability of each class")
    flags.DEFINE_integer("batch_size", 8, "slices at once")
    flags.DEFINE_bool("flip", False, "test-time augmentation: average with the mirrored slices")
    flags.DEFINE_bool("largest_components", False, "keep the largest piece of each lung only")
    flags.DEFINE_bool("fill_holes", False, "fill holes that a lung encloses in a slice")
    flags.DEFINE_float("min_nodule_mm", 0.0, "drop nodules of a smaller equivalent diameter")
    flags.DEFINE_float(
        "nodule_threshold", 0.5, "share of a nodule's probability, against the next best class"
    )
    flags.DEFINE_bool("tuned", False, "nodule threshold and least size as `evaluate --tune` stored them")
    flags.DEFINE_bool("force", False, "also segment what does not look like a chest CT")


def main(argv):
    """Runs the command; returns the exit status: 0, or 1 where some of many scans failed."""
    del argv
    values = flags.FLAGS
    for name in ("workdir", "input", "output"):
        if not getattr(values, name):
            raise InputError(f"--{name}: not given (try --help)")
    chosen = operating_point.Decision(values.nodule_threshold, values.min_nodule_mm)
    if values.tuned:
        if chosen != operating_point.Decision():
            raise InputError(
                "--tuned: also got --nodule_threshold or --min_nodule_mm; give the one or the other"
            )
        chosen = read_decision(values.workdir.split(","), flip=values.flip)
    clean = scoring_components.Options(
        values.largest_components, values.fill_holes, chosen.min_mm, chosen.min_px
    )
    options = Options(
        values.slice,
        values.batch_size,
        values.flip,
        clean,
        values.probabilities,
        values.force,
        chosen.threshold,
    )
    for form in values.format:
        check_choice("--format", form, writers.FORMATS)
    networks = [load_network(one) for one in values.workdir.split(",")]
    rows = predict(
        values.input, values.output, networks, options=options, formats=values.format, series=values.series
    )
    return report(rows, values.output)


def report(rows, output):
    """Prints what was done and, last, what failed and why; returns the exit status."""
    for row in rows:
        if row["status"] != "failed":
            print(_describe_row(row))
    failed = [row for row in rows if row["status"] == "failed"]
    if len(rows) > 1:
        print(f"{len(rows) - len(failed)} of {len(rows)} scans done; results in {output}, table in scans.csv")
    if failed:
        print(f"failed: {len(failed)}", file=sys.stderr)
        width = max(len(row["scan"]) for row in failed)
        for row in failed:
            print(f"  {row['scan']:{width}}  {row['reason']}", file=sys.stderr)
    return 1 if failed else 0


def _describe_row(row):
    lungs = [f"{side} lung {row[f'{side}_lung_ml']:.0f} mL" for side in ("left", "right")
             if row[f"{side}_lung_ml"] is not None]  # fmt: skip
    warnings = f"; warning: {row['reason']}" if row["reason"] else ""
    parts = [row["status"], *lungs, f"nodules {row['nodules']}"]
    return f"{row['scan']}: {', '.join(parts)}{warnings}"


if __name__ == "__main__":
    _define_flags()
    command.run(main)
