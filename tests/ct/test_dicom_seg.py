"""DICOM-SEG of series whose headers lack what the standard requires: filled in, or refused before the work."""

import chest
import dicom_files
import fake_network
import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import dicom_seg, scans, writers
from auxseg.prediction import outputs, segment


def series_with(folder, change):
    for path in dicom_files.write_series(folder, chest.draw()[8:12], spacing_zyx=(6, 6, 6)):
        one = pydicom.dcmread(path)
        change(one)
        one.save_as(path)
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SliceThickness", None),
        ("SliceThickness", ""),
        ("PatientID", None),
        ("FrameOfReferenceUID", None),
        ("FrameOfReferenceUID", ""),
        ("StudyDate", None),
        ("ReferringPhysicianName", None),
    ],
)
def test_what_is_missing_is_filled_in(tmp_path, name, value):
    def change(one):
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)

    series_with(tmp_path / "in", change)
    options = segment.Options(slices="middle", force=True)
    network = [fake_network.create((56, 56))]
    outputs.predict(tmp_path / "in", tmp_path / "out", network, options=options, formats=("dicom-seg",))
    found = highdicom.seg.segread(tmp_path / "out" / "mask.dcm")
    assert found.number_of_segments >= 2 and found.FrameOfReferenceUID
    shared = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(shared.SliceThickness) == 6.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("StudyInstanceUID", None, "no StudyInstanceUID., expected"),
        ("SeriesInstanceUID", "", "no SeriesInstanceUID., expected"),
        ("SOPInstanceUID", None, "no SOPInstanceUID in 4 of 4 images"),
        ("SOPInstanceUID", "", "no SOPInstanceUID in 4 of 4 images"),
        ("SOPInstanceUID", "1.2.3", "1 SOPInstanceUIDs among 4 images"),
    ],
)
def test_images_that_cannot_be_referred_to_are_refused_before_the_work(tmp_path, name, value, message):
    def change(one):
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)

    series_with(tmp_path / "in", change)
    scan = scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)
    with pytest.raises(InputError, match=f"^--format=dicom-seg: .*/in cannot be referred to .{message}"):
        writers.check_format("dicom-seg", scan)


def test_each_nodule_is_a_segment_of_its_own(tmp_path):
    """Read back by highdicom and SimpleITK: voxels, probability and tracking id of two nodules, and who made them."""
    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6))
    scan = scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)
    masks = np.zeros((4, 48, 56), np.uint8)  # slices 6 to 9
    masks[:, 10:30, 30:50], masks[:, 10:30, 5:25] = 1, 2
    places = [np.array([[1, 12, 33], [2, 12, 33]]), np.array([[3, 20, 41]])]
    pieces = []
    for number, found in enumerate(places, start=1):
        masks[tuple(found.T)] = 3
        uid = dicom_seg.create_tracking_uid(scan, number)
        pieces.append(dicom_seg.Piece(f"Nodule {number}", f"probability 0.{number}", uid, found))
    maker = dicom_seg.Maker("networks in the box", "7", "f" * 64)
    dicom_seg.write_dicom_seg(tmp_path / "mask.dcm", masks, scan, 6, 10, pieces=pieces, maker=maker)
    read = highdicom.seg.segread(tmp_path / "mask.dcm")
    described = [read.get_segment_description(number) for number in range(1, 5)]
    assert [one.segment_label for one in described] == ["Left lung", "Right lung", "Nodule 1", "Nodule 2"]
    assert [one.SegmentDescription for one in described[2:]] == ["probability 0.1", "probability 0.2"]
    assert [one.tracking_uid for one in described[2:]] == [piece.tracking_uid for piece in pieces]
    assert dicom_seg.create_tracking_uid(scan, 1) == pieces[0].tracking_uid != pieces[1].tracking_uid
    assert described[2].segmented_property_type.value == "27925004"  # SNOMED CT, nodule
    algorithm = described[3].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion.endswith("weights 7") and "f" * 64 in algorithm.AlgorithmParameters
    assert read.SoftwareVersions[1] == "weights 7" and read.DeviceSerialNumber == "f" * 16
    uids = [scan.find_frame(index).sop_uid for index in range(6, 10)]
    pixels = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for value, found in zip((2, 3), places):
        np.testing.assert_array_equal(np.argwhere(pixels[..., value]), found)
    np.testing.assert_array_equal(pixels[..., 0] + 2 * pixels[..., 1], np.where(masks == 3, 0, masks))
    image = sitk.ReadImage(str(tmp_path / "mask.dcm"))  # a frame for each segment and slice that shows it
    assert image.GetSize() == (56, 48, 4 + 4 + 2 + 1)
    syntax = pydicom.dcmread(tmp_path / "mask.dcm").file_meta.TransferSyntaxUID
    assert syntax == pydicom.uid.DeflatedExplicitVRLittleEndian


def test_images_with_a_frame_of_reference_each(tmp_path):
    """As LIDC-IDRI's anonymiser leaves them: the mask has the first."""
    numbers = iter(range(1, 9))
    series_with(tmp_path / "in", lambda one: setattr(one, "FrameOfReferenceUID", f"1.2.3.{next(numbers)}"))
    options = segment.Options(force=True)
    network = [fake_network.create((56, 56))]
    outputs.predict(tmp_path / "in", tmp_path / "out", network, options=options, formats=("dicom-seg",))
    found = highdicom.seg.segread(tmp_path / "out" / "mask.dcm")
    assert found.FrameOfReferenceUID in ("1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4")
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 4


def test_a_name_is_not_printed(tmp_path, capfd, recwarn):
    series_with(tmp_path / "in", lambda one: setattr(one, "PatientName", "Zebra Anna"))
    scan = scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)
    writers.check_format("dicom-seg", scan)
    out, err = capfd.readouterr()
    assert "Zebra" not in out + err + " ".join(str(each.message) for each in recwarn)
