"""Writes small DICOM CT series for tests: conformant by default, wrong in one named way on request."""

import contextlib
import copy
import zlib

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STUDY = "1.2.826.0.1.3680043.8.498.1"


def create_uid(*words):
    """Returns a short UID that follows from words."""
    return f"{STUDY}.{zlib.crc32(' '.join(map(str, words)).encode())}"


def _base(sop_class, sop_uid, *, study, series, number, description, modality):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = sop_class, sop_uid
    one.StudyInstanceUID, one.SeriesInstanceUID = study, series
    one.FrameOfReferenceUID = study + ".99"
    one.PositionReferenceIndicator = ""
    one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "20200102"
    one.StudyTime = one.SeriesTime = one.AcquisitionTime = one.ContentTime = "101112"
    one.Modality, one.SeriesNumber, one.SeriesDescription = modality, number, description
    one.StudyID, one.AccessionNumber, one.ReferringPhysicianName = "1", "", ""
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Test^Chest", "T1", "19500101", "O"
    one.Manufacturer, one.ManufacturerModelName, one.DeviceSerialNumber = "auxseg", "tests", "1"
    one.SoftwareVersions, one.PatientPosition, one.KVP, one.BodyPartExamined = "1", "HFS", "120", "CHEST"
    return one


def _pixels(one, values):
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = values.shape[-2:]
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.PixelRepresentation = 1
    one.PixelData = np.ascontiguousarray(values, "<i2").tobytes()


def _floats(values):
    return [f"{v:.10g}" for v in values]


def positions(count, *, spacing_zyx, origin, orientation=AXIAL, step=None):
    """Returns the LPS positions of `count` slices; `step` replaces the normal times the slice distance."""
    normal = np.cross(orientation[:3], orientation[3:])
    step = normal * spacing_zyx[0] if step is None else np.asarray(step)
    return np.asarray(origin) + np.arange(count)[:, None] * step


def write_series(
    folder,
    volume,
    *,
    spacing_zyx=(2.0, 1.0, 1.0),
    origin=(-60.0, -50.0, 10.0),
    orientation=AXIAL,
    step=None,
    series=None,
    study=STUDY,
    number=3,
    description="CHEST",
    modality="CT",
    slope=1,
    intercept=-1024,
    edit=None,
    keep=None,
    prefix="IM",
):
    """Writes one single-frame file a slice and returns their paths, in the order of `volume`'s slices.

    Args:
        folder: where; made if missing.
        volume: int [D, H, W] in HU, as stored.
        edit: (dataset, index) -> None, changes a file before it is written.
        keep: indices of the slices to write, all by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = series or create_uid(folder, description, number)
    places = positions(
        len(volume), spacing_zyx=spacing_zyx, origin=origin, orientation=orientation, step=step
    )
    paths = []
    for index in range(len(volume)) if keep is None else keep:
        one = _base(
            CTImageStorage,
            f"{series}.{index + 1}",
            study=study,
            series=series,
            number=number,
            description=description,
            modality=modality,
        )
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.AcquisitionNumber, one.InstanceNumber = 1, index + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = _floats(places[index]), _floats(orientation)
        one.PixelSpacing, one.SliceThickness = _floats(spacing_zyx[1:]), f"{spacing_zyx[0]:g}"
        one.RescaleSlope, one.RescaleIntercept, one.RescaleType = f"{slope:g}", f"{intercept:g}", "HU"
        _pixels(one, np.rint((volume[index] - intercept) / slope))
        if edit is not None:
            edit(one, index)
        paths.append(folder / f"{prefix}{index:04d}.dcm")
        pydicom.dcmwrite(paths[-1], one, enforce_file_format=True)
    return paths


def write_enhanced(
    path,
    volume,
    *,
    spacing_zyx=(2.0, 1.0, 1.0),
    origin=(-60.0, -50.0, 10.0),
    orientation=AXIAL,
    intercept=-1024,
    series=None,
    study=STUDY,
    shuffle=None,
    edit=None,
):
    """Writes one enhanced multi-frame CT; `shuffle` is an order in which to store the frames."""
    series = series or create_uid(path)
    one = _base(
        EnhancedCTImageStorage,
        f"{series}.1",
        study=study,
        series=series,
        number=5,
        description="CHEST enhanced",
        modality="CT",
    )
    one.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    one.InstanceNumber, one.NumberOfFrames = 1, len(volume)
    one.AcquisitionDateTime = "20200102101112"
    one.BurnedInAnnotation, one.LossyImageCompression, one.PresentationLUTShape = "NO", "00", "IDENTITY"
    one.ContentQualification = "RESEARCH"
    shared, measures, plane, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _floats(spacing_zyx[1:]), f"{spacing_zyx[0]:g}"
    plane.ImageOrientationPatient = _floats(orientation)
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "1", f"{intercept:g}", "HU"
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    places = positions(len(volume), spacing_zyx=spacing_zyx, origin=origin, orientation=orientation)
    order = list(range(len(volume))) if shuffle is None else list(shuffle)
    groups = []
    for index in order:
        group, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = _floats(places[index])
        content.FrameAcquisitionNumber, content.StackID, content.InStackPositionNumber = (
            1,
            "1",
            int(index) + 1,
        )
        content.DimensionIndexValues = [1, int(index) + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([place]), Sequence([content])
        groups.append(group)
    one.PerFrameFunctionalGroupsSequence = Sequence(groups)
    organisation, stack, in_stack = Dataset(), Dataset(), Dataset()
    organisation.DimensionOrganizationUID = series + ".7"
    for index, pointer in ((stack, 0x00209056), (in_stack, 0x00209057)):
        index.DimensionOrganizationUID = series + ".7"
        index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, 0x00209111
    one.DimensionOrganizationSequence = Sequence([organisation])
    one.DimensionIndexSequence = Sequence([stack, in_stack])
    _pixels(one, np.rint(volume[order] - intercept))
    if edit is not None:
        edit(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, one, enforce_file_format=True)
    return path


def rewrite(path, change, target=None):
    """Reads a file, applies `change(dataset)`, and writes it back (or to `target`)."""
    one = copy.deepcopy(pydicom.dcmread(path))
    change(one)
    pydicom.dcmwrite(target or path, one, enforce_file_format=True)


def compress(paths, folder, compressor):
    """Writes files with compressed pixels, by SimpleITK: 'JPEG' or 'JPEG2000', without loss."""
    import SimpleITK as sitk

    folder.mkdir()
    plain = paths[0].parent
    for path in paths:
        original = sitk.ReadImage(str(path))
        image = sitk.Cast(original, sitk.sitkInt16)
        for key in original.GetMetaDataKeys():
            image.SetMetaData(key, original.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
        writer.SetFileName("compressed.dcm")  # ITK takes no name that is not text
        with contextlib.chdir(plain):
            writer.Execute(image)
        (plain / "compressed.dcm").rename(folder / path.name)
        assert pydicom.dcmread(folder / path.name).file_meta.TransferSyntaxUID.is_compressed
