"""Judging: every case once, both resolutions, faults that reach the page; predictions are made up."""

import dataclasses
import types

import fakes
import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.evaluation import score_cases
from auxseg.training import batching


def make_subject(dataset, change=lambda masks: masks, *, batch_size=4, num_devices=1):
    """Returns a Subject whose network gives 0.91 to the class of the changed reference."""

    def predict_fn(raw):
        masks = change(np.asarray(raw.masks))
        return np.eye(4, dtype=np.float32)[masks] * np.float32(0.88) + np.float32(0.03)

    config = types.SimpleNamespace(
        eval=types.SimpleNamespace(batch_size=batch_size),
        data=types.SimpleNamespace(window_hu=(-1000.0, 400.0)),
        model=types.SimpleNamespace(name="aux_unet", depth=1),
    )
    devices = tuple(jax.local_devices()[:num_devices])
    members = {"val": np.array([0, 2]), "test": np.array([5, 1, 4, 3, 6])}
    feed = batching.create_feed(dataset, np.arange(len(dataset)), placement="stream", devices=devices)
    variables = {"params": {"mask": {"kernel": np.zeros((4, 4), np.float32)}}}
    return score_cases.Subject(config, dataset, members, feed, variables, predict_fn)


def enlarge(dataset, factor=2):
    """Returns the Dataset with native masks `factor` times as large."""
    table = dataclasses.replace(dataset.table, native_size_yx=dataset.table.native_size_yx * factor)
    large = np.ones((factor, factor), np.uint8)
    return dataclasses.replace(
        dataset, table=table, read_native_mask=lambda i: np.kron(dataset.read(np.array([i]))[1][0], large)
    )


@pytest.mark.parametrize("num_devices", [1, 3])
def test_every_case_of_the_split_once_and_in_order(num_devices):
    judgement = score_cases.judge_split(make_subject(fakes.two_discs(7), num_devices=num_devices), "test")
    rows = judgement.evaluation.rows
    assert [row["case_id"] for row in rows] == ["case005", "case001", "case004", "case003", "case006"]
    assert {row["split"] for row in rows} == {"test"}
    assert all(row["left_lung_dice"] == row["accuracy"] == 1.0 for row in rows)
    assert judgement.evaluation.calibration[-1][:, 0].sum() == 5 * 16 * 16
    assert judgement.native is None


def test_native_resolution_has_its_own_spacing():
    judgement = score_cases.judge_split(make_subject(enlarge(fakes.two_discs(7, size=32))), "val")
    small, native = judgement.evaluation.rows[0], judgement.native.rows[0]
    assert (small["rows"], native["rows"]) == (32, 64)
    assert small["spacing_y_mm"] == pytest.approx(2 * native["spacing_y_mm"]) and native[
        "spacing_y_mm"
    ] == pytest.approx(0.7)
    assert native["left_lung_dice"] > 0.95
    assert native["left_lung_reference_mm2"] == pytest.approx(small["left_lung_reference_mm2"])


def test_an_empty_split_is_refused():
    subject = make_subject(fakes.two_discs(7))
    subject.members["test"] = np.array([], int)
    with pytest.raises(InputError, match="split 'test': got no case"):
        score_cases.judge_split(subject, "test")


def test_chosen_cases_are_predicted_again():
    dataset = fakes.two_discs(7)
    subject = make_subject(dataset, lambda masks: np.where(masks == 1, 0, masks))
    cases = score_cases.read_cases(subject, score_cases.judge_split(subject, "test"))
    for case in cases:
        index = int(case.case_id[-1])
        images, masks = dataset.read(np.array([index]))
        np.testing.assert_array_equal(case.image, images[0])
        np.testing.assert_array_equal(case.reference, masks[0])
        np.testing.assert_array_equal(case.prediction, np.where(masks[0] == 1, 0, masks[0]))
    assert any("left_lung: worst" in case.reasons for case in cases)


def test_a_fault_of_the_network_reaches_the_page(tmp_path):
    (tmp_path / "config.json").write_text('{"eval": {"num_panels": 1}, "data": {"window_hu": [-1000, 400]}}')
    (tmp_path / "splits.json").write_text('{"train": ["x"], "test": ["case001"]}')
    subject = make_subject(fakes.two_discs(7, size=48), lambda masks: np.roll(masks, (3, 3), (-2, -1)))
    page = score_cases.write_judgement(tmp_path, subject, score_cases.judge_split(subject, "test"))
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report" / "index.html"
    assert "Predictions are shifted" in text and "48 x 48 pixels, as the network sees" in text
    assert "16 trainable parameters" in text and (tmp_path / "report" / "figures" / "panels.png").is_file()


def test_a_case_to_explain_that_is_not_there():
    subject = make_subject(fakes.two_discs(7))
    subject.config.model = types.SimpleNamespace(
        name="aux_unet",
        base_width=4,
        depth=1,
        num_classes=4,
        separable=True,
        se=True,
        se_ratio=8,
        aux=True,
        aux_width=8,
        dtype="float32",
        bn_momentum=0.99,
        bn_epsilon=1e-3,
        lowering="plain",
    )
    with pytest.raises(InputError, match="--explain: got the case 'case9'"):
        score_cases.explain_cases(subject, (), [("case9", "nodule")])


def test_a_network_of_volumes_is_not_explained():
    subject = make_subject(fakes.two_discs(7))
    subject.config.model.name = "unet3d"
    assert score_cases.explain_cases(subject, (), [("case9", "nodule")]) == ()


def test_the_size_of_the_scan_is_left_out_where_nobody_asks_for_it():
    subject = make_subject(enlarge(fakes.two_discs(7, size=32)))
    assert score_cases.judge_split(subject, "val", native=False).native is None
