"""A run's folder that was damaged, forged or whose data changed: one line, or it goes on."""

import json
import types

import fakes
import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder, splits
from configs import base

DATA = types.SimpleNamespace(split="train_val_test", fold=0, num_folds=5, split_seed=1)


@pytest.fixture
def workdir(tmp_path):
    run_folder.claim_config(tmp_path, base.get_config())
    return tmp_path


def test_a_damaged_line_of_the_metrics_is_left_out_and_named(workdir, capsys):
    path = workdir / "metrics.jsonl"
    for epoch in (1, 2, 3):
        files.append_row(path, fakes.epoch_row(epoch))
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 3] = 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="metrics.jsonl: line 2 cannot be read"):
        files.read_rows(path)
    run_folder.keep_rows(path, 3)
    assert [row["epoch"] for row in files.read_rows(path)] == [1, 3]
    assert "line 2 is damaged and left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.size", [60000, 60000], "data.size: got .60000, 60000., expected two whole numbers"),
        ("data.size", "320", "data.size is '320', expected tuple"),
        ("model.depth", "four", "model.depth is 'four', expected int"),
        ("model.depth", True, "model.depth is True, expected int"),
        ("model", None, "model is None, expected settings"),
        ("data.slab", None, "data.slab is None, expected int; .* or of another version"),
        ("data.window_hu", [1], "data.window_hu is .1,., expected two numbers"),
        ("data.window_hu", ["nan", "nan"], "data.window_hu is .'nan', 'nan'., expected tuple"),
        ("data.sources", ["a"], "data.sources is .'a',., expected settings"),
        ("data.sources", {"a": {"dir": 5}}, "data.sources.a.dir is 5, expected str"),
        ("model.bn_epsilon", None, "model.bn_epsilon is None, expected float"),
        ("model.bn_momentum", "x", "model.bn_momentum is 'x', expected float"),
        ("model.se", 1, "model.se is 1, expected bool"),
        ("train.num_epochs", "many", "train.num_epochs is 'many', expected int"),
        ("train.nodule_fraction", "half", "train.nodule_fraction is 'half', expected float"),
        ("optim.learning_rate", float("inf"), "optim.learning_rate is inf, expected float"),
        ("data.classes", ["lung"], "data.classes: got"),
    ],
)
def test_settings_of_another_kind_are_refused(workdir, name, value, message):
    stored = json.loads((workdir / "config.json").read_text())
    *group, last = name.split(".")
    (stored[group[0]] if group else stored)[last] = value
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=rf"config.json: {message}"):
        run_folder.read_config(workdir)


def test_whole_numbers_and_sources_are_settings(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    stored["train"] |= {"max_minutes": 3, "nodule_fraction": 1}
    stored["data"] |= {"mm_per_pixel": "own", "sources": {"a": {"name": "npz", "dir": "x", "share": 4}}}
    (workdir / "config.json").write_text(json.dumps(stored))
    config = run_folder.read_config(workdir)
    assert config.train.max_minutes == 3 and config.data.sources.a.share == 4


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"train": "abc", "val": []},
        {"train": [1, 2], "val": []},
        {"train": {"a": 1}, "val": []},
        {"train": ["a"]},
        {"val": ["a"]},
    ],
)
def test_splits_of_another_kind_are_refused(workdir, stored):
    (workdir / "splits.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="splits.json: expected lists of case ids by split"):
        splits.read_splits(workdir, fakes.two_discs(4))


def test_a_train_case_that_is_listed_as_test_is_refused(workdir):
    data = fakes.two_discs(20)
    members = splits.claim_splits(workdir, data, DATA)
    stored = json.loads((workdir / "splits.json").read_text())
    moved = str(data.table.case_id[members["train"][0]])
    stored["test"].append(moved)
    (workdir / "splits.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=f"case_id {moved} is in train and in test; its scores would be"):
        splits.read_splits(workdir, data)


def test_data_that_changed_between_two_starts_are_noticed(workdir):
    data = fakes.two_discs(20)
    splits.claim_splits(workdir, data, DATA)
    splits.claim_splits(workdir, fakes.two_discs(20), DATA)
    assert splits.describe_changes(workdir, data) == ()
    images, masks = data.read(np.arange(20))
    masks[3] = 0
    changed = fakes.dataset(images, masks)
    with pytest.raises(
        InputError, match="no longer what .* was started with .table differ.*or start a new run"
    ):
        splits.claim_splits(workdir, changed, DATA)
    (said,) = splits.describe_changes(workdir, changed)  # evaluation says so, and goes on
    assert "(table differ): images, masks or their table have changed since" in said


def test_a_run_may_be_given_more_epochs_and_nothing_else(workdir, capsys):
    config = base.get_config()
    config.train.num_epochs = 80
    run_folder.claim_config(workdir, config)
    assert "train.num_epochs: 50 -> 80: the run goes on" in capsys.readouterr().out
    assert run_folder.read_config(workdir).train.num_epochs == 80
    for changes in ({"num_epochs": 60}, {"num_epochs": 90, "batch_size": 4}):
        config = base.get_config()
        config.train.update(changes)
        with pytest.raises(InputError, match="was started with other settings: .*train.num_epochs: 80 -> "):
            run_folder.claim_config(workdir, config)


def test_the_split_that_is_judged_unless_another_is_named():
    assert splits.default_split({"train": [], "val": [], "test": []}) == "test"
    assert splits.default_split({"train": [], "val": []}) == "val"
