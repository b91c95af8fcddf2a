"""The study of nodules: arms, scores by hand, and one tiny run from its slices to its table."""

import fakes
import numpy as np
import pytest

from auxseg import runs
from auxseg.errors import InputError
from configs import recommended
from experiments import nodules, runner


def test_arms_differ_from_the_recommended_recipe_in_what_they_say():
    arms = nodules.create_arms("runs/pretrained")
    assert set(arms) == set(nodules.TITLES)
    config = recommended.get_config()
    for name, changes in arms.items():
        changed = runner.override(config, changes)
        found = runs.list_differences(runs.config_to_dict(config), runs.config_to_dict(changed))
        names = {line.split(":")[0] for line in found}
        assert names == set(changes), name  # each change is one
    paper = runner.override(config, arms["paper"])
    assert (paper.loss.name, paper.insert.enabled, paper.train.init_from) == ("dice_ce", False, None)


def row(case, seed, *, point, diameters=(), found=(), false=0, dice=None, lung=0.98):
    kinds = [
        {"diameter_mm": d, "stratum": "6-10 mm" if d < 10 else "over 10 mm", "found": f}
        for d, f in zip(diameters, found, strict=True)
    ]
    return {
        "case_id": case, "patient": case, "seed": seed, "point": point, "nodules": kinds, "false": false,
        "left_lung_dice": lung, "right_lung_dice": None, "nodule_dice": dice,
    }  # fmt: skip


def test_scores_by_hand():
    point = nodules.POINTS[0]
    rows = [
        row("a", 1, point=point, diameters=(7.0,), found=(True,), dice=0.8, lung=0.97),
        row("a", 2, point=point, diameters=(7.0,), found=(False,), dice=0.0, false=1),
        row("b", 1, point=point, diameters=(12.0,), found=(True,), dice=0.6),
        row("b", 2, point=point, diameters=(12.0,), found=(True,), dice=0.4),
        row("c", 1, point=point, false=3),
        row("c", 2, point=point),
    ]
    baseline = {(r["case_id"], r["seed"]): {**r, "left_lung_dice": 0.98} for r in rows}
    table = nodules.summarise(rows, baseline)
    assert (table["slices"], table["nodules"], table["found"]) == (6, 4, 3)
    assert table["sensitivity"]["estimate"] == 0.75 and table["sensitivity"]["num_patients"] == 2
    assert table["sensitivity, 6-10 mm"]["estimate"] == 0.5
    assert table["sensitivity, over 10 mm"]["estimate"] == 1.0
    assert table["sensitivity, under 6 mm"]["estimate"] is None
    assert table["false per slice"]["estimate"] == pytest.approx(4 / 6)
    assert table["nodule Dice"]["estimate"] == pytest.approx(0.45)
    assert table["nodule Dice where found"]["estimate"] == pytest.approx(0.6)
    assert table["left_lung Dice - baseline"]["estimate"] == pytest.approx(-0.01 / 6)
    assert table["right_lung Dice"]["estimate"] is None


def test_from_slices_to_the_table(tmp_path, capsys, monkeypatch):
    small = recommended.get_config()
    with small.unlocked():
        small.model.depth, small.model.lowering = 1, "plain"  # compiles in a fraction of the time
    monkeypatch.setattr(recommended, "get_config", lambda: small)
    monkeypatch.setattr(runner, "estimate_seconds", lambda config, in_child: 1.0)
    folder = fakes.write_npz(tmp_path / "npz", fakes.two_discs(18, size=32))
    protocol = runner.Protocol(
        data="npz", data_dir=str(folder), seeds=(1,), folds=(0,), num_folds=3, base_width=4, size=16, epochs=1
    )
    with pytest.raises(InputError, match="--init_from: not given"):
        nodules.study(protocol, tmp_path / "study", init_from=None)
    with pytest.raises(InputError, match="--arms: got 'ours', expected one of 'paper'"):
        nodules.study(protocol, tmp_path / "study", init_from=None, only=("ours",))
    result = nodules.study(protocol, tmp_path / "study", init_from=None, only=("paper",))
    assert "the paper's recipe | tuned on val" in capsys.readouterr().out
    about = result["arms"]["paper"]
    for point in nodules.POINTS:
        table = about[point]
        assert table["slices"] == 6 and table["nodules"] == 2
        assert table["left_lung Dice"]["num_cases"] == 6 and 0 <= table["false per slice"]["estimate"]
    assert about[nodules.POINTS[0]]["left_lung Dice - baseline"]["estimate"] == 0.0
    assert np.isfinite(about["seconds a run"]) and about["runs"] == 1
    with np.load(tmp_path / "study" / "runs" / "paper-f0-s1" / nodules.CROPS_FILE) as crops:
        assert len(crops) == 2
        for image, reference, prediction in crops.values():
            assert reference[nodules.CROP_PX, nodules.CROP_PX] and set(np.unique(prediction)) <= {0.0, 1.0}
            assert image.min() < -500
    assert (tmp_path / "study" / "nodules.png").stat().st_size > 1000
    # Everything is there already: a second start computes the same from what is stored.
    again = nodules.study(protocol, tmp_path / "study", init_from=None, only=("paper",))
    assert again == result == runs.read_json(tmp_path / "study" / "nodules.json")
