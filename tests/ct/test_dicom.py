"""Tests of DICOM reading: the right series, slices in order, true HU, and one line for what is wrong."""

import pathlib
import shutil
import warnings

import chest
import dicom_files
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import geometry, scans

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
SPACING = (6.0, 6.0, 6.0)


@pytest.fixture
def volume():
    """Returns a small chest, int16 [24, 48, 56]."""
    return chest.draw()


def _open(path, scratch, **kwargs):
    found = scans.find_scans(path)
    assert len(found) == 1
    scratch.mkdir(exist_ok=True)
    return scans.open_scan(found[0], scratch, **kwargs)


def _read(path, scratch, **kwargs):
    scan = _open(path, scratch, **kwargs)
    return scan.read(0, scan.num_slices)


def _refused(path, scratch, match, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        _read(path, scratch, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_series_is_read_in_hu_and_order_whatever_the_file_names(tmp_path, volume):
    paths = dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=SPACING)
    for path, name in zip(paths, np.random.default_rng(0).permutation(len(paths))):
        path.rename(path.with_name(f"{name:03d}"))  # no suffix either
    scan = _open(tmp_path / "in", tmp_path / "scratch")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    np.testing.assert_array_equal(scan.read(3, 5), volume[3:5])
    assert scan.stored == geometry.Geometry((56, 48, 24), (6.0, 6.0, 6.0), (-60.0, -50.0, 10.0))
    assert "CHEST" in scan.findings[0].text


def test_spacing_comes_from_positions_not_thickness(tmp_path, volume):
    def edit(one, index):
        one.SliceThickness = "5"

    dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=(2.5, 6, 6), edit=edit)
    assert _open(tmp_path / "in", tmp_path / "s").stored.spacing_xyz_mm[2] == pytest.approx(2.5)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.5, -1000.5)])
def test_slope_and_intercept(tmp_path, volume, slope, intercept):
    dicom_files.write_series(tmp_path / "in", volume, slope=slope, intercept=intercept)
    got = _read(tmp_path / "in", tmp_path / "s")
    assert np.abs(got.astype(int) - volume).max() <= (0 if slope == 1 else 1)


def test_slope_may_differ_by_slice(tmp_path, volume):
    def edit(one, index):
        if index % 2:
            stored = np.frombuffer(one.PixelData, "<i2") * 2
            one.PixelData, one.RescaleSlope = stored.astype("<i2").tobytes(), "0.5"

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert [one.text[:33] for one in scan.findings if one.code == "rescale"] == [
        "2 different rescale slopes and in"
    ]


def test_frames_that_are_claimed_and_not_described(tmp_path, volume):
    """A number of frames is no reason to set memory aside for them."""

    def edit(one):
        one.NumberOfFrames = 2_000_000_000
        del one.PerFrameFunctionalGroupsSequence

    dicom_files.write_enhanced(tmp_path / "in" / "a.dcm", volume[:2], edit=edit)
    _refused(tmp_path / "in", tmp_path / "s", "says 2000000000 frames and describes 0")


def test_padding_becomes_air(tmp_path, volume):
    def edit(one, index):
        stored = np.frombuffer(one.PixelData, "<i2").copy()
        stored[:50] = -2000
        one.PixelData = stored.tobytes()
        one.add_new("PixelPaddingValue", "SS", -2000)

    dicom_files.write_series(tmp_path / "in", volume, intercept=0, edit=edit)
    assert (_read(tmp_path / "in", tmp_path / "s").reshape(len(volume), -1)[:, :50] == -1024).all()


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)],
    ids=["axial", "prone", "feet first", "coronal", "sagittal"],
)
def test_any_orientation_gives_the_same_patient(tmp_path, volume, orientation):
    row, column = np.reshape(orientation, (2, 3))
    matrix = np.stack([row, column, np.cross(row, column)], 1).astype(float)
    stored = geometry.Geometry((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(matrix.ravel()))
    array = geometry.from_canonical(volume, geometry.find_orientation(stored))
    dicom_files.write_series(tmp_path / "in", array, spacing_zyx=SPACING, orientation=orientation)
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume)


def test_enhanced_multi_frame_in_any_order(tmp_path, volume):
    order = np.random.default_rng(1).permutation(len(volume))
    dicom_files.write_enhanced(tmp_path / "in" / "one.dcm", volume, spacing_zyx=SPACING, shuffle=order)
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert scan.stored.spacing_xyz_mm == pytest.approx((6, 6, 6))


