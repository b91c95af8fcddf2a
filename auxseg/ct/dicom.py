"""CT series from DICOM files: which series is the chest CT, its slices in order, in mm and HU.

Single-frame and enhanced multi-frame CT, by pydicom; compressed pixels that pydicom has
no decoder for are read by SimpleITK. Slices are ordered by position along their normal, the spacing comes
from the positions and not from SliceThickness. What makes a volume wrong without looking wrong is refused
in one line: missing slices, two acquisitions in one series, mixed orientations, 8-bit pictures of a CT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import re
import warnings

import numpy as np

from auxseg.base.classes import AIR_HU
from auxseg.base.errors import InputError
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding

MAX_HU, MIN_HU = 3071, AIR_HU
"""Range that HU are clipped to: 12 bits, as the scanners give them."""
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType",
    "SeriesNumber", "SeriesDescription", "StudyDescription", "BodyPartExamined", "ProtocolName",
    "ConvolutionKernel", "AcquisitionNumber", "InstanceNumber", "PatientPosition", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "SamplesPerPixel",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "LossyImageCompression",
]  # fmt: skip
_CHEST = re.compile(r"chest|thora|lung|pulmo|poumon|lunge", re.IGNORECASE)
_OTHER_PART = re.compile(
    r"abdo|pelvi|head|brain|skull|neck|knee|spine|sinus|hip\b|foot|ankle|wrist", re.IGNORECASE
)
_HU_TYPES = ("", "HU", "HU_MOD", "US")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One slice as its file has it.

    Attributes:
        path: the file.
        index: 0-based frame in the file.
        sop_uid: SOP Instance UID.
        size_yx: rows and columns.
        position_xyz_mm: LPS position of the first pixel's centre, None where the file has none.
        orientation: six cosines, along a row and down a column, None where the file has none.
        spacing_yx_mm: distance between rows and between columns, None where the file has none.
        slope: HU per stored value.
        intercept: HU at stored value 0.
        padding: stored values (lowest, highest) outside the field of view, or None.
        image_type: such as ('ORIGINAL', 'PRIMARY', 'AXIAL').
        acquisition: AcquisitionNumber, '' where the file has none.
    """

    path: pathlib.Path
    index: int
    sop_uid: str
    size_yx: tuple[int, int]
    position_xyz_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_yx_mm: tuple[float, float] | None
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    image_type: tuple[str, ...]
    acquisition: str


