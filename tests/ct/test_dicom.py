"""Tests of DICOM reading: the right series, slices in order, true HU, and one line for what is wrong."""

import pathlib
import shutil
import subprocess
import sys
import warnings

import chest
import dicom_files
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import checks, decode, geometry, scans

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
    """Returns what is segmented without --force."""
    scan = _open(path, scratch, **kwargs)
    checks.raise_errors(scan.findings, path)
    return scan.read(0, scan.num_slices)


def _findings(scan, code):
    return [finding for finding in scan.findings if finding.code == code]


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
        folder, volume[::2], number=4, description="chest", spacing_zyx=(4, 6, 6), prefix="C"
    )
    dicom_files.write_series(folder, volume, number=7, description="CHEST", modality="PT", prefix="D")
    scan = _open(folder, tmp_path / "s")
    assert scan.num_slices == len(volume)
    texts = [finding.text for finding in scan.findings]
    assert "chest lung 1mm" in texts[0] and "original, 24 places over 46 mm, the best of 4" in texts[0]
    reasons = {finding.text.split(": ")[-1] for finding in _findings(scan, "other-series")}
    assert reasons == {"a shorter extent", "12 places", "no CT"}
    assert [(one.series.number, one.count) for one in scan.skipped] == [(1, 6), (4, 12), (7, 24)]
    assert len(_read(folder, tmp_path / "s", series="4")) == len(volume[::2])
    _refused(folder, tmp_path / "s", "--series: got '9'.*ABDOMEN", series="9")
    _refused(folder, tmp_path / "s", "is 'PT', expected 'CT'", series="7")


def test_two_studies_are_two_scans(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in" / "anna", volume, study="1.2.3")
    dicom_files.write_series(tmp_path / "in" / "bert", volume, study="1.2.4")
    assert [source.name for source in scans.find_scans(tmp_path / "in")] == ["anna", "bert"]


def test_missing_slices_are_filled_and_named(tmp_path, volume):
    """What lies beyond the gap stays where it is; a filled slice is the mean of its neighbours."""
    keep = [k for k in range(len(volume)) if k not in (5, 11, 12)]
    dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=SPACING, keep=keep)
    scan = _open(tmp_path / "in", tmp_path / "s")
    assert scan.stored == geometry.Geometry((56, 48, 24), (6.0, 6.0, 6.0), (-60.0, -50.0, 10.0))
    got = scan.read(0, 24)
    np.testing.assert_array_equal(got[keep], volume[keep])
    np.testing.assert_array_equal(got[5], np.rint((volume[4].astype(float) + volume[6]) / 2))
    np.testing.assert_array_equal(got[11], np.rint((2.0 * volume[10] + volume[13]) / 3))
    (finding,) = _findings(scan, "missing-slices")
    assert finding.severity == "warning" and "3 missing slices: after 34.0, 70.0 mm" in finding.text
    assert scan.widths_mm is None and len(scan.volume.frames) == 21


def test_many_missing_slices_need_force(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=SPACING, keep=[*range(9), *range(17, 24)])
    _refused(tmp_path / "in", tmp_path / "s", "8 missing slices: after 58.0 mm .*--force")
    assert _open(tmp_path / "in", tmp_path / "t").num_slices == 24


def test_uneven_slices_keep_their_real_distances(tmp_path, volume):
    """2 mm apart, then 3 mm: a grid of 2 mm, and widths that add up to the stack's height."""
    heights = np.concatenate([np.arange(10) * 2.0, 21 + np.arange(14) * 3.0])

    def edit(one, index):
        one.ImagePositionPatient = ["-60", "-50", str(heights[index])]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    scan = _open(tmp_path / "in", tmp_path / "s")
    (finding,) = _findings(scan, "uneven")
    assert finding.severity == "warning" and "uneven slices: 2 to 3 mm apart" in finding.text
    assert scan.stored.spacing_xyz_mm[2] == 2.0
    places = np.array(scan.volume.places)
    assert np.abs(heights - places * 2.0).max() <= 1.0
    assert scan.widths_mm.sum() == pytest.approx(60 + scan.widths_mm[0] / 2 + scan.widths_mm[-1] / 2)
    assert scan.widths_mm[:9] == pytest.approx([2.0] * 9)
    for plane, image in zip(places, volume):
        np.testing.assert_array_equal(scan.read(plane, plane + 1)[0], image)


def test_positions_rounded_to_a_tenth_of_a_millimetre(tmp_path):
    volume = np.tile(chest.draw((6, 16, 16), (20.0, 20.0, 20.0)), (10, 1, 1))

    def edit(one, index):
        one.ImagePositionPatient = ["-60", "-50", f"{index * 0.625:.1f}"]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    scan = _open(tmp_path / "in", tmp_path / "s")
    checks.raise_errors(scan.findings, "")
    assert scan.num_slices == 60 and scan.stored.spacing_xyz_mm[2] == pytest.approx(0.625, abs=0.001)


