"""Nodules of whole scans judged from the folders that predict writes: counts, rates and outlines by hand."""

import dataclasses
import json
import types

import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct.geometry import Geometry
from auxseg.evaluation import detection
from auxseg.prediction import box, nodules, outputs
from auxseg.report import froc_page
from auxseg.scoring import froc

HEAD = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def write_prediction(folder, uid, findings, *, least=0.5, mask=None):
    """Writes what `predict` leaves of a scan, as far as it is read here."""
    folder.mkdir(parents=True)
    froc.write_candidates(folder / "candidates.csv", {uid: findings})
    names = ["candidates.csv"]
    if mask is not None:
        sitk.WriteImage(mask, str(folder / "mask.nii.gz"))
        names.append("mask.nii.gz")
    files.write_json(folder / "prediction.json", {
        "name": folder.name, "seriesuid": uid, "least_probability": least, "files": names,
        "box": {"version": "7", "sha256": "f" * 64},
    })  # fmt: skip


def write_three(folder):
    """Two scans with one nodule each, found at 0.9 and at 0.3; three false ones; a third scan that finds nothing."""
    write_prediction(folder / "a", "1.1", [[1, 0, 0, 0.9], [50, 0, 0, 0.7], [90, 0, 0, 0.2]])
    write_prediction(folder / "b", "1.2", [[0, 12, 0, 0.3], [80, 0, 0, 0.6], [70, 0, 0, 0.8]])
    write_prediction(folder / "c", "1.3", [])


