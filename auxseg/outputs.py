"""Writers of what `predict` hands over: masks in the input's geometry, measurements, pictures, a report.

Volumes are written slice by slice, so that neither a mask nor a probability map of a whole scan is held in
memory. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import html
import io
import json
import pathlib
import struct
import zlib

import numpy as np

from auxseg import ct
from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS
from auxseg.base.errors import InputError, check_choice

VOLUME_FORMATS = ("nii.gz", "nii", "nrrd", "mha", "npz")
FORMATS = (*VOLUME_FORMATS, "dicom-seg")
"""Choices of --format."""
PICTURE_WINDOW_HU = (-1350.0, 150.0)
"""A radiologist's lung window (width 1500, level -600); for pictures only."""
_OVERLAY_ALPHA = 110
_MAX_PICTURE_PIXELS = 512


def crop_geometry(scan, start, stop):
    """Returns the stored `Geometry` of the canonical slices start to stop of a scan."""
    axis, flipped = scan.orientation.axes[2], scan.orientation.flips[2]
    size, first = list(scan.stored.size_xyz), [0, 0, 0]
    first[axis] = size[axis] - stop if flipped else start
    size[axis] = stop - start
    origin = tuple(float(v) for v in ct.index_to_mm(scan.stored, first))
    return ct.Geometry(tuple(size), scan.stored.spacing_xyz_mm, origin, scan.stored.direction)


def check_format(name, scan):
    """Returns the format if a scan can be written in it.

    Raises:
        InputError: unknown; DICOM-SEG without a DICOM input or without highdicom; NIfTI of a tilted stack.
    """
    check_choice("--format", name, FORMATS)
    if name == "dicom-seg":
        if scan.volume is None:
            raise InputError(
                f"--format=dicom-seg: needs a DICOM input to refer to, got {scan.kind}: {scan.path}"
            )
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise InputError("--format=dicom-seg: needs highdicom: pip install 'auxseg[dicom]'") from error
    elif name.startswith("nii") and not is_orthogonal(scan.stored):
        raise InputError(
            f"--format={name}: {scan.path} has axes at no right angle (gantry tilt), which NIfTI "
            "readers refuse; use "
            "--format=nrrd, mha or dicom-seg"
        )
    return name


def is_orthogonal(geometry):
    """Returns whether the axes of a grid stand at right angles, to a thousandth."""
    matrix = np.reshape(geometry.direction, (3, 3))
    return bool(np.abs(matrix.T @ matrix - np.eye(3)).max() < 1e-3)


def write_volume(path, slices, geometry, dtype):
    """Writes a volume from its slices, whole or not at all, compressed where the format can.

    Args:
        path: ends in one of `VOLUME_FORMATS`.
        slices: iterable of [rows, columns] in the order of the stored third axis.
        geometry: `ct.Geometry` as stored.
        dtype: 'uint8' or 'float32'.
    """
    name = pathlib.Path(path).name
    slices = (np.ascontiguousarray(one, np.dtype(dtype).newbyteorder("<")) for one in slices)
    with files.write_whole(path) as file:
        if name.endswith((".nii.gz", ".nii")):
            _write_nifti(file, slices, geometry, dtype, name.endswith(".gz"))
        elif name.endswith(".nrrd"):
            _write_nrrd(file, slices, geometry, dtype)
        elif name.endswith(".mha"):
            _write_metaimage(file, slices, geometry, dtype)
        else:
            np.savez_compressed(file, mask=np.stack(list(slices)), spacing_zyx_mm=geometry.spacing_zyx_mm)


def _gzip(file):
    return gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0)


def _write_nifti(file, slices, geometry, dtype, compressed):
    with _gzip(file) if compressed else contextlib.nullcontext(file) as stream:
        stream.write(nifti_header(geometry, dtype))
        for one in slices:
            stream.write(one.tobytes())


