"""Mutated scans: fields and bytes of headers of MetaImage, NRRD, NIfTI and DICOM, cut files, zeros where voxels were.

A scan that is opened all the same must be the one that was written, or what another reader (SimpleITK, nibabel or
pydicom), asked in a process of its own, makes of the same file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import pathlib
import struct

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import checks, geometry, scans
from experiments.checks import forked

COUNT = 600
FORMS = ("mhd", "mha", "nrrd", "nhdr", "nii", "nii.gz", "dicom")
_SHAPE, _SPACING_XYZ = (6, 20, 24), (14.0, 14.0, 20.0)
_TEXTS = (
    "", " ", "-1", "0", "1", "2", "4", "100", "3.7", "1e400", "nan", "inf", "0x10", "99999999999999999999", "-2147483649",
    "True", "False", "x" * 300, "x" * 4000, "1 1 1", "0 0 0", "-1 -1 -1", "nan nan nan", "20 24 6", "24 20 600000000",
    "(0,0,0) (0,0,0) (0,0,0)", "none none none", "none (1,0,0) (0,1,0)", "LOCAL", "LIST", "/etc/passwd", "../scan.raw",
    "%03d.raw 1 6 1", "MET_FLOAT", "MET_LONG", "double", "block", "ascii", "gzip", "big", "right-anterior-superior", "\0", "é",
)  # fmt: skip
_LINES = {
    "mhd": ("Name = " + "n" * 300, "NDims = 100", "BinaryData = False", "Comment = " + "c" * 5000, "= = =", "HeaderSize = -1"),
    "nrrd": ("kinds: " + "k" * 4000, "dimension: 3" + " " * 4000, "# " + "c" * 20000, "byte skip: -1", "line skip: 9", "a:=b"),
}  # fmt: skip
_NIFTI = {
    "sizeof_hdr": (0, "i"), "dim[0]": (40, "h"), "dim[1]": (42, "h"), "dim[2]": (44, "h"), "dim[3]": (46, "h"),
    "dim[4]": (48, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim[0]": (76, "f"), "pixdim[1]": (80, "f"),
    "pixdim[3]": (88, "f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
    "xyzt_units": (123, "b"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern_b": (256, "f"),
    "qoffset_x": (268, "f"), "srow_x[0]": (280, "f"), "srow_y[1]": (300, "f"), "srow_z[3]": (324, "f"), "magic": (344, "i"),
}  # fmt: skip
_INTS, _FLOATS = (
    (-32768, -1, 0, 1, 2, 4, 8, 16, 255, 512, 1024, 32767),
    (0.0, -1.0, 1e-38, 1e38, np.nan, np.inf, 7.0),
)
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "PatientID",
    "InstanceNumber", "ImageType", "AcquisitionNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "RescaleSlope", "RescaleIntercept", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation", "FrameOfReferenceUID", "PatientName",
)  # fmt: skip


def draw():
    """Returns int16 [z, y, x] in HU: a body with two lungs, in which no slice is like another."""
    z, y, x = np.indices(_SHAPE)
    body = ((x - 11.5) / 11) ** 2 + ((y - 9.5) / 8) ** 2 < 1
    lungs = ((np.abs(x - 11.5) - 5) / 3.5) ** 2 + ((y - 9.5) / 6) ** 2 < 1
    noise = np.random.default_rng(1).integers(-20, 20, _SHAPE)
    return (np.where(lungs, -850, np.where(body, 40, -1000)) + noise + z).astype(np.int16)


TRUTH = draw()


def write(form, folder):
    """Writes the scan in a form; returns (the file to open, or the folder of DICOM; the file to change)."""
    if form == "dicom":
        paths = _write_dicom(folder)
        return folder, paths[2]
    grid = geometry.Geometry(_SHAPE[::-1], _SPACING_XYZ, (-160.0, -130.0, 30.0))
    path = folder / f"scan.{form}"
    image = sitk.GetImageFromArray(TRUTH)
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(grid.origin_xyz_mm)
    sitk.WriteImage(image, str(path), useCompression=form in ("mha", "nii.gz"))
    return path, path


def _write_dicom(folder):
    """Writes a file a slice; returns them from inferior to superior."""
    paths = []
    for index, plane in enumerate(TRUTH):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"1.2.3.4.{index + 1}"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        one.Modality, one.SeriesNumber, one.PatientID, one.PatientName = "CT", 3, "P", "Doe^Jane"
        one.InstanceNumber, one.AcquisitionNumber, one.ImageType = (
            index + 1,
            1,
            ["ORIGINAL", "PRIMARY", "AXIAL"],
        )
        one.ImagePositionPatient, one.ImageOrientationPatient = (
            [-160, -130, 30 + 20 * index],
            [1, 0, 0, 0, 1, 0],
        )
        one.PixelSpacing, one.SliceThickness = [14, 14], 20
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.Rows, one.Columns, one.SamplesPerPixel = *plane.shape, 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 1
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = (plane.astype(np.int16) + np.int16(1024)).tobytes()
        paths.append(folder / f"{index}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths


def mutate(form, path, random):
    """Changes a file in place; returns what was done, in words."""
    packed = form == "nii.gz" and random.random() < 0.8  # inside, where the checksum still fits
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    way = random.choice(["field", "field", "field", "bytes", "bytes", "cut", "zeros", "longer"])
    if way == "field" and (packed or form != "nii.gz"):
        what, data = _change_field(form, path, data, random)
    elif way in ("field", "bytes"):
        what, data = _change_bytes(
            data, _header_end(form, data) if random.random() < 0.8 else len(data), random
        )
    elif way == "cut":
        size = int(random.integers(0, len(data)))
        what, data = f"cut at {size} of {len(data)}", data[:size]
    elif way == "zeros":
        start = int(random.integers(len(data) // 2, len(data)))
        what, data = f"zeros from {start} of {len(data)}", data[:start] + bytes(len(data) - start)
    else:
        more = int(random.integers(1, 70000))
        what, data = f"{more} bytes more", data + bytes(more)
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return what


def _header_end(form, data):
    end = {
        "mhd": len(data),
        "mha": data.find(b"LOCAL") + 6,
        "nrrd": data.find(b"\n\n") + 2,
        "nhdr": len(data),
    }
    return end.get(form, 348 if form.startswith("nii") else data.rfind(b"\xe0\x7f\x10\x00"))


def _change_bytes(data, end, random):
    data, places = bytearray(data), random.integers(0, max(1, end), random.integers(1, 4))
    for place in places:
        data[place] = int(
            random.choice(
                [random.integers(48, 58), data[place] ^ (1 << random.integers(8)), random.integers(256)]
            )
        )
    return f"bytes {', '.join(map(str, sorted(places.tolist())))}", bytes(data)


def _change_field(form, path, data, random):
    if form.startswith("nii"):
        name = str(random.choice(list(_NIFTI)))
        offset, kind = _NIFTI[name]
        value = (
            random.choice(_FLOATS)
            if kind == "f"
            else int(random.choice(_INTS)) % (100 if kind == "b" else 1 << 16)
        )
        packed = struct.pack(f"<{kind}", value if kind != "h" else value - (value > 32767) * 65536)
        return f"{name} is {value}", data[:offset] + packed + data[offset + len(packed) :]
    if form == "dicom":
        return _change_tag(path, data, random)
    end = _header_end(form, data)
    lines = data[:end].split(b"\n")
    sign, kind = (b"=", "mhd") if form.startswith("mh") else (b":", "nrrd")
    number = int(random.choice([k for k, line in enumerate(lines) if sign in line]))
    way, text = random.choice(["value", "value", "value", "drop", "twice", "add"]), str(random.choice(_TEXTS))
    name = lines[number].split(sign)[0].decode().strip()
    changed = lines[number].split(sign)[0] + sign + b" " + text.encode()
    if way == "value":
        lines[number] = changed
    elif way == "drop":
        del lines[number]
    else:
        text = str(random.choice(_LINES[kind])) if way == "add" else text
        lines.insert(number, text.encode() if way == "add" else changed)
    what = f"{name} {'left out' if way == 'drop' else f'{way}: {text[:30]!r} of {len(text)}'}"
    return what, b"\n".join(lines) + data[end:]


def _change_tag(path, data, random):
    """Returns an element of another value, or left out; of a DICOM file in explicit types, little endian."""
    name = str(random.choice(_TAGS))
    element = pydicom.dcmread(path).get_item(name)
    with contextlib.suppress(AttributeError):
        element = pydicom.dcmread(path, specific_tags=[name]).get_item(name)
    start = element.value_tell if hasattr(element, "value_tell") else element.file_tell
    length = struct.unpack_from("<H", data, start - 2)[0]
    if random.random() < 0.25:
        return f"{name} left out", data[: start - 8] + data[start + length :]
    if length == 2 and name not in ("SeriesNumber", "InstanceNumber"):
        value = struct.pack("<H", int(random.choice([0, 1, 2, 8, 12, 16, 32, 64, 20000, 65535])))
        text = str(struct.unpack("<H", value)[0])
    else:
        text = str(
            random.choice(
                [*_TEXTS[:20], "1.2\\3", "1\\0\\0\\0\\1", "14\\0", "0\\0\\0", "1.2.3.4", "0\\1\\0\\1\\0\\0"]
            )
        )
        value = text.encode("utf-8") + b" " * (len(text.encode("utf-8")) % 2)
    return f"{name} is {text[:30]!r}", data[: start - 2] + struct.pack("<H", len(value)) + value + data[
        start + length :
    ]


def act(number, seed, scratch):
    """Returns (what was done, how it ended, more) of a mutated scan.

    Args:
        number: of the scan; its form follows.
        seed: of all of them.
        scratch: empty folder.
    """
    form, random = FORMS[number % len(FORMS)], np.random.default_rng((seed, number))
    place, work = scratch / "in", scratch / "work"
    place.mkdir()
    work.mkdir()
    path, file = write(form, place)
    what = f"{form}: {mutate(form, file, random)}"
    try:
        sources = scans.find_scans(path)
        source = max(sources, key=lambda one: sum(len(series.frames) for series in one.series))
        scan = scans.open_scan(source, work)
        checks.raise_errors(scan.findings, path)
        voxels = scan.read(0, scan.num_slices)
    except InputError as error:
        message = str(error)
        sound = message and "\n" not in message and len(message) < 1500
        return what, "refused" if sound else "fault: no one line", message[:300]
    warned = any(one.severity == checks.WARNING for one in scan.findings)
    judge = _judge_dicom if form == "dicom" else _judge_file
    return what, *judge(scan, voxels, file, warned, work)


def _judge_file(scan, voxels, path, warned, work):
    same_place = np.allclose(scan.stored.spacing_xyz_mm, _SPACING_XYZ) and scan.has_geometry
    found = geometry.from_canonical(voxels, scan.orientation)
    if (
        same_place
        and np.array_equal(found, TRUTH)
        and np.allclose(scan.stored.origin_xyz_mm, (-160, -130, 30))
    ):
        return "right, with a warning" if warned else "right", ""
    other = _ask_other(path, work)
    if other is None:
        return ("right, with a warning", "another place") if warned and np.array_equal(found, TRUTH) else (
            "fault: wrong", "no other reader reads it")  # fmt: skip
    values, spacing = other
    known = not scan.has_geometry or np.allclose(scan.stored.spacing_xyz_mm, spacing, rtol=1e-5)
    usual = np.isfinite(values) & (np.abs(values) < 32768)
    same = found.shape == values.shape and np.array_equal(found[usual], np.rint(values[usual]))
    same = same or np.array_equal(found, TRUTH)  # ITK passes over damage in packed voxels, we do not
    if not (known and same):
        return (
            "fault: wrong",
            f"spacing {scan.stored.spacing_xyz_mm}, the other reader's {spacing.tolist()}; voxels {same}",
        )
    return "as the file says, with a warning" if warned else "as the file says", ""


def _ask_other(path, work):
    """Returns (values [z, y, x], spacing xyz) by another reader, or None where it ends, hangs or refuses."""
    target = work / "other.npz"

    def read():
        if ".nii" in path.name:
            image = nibabel.load(path)
            values = np.squeeze(np.asarray(image.dataobj, np.float64)).T
            unit = {1: 1000.0, 3: 0.001}.get(
                int(image.header["xyzt_units"]) & 7, 1.0
            )  # which nibabel passes over
            spacing = np.linalg.norm(image.affine[:3, :3], axis=0) * unit
        else:
            image = sitk.ReadImage(str(path))
            values, spacing = sitk.GetArrayFromImage(image), np.array(image.GetSpacing())
            values = values[0] if values.ndim == 4 else values[None] if values.ndim == 2 else values
        np.savez(target, values=values, spacing=np.resize(spacing, 3))

    status, _ = forked.call(read)
    if status or not target.exists():
        return None
    with np.load(target, allow_pickle=False) as found:
        return found["values"], found["spacing"]


def _judge_dicom(scan, voxels, path, warned, work):
    """Every image that is there must hold its own values; one that is not there must have been named."""
    del work
    stored = geometry.from_canonical(voxels, scan.orientation)
    for place, frame in zip(scan.volume.places, scan.volume.frames, strict=True):
        if frame.path == path:
            expected = _read_by_pydicom(path)
        else:
            expected = TRUTH[int(frame.path.stem)]
        if stored[place].shape != expected.shape or not np.array_equal(stored[place], expected):
            return "fault: wrong", f"{frame.path.name} at {place} has other values"
    usual = np.allclose(scan.stored.spacing_xyz_mm, _SPACING_XYZ) and scan.num_slices == len(TRUTH)
    whole = usual and len(scan.volume.frames) == len(TRUTH)
    if not whole and not warned:
        return (
            "fault: wrong",
            f"{len(scan.volume.frames)} images at {scan.stored.spacing_xyz_mm}, and no warning",
        )
    same = whole and np.array_equal(stored, TRUTH)
    return ("right" if same else "as the file says") + (", with a warning" if warned else ""), ""


def _read_by_pydicom(path):
    one = pydicom.dcmread(io.BytesIO(pathlib.Path(path).read_bytes()), force=True)
    slope, intercept = (
        float(one.get(name) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    return np.clip(np.rint(one.pixel_array * slope + intercept), -1024, 3071).astype(np.int16)