def test_counts_of_a_handful(tmp_path):
    write_three(tmp_path / "out")
    (tmp_path / "nodules.csv").write_text(HEAD + "1.1,0,0,0,10\n1.2,0,10,0,6\n9.9,0,0,0,8\n")
    (tmp_path / "excluded.csv").write_text(HEAD + "1.2,71,0,0,-1\n")  # takes the one at 0.8
    scores, page = detection.judge(
        tmp_path / "out", tmp_path / "nodules.csv", tmp_path / "judged", excluded=tmp_path / "excluded.csv"
    )
    rows = {row["scan"]: (row["nodules"], row["found"], row["false"]) for row in scores["scans"]}
    assert rows == {"a": (1, 1, 1), "b": (1, 0, 1), "c": (0, 0, 0)}
    assert [(row["probability"], row["found"]) for row in scores["nodules"]] == [(0.9, True), (0.3, False)]
    assert scores["scores"]["num_false"] == 3 and scores["not_predicted"] == 1
    # Three scans: one false one is 1/3 a scan, so that at 1/4 none is allowed and at 1 all three.
    assert scores["scores"]["found_at"] == dict(
        zip(("0.125", "0.25", "0.5", "1", "2", "4", "8"), [1] * 3 + [2] * 4)
    )
    assert scores["scores"]["cpm"] is None
    said = froc_page.describe(scores)
    assert said[0] == "1 of 2 nodules found, and 2 false ones in 3 scans, as predicted."
    assert "Fewer than 10" in said[1] and said[2].endswith("left out: 1.")
    text = page.read_text(encoding="utf-8")
    assert "CPM 0" not in text and "1 of 2" in text and "data:image/png" in text and "f" * 64 in text
    back = json.loads((tmp_path / "judged" / "scores.json").read_text())
    assert back["curve"]["false_per_scan"] == pytest.approx([0, 0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert len(files.read_csv(tmp_path / "judged" / "nodules.csv")) == 2


def test_rates_of_many_scans(tmp_path):
    lines = [HEAD]
    for number in range(12):
        uid = f"1.{number}"
        write_prediction(tmp_path / "out" / uid, uid, [[0, 0, 0, 0.9]] if number < 9 else [[99, 0, 0, 0.5]])
        lines.append(f"{uid},1,1,1,8\n")
    (tmp_path / "nodules.csv").write_text("".join(lines))
    scores, page = detection.judge(tmp_path / "out", tmp_path / "nodules.csv", tmp_path / "judged")
    assert scores["scores"]["cpm"] == pytest.approx(0.75)
    assert froc_page.describe(scores)[1].startswith("CPM 0.750 [")
    assert "0.750 [" in page.read_text(encoding="utf-8")


def test_outlines_of_a_nodule_by_hand():
    """Of 8 voxels 4 are found with 2 beside them in one piece, and in another 1 with 1 beside: Dice 10 / 16."""
    truth, predicted = np.zeros((2, 3, 8, 9), np.uint8)
    truth[1, 2:4, 2:6] = 3
    truth[1, 7, 0] = 3  # another nodule
    predicted[1, 2:4, 1:4] = 3
    predicted[1, 3:5, 5] = 3
    grid = Geometry((9, 8, 3), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    found = detection.compare_outlines(predicted, truth, grid, (3.5, 2.5, 2.0), 4.0)
    assert found["dice"] == pytest.approx(2 * 5 / (8 + 8))
    assert (found["volume_mm3"], found["reference_volume_mm3"]) == (16.0, 16.0)
    assert found["volume_error"] == 0.0
    missed = detection.compare_outlines(np.zeros_like(truth), truth, grid, (3.5, 2.5, 2.0), 4.0)
    assert (missed["dice"], missed["volume_error"]) == (0.0, -1.0)
    nothing = detection.compare_outlines(predicted, truth, grid, (3.5, 2.5, 4.0), 2.0)
    assert np.isnan(nothing["dice"])


def test_masks_beside_the_annotations(tmp_path):
    predicted, truth = np.zeros((2, 3, 8, 9), np.uint8)
    truth[1, 2:4, 2:6], predicted[1, 2:4, 2:4] = 3, 3
    write_prediction(tmp_path / "out" / "a", "1.1", [[3, 2, 1, 0.9]], mask=sitk.GetImageFromArray(predicted))
    (tmp_path / "masks").mkdir()
    (tmp_path / "nodules.csv").write_text(HEAD + "1.1,3.5,2.5,1,5\n")
    judge = (tmp_path / "out", tmp_path / "nodules.csv", tmp_path / "judged")
    with pytest.raises(InputError, match="--reference: no mask a.mhd in"):
        detection.judge(*judge, reference=tmp_path / "masks")
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(tmp_path / "masks" / "a.nrrd"))
    (row,) = detection.judge(*judge, reference=tmp_path / "masks")[0]["nodules"]
    assert row["dice"] == pytest.approx(2 * 4 / 12) and row["volume_error"] == pytest.approx(-0.5)
    sitk.WriteImage(sitk.GetImageFromArray(truth[:2]), str(tmp_path / "masks" / "a.nrrd"))
    with pytest.raises(InputError, match="another grid"):
        detection.judge(*judge, reference=tmp_path / "masks")


def test_what_cannot_be_judged_is_said(tmp_path):
    (tmp_path / "nodules.csv").write_text(HEAD + "9.9,0,0,0,8\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="holds no prediction.json"):
        detection.read_predictions(tmp_path / "out")
    write_three(tmp_path / "out")
    with pytest.raises(InputError, match="names none of the 3 predicted scans, such as 1.1"):
        detection.judge(tmp_path / "out", tmp_path / "nodules.csv", tmp_path / "judged")
    assert not (tmp_path / "judged").exists()
    write_prediction(tmp_path / "out" / "again", "1.1", [])
    with pytest.raises(InputError, match="both of the scan 1.1"):
        detection.read_predictions(tmp_path / "out")
    (tmp_path / "out" / "again" / "candidates.csv").unlink()
    with pytest.raises(InputError, match="no candidates.csv; predict again, without --workdir"):
        detection.read_predictions(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seriesuid", [1]),
        ("name", 5),
        ("least_probability", "x"),
        ("files", ["a", 5]),
        ("box", {"version": "7"}),
    ],
)
def test_a_damaged_prediction_json_is_one_line(tmp_path, name, value):
    write_prediction(tmp_path / "a", "1.1", [])
    about = files.read_object(tmp_path / "a" / "prediction.json")
    files.write_json(tmp_path / "a" / "prediction.json", about | {name: value})
    with pytest.raises(InputError, match=f"prediction.json: {name} is none of auxseg's, .*predict again"):
        detection.read_predictions(tmp_path)


def test_predict_writes_what_is_judged(tmp_path, monkeypatch):
    """Candidates in millimetres, the dropped ones too, in the rows and columns of the whole slice."""
    image = sitk.GetImageFromArray(chest.draw())
    image.SetSpacing((6.0, 6.0, 6.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))

    def find(volume, lungs, spacing_zyx_mm, networks, *, false_per_scan):
        mask = np.zeros(lungs.shape, np.uint8)
        place = np.argwhere(lungs == 1)[500]
        mask[tuple(place)] = 1
        kept = {"kept": True, "probability": 0.9, "centre_zyx": tuple(place)}
        return nodules.Found(mask, [kept, kept | {"kept": False, "probability": 0.1}], 0.4)

    monkeypatch.setattr(nodules, "find_nodules", find)
    lungs = dataclasses.replace(fake_network.create((56, 56)), field="body")
    inside = box.Box("7", "f" * 64, lungs, types.SimpleNamespace(about={}))
    outputs.predict(tmp_path / "scan.mha", tmp_path / "out", [lungs], box=inside)
    (one,) = detection.read_predictions(tmp_path / "out")
    assert (one.uid, one.least_probability) == ("scan", 0.4) and one.findings[:, 3].tolist() == [0.9, 0.1]
    measured = files.read_csv(tmp_path / "out" / "measurements.csv")
    found = [row for row in measured if row["probability"] == pytest.approx(0.9)]
    assert any(np.allclose([row[f"{axis}_mm"] for axis in "xyz"], one.findings[0, :3]) for row in found)
    assert one.about["box"]["version"] == "7"
