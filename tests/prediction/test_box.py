"""The networks in the box: whole, theirs by checksum, and what predict takes where no run is named."""

import dataclasses
import json
import shutil
import types

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg import predict
from auxseg.base.errors import InputError
from auxseg.evaluation import whole_scans
from auxseg.prediction import box, nodules, outputs, segment
from auxseg.runs import networks


@pytest.fixture(scope="module")
def loaded():
    return box.load_box()


def test_the_box_is_whole_and_its_network_sees_the_body(loaded):
    assert loaded.lungs.field == "body" and loaded.lungs.size_yx == (256, 256)
    assert loaded.version in loaded.lungs.name and loaded.checksum[:12] in str(loaded)
    names = set(json.loads((box.FOLDER / box.FILE).read_text())["files"])
    assert {"lungs/bundle.json", "lungs/weights.npz"} <= names
    assert sum(path.stat().st_size for path in box.FOLDER.rglob("*") if path.is_file()) < 8e6


def test_no_file_of_the_box_names_a_folder_of_the_machine_that_made_it():
    settings = json.loads((box.FOLDER / "lungs" / "bundle.json").read_text())["config"]
    assert settings["data"]["dir"] is settings["data"]["extra_dir"] is settings["train"]["init_from"] is None


def test_a_changed_or_missing_file_is_found(tmp_path):
    shutil.copytree(box.FOLDER, tmp_path / "box")
    weights = tmp_path / "box" / "lungs" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="missing or changed"):
        box.load_box(tmp_path / "box")
    weights.unlink()
    with pytest.raises(InputError, match="missing or changed"):
        box.load_box(tmp_path / "box")
    (tmp_path / "box" / box.FILE).unlink()
    with pytest.raises(InputError, match="--workdir: not given"):
        box.load_box(tmp_path / "box")


def test_texts_may_change_and_another_format_is_refused(tmp_path):
    (tmp_path / "lungs").mkdir()
    (tmp_path / "lungs" / "a.bin").write_bytes(b"a")
    (tmp_path / "MODEL_CARD.md").write_text("a card")
    box.write_box(tmp_path, "7")
    about = json.loads((tmp_path / box.FILE).read_text())
    assert about["version"] == "7" and list(about["files"]) == ["lungs/a.bin"]
    (tmp_path / box.FILE).write_text(json.dumps({**about, "format": "another"}))
    with pytest.raises(InputError, match="expected a box of format"):
        box.load_box(tmp_path)


def test_predict_takes_the_box_where_no_run_is_named(loaded, capsys):
    networks, named = predict.load(None)
    assert named.checksum == loaded.checksum and networks[0].checksum == loaded.lungs.checksum
    assert capsys.readouterr().out.startswith("networks in the box, version ")


def test_programs_are_made_ready_for_the_batches_that_come(loaded):
    asked = []
    kept = networks._KeptForward(types.SimpleNamespace(get_ready=lambda *what: asked.append(what)))
    network = dataclasses.replace(loaded.lungs, forward=kept)
    for one in (network, dataclasses.replace(network, slab=5), dataclasses.replace(network, scale=0.7)):
        one.get_ready(3)
    assert asked == [((3, 256, 256), np.int16), ((3, 256, 256, 5), np.int16)]
    fails = types.SimpleNamespace(get_ready=None)
    for chosen, expected in (("all", 4), ("middle", 1), ("7", 1)):
        predict.get_ready([network, fails], segment.Options(batch_size=4, slices=chosen)).join()
        assert asked.pop()[0][0] == expected


SECOND = types.SimpleNamespace(about={"operating_points_nodules": 4})
"""Stands for the networks of both looks."""


def find_two(volume, lungs, spacing_zyx_mm, networks, *, false_per_scan):
    """Returns one nodule kept in the left lung, and one that is not."""
    assert (
        false_per_scan == 0.5
        and networks is SECOND
        and volume.shape == lungs.shape
        and spacing_zyx_mm == (6.0, 6.0, 6.0)
    )
    mask = np.zeros(lungs.shape, np.uint8)
    mask[tuple(np.argwhere(lungs == 1)[500])] = 1
    found = [{"kept": True, "probability": 0.9}, {"kept": False, "probability": 0.1}]
    return nodules.Found(mask, found, 0.4, 1.26)


@pytest.fixture
def scan(tmp_path):
    image = sitk.GetImageFromArray(chest.draw())
    image.SetSpacing((6.0, 6.0, 6.0))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    return tmp_path / "scan.mha"