@dataclasses.dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID, as found and unchecked.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        modality: such as 'CT'.
        number: SeriesNumber, 0 where there is none.
        description: what the scanner calls it: series, body part, protocol, kernel.
        frames: one entry a slice, in the order found.
        problems: errors of single files, by what they are.
    """

    uid: str
    study_uid: str
    modality: str
    number: int
    description: str
    frames: tuple[Frame, ...]
    problems: tuple[Finding, ...] = ()

    def __str__(self):
        return (
            f"series {self.number} '{self.description}' ({self.modality}, {len(self.frames)} images, "
            f"{self.uid})"
        )


def is_dicom(path):
    """Returns whether a file has DICOM's preamble ('DICM' at byte 128)."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_file(path):
    """Returns what one DICOM file adds to its series, or None where it holds no image (a report, a DICOMDIR).

    Raises:
        InputError: the file is damaged, or pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"DICOM: reading {path} needs pydicom: pip install pydicom") from error
    with _errors_named(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        if "SeriesInstanceUID" not in dataset or "Rows" not in dataset:
            return _check_imageless(dataset, path)
        return Series(
            uid=str(dataset.SeriesInstanceUID),
            study_uid=str(dataset.get("StudyInstanceUID", "")),
            modality=str(dataset.get("Modality", "")),
            number=int(dataset.get("SeriesNumber") or 0),
            description=_describe(dataset),
            frames=tuple(_read_frames(dataset, path)),
            problems=tuple(_find_file_problems(dataset, path)),
        )


def _check_imageless(dataset, path):
    """Returns None for a file that is meant to hold no image, such as a report.

    Raises:
        InputError: it should hold one: the header ends too early.
    """
    kind = getattr(dataset.file_meta.get("MediaStorageSOPClassUID", ""), "name", "")
    if not kind or "Image Storage" in kind:
        raise InputError(f"DICOM: {path} is damaged or truncated: its header ends too early; export it again")
    return None


def merge_series(parts):
    """Returns the series that files make up together, in the order of their numbers.

    Args:
        parts: from `read_file`, one a file.
    """
    groups = {}
    for part in parts:
        groups.setdefault((part.study_uid, part.uid), []).append(part)
    series = [_merge(group) for group in groups.values()]
    return sorted(series, key=lambda one: (one.number, one.uid))


def _merge(parts):
    problems = {problem.code: problem for part in reversed(parts) for problem in part.problems}
    frames = tuple(frame for part in parts for frame in part.frames)
    return dataclasses.replace(parts[0], frames=frames, problems=tuple(problems.values()))


def choose_series(series, uid=None):
    """Returns the chest CT among several series: (chosen, others).

    CT before all else; then series named for the chest, then those not named for another part, then
    transverse ones, then the one with the most images (the thinnest slices), then the lowest number.

    Args:
        series: from `merge_series`, at least one.
        uid: SeriesInstanceUID or SeriesNumber that the user asks for, or None.

    Raises:
        InputError: no CT among them, or `uid` is none of them; the message lists what there is.
    """
    listing = "; ".join(str(one) for one in series)
    if uid is not None:
        matches = [one for one in series if uid in (one.uid, str(one.number))]
        if len(matches) != 1:
            raise InputError(f"--series: got {uid!r}, expected the UID or number of one of: {listing}")
        chosen = matches[0]
    else:
        images = [one for one in series if one.modality == "CT" and one.frames]
        if not images:
            raise InputError(f"DICOM: no CT image series, found: {listing or 'nothing'}; give a chest CT")
        chosen = min(images, key=_preference)
    return chosen, [one for one in series if one is not chosen]


def _preference(series):
    named, other = _CHEST.search(series.description), _OTHER_PART.search(series.description)
    transverse = sum(_is_transverse(frame) for frame in series.frames)
    usable = not series.problems and transverse > 1
    return (not usable, not named, bool(other), -transverse, series.number, series.uid)


def _is_transverse(frame):
    if frame.orientation is None or "LOCALIZER" in frame.image_type:
        return False
    return abs(normal(frame)[2]) > 0.8


def read_frame(frame):
    """Returns one slice, int16 [H, W] in HU, rows and columns as stored, clipped to 12 bits.

    Raises:
        InputError: the file is damaged, truncated or compressed in a way that nothing here can undo.
    """
    with _errors_named(frame.path):
        stored = _read_stored(frame)
    if stored.shape != frame.size_yx:
        raise InputError(f"DICOM: {frame.path} has pixels of shape {stored.shape}, expected {frame.size_yx}")
    if frame.slope == 1.0 and float(frame.intercept).is_integer():
        hu = stored.astype(np.int32) + int(frame.intercept)
    else:
        hu = np.rint(stored * np.float64(frame.slope) + frame.intercept)
    if frame.padding is not None:
        hu = np.where((stored >= frame.padding[0]) & (stored <= frame.padding[1]), AIR_HU, hu)
    return np.clip(hu, MIN_HU, MAX_HU).astype(np.int16)


def read_sources(volume):
    """Returns the headers of a volume's files without pixels, in the order of the frames.

    One pydicom dataset a frame, or one in all where a single file holds all frames.
    """
    import pydicom

    paths = list(dict.fromkeys(frame.path for frame in volume.frames))
    with _errors_named(paths[0]):
        return [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]


def _read_stored(frame):
    """Returns the stored values of a frame, integer [H, W]."""
    from pydicom.pixels import pixel_array

    try:
        return np.asarray(pixel_array(frame.path, index=frame.index, raw=True))
    except (RuntimeError, NotImplementedError) as error:
        return _read_with_simpleitk(frame, error)


def _read_with_simpleitk(frame, reason):
    """Returns stored values of a compressed single-frame file; GDCM gives HU, which are undone."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(frame.path)))
    except RuntimeError:
        image = np.zeros(0)
    if image.shape != (1, *frame.size_yx):
        text = str(reason).splitlines()[0]
        raise InputError(
            f"DICOM: {frame.path}: its compression cannot be undone ({text}); store it uncompressed, for "
            "example with gdcmconv --raw or dcmdjpeg"
        ) from reason
    return np.rint((image[0] - frame.intercept) / frame.slope).astype(np.int32)


@contextlib.contextmanager
def _errors_named(path):
    """Turns whatever pydicom raises on a damaged file into one line that names the file.

    pydicom raises about everything from EOFError to AttributeError there, so all of it is caught.
    """
    log = logging.getLogger("pydicom")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"DICOM: {path} is damaged or truncated: {reason}; copy or export it again"
        ) from error
    finally:
        log.setLevel(level)


