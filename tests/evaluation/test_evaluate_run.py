"""The command: from a tiny trained run to its report, the same numbers twice, clear errors."""

import dataclasses
import json
import re

import fakes
import numpy as np
import pytest

from auxseg import evaluate
from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.evaluation import evaluate_run, score_cases
from auxseg.runs import decisions
from auxseg.scoring import operating_point
from auxseg.training import loop
from configs import base


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the workdir of a run of one epoch on 24 small slices."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = base.get_config()
    with config.unlocked():
        config.data.name, config.data.size, config.data.split = "npz", (16, 16), "train_val_test"
        config.data.dir = str(fakes.write_npz(folder / "npz", fakes.two_discs(24, size=24)))
        config.model.base_width, config.model.depth, config.model.lowering = 4, 1, "plain"
        config.train.num_epochs, config.train.num_devices, config.eval.num_panels = 1, 1, 2
    loop.train(config, folder / "run", finish=evaluate_run.finish)
    return folder / "run"


def test_a_run_ends_with_its_report(workdir):
    assert (workdir / "report" / "index.html").is_file()
    assert (workdir / "report" / "figures" / "curves.png").is_file()
    rows = files.read_csv(workdir / "cases.csv")
    assert {row["split"] for row in rows} == {"val", "test"}
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    for split, stored in summary["scores"].items():
        for name in ("left_lung", "right_lung", "nodule"):
            dice = [
                row[f"{name}_dice"] for row in rows if row["split"] == split and row[f"{name}_reference_px"]
            ]
            assert stored["dice_cases"][name] == len(dice)
            assert (
                stored["dice"][name] == pytest.approx(sum(dice) / len(dice))
                if dice
                else stored["dice"][name] is None
            )
        accuracy = [row["accuracy"] for row in rows if row["split"] == split]
        assert stored["pooled_dsc"] == pytest.approx(sum(accuracy) / len(accuracy))


def test_the_command_writes_the_report_and_explains(workdir, capsys):
    case_id = files.read_csv(workdir / "cases.csv")[-1]["case_id"]
    stored = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["scores"]["val"]
    summary, page = evaluate_run.report_run(workdir, split="val", explained=[(case_id, "left_lung")])
    assert {key: summary[key] for key in stored} == stored and summary["split"] == "val"
    text = page.read_text(encoding="utf-8")
    assert (
        "Scored on the val split" in text and "What drives the network" in text and "own resolution" in text
    )
    assert (page.parent / "figures" / "explanation_1.png").is_file()
    scales = files.read_csv(page.parent / "tables" / "se_scales.csv")
    assert {row["block"] for row in scales} == {"encoder_0", "bottleneck", "decoder_0"}
    assert all(0 < row["scale"] < 1 for row in scales) and len(scales) == 4 + 8 + 4
    assert re.search(r"aux_unet: [\d,]+ trainable parameters", text)


def test_a_threshold_is_chosen_on_val_stored_and_applied(workdir, capsys):
    assert not (workdir / "nodules.json").exists()
    with pytest.raises(InputError, match="nodules.json: no such file; choose a threshold .* --tune"):
        evaluate_run.report_run(workdir, split="test", explained=None, tuned=True)
    found = evaluate_run.tune(workdir)
    stored = json.loads((workdir / "nodules.json").read_text(encoding="utf-8"))
    assert stored["split"] == "val" and stored["chosen"] == found["chosen"]
    said = evaluate_run.describe_decision(found)
    assert "of 1 found" in said and "chosen on 1 nodule, fewer than 10" in said
    assert "fewer" not in evaluate_run.describe_decision({**found, "nodules": 10})
    assert decisions.count_nodules([workdir]) == 1
    assert {row["threshold"] for row in stored["all"]} == set(operating_point.THRESHOLDS)
    # Whatever was chosen, a threshold of next to nothing makes all that is no nodule disappear.
    decisions.write_decision(workdir, operating_point.Decision(0.001), {})
    summary, _ = evaluate_run.report_run(workdir, split="test", explained=None, tuned=True)
    assert summary["dice"]["left_lung"] == 0.0 and summary["false_positive_cases"]["nodule"] > 0
    plain, _ = evaluate_run.report_run(workdir, split="test", explained=None)
    stored = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["scores"]["test"]
    assert {key: plain[key] for key in stored} == stored


def test_the_mean_with_the_mirrored_slice_is_evaluated_and_tuned(workdir):
    plain, split, _ = evaluate_run.open_run(workdir, "test")
    flipped, _, _ = evaluate_run.open_run(workdir, "test", flip=True)
    members = plain.members[split]
    ours = np.stack([each for _, each in score_cases.predict(flipped, members)])
    alone = np.stack([each for _, each in score_cases.predict(plain, members)])
    mirrored = dataclasses.replace(
        plain, predict_fn=lambda raw: plain.predict_fn(raw._replace(images=raw.images[..., ::-1]))
    )
    turned = np.stack([each for _, each in score_cases.predict(mirrored, members)])[:, :, ::-1][
        ..., [0, 2, 1, 3]
    ]
    np.testing.assert_allclose(ours, (alone + turned) / 2, atol=1e-5)
    assert np.abs(ours - alone).max() > 1e-3
    found = evaluate_run.tune(workdir, flip=True)
    with pytest.raises(InputError, match="was chosen with --flip; give it here too"):
        evaluate_run.report_run(workdir, split="test", explained=None, tuned=True)
    _, page = evaluate_run.report_run(workdir, split="test", explained=None, tuned=True, flip=True)
    text = page.read_text(encoding="utf-8")
    assert f"a share of {found['chosen']['threshold']:g} and" in text or "the most likely class, of" in text
    assert "of the mean with the mirrored slice" in text


def test_which_cases_to_explain():
    assert evaluate.parse_explain("") == ()
    assert evaluate.parse_explain("none") is None
    assert evaluate.parse_explain("a:nodule,1.2:3:left_lung") == (("a", "nodule"), ("1.2:3", "left_lung"))
    with pytest.raises(InputError, match="expected CASE:CLASS, such as ID_0001:nodule"):
        evaluate.parse_explain("a")
    data = fakes.two_discs(1)
    assert score_cases.find_cases(data, [("case000", "nodule")]) == {"case000": 0}
    for pair, message in (
        (("case000", "heart"), "--explain: class: got 'heart'"),
        (("b", "nodule"), "the case 'b'"),
    ):
        with pytest.raises(InputError, match=message):
            score_cases.find_cases(data, [pair])
