"""Whose scan it is, and which DICOM image a slice is of."""

import chest
import dicom_files

from auxseg.ct import dicom_study, scans
from auxseg.prediction import page_rows


def _open(tmp_path, **edits):
    def edit(one, index):
        for name, value in edits.items():
            setattr(one, name, value)

    dicom_files.write_series(tmp_path / "in", chest.draw()[:4], spacing_zyx=(6, 6, 6), edit=edit)
    return scans.open_scan(scans.find_scans(tmp_path / "in")[0], tmp_path)


def test_patient_and_study_in_plain_words(tmp_path):
    scan = _open(
        tmp_path,
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Anna^^Dr.",
        StudyDescription="  chest  CT ",
        PatientBirthDate="",
    )
    found = dicom_study.read_study(scan.volume)
    assert found["patient"] == "Müller Anna Dr." and found["patient ID"] == "T1"
    assert found["study of"] == "2020-01-02" and found["study"] == "chest CT"
    assert "born" not in found and found["series number"] == "3"
    assert page_rows.describe_scan(scan) == found


def test_the_image_of_a_slice_whichever_way_the_files_run(tmp_path):
    scan = _open(tmp_path)
    heights = {frame.sop_uid: frame.position_xyz_mm[2] for frame in scan.volume.frames}
    found = [scan.find_frame(index) for index in range(4)]
    assert [heights[frame.sop_uid] for frame in found] == sorted(heights.values())
    upside = _open(tmp_path / "other", ImageOrientationPatient=["1", "0", "0", "0", "-1", "0"])
    assert upside.orientation.flips[2] or upside.orientation.flips[1]
    found = [upside.find_frame(index).position_xyz_mm[2] for index in range(4)]
    assert found == sorted(found)
    assert scan.find_frame(7) is None
