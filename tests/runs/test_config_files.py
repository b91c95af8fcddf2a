"""--config by path and by name, from any folder; a run's own settings; what is said of those that cannot be read."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from auxseg.base.errors import InputError
from auxseg.runs import config_files, run_folder

ROOT = pathlib.Path(__file__).parents[2]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def call(folder, *arguments):
    """Returns (status, stderr) of auxseg.main in a folder that is no clone."""
    process = subprocess.run(
        [sys.executable, "-m", "auxseg.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return process.returncode, process.stderr


@pytest.mark.parametrize("text", ["phantom", "phantom.py", "configs/phantom.py"])
def test_own_settings_are_found_by_name_in_any_folder(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(text) == ROOT / "configs" / "phantom.py"
    assert config_files.read_config(text).data.name == "phantom"


def test_a_file_that_is_there_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "configs" / "phantom.py", "")
    assert config_files.find("configs/phantom.py") == pathlib.Path("configs/phantom.py")
    assert config_files.find("phantom") == ROOT / "configs" / "phantom.py"


def test_a_file_elsewhere_starts_from_ours(tmp_path):
    text = "from configs import smoke\ndef get_config():\n    c = smoke.get_config()\n    c.seed = 8\n    return c\n"
    config = config_files.read_config(write(tmp_path / "mine.py", text))
    assert (config.seed, config.model.depth, config.is_locked) == (8, 2, True)


def test_a_folder_configs_elsewhere_has_its_own_neighbours_first(tmp_path):
    text = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 77})\n"
    write(tmp_path / "configs" / "base.py", text)
    mine = write(tmp_path / "configs" / "mine.py", "from configs import base\nget_config = base.get_config\n")
    assert config_files.read_config(mine).seed == 77
    assert config_files.read_config("seed3").seed == 3  # ours again
    mine.write_text("from configs import seed3\nget_config = seed3.get_config\n")
    with pytest.raises(InputError, match="AttributeError: .*'data'"):  # ours on their base, which has no data
        config_files.read_config(mine)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nowhere\n", "No module named 'nowhere' \\(line 1 of .*mine.py"),
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero \\(line 2 of"),
        ("def get_config(:\n", "SyntaxError"),
        ("def get_config():\n    pass\n", "gave NoneType, expected a ConfigDict"),
        ("", "AttributeError: .*get_config"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, text, words):
    path = write(tmp_path / "mine.py", text)
    with pytest.raises(InputError, match=words):
        config_files.read_config(path)


def test_settings_of_a_run_go_on_and_can_be_changed(tmp_path):
    """Settings that were not given keep their kind: data.dir can be given, though the run had none."""
    config = config_files.read_config("smoke")
    run_folder.claim_config(tmp_path, config)
    path = tmp_path / "config.json"
    assert run_folder.config_to_dict(config_files.read_config(path)) == json.loads(path.read_text())
    found = config_files.read_config(path)
    found.data.dir, found.train.max_minutes = "elsewhere", 5.0
    assert found.data.size == (64, 64)
    with pytest.raises(TypeError):
        found.data.dir = 3


def test_workdir_alone_takes_the_settings_that_lie_there(tmp_path):
    write(tmp_path / "config.json", "{}")
    complete = config_files.with_settings_of_workdir
    expected = ["main", f"--config={tmp_path}/config.json", f"--workdir={tmp_path}", "--config.seed=2"]
    assert complete(["main", f"--workdir={tmp_path}", "--config.seed=2"]) == expected
    assert complete(["main", "--workdir", str(tmp_path)])[1] == expected[1]
    for left in (["main"], ["main", "--config=a.py", f"--workdir={tmp_path}"], ["main", "--help"]):
        assert complete(left) == left
    with pytest.raises(InputError, match="holds no run to go on with"):
        complete(["main", f"--workdir={tmp_path / 'none'}"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config: not given; expected a settings file"),
        (["--config=fantom"], "got 'fantom', expected a settings file (FILE.py) or one of base, "),
        (["--workdir=nothing"], "nothing holds no run to go on with"),
        (["--config=phantom", "--config.data.name=fantom"], "data.name: got 'fantom'"),
        (["--config=bad.py"], "bad.py cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_command_in_another_folder_says_one_line(tmp_path, arguments, words):
    write(tmp_path / "bad.py", "import nowhere\n")
    status, err = call(tmp_path, *arguments)
    assert status == 2 and words in err and err.count("\n") == 1, err


def test_workdir_alone_goes_on_with_the_run(tmp_path):
    status, err = call(
        tmp_path, "--config=smoke", "--config.train.num_epochs=1", "--config.data.cache_dir=cache"
    )
    assert status == 0, err
    status, err = call(tmp_path, "--workdir=runs/smoke")
    assert status == 0, err
    status, err = call(tmp_path, "--workdir=runs/smoke", "--config.model.se=False")
    assert status == 2 and "started with other settings: model.se: true -> false" in err


def test_every_setting_has_a_value_and_a_comment():
    found = config_files.describe_settings()
    flat = run_folder.flatten(run_folder.config_to_dict(config_files.read_config("base")))
    assert [name for name, _, comment in found if not comment] == []
    groups = {"data.sources"}  # empty in base.py, and so no setting of a run that has none
    assert {name for name, _, _ in found} - groups == flat.keys()
    named = {name: (value, comment) for name, value, comment in found}
    assert named["data.phantom.matrix"] == (256, "rows and columns of a slice")
    assert named["eval.num_panels"][0] == flat["eval.num_panels"] and named["data.dir"][0] is None


def test_full_help_lists_every_setting():
    done = subprocess.run(
        [sys.executable, "-m", "auxseg.main", "--helpfull"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name, _, comment in config_files.describe_settings():
        assert f"--config.{name}: {comment.split()[0]}" in done.stdout
