"""Any chest CT as a `Scan`: DICOM folder, zip, MetaImage, NRRD, NIfTI or NPZ, read a few slices at a time.

`find_scans` says which scans a path holds; `open_scan` opens one. A compressed file is inflated to a
temporary one, a stream at a time, so that memory is bounded by the slices asked for and not by the scan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np

from auxseg.base import progress
from auxseg.base.errors import InputError
from auxseg.base.files import create_array
from auxseg.ct import archive, dicom, dicom_volume, headers, inflate, nifti
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.geometry import Geometry, Orientation, find_orientation, to_canonical, to_canonical_geometry
from auxseg.ct.images import file_reader, read_header, to_hu, value_type


@dataclasses.dataclass(frozen=True)
class Source:
    """A scan that was found and not yet opened.

    Attributes:
        name: unique among those found together, usable as a file name.
        path: the file or, for DICOM, the folder.
        kind: 'dicom', 'file', 'npz', 'zip', or 'broken'.
        series: the series of one DICOM study.
        problem: for 'broken': the one line that says why.
    """

    name: str
    path: pathlib.Path
    kind: str
    series: tuple[dicom.Series, ...] = ()
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan open for reading.

    Attributes:
        name: as the `Source`'s.
        path: what it was read from.
        kind: 'DICOM', 'MetaImage', 'NRRD', 'NIfTI' or 'NPZ'.
        stored: geometry as stored; outputs have this one.
        geometry: the same grid in canonical orientation (`auxseg.ct.images`).
        orientation: the way from `stored` to `geometry`.
        dtype: type of the stored values.
        has_geometry: False for NPZ without a spacing, whose millimetres mean nothing.
        read: (start, stop) -> int16 [stop - start, H, W] in HU, canonical, slices from inferior to superior.
        findings: what was noticed on opening.
        volume: the DICOM volume, or None.
    """

    name: str
    path: pathlib.Path
    kind: str
    stored: Geometry
    geometry: Geometry
    orientation: Orientation
    dtype: str
    has_geometry: bool
    read: Callable[[int, int], np.ndarray]
    findings: tuple[Finding, ...] = ()
    volume: dicom_volume.Volume | None = None

    @property
    def num_slices(self):
        """Transverse slices."""
        return self.geometry.size_xyz[2]


def find_scans(path):
    """Returns the scans that a path holds, as a list of `Source` in the order of their names.

    A file is one scan. In a folder (and its subfolders) every scan file, zip and NPZ is one, and all DICOM
    files of one study are one. Other files are passed over.

    Raises:
        InputError: nothing there that could be a scan.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"--input: {path} does not exist")
    files = [path] if path.is_file() else _list_files(path)
    sources = [_file_source(file) for file in files if _kind(file)]
    dicom_files = [file for file in files if not _kind(file) and _looks_like_dicom(file)]
    sources += _dicom_sources(dicom_files, path if path.is_dir() else path.parent)
    if not sources:
        what = f"none of its {len(files)} files is one" if path.is_dir() else "it is none"
        raise InputError(
            f"--input: no scan in {path}: {what}; expected DICOM, a zip, .npz, or {', '.join(headers.SUFFIXES)}"
        )
    return _with_unique_names(sorted(sources, key=lambda source: (source.name, str(source.path))))


def open_scan(source, scratch, *, series=None):
    """Returns the `Scan` of a `Source`.

    Args:
        source: from `find_scans`.
        scratch: folder for temporary files, which must outlive the scan.
        series: SeriesInstanceUID or SeriesNumber to take of a DICOM study, or None for the chest CT.

    Raises:
        InputError: the scan cannot be used; the line says why.
    """
    scratch = pathlib.Path(scratch)
    if source.kind == "broken":
        raise InputError(source.problem)
    if source.kind == "zip":
        return _open_zip(source, scratch, series)
    if source.kind == "dicom":
        return _open_dicom(source, scratch, series)
    return _open_npz(source, scratch) if source.kind == "npz" else _open_file(source, scratch)


def _list_files(folder):
    """Returns the files of a folder and its subfolders, and links to nothing; no pipes or devices."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(parent, name) for name in sorted(files) if not name.startswith(".")]
    return [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]


def _kind(path):
    """Returns what a file is by its name: 'file', 'npz', 'zip', or '' for perhaps DICOM."""
    name = path.name.lower()
    if name.endswith(headers.SUFFIXES):
        return "file"
    return {".npz": "npz", ".zip": "zip"}.get(path.suffix.lower(), "")


