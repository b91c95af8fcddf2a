"""A sweep: all combinations run once, what failed is named, and one table says which was best on validation."""

import json

import fakes
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from auxseg.training import loop
from configs import base
from experiments.studies import runner, sweep

GRID = {"optim.learning_rate": [0.001, 0.01], "loss.class_weights": [[1.0], [1.0, 1.0, 1.0, 30.0]]}


@pytest.fixture
def protocol(tmp_path):
    folder = fakes.write_npz(tmp_path / "npz", fakes.two_discs(12))
    return runner.Protocol(
        data="npz", data_dir=str(folder), num_folds=3, config=base.get_config(), seeds=(1, 2)
    )


@pytest.fixture
def calls(monkeypatch):
    """Trainings made up: Dice is 0.5, more with a high rate and with the second seed; no lung has a nodule."""
    found = []

    def train(config, workdir, *, finish):
        found.append(workdir.name)
        if config.optim.learning_rate == 0.01 and len(config.loss.class_weights) == 4:
            raise InputError("the loss is not finite")
        run_folder.claim_config(workdir, config)
        dice = 0.5 + 10 * config.optim.learning_rate + 0.1 * (config.seed == 2)
        by_class = {"background": 1.0, "left_lung": dice, "right_lung": dice + 0.2, "nodule": None}
        scores = {"val": {"loss": 1.0 - dice, "dice": by_class}, "test": {"loss": 0.0, "dice": {}}}
        files.write_json(workdir / "summary.json", {"seconds": 30.0, "best_epoch": 4, "scores": scores})

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(runner, "estimate_total", lambda *_: 0.0)
    return found


def write_grid(folder, grid):
    (folder / "grid.json").write_text(json.dumps(grid))
    return sweep.read_grid(folder / "grid.json")


def test_every_combination_is_run_once_and_the_best_stands_first(protocol, calls, tmp_path, capsys):
    grid = write_grid(tmp_path, GRID)
    rows = sweep.sweep(protocol, tmp_path / "sweep", grid)
    assert len(calls) == 2 * 2 * 2 and len(rows) == 3  # one combination failed
    first = rows[0]
    assert (first["optim.learning_rate"], first["loss.class_weights"], first["runs"]) == (0.01, (1.0,), 2)
    assert first["dice_left_lung"] == pytest.approx(0.65) and first["mean_dice"] == pytest.approx(0.75)
    assert first["loss"] == pytest.approx(0.35) and first["minutes"] == 1.0
    assert first["dice_nodule"] != first["dice_nodule"]  # no case has one
    text = (tmp_path / "sweep" / "sweep.md").read_text()
    assert text.splitlines()[2].startswith("| 0.01 | (1.0,) | 2 | 0.75 |") and text in capsys.readouterr().out
    assert [row["optim.learning_rate"] for row in files.read_csv(tmp_path / "sweep" / "sweep.csv")][0] == 0.01
    del calls[:]
    assert [row["mean_dice"] for row in sweep.sweep(protocol, tmp_path / "sweep", grid)] == [
        row["mean_dice"] for row in rows
    ]
    assert len(calls) == 2  # the failed ones alone are tried again


def test_arms_have_names_fit_for_folders():
    names = list(sweep.create_arms({"data.size": [(32, 32)], "loss.name": ["dice_ce", "ce"]}))
    assert names == ["data.size=32-32_loss.name=dice_ce", "data.size=32-32_loss.name=ce"]


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({}, "names no setting"),
        ({"loss.name": "ce"}, "loss.name is 'ce', expected a list of values"),
        ({"loss.name": []}, "expected a list of values"),
        ([1], "expected an object"),
    ],
)
def test_no_grid_is_said_in_a_line(tmp_path, grid, says):
    with pytest.raises(InputError, match=says):
        write_grid(tmp_path, grid)


def test_too_many_the_same_and_unknown_settings(protocol, tmp_path, calls):
    with pytest.raises(InputError, match="501 combinations, expected at most 500"):
        sweep.create_arms({"seed": list(range(501))})
    with pytest.raises(InputError, match="two of the combinations are the same"):
        sweep.create_arms({"seed": [1, 1]})
    with pytest.raises(InputError, match="loss.nmae"):
        sweep.sweep(protocol, tmp_path / "sweep", {"loss.nmae": ["ce"]})
    assert not calls
