"""Effects of a factorial: contrasts by hand, verdicts, and sentences that say no more than the numbers."""

import numpy as np
import pytest

from auxseg.runs import run_folder
from configs import base
from experiments.studies import ablations, comparison, effects

TITLES = {
    arm: arm for arm in ("se_aux", "no_se", "no_aux", "plain", "plain_matched", "placebo", "placebo_no_se")
}
CLASSES = ("left_lung", "right_lung", "nodule")


def make_arm(name, gain, *, draws=((1, 0), (2, 0), (1, 1), (2, 1)), noise=0.0, nodules=True, level=0.8):
    """Returns an Arm of runs by (seed, fold): 12 cases a fold of a patient each, Dice level + case + gain."""
    members = []
    for seed, fold in draws:
        rng = np.random.default_rng([seed, fold, len(name)])
        cases = {}
        for i in range(12):
            case = f"fold{fold}-{i}"
            dice = level + 0.005 * i + gain + rng.normal(0, noise) if noise else level + 0.005 * i + gain
            row = {"patient": case}
            for key in CLASSES:
                there = nodules or key != "nodule"
                row |= {f"{key}_dice": dice if there else np.nan, f"{key}_reference_px": 50 * there}
            cases[case] = row
        draw = tuple({"seed": seed, "data.fold": fold}.get(key) for key in comparison.SEEDS)
        members.append(comparison.RunScores(f"{name}-{seed}-{fold}", {}, cases, draw))
    return comparison.Arm(name, tuple(members))


def measure(gains, **settings):
    arms = [make_arm(name, gain, **settings) for name, gain in gains.items()]
    return arms, effects.measure(arms, ablations.create_effects(TITLES))


def find(rows, key, name="left_lung"):
    return next(row for row in rows if row["effect"] == key and row["class"] == name)


def test_effects_of_a_factorial_by_hand():
    gains = {"se_aux": 0.09, "no_aux": 0.04, "no_se": 0.02, "plain": 0.0, "plain_matched": 0.06}
    _, rows = measure(gains)
    expected = {"se": 0.055, "aux": 0.035, "interaction": 0.03, "size": 0.03}
    assert {row["effect"] for row in rows} == set(expected)  # the placebo has no run and is left out
    for key, value in expected.items():
        row = find(rows, key)
        assert row["difference"] == pytest.approx(value)
        assert (row["cases"], row["patients"], row["runs_first"], row["family"]) == (24, 24, 4, 12)
        assert row["between_runs_low"] == pytest.approx(value) and row["supported"]


def test_the_placebo_without_se_is_against_the_head_alone():
    _, rows = measure({"no_se": 0.05, "placebo_no_se": 0.02, "se_aux": 0.07, "placebo": 0.06})
    found = {row["effect"]: row["difference"] for row in rows if row["class"] == "nodule"}
    assert found["placebo_no_se"] == pytest.approx(0.03) and found["placebo"] == pytest.approx(0.01)


def test_classes_without_scores_have_no_effect():
    """Crops know nodules alone: their cases have no column of a lung."""
    arms = [make_arm("no_se", 0.05), make_arm("placebo_no_se", 0.0)]
    for run in (run for arm in arms for run in arm.runs):
        for row in run.cases.values():
            for key in ("left_lung_dice", "left_lung_reference_px", "right_lung_reference_px"):
                del row[key]
    rows = effects.measure(arms, ablations.create_effects(TITLES))
    assert [(row["effect"], row["class"]) for row in rows] == [("placebo_no_se", "nodule")]


def test_an_effect_of_one_run_is_not_supported():
    """Over 24 cases 0.06 is far from 0; over runs it is one run's."""
    arms = [make_arm(name, 0.0) for name in ("no_se", "no_aux", "plain")]
    first, *others = make_arm("se_aux", 0.0).runs
    lucky = make_arm("se_aux", 0.06, draws=(first.draw[0::4],)).runs
    arms.append(comparison.Arm("se_aux", (*lucky, *others)))
    row = find(effects.measure(arms, ablations.create_effects(TITLES)), "interaction")
    assert row["between_runs_low"] < 0 < row["between_runs_high"] and not row["supported"]


def test_an_initialisation_that_fails_on_every_fold_is_no_effect():
    """One seed on three folds: the same weights at the start, and so one failure and not three."""
    draws = ((1, 0), (1, 1), (1, 2))
    gains = {"se_aux": 0.0, "no_aux": 0.0, "no_se": 0.0, "plain": -0.8}
    arms, rows = measure(gains, draws=draws)
    sentences = effects.conclude(rows, arms, base.get_config())
    assert "none is supported" in sentences[0] and "start from one initialisation" in sentences[1]
    row = find(rows, "se")
    assert row["difference"] == pytest.approx(0.4) and row["p_holm"] < 0.05 and row["seeds"] == 1
    assert not any(row["supported"] for row in rows) and "of one initialisation" in row["why"]


