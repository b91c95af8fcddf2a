"""The study of nodules: arms, scores by hand, and one tiny run from its slices to its table."""

import dataclasses

import fakes
import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from auxseg.scoring import operating_point
from configs import recommended
from experiments.nodules import pictures, scores
from experiments.nodules import study as nodules_study
from experiments.nodules.arms import TITLES, create_arms, create_config, title_of
from experiments.nodules.study import find_others
from experiments.studies import parts, runner

PART = f"no_{next(iter(parts.list_parts(recommended.get_config())))}"
"""The arm without the first part of the recipe."""


def test_arms_differ_from_the_recommended_recipe_in_what_they_say():
    arms, config = create_arms("runs/pretrained"), recommended.get_config()
    assert set(arms) == set(TITLES) | {f"no_{part}" for part in parts.list_parts(config)}
    assert len(set(map(title_of, arms))) == len(arms)
    for name, changes in arms.items():
        changed = runner.override(config, changes)
        found = run_folder.list_differences(
            run_folder.config_to_dict(config), run_folder.config_to_dict(changed)
        )
        names = {line.split(":")[0] for line in found}
        assert names == set(changes), name  # each change is one
    paper = runner.override(config, arms["paper"])
    assert (paper.loss.name, paper.insert.enabled, paper.train.init_from) == ("dice_ce", False, None)
    assert (paper.train.num_epochs, paper.optim.cosine_epochs, paper.train.bn_refresh_batches) == (50, 0, 0)
    assert create_arms(None, epochs=2)["paper"]["train.num_epochs"] == 2
    assert "not" in title_of(PART)


def row(case, seed, *, point, diameters=(), found=(), false=0, dice=None, lung=0.98):
    kinds = [
        {"diameter_mm": d, "stratum": "6-10 mm" if d < 10 else "over 10 mm", "found": f, "dice": 0.9 * f}
        for d, f in zip(diameters, found, strict=True)
    ]
    return {
        "case_id": case, "patient": case, "seed": seed, "point": point, "nodules": kinds, "false": false,
        "left_lung_dice": lung, "right_lung_dice": None, "nodule_dice": dice,
    }  # fmt: skip


def test_scores_by_hand():
    point = scores.POINTS[0]
    rows = [
        row("a", 1, point=point, diameters=(7.0,), found=(True,), dice=0.8, lung=0.97),
        row("a", 2, point=point, diameters=(7.0,), found=(False,), dice=0.0, false=1),
        row("b", 1, point=point, diameters=(12.0,), found=(True,), dice=0.6),
        row("b", 2, point=point, diameters=(12.0,), found=(True,), dice=0.4),
        row("c", 1, point=point, false=3),
        row("c", 2, point=point),
    ]
    baseline = {(r["case_id"], r["seed"]): {**r, "left_lung_dice": 0.98} for r in rows}
    table = scores.summarise(rows, baseline)
    assert (table["slices"], table["nodules"], table["found"]) == (6, 4, 3)
    assert table["sensitivity"]["estimate"] == 0.75 and table["sensitivity"]["num_patients"] == 2
    assert table["sensitivity, 6-10 mm"]["estimate"] == 0.5
    assert table["sensitivity, over 10 mm"]["estimate"] == 1.0
    assert table["sensitivity, 6 mm and more"]["estimate"] == 0.75
    assert table["sensitivity, under 6 mm"]["estimate"] is None
    assert table["false per slice"]["estimate"] == pytest.approx(4 / 6)
    assert table["nodule Dice"]["estimate"] == pytest.approx(0.45)
    assert table["nodule Dice where found"]["estimate"] == pytest.approx(0.6)
    assert table["Dice of a found nodule"]["estimate"] == pytest.approx(0.9)
    assert table["Dice of a found nodule"]["num_cases"] == 3
    assert table["left_lung Dice - baseline"]["estimate"] == pytest.approx(-0.01 / 6)
    assert table["right_lung Dice"]["estimate"] is None


