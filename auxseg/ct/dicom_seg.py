"""Writes masks as DICOM-SEG, by highdicom."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS, NODULE, to_rgb
from auxseg.base.errors import InputError
from auxseg.ct import geometry


@dataclasses.dataclass(frozen=True)
class Piece:
    """A nodule as a segment of its own.

    Attributes:
        label: such as 'Nodule 1'.
        text: its probability and size, in words.
        tracking_uid: by which another file names the same nodule.
        places: int [n, 3], its voxels: slice, row and column of the mask, canonical.
    """

    label: str
    text: str
    tracking_uid: str
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Maker:
    """What made a mask: its name and version, and the SHA-256 of its weights."""

    name: str
    version: str
    checksum: str


def write_dicom_seg(path, masks, scan, start, stop, *, pieces, maker):
    """Writes a mask as a DICOM Segmentation that refers to the source images, by highdicom.

    One binary segment for each lung and each nodule: the lungs as SNOMED CT 'Lung' with the modifier left or right
    (context groups 7155 and 244) and the anatomic region 'Left lung', 'Right lung'; nodules as 'Nodule' (7159) in 'Lung',
    with their probability and size in the Segment Description. Only frames with a segment in them are written, and the
    whole is deflated: binary pixels, eight in a byte, cannot be stored as RLE.

    Args:
        path: the .dcm file.
        masks: uint8 [stop - start, H, W], canonical.
        scan: `scans.Scan` with a DICOM volume.
        start, stop: the slices that the mask covers.
        pieces: a `Piece` for each nodule.
        maker: `Maker` of the mask.

    Raises:
        InputError: the source is a multi-frame image spread over several files, or no image to refer to.
    """
    import pydicom

    segmentation = _create(masks, scan, start, stop, pieces, maker)
    segmentation.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    with files.write_whole(path) as file:
        pydicom.dcmwrite(file, segmentation, enforce_file_format=True)


def check_dicom_seg(scan):
    """Raises the InputError of `write_dicom_seg` for a scan whose masks it could not write; before any are made."""
    _check_uids(scan)
    masks = np.zeros((1, *scan.geometry.shape_zyx[1:]), np.uint8)
    masks[0, 0, 0] = 1
    _create(masks, scan, 0, 1, (), Maker("check", "0", "0"))


def _check_uids(scan):
    """Raises where a mask has nothing to refer to an image by: a UID is missing, or two files share one."""
    series = scan.volume.series
    problems = [f"no {name}" for name, uid in (("StudyInstanceUID", series.study_uid), ("SeriesInstanceUID", series.uid))
                if not uid]  # fmt: skip
    uids = {frame.path: frame.sop_uid for frame in scan.volume.frames}
    lacking = sum(not uid for uid in uids.values())
    if lacking:
        problems.append(f"no SOPInstanceUID in {lacking} of {len(uids)} images")
    elif len(set(uids.values())) < len(uids):
        problems.append(f"{len(set(uids.values()))} SOPInstanceUIDs among {len(uids)} images")
    if problems:
        raise InputError(
            f"--format=dicom-seg: {scan.path} cannot be referred to ({', '.join(problems)}), expected one of its own for "
            "each image; use another format"
        )


def create_tracking_uid(scan, *words):
    """Returns the UID of a finding in a DICOM series; the same words give the same."""
    import pydicom

    return pydicom.uid.generate_uid(entropy_srcs=[scan.volume.series.uid, *map(str, words)])


def _create(masks, scan, start, stop, pieces, maker):
    """Returns highdicom's Segmentation; arguments and errors are those of `write_dicom_seg`."""
    sources, frames = _seg_sources(masks, scan, start, stop, pieces)
    try:
        frame_uid = _find_frame_uid(sources)
        complete = [_complete(one, scan, frame_uid) for one in sources]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's quote the patient's name
            return _segment(complete, frames, scan, pieces, maker)
    except Exception as error:  # highdicom raises whatever the headers lead it to
        raise InputError(
            f"--format=dicom-seg: {scan.path} cannot be referred to ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); use another format"
        ) from error


_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that the standard has in every image, though without a value (its type 2)."""


def _find_frame_uid(sources):
    """Returns the FrameOfReferenceUID of a series: its first, or one that follows from the series where it has none.

    Some anonymisers, that of LIDC-IDRI too, give every image another; their places are in one frame all the same.
    """
    import pydicom

    first = sources[0].get("FrameOfReferenceUID")
    return first or pydicom.uid.generate_uid(entropy_srcs=[str(sources[0].SeriesInstanceUID)])


def _complete(source, scan, frame_uid):
    """Returns a source's header with what the standard requires and some scanners and anonymisers leave out."""
    for name in _MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    source.FrameOfReferenceUID = frame_uid
    if "NumberOfFrames" not in source and not source.get("SliceThickness"):
        source.SliceThickness = f"{scan.geometry.spacing_zyx_mm[0]:.10g}"
    return source