def test_nothing_is_claimed_of_noise():
    gains = dict.fromkeys(("se_aux", "no_aux", "no_se", "plain", "placebo"), 0.0)
    arms, rows = measure(gains, noise=0.02)
    assert not any(row["supported"] for row in rows)
    sentences = effects.conclude(rows, arms, base.get_config())
    assert "none is supported by these runs" in sentences[0]
    assert "SE (main effect) on Nodule Dice between -0." in sentences[1]
    assert (
        sentences[-1] == "Limits: initialisations of an arm: 2, and fewer than five say little about others."
    )


def test_what_is_supported_is_named_with_its_size():
    arms, rows = measure({"se_aux": 0.05, "no_aux": 0.0, "no_se": 0.05, "plain": 0.0})
    sentences = effects.conclude(rows, arms, base.get_config())
    assert "these runs support 3: auxiliary head (main effect) on Left lung Dice (+0.0500)" in sentences[0]
    assert "Supported: corrected p" in effects.describe(find(rows, "aux"))
    assert "Not supported" in effects.describe(find(rows, "se"))


def test_nodules_that_nobody_finds_are_not_compared():
    config = base.get_config()
    config.model.base_width = 8
    arms, rows = measure({"se_aux": 0.0, "no_aux": 0.0}, level=-0.0175)
    text = " ".join(effects.conclude(rows, arms, config))
    assert "No arm finds nodules (mean Dice 0.010 at most)" in text
    assert "base width 8 and see 320 x 320 pixels, the paper's 64" in text
    arms, rows = measure({"se_aux": 0.0, "placebo": 0.0}, nodules=False)
    assert "No test case has a nodule" in " ".join(effects.conclude(rows, arms, config))
    assert "nothing is supported" in effects.describe(find(rows, "placebo", "nodule"))


def test_tables_name_every_effect():
    _, rows = measure({"se_aux": 0.05, "no_aux": 0.0, "no_se": 0.05, "plain": 0.0})
    lines = effects.format_table(rows)
    assert len(lines) == 2 + len(rows) and all(line.count("|") == 9 for line in lines)
    heading, markup = effects.create_section(rows, ["<one>"])
    assert heading == "Effects" and "&lt;one&gt;" in markup and "SE x auxiliary head (interaction)" in markup


def test_the_command_is_shown_without_folders(monkeypatch):
    arguments = [
        "/somewhere/ablations.py",
        "--data=npz",
        "--data_dir=/home/me/data",
        "--out=/tmp/x",
        "--seeds=1,2",
    ]
    shown = effects.format_command(arguments)
    assert (
        shown.endswith(" --data=npz --data_dir=FOLDER --seeds=1,2")
        and "/home" not in shown
        and "/tmp" not in shown
    )


@pytest.mark.parametrize(
    ("name", "slices"), [("luna16", "middle"), ("npz", "as they lie there"), ("crops", "as they lie there")]
)
def test_only_scans_have_a_choice_of_slices(name, slices):
    config = base.get_config()
    config.data.name = name
    text = "\n".join(effects.describe_protocol({}, config))
    assert f"Data {name} (slices: {slices}), 320 x 320 pixels" in text


def test_the_control_has_the_nearest_number_of_parameters():
    config = base.get_config()
    config.model.base_width = 8
    found = ablations.find_matched_width(config)

    def distance(plain_width):
        changed = {"model.base_width": plain_width, "model.se": False, "model.aux": False}
        other = ablations.runner.override(config, changed)
        return abs(ablations.count_parameters(other) - ablations.count_parameters(config))

    assert distance(found) < min(distance(found - 1), distance(found + 1))


def test_arms_of_the_study():
    arms = ablations.create_arms(base.get_config())
    assert list(arms) == [
        "se_aux", "no_se", "no_aux", "plain", "plain_matched", "placebo", "placebo_no_se", "aux_weight_0",
        "aux_weight_0.1", "aux_weight_1",
    ]  # fmt: skip
    config = base.get_config()
    for changes in arms.values():
        changed = ablations.runner.override(config, changes)
        assert len(run_folder.list_differences(*map(run_folder.config_to_dict, (config, changed)))) == len(
            changes
        )
    titles = ablations.create_titles(arms, config)
    assert titles["plain_matched"] == "neither, as many parameters (width 67)"
    assert ablations.create_titles({"plain": {}, "no_se": {}}, config)["plain"] == "neither"
    assert len(ablations.create_effects(titles)) == 9 and len(set(titles.values())) == 10