@pytest.mark.parametrize(("off_mm", "severity"), [(0.3, None), (1.5, "warning"), (20.0, "error")])
def test_the_line_of_slices_is_checked_slice_by_slice(tmp_path, volume, off_mm, severity):
    """Slices in the middle, so that the ends say nothing; pixels of 1 mm."""

    def edit(one, index):
        one.ImagePositionPatient = [str(-60 + (off_mm if 9 <= index < 12 else 0.0)), "-50", str(index * 2.0)]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    scan = _open(tmp_path / "in", tmp_path / "s")
    found = [(one.severity, one.text[:8]) for one in _findings(scan, "line")]
    assert found == ([(severity, "3 slices")] if severity else [])
    assert scan.stored.origin_xyz_mm == (-60.0, -50.0, 0.0) and scan.volume.tilt_degrees == 0.0


def test_an_orientation_that_jitters_is_one_orientation(tmp_path, volume):
    """Around a cosine that rounds up and down."""

    def edit(one, index):
        tilt = 0.005 + (1e-6 if index % 2 else -1e-6)
        one.ImageOrientationPatient = [f"{v:.10g}" for v in (1, 0, 0, 0, np.sqrt(1 - tilt**2), tilt)]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume)


def test_a_screenshot_and_frames_of_another_size_are_left_out(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in", volume, series="1.2.3")

    def strip(one, index):
        del one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"

    dicom_files.write_series(tmp_path / "in", volume[:1], series="1.2.3", edit=strip, prefix="S")
    dicom_files.write_series(tmp_path / "in", volume[:2, :20], series="1.2.3", prefix="T")
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 24), volume)
    assert "1 images without a position" in _findings(scan, "no-position")[0].text
    (mixed,) = _findings(scan, "mixed-images")
    assert (
        mixed.severity == "warning" and "2 of 20x56" in mixed.text and "2 images are left out" in mixed.text
    )


def test_half_of_the_chest_is_not_left_out_in_silence(tmp_path, volume):
    """Another pixel size from the middle on."""

    def edit(one, index):
        one.PixelSpacing = ["1", "1"] if index < 13 else ["0.8", "0.8"]

    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    _refused(tmp_path / "in", tmp_path / "s", "mixed images.*11 images are left out.*--force")
    assert _open(tmp_path / "in", tmp_path / "t").num_slices == 13


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
    dicom_files.write_series(tmp_path / "in", volume[:10], series=uid)
    dicom_files.write_series(tmp_path / "in", volume - 30, series=uid, edit=edit, prefix="B")
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 24), np.clip(volume - 30, -1024, None))
    (finding,) = _findings(scan, "acquisitions")
    assert finding.severity == "warning"
    assert (
        "acquisition '2' with 24 images is segmented, 10 images of acquisition '1' are left" in finding.text
    )


def test_acquisitions_between_one_another(tmp_path, volume):
    """No two images at one place, and yet two stacks."""
    uid = "1.2.840.1"

    def edit(one, index):
        one.AcquisitionNumber = 2
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.5.{index + 1}"

    dicom_files.write_series(tmp_path / "in", volume, series=uid)
    other = {"origin": (-60.0, -50.0, 10.6), "spacing_zyx": (4.0, 1.0, 1.0), "prefix": "B"}
    dicom_files.write_series(tmp_path / "in", volume[::2], series=uid, edit=edit, **other)
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 24), volume)
    assert "12 images are left out" in _findings(scan, "acquisitions")[0].text


def test_images_that_nothing_tells_apart_need_force(tmp_path, volume):
    def edit(one, index):
        one.InstanceNumber = index + 101
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.5.{index + 1}"

    dicom_files.write_series(tmp_path / "in", volume, series="1.2.8")
    dicom_files.write_series(tmp_path / "in", volume - 30, series="1.2.8", edit=edit, prefix="B")
    _refused(tmp_path / "in", tmp_path / "s", "different images at one position.*--force")
    scan = _open(tmp_path / "in", tmp_path / "t")
    np.testing.assert_array_equal(scan.read(0, 24), volume)


def test_other_orientations_are_left_out(tmp_path, volume):
    dicom_files.write_series(tmp_path / "in", volume, series="1.2.3")
    dicom_files.write_series(
        tmp_path / "in", volume[:3], series="1.2.3", orientation=(1, 0, 0, 0, 0, -1), prefix="B"
    )
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 24), volume)
    assert "3 images are left out" in _findings(scan, "mixed-images")[0].text


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


def _as_screenshot(one):
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
    one.PixelData = bytes(3 * one.Rows * one.Columns)
    del one.ImagePositionPatient, one.ImageOrientationPatient


def _as_other_unit(one):
    one.RescaleType = "OD"