def test_contrasts_by_hand():
    point = scores.POINTS[0]
    cases = [f"case {n}" for n in range(4)]

    def arm(name, seeds, *, found, false, lung):
        return [
            {"arm": name, **row(case, seed, point=point, diameters=(7.0,) * (case == "case 0"),
                                found=(found,) * (case == "case 0"), false=false, dice=None, lung=lung)}
            for seed in seeds for case in cases
        ]  # fmt: skip

    rows = arm("recommended", (1, 2), found=False, false=1, lung=0.98)
    rows += arm("paper", (2, 3), found=True, false=4, lung=0.97) + arm(PART, (5,), found=1, false=1, lung=1)
    table = scores.contrast(rows + [{**rows[0], "point": scores.POINTS[1], "false": 99}], point)
    assert list(table) == ["paper"]  # seed 5 of the other arm has no partner
    assert table["paper"]["false per slice"] == {
        "estimate": 3.0, "low": 3.0, "high": 3.0, "num_cases": 4, "num_patients": 4, "seeds": 1,
        "p": pytest.approx(2 * 2 / 16),  # of 16 flips two are as far off; times the two that are tested, by Holm
    }  # fmt: skip
    assert table["paper"]["left_lung Dice"]["estimate"] == pytest.approx(-0.01)
    assert (table["paper"]["found"]["estimate"], table["paper"]["found"]["p"]) == (1.0, None)  # one patient
    assert table["paper"]["nodule Dice"]["estimate"] is None
    lines = pictures._contrast_lines(table)
    assert lines[-1].startswith(
        "| the paper's recipe | 1 | +1.00 [-, -] | +3.00 [+3.00, +3.00] p=0.250 | - |"
    )
    assert pictures._contrast_lines({}) == []


def test_runs_of_other_arms_and_seeds_are_taken_in_where_their_settings_fit(tmp_path, capsys):
    protocol = runner.Protocol(data="npz", data_dir="FOLDER", seeds=(1,), folds=(0,), num_folds=3)
    config, arms = create_config(protocol), create_arms("runs/pretrained")
    both = dataclasses.replace(protocol, seeds=(1, 2), folds=(0, 1))
    for run in runner.plan(config, {arm: arms[arm] for arm in ("paper", "recommended", PART)}, both):
        if run.name in ("paper-f0-s1", "recommended-f1-s2", f"{PART}-f0-s1"):
            changed = {"optim.learning_rate": 0.1} if run.arm == PART else {}
            path = tmp_path / "runs" / run.name
            path.mkdir(parents=True)
            files.write_json(
                path / "config.json", run_folder.config_to_dict(runner.override(run.config, changed))
            )
            files.write_json(path / "summary.json", {})
    planned = runner.plan(config, {"paper": arms["paper"]}, protocol)
    others = find_others(tmp_path, planned, config, arms, protocol)
    assert [(run.name, run.arm) for run in others] == [("recommended-f1-s2", "recommended")]
    out = capsys.readouterr().out
    assert f"{PART}-f0-s1 is left out" in out and "learning_rate" in out


def test_exact_intervals_have_a_width_where_the_bootstrap_has_none():
    assert scores.exact_interval(0, 2) == pytest.approx((0.0, 0.841886), abs=1e-6)  # 1 - 0.025 ** (1 / 2)
    assert scores.exact_interval(8, 8) == pytest.approx((0.630583, 1.0), abs=1e-6)  # 0.025 ** (1 / 8)
    assert scores.exact_interval(5.0, 8.0) == pytest.approx((0.244863, 0.914767), abs=1e-6)
    assert scores.exact_interval(5.5, 8) == (None, None)  # 11 of 8 x 2: no count of nodules
    assert scores.exact_interval(0, 0) == (None, None)
    missed = [("a", {"stratum": "6-10 mm", "found": False})] * 2
    interval = scores._interval(missed, ("6-10 mm",), num_seeds=2)
    assert interval["exact_high"] == pytest.approx(0.975) and interval["estimate"] == 0.0


def write_run(folder, *, val, test, found):
    """Writes what `pool_counts` reads of a run whose val has one nodule a slice; choice 0 finds `found`."""
    files.write_json(folder / "splits.json", {"train": [], "val": val, "test": test})
    sums = np.zeros((len(operating_point.create_choices(1.0)), len(operating_point.COUNTED)))
    sums[0, 0], sums[:, 1], sums[:, 4] = found, len(val) - found, len(val)
    stored = {"slices": len(val), "sums": sums.tolist()}
    files.write_json(folder / scores.COUNTS_FILE, {"val": stored, "test": stored})
    return folder


