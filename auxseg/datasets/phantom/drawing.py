"""A folder of phantom chest CT in LUNA16's own layout, drawn from a seed.

    <folder>/subset0 ... subset9/<series uid>.mhd + .raw    int16 HU
    <folder>/seg-lungs-LUNA16/<series uid>.mhd + .zraw      0, 3 left lung, 4 right lung, 5 airway
    <folder>/annotations.csv                                seriesuid,coordX,coordY,coordZ,diameter_mm
    <folder>/phantom.json                                   the settings that made it, and whether it is whole

so that whatever reads LUNA16 reads it too. A scan follows from the seed and its number alone: scans
are made in any order, at once, and a folder can grow. The same settings give the same bytes on the
same machine and NumPy; other processors may round a pixel differently.

Slices lie on the whole chest, evenly; so few of them (under about 45) that they would be more than 8 mm
apart lie on its middle. LUNA16 itself keeps to 2.5 mm: `num_slices` of 120 or more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import queue
import subprocess
import threading
import time
import uuid
import zlib

import numpy as np

from auxseg.base import files, workers
from auxseg.base.errors import InputError
from auxseg.datasets.phantom import render, scanner
from auxseg.datasets.phantom.anatomy import create_patient
from auxseg.datasets.phantom.belly import create_belly
from auxseg.datasets.phantom.contents import create_nodules, sample_lung
from auxseg.datasets.phantom.disease import create_disease
from auxseg.datasets.phantom.limbs import create_limbs
from auxseg.datasets.phantom.surroundings import create_surroundings
from auxseg.datasets.phantom.trees import create_airway, create_vessels

VERSION = 2
"""Raised when the same settings give other bytes; a folder of another version is other data."""
MASK_FOLDER = "seg-lungs-LUNA16"
NUM_SUBSETS = 10
_NAMESPACE = uuid.UUID("5f0c7c1e-6d0b-5d0a-9a0e-2c6a3f6f7b11")
_LEFTOVER_SECONDS = 3600
_WIDEST_SPACING_MM, _NARROWEST_SPACING_MM = 8.0, 0.4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.data.phantom` says, checked.

    Attributes:
        num_scans: scans in the folder.
        num_slices: per scan.
        matrix: rows and columns of a slice.
        noise_hu: standard deviation, on average over the scans.
        blur_mm: standard deviation of the point spread in plane, on average over the scans.
        prone_fraction: of the scans, in [0, 1].
        seed: of everything.
    """

    num_scans: int
    num_slices: int
    matrix: int
    noise_hu: float
    blur_mm: float
    prone_fraction: float
    seed: int


_RANGES = {
    "num_scans": (1, 100000),
    "num_slices": (1, 2000),
    "matrix": (32, 2048),
    "noise_hu": (0, 500),
    "blur_mm": (0, 10),
    "prone_fraction": (0, 1),
    "seed": (0, 2**63),
}


def create_settings(config):
    """Returns the `Settings` in `config.data.phantom`.

    Raises:
        InputError: a value is missing or out of its range.
    """
    values = {}
    for field in dataclasses.fields(Settings):
        value = getattr(config, field.name, None)
        low, high = _RANGES[field.name]
        whole = field.type == "int"
        if not _is_number(value, whole) or not low <= value <= high:
            raise InputError(
                f"data.phantom.{field.name}: got {value!r}, expected "
                f"{'a whole number' if whole else 'a number'} from {low} to {high}"
            )
        values[field.name] = int(value) if whole else float(value)
    return Settings(**values)


