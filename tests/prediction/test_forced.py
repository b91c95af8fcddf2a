"""Tests of scans that are doubtful, from the file to the measurements: real distances, and what --force reaches."""

import chest
import dicom_files
import fake_network
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import checks, scans
from auxseg.prediction import measure, outputs, segment

NETWORK = [fake_network.create((56, 56))]


def test_volumes_of_uneven_slices_come_from_their_real_distances(tmp_path):
    """Slices at 0, 2, 4, 7, 10 mm of 10x10 pixels of 1 mm: a lung in those at 4 and 7 mm is 2.5 + 3 mm thick."""
    heights = [0.0, 2.0, 4.0, 7.0, 10.0]

    def edit(one, index):
        one.ImagePositionPatient = ["0", "0", str(heights[index])]

    dicom_files.write_series(tmp_path / "in", np.zeros((5, 10, 10), np.int16), edit=edit)
    (source,) = scans.find_scans(tmp_path / "in")
    scan = scans.open_scan(source, tmp_path)
    masks = np.zeros((scan.num_slices, 10, 10), np.uint8)
    first, second = scan.volume.places[2], scan.volume.places[3]
    masks[first : second + 1] = 1
    (row,) = measure.measure(masks, scan, 0)
    between = second - first - 1  # planes filled between them share the 3 mm
    assert row["voxels"] == 100 * (2 + between)
    assert row["volume_mm3"] == pytest.approx(100 * 5.5, abs=1e-6)


def _set(**values):
    def edit(one, index):
        for name, value in values.items():
            if value is None:
                delattr(one, name)
            else:
                setattr(one, name, value)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _set(Modality="PT"),
        _set(RescaleType="OD"),
        _set(BitsStored=8, BitsAllocated=16),
        _set(PixelSpacing=None),
        _set(ImagePositionPatient=None),
        _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    ],
    ids=["modality", "type of values", "8 bits", "no pixel size", "no positions", "scout views"],
)
def test_force_reaches_what_is_refused(tmp_path, edit):
    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6), edit=edit)
    with pytest.raises(InputError) as caught:
        outputs.predict(tmp_path / "in", tmp_path / "no", NETWORK)
    assert "\n" not in str(caught.value) and not (tmp_path / "no" / "mask.nii.gz").exists()
    options = segment.Options(force=True)
    rows = outputs.predict(tmp_path / "in", tmp_path / "out", NETWORK, options=options)
    assert rows[0]["status"] == "done" and rows[0]["warnings"] >= 1
    assert (tmp_path / "out" / "mask.nii.gz").exists()


def test_force_makes_warnings_of_errors():
    errors = [checks.Finding("error", "a", "b"), checks.Finding("info", "c", "d")]
    assert [one.severity for one in checks.accept_errors(errors)] == ["warning", "info"]


def test_a_dicom_seg_of_slices_without_positions(tmp_path):
    """They lie where SliceLocation has them."""
    pydicom = pytest.importorskip("pydicom")

    def edit(one, index):
        one.SliceLocation = str(100 + 6 * index)
        del one.ImagePositionPatient, one.ImageOrientationPatient

    dicom_files.write_series(tmp_path / "in", chest.draw(), spacing_zyx=(6, 6, 6), edit=edit)
    outputs.predict(tmp_path / "in", tmp_path / "out", NETWORK, formats=("dicom-seg",))
    mask = pydicom.dcmread(tmp_path / "out" / "mask.dcm")
    groups = mask.PerFrameFunctionalGroupsSequence
    heights = {float(one.PlanePositionSequence[0].ImagePositionPatient[2]) for one in groups}
    assert heights <= {100.0 + 6 * k for k in range(24)} and len(heights) > 10
