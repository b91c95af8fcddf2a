"""Headers of DICOM files: each image's place, size and scale, the images of one series together.

Single-frame and enhanced multi-frame CT, by pydicom, with or without the 132 bytes before
the data set. Nothing is judged here: `series_choice` says which series is the chest CT, `dicom_volume` makes
slices of it, `dicom_pixels` reads their values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import warnings

import numpy as np

from auxseg.base.errors import InputError
from auxseg.ct.checks import ERROR, WARNING, Finding

NO_IMAGES = frozenset(
    "SEG SR PR KO RTSTRUCT RTPLAN RTDOSE RTRECORD REG FID AU ECG DOC PLAN RWV SMR M3D STAIN ASMT".split()
)
"""Modalities whose files hold no image of a patient; never segmented."""
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "ImageType",
    "SeriesNumber", "SeriesDescription", "StudyDescription", "BodyPartExamined", "ProtocolName",
    "ConvolutionKernel", "AcquisitionNumber", "AcquisitionTime", "TemporalPositionIdentifier",
    "InstanceNumber", "PatientPosition", "NumberOfFrames", "PatientID", "PatientName", "PatientBirthDate",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "SamplesPerPixel",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceLocation", "SliceThickness", "SpacingBetweenSlices", "ReconstructionDiameter",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "LossyImageCompression",
]  # fmt: skip
_SERIES_UID = 0x0020000E
HEAD_BYTES = 132
"""What `is_dicom_head` looks at."""
_HU_TYPES = ("", "HU", "HU_MOD", "US")
_VALUE_TYPES = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
)


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
        number: InstanceNumber, or 0.
        location_mm: SliceLocation, or None.
        step_mm: SpacingBetweenSlices, else SliceThickness, else None.
        field_mm: ReconstructionDiameter, or None.
        times: AcquisitionTime and TemporalPositionIdentifier.
        kernel: ConvolutionKernel.
        needs_dataset: the pixels cannot be reached by path alone: no file meta, or a deflated data set.
        is_compressed: the pixels are, in a way that takes native code to undo.
        flaw: why its values are no HU, as of a colour picture or a screenshot; None where they are.
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
    number: int = 0
    location_mm: float | None = None
    step_mm: float | None = None
    field_mm: float | None = None
    times: tuple[str, ...] = ()
    kernel: str = ""
    needs_dataset: bool = False
    is_compressed: bool = False
    flaw: Finding | None = None


@dataclasses.dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID, as found and unchecked.

    Attributes:
        uid: SeriesInstanceUID.
        study_uid: StudyInstanceUID.
        modality: such as 'CT'.
        number: SeriesNumber, 0 where there is none.
        description: what the scanner calls it: series, body part, protocol, kernel.
        frames: one entry a slice, in the order found; none for modalities without images.
        problems: errors of single files, by what they are.
        patient: PatientID, PatientName and PatientBirthDate, which tell patients apart.
        paths: its files.
    """

    uid: str
    study_uid: str
    modality: str
    number: int
    description: str
    frames: tuple[Frame, ...]
    problems: tuple[Finding, ...] = ()
    patient: tuple[str, str, str] = ("", "", "")
    paths: tuple[pathlib.Path, ...] = ()

    def __str__(self):
        count = f"{len(self.frames)} images" if self.frames else f"{len(self.paths)} files"
        return f"series {self.number} '{self.description}' ({self.modality or 'no modality'}, {count}, {self.uid})"


def is_dicom(path):
    """Returns whether a file is DICOM by its first bytes: 'DICM' at byte 128, or a data set from byte 0.

    Files without the preamble begin with an element of group 2 or 8, as GDCM too reads them.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        return is_dicom_head(file.read(HEAD_BYTES))


def is_dicom_head(head):
    """Returns whether the first `HEAD_BYTES` of a file are those of DICOM; see `is_dicom`."""
    if head[128:] == b"DICM":
        return True
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    if head[4:6] in _VALUE_TYPES:
        return True
    return head[0] == 8 and head[3] == 0 and int.from_bytes(head[4:8], "little") <= 64  # implicit types


def check_installed(path):
    """Raises an InputError unless pydicom, which reads `path`, is installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"DICOM: reading {path} needs pydicom: pip install pydicom") from error