def nifti_header(geometry, dtype):
    """Returns the 352 bytes before the voxels of a NIfTI-1 file, with q-form and s-form (RAS, "
    "millimetres)."""
    to_ras = np.diag([-1.0, -1.0, 1.0])
    matrix = to_ras @ np.reshape(geometry.direction, (3, 3))
    origin = to_ras @ np.asarray(geometry.origin_xyz_mm)
    qfac = -1.0 if np.linalg.det(matrix) < 0 else 1.0
    b, c, d = _quaternion(matrix * [1.0, 1.0, qfac])
    affine = np.hstack([matrix * geometry.spacing_xyz_mm, origin[:, None]])
    code, bits = {"uint8": (2, 8), "float32": (16, 32)}[dtype]
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *geometry.size_xyz, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, code, bits)
    struct.pack_into("<8f", head, 76, qfac, *geometry.spacing_xyz_mm, 0, 0, 0, 0)
    struct.pack_into("<3f", head, 108, 352.0, 1.0, 0.0)
    struct.pack_into("<B", head, 123, 2)
    struct.pack_into("<2h", head, 252, 1, 1)
    struct.pack_into("<6f", head, 256, b, c, d, *origin)
    struct.pack_into("<12f", head, 280, *affine.ravel())
    head[344:348] = b"n+1\0"
    return bytes(head)


def _quaternion(rotation):
    """Returns (b, c, d) of the unit quaternion of a rotation, with a >= 0, as NIfTI wants it."""
    symmetric = np.array([
        [rotation[0, 0] - rotation[1, 1] - rotation[2, 2], 0, 0, 0],
        [rotation[0, 1] + rotation[1, 0], rotation[1, 1] - rotation[0, 0] - rotation[2, 2], 0, 0],
        [rotation[0, 2] + rotation[2, 0], rotation[1, 2] + rotation[2, 1],
         rotation[2, 2] - rotation[0, 0] - rotation[1, 1], 0],
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1],
         np.trace(rotation)],
    ])  # fmt: skip
    vector = np.linalg.eigh(symmetric / 3.0)[1][:, -1]
    return vector[:3] if vector[3] >= 0 else -vector[:3]


def _write_nrrd(file, slices, geometry, dtype):
    matrix = np.reshape(geometry.direction, (3, 3)) * geometry.spacing_xyz_mm
    directions = " ".join(_nrrd_vector(column) for column in matrix.T)
    lines = [
        "NRRD0004", f"type: {'unsigned char' if dtype == 'uint8' else 'float'}", "dimension: 3",
        "space: left-posterior-superior", f"sizes: {' '.join(map(str, geometry.size_xyz))}",
        f"space directions: {directions}", "kinds: domain domain domain", "endian: little", "encoding: gzip",
        f"space origin: {_nrrd_vector(geometry.origin_xyz_mm)}", "", "",
    ]  # fmt: skip
    file.write("\n".join(lines).encode("ascii"))
    with _gzip(file) as stream:
        for one in slices:
            stream.write(one.tobytes())


def _nrrd_vector(values):
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def _write_metaimage(file, slices, geometry, dtype):
    """Writes the header with room for the compressed size, the voxels, then the size."""
    columns = np.reshape(geometry.direction, (3, 3)).T.ravel()
    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = True", f"CompressedDataSize = {'':20}", f"TransformMatrix = {_words(columns)}",
        f"Offset = {_words(geometry.origin_xyz_mm)}", "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_words(geometry.spacing_xyz_mm)}", f"DimSize = {_words(geometry.size_xyz)}",
        f"ElementType = {'MET_UCHAR' if dtype == 'uint8' else 'MET_FLOAT'}", "ElementDataFile = LOCAL", "",
    ]  # fmt: skip
    head = "\n".join(lines).encode("ascii")
    file.write(head)
    packer, written = zlib.compressobj(4), 0
    for one in slices:
        written += file.write(packer.compress(one.tobytes()))
    written += file.write(packer.flush())
    place = head.index(b"CompressedDataSize = ") + len(b"CompressedDataSize = ")
    file.seek(place)
    file.write(f"{written:<20}".encode("ascii"))


def _words(values):
    return " ".join(repr(v) for v in np.asarray(values).tolist())


def write_mask(path, masks, scan, start, stop):
    """Writes a canonical mask in the scan's own frame, in a volume format.

    Args:
        path: ends in one of `VOLUME_FORMATS`.
        masks: uint8 [stop - start, H, W], canonical.
        scan: `scans.Scan`.
        start, stop: the slices that the mask covers.
    """
    stored = ct.from_canonical(masks, scan.orientation)
    write_volume(path, stored, crop_geometry(scan, start, stop), "uint8")


