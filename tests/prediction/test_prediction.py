"""Tests of prediction: the mask lies where the scan lies, whatever the format, turn or order of the file."""

import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import geometry, scans, writers
from auxseg.prediction import measure, outputs, page_rows, segment
from auxseg.prediction import rows as rows_lib
from auxseg.runs.networks import Network
from auxseg.scoring import components

SPACING_XYZ, ORIGIN = (6.0, 6.0, 6.0), (-150.0, -120.5, 33.25)
TURNS = {
    "plain": ((0, 1, 2), ()),
    "flipped": ((0, 1, 2), (0,)),
    "upside down": ((0, 1, 2), (2,)),
    "prone": ((0, 1, 2), (0, 1)),
    "coronal": ((0, 2, 1), (1,)),
    "sagittal": ((1, 2, 0), (0, 2)),
}
FORMATS = ("nii.gz", "nii", "nrrd", "mha")


def _image(volume, spacing_xyz=SPACING_XYZ, origin=ORIGIN):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    return image


def _turn(image, name):
    order, flips = TURNS[name]
    return sitk.Flip(sitk.PermuteAxes(image, order), [axis in flips for axis in range(3)])


def _in_patient(image):
    """Returns the array of an image in canonical orientation, by SimpleITK alone."""
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))


def _same_grid(first, second, atol=1e-4):
    assert first.GetSize() == second.GetSize()
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(first, name)(), getattr(second, name)(), atol=atol, rtol=1e-6)


def _run(path, output, *, formats=("nii.gz",), **options):
    return outputs.predict(path, output, [fake_network.create((56, 56))], options=segment.Options(**options),
                           formats=formats)  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    """Returns the mask of the plain chest, canonical."""
    volume = chest.draw()
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(_image(volume), f"{folder}/a.mha")
        return segment.segment(f"{folder}/a.mha", [fake_network.create((56, 56))]).masks


def test_the_chest_is_segmented_as_it_was_drawn(expected):
    volume = chest.draw()
    lung = (volume < -700) & (volume > -920)
    middle = volume.shape[2] / 2
    columns = np.arange(volume.shape[2])[None, None]
    for value, side in ((1, columns > middle), (2, columns < middle)):
        truth = lung & side
        assert 2 * ((expected == value) & truth).sum() / ((expected == value).sum() + truth.sum()) > 0.9
    assert (expected == 3).sum() > 20


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_turned_copy_gives_the_same_mask_in_the_patient(tmp_path, expected, turn, form):
    image = _turn(_image(chest.draw()), turn)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    _run(tmp_path / "scan.nrrd", tmp_path / "out", formats=(form,))
    mask = sitk.ReadImage(str(tmp_path / "out" / f"mask.{form}"))
    _same_grid(mask, image)
    assert mask.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(_in_patient(mask), expected)


def test_an_oblique_direction_is_kept(tmp_path):
    image = _image(chest.draw())
    turn = sitk.Euler3DTransform((0, 0, 0), 0.02, -0.05, 0.1)
    image.SetDirection(turn.GetMatrix())
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    _run(tmp_path / "scan.mha", tmp_path / "out", formats=FORMATS)
    for form in FORMATS:
        _same_grid(sitk.ReadImage(str(tmp_path / "out" / f"mask.{form}")), image)


def test_an_anisotropic_copy_gives_the_same_mask_in_the_patient(tmp_path):
    """Half the columns, twice as wide: the masks agree where both have a voxel, but for edges."""
    volume = chest.draw((12, 96, 112), (12.0, 3.0, 3.0))
    narrow = volume.reshape(12, 96, 56, 2).mean(-1).round().astype(np.int16)
    images = [
        _image(volume, (3.0, 3.0, 12.0)),
        _image(narrow, (6.0, 3.0, 12.0), (ORIGIN[0] + 1.5, *ORIGIN[1:])),
    ]
    masks = []
    for number, image in enumerate(images):
        sitk.WriteImage(image, str(tmp_path / f"{number}.mha"))
        _run(tmp_path / f"{number}.mha", tmp_path / f"out{number}")
        masks.append(sitk.ReadImage(str(tmp_path / f"out{number}" / "mask.nii.gz")))
    again = sitk.GetArrayFromImage(
        sitk.Resample(masks[1], masks[0], sitk.Transform(), sitk.sitkNearestNeighbor)
    )
    first = sitk.GetArrayFromImage(masks[0])
    for value in (1, 2):
        both = (
            2
            * ((first == value) & (again == value)).sum()
            / ((first == value).sum() + (again == value).sum())
        )
        assert both > 0.97