def test_a_zip_of_a_series(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in" / "deep", volume)
    archive = shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "in")
    scan = _open(pathlib.Path(archive), tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert scan.name == "scan" and str(scan.path) == archive


def test_the_chest_is_chosen_and_the_others_listed(tmp_path, volume):
    folder = tmp_path / "in"
    dicom_files.write_series(folder, volume[:6], number=1, description="ABDOMEN", prefix="A")
    dicom_files.write_series(folder, volume, number=2, description="chest lung 1mm", prefix="B")
    dicom_files.write_series(
        folder, volume[::2], number=4, description="chest", spacing_zyx=(12, 6, 6), prefix="C"
    )
    dicom_files.write_series(folder, volume, number=7, description="CHEST", modality="PT", prefix="D")
    scan = _open(folder, tmp_path / "s")
    assert scan.num_slices == len(volume)
    texts = [finding.text for finding in scan.findings]
    assert "chest lung 1mm" in texts[0] and len([t for t in texts if t.startswith("not segmented")]) == 3
    assert len(_read(folder, tmp_path / "s", series="4")) == len(volume[::2])
    _refused(folder, tmp_path / "s", "--series: got '9'.*ABDOMEN", series="9")
    _refused(folder, tmp_path / "s", "is 'PT', expected 'CT'", series="7")


def test_two_studies_are_two_scans(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in" / "anna", volume, study="1.2.3")
    dicom_files.write_series(tmp_path / "in" / "bert", volume, study="1.2.4")
    assert [source.name for source in scans.find_scans(tmp_path / "in")] == ["anna", "bert"]


def test_missing_slices(tmp_path, volume):
    keep = [k for k in range(len(volume)) if k not in (5, 11, 12)]
    dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=SPACING, keep=keep)
    _refused(tmp_path / "in", tmp_path / "s", "3 missing slices: after 34.0, 70.0 mm")


def test_uneven_slices(tmp_path, volume):
    def edit(one, index):
        one.ImagePositionPatient = ["-60", "-50", str(index * 2.0 + (1.0 if index > 9 else 0.0))]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    _refused(tmp_path / "in", tmp_path / "s", "uneven slices: 2 to 3 mm")


def test_copies_are_dropped_and_named(tmp_path, volume):
    paths = dicom_files.write_series(tmp_path / "in", volume)
    for number in (2, 9):
        shutil.copy(paths[number], paths[number].with_name(f"copy{number}.dcm"))
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert any(f.code == "duplicates" and "2 images" in f.text for f in scan.findings)


def test_two_acquisitions_in_one_series(tmp_path, volume):
    def edit(one, index):
        one.AcquisitionNumber = 2
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.5.{index + 1}"

    uid = "1.2.840.1"
    dicom_files.write_series(tmp_path / "in", volume, series=uid)
    dicom_files.write_series(tmp_path / "in", volume - 30, series=uid, edit=edit, prefix="B")
    _refused(tmp_path / "in", tmp_path / "s", r"different images at one position .*acquisitions 1, 2")


def test_mixed_orientations(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in", volume, series="1.2.3")
    dicom_files.write_series(
        tmp_path / "in", volume[:3], series="1.2.3", orientation=(1, 0, 0, 0, 0, -1), prefix="B"
    )
    _refused(tmp_path / "in", tmp_path / "s", "mixed images")


def test_a_scout_view_is_left_out(tmp_path, volume):
    def edit(one, index):
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    dicom_files.write_series(tmp_path / "in", volume, series="1.2.3")
    scout = {"orientation": (1, 0, 0, 0, 0, -1), "series": "1.2.3", "prefix": "B"}
    dicom_files.write_series(tmp_path / "in", volume[:1], edit=edit, **scout)
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert any(finding.code == "localizer" for finding in scan.findings)
    dicom_files.write_series(tmp_path / "only", volume[:1], edit=edit, **scout)
    _refused(tmp_path / "only", tmp_path / "s", "scout views")


def test_a_tilted_gantry_keeps_its_places(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=SPACING, step=(0, 1.5, 6.0))
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume)
    assert scan.volume.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.25)))
    np.testing.assert_allclose(geometry.index_to_mm(scan.stored, (2, 3, 7)), (-48, -50 + 18 + 10.5, 52))
    assert any(finding.code == "tilt" and "14.0 degrees" in finding.text for finding in scan.findings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda one: setattr(one, "Modality", "MR"), "no CT image series"),
        (lambda one: setattr(one, "RescaleType", "OD"), "values of type 'OD', expected HU"),
        (lambda one: setattr(one, "BitsStored", 8), "holds a picture .8 bits"),
        (lambda one: setattr(one, "PhotometricInterpretation", "RGB"), "holds a picture"),
        (lambda one: delattr(one, "ImagePositionPatient"), "have no position"),
        (lambda one: setattr(one, "PixelSpacing", ["0", "1"]), "pixel spacing of .0.0, 1.0. mm"),
        (
            lambda one: setattr(one, "ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"]),
            "no right angle",
        ),
        (lambda one: setattr(one, "PixelData", one.PixelData[:-200]), "damaged or truncated"),
    ],
)
def test_what_is_no_ct_is_refused(tmp_path, volume, change, match):
    dicom_files.write_series(tmp_path / "in", volume[:5], edit=lambda one, index: change(one))
    _refused(tmp_path / "in", tmp_path / "s", match)


@pytest.mark.parametrize("size", [0, 100, 200, 400, 900, 3000])
def test_a_truncated_file_stops_the_scan(tmp_path, volume, size):
    """Also the last one, whose loss would leave an even stack."""
    paths = dicom_files.write_series(tmp_path / "in", volume[:6])
    paths[-1].write_bytes(paths[-1].read_bytes()[:size])
    _refused(tmp_path / "in", tmp_path / "s", "damaged or truncated")


def test_reports_and_other_files_are_passed_over(tmp_path, volume):
    paths = dicom_files.write_series(tmp_path / "in", volume)
    (tmp_path / "in" / "readme.txt").write_text("no scan")

    def change(one):
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.BasicTextSRStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
        del one.PixelData, one.Rows, one.Columns

    dicom_files.rewrite(paths[0], change, tmp_path / "in" / "sr.dcm")
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_losslessly_compressed_slices(tmp_path, volume, compressor):
    """JPEG lossless has no decoder in pydicom alone: SimpleITK takes over."""
    import SimpleITK as sitk

    (tmp_path / "in").mkdir()
    paths = dicom_files.write_series(tmp_path / "plain", volume[:4])
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
        writer.SetFileName(str(tmp_path / "in" / path.name))
        writer.Execute(image)
        syntax = pydicom.dcmread(tmp_path / "in" / path.name).file_meta.TransferSyntaxUID
        assert syntax.is_compressed
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume[:4])


def test_reading_says_nothing_on_the_side(tmp_path, volume, capfd):
    dicom_files.write_series(tmp_path / "in", volume[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _read(tmp_path / "in", tmp_path / "s")
    assert capfd.readouterr() == ("", "")