@pytest.mark.parametrize("change", [_as_screenshot, _as_other_unit])
@pytest.mark.parametrize(("count", "severity"), [(1, "warning"), (4, "error")])
def test_pictures_among_slices_are_left_out(tmp_path, volume, change, count, severity):
    """One of nine is named; four of twelve could be a part of the chest."""
    dicom_files.write_series(tmp_path / "in", volume[:8], series="1.2.3")
    dicom_files.write_series(tmp_path / "in", volume[8 : 8 + count], series="1.2.3", prefix="B",
                             edit=lambda one, index: change(one))  # fmt: skip
    (source,) = scans.find_scans(tmp_path / "in")
    scan = scans.open_scan(source, tmp_path)
    np.testing.assert_array_equal(scan.read(0, scan.num_slices), volume[:8])
    (finding,) = [one for one in scan.findings if one.code == "pictures"]
    assert finding.severity == severity and f"{count} of {8 + count} images are left out" in finding.text
    assert ("--force" in finding.text) == (severity == "error")


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
        (lambda one: setattr(one, "Modality", "MR"), "is 'MR', expected 'CT' .predict --force"),
        (lambda one: setattr(one, "Modality", "SEG"), "no scan in"),
        (lambda one: setattr(one, "RescaleType", "OD"), "values of type 'OD', expected HU"),
        (lambda one: setattr(one, "BitsStored", 8), "holds a picture .8 bits"),
        (lambda one: setattr(one, "PhotometricInterpretation", "RGB"), "holds a picture"),
        (lambda one: setattr(one, "SamplesPerPixel", 3), "holds a colour picture"),
        (lambda one: delattr(one, "ImagePositionPatient"), "have no position.*image numbers.*--force"),
        (lambda one: delattr(one, "PixelSpacing"), "have no pixel spacing.*--force"),
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
    dicom_files.compress(
        dicom_files.write_series(tmp_path / "plain", volume[:4]), tmp_path / "in", compressor
    )
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume[:4])


@pytest.mark.parametrize("fault", ["os.abort()", "time.sleep(60)"])
def test_a_codec_that_crashes_or_hangs_costs_one_file(tmp_path, volume, monkeypatch, fault):
    dicom_files.compress(dicom_files.write_series(tmp_path / "plain", volume[:4]), tmp_path / "in", "JPEG")
    started = []

    def start(module, **streams):
        code = (
            f"import os, time; from {module.rpartition('.')[0]} import decode; real = decode.decode; "
            f"decode.decode = lambda question: {fault} if 'IM0001' in question['path'] else real(question); "
            "decode.main()"
        )
        started.append(subprocess.Popen([sys.executable, "-c", code], text=True, **streams))
        return started[-1]

    monkeypatch.setattr(decode.workers, "start", start)
    monkeypatch.setattr(decode, "_DECODER", decode._Decoder())
    scan = _open(tmp_path / "in", tmp_path / "s")  # reads the middle slice
    for index in (0, 2, 3):
        np.testing.assert_array_equal(scan.read(index, index + 1), volume[index : index + 1])
    with monkeypatch.context() as hurried:
        hurried.setattr(decode, "SECONDS", 1)
        with pytest.raises(InputError, match="IM0001.dcm: its compressed pixels crash the decoder"):
            scan.read(1, 2)
    np.testing.assert_array_equal(scan.read(3, 4), volume[3:4])
    assert len(started) == 2 and started[0].returncode is not None
    decode._DECODER._end()


def test_a_transfer_syntax_that_nobody_knows_is_named(tmp_path, volume):
    for path in dicom_files.write_series(tmp_path / "in", volume[:2]):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"))
    with pytest.raises(InputError, match="in the transfer syntax 1.2.840.113619.5.2, which is not known"):
        _open(tmp_path / "in", tmp_path / "s")


def test_reading_says_nothing_on_the_side(tmp_path, volume, capfd):
    dicom_files.write_series(tmp_path / "in", volume[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _read(tmp_path / "in", tmp_path / "s")
    assert capfd.readouterr() == ("", "")


def _change(**values):
    def edit(one, index):
        for name, value in values.items():
            if value is None:
                delattr(one, name)
            else:
                setattr(one, name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_change(Modality=""), "modality"),
        (_change(PhotometricInterpretation="MONOCHROME1"), "monochrome1"),
        (_change(ImageOrientationPatient=None), "no-orientation"),
    ],
)
def test_what_is_doubtful_is_segmented_with_a_warning(tmp_path, volume, edit, code):
    dicom_files.write_series(tmp_path / "in", volume, edit=edit)
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume)
    assert [one.severity for one in _findings(_open(tmp_path / "in", tmp_path / "t"), code)] == ["warning"]