def _is_number(value, whole):
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def series_uid(settings, scan):
    """Returns the DICOM UID of a scan: a UUID under the root 2.25, another for other settings."""
    made_by = {key: value for key, value in dataclasses.asdict(settings).items() if key != "num_scans"}
    name = json.dumps({**made_by, "version": VERSION, "scan": scan}, sort_keys=True)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan before it is drawn.

    Attributes:
        uid: series UID.
        scene: the patient with all that is drawn of him.
        x_mm, y_mm, z_mm: float [W], [H], [D], the pixel centres in the patient's axes.
        origin_mm: [3], where the patient's axes start in the world (LPS).
        canvas: keyword arguments of `render.create_canvas`.
    """

    uid: str
    scene: render.Scene
    x_mm: np.ndarray
    y_mm: np.ndarray
    z_mm: np.ndarray
    origin_mm: np.ndarray
    canvas: dict


def create_scan(settings, scan):
    """Returns the `Scan` of this number; it depends on the seed and the number alone."""
    anatomy, contents, around = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence([settings.seed, scan]).spawn(3)
    )
    patient = create_patient(anatomy, prone_fraction=settings.prone_fraction)
    z_mm = _slice_heights(around, patient, settings.num_slices)
    x_mm, y_mm, field_mm = _pixel_centres(around, patient, settings.matrix)
    canvas = {
        "thickness_mm": _spacing_z(z_mm) * around.uniform(0.8, 1.25),
        "field_mm": field_mm if around.random() < 0.35 else None,
        "seen_by": scanner.create_scanner(around, patient, settings),
    }
    origin_mm = around.uniform((-12.0, -190.0, -380.0), (12.0, 20.0, 60.0))
    scene = _create_scene(contents, patient, z_mm)
    return Scan(series_uid(settings, scan), scene, x_mm, y_mm, z_mm, origin_mm, canvas)


def _create_scene(rng, patient, z_mm):
    """Returns the patient with all that is drawn of him, and nodules that the slices show."""
    points, depths = sample_lung(rng, patient)
    vessels, bronchi = create_vessels(rng, patient, points, depths)
    nodules = create_nodules(rng, patient, points, depths, vessels, z_mm)
    return render.Scene(
        patient=patient,
        vessels=vessels,
        bronchi=bronchi,
        airway=create_airway(rng, patient),
        nodules=tuple(nodules),
        disease=create_disease(rng, patient, points, depths),
        belly=create_belly(rng, patient),
        limbs=create_limbs(rng, patient),
        around=create_surroundings(rng),
    )


def _slice_heights(rng, patient, num_slices):
    """Returns the heights [D] in mm: from the kidneys or higher to the neck, or the middle of it if they are few."""
    low = -rng.uniform(0.02, 0.32) * patient.height_mm
    high = rng.uniform(1.03, 1.25) * patient.height_mm
    spacing = np.clip((high - low) / num_slices, _NARROWEST_SPACING_MM, _WIDEST_SPACING_MM)
    middle = 0.5 * (low + high)
    return middle + spacing * (np.arange(num_slices) - 0.5 * (num_slices - 1))


def _pixel_centres(rng, patient, matrix):
    """Returns the columns' x [W], the rows' y [H] and the radius of the field of view, in mm."""
    field_mm = np.clip(2 * patient.half_width_mm / rng.uniform(0.66, 0.80), 0.55 * 512, 0.85 * 512)
    steps = (np.arange(matrix) - 0.5 * (matrix - 1)) * (field_mm / matrix)
    aside, down = rng.normal(0.0, 5.0), rng.uniform(0.0, 18.0) * (-1.0 if patient.prone else 1.0)
    return steps + aside, steps + down, 0.5 * field_mm


def annotations(scan):
    """Returns the rows of `annotations.csv` of one scan: UID, world x, y, z and diameter in mm."""
    return [
        (scan.uid, *(nodule.centre_mm + scan.origin_mm).tolist(), nodule.diameter_mm)
        for nodule in scan.scene.nodules
    ]


def render_slices(settings, scan, number):
    """Yields each slice of a scan from the lowest: int16 HU [H, W], uint8 mask [H, W], patient axes."""
    canvas = render.create_canvas(scan.scene, scan.x_mm, scan.y_mm, **scan.canvas)
    for index, z_mm in enumerate(scan.z_mm):
        noise = np.random.default_rng([settings.seed, number, index])
        image, mask = render.render_slice(scan.scene, canvas, float(z_mm), noise)
        yield np.rint(image).astype("<i2"), mask


def default_name(config):
    """Returns a folder name for the phantom of `config.data.phantom`, another for other settings."""
    settings = json.dumps({**dataclasses.asdict(create_settings(config)), "version": VERSION}, sort_keys=True)
    return f"phantom-{uuid.uuid5(_NAMESPACE, settings).hex[:8]}"


def ensure(folder, config, progress=None):
    """Returns the folder that `config.data.phantom` describes, made first unless it is there, whole.

    Args:
        folder: where; made if missing.
        config: `config.data.phantom`.
        progress: called with (scans done, scans in all) after each scan, or None.

    Returns:
        pathlib.Path of the folder.

    Raises:
        InputError: as `write_luna16_folder`.
    """
    settings, folder = create_settings(config), pathlib.Path(folder)
    found = read_settings(folder)
    if found is None or found != (settings, True) or not _is_all_there(folder, settings):
        write_luna16_folder(folder, config, progress)
    return folder


def _is_all_there(folder, settings):
    """Returns whether every file of a folder that was whole once is still there."""
    scans = all(_is_there(folder, settings, number) for number in range(settings.num_scans))
    return scans and (folder / "annotations.csv").is_file()


def write_luna16_folder(folder, config, progress=None):
    """Writes the scans that are missing in the folder, then the annotations; resumes scan by scan.

    Args:
        folder: where; made if missing.
        config: `config.data.phantom`.
        progress: called with (scans done, scans in all) after each scan, or None.

    Raises:
        InputError: the folder was made with other settings (only `num_scans` may grow), holds other
            data, or cannot be written.
    """
    settings, folder = create_settings(config), pathlib.Path(folder)
    _check_folder(folder, settings)
    _write_state(folder, settings, whole=False)
    _remove_leftovers(folder)
    rows = _write_scans(folder, settings, progress)
    _write_annotations(folder, rows)
    _write_state(folder, settings, whole=True)


def _check_folder(folder, settings):
    """Raises `InputError` unless the folder is missing, empty, or a phantom of these settings."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"data.dir: {folder} is a file, expected a folder for the phantom; name another")
    found = read_settings(folder)
    if found is None:
        if folder.is_dir() and not all(path.match(".phantom.json.*.part") for path in folder.iterdir()):
            raise InputError(
                f"data.dir: {folder} holds other data, expected a phantom or an empty folder; "
                "set data.name='luna16' to use it, or name another folder"
            )
        return
    differing = _differing(found[0], settings)
    if differing:
        raise InputError(
            f"data.dir: the phantom in {folder} was made with other settings ({differing}); "
            "name another folder or delete this one"
        )


