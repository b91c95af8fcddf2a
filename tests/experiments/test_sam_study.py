"""Boxes, their jitter, and the table, with a tiny SAM of random weights on made-up cases."""

import fakes
import numpy as np
import pytest
import tiny_sam

from auxseg.base import files
from auxseg.base.errors import InputError
from experiments.sam import study
from experiments.studies import runner


def test_boxes_by_hand():
    mask = np.zeros((8, 10), np.uint8)
    mask[1:3, 2:5], mask[6, 8] = 1, 1
    mask[4, 4], mask[5, 5], mask[0, 0] = 3, 3, 3
    np.testing.assert_array_equal(study.find_boxes(mask, "left_lung"), [[2, 1, 8, 6]])
    np.testing.assert_array_equal(study.find_boxes(mask, "nodule"), [[0, 0, 0, 0], [4, 4, 5, 5]])
    assert study.find_boxes(mask, "right_lung").shape == (0, 4)


def test_jitter_stays_within_its_share_and_the_image():
    boxes = np.tile(np.array([[0, 10, 19, 29]], np.float32), (200, 1))
    moved = study.jitter(boxes, 0.1, np.random.default_rng(0), (40, 40))
    assert (np.abs(moved - boxes) <= 2).all() and (np.abs(moved - boxes) > 1).any(0).all()
    assert (moved >= 0).all() and (moved[:, :2] <= moved[:, 2:]).all()
    wild = study.jitter(boxes, 1.0, np.random.default_rng(0), (40, 40))
    assert wild.min() >= 0 and wild.max() <= 39 and (wild[:, :2] <= wild[:, 2:]).all()


def test_a_segment_function_that_fills_its_box_scores_by_hand():
    """Two discs: a filled box around the reference has all of it, and pixels beside it."""
    dataset = fakes.two_discs(4, size=32)
    masks = dataset.read(np.arange(4))[1]
    wrong = np.where(masks[1] == 1, 0, masks[1])
    cases = study.Cases(dataset, np.arange(2), (-1000.0, 400.0), {0: masks[0], 1: wrong})

    def fill(embedding, box, shape):
        left, top, right, bottom = box.astype(int)
        found = np.zeros(shape, bool)
        found[top : bottom + 1, left : right + 1] = True
        return found

    rows = study.segment_cases(cases, (lambda image: None, fill), shares=(0.1,), seed=1)
    assert len(rows) == 2 * 3 * 4
    first = next(
        r for r in rows if (r["boxes"], r["class"], r["case_id"]) == ("reference", "nodule", "case000")
    )
    assert first["dice"] == 1.0 and first["num_boxes"] == 1  # the nodule is a square
    summary = {(row["boxes"], row["class"]): row for row in study.summarise(rows)}
    lung = summary["our prediction", "left_lung"]
    assert lung["missed"] == 1 and lung["cases"] == 2
    assert lung["dice"] == pytest.approx(
        summary["reference", "left_lung"]["dice"] - _dice(rows, "case001") / 2
    )
    assert summary[study.ALONE, "left_lung"]["dice"] == 0.5
    assert summary["reference", "nodule"]["cases"] == 1
    again = study.segment_cases(cases, (lambda image: None, fill), shares=(0.1,), seed=1)
    np.testing.assert_equal(again, rows)


def _dice(rows, case_id):
    wanted = ("reference", "left_lung", case_id)
    return next(row["dice"] for row in rows if (row["boxes"], row["class"], row["case_id"]) == wanted)


def test_the_study_from_a_file_of_weights(tmp_path):
    """All of it but the training: data by a folder, a split, weights from safetensors, three files at the end."""
    path = tiny_sam.write_safetensors(tmp_path / "tiny.safetensors", tiny_sam.create_weights())
    folder = fakes.write_npz(tmp_path / "npz", fakes.two_discs(12))
    cases = study.read_cases(runner.Protocol("npz", str(folder), size=16, num_folds=3), limit=2)
    assert len(cases.indices) == 2 and cases.predictions is None
    summary = study.study(path, cases, tmp_path / "out", shares=(0.2,))
    assert [row["boxes"] for row in summary] == ["reference"] * 3 + ["jittered by 0.2"] * 3
    assert all(0 <= row["dice"] <= 1 for row in summary if row["class"] != "nodule")
    assert len(files.read_csv(tmp_path / "out" / "cases.csv")) == 2 * 3 * 2
    text = (tmp_path / "out" / "sam.md").read_text(encoding="utf-8")
    assert "97.08 %" in text and "no competitors" in text and "| jittered by 0.2 | Nodule |" in text


@pytest.mark.parametrize("texts", [["a"], ["0"], ["1.5"]])
def test_wrong_shares_are_one_clear_line(texts):
    with pytest.raises(InputError, match="--jitter"):
        study.read_shares(texts)
