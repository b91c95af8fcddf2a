"""Masks of any tool against reference masks, as folders on disk: names, label maps, formats, what could not be scored."""

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.evaluation import scan_masks

SHAPE = (6, 24, 30)


def draw(nodule=True):
    """Returns uint8 canonical: left lung 3x10x8 voxels, right lung 3x10x6, a nodule of 8 voxels beside the left one."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 5:15, 18:26], mask[1:4, 5:15, 4:10] = 1, 2
    if nodule:
        mask[2:4, 16:18, 20:22] = 3
    return mask


def write(path, mask, orientation="LPS"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))


def swap(mask):
    """Returns a mask in lungmask's values: 1 the right lung, 2 the left one, nothing else."""
    return np.array([0, 2, 1, 0], np.uint8)[mask]


def test_tools_of_three_conventions_stand_on_one_page(tmp_path):
    """Ours as predict writes it, lungmask's values in other orientation and format, TotalSegmentator's structures."""
    shifted = np.roll(draw(), 1, axis=1)
    for name in ("a", "b"):
        write(tmp_path / "labels" / f"{name}.nii.gz", draw())
        write(tmp_path / "ours" / name / "mask.nii.gz", draw() if name == "a" else shifted)
        write(tmp_path / "ours" / name / "probability_nodule.nii.gz", draw())
        files.write_json(
            tmp_path / "ours" / name / "prediction.json",
            {"name": name, "files": ["overview.png", "mask.nii.gz"]},
        )
        write(tmp_path / "lungmask" / f"{name}_lungs.nrrd", swap(draw()), "RAS")
        for structure, value in (("lung_upper_lobe_left", 1), ("lung_lower_lobe_right", 2)):
            write(tmp_path / "total" / name / f"{structure}.nii.gz", (draw() == value).astype(np.uint8))
    scores, page = scan_masks.judge(
        tmp_path / "labels",
        [tmp_path / "ours", tmp_path / "lungmask", tmp_path / "total"],
        tmp_path / "judged",
        prediction_maps=["", "lungmask", "totalsegmentator"],
    )
    dice = {(row["tool"], row["scan"], row["class"]): row["dice"] for row in scores["rows"]}
    assert (
        dice["ours", "a", "nodule"]
        == dice["lungmask", "b", "left_lung"]
        == dice["total", "a", "right_lung"]
        == 1.0
    )
    # Moved by a row of 10: 9 of them in both; no nodule lies in a lung. The nodule has 2 rows, of which one.
    assert dice["ours", "b", "right_lung"] == pytest.approx(0.9) and dice["ours", "b", "nodule"] == 0.5
    assert {row["class"] for row in scores["rows"] if row["tool"] != "ours"} == {"left_lung", "right_lung"}
    assert scores["notes"] == [
        f"{tool}: no prediction marks a nodule; it is not scored." for tool in ("lungmask", "total")
    ]
    assert [(row["scan"], row["kind"], row["tool"]) for row in scores["nodules"]] == [
        ("a", "found", "ours"),
        ("b", "found", "ours"),
    ]
    assert {row["what"] for row in scores["scans"]} == {"scored"} and len(scores["scans"]) == 6
    text = page.read_text()
    assert text.count("<figure>") == 6 and "Masks of whole scans: ours, lungmask, total" in text
    assert len(files.read_csv(tmp_path / "judged" / "scores.csv")) == 2 * 3 + 2 * 2 + 2 * 2


def test_what_could_not_be_scored_is_named(tmp_path):
    write(tmp_path / "labels" / "a.nii.gz", draw()), write(tmp_path / "labels" / "b.nii.gz", draw())
    write(tmp_path / "labels" / "c.nii.gz", draw()), write(tmp_path / "out" / "z.nii.gz", draw())
    write(tmp_path / "out" / "a.nii.gz", draw()), write(tmp_path / "out" / "b.nii.gz", draw()[:5])
    scores, page = scan_masks.judge(tmp_path / "labels", [tmp_path / "out"], tmp_path / "judged")
    said = {row["scan"]: (row["what"], row["why"]) for row in scores["scans"]}
    assert (
        said["a"] == ("scored", "")
        and said["b"][0] == "failed"
        and "b.nii.gz lies on another grid" in said["b"][1]
    )
    assert said["c"] == ("not scored", "no prediction has its name")
    assert said["z"] == ("not scored", "no reference has its name")
    assert "no reference has its name" in page.read_text()


def test_lungs_that_the_reference_does_not_mark_are_not_judged(tmp_path):
    """As the Medical Decathlon's tumours: around them the reference knows nothing, not even that there is no nodule."""
    reference = (draw() == 3).astype(np.uint8)
    write(tmp_path / "set" / "labelsTr" / "a.nii.gz", reference)
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "cancer"}}))
    write(tmp_path / "out" / "a.nii.gz", draw())
    scores, _ = scan_masks.judge(tmp_path / "set" / "labelsTr", [tmp_path / "out"], tmp_path / "judged")
    assert [(row["class"], row["dice"]) for row in scores["rows"]] == [("nodule", 1.0)]
    assert scores["notes"] == [
        f"out: no reference marks a {side} lung; it is not scored." for side in ("left", "right")
    ]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "--prediction: .*nowhere does not exist"),
        ("empty", "holds no mask"),
        ("other", r"no scan could be scored: no prediction has its name \(and 1 more like this"),
        (
            "values",
            "no scan could be scored: --prediction_label_map: does not say what the value 9 of .*a.nii.gz is",
        ),
    ],
)
def test_folders_that_cannot_be_judged(tmp_path, folder, message):
    write(tmp_path / "labels" / "a.nii.gz", draw()), write(tmp_path / "other" / "x.nii.gz", draw())
    (tmp_path / "empty").mkdir()
    write(tmp_path / "values" / "a.nii.gz", draw() * 0 + 9)
    with pytest.raises(InputError, match=message):
        scan_masks.judge(tmp_path / "labels", [tmp_path / folder], tmp_path / "judged")


def test_the_command(tmp_path):
    write(tmp_path / "labels" / "a.nii.gz", draw()), write(tmp_path / "out" / "a.nii.gz", swap(draw()))
    command = [
        sys.executable,
        "-m",
        "auxseg.evaluate",
        f"--reference={tmp_path / 'labels'}",
        f"--prediction={tmp_path / 'out'}",
    ]
    done = subprocess.run(
        [*command, "--prediction_label_map=lungmask"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    page = tmp_path / "out" / "evaluation" / "index.html"
    assert done.stdout.splitlines()[-1] == f"report: {page}" and page.is_file()
    assert "out, left lung: mean Dice 1.000, HD95 0.0 mm (1 scans)" in done.stdout
    refused = subprocess.run(command[:-1], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "expected a folder of masks for each" in refused.stderr
