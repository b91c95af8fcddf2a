"""Tables of an evaluation: counts beside means, worst values kept, files that read back."""

import json
import math

import made_up_run
import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.report import tables
from auxseg.scoring import case_scores


@pytest.fixture(scope="module")
def evaluation():
    return made_up_run.make_evaluation()[0]


@pytest.fixture(scope="module")
def without_right_lung():
    return made_up_run.make_evaluation(made_up_run.lose_a_lung)[0]


def test_counts_stand_beside_the_mean(evaluation):
    row = tables.find_score(tables.score_table(evaluation), "nodule", "Dice")
    values = [each["nodule_dice"] for each in evaluation.rows if each["nodule_reference_px"]]
    assert row["mean"] == pytest.approx(np.mean(values)) and row["cases"] == len(values) == 12
    assert (row["patients"], row["missed"], row["false_positive_cases"]) == (9, 0, 0)
    assert row["mean_of_found"] == pytest.approx(row["mean"])
    assert row["low"] < row["mean"] < row["high"] and row["worst"] == min(values)


def test_missed_cases_stay_in_the_mean(without_right_lung):
    table = tables.score_table(without_right_lung)
    dice, hd95 = (tables.find_score(table, "right_lung", title) for title in ("Dice", "HD95 mm"))
    assert dice["mean"] == 0 and dice["cases"] == dice["missed"] == 18
    assert math.isnan(dice["mean_of_found"])
    assert hd95["mean"] == pytest.approx(math.hypot(96 * 0.9, 96 * 1.1))


def test_false_positive_cases_are_counted_apart():
    def add_nodule(prediction, seed):
        changed = prediction.copy()
        changed[:3, :3] = 3
        return changed

    evaluation, _ = made_up_run.make_evaluation(add_nodule, num_cases=6)
    row = tables.find_score(tables.score_table(evaluation), "nodule", "Dice")
    assert row["cases"] == 4 and row["false_positive_cases"] == 2
    total = tables.object_table(evaluation)[-1]
    assert total["false"] == 6 and total["false_per_slice"] == 1.0 and total["size"] == "all"


def test_distances_in_pixels_stand_in_other_rows():
    known, _ = made_up_run.make_evaluation(num_cases=3)
    unknown, _ = made_up_run.make_evaluation(num_cases=2, spacing=(math.nan, math.nan))
    titles = [row["score"] for row in tables.score_table(case_scores.merge(known, unknown))]
    assert "HD95 mm" in titles and "HD95 px" in titles
    only = [row["score"] for row in tables.score_table(unknown)]
    assert "HD95 px" in only and "HD95 mm" not in only and "Surface Dice at 1 px" in only


def test_pooled_dsc_is_pixel_accuracy_and_hides_a_nodule():
    def lose_nodules(prediction, seed):
        return np.where(prediction == 3, 2, prediction).astype(np.uint8)

    evaluation, _ = made_up_run.make_evaluation(lose_nodules)
    pooled = {(row["score"], row["over"]): row["value"] for row in tables.pooled_table(evaluation)}
    everything = "all classes with background"
    assert pooled["pooled DSC (paper)", everything] == pooled["pooled accuracy (paper)", everything] > 0.97
    assert pooled["pooled Dice", "nodule"] == 0
    right = sum(row["accuracy"] * row["rows"] * row["columns"] for row in evaluation.rows)
    assert pooled["pooled DSC (paper)", everything] == pytest.approx(right / (18 * 96 * 96))


def test_confusion_sums_to_all_pixels(evaluation):
    assert tables.confusion(evaluation).sum() == 18 * 96 * 96


def test_object_table_by_size(evaluation):
    table = tables.object_table(evaluation)
    assert sum(row["nodules"] for row in table[:-1]) == table[-1]["nodules"] == 12
    assert table[-1]["sensitivity"] == 1.0 and table[-1]["f1"] == 1.0


def test_agreement_in_pixels_and_mm2(evaluation):
    table = tables.agreement_table(evaluation)
    rows = {(row["class"], row["unit"]): row for row in table}
    assert rows["left_lung", "mm2"]["bias"] == pytest.approx(rows["left_lung", "px"]["bias"] * 0.9 * 1.1)
    assert rows["left_lung", "px"]["bias"] < 0 and rows["nodule", "px"]["cases"] == 12


def test_lung_and_nodule_dice_are_paired(evaluation):
    lungs, nodules = tables.dice_pairs(evaluation)
    assert len(lungs) == len(nodules) == 12 and (lungs > 0.9).all()


def test_no_probabilities_no_calibration():
    evaluation, _ = made_up_run.make_evaluation(num_cases=2, probabilities=False)
    assert tables.calibration_table(evaluation) == []


def test_csv_reads_back(tmp_path, evaluation):
    files.write_csv(tmp_path / "deep" / "cases.csv", list(evaluation.rows))
    rows = files.read_csv(tmp_path / "deep" / "cases.csv")
    assert len(rows) == 18 and rows[0]["case_id"] == "case_000"
    for ours, read in zip(evaluation.rows, rows, strict=True):
        for key, value in ours.items():
            assert read[key] == value or (math.isnan(value) and math.isnan(read[key]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cases.csv"]


def test_ids_that_look_like_numbers_stay_text(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"case_id": "007", "dice": 0.5}])
    assert files.read_csv(tmp_path / "a.csv") == [{"case_id": "007", "dice": 0.5}]


def test_damaged_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("case_id,dice\n007\n")
    with pytest.raises(InputError, match="line 2: got another number of cells"):
        files.read_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        files.read_csv(tmp_path / "none.csv")


def test_json_is_strict(tmp_path):
    files.write_json(tmp_path / "a.json", {"nan": math.nan, "inf": [np.float32(np.inf)], "n": np.int64(3)})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "nan": None,
        "inf": [None],
        "n": 3,
    }


def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "a.txt", "x")