def _describe(dataset):
    names = ("SeriesDescription", "BodyPartExamined", "ProtocolName", "StudyDescription", "ConvolutionKernel")
    values = [dataset.get(name) for name in names]
    words = [" ".join(map(str, v)) if not isinstance(v, str) else v for v in values if v]
    return ", ".join(dict.fromkeys(words)) or "no description"


def _read_frames(dataset, path):
    """Returns the frames of one file."""
    count = int(dataset.get("NumberOfFrames") or 1)
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if dataset.get("Modality") == "CT" and count > 1 and len(per_frame) != count:
        raise InputError(f"DICOM: {path} says {count} frames and describes {len(per_frame)}; export it again")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    groups = [[one, shared] for one in per_frame] or [[None, shared]]
    return [_read_one_frame(dataset, path, index, group) for index, group in enumerate(groups)]


def _read_one_frame(dataset, path, index, groups):
    def find(sequence, name):
        for group in groups:
            items = group.get(sequence) if group is not None else None
            if items and items[0].get(name) is not None:
                return items[0].get(name)
        return dataset.get(name)

    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    intercept = find("PixelValueTransformationSequence", "RescaleIntercept")
    image_type = find("CTImageFrameTypeSequence", "FrameType") or dataset.get("ImageType") or ()
    return Frame(
        path=pathlib.Path(path),
        index=index,
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
        size_yx=(int(dataset.Rows), int(dataset.Columns)),
        position_xyz_mm=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3, path),
        orientation=_unit_cosines(find("PlaneOrientationSequence", "ImageOrientationPatient"), path),
        spacing_yx_mm=_spacing(find("PixelMeasuresSequence", "PixelSpacing"), path),
        slope=_number(slope, 1.0),
        intercept=_number(intercept, 0.0),
        padding=_read_padding(dataset),
        image_type=tuple(
            str(word).upper() for word in ([image_type] if isinstance(image_type, str) else image_type)
        ),
        acquisition=str(dataset.get("AcquisitionNumber") or ""),
    )


def _number(value, default):
    number = default if value in (None, "") else float(value)
    if not np.isfinite(number):
        raise InputError(f"rescale slope or intercept is {number}")
    return number


def _numbers(values, count, path):
    if not values:
        return None
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(
            f"DICOM: {path} has {list(numbers)}, expected {count} finite numbers; export it again"
        )
    return numbers


def _spacing(values, path):
    spacing = _numbers(values, 2, path)
    if spacing is not None and not 0.01 < min(spacing) <= max(spacing) < 50:
        raise InputError(f"DICOM: {path} has a pixel spacing of {spacing} mm, expected 0.01 to 50")
    return spacing


def _unit_cosines(values, path):
    cosines = _numbers(values, 6, path)
    if cosines is None:
        return None
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=0.01) or abs(row @ column) > 0.01:
        raise InputError(f"DICOM: {path} has orientation cosines {list(cosines)} that are no right angle")
    column = column - (row @ column) / lengths[0] ** 2 * row
    return tuple(float(v) for v in (*row / lengths[0], *column / np.linalg.norm(column)))


def _read_padding(dataset):
    """Returns the range of stored values that stand for 'outside the field of view', or None."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [_as_stored(v, dataset) for v in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(value, dataset):
    """Undoes files whose padding is written as unsigned beside signed pixels."""
    value, signed = int(value), dataset.get("PixelRepresentation") == 1
    return value - 65536 if signed and value > 32767 else value


def _find_file_problems(dataset, path):
    problems = []
    bits, color = int(dataset.get("BitsStored") or 16), str(dataset.get("PhotometricInterpretation", ""))
    if bits <= 8 or color != "MONOCHROME2" or int(dataset.get("SamplesPerPixel") or 1) != 1:
        text = (
            f"{path} holds a picture ({bits} bits, {color}), expected 12 or 16 bits in HU; export "
            "the original CT"
        )
        problems.append(Finding(ERROR, "8-bit", text))
    kind = str(dataset.get("RescaleType") or "").strip().upper()
    if kind not in _HU_TYPES:
        problems.append(Finding(ERROR, "rescale-type", f"{path} holds values of type {kind!r}, expected HU"))
    if str(dataset.get("LossyImageCompression", "")) == "01":
        text = "the images were compressed with loss: small nodules may be altered"
        problems.append(Finding(WARNING, "lossy", text))
    return problems


def normal(frame):
    return np.cross(frame.orientation[:3], frame.orientation[3:])


def list_findings(chosen, others):
    """Returns findings that name the chosen series and list the others."""
    findings = [Finding(INFO, "series", f"segmented: {chosen}")]
    return findings + [Finding(INFO, "other-series", f"not segmented: {one}") for one in others]