def write_dicom_seg(path, masks, scan, start, stop, *, model_name, checksum):
    """Writes a mask as a DICOM Segmentation that refers to the source images, by highdicom.

    One binary segment a class: the lungs as SNOMED CT 'Lung' with the modifier left or right (context groups
    7155 and 244) and the anatomic region 'Left lung', 'Right lung'; nodules as 'Nodule' (7159) in 'Lung'.
    Only frames with a segment in them are written.

    Args:
        path: the .dcm file.
        masks: uint8 [stop - start, H, W], canonical.
        scan: `scans.Scan` with a DICOM volume.
        start, stop: the slices that the mask covers.
        model_name: what made the mask.
        checksum: of its weights.

    Raises:
        InputError: the source is a multi-frame image spread over several files.
    """
    import highdicom
    import pydicom

    from auxseg import __version__

    sources, frames = _seg_sources(masks, scan, start, stop)
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segment_descriptions(model_name),
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=_free_series_number(scan),
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="auxseg",
        manufacturer_model_name=model_name[:64],
        software_versions=__version__,
        device_serial_number=checksum[:16],
        content_label="LUNGS_NODULES",
        content_description="Lungs and nodules, not for clinical use",
        series_description="Lungs and nodules (auxseg)",
    )
    with files.write_whole(path) as file:
        pydicom.dcmwrite(file, segmentation, enforce_file_format=True)


def _free_series_number(scan):
    return 1000 + scan.volume.series.number % 9000


def _seg_sources(masks, scan, start, stop):
    """Returns (source datasets, uint8 [frames, rows, columns] in their order)."""
    from auxseg import dicom

    volume = scan.volume
    first = np.zeros(3, int)
    axis = scan.orientation.axes[2]
    first[axis] = volume.stored.size_xyz[axis] - stop if scan.orientation.flips[2] else start
    stored = ct.from_canonical(masks, scan.orientation)
    sources = dicom.read_sources(volume)
    if len(sources) == len(volume.frames):
        chosen = [k for k in range(len(stored)) if stored[k].any()] or [0]
        frames = np.zeros((len(chosen), *volume.frames[0].size_yx), np.uint8)
        for place, k in enumerate(chosen):
            _paste(frames[place], stored[k], first)
        return [sources[first[2] + k] for k in chosen], frames
    if len(sources) > 1:
        raise InputError(
            f"--format=dicom-seg: {scan.path} spreads its frames over several files; use another format"
        )
    frames = np.zeros((int(sources[0].NumberOfFrames), *volume.frames[0].size_yx), np.uint8)
    for k in range(len(stored)):
        _paste(frames[volume.frames[first[2] + k].index], stored[k], first)
    return sources, frames


def _paste(frame, part, first):
    frame[first[1] : first[1] + part.shape[0], first[0] : first[0] + part.shape[1]] = part


def _segment_descriptions(model_name):
    import highdicom
    from pydicom.sr.coding import Code

    from auxseg import __version__

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model_name[:64], version=__version__, family=Code("123110", "DCM", "Artificial Intelligence")
    )
    lung = Code("39607008", "SCT", "Lung")
    kinds = [
        ("Left lung", lung, Code("7771000", "SCT", "Left"), Code("44029006", "SCT", "Left lung")),
        ("Right lung", lung, Code("24028007", "SCT", "Right"), Code("3341006", "SCT", "Right lung")),
        ("Nodule", Code("27925004", "SCT", "Nodule"), None, lung),
    ]
    anatomical = Code("91723000", "SCT", "Anatomical Structure")
    abnormal = Code("49755003", "SCT", "Morphologically Abnormal Structure")
    descriptions = []
    for number, (label, kind, side, region) in enumerate(kinds, start=1):
        one = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=abnormal if side is None else anatomical,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[region],
            tracking_uid=highdicom.UID(),
            tracking_id=label,
            display_color=highdicom.color.CIELabColor.from_rgb(*COLOURS[CLASS_NAMES[number]]),
        )
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(one)
    return descriptions


