"""Comparing runs: arms, pairing, verdicts, and the page, from made-up case tables."""

import csv
import json

import fakes
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from configs.base import get_config
from experiments.studies import compare, comparison

CLASSES = ("left_lung", "right_lung", "nodule")


def write_run(folder, *, gain=0.0, seed=1, se=True, num_cases=24, noise=0.002, split="test", first=0):
    """Writes a run whose Dice is that of its cases plus `gain`; every third case has no nodule."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "model": {"se": se}, "data": {"split_seed": seed, "dir": str(folder)}}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(first, first + num_cases):
        row = {"case_id": f"{i:03d}", "patient": f"{i // 2}", "split": split}
        base = 0.8 + 0.1 * np.random.default_rng(i).random()
        for name in CLASSES:
            present = name != "nodule" or i % 3
            row[f"{name}_reference_px"] = 50 if present else 0
            row[f"{name}_dice"] = base + gain + rng.normal(0, noise) if present else ""
        rows.append(row)
    with open(folder / "cases.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def find(result, name):
    return next(row for row in result["differences"] if row["class"] == name)


def test_a_setting_that_came_after_a_run_sets_it_not_apart(tmp_path):
    """A run of last month and one of today with the same settings are one arm."""
    old, new = write_run(tmp_path / "old", seed=1), write_run(tmp_path / "new", seed=2)
    config = json.loads((new / "config.json").read_text(encoding="utf-8"))
    config["optim"] = {"cosine_epochs": get_config().optim.cosine_epochs}
    (new / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = comparison.compare([old, new])
    assert len({row["arm"] for row in result["arms"]}) == 1
    assert result["differences"] == []


def test_a_true_difference_over_seeds_is_supported(tmp_path):
    runs = [write_run(tmp_path / f"se{seed}", seed=seed) for seed in (1, 2, 3)]
    runs += [write_run(tmp_path / f"no{seed}", seed=seed + 10, se=False, gain=-0.05) for seed in (1, 2, 3)]
    result = comparison.compare(runs)
    assert [row["arm"] for row in result["arms"][::3]] == ["model.se=true", "model.se=false"]
    nodule = find(result, "nodule")
    assert nodule["difference"] == pytest.approx(-0.05, abs=0.002)
    assert (nodule["cases"], nodule["patients"], nodule["family"]) == (16, 12, 3)
    assert nodule["supported"] and nodule["between_runs_high"] < 0
    assert "is supported" in result["sentences"][2]


def test_no_difference_is_said_to_be_none(tmp_path):
    runs = [write_run(tmp_path / "a", seed=1), write_run(tmp_path / "b", seed=2, se=False)]
    result = comparison.compare(runs)
    assert not any(row["supported"] for row in result["differences"])
    assert all("is not supported" in sentence for sentence in result["sentences"])


def test_a_difference_within_the_spread_of_seeds_is_not_supported(tmp_path):
    gains = {"a": (0.0, 0.06), "b": (0.02, 0.08)}
    runs = [
        write_run(tmp_path / f"{arm}{i}", seed=i, se=arm == "a", gain=gain, noise=0.0)
        for arm, both in gains.items()
        for i, gain in enumerate(both)
    ]
    lung = find(comparison.compare(runs), "left_lung")
    assert lung["p_holm"] < 0.05 and not lung["supported"] and "no larger than between runs" in lung["why"]


def test_one_run_a_side_says_so(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", se=False, gain=0.05)]
    lung = find(comparison.compare(runs), "left_lung")
    assert lung["supported"] and "may be one of initialisation" in lung["why"]


def test_too_few_patients_are_named(tmp_path):
    runs = [write_run(tmp_path / n, se=n == "a", gain=g, num_cases=6) for n, g in (("a", 0.0), ("b", 0.1))]
    lung = find(comparison.compare(runs), "left_lung")
    assert not lung["supported"] and "so few patients allow no p below 0.75" in lung["why"]


def test_seeds_alone_are_one_arm(tmp_path):
    result = comparison.compare([write_run(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)])
    assert result["differences"] == [] and "only a spread" in result["sentences"][0]
    row = result["arms"][0]
    means = [each["left_lung_dice"] for each in result["runs"]]
    assert row["runs"] == 3 and row["mean_over_runs"] == pytest.approx(np.mean(means))
    assert row["sd_over_runs"] == pytest.approx(np.std(means, ddof=1))


@pytest.mark.parametrize("name", run_folder.FREE_SETTINGS)
def test_what_a_resumed_run_may_change_sets_no_arm_apart(tmp_path, name):
    runs = [write_run(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    config = json.loads((runs[1] / "config.json").read_text(encoding="utf-8"))
    group, setting = name.split(".")
    config.setdefault(group, {})[setting] = 12345
    (runs[1] / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert len(comparison.read_arms(runs)[0]) == 1


def test_cases_not_in_common_are_left_out(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", se=False, first=16)]
    assert find(comparison.compare(runs), "left_lung")["cases"] == 8


def test_no_case_in_common(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", se=False, first=100)]
    result = comparison.compare(runs)
    assert all("no case in common" in sentence for sentence in result["sentences"])
    assert compare.write_comparison(tmp_path / "out", result).is_file()


def test_val_where_there_is_no_test_split(tmp_path):
    runs = [write_run(tmp_path / n, se=n == "a", split="val") for n in "ab"]
    assert comparison.compare(runs)["split"] == "val"


def test_cases_without_the_class_do_not_count(tmp_path):
    folder = write_run(tmp_path / "a")
    text = (
        (folder / "cases.csv").read_text(encoding="utf-8").replace(",0,\r", ",0,0.0\r")
    )  # as a false-positive case may be stored
    (folder / "cases.csv").write_text(text)
    settings, rows = comparison.read_scores(folder)
    run = comparison._select(folder, settings, rows, "test")
    assert len(comparison.case_scores(run, "dice", "nodule")) == 16


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda folder: (folder / "cases.csv").unlink(),
            "evaluate it: python -m auxseg.evaluate --workdir=",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "cases.csv").write_text("case_id,split\na"), "another number of cells"),
        (
            lambda folder: (folder / "cases.csv").write_text("case_id,split\na,val\n"),
            "no case of the split 'test'",
        ),
    ],
)
def test_damaged_runs_are_one_clear_line(tmp_path, spoil, words):
    runs = [write_run(tmp_path / n, se=n == "a") for n in "ab"]
    spoil(runs[1])
    with pytest.raises(InputError) as error:
        fakes.call(compare.main, runs=runs, out=str(tmp_path / "out"), split="test", score=["dice"])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_same_run_twice_is_refused(tmp_path):
    run = write_run(tmp_path / "a")
    with pytest.raises(InputError, match="at least two different"):
        comparison.compare([run, run])


def test_a_score_that_is_not_there(tmp_path):
    runs = [write_run(tmp_path / n, se=n == "a") for n in "ab"]
    with pytest.raises(InputError, match="no column left_lung_hd95_mm"):
        comparison.compare(runs, names=["hd95_mm"])


def test_page_and_tables(tmp_path, capsys):
    runs = [write_run(tmp_path / n, se=n == "a", gain=g) for n, g in (("a", 0.0), ("<b>", 0.04))]
    fakes.call(compare.main, runs=runs, out=str(tmp_path / "out"), split=None, score=["dice"])
    assert "is supported" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page and "<b>" not in page and "http://" not in page and "https://" not in page
    assert json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["differences"][0][
        "supported"
    ]
    for name in ("runs", "arms", "differences"):
        assert (tmp_path / "out" / f"{name}.csv").is_file()