def _differing(found, wanted):
    """Returns what keeps a folder of settings `found` from serving `wanted`, or an empty string."""
    parts = []
    for field in dataclasses.fields(Settings):
        old, new = getattr(found, field.name), getattr(wanted, field.name)
        if old != new and not (field.name == "num_scans" and old < new):
            parts.append(f"{field.name} {old!r} there, {new!r} wanted")
    return ", ".join(parts)


def read_settings(folder):
    """Returns (`Settings`, whether the folder is whole) of a phantom's folder, or None if it is none."""
    path = folder / "phantom.json"
    if not path.is_file():
        return None
    state = files.read_object(path, hint="delete the folder")
    try:
        settings, version, whole = Settings(**state["settings"]), state["version"], state["whole"]
    except (KeyError, TypeError) as error:
        raise InputError(f"data.dir: {path} cannot be read ({error}); delete the folder") from error
    if version != VERSION:
        raise InputError(
            f"data.dir: the phantom in {folder} is of version {version!r}, expected {VERSION}; "
            "name another folder or delete this one"
        )
    return settings, bool(whole)


def _write_state(folder, settings, *, whole):
    """Writes `phantom.json`, which marks the folder as a phantom's, then the folders that the scans go to."""
    state = {"settings": dataclasses.asdict(settings), "version": VERSION, "whole": whole}
    files.write_json(folder / "phantom.json", state)
    for name in [f"subset{subset}" for subset in range(NUM_SUBSETS)] + [MASK_FOLDER]:
        (folder / name).mkdir(exist_ok=True)


def _write_scans(folder, settings, progress):
    """Writes the scans that are missing; returns the rows of all annotations, by scan.

    A few scans are written here, more by processes side by side (threads would wait for one another).
    """
    num_workers = min(os.cpu_count() or 1, 8, settings.num_scans // 4)
    report = _report_here if num_workers < 2 else _report_from_workers
    rows = {}
    with contextlib.closing(report(folder, settings, num_workers)) as reports:
        for number, found in reports:
            rows[number] = found
            if progress is not None:
                progress(len(rows), settings.num_scans)
    return [row for number in sorted(rows) for row in rows[number]]


def _report_here(folder, settings, num_workers):
    """Yields the number and annotations of each scan, once it is written, by this process."""
    del num_workers
    for number in range(settings.num_scans):
        yield number, write_scan(folder, settings, number)


def _report_from_workers(folder, settings, num_workers):
    """Yields the number and annotations of each scan, once it is written, by `worker`s."""
    lines = queue.SimpleQueue()
    started = [_start_worker(folder, share, num_workers, lines) for share in range(num_workers)]
    try:
        left, at_work = settings.num_scans, num_workers
        while left and at_work:
            line = lines.get()
            message = json.loads(line) if line else {}
            if "error" in message:
                raise InputError(message["error"])
            at_work -= not line
            left -= bool(line)
            if line:
                yield message["scan"], message["rows"]
        if left:
            raise InputError(
                f"data.phantom: {left} scans were not drawn: a process that drew them was killed; is there memory "
                "enough? Start the same command again: those that are there are kept"
            )
    finally:
        for worker in started:
            worker.terminate()
            worker.wait()


def _start_worker(folder, share, num_workers, lines):
    """Returns a process that writes its share of the scans; what it says goes to the queue `lines`."""
    module = "auxseg.datasets.phantom.worker"
    worker = workers.start(module, folder, share, num_workers, stdout=subprocess.PIPE)

    def forward():
        with worker.stdout:
            for line in worker.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=forward, daemon=True).start()
    return worker