def test_slice_locations_stand_for_positions(tmp_path, volume):
    def edit(one, index):
        del one.ImagePositionPatient
        one.SliceLocation, one.InstanceNumber = str(100 - 2.5 * index), index

    dicom_files.write_series(tmp_path / "in", volume[::-1], edit=edit)
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 24), volume)
    assert scan.stored.spacing_xyz_mm[2] == 2.5
    assert "ordered by SliceLocation" in _findings(scan, "no-position")[0].text


def test_force_leaves_out_what_cannot_be_read(tmp_path, volume):
    paths = dicom_files.write_series(tmp_path / "in", volume)
    paths[4].write_bytes(paths[4].read_bytes()[:-200])
    paths[9].write_bytes(paths[9].read_bytes()[:400])
    scan = _open(tmp_path / "in", tmp_path / "s", force=True)
    got = scan.read(0, 24)
    np.testing.assert_array_equal(np.delete(got, [4, 9], 0), np.delete(volume, [4, 9], 0))
    assert "2 missing slices" in _findings(scan, "missing-slices")[0].text


@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian"])
def test_files_without_a_preamble(tmp_path, volume, some, syntax):
    """As GDCM reads them: the data set from the first byte on, without a suffix."""
    paths = dicom_files.write_series(tmp_path / "in", volume)
    for number, path in enumerate(paths):
        one = pydicom.dcmread(path)
        if some and number % 3:
            continue
        uid = getattr(pydicom.uid, syntax)
        bare = pydicom.Dataset(one)
        del bare.is_decompressed
        path.unlink()
        pydicom.dcmwrite(path.with_suffix(""), bare, implicit_vr=uid.is_implicit_VR, little_endian=True)
        assert path.with_suffix("").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume)


def test_a_deflated_series(tmp_path, volume):
    def edit(one, index):
        one.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian

    dicom_files.write_series(tmp_path / "in", volume[:4], edit=edit)
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume[:4])


def _write_study(folder, volume, *others):
    """Writes a chest of 12 places as series 3 and other series: (volume, keyword arguments)."""
    dicom_files.write_series(folder, volume[:12], number=3, description="CHEST", prefix="A")
    for number, (values, kwargs) in enumerate(others):
        settings = {"number": number + 1, "description": "CHEST", "prefix": f"B{number}", **kwargs}
        dicom_files.write_series(folder, values, **settings)


def test_images_of_one_place_are_no_scan(tmp_path, volume):
    """A bolus series has more images than the chest, all at one place."""
    bolus = np.repeat(volume[:1], 20, 0) + np.arange(20, dtype=np.int16)[:, None, None]
    _write_study(tmp_path / "in", volume, (bolus, {"step": (0, 0, 0)}))
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume[:12])


def test_original_images_come_before_derived_ones(tmp_path, volume):
    """A maximum intensity projection, one image longer."""
    edit = _change(ImageType=["DERIVED", "SECONDARY", "MIP"])
    _write_study(tmp_path / "in", volume, (volume[:13], {"edit": edit}))
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 12), volume[:12])
    assert [one.reason for one in scan.skipped] == ["derived"]


def test_extent_comes_before_the_number_of_places(tmp_path, volume):
    """Thin slices of a part of the chest are no chest."""
    _write_study(tmp_path / "in", volume, (volume, {"spacing_zyx": (0.5, 1, 1)}))
    scan = _open(tmp_path / "in", tmp_path / "s")
    assert scan.num_slices == 12 and [one.reason for one in scan.skipped] == ["a shorter extent"]


def test_the_next_usable_series_is_taken(tmp_path, volume):
    """The best one is of values that are no HU, the next one is."""
    _write_study(tmp_path / "in", volume, (volume[:13], {"edit": _change(RescaleType="OD")}))
    scan = _open(tmp_path / "in", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 12), volume[:12])
    assert "would come first and cannot be used: DICOM" in _findings(scan, "passed-over")[0].text
    assert "values of type 'OD'" in scan.skipped[0].reason


def test_an_empty_transfer_syntax_is_guessed(tmp_path, volume):
    for path in dicom_files.write_series(tmp_path / "in", volume[:3]):
        raw, stated = path.read_bytes(), b"1.2.840.10008.1.2.1\0"
        start = raw.index(b"\x02\x00\x10\x00UI") + 6
        assert raw[start + 2 : start + 2 + len(stated)] == stated
        path.write_bytes(raw[:start] + b"\0\0" + raw[start + 2 + len(stated) :])
    np.testing.assert_array_equal(_read(tmp_path / "in", tmp_path / "s"), volume[:3])


def test_a_scale_that_is_no_number_names_its_file(tmp_path, volume):
    paths = dicom_files.write_series(tmp_path / "in", volume[:2])
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"-1024 ", b"nan   "))
    _refused(
        tmp_path / "in",
        tmp_path / "s",
        "IM0000.dcm has the rescale slope or intercept nan, expected a number",
    )