def test_a_slice_that_is_not_square_is_not_stretched(tmp_path):
    """Rows of air above and below, or none: the network sees the same square."""
    volume = chest.draw((3, 56, 56))
    seen = []

    def forward(images):
        seen.append(np.asarray(images))
        return fake_network.threshold_probabilities(images), np.zeros((len(images), 4))

    network = Network("n", (56, 56), "0" * 64, "anatomy", forward)
    air = np.full((3, 4, 56), -1024, np.int16)
    square = np.concatenate([air, volume[:, 4:-4], air], 1)
    for number, array in enumerate((square, volume[:, 4:-4])):
        sitk.WriteImage(_image(array), str(tmp_path / f"{number}.mha"))
        segment.segment(tmp_path / f"{number}.mha", [network])
    np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize(("option", "index"), [("middle", 12), ("0", 0), ("23", 23), (7, 7)])
def test_one_slice_lies_in_its_place(tmp_path, expected, option, index):
    image = _turn(_image(chest.draw()), "sagittal")
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    _run(tmp_path / "scan.mha", tmp_path / "out", formats=("nrrd",), slices=option)
    mask = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "out" / "mask.nrrd")), "LPS")
    assert mask.GetSize() == (56, 48, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask)[0], expected[index])
    np.testing.assert_allclose(mask.GetOrigin(), (*ORIGIN[:2], ORIGIN[2] + 6.0 * index))


def test_a_slice_outside_the_scan_is_refused(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    with pytest.raises(InputError, match="--slice: got 24, expected 0 to 23"):
        _run(tmp_path / "scan.mha", tmp_path / "out", slices="24")
    with pytest.raises(InputError, match="--slice: got 'first'"):
        segment.Options(slices="first")
    assert not (tmp_path / "out" / "mask.nii.gz").exists()


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_the_batch_size_changes_nothing(tmp_path, expected, batch_size):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    options = segment.Options(batch_size=batch_size)
    result = segment.segment(tmp_path / "scan.mha", [fake_network.create((56, 56))], options=options)
    np.testing.assert_array_equal(result.masks, expected)


def test_no_more_than_a_few_slices_are_held(tmp_path, monkeypatch):
    sitk.WriteImage(_image(chest.draw((40, 48, 56))), str(tmp_path / "scan.nii.gz"))
    held = []
    stack = np.pad
    monkeypatch.setattr(
        segment.np, "pad", lambda array, *a, **k: held.append(len(array)) or stack(array, *a, **k)
    )
    _run(tmp_path / "scan.nii.gz", tmp_path / "out", batch_size=4)
    assert held and max(held) <= 4


def test_probabilities_lie_where_the_mask_lies(tmp_path):
    image = _turn(_image(chest.draw()), "coronal")
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    _run(tmp_path / "scan.mha", tmp_path / "out", formats=("nrrd",), probabilities=True)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "mask.nrrd")))
    maps = []
    for name in ("left_lung", "right_lung", "nodule"):
        one = sitk.ReadImage(str(tmp_path / "out" / f"probability_{name}.nrrd"))
        _same_grid(one, image)
        maps.append(sitk.GetArrayFromImage(one))
    total = np.stack([1 - np.sum(maps, 0), *maps])
    assert total.min() > -1e-5 and total.max() < 1 + 1e-5
    np.testing.assert_array_equal(total.argmax(0)[total.max(0) > 0.5], mask[total.max(0) > 0.5])