def _segment(sources, frames, scan, pieces, maker):
    import highdicom
    import pydicom

    from auxseg import __version__

    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segment_descriptions(pieces, maker),
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=_free_series_number(scan),
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="auxseg",
        manufacturer_model_name=maker.name[:64],
        software_versions=[f"auxseg {__version__}", f"weights {maker.version}"[:64]],
        device_serial_number=maker.checksum[:16],
        content_label="LUNGS_NODULES",
        content_description="Lungs and nodules, not for clinical use",
        series_description="Lungs and nodules (auxseg)",
    )


def _free_series_number(scan):
    return 1000 + scan.volume.series.number % 9000


def _seg_sources(masks, scan, start, stop, pieces):
    """Returns (source datasets, uint8 or uint16 [frames, rows, columns] in their order); of slices that exist."""
    from auxseg.ct import dicom_pixels

    volume = scan.volume
    first = np.zeros(3, int)
    axis = scan.orientation.axes[2]
    first[axis] = volume.stored.size_xyz[axis] - stop if scan.orientation.flips[2] else start
    stored = geometry.from_canonical(masks, scan.orientation)
    sources = dicom_pixels.read_sources(volume)
    parts = {number: stored[place - first[2]] for number, place in enumerate(volume.places)
             if first[2] <= place < first[2] + len(stored)}  # fmt: skip
    if len(sources) == len(volume.frames):
        chosen = [number for number, part in parts.items() if part.any()] or [next(iter(parts), 0)]
        sources = [_give_place(sources[number], volume.frames[number]) for number in chosen]
        targets, count = {number: at for at, number in enumerate(chosen)}, len(chosen)
    elif len(sources) > 1:
        raise InputError(
            f"--format=dicom-seg: {scan.path} spreads its frames over several files; use another format"
        )
    else:
        targets = {number: volume.frames[number].index for number in parts}
        count = int(sources[0].NumberOfFrames)
    frames = np.zeros((count, *volume.frames[0].size_yx), np.uint8 if len(pieces) < 250 else np.uint16)
    for number, part in parts.items():
        if number in targets:
            _paste(frames[targets[number]], part, first)
    planes = {volume.places[number]: at for number, at in targets.items()}
    _number_pieces(frames, planes, pieces, scan.orientation, stored.shape, first)
    return sources, frames


def _number_pieces(frames, planes, pieces, orientation, shape_zyx, first_xyz):
    """Gives the voxels of each nodule a value of its own in the frames, in place.

    Args:
        frames: [frames, rows, columns], class indices.
        planes: {plane of the volume: frame}.
        pieces: `Piece`s.
        orientation: of the scan.
        shape_zyx: of the mask as stored.
        first_xyz: voxel of the volume that is the mask's first.
    """
    for value, piece in enumerate(pieces, start=NODULE):
        stored = np.zeros(piece.places.shape, int)  # x, y, z
        for place, axis, flipped in zip(piece.places.T[::-1], orientation.axes, orientation.flips):
            stored[:, axis] = shape_zyx[2 - axis] - 1 - place if flipped else place
        stored += first_xyz
        for z in np.unique(stored[:, 2]).tolist():
            if z in planes:  # a missing slice has no frame
                x, y = stored[stored[:, 2] == z, :2].T
                frames[planes[z], y, x] = value


def _give_place(source, frame):
    """Returns a source's header with the place that its volume has it at, where it states none itself."""
    stated = {
        "ImagePositionPatient": frame.position_xyz_mm,
        "ImageOrientationPatient": frame.orientation,
        "PixelSpacing": frame.spacing_yx_mm,
    }
    for name, values in stated.items():
        if not source.get(name):
            setattr(source, name, [f"{value:.10g}" for value in values])
    return source


def _paste(frame, part, first):
    frame[first[1] : first[1] + part.shape[0], first[0] : first[0] + part.shape[1]] = part


def _segment_descriptions(pieces, maker):
    import highdicom
    from pydicom.sr.coding import Code

    from auxseg import __version__

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=maker.name[:64],
        version=f"auxseg {__version__}, weights {maker.version}"[:64],
        family=Code("123110", "DCM", "Artificial Intelligence"),
        parameters={"SHA-256 of the weights": maker.checksum},
    )
    lung = Code("39607008", "SCT", "Lung")
    nodule = Code("27925004", "SCT", "Nodule")
    kinds = [
        ("Left lung", lung, Code("7771000", "SCT", "Left"), Code("44029006", "SCT", "Left lung"), None),
        ("Right lung", lung, Code("24028007", "SCT", "Right"), Code("3341006", "SCT", "Right lung"), None),
        *((piece.label, nodule, None, lung, piece) for piece in pieces),
    ]
    anatomical = Code("91723000", "SCT", "Anatomical Structure")
    abnormal = Code("49755003", "SCT", "Morphologically Abnormal Structure")
    descriptions = []
    for number, (label, kind, side, region, piece) in enumerate(kinds, start=1):
        colour = COLOURS[CLASS_NAMES[min(number, NODULE)]]
        one = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=abnormal if piece else anatomical,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[region],
            tracking_uid=piece.tracking_uid if piece else highdicom.UID(),
            tracking_id=label,
            display_color=highdicom.color.CIELabColor.from_rgb(*to_rgb(colour)),
        )
        if piece:
            one.SegmentDescription = piece.text
        else:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(one)
    return descriptions
