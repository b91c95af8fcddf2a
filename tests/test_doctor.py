"""Tests of the doctor: it says what is there, what values mean, and finds what is wrong."""

import subprocess
import sys

import chest
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg import doctor
from auxseg.base.errors import InputError
from auxseg.ct import scans
from auxseg.datasets.luna16 import examine


def _write(path, array, direction=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((6.0, 6.0, 6.0))
    if direction:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def _one(path):
    (report,) = examine.examine(path)
    return dict(report.facts), [finding.code for finding in report.findings], report


def _labels(left=1, right=2, extra=3):
    volume = chest.draw()
    lungs = (volume < -700) & (volume > -920)
    columns = np.arange(volume.shape[2])
    mask = np.where(lungs & (columns > 28), left, 0) + np.where(lungs & (columns < 28), right, 0)
    mask[12, 24, 26:29] = extra
    return mask.astype(np.uint8)


def test_a_scan(tmp_path):
    facts, codes, report = _one(_write(tmp_path / "a.mha", chest.draw()))
    assert codes == []
    assert facts["size"] == "56 x 48 x 24 voxels, 24 transverse slices"
    assert facts["orientation"] == "stored axes run towards L, P, S; as the network sees them"
    assert facts["spacing"] == "6 x 6 x 6 mm" and facts["HU"].startswith("-1024 to ")
    assert "on the patient's left" in facts["left/right"] and "behind" in facts["front/back"]
    assert doctor.format_report(report).count("\n") == len(facts)


def test_a_turned_scan_says_how(tmp_path):
    image = sitk.Flip(sitk.PermuteAxes(sitk.GetImageFromArray(chest.draw()), (0, 2, 1)), (True, False, False))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    facts, _, _ = _one(tmp_path / "a.mha")
    assert facts["orientation"] == "stored axes run towards R, S, P; the network sees x reversed, z, y"


def test_a_mirrored_header_is_noticed(tmp_path):
    """The larger lung on the left: the direction matrix may be wrong."""
    facts, codes, _ = _one(_write(tmp_path / "a.mha", np.ascontiguousarray(chest.draw()[:, :, ::-1])))
    assert codes == ["sides"], facts
    _, codes, _ = _one(_write(tmp_path / "b.mha", np.ascontiguousarray(chest.draw()[:, ::-1])))
    assert "front-back" in codes


@pytest.mark.parametrize(
    ("values", "whose"),
    [((1, 2, 3), "auxseg's classes"), ((3, 4, 5), "LUNA16's"), ((7, 8, 9), "unknown meaning")],
)
def test_label_maps(tmp_path, values, whose):
    facts, codes, report = _one(_write(tmp_path / "a.mha", _labels(*values)))
    assert whose in facts["label map"]
    assert (
        f"{(_labels() == 1).sum()} voxels, {(_labels() == 1).sum() * 0.216:.1f} mL"
        in facts[f"value {values[0]}"]
    )
    assert codes == ([] if values[0] == 7 else ["sides"])
    if values[0] == 3:
        assert "trachea" in facts["value 5"] and "left lung" in facts["value 3"]
        assert "lies on the patient's left" in report.findings[0].text


def test_exchanged_labels_are_an_error(tmp_path):
    _, _, report = _one(_write(tmp_path / "a.mha", _labels(2, 1, 3)))
    assert [(finding.code, finding.severity) for finding in report.findings] == [("sides", "error")]
    assert "exchanged" in report.findings[0].text
    mirrored = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    _, _, report = _one(_write(tmp_path / "b.mha", _labels(), mirrored))
    assert report.findings[0].severity == "error"


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"nothing")
    _write(tmp_path / "b.mha", chest.draw())
    reports = list(examine.examine(tmp_path))
    assert [len(report.findings) for report in reports] == [1, 0]
    assert "damaged" in reports[0].findings[0].text
    with pytest.raises(InputError, match="does not exist"):
        list(examine.examine(tmp_path / "no"))


def test_a_dicom_folder(tmp_path):
    pytest.importorskip("pydicom", reason="the dicom extra is not installed")
    import dicom_files

    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6), step=(0, 1.2, 6))
    facts, codes, _ = _one(tmp_path / "in")
    assert facts["format"].startswith("DICOM") and codes[:2] == ["series", "tilt"]


def _write_luna16(folder):
    uids = ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    for number, uid in enumerate(uids):
        _write(folder / f"subset{number}" / f"{uid}.mhd", chest.draw())
        _write(folder / "seg-lungs-LUNA16" / f"{uid}.mhd", _labels(3, 4, 5))
    (folder / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3.1,200,160,60,8.0\n1.2.3.9,0,0,0,5.0\n"
    )
    return uids


def test_a_luna16_folder(tmp_path):
    _write_luna16(tmp_path)
    reports = list(examine.examine(tmp_path, num_scans=2))
    facts = dict(reports[0].facts)
    assert facts["scans"].startswith("3 with a mask") and facts["by subset"].startswith(
        "0: 1, 1: 1, 2: 1, 3: 0"
    )
    assert (
        facts["nodules"].startswith("2 in annotations.csv") and "1 of them in these scans" in facts["nodules"]
    )
    assert any("subsets not there" in finding.text for finding in reports[0].findings)
    assert len(reports) == 5 or len(reports) == 7  # the sample holds the middle scan too
    assert not [f for report in reports for f in report.findings if f.severity == "error"]


def test_a_luna16_folder_with_faults(tmp_path):
    uids = _write_luna16(tmp_path)
    (tmp_path / "seg-lungs-LUNA16" / f"{uids[0]}.mhd").unlink()
    _write(tmp_path / "seg-lungs-LUNA16" / f"{uids[1]}.mhd", _labels(3, 4, 5)[:-2])
    raw = tmp_path / "subset2" / f"{uids[2]}.raw"
    raw.write_bytes(raw.read_bytes()[:-100])
    (report,) = examine.examine(tmp_path, num_scans=0)
    texts = [finding.text for finding in report.findings if finding.severity == "error"]
    assert len(texts) == 3
    assert "has no mask" in texts[0] and "differ in geometry" in texts[1] and "truncated" in texts[2]


def test_the_command(tmp_path):
    _write(tmp_path / "a.mha", _labels(2, 1, 3))
    command = [sys.executable, "-m", "auxseg.doctor", str(tmp_path / "a.mha")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 1 and done.stdout.rstrip().endswith("1 problem, 0 warnings")
    wrong = subprocess.run([*command, "more"], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1


def test_real_label_maps_and_scans(real_data):
    for path in sorted((real_data / "seg-lungs-LUNA16").glob("*.mhd")):
        facts, codes, report = _one(path)
        assert "LUNA16" in facts["label map"] and codes == ["sides"]
        assert report.findings[0].severity == "info"
        assert "trachea" in facts["value 5"]
    facts, codes, _ = _one(real_data / "cip" / "ct-64.nrrd")
    assert codes == [] and facts["left/right"].startswith("47%")
    assert all(source.kind == "npz" for source in scans.find_scans(real_data / "luna16_middle")[:3])