def _looks_like_dicom(path):
    return dicom.is_dicom(path) or path.suffix.lower() in (".dcm", ".dicom")


def _file_source(path):
    name = path.name
    for suffix in sorted((*headers.SUFFIXES, ".npz", ".zip"), key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    if not path.exists():
        return Source(_file_name(name), path, "broken", problem=f"scan: {path} is a link to nothing")
    return Source(_file_name(name), path, _kind(path))


def _file_name(text):
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._") or "scan"


def _with_unique_names(sources):
    """Returns the sources with '_2', '_3', ... after names that would be used twice."""
    used, unique = set(), []
    for source in sources:
        name, count = source.name, 2
        while name.lower() in used:
            name, count = f"{source.name}_{count}", count + 1
        used.add(name.lower())
        unique.append(dataclasses.replace(source, name=name))
    return unique


def _dicom_sources(files, root):
    """Returns one source a study; a damaged file makes the studies of its folder unusable."""
    if not files:
        return []
    good, damaged = [], {}
    if len(files) > 2000:
        files = progress.track(files, total=len(files), label="reading DICOM headers", unit="file")
    for path in files:
        try:
            good.append(dicom.read_file(path))
        except InputError as error:
            damaged.setdefault(path.parent, str(error))
    good = [one for one in good if one is not None]
    studies = {}
    for one in dicom.merge_series(good):
        studies.setdefault(one.study_uid, []).append(one)
    sources = [_study_source(series, root, damaged) for series in studies.values()]
    touched = {frame.path.parent for one in good for frame in one.frames}
    lost = [(folder, text) for folder, text in damaged.items() if folder not in touched]
    return sources + [Source(_file_name(f.name), f, "broken", problem=text) for f, text in lost]


def _study_source(series, root, damaged):
    folders = sorted({frame.path.parent for one in series for frame in one.frames})
    common = pathlib.Path(os.path.commonpath(folders)) if folders else root
    hits = [damaged[folder] for folder in folders if folder in damaged]
    inside = common.relative_to(root).parts if common.is_relative_to(root) else ()
    name = _file_name("-".join(inside) or common.resolve().name)
    if hits:
        return Source(name, common, "broken", problem=hits[0])
    return Source(name, common, "dicom", tuple(series))


def _open_zip(source, scratch, series):
    folder = scratch / "unzipped"
    folder.mkdir()
    archive.unpack_zip(source.path, folder)
    with _named(folder, source.path):
        inside = [one for one in find_scans(folder) if one.kind != "zip"]
        if len(inside) != 1:
            names = f" ({', '.join(one.name for one in inside[:5])})" if inside else ""
            raise InputError(
                f"zip: {source.path} holds {len(inside)} scans{names}, expected one; unpack it first"
            )
        scan = open_scan(dataclasses.replace(inside[0], name=source.name), scratch, series=series)

    def read(start, stop):
        with _named(folder, source.path):
            return scan.read(start, stop)

    return dataclasses.replace(scan, path=source.path, read=read)


def _open_dicom(source, scratch, wanted):
    chosen, others = dicom.choose_series(source.series, wanted)
    volume = dicom_volume.create_volume(chosen)
    orientation = find_orientation(volume.stored)
    geometry = to_canonical_geometry(volume.stored, orientation)
    if orientation.axes[2] == 2:
        read = _dicom_reader(volume, orientation)
    else:
        read = _array_reader(to_canonical(_spool(volume, scratch), orientation))
    findings = (
        *dicom.list_findings(chosen, others),
        *volume.findings,
        *_oblique(geometry, volume.tilt_degrees),
    )
    return Scan(source.name, source.path, "DICOM", volume.stored, geometry, orientation, "int16", True, read,
                findings, volume)  # fmt: skip


def _dicom_reader(volume, orientation):
    """Returns the `read` of frames that are transverse slices already."""
    flipped, count = orientation.flips[2], len(volume.frames)

    def read(start, stop):
        frames = volume.frames[count - stop : count - start] if flipped else volume.frames[start:stop]
        images = np.stack([dicom.read_frame(frame) for frame in frames])
        return np.ascontiguousarray(to_canonical(images, orientation))

    return read


def _spool(volume, scratch):
    """Returns all frames as an array on disk, for stacks that are not transverse."""
    shape = volume.stored.shape_zyx
    array = create_array(scratch / "frames.npy", np.int16, shape)
    for index, frame in enumerate(volume.frames):
        array[index] = dicom.read_frame(frame)
    return array


def _array_reader(volume):
    return lambda start, stop: np.ascontiguousarray(volume[start:stop])


def _oblique(geometry, tilt_degrees=0.0):
    """Returns a finding where slices are far from transverse even after axes were swapped."""
    matrix = np.reshape(geometry.direction, (3, 3))
    degrees = float(np.degrees(np.arccos(np.clip(np.abs(np.diag(matrix)).min(), 0, 1))))
    if degrees - tilt_degrees < 10:
        return ()
    text = f"axes lie {degrees:.0f} degrees off the patient's; slices are segmented as stored, not resampled"
    return (Finding(WARNING, "oblique", text),)


def _open_npz(source, scratch):
    images, spacing, dtype = _load_npz(source.path, scratch)
    known = spacing is not None
    size = tuple(int(n) for n in images.shape[::-1])
    geometry = Geometry(size, tuple(spacing[::-1]) if known else (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    text = (
        "orientation is not stated: rows are taken from front to back, columns from the patient's "
        "right to left"
    )
    findings = [Finding(INFO, "orientation", text), *_check_axes(images.shape)]
    if not known:
        text = "NPZ without 'spacing_zyx_mm': sizes are in voxels, millimetres are left empty"
        findings.append(Finding(WARNING, "no-spacing", text))
    orientation = find_orientation(geometry)

    def read(start, stop):
        return np.ascontiguousarray(to_hu(images[start:stop], source.path))

    return Scan(source.name, source.path, "NPZ", geometry, geometry, orientation, dtype, known, read,
                tuple(findings))  # fmt: skip


def _check_axes(shape_zyx):
    """Returns a finding where the last axis of an array without orientation looks like that of the slices."""
    slices, rows, columns = shape_zyx
    if slices != rows or rows == columns:
        return []
    text = (
        f"an image of {slices}x{rows}x{columns}: the last axis looks like that of the slices, expected "
        "[slices, rows, columns]; move it to the front"
    )
    return [Finding(ERROR, "axes", text)]


def _load_npz(path, scratch):
    """Returns (images [D, H, W] on disk, spacing zyx in mm or None, stored dtype)."""
    arrays = inflate.inflate_npz(path, scratch)
    names = list(arrays)
    name = "image" if "image" in names else names[0] if len(names) == 1 else None
    if name is None:
        raise InputError(f"NPZ: {path} has the arrays {', '.join(names) or 'none'}, expected 'image'")
    image, spacing = arrays[name], arrays.get("spacing_zyx_mm")
    if image.ndim not in (2, 3) or image.size == 0 or image.dtype.kind not in "iuf":
        raise InputError(
            f"NPZ: {path} has an image of {image.dtype} {image.shape}, expected numbers [H, W] or [D, H, W]"
        )
    if spacing is not None:
        if (
            spacing.shape != (3,)
            or spacing.dtype.kind not in "iuf"
            or not (np.isfinite(spacing) & (spacing > 0)).all()
        ):
            raise InputError(f"NPZ: {path} has spacing_zyx_mm {spacing}, expected three numbers above 0")
        spacing = [float(v) for v in spacing]
    volume = image[None] if image.ndim == 2 else image
    _check_range(volume, path)
    return volume, spacing, str(image.dtype)


def _check_range(volume, path):
    """Raises where values on disk are no HU, looking at a slice at a time."""
    if volume.dtype == np.int16:
        return
    ends = [(one.min(), one.max()) for one in volume]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if volume.dtype.kind == "f" and low >= -1 and high <= 1:
        raise InputError(f"scan: {path} has values from {low:.3g} to {high:.3g}, scaled to 1; expected HU")
    for one in volume:
        to_hu(one, path)


def _open_file(source, scratch):
    plain = inflate.inflate(source.path, scratch)
    with _named(plain, source.path):
        header = read_header(plain)
        dtype = value_type(header)
        headers.check_nifti(plain)
    read = file_reader(header, source.path)
    name = source.path.name.lower()
    kind = "NIfTI" if ".nii" in name else "NRRD" if name.endswith((".nrrd", ".nhdr")) else "MetaImage"
    findings = (*_oblique(header.geometry), *(nifti.list_findings(header.stored) if kind == "NIfTI" else ()))
    grid = (header.stored, header.geometry, header.orientation)
    return Scan(source.name, source.path, kind, *grid, dtype, True, read, findings)


@contextlib.contextmanager
def _named(plain, path):
    """Lets errors speak of the user's file, not of the temporary copy."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(plain), str(path))) from error
