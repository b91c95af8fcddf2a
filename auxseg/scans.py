"""Any chest CT as a `Scan`: DICOM folder, zip, MetaImage, NRRD, NIfTI or NPZ, read a few slices at a time.

`find_scans` says which scans a path holds; `open_scan` opens one. A compressed file is inflated to a
temporary one, a stream at a time, so that memory is bounded by the slices asked for and not by the scan.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import os
import pathlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from auxseg import ct, dicom, progress
from auxseg.errors import InputError
from auxseg.scan_checks import INFO, WARNING, Finding

MAX_ZIP_BYTES = 32 * 2**30
"""What the files of one zip may hold together, unpacked."""

_BLOCK = 1 << 20


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
        geometry: the same grid in canonical orientation (`auxseg.ct`).
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
    stored: ct.Geometry
    geometry: ct.Geometry
    orientation: ct.Orientation
    dtype: str
    has_geometry: bool
    read: Callable[[int, int], np.ndarray]
    findings: tuple[Finding, ...] = ()
    volume: dicom.Volume | None = None

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
            f"--input: no scan in {path}: {what}; expected DICOM, a zip, .npz, or {', '.join(ct.SUFFIXES)}"
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
    return _open_npz(source) if source.kind == "npz" else _open_file(source, scratch)


def unpack_zip(path, folder, *, max_bytes=MAX_ZIP_BYTES):
    """Unpacks a zip into an empty folder.

    Raises:
        InputError: it is damaged, encrypted, larger than `max_bytes`, or has an entry that leads out of the
            folder or is a link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                _check_entry(entry, path)
            left = max_bytes
            for entry in entries:
                left -= _unpack_entry(archive, entry, folder, left, path)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise InputError(f"zip: {path} is damaged or of an unknown kind: {error}; copy it again") from error


def _check_entry(entry, path):
    name = pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or ":" in name.parts[0] or "\0" in entry.filename:
        raise InputError(
            f"zip: {path} has an entry that leads out of it, {entry.filename!r}; nothing was unpacked"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"zip: {path} has a link, {entry.filename!r}; nothing was unpacked")
    if entry.flag_bits & 1:
        raise InputError(f"zip: {path} is encrypted; unpack it first")


def _unpack_entry(archive, entry, folder, max_bytes, path):
    """Writes one entry and returns its bytes; the sizes that a zip states are not trusted."""
    target = folder / pathlib.PurePosixPath(entry.filename.replace("\\", "/"))
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, open(target, "wb") as file:
            while block := packed.read(_BLOCK):
                written += len(block)
                if written > max_bytes:
                    raise InputError(
                        f"zip: {path} holds more than {MAX_ZIP_BYTES / 2**30:.0f} GiB; unpack it first"
                    )
                file.write(block)
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise InputError(f"zip: {path} has two entries in each other's way: {entry.filename!r}") from error
    return written


def _list_files(folder):
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(parent, name) for name in sorted(files) if not name.startswith(".")]
    return found


def _kind(path):
    """Returns what a file is by its name: 'file', 'npz', 'zip', or '' for perhaps DICOM."""
    name = path.name.lower()
    if name.endswith(ct.SUFFIXES):
        return "file"
    return {".npz": "npz", ".zip": "zip"}.get(path.suffix.lower(), "")


def _looks_like_dicom(path):
    return dicom.is_dicom(path) or path.suffix.lower() in (".dcm", ".dicom")


