"""What is kept of a run is what the run says."""

import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from configs import base
from experiments.checks import collect


@pytest.fixture
def run(tmp_path):
    config = base.get_config()
    with config.unlocked():
        config.model.se = False
    run_folder.claim_config(tmp_path, config)
    row = {
        "epoch": 1,
        "train": {"loss": 2.0},
        "val": {"loss": 1.0, "dice": {"nodule": 0.5}},
        "learning_rate": 1e-3,
        "seconds": 3.0,
    }
    files.append_row(tmp_path / "metrics.jsonl", row)
    files.write_json(tmp_path / "summary.json", {"epochs": 1, "scores": {}, "report": "elsewhere"})
    files.write_json(tmp_path / "splits.json", {"train": ["a", "b"], "val": ["c"]})
    files.write_json(tmp_path / "versions.json", {"python": "3"})
    return tmp_path


def test_numbers_settings_and_sizes_are_kept_and_paths_are_not(run):
    kept = collect.collect(run)
    assert kept["changed_from_base"] == ["model.se: true -> false"]
    assert kept["cases"] == {"train": 2, "val": 1}
    assert kept["epochs"][0]["val_dice"] == {"nodule": 0.5}
    assert "report" not in kept["summary"]


def test_unfinished_run_is_refused(run):
    files.append_row(run / "metrics.jsonl", {"epoch": 2})
    with pytest.raises(InputError, match="the summary is of 1 epochs, metrics.jsonl of 2"):
        collect.collect(run)
