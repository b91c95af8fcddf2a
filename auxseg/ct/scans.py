"""Any chest CT as a `Scan`: DICOM folder, zip, MetaImage, NRRD, NIfTI or NPZ, read a few slices at a time.

`find_scans` says which scans a path holds; `open_scan` opens one. A compressed file is inflated to a
temporary one, a stream at a time, so that memory is bounded by the slices asked for and not by the scan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from auxseg.base.disk_arrays import create_array
from auxseg.base.errors import InputError
from auxseg.ct import archive, dicom_scan, dicom_volume, headers, inflate, nifti, values, voxels
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.find import Skipped, find_scans
from auxseg.ct.geometry import Geometry, Orientation, find_orientation, to_canonical, to_canonical_geometry
from auxseg.ct.images import check_values, file_reader, read_header, value_type


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
        findings: what was noticed on opening; an error among them stops a scan unless --force is given.
        volume: the DICOM volume, or None.
        skipped: series of the study that are not segmented.
        widths_mm: thickness that each slice stands for, float64 [D], None where all are alike.
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
    skipped: tuple[Skipped, ...] = ()
    widths_mm: np.ndarray | None = None

    @property
    def num_slices(self):
        """Transverse slices."""
        return self.geometry.size_xyz[2]

    def find_frame(self, index):
        """Returns the DICOM `dicom.Frame` of a canonical slice; None without one, or where planes are no slices."""
        if self.volume is None or self.orientation.axes[2] != 2:
            return None
        plane = self.num_slices - 1 - index if self.orientation.flips[2] else index
        return dict(zip(self.volume.places, self.volume.frames)).get(plane)


def open_scan(source, scratch, *, series=None, force=False):
    """Returns the `Scan` of a `Source`.

    Args:
        source: from `find_scans`.
        scratch: folder for temporary files, which must outlive the scan.
        series: SeriesInstanceUID or SeriesNumber to take of a DICOM study, or None for the chest CT.
        force: leave out DICOM images that cannot be read.

    Raises:
        InputError: the scan cannot be used; the line says why.
    """
    scratch = pathlib.Path(scratch)
    if source.kind == "broken":
        raise InputError(source.problem)
    if source.kind == "zip":
        return _open_zip(source, scratch, series, force)
    if source.kind == "dicom":
        return _open_dicom(source, scratch, series, force)
    return _open_npz(source, scratch) if source.kind == "npz" else _open_file(source, scratch)


def _open_zip(source, scratch, series, force):
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
        scan = open_scan(
            dataclasses.replace(inside[0], name=source.name), scratch, series=series, force=force
        )

    def read(start, stop):
        with _named(folder, source.path):
            return scan.read(start, stop)

    return dataclasses.replace(scan, path=source.path, read=read)


def _open_dicom(source, scratch, wanted, force):
    volume, findings, skipped = dicom_scan.choose_volume(source, wanted, force=force)
    orientation = find_orientation(volume.stored)
    geometry = to_canonical_geometry(volume.stored, orientation)
    read_plane = dicom_scan.create_read_plane(volume)
    if orientation.axes[2] == 2:
        read = _plane_reader(read_plane, volume.stored.size_xyz[2], orientation)
    else:
        read = _array_reader(to_canonical(_spool(read_plane, volume.stored, scratch), orientation))
    findings = (*source.findings, *findings, *volume.findings, *_oblique(geometry, volume.tilt_degrees))
    return Scan(source.name, source.path, "DICOM", volume.stored, geometry, orientation, "int16",
                volume.has_geometry, read, findings, volume, skipped, _canonical_widths(volume, orientation))  # fmt: skip


def _canonical_widths(volume, orientation):
    """Returns the thickness in mm of each transverse slice, None where all are alike or unknown."""
    if volume.widths_mm is None or orientation.axes[2] != 2:
        return None
    return volume.widths_mm[::-1] if orientation.flips[2] else volume.widths_mm


def _plane_reader(read_plane, count, orientation):
    """Returns the `read` of planes that are transverse slices already."""
    flipped = orientation.flips[2]

    def read(start, stop):
        planes = range(count - stop, count - start) if flipped else range(start, stop)
        images = np.stack([read_plane(plane) for plane in planes])
        return np.ascontiguousarray(to_canonical(images, orientation))

    return read


def _spool(read_plane, stored, scratch):
    """Returns all planes as an array on disk, for stacks that are not transverse."""
    array = create_array(scratch / "frames.npy", np.int16, stored.shape_zyx)
    for plane in range(len(array)):
        array[plane] = read_plane(plane)
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
    images, spacing = _load_npz(source.path, scratch)
    known = spacing is not None
    size = tuple(int(n) for n in images.shape[::-1])
    geometry = Geometry(size, tuple(spacing[::-1]) if known else (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    text = (
        "orientation is not stated: rows are taken from front to back, columns from the patient's "
        "right to left"
    )
    findings = [*source.findings, Finding(INFO, "orientation", text), *check_axes(images.shape)]
    return create_scan(source.name, source.path, "NPZ", images, geometry, known, findings)


def create_scan(name, path, kind, images, geometry, has_geometry, findings=()):
    """Returns the `Scan` of an array, which may lie on disk.

    Args:
        name, path, kind, has_geometry: as of `Scan`.
        images: numbers [z, y, x], as stored.
        geometry: `Geometry` as stored.
        findings: so far.
    """
    orientation = find_orientation(geometry)
    canonical = to_canonical(images, orientation)
    placed = to_canonical_geometry(geometry, orientation)
    findings = [*findings, *values.check_values(canonical, images.dtype, path), *_oblique(placed)]
    if not has_geometry:
        text = "no spacing is given (NPZ: 'spacing_zyx_mm'): sizes are in voxels, millimetres are left empty"
        findings.append(Finding(WARNING, "no-spacing", text))

    def read(start, stop):
        return np.ascontiguousarray(values.to_hu(canonical[start:stop], path))

    return Scan(name, path, kind, geometry, placed, orientation, str(images.dtype), has_geometry, read,
                tuple(findings))  # fmt: skip


def check_axes(shape_zyx):
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
    """Returns (images [D, H, W] on disk, spacing zyx in mm or None)."""
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
    check_scaled(volume, path)
    return volume, spacing


def check_scaled(volume, path):
    """Raises where floating point values on disk were scaled to 1, looking at a slice at a time."""
    if volume.dtype.kind != "f":
        return
    ends = [(np.fmin.reduce(one, axis=None), np.fmax.reduce(one, axis=None)) for one in volume]
    low, high = np.fmin.reduce([low for low, _ in ends]), np.fmax.reduce([high for _, high in ends])
    if low >= -1 and high <= 1:
        raise InputError(f"scan: {path} has values from {low:.3g} to {high:.3g}, scaled to 1; expected HU")


def _open_file(source, scratch):
    with headers.errors_of_system(source.path):
        plain = inflate.inflate_nifti(source.path, scratch)
        with _named(plain, source.path):
            header = read_header(plain)
            if header.voxels is not None:
                header = dataclasses.replace(
                    header, voxels=voxels.to_plain(header.voxels, scratch / "scan.raw")
                )
            findings = [*headers.check_nifti(plain), *check_values(header, source.path)]
    name = source.path.name.lower()
    kind = "NIfTI" if ".nii" in name else "NRRD" if name.endswith((".nrrd", ".nhdr")) else "MetaImage"
    findings += [*_oblique(header.geometry), *_header_findings(header)]
    grid = (header.stored, header.geometry, header.orientation)
    known = header.voxels is None or header.voxels.has_geometry
    return Scan(source.name, source.path, kind, *grid, value_type(header), known, file_reader(header, source.path),
                (*source.findings, *findings))  # fmt: skip


def _header_findings(header):
    if header.voxels is None:
        return nifti.list_findings(header.stored)
    if header.voxels.has_geometry:
        return header.voxels.findings
    text = "the header states no spacing: sizes are in voxels, millimetres are left empty"
    return (*header.voxels.findings, Finding(WARNING, "no-spacing", text))


@contextlib.contextmanager
def _named(plain, path):
    """Lets errors speak of the user's file, not of the temporary copy."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(plain), str(path))) from error