def write_table(path, rows):
    """Writes rows (dicts with the same keys) as CSV; empty where a value is None or not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    with files.write_whole(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def _cell(value):
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    if isinstance(value, float):
        return np.format_float_positional(value, precision=6, fractional=False, trim="-")
    return value


def write_json(path, value):
    """Writes strict, indented JSON, whole or not at all."""
    with files.write_whole(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def read_json(path):
    """Returns the JSON value of a file.

    Raises:
        InputError: it cannot be read as JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); remove it and start again") from error


def encode_picture(image_hu):
    """Returns one slice as a JPEG in the lung window, at most 512 pixels wide or high.

    Args:
        image_hu: int16 [H, W].
    """
    buffer = io.BytesIO()
    _shrink(_grey(image_hu)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def encode_overlay(mask):
    """Returns one mask as a PNG with a transparent background, at most 512 pixels wide or high.

    Args:
        mask: uint8 [H, W], class indices.
    """
    from PIL import Image

    image = _shrink(Image.fromarray(np.ascontiguousarray(mask), "L"), nearest=True)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([0, 0, 0, *(v for name in CLASS_NAMES[1:] for v in COLOURS[name])])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 255, 255, 255]), bits=2)
    return buffer.getvalue()


def _grey(image_hu):
    from PIL import Image

    low, high = PICTURE_WINDOW_HU
    grey = (np.clip(image_hu, low, high) - low) * (255.0 / (high - low))
    return Image.fromarray(grey.astype(np.uint8), "L")


def _shrink(image, nearest=False):
    from PIL import Image

    factor = _MAX_PICTURE_PIXELS / max(image.size)
    if factor >= 1:
        return image
    size = tuple(max(1, round(n * factor)) for n in image.size)
    return image.resize(size, Image.NEAREST if nearest else Image.BILINEAR)


def draw_overview(pictures, masks, captions, spacing_yx_mm):
    """Returns panels of slices with overlay as a PIL image, four to a row, in true proportions.

    Args:
        pictures: JPEGs of the slices (`encode_picture`).
        masks: uint8 [H, W] of the same slices.
        captions: one line a slice.
        spacing_yx_mm: pixel size; its ratio sets the proportions.
    """
    from PIL import Image, ImageDraw

    height, width = np.array(masks[0].shape) * spacing_yx_mm
    tall, wide = (round(360 * n / max(height, width)) for n in (height, width))
    columns = min(4, len(masks))
    rows = -(-len(masks) // columns)
    canvas = Image.new("RGB", (columns * (wide + 6) + 6, rows * (tall + 26) + 28), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (picture, mask, caption) in enumerate(zip(pictures, masks, captions)):
        x, y = 6 + index % columns * (wide + 6), 6 + index // columns * (tall + 26)
        canvas.paste(_blend(picture, mask, (wide, tall)), (x, y))
        draw.text((x + 2, y + tall + 4), caption, fill="black")
    x, y = 8, canvas.height - 20
    for name in CLASS_NAMES[1:]:
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=COLOURS[name])
        draw.text((x + 16, y), name.replace("_", " "), fill="black")
        x += 110
    return canvas


def _blend(picture, mask, size):
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").resize(size, Image.BILINEAR)
    overlay = Image.open(io.BytesIO(encode_overlay(mask))).convert("RGBA").resize(size, Image.NEAREST)
    visible = overlay.getchannel("A").point(lambda a: _OVERLAY_ALPHA if a else 0)
    image.paste(overlay.convert("RGB"), (0, 0), visible)
    return image


def write_overview(path, *args):
    """Writes `draw_overview(*args)` as PNG."""
    with files.write_whole(path) as file:
        draw_overview(*args).save(file, "PNG", compress_level=3)  # level 6 takes three times as long for 4%


def write_report(path, *, title, pictures, masks, labels, spacing_yx_mm, tables, notes, start):
    """Writes one self-contained page in which the scan can be scrolled with the overlay.

    Args:
        path: the .html file.
        title: of the page.
        pictures: JPEGs of the slices, from inferior to superior.
        masks: uint8 [H, W] of the same slices.
        labels: one line a slice.
        spacing_yx_mm: pixel size; its ratio sets the proportions.
        tables: list of (heading, rows as dicts with the same keys).
        notes: lines of (severity, text).
        start: index of the slice to show first.
    """
    height, width = np.array(masks[0].shape) * spacing_yx_mm
    with files.write_whole(path) as file:
        file.write(_PAGE_HEAD.format(title=html.escape(title)).encode())
        for severity, text in notes:
            file.write(f'<p class="{severity}">{html.escape(text)}</p>\n'.encode())
        file.write(
            _VIEWER.format(last=len(masks) - 1, start=start, ratio=f"{width:.4f}/{height:.4f}").encode()
        )
        for heading, rows in tables:
            file.write(_html_table(heading, rows).encode())
        file.write(b"<script>\nconst slices=[\n")
        for picture, mask, label in zip(pictures, masks, labels):
            parts = [_data_url("jpeg", picture), _data_url("png", encode_overlay(mask)), label]
            file.write((json.dumps(parts).replace("<", "\\u003c") + ",\n").encode())
        file.write(b"];\n" + _SCRIPT.encode() + b"</script>\n</main></body></html>\n")


def _data_url(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _html_table(heading, rows):
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in rows[0]) if rows else ""
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(_cell(v)))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    ]
    return (
        f"<h2>{html.escape(heading)}</h2>\n<div class=wide><table><tr>{head}</tr>\n"
        + "\n".join(lines)
        + "</table></div>\n"
    )


