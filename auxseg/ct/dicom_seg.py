"""Writes masks as DICOM-SEG, by highdicom."""

from __future__ import annotations

import warnings

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS, to_rgb
from auxseg.base.errors import InputError
from auxseg.ct import geometry


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
        InputError: the source is a multi-frame image spread over several files, or no image to refer to.
    """
    import pydicom

    segmentation = _create(masks, scan, start, stop, model_name, checksum)
    with files.write_whole(path) as file:
        pydicom.dcmwrite(file, segmentation, enforce_file_format=True)


def check_dicom_seg(scan):
    """Raises the InputError of `write_dicom_seg` for a scan whose masks it could not write; before any are made."""
    masks = np.zeros((1, *scan.geometry.shape_zyx[1:]), np.uint8)
    masks[0, 0, 0] = 1
    _create(masks, scan, 0, 1, "check", "0")


def _create(masks, scan, start, stop, model_name, checksum):
    """Returns highdicom's Segmentation; arguments and errors are those of `write_dicom_seg`."""
    sources, frames = _seg_sources(masks, scan, start, stop)
    complete = [_complete(one, scan) for one in sources]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's quote the patient's name
            return _segment(complete, frames, scan, model_name, checksum)
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


def _complete(source, scan):
    """Returns a source's header with what the standard requires and some scanners and anonymisers leave out."""
    import pydicom

    for name in _MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    if not source.get("FrameOfReferenceUID"):
        # The same for all images of the series, and for all masks of it.
        source.FrameOfReferenceUID = pydicom.uid.generate_uid(entropy_srcs=[str(source.SeriesInstanceUID)])
    if "NumberOfFrames" not in source and not source.get("SliceThickness"):
        source.SliceThickness = f"{scan.geometry.spacing_zyx_mm[0]:.10g}"
    return source


def _segment(sources, frames, scan, model_name, checksum):
    import highdicom
    import pydicom

    from auxseg import __version__

    return highdicom.seg.Segmentation(
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


def _free_series_number(scan):
    return 1000 + scan.volume.series.number % 9000


def _seg_sources(masks, scan, start, stop):
    """Returns (source datasets, uint8 [frames, rows, columns] in their order); of slices that exist."""
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
        frames = np.zeros((len(chosen), *volume.frames[0].size_yx), np.uint8)
        for frame, number in zip(frames, chosen):
            if number in parts:
                _paste(frame, parts[number], first)
        return [_give_place(sources[number], volume.frames[number]) for number in chosen], frames
    if len(sources) > 1:
        raise InputError(
            f"--format=dicom-seg: {scan.path} spreads its frames over several files; use another format"
        )
    frames = np.zeros((int(sources[0].NumberOfFrames), *volume.frames[0].size_yx), np.uint8)
    for number, part in parts.items():
        _paste(frames[volume.frames[number].index], part, first)
    return sources, frames


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
            display_color=highdicom.color.CIELabColor.from_rgb(*to_rgb(COLOURS[CLASS_NAMES[number]])),
        )
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(one)
    return descriptions