def test_the_second_look_marks_what_it_keeps(scan, monkeypatch):
    monkeypatch.setattr(nodules, "find_nodules", find_two)
    first = fake_network.create((56, 56))
    options = segment.Options(false_per_scan=0.5)
    result = segment.segment(scan, [first], options=options, second=SECOND)
    before = segment.segment(scan, [first]).masks
    added = np.argwhere((result.masks == 3) & (before != 3))
    assert added.tolist() == [np.argwhere(result.found.mask).tolist()[0]]
    found = [row for row in result.measurements if row["kind"] == "nodule"]
    assert [row["probability"] for row in found if row["slice"] == added[0][0] and row["voxels"] == 1] == [
        0.9
    ]
    (said,) = [one.text for one in result.findings if one.code == "nodules"]
    assert said.startswith("1 of 2 candidates kept, with a probability of 0.40 or more; the threshold was")
    assert "chosen on 4 nodules, fewer than 10" in said
    (soft,) = [one for one in result.findings if one.code == "soft-scan"]
    assert soft.severity == "warning" and "added 1.3 times" in soft.text


def test_lungs_that_are_not_cleaned_are_checked_all_the_same(scan):
    def forward(images):
        probabilities = fake_network.threshold_probabilities(images)
        probabilities[:, :8, 20:40] = (0, 1, 0, 0)  # air above the body
        return probabilities, probabilities.any((1, 2))

    network = dataclasses.replace(fake_network.create((56, 56)), forward=forward)
    options = segment.Options(clean_lungs=False, tuned_on=9)
    result = segment.segment(scan, [network], options=options)
    said = {one.code: one.text for one in result.findings if one.severity == "warning"}
    assert "outside the body, as it stays without --clean_lungs" in said["outside"]
    assert "chosen on 9 nodules, fewer than 10" in said["threshold"]
    assert "outside" in [one.code for one in segment.segment(scan, [network]).findings]


def test_a_single_slice_has_no_second_look_and_says_so(scan):
    options = segment.Options(slices="middle")
    result = segment.segment(scan, [fake_network.create((56, 56))], options=options, second=SECOND)
    assert result.found is None and "no-nodules" in [one.code for one in result.findings]


def test_a_box_without_a_second_look_says_that_no_nodule_was_looked_for(scan, tmp_path):
    lungs = fake_network.create((56, 56))
    inside = box.Box("7", "f" * 64, lungs, None)
    (row,) = outputs.predict(scan, tmp_path / "out", [lungs], box=inside)
    assert "no nodule was looked for" in row["reason"]
    about = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert about["box"] == {"version": "7", "sha256": "f" * 64}


def test_the_box_finds_the_lungs_of_a_real_scan_whatever_lies_around(real_data, tmp_path, loaded):
    """A chest of 64x64 pixels, and the same with twice its field: Dice with its label map, and one mask."""
    image = sitk.ReadImage(str(real_data / "cip" / "ct-64.nrrd"))
    wide = sitk.ConstantPad(image, (32, 32, 0), (32, 32, 0), -1024)
    sitk.WriteImage(wide, str(tmp_path / "wide.nrrd"))
    mask = segment.segment(real_data / "cip" / "ct-64.nrrd", [loaded.lungs]).masks
    again = segment.segment(tmp_path / "wide.nrrd", [loaded.lungs]).masks
    np.testing.assert_array_equal(again[:, 32:-32, 32:-32], mask)
    truth = sitk.GetArrayFromImage(
        sitk.DICOMOrient(sitk.ReadImage(str(real_data / "cip" / "lm-64.nrrd")), "LPS")
    )
    for value, thirds in ((1, (9, 10, 11)), (2, (12, 13, 14))):
        reference = np.isin(truth % 256, thirds)
        assert 2 * ((mask == value) & reference).sum() / ((mask == value).sum() + reference.sum()) > 0.9


def test_the_box_segments_a_real_dicom_scan(real_data, loaded):
    """30 slices of 8 mm with a mass, which the network has trained on: that all parts fit, not how good it is."""
    path = real_data / "scans" / "Lung_Dx-A0002-B70f"
    result = segment.segment(path, [loaded.lungs])
    labels = whole_scans.read_labels(f"{path}_lungs.nii.gz", result.scan, shift_yx=(-1, -1))
    boxes = whole_scans.read_boxes(real_data / "scans" / "Lung_Dx_boxes.csv", path.name)
    whole_scans.leave_out(labels, boxes, result.scan)
    scores = whole_scans.score_lungs(result.masks, labels, result.scan.geometry.spacing_zyx_mm)
    assert min(scores["left_dice"], scores["right_dice"]) > 0.98
    assert scores["far_outside_ml"] < 10 and scores["airway_share"] < 0.1
    assert scores["left_pieces"] == scores["right_pieces"] == 1