def read_file(path):
    """Returns what one DICOM file adds to its series, or None where it holds no image (a report, a DICOMDIR).

    Raises:
        InputError: the file is damaged, cannot be opened, or pydicom is not installed.
    """
    check_installed(path)
    import pydicom

    with errors_named(path):
        force = path.stat().st_size > 0 and is_dicom(path)
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=force)
        modality = _text(dataset, "Modality").upper()
        if "Rows" not in dataset and modality not in NO_IMAGES:
            return _check_imageless(dataset, path)
        has_images = modality not in NO_IMAGES
        if has_images and not {"PixelSpacing", "RescaleSlope"} <= set(dataset.dir()):
            _check_whole(path, dataset)
        return Series(
            uid=_text(dataset, "SeriesInstanceUID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            modality=modality,
            number=int(dataset.get("SeriesNumber") or 0),
            description=_describe(dataset),
            frames=tuple(_read_frames(dataset, path)) if has_images else (),
            problems=tuple(_find_file_problems(dataset)) if has_images else (),
            patient=tuple(_text(dataset, name) for name in ("PatientID", "PatientName", "PatientBirthDate")),
            paths=(pathlib.Path(path),),
        )


def read_uids(path):
    """Returns (StudyInstanceUID, SeriesInstanceUID) of a file, '' for what it lacks or cannot be read.

    Nothing behind them is read, so that they are known of a file that is damaged further on.
    """
    import pydicom

    with contextlib.suppress(InputError), errors_named(path), open(path, "rb") as file:
        dataset = pydicom.filereader.read_partial(
            file, stop_when=lambda tag, *_: tag > _SERIES_UID, force=True
        )
        return _text(dataset, "StudyInstanceUID"), _text(dataset, "SeriesInstanceUID")
    return "", ""


def _text(dataset, name):
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def _check_imageless(dataset, path):
    """Returns None for a file that is meant to hold no image, such as a report.

    Raises:
        InputError: it should hold one.
    """
    meta = getattr(dataset, "file_meta", None) or {}
    kind = getattr(meta.get("MediaStorageSOPClassUID", ""), "name", "")
    if "Storage" not in kind or "Image Storage" in kind:
        raise InputError(
            f"DICOM: {path} is damaged or truncated: it has no image size (Rows); export it again"
        )
    return None


def _check_whole(path, dataset):
    """Raises where a file that lacks what stands just before its pixels has none: it was cut there."""
    import pydicom

    if "SharedFunctionalGroupsSequence" in dataset:
        return
    whole = pydicom.dcmread(path, specific_tags=["PixelData"], defer_size=1024, force=True)
    if "PixelData" not in whole:
        raise InputError(f"DICOM: {path} is damaged or truncated: it ends before its pixels; export it again")


def merge_series(parts):
    """Returns the series that files make up together, in the order of their numbers.

    Files of two patients are never one series, whatever their UIDs say; those without a series' UID are one
    a folder.

    Args:
        parts: from `read_file`, one a file.
    """
    groups = {}
    for part in parts:
        place = "" if part.uid and part.study_uid else str(part.paths[0].parent)
        groups.setdefault((part.study_uid, part.uid, part.patient, place), []).append(part)
    series = [_merge(group) for group in groups.values()]
    return sorted(series, key=lambda one: (one.number, one.uid, str(one.paths[0])))


def _merge(parts):
    problems = {problem.code: problem for part in reversed(parts) for problem in part.problems}
    return dataclasses.replace(
        parts[0],
        frames=tuple(frame for part in parts for frame in part.frames),
        problems=tuple(problems.values()),
        paths=tuple(path for part in parts for path in part.paths),
    )


@contextlib.contextmanager
def errors_named(path):
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
        if isinstance(error, OSError) and error.errno:  # the system's word, not the file's
            raise InputError(f"DICOM: {path} cannot be read: {error.strerror}; check its permissions and "
                             "the disk") from error  # fmt: skip
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
    image_type = [image_type] if isinstance(image_type, str) else image_type
    syntax = _read_syntax(dataset, path)
    measures = [find("PixelMeasuresSequence", name) for name in ("SpacingBetweenSlices", "SliceThickness")]
    return Frame(
        path=pathlib.Path(path),
        index=index,
        sop_uid=_text(dataset, "SOPInstanceUID"),
        size_yx=(int(dataset.Rows), int(dataset.Columns)),
        position_xyz_mm=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3, path),
        orientation=_unit_cosines(find("PlaneOrientationSequence", "ImageOrientationPatient"), path),
        spacing_yx_mm=_spacing(find("PixelMeasuresSequence", "PixelSpacing"), path),
        slope=_number(slope, 1.0, path),
        intercept=_number(intercept, 0.0, path),
        padding=_read_padding(dataset),
        image_type=tuple(str(word).upper() for word in image_type),
        acquisition=str(find("FrameContentSequence", "FrameAcquisitionNumber")
                        or dataset.get("AcquisitionNumber") or ""),
        number=int(dataset.get("InstanceNumber") or 0),
        location_mm=_hint(dataset.get("SliceLocation")),
        step_mm=next((mm for mm in map(_hint, measures) if mm and mm > 0), None),
        field_mm=_hint(dataset.get("ReconstructionDiameter")),
        times=(_text(dataset, "AcquisitionTime"), _text(dataset, "TemporalPositionIdentifier")),
        kernel=_text(dataset, "ConvolutionKernel"),
        needs_dataset=not syntax or syntax.is_deflated,
        is_compressed=bool(syntax) and syntax.is_compressed and syntax.name != "RLE Lossless",
        flaw=_find_flaw(dataset, path),
    )  # fmt: skip