def _file_source(path):
    name = path.name
    for suffix in sorted((*ct.SUFFIXES, ".npz", ".zip"), key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
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
    unpack_zip(source.path, folder)
    inside = [one for one in find_scans(folder) if one.kind != "zip"]
    if len(inside) != 1:
        names = ", ".join(one.name for one in inside[:5])
        raise InputError(
            f"zip: {source.path} holds {len(inside)} scans ({names}), expected one; unpack it first"
        )
    scan = open_scan(dataclasses.replace(inside[0], name=source.name), scratch, series=series)
    return dataclasses.replace(scan, path=source.path)


def _open_dicom(source, scratch, wanted):
    chosen, others = dicom.choose_series(source.series, wanted)
    volume = dicom.create_volume(chosen)
    orientation = ct.find_orientation(volume.stored)
    geometry = ct.to_canonical_geometry(volume.stored, orientation)
    if orientation.axes[2] == 2:
        read = _dicom_reader(volume, orientation)
    else:
        read = _array_reader(ct.to_canonical(_spool(volume, scratch), orientation))
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
        return np.ascontiguousarray(ct.to_canonical(images, orientation))

    return read


def _spool(volume, scratch):
    """Returns all frames as an array on disk, for stacks that are not transverse."""
    shape = volume.stored.shape_zyx
    array = np.lib.format.open_memmap(scratch / "frames.npy", mode="w+", dtype=np.int16, shape=shape)
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


def _open_npz(source):
    images, spacing, dtype = _load_npz(source.path)
    known = spacing is not None
    size = tuple(int(n) for n in images.shape[::-1])
    geometry = ct.Geometry(size, tuple(spacing[::-1]) if known else (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    text = (
        "orientation is not stated: rows are taken from front to back, columns from the patient's "
        "right to left"
    )
    findings = [Finding(INFO, "orientation", text)]
    if not known:
        text = "NPZ without 'spacing_zyx_mm': sizes are in voxels, millimetres are left empty"
        findings.append(Finding(WARNING, "no-spacing", text))
    orientation = ct.find_orientation(geometry)
    return Scan(source.name, source.path, "NPZ", geometry, geometry, orientation, dtype, known,
                _array_reader(images), tuple(findings))  # fmt: skip


def _load_npz(path):
    """Returns (images int16 [D, H, W], spacing zyx in mm or None, stored dtype)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            name = "image" if "image" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise InputError(f"NPZ: {path} has the arrays {', '.join(names) or 'none'}, expected 'image'")
            image = arrays[name]
            spacing = np.asarray(arrays["spacing_zyx_mm"]) if "spacing_zyx_mm" in names else None
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            RuntimeError, SyntaxError, MemoryError, OverflowError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"NPZ: {path} is damaged or no NPZ of plain arrays: {reason}") from error
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
    return to_hu(volume, path), spacing, str(image.dtype)


def to_hu(array, path):
    """Returns values as int16 HU, rounded.

    Raises:
        InputError: values that are not finite or lie beyond int16.
    """
    if array.dtype == np.int16:
        return array
    if array.dtype.kind not in "iuf":
        raise InputError(f"scan: {path} has values of type {array.dtype}, expected numbers")
    low, high = array.min(), array.max()
    if not (-32768 <= low and high <= 32767):
        raise InputError(
            f"scan: {path} has values from {low} to {high}, expected HU (finite, -32768 to 32767)"
        )
    if array.dtype.kind == "f" and low >= -1 and high <= 1:
        raise InputError(f"scan: {path} has values from {low:.3g} to {high:.3g}, scaled to 1; expected HU")
    return np.rint(array).astype(np.int16)


def _open_file(source, scratch):
    plain = _inflate(source.path, scratch)
    with _named(plain, source.path):
        header = ct.read_header(plain)
        dtype, num_bytes = _value_type(plain)
        _check_length(plain, header.stored, num_bytes)
    read = _file_reader(header, source.path)
    name = source.path.name.lower()
    kind = "NIfTI" if ".nii" in name else "NRRD" if name.endswith((".nrrd", ".nhdr")) else "MetaImage"
    findings = _oblique(header.geometry)
    grid = (header.stored, header.geometry, header.orientation)
    return Scan(source.name, source.path, kind, *grid, dtype, True, read, findings)


@contextlib.contextmanager
def _named(plain, path):
    """Lets errors speak of the user's file, not of the temporary copy."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(plain), str(path))) from error


def _reader(path):
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _value_type(path):
    """Returns the stored values' type by its NumPy name and its bytes."""
    import SimpleITK as sitk

    reader = _reader(path)
    reader.ReadImageInformation()
    dtype = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], reader.GetPixelIDValue())).dtype
    return str(dtype), dtype.itemsize


def _file_reader(header, path):
    """Returns the `read` of an uncompressed file."""
    import SimpleITK as sitk

    axis, flipped = header.orientation.axes[2], header.orientation.flips[2]

    def read(start, stop):
        size, index = list(header.stored.size_xyz), [0, 0, 0]
        index[axis] = size[axis] - stop if flipped else start
        size[axis] = stop - start
        reader = _reader(header.path)
        reader.SetExtractIndex([int(n) for n in index])
        reader.SetExtractSize([int(n) for n in size])
        try:
            block = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(f"scan: {path} is damaged or truncated; copy or export it again") from error
        return np.ascontiguousarray(to_hu(ct.to_canonical(block, header.orientation), path))

    return read


def _inflate(path, scratch):
    """Returns the path of an uncompressed copy, or `path` itself where nothing is compressed.

    Raises:
        InputError: the compressed data are damaged, truncated, or of another length than the header says.
    """
    name = path.name.lower()
    ct.check_scan_path(path)
    try:
        if name.endswith(".nii.gz"):
            with gzip.open(path) as packed:
                return _copy(packed, scratch / "scan.nii")
        if name.endswith((".mhd", ".mha")):
            return _inflate_metaimage(path, scratch)
        if name.endswith((".nrrd", ".nhdr")):
            return _inflate_nrrd(path, scratch)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"scan: {path} is damaged or truncated: {error}; copy it again") from error
    return path


def _copy(stream, target):
    with open(target, "wb") as file:
        shutil.copyfileobj(stream, file, _BLOCK)
    return target


def _header_lines(file, is_last, may_end=False):
    """Returns the text lines at the start of a binary file, up to the one for which `is_last` holds.

    With `may_end` the end of the file ends the header too.
    """
    lines = []
    while len(lines) < 500:
        line = file.readline(4096)
        if not line:
            break
        lines.append(line.decode("latin-1").rstrip("\r\n"))
        if is_last(lines[-1]):
            return lines
    if may_end and lines and len(lines) < 500:
        return lines
    raise ValueError("its header has no end")


