"""Writes masks as DICOM-SEG, by highdicom."""

from __future__ import annotations

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
    from auxseg.ct import dicom

    volume = scan.volume
    first = np.zeros(3, int)
    axis = scan.orientation.axes[2]
    first[axis] = volume.stored.size_xyz[axis] - stop if scan.orientation.flips[2] else start
    stored = geometry.from_canonical(masks, scan.orientation)
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
            display_color=highdicom.color.CIELabColor.from_rgb(*to_rgb(COLOURS[CLASS_NAMES[number]])),
        )
        if side is not None:
            modifier = highdicom.sr.CodedConcept.from_code(side)
            one.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(one)
    return descriptions