def test_no_slice_of_the_test_split_has_a_say_in_the_threshold(tmp_path):
    folds = ["ab", "cd", "ef"]
    paths = []
    for fold, cases in enumerate(folds):
        path = tmp_path / str(fold)
        path.mkdir()
        val = list(folds[(fold + 1) % 3])
        paths.append(write_run(path, val=val, test=list(cases), found=fold))
    for fold, path in enumerate(paths):
        pooled = scores.pool_counts(path, paths)
        # The run of the fold before has this one's test as its val.
        others = [n for n in range(3) if n != (fold - 1) % 3]
        assert pooled.slices == 4 and pooled.sums[0, 0] == sum(others)
    assert scores.pool_counts(paths[0], []).slices == 2


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
        nodules_study.study(protocol, tmp_path / "study", init_from=None)
    with pytest.raises(InputError, match="--arms: got 'ours', expected one of 'paper'"):
        nodules_study.study(protocol, tmp_path / "study", init_from=None, only=("ours",))
    result = nodules_study.study(protocol, tmp_path / "study", init_from=None, only=("paper",))
    assert "the paper's recipe | tuned on val" in capsys.readouterr().out
    about = result["arms"]["paper"]
    for point in scores.POINTS:
        table = about[point]
        assert table["slices"] == 6 and table["nodules"] == 2
        assert table["left_lung Dice"]["num_cases"] == 6 and 0 <= table["false per slice"]["estimate"]
    # With one fold there is nothing to pool: both choices are the same.
    assert about[scores.POINTS[1]] == about[scores.POINTS[2]]
    curve = about["curve"]
    assert [each["threshold"] for each in curve] == list(operating_point.THRESHOLDS)
    assert all(0 <= each["found"] <= each["nodules"] == 2 for each in curve)
    assert about[scores.POINTS[0]]["left_lung Dice - baseline"]["estimate"] == 0.0
    assert np.isfinite(about["seconds a run"]) and about["runs"] == 1
    with np.load(tmp_path / "study" / "runs" / "paper-f0-s1" / scores.CROPS_FILE) as crops:
        assert len(crops) == 2
        for image, reference, prediction in crops.values():
            assert reference[scores.CROP_PX, scores.CROP_PX] and set(np.unique(prediction)) <= {0.0, 1.0}
            assert image.min() < -500
    for name in ("nodules.png", "nodules_curves.png"):
        assert (tmp_path / "study" / name).stat().st_size > 1000
    only = tmp_path / "study" / "runs" / "paper-f0-s1"
    scored = scores.score_phantom(only, only)  # its own data in the place of the phantom's
    assert scored == points_of(only)
    started = runner.override(run_folder.read_config(only), {"train.init_from": str(only)})
    planned = {
        runner.Run("one", "recommended", started): only,
        runner.Run("two", "paper", run_folder.read_config(only)): only,
    }
    tables = scores.score_phantoms(planned, only)
    assert list(tables) == ["start", "recommended"]  # not the arm that began with nothing
    assert tables["start"] == tables["recommended"] and tables["start"]["nodules"] == 2
    mirrored = nodules_study.study(protocol, tmp_path / "study", init_from=None, only=("paper",), flip=True)
    assert mirrored == files.read_json(tmp_path / "study" / "nodules_flip.json") != result
    assert (tmp_path / "study" / "nodules_curves_flip.png").stat().st_size > 1000
    with pytest.raises(InputError, match=f"--init_from: not given; {PART} needs a run on the phantom"):
        nodules_study.study(protocol, tmp_path / "study", init_from=None, only=(PART,))
    # Everything is there already: a second start computes the same from what is stored.
    again = nodules_study.study(protocol, tmp_path / "study", init_from=None, only=("paper",))
    assert again == result == files.read_json(tmp_path / "study" / "nodules.json")


def points_of(path):
    """Returns the stored rows of a run at the most likely class."""
    rows = files.read_json(path / scores.CASES_FILE)["rows"]
    return [row for row in rows if row["point"] == scores.POINTS[0]]