_PAGE_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0; color: #222; background: #fff; }}
main {{ max-width: 1000px; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; }}
.error {{ color: #b00020; }} .warning {{ color: #8a5a00; }} .info {{ color: #555; }} p {{ margin: .3rem 0; }}
#view {{ position: relative; width: min(100%, 640px); background: #000; touch-action: none; }}
#view img {{ position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: auto; }}
#over {{ opacity: .4; }}
.bar {{ display: flex; gap: 1rem; flex-wrap: wrap; align-items: center; width: min(100%, 640px); }}
.bar input[type=range] {{ flex: 1; min-width: 8rem; }}
.key i {{ display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ border: 1px solid #ccc; padding: .2rem .5rem; text-align: right; }}
td:first-child {{ text-align: left; }} td {{ overflow-wrap: anywhere; }} th {{ vertical-align: bottom; }}
</style></head><body><main>
<h1>{title}</h1>
<p class="warning">For research. Not for clinical use.</p>
"""
_VIEWER = """<div id="view" style="aspect-ratio: {ratio}" tabindex="0" aria-label="slices; arrow keys scroll">
<img id="pic" alt="slice"><img id="over" alt="overlay of the segmentation"></div>
<div class="bar"><input id="at" type="range" min="0" max="{last}" value="{start}" aria-label="slice">
<span id="label"></span></div>
<div class="bar"><label><input id="on" type="checkbox" checked> overlay (o)</label>
<input id="see" type="range" min="0" max="100" value="40" aria-label="opacity of the overlay">
<span class="key"><i style="background: #dc322f"></i>left lung<i style="background: #40a02b"></i>right lung<i
style="background: #266eeb"></i>nodule</span></div>
<p class="info">The patient's right is on the left of the picture. Scroll with the wheel, the slider or the
arrow keys.</p>
"""
_SCRIPT = """const by = id => document.getElementById(id);
function show() {
  const one = slices[+by('at').value];
  by('pic').src = one[0]; by('over').src = one[1]; by('label').textContent = one[2];
  by('over').style.opacity = by('on').checked ? by('see').value / 100 : 0;
}
function move(step) { by('at').value = +by('at').value + step; show(); }
by('view').addEventListener('wheel', e => {
  e.preventDefault();
  move(e.deltaY > 0 ? -1 : 1);
}, {passive: false});
document.addEventListener('keydown', e => {
  if (e.target.type === 'range') return;
  const step = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10}[e.key];
  if (step) { e.preventDefault(); move(step); }
  if (e.key === 'o') { by('on').checked = !by('on').checked; show(); }
});
for (const id of ['at', 'on', 'see']) by(id).addEventListener('input', show);
show();
"""
