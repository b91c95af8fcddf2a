"""DICOM-SEG of series whose headers lack what the standard requires: filled in, or refused before the work."""

import chest
import dicom_files
import fake_network
import pydicom
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import scans, writers
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
    import highdicom

    found = highdicom.seg.segread(tmp_path / "out" / "mask.dcm")
    assert found.number_of_segments == 3 and found.FrameOfReferenceUID
    shared = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(shared.SliceThickness) == 6.0


def test_a_name_is_not_printed(tmp_path, capfd, recwarn):
    series_with(tmp_path / "in", lambda one: setattr(one, "PatientName", "Zebra Anna"))
    scan = scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)
    writers.check_format("dicom-seg", scan)
    out, err = capfd.readouterr()
    assert "Zebra" not in out + err + " ".join(str(each.message) for each in recwarn)


def test_what_cannot_be_referred_to_is_refused_before_the_work(tmp_path):
    series_with(tmp_path / "in", lambda one: delattr(one, "StudyInstanceUID"))
    scan = scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)
    with pytest.raises(
        InputError, match="dicom-seg: .* cannot be referred to .*StudyInstanceUID.*another format"
    ):
        writers.check_format("dicom-seg", scan)