def write_scan(folder, settings, number):
    """Writes one scan and its mask unless they are there; returns its annotations.

    Slices go to the disk as they are drawn. The image's header is written last: a scan that has one is whole.
    """
    scan = create_scan(settings, number)
    if _is_there(folder, settings, number):
        return annotations(scan)
    image, mask = _headers(folder, settings, number)
    flip = -1 if scan.scene.patient.prone else 1
    with (
        files.write_whole(image.with_suffix(".raw")) as raw,
        files.write_whole(mask.with_suffix(".zraw")) as zraw,
    ):
        packer = zlib.compressobj(1)
        for hu, values in render_slices(settings, scan, number):
            raw.write(np.ascontiguousarray(hu[::flip, ::flip]))
            zraw.write(packer.compress(np.ascontiguousarray(values[::flip, ::flip].astype("<i2"))))
        zraw.write(packer.flush())
    packed = mask.with_suffix(".zraw").stat().st_size
    files.write_text(mask, _header(scan, mask.with_suffix(".zraw").name, packed))
    files.write_text(image, _header(scan, image.with_suffix(".raw").name))
    return annotations(scan)


def _headers(folder, settings, number):
    """Returns the paths of the headers of a scan and of its mask."""
    name = f"{series_uid(settings, number)}.mhd"
    return folder / f"subset{number % NUM_SUBSETS}" / name, folder / MASK_FOLDER / name


def _is_there(folder, settings, number):
    """Returns whether a scan and its mask are there, whole."""
    image, mask = _headers(folder, settings, number)
    if not (image.is_file() and mask.is_file() and mask.with_suffix(".zraw").is_file()):
        return False
    raw = image.with_suffix(".raw")
    return raw.is_file() and raw.stat().st_size == settings.num_slices * settings.matrix**2 * 2


def _header(scan, data_file, packed_bytes=None):
    """Returns the `.mhd` header of a scan, field for field as LUNA16 writes them.

    A patient who lies prone is scanned with the columns and rows the other way round in his axes;
    the matrix says so and left stays his left in the world.
    """
    sign = -1 if scan.scene.patient.prone else 1
    first = [scan.x_mm[::sign][0], scan.y_mm[::sign][0], scan.z_mm[0]] + scan.origin_mm
    spacing = (abs(scan.x_mm[1] - scan.x_mm[0]), abs(scan.y_mm[1] - scan.y_mm[0]), _spacing_z(scan.z_mm))
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed_bytes is not None}",
    ]
    if packed_bytes is not None:
        lines.append(f"CompressedDataSize = {packed_bytes}")
    lines += [
        f"TransformMatrix = {sign} 0 0 0 {sign} 0 0 0 1",
        "Offset = " + " ".join(repr(float(value)) for value in first),
        "CenterOfRotation = 0 0 0",
        f"AnatomicalOrientation = {'RAI' if sign > 0 else 'LPI'}",
        "ElementSpacing = " + " ".join(repr(float(value)) for value in spacing),
        f"DimSize = {len(scan.x_mm)} {len(scan.y_mm)} {len(scan.z_mm)}",
        "ElementType = MET_SHORT",
        f"ElementDataFile = {data_file}",
    ]
    return "\n".join(lines) + "\n"


def _spacing_z(z_mm):
    return z_mm[1] - z_mm[0] if len(z_mm) > 1 else _WIDEST_SPACING_MM


def _write_annotations(folder, rows):
    """Writes `annotations.csv`."""
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    lines += [f"{uid},{x:.6f},{y:.6f},{z:.6f},{diameter:.6f}" for uid, x, y, z, diameter in rows]
    files.write_text(folder / "annotations.csv", "\n".join(lines) + "\n")


def _remove_leftovers(folder):
    """Removes what a killed generation was writing; a young file may be another process's, at work."""
    for path in folder.rglob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
