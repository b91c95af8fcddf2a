"""The workdir: one writer, settings that must not change, rows that survive a kill."""

import multiprocessing

import fakes
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.devices import parallel
from auxseg.runs import run_folder
from configs import base


def hold(path, ready, release):
    with run_folder.hold(path):
        ready.set()
        release.wait(120)


def test_second_process_is_refused_and_the_lock_goes_with_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(120)
    with pytest.raises(InputError, match="another process is working in it"):
        with run_folder.hold(tmp_path):
            pass
    other.kill()
    other.join()
    with run_folder.hold(tmp_path) as path:
        assert path == tmp_path


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run: Not a directory; choose another"):
        with run_folder.hold(tmp_path / "file" / "run"):
            pass


def test_workdir_whose_name_is_no_text_in_this_locale(tmp_path):
    with pytest.raises(InputError, match="its name is no text in this locale; set PYTHONUTF8=1"):
        with run_folder.hold(tmp_path / "l\udce4ufe"):
            pass
    assert not any(tmp_path.iterdir())


def test_config_comes_back_as_it_was(tmp_path):
    config = base.get_config()
    run_folder.claim_config(tmp_path, config)
    found = run_folder.read_config(tmp_path)
    assert found.to_dict() == config.to_dict() and found.is_locked
    assert found.data.size == (320, 320)


def test_other_settings_are_refused_and_named(tmp_path):
    config = base.get_config()
    run_folder.claim_config(tmp_path, config)
    with config.unlocked():
        config.model.se = False
        config.data.size = (64, 64)
        config.train.max_minutes = 3.0
    with pytest.raises(InputError) as error:
        run_folder.claim_config(tmp_path, config)
    assert "data.size: [320, 320] -> [64, 64]; model.se: true -> false" in str(error.value)
    assert "max_minutes" not in str(error.value)
    assert run_folder.read_config(tmp_path).model.se  # and the stored settings are as they were


def test_settings_that_do_not_change_the_result_may_change(tmp_path):
    config = base.get_config()
    run_folder.claim_config(tmp_path, config)
    with config.unlocked():
        config.train.max_minutes = 3.0
        config.data.dir = "/elsewhere"
    run_folder.claim_config(tmp_path, config)
    assert run_folder.read_config(tmp_path).train.max_minutes == 3.0


def test_rows_survive_a_half_written_line_and_later_epochs_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2, 3):
        files.append_row(path, fakes.epoch_row(epoch))
    with open(path, "a") as handle:
        handle.write('{"epoch": 4, "lo')
    assert [row["epoch"] for row in files.read_rows(path)] == [1, 2, 3]
    run_folder.keep_rows(path, 2)
    assert files.read_rows(path) == [fakes.epoch_row(1), fakes.epoch_row(2)]


def test_rows_are_strict_json(tmp_path):
    with pytest.raises(ValueError):
        files.append_row(tmp_path / "metrics.jsonl", {"epoch": 1, "loss": float("nan")})


@pytest.mark.parametrize("content", [None, "{", ""])
def test_unreadable_json_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="config.json"):
        files.read_json(path)


def test_machine_is_described():
    found = run_folder.describe_machine(parallel.choose_devices(2))
    assert found["backend"] == "cpu" and len(found["devices"]) == 2
    assert found["packages"]["jax"] and found["packages"]["orbax-checkpoint"]