def _read_syntax(dataset, path):
    """Returns the transfer syntax of a file, '' where it states none.

    Raises:
        InputError: it is one that pydicom does not know.
    """
    syntax = (getattr(dataset, "file_meta", None) or {}).get("TransferSyntaxUID") or ""
    if syntax and not syntax.is_transfer_syntax:
        raise InputError(
            f"DICOM: {path} is in the transfer syntax {syntax}, which is not known; store it uncompressed, for "
            "example with gdcmconv --raw"
        )
    return syntax


def _hint(value):
    """Returns a number that only helps, None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _number(value, default, path):
    number = default if value in (None, "") else float(value)
    if not np.isfinite(number):
        raise InputError(
            f"DICOM: {path} has the rescale slope or intercept {number}, expected a number; export it again"
        )
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
        raise InputError(
            f"DICOM: {path} has a pixel spacing of {spacing} mm, expected 0.01 to 50; export it again"
        )
    return spacing


def _unit_cosines(values, path):
    cosines = _numbers(values, 6, path)
    if cosines is None:
        return None
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=0.01) or abs(row @ column) > 0.01:
        raise InputError(
            f"DICOM: {path} has orientation cosines {list(cosines)} that are no right angle; export it again"
        )
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


def _find_flaw(dataset, path):
    """Returns the finding about a file whose values are no HU, or None."""
    bits, color = int(dataset.get("BitsStored") or 16), _text(dataset, "PhotometricInterpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        text = (
            f"{path} holds a colour picture ({color}), expected 12 or 16 bits in HU; export the original CT"
        )
        return Finding(ERROR, "colour", text)
    if bits <= 8 or color not in ("MONOCHROME1", "MONOCHROME2", ""):
        text = (
            f"{path} holds a picture ({bits} bits, {color}), expected 12 or 16 bits in HU; export "
            "the original CT"
        )
        return Finding(ERROR, "8-bit", text)
    kind = _text(dataset, "RescaleType").upper()
    if kind not in _HU_TYPES:
        return Finding(ERROR, "rescale-type", f"{path} holds values of type {kind!r}, expected HU")
    return None


def _find_file_problems(dataset):
    problems = []
    if _text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        text = "MONOCHROME1: the images are meant to be shown inverted; their values are taken as HU all the same"
        problems.append(Finding(WARNING, "monochrome1", text))
    if _text(dataset, "LossyImageCompression") == "01":
        text = "the images were compressed with loss: small nodules may be altered"
        problems.append(Finding(WARNING, "lossy", text))
    return problems


def normal(frame):
    """Returns the unit vector across a slice, float64 [3], LPS."""
    return np.cross(frame.orientation[:3], frame.orientation[3:])