def _lopsided(images):
    """A network that errs on one side: everything is left lung in the first half of the columns."""
    probabilities = np.full((*images.shape, 4), 0.1, np.float32)
    probabilities[..., : images.shape[2] // 2, 1] = 0.7
    probabilities[..., images.shape[2] // 2 :, 0] = 0.7
    return probabilities, np.zeros((len(images), 4))


def test_mirrored_slices_are_averaged_with_left_and_right_exchanged(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw()[12])
    network = Network("n", (48, 56), "0" * 64, "anatomy", _lopsided)
    options = segment.Options(flip=True, probabilities=True, force=True)
    result = segment.segment(tmp_path / "a.npz", [network], options=options)
    left, right = result.probabilities[1:3, 0, 24]
    np.testing.assert_allclose(left[3:25], 0.4, atol=1e-5)  # (0.7 + 0.1) / 2
    np.testing.assert_allclose(right[-25:-3], 0.4, atol=1e-5)
    np.testing.assert_allclose(right[3:25], 0.1, atol=1e-5)


def test_networks_are_averaged_also_of_different_sizes(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw()[12])

    def constant(*values):
        def forward(images):
            return np.broadcast_to(np.float32(values), (*images.shape, 4)), np.zeros((len(images), 4))

        return forward

    networks = [
        Network("a", (32, 32), "0" * 64, "anatomy", constant(0.1, 0.7, 0.1, 0.1)),
        Network("b", (64, 48), "1" * 64, "anatomy", constant(0.3, 0.2, 0.4, 0.1)),
    ]
    options = segment.Options(probabilities=True, force=True)
    result = segment.segment(tmp_path / "a.npz", networks, options=options)
    np.testing.assert_allclose(result.probabilities[:, 0].mean((1, 2)), (0.2, 0.45, 0.25, 0.1), atol=1e-5)
    assert (result.masks == 1).all()


def test_clean_up_is_measured(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    clean = components.CleanUp(largest_components=True, fill_holes=True, min_nodule_mm=200.0 / 2.1)
    result = segment.segment(
        tmp_path / "scan.mha", [fake_network.create((56, 56))], options=segment.Options(clean=clean)
    )
    assert set(result.changed) == {"largest_components", "fill_holes", "min_nodule_mm", "clean_lungs"}
    assert result.changed["min_nodule_mm"] > 20 and not (result.masks == 3).any()
    assert any("min_nodule_mm" in finding.text for finding in result.findings)


def test_threshold_of_nodules_decides_and_leaves_the_probabilities(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw()[8])
    flat = np.array([0.2, 0.3, 0.1, 0.4], np.float32)
    network = Network("flat", (32, 32), "0" * 64, "anatomy", lambda x: (np.tile(flat, (*x.shape, 1)), None))
    for threshold, expected in ((0.5, 3), (0.57, 3), (0.58, 1)):
        options = segment.Options(force=True, nodule_threshold=threshold)
        assert (segment.segment(tmp_path / "a.npz", [network], options=options).masks == expected).all()
        options = dataclasses.replace(options, probabilities=True)
        result = segment.segment(tmp_path / "a.npz", [network], options=options)
        np.testing.assert_allclose(result.probabilities[:, 0].mean((1, 2)), flat, atol=1e-5)
        assert (result.masks == expected).all()
    # A least size in pixels is of the network's image, 32 pixels wide, and counts where there are no mm.
    for pixels, expected in ((30.0, 3), (40.0, 0)):
        clean = components.CleanUp(min_nodule_mm=1.0, min_nodule_px=pixels)
        result = segment.segment(
            tmp_path / "a.npz", [network], options=segment.Options(force=True, clean=clean)
        )
        assert (result.masks == expected).all()


def test_measurements_by_hand(tmp_path):
    """One nodule of 2 x 3 x 4 voxels: where it is, how large it is."""
    masks = np.zeros((10, 20, 30), np.uint8)
    masks[2:8, 4:16, 18:28], masks[2:8, 4:16, 2:12] = 1, 2
    masks[4:6, 8:11, 20:24] = 3
    volume = np.full(masks.shape, -100, np.int16)
    volume[4, 8, 20] = -400
    image = _turn(_image(volume, (0.5, 0.8, 2.0), (-10.0, 20.0, 30.0)), "flipped")
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    scan = scans.open_scan(scans.find_scans(tmp_path / "scan.mha")[0], tmp_path)
    rows = {row["structure"]: row for row in measure.measure(masks, scan, 0)}
    nodule = rows["nodule_1"]
    assert nodule["voxels"] == 24 and nodule["inside"] == "left_lung" and nodule["area_pixels"] == 12
    assert nodule["volume_mm3"] == pytest.approx(24 * 0.8) and nodule["area_mm2"] == pytest.approx(12 * 0.4)
    assert nodule["equivalent_diameter_mm"] == pytest.approx(2 * np.sqrt(4.8 / np.pi))
    assert [nodule[f"{axis}_mm"] for axis in "xyz"] == pytest.approx(
        [-10 + 21.5 * 0.5, 20 + 9 * 0.8, 30 + 4.5 * 2]
    )
    assert (nodule["slice"], nodule["first_slice"], nodule["last_slice"]) == (4, 4, 5)
    assert nodule["i"] in (7, 8) and nodule["j"] == 9 and nodule["k"] in (4, 5)  # x is stored reversed
    assert (
        nodule["kind"] == "nodule" and rows["left_lung"]["kind"] == "lung" and np.isnan(nodule["probability"])
    )
    # Between the middles of the outermost edges; at a right angle to that the sides, 2 mm apart, are hit aslant.
    long_mm = np.hypot(2.4, 1.5)
    assert nodule["long_axis_mm"] == pytest.approx(long_mm)
    assert nodule["short_axis_mm"] == pytest.approx(2.0 * long_mm / 2.4)
    assert nodule["mean_hu"] == pytest.approx((23 * -100 - 400) / 24)
    assert nodule["solid_share"] == pytest.approx(23 / 24) and np.isnan(rows["left_lung"]["mean_hu"])
    rows = measure.measure(masks, scan, 0, lambda index, chosen: index + chosen.sum() / 100)
    assert rows[2]["probability"] == pytest.approx(4.12)
    # As a notebook shows them: 4.8, not np.float64(4.8).
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, tuple, type(None)}
    rows = {row["structure"]: row for row in rows}
    assert rows["right_lung"]["volume_ml"] == pytest.approx(6 * 12 * 10 * 0.8 / 1000)
    assert rows["left_lung"]["voxels"] == 6 * 12 * 10 - 24


def test_axes_by_hand_and_of_an_ellipse():
    """A row of pixels, a square, and an ellipse with axes of 40 and 20 mm that lies aslant on uneven pixels."""
    assert measure.find_axes(np.ones((1, 4), bool), (1.0, 1.0)) == pytest.approx((4.0, 1.0))
    assert measure.find_axes(np.ones((2, 2), bool), (1.0, 1.0)) == pytest.approx((5**0.5, 5**0.5))
    y, x = np.meshgrid(np.arange(100) * 0.5 - 25, np.arange(70) * 0.8 - 28, indexing="ij")
    along, aside = y * 0.6 + x * 0.8, y * 0.8 - x * 0.6
    found = measure.find_axes((along / 20) ** 2 + (aside / 10) ** 2 < 1, (0.5, 0.8))
    assert found == pytest.approx((40, 20), abs=0.5)


def test_everything_about_a_scan_is_written(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    rows = _run(tmp_path / "scan.mha", tmp_path / "out")
    assert [row["status"] for row in rows] == ["done"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "mask.nii.gz",
        "measurements.csv",
        "overview.png",
        "prediction.json",
        "report.html",
        "scans.csv",
    ]
    with open(tmp_path / "out" / "measurements.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["structure"] for row in table][:3] == ["left_lung", "right_lung", "nodule_1"]
    assert 600 < float(table[0]["volume_ml"]) < float(table[1]["volume_ml"]) < 2500
    about = json.loads((tmp_path / "out" / "prediction.json").read_text(encoding="utf-8"))
    assert about["networks"] == [{"name": "threshold", "sha256": "0" * 64, "mm_per_pixel": None}]
    assert about["lungs_ml"][0] == pytest.approx(float(table[0]["volume_ml"]), rel=1e-4)


def test_the_report_is_one_whole_page(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "<b>scan.mha"))
    _run(tmp_path / "<b>scan.mha", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        page.count("data:image/jpeg;base64,")
        == page.count("data:image/png;base64,")
        == 24 + 1 + page.count('"coronal":')
    )  # slices, a coronal plane, and one of each nodule
    assert "Not for clinical use" in page and page.rstrip().endswith("</html>")
    assert "<b>scan" not in page  # names are text, never markup
    assert not re.search(r"(src|href)=[\"']?http", page)


def test_a_slice_without_anything_is_said(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw((40, 48, 56)))
    result = segment.segment(tmp_path / "a.npz", [fake_network.create()], options=segment.Options(slices=0))
    assert not result.masks.any()
    assert any(finding.code == "no-lung" and finding.severity == "warning" for finding in result.findings)


def _silent(images):
    probabilities = np.zeros((*images.shape, 4), np.float32)
    probabilities[..., 0] = 1
    return probabilities, np.zeros((len(images), 4))


def test_an_empty_mask_is_refused(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    network = Network("n", (56, 56), "0" * 64, "anatomy", _silent)
    with pytest.raises(InputError, match="no lung was found"):
        outputs.predict(tmp_path / "scan.mha", tmp_path / "out", [network])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scans.csv"]
    outputs.predict(tmp_path / "scan.mha", tmp_path / "out", [network], options=segment.Options(force=True))
    assert "no lung" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_lungs_on_the_wrong_sides_are_noticed():
    masks = np.zeros((2, 10, 10), np.uint8)
    masks[:, 2:8, 1:4], masks[:, 2:8, 6:9] = 1, 2
    assert [finding.code for finding in segment.check_masks(masks, whole=True)] == ["sides"]
    assert segment.check_masks(masks[:, :, ::-1], whole=True) == []
    assert [f.code for f in segment.check_masks(np.where(masks == 1, 0, masks), whole=True)] == ["one-lung"]


def test_what_is_no_chest_is_refused_unless_forced(tmp_path):
    volume = chest.draw()
    volume[(volume < -700) & (volume > -940)] = 30  # no lungs
    sitk.WriteImage(_image(volume), str(tmp_path / "scan.mha"))
    with pytest.raises(InputError, match="not a chest"):
        _run(tmp_path / "scan.mha", tmp_path / "out")
    network = Network("n", (56, 56), "0" * 64, "anatomy", _lopsided)
    result = segment.segment(tmp_path / "scan.mha", [network], options=segment.Options(force=True))
    assert any(f.code == "not-a-chest" and f.severity == "warning" for f in result.findings)


def test_a_wrong_unit_and_swapped_axes_are_refused_unless_forced(tmp_path):
    network = [fake_network.create((56, 56))]
    np.savez(tmp_path / "unit.npz", image=chest.draw(), spacing_zyx_mm=[0.006, 0.006, 0.006])
    square = np.pad(chest.draw(), ((0, 0), (4, 4), (0, 0)), constant_values=-1000)
    np.savez(tmp_path / "axes.npz", image=np.moveaxis(square, 0, 2))
    for name, match in (("unit", "its unit may not be mm"), ("axes", "move it to the front")):
        with pytest.raises(InputError, match=match):
            outputs.predict(tmp_path / f"{name}.npz", tmp_path / name, network)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["scans.csv"]
        options = segment.Options(force=True)
        outputs.predict(tmp_path / f"{name}.npz", tmp_path / name, network, options=options)
        assert (tmp_path / name / "prediction.json").is_file()


def test_weights_that_are_not_finite_give_one_line_and_no_mask(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw())

    def forward(images):
        return np.full((*images.shape, 4), np.nan, np.float32), None

    network = Network("n", (56, 56), "0" * 64, "anatomy", forward)
    with pytest.raises(InputError, match="not finite"):
        outputs.predict(tmp_path / "a.npz", tmp_path / "out", [network])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scans.csv"]


def test_a_network_of_airways_says_so(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw())
    network = Network("n", (56, 56), "0" * 64, "airway_as_nodule", fake_network.create().forward)
    result = segment.segment(tmp_path / "a.npz", [network])
    assert any("airway" in finding.text for finding in result.findings)


def _write_many(folder, count=3):
    folder.mkdir()
    for number in range(count):
        np.savez(folder / f"case{number}.npz", image=np.roll(chest.draw((9, 48, 56)), number, 1))
    (folder / "bad.nii.gz").write_bytes(b"no scan at all")


def test_many_scans_go_on_past_a_bad_one(tmp_path, capsys):
    _write_many(tmp_path / "in")
    rows = _run(tmp_path / "in", tmp_path / "out")
    assert [(row["scan"], row["status"]) for row in rows] == [
        ("bad", "failed"), ("case0", "done"), ("case1", "done"), ("case2", "done")
    ]  # fmt: skip
    assert rows_lib.print_rows(rows, tmp_path / "out") == 1
    text = capsys.readouterr()
    assert "3 of 4 scans done" in text.out and re.search(r"bad +scan: .*bad.nii.gz is damaged", text.err)
    with open(tmp_path / "out" / "scans.csv") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["failed", "done", "done", "done"]
    assert not (tmp_path / "out" / "bad" / "mask.nii.gz").exists()


def test_what_is_done_is_skipped_and_other_settings_are_refused(tmp_path):
    _write_many(tmp_path / "in", 2)
    _run(tmp_path / "in", tmp_path / "out")
    stamp = (tmp_path / "out" / "case0" / "mask.nii.gz").stat().st_mtime_ns
    (tmp_path / "out" / "case1" / "prediction.json").unlink()  # as if interrupted there
    rows = _run(tmp_path / "in", tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "done before", "done"]
    assert (tmp_path / "out" / "case0" / "mask.nii.gz").stat().st_mtime_ns == stamp
    rows = _run(tmp_path / "in", tmp_path / "out", flip=True)
    assert "differs in flip" in rows[1]["reason"]
    np.savez(tmp_path / "in" / "case0.npz", image=chest.draw((9, 48, 56))[::-1])
    assert "differs in input" in _run(tmp_path / "in", tmp_path / "out")[1]["reason"]
    assert (tmp_path / "out" / "case0" / "mask.nii.gz").stat().st_mtime_ns == stamp


_SLOW_RUN = """
import sys, time
sys.path.insert(0, {tests!r})
import fake_network
from auxseg.prediction import outputs, segment
from auxseg.runs.networks import Network

def forward(images):
    time.sleep(0.15)
    return fake_network.create().forward(images)

network = Network("n", (56, 56), "0" * 64, "anatomy", forward)
outputs.predict({source!r}, {output!r}, [network], options=segment.Options(batch_size=1))
"""


def test_a_killed_run_leaves_whole_scans_and_goes_on(tmp_path):
    """SIGKILL in the middle: what has prediction.json is whole; the next run clears up and completes."""
    _write_many(tmp_path / "in", 3)
    code = _SLOW_RUN.format(
        tests=os.path.dirname(os.path.dirname(__file__)),
        source=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "case0" / "prediction.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [path.parent.name for path in (tmp_path / "out").rglob("prediction.json")]
    assert done and len(done) < 3
    assert list((tmp_path / "out").rglob(".scratch-*"))
    rows = _run(tmp_path / "in", tmp_path / "out", batch_size=1)
    by_name = {row["scan"]: row["status"] for row in rows}
    assert all(by_name[name] == "done before" for name in done)
    assert sorted(by_name.values()).count("done") == 3 - len(done)
    assert not list((tmp_path / "out").rglob(".*"))


def test_two_processes_do_not_share_an_output(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw())
    with outputs._claimed(tmp_path / "out"), pytest.raises(InputError, match="another process"):
        _run(tmp_path / "a.npz", tmp_path / "out")


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd"])
def test_a_file_as_output_is_refused(tmp_path, name):
    np.savez(tmp_path / "a.npz", image=chest.draw())
    with pytest.raises(InputError, match="expected a folder"):
        _run(tmp_path / "a.npz", tmp_path / name)


def test_formats_that_a_scan_cannot_have(tmp_path):
    np.savez(tmp_path / "a.npz", image=chest.draw())
    with pytest.raises(InputError, match="needs a DICOM input"):
        _run(tmp_path / "a.npz", tmp_path / "out", formats=("dicom-seg",))
    with pytest.raises(InputError, match="--format: got 'stl'"):
        _run(tmp_path / "a.npz", tmp_path / "out", formats=("stl",))


def test_the_command(tmp_path):
    """The whole command on a run of a tiny network: a mask, then the same again, then one line for a "
    "mistake."""
    import jax

    from auxseg import models
    from auxseg.runs import checkpoints, run_folder
    from configs import base

    config = base.get_config()
    with config.unlocked():
        config.data.size = (32, 32)
        config.model.update({"base_width": 4, "depth": 1})
    model = models.create_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 1), np.float32))
    variables = jax.tree.map(lambda one: np.full(one.shape, 0.1, np.float32), dict(shapes))
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_folder.claim_config(workdir, config)
    checkpoints.save_best(workdir, step=1, variables=variables, progress={"epoch": 1})
    np.savez(tmp_path / "a.npz", image=chest.draw()[12])
    command = [sys.executable, "-m", "auxseg.predict", f"--workdir={workdir}", f"--input={tmp_path}/a.npz",
               f"--output={tmp_path}/out", "--force"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a: done")
    again = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert again.stdout.startswith("a: done before")
    wrong = subprocess.run(
        [*command, "--slice=9"], capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert wrong.stderr.splitlines()[-1].startswith("auxseg.predict: error: --output:")


def test_dicom_and_onnx_packages_are_needed_for_themselves_alone(tmp_path):
    """Without pydicom, highdicom and onnx: MetaImage is segmented, DICOM says in one line what to install."""
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    (tmp_path / "one.dcm").write_bytes(bytes(128) + b"DICM")
    code = f"""
import sys
for name in ("pydicom", "highdicom", "onnx", "onnxruntime"):
    sys.modules[name] = None
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
import fake_network
from auxseg.prediction import outputs
folder, network = {str(tmp_path)!r}, [fake_network.create((56, 56))]
outputs.predict(folder + "/scan.mha", folder + "/out", network)
try:
    outputs.predict(folder + "/one.dcm", folder + "/out2", network)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "prediction.json").is_file()
    assert done.stdout.count("\n") == 1 and "pip install pydicom" in done.stdout


@pytest.mark.parametrize("form", (*FORMATS, "npz"))
def test_real_scans_through_every_format_and_back(real_data, tmp_path, form):
    """The mask of the real chest, written in each format, lies on the voxels of the scan in SimpleITK."""
    path = real_data / "cip" / "ct-64.nrrd"
    image = sitk.ReadImage(str(path))
    network = fake_network.create((128, 128))
    expected = segment.segment(path, [network]).masks
    name = "scan.nii.gz" if form == "npz" else f"scan.{form}"
    sitk.WriteImage(image, str(tmp_path / name))
    outputs.predict(tmp_path / name, tmp_path / "out", [network], formats=(form,))
    if form == "npz":
        with np.load(tmp_path / "out" / "mask.npz") as arrays:
            mask = arrays["mask"]
    else:
        _same_grid(sitk.ReadImage(str(tmp_path / "out" / f"mask.{form}")), image, atol=1e-4)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"mask.{form}")))
    np.testing.assert_array_equal(mask, expected)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(real_data / "cip" / "lm-64.nrrd")))
    # In the label map 9-11 are the left lung's thirds, 12-14 the right lung's, and 512 more for vessels.
    for value, thirds in ((1, (9, 10, 11)), (2, (12, 13, 14))):
        reference = np.isin(truth % 256, thirds)
        assert 2 * ((mask == value) & reference).sum() / ((mask == value).sum() + reference.sum()) > 0.85


@pytest.mark.parametrize("turn", TURNS)
def test_turned_copies_of_a_real_scan(real_data, tmp_path, turn):
    image = sitk.ReadImage(str(real_data / "cip" / "ct-64.nrrd"))
    network = fake_network.create((128, 128))
    expected = segment.segment(real_data / "cip" / "ct-64.nrrd", [network]).masks
    turned = _turn(image, turn)
    sitk.WriteImage(turned, str(tmp_path / "scan.nii.gz"))
    outputs.predict(tmp_path / "scan.nii.gz", tmp_path / "out", [network], formats=("mha",))
    mask = sitk.ReadImage(str(tmp_path / "out" / "mask.mha"))
    _same_grid(mask, turned, atol=1e-4)
    np.testing.assert_array_equal(_in_patient(mask), expected)


def test_real_middle_slices(real_data, tmp_path):
    """Real slices through NPZ, MetaImage and NIfTI: one mask, near the reference."""
    for name in ("ID_0003", "ID_0100", "ID_0206"):
        path = real_data / "luna16_middle" / f"{name}.npz"
        with np.load(path) as arrays:
            image, truth = arrays["image"], arrays["mask"]
        network = fake_network.create((320, 320))
        first = segment.segment(path, [network]).masks
        for suffix in ("mhd", "nii.gz"):
            sitk.WriteImage(_image(image[None], (0.7, 0.7, 2.5)), str(tmp_path / f"{name}.{suffix}"))
            again = segment.segment(tmp_path / f"{name}.{suffix}", [network]).masks
            np.testing.assert_array_equal(again, first)
        lungs, reference = np.isin(first[0], (1, 2)), np.isin(truth, (1, 2))
        assert 2 * (lungs & reference).sum() / (lungs.sum() + reference.sum()) > 0.85


def test_stored_masks_fit_the_file(tmp_path):
    image = _turn(_image(chest.draw()), "coronal")
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    result = segment.segment(tmp_path / "scan.mha", [fake_network.create((56, 56))])
    assert result.stored_masks.shape == image.GetSize()[::-1] == result.geometry.shape_zyx
    assert writers.is_orthogonal(result.geometry)
    assert geometry.geometry_difference(result.geometry, result.scan.stored) == ""
    assert pathlib.Path(result.scan.path).name == "scan.mha"


def test_the_page_has_rows_that_fit_and_the_csv_all(tmp_path):
    sitk.WriteImage(_image(chest.draw()), str(tmp_path / "scan.mha"))
    result = segment.segment(tmp_path / "scan.mha", [fake_network.create((56, 56))])
    lungs = page_rows.shorten_structures(result.measurements)
    assert [row["structure"] for row in lungs] == ["left lung", "right lung"]
    nodule, full = page_rows.shorten_nodules(result.measurements)[0], result.measurements[2]
    assert nodule["structure"] == "nodule 1" and nodule["inside"] == "left lung"
    assert float(nodule["volume, mm3"]) == pytest.approx(full["volume_mm3"], rel=0.01)
    assert float(nodule["long axis, mm"]) >= float(nodule["short axis, mm"]) > 10
    assert nodule["slices"] == f"{full['first_slice']} to {full['last_slice']}"
    assert max(len(str(value)) for row in (*lungs, nodule) for value in row.values()) < 20
    (unknown,) = page_rows.shorten_nodules([{**full, **dict.fromkeys(("x_mm", "volume_mm3"), np.nan)}])
    assert (unknown["volume, mm3"], unknown["centre x, y, z, mm (LPS)"]) == ("", "")
    (wide,) = page_rows.shorten_nodules([{**full, "kind": "mass", "probability": 0.8761}])
    assert (wide["structure"], wide["probability"]) == ("mass 1", "0.876")