def _inflate_metaimage(path, scratch):
    with open(path, "rb") as file:
        lines = _header_lines(file, lambda line: line.partition("=")[0].strip() == "ElementDataFile")
        fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
        if fields.get("CompressedData", "False").lower() != "true":
            return path
        local = fields["ElementDataFile"] == "LOCAL"
        data = path if local else path.parent / fields["ElementDataFile"]
        if not data.is_file():
            raise InputError(f"scan: {path} names the voxel file {data.name}, which is not beside it")
        with open(data, "rb") as packed:
            packed.seek(file.tell() if local else 0)
            _inflate_zlib(packed, scratch / "scan.raw")
    dropped = ("CompressedData", "CompressedDataSize", "ElementDataFile", "HeaderSize")
    kept = [line for line in lines if line.partition("=")[0].strip() not in dropped]
    plain = scratch / "scan.mhd"
    plain.write_text(
        "\n".join([*kept, "CompressedData = False", "ElementDataFile = scan.raw", ""]), "latin-1"
    )
    return plain


def _inflate_zlib(packed, target):
    inflater = zlib.decompressobj()
    with open(target, "wb") as file:
        while not inflater.eof and (block := packed.read(_BLOCK)):
            while block and not inflater.eof:
                file.write(inflater.decompress(block, _BLOCK))
                block = inflater.unconsumed_tail
        if not inflater.eof:
            raise ValueError("the compressed voxels end too early")


def _inflate_nrrd(path, scratch):
    """Returns an uncompressed NRRD, header and voxels in one file, after checking the voxels' length."""
    with open(path, "rb") as file:
        lines = _header_lines(file, lambda line: not line.strip(), path.suffix.lower() == ".nhdr")
        fields = {
            key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
        }
        encoding = fields.get("encoding", "raw").lower()
        name = fields.get("data file", fields.get("datafile"))
        skips = {fields.get(key, "0") for key in ("line skip", "lineskip", "byte skip", "byteskip")}
        if (name and (len(name.split()) > 1 or name == "LIST")) or skips != {"0"}:
            raise InputError(
                f"scan: {path} spreads or hides its voxels (data file, skip); store it as one plain NRRD"
            )
        data = path.parent / name if name else path
        if not data.is_file():
            raise InputError(f"scan: {path} names the voxel file {data.name}, which is not beside it")
        opener = {"raw": open, "gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}.get(
            encoding
        )
        if opener is None:
            raise InputError(f"scan: {path} has the encoding {encoding!r}, expected raw, gzip or bzip2")
        if encoding == "raw":
            found = os.path.getsize(data) - (0 if name else file.tell())
            _check_nrrd_length(fields, found, path)
            return path
        with open(data, "rb") as packed:
            packed.seek(0 if name else file.tell())
            with opener(packed) as stream:
                raw = _copy(stream, scratch / "scan.raw")
    _check_nrrd_length(fields, os.path.getsize(raw), path)
    dropped = ("encoding", "data file", "datafile")
    kept = [line for line in lines if line.strip() and line.partition(":")[0].strip().lower() not in dropped]
    plain = scratch / "scan.nhdr"
    plain.write_text("\n".join([*kept, "encoding: raw", "data file: scan.raw", "", ""]), "latin-1")
    return plain


def _check_nrrd_length(fields, found, path):
    num_bytes = _nrrd_bytes(fields.get("type", ""))
    expected = int(np.prod([int(n) for n in fields.get("sizes", "").split()], dtype=object)) * num_bytes
    if num_bytes == 0 or found != expected:
        raise InputError(
            f"scan: {path} holds {found} bytes of voxels, its header says {expected} "
            f"({fields.get('sizes')} of type "
            f"{fields.get('type')!r}); copy or export it again"
        )


def _nrrd_bytes(name):
    """Returns the bytes of a value of an NRRD type by any of its names ('unsigned short int', 'uint16_t')."""
    sized = re.fullmatch(r"u?int(8|16|32|64)(_t)?", name)
    if sized:
        return int(sized[1]) // 8
    words = name.replace("uchar", "char").replace("ushort", "short").replace("longlong", "long").split()
    sizes = {
        "char": 1,
        "short": 2,
        "long": 8,
        "ulonglong": 8,
        "ulong": 8,
        "float": 4,
        "double": 8,
        "int": 4,
        "uint": 4,
    }
    return next((sizes[kind] for kind in sizes if kind in words), 0)


def _check_length(path, stored, num_bytes):
    """Raises where a NIfTI file is longer than its header says: the header is then another's.

    MetaImage is checked by `ct`, NRRD on the way here. NIfTI may hold extensions between header and voxels.
    """
    if path.suffix.lower() != ".nii":
        return
    extra = os.path.getsize(path) - num_bytes * int(np.prod(stored.size_xyz, dtype=object))
    if not 0 <= extra <= (1 << 16) + 352:
        raise InputError(
            f"scan: {path} is {extra} bytes longer than its header says, expected a header and voxels; "
            "its header "
            "is damaged or another file's: export it again"
        )
