"""Runs of before a setting was there: what it was then, by the settings of the first version as they were stored."""

import json
import pathlib

import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs import config_files, older, run_folder
from configs import base

FIRST = pathlib.Path(__file__).with_name("config_of_the_first_version.json")
CHANGED = {"loss.aux_weight"}  # the one setting whose value is another today


def todays(**changes):
    config = base.get_config()
    config.loss.aux_weight = 0.1
    for name, value in changes.items():
        group, field = name.split("__")
        config[group][field] = value
    return config


def test_every_setting_is_of_the_first_version_or_says_what_it_was():
    first = files.read_json(FIRST)
    names = {
        (group, name)
        for group, values in base.get_config().items()
        if group != "seed"
        for name in values
        if name not in first.get(group, {})
    }
    added = {(group, name) for group, values in older.ADDED.items() for name in values}
    assert names == added | {("data", "slab_step_mm")}


def test_a_run_of_the_first_version_goes_on_with_todays_settings(tmp_path):
    (tmp_path / "config.json").write_text(FIRST.read_text())
    assert run_folder.read_config(tmp_path).data.slab == 1
    run_folder.claim_config(tmp_path, todays())
    assert run_folder.config_to_dict(run_folder.read_config(tmp_path)) == run_folder.config_to_dict(todays())


def test_what_differs_from_a_run_of_the_first_version_is_still_refused(tmp_path):
    (tmp_path / "config.json").write_text(FIRST.read_text())
    with pytest.raises(InputError) as error:
        run_folder.claim_config(tmp_path, todays(data__target="share", insert__enabled=True))
    assert 'data.target: "consensus" -> "share"; insert.enabled: false -> true (' in str(error.value)


def test_workdir_alone_goes_on_with_an_older_run(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(FIRST.read_text())
    run_folder.claim_config(tmp_path, config_files.read_config(path))
    differences = run_folder.list_differences(
        files.read_json(FIRST), run_folder.config_to_dict(base.get_config())
    )
    assert {line.split(":")[0] for line in differences} == CHANGED


def test_slabs_were_neighbours_whatever_their_distance():
    """Before data.slab_step_mm, which is 2.5 by default; of single slices it means nothing."""
    stored = json.loads(base.get_config().to_json())
    del stored["data"]["slab_step_mm"]
    assert older.complete(stored)["data"]["slab_step_mm"] == 2.5
    stored["data"]["slab"] = 3
    assert older.complete(stored)["data"]["slab_step_mm"] == 0.0


def test_a_number_by_class_is_one_for_all_where_all_are_alike():
    stored = {
        "loss": {"class_weights": [1.0, 1.0, 1.0, 30.0], "tversky_alpha": 0.3, "tversky_beta": [0.7] * 4}
    }
    found = older.complete(stored)["loss"]
    assert found["class_weights"] == [1.0, 1.0, 1.0, 30.0]
    assert found["tversky_alpha"] == [0.3] and found["tversky_beta"] == [0.7]
