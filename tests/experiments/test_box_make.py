"""The box by one command: which stages there are, in what order, and how they go on."""

import pathlib

import pytest

from auxseg.base.errors import InputError
from experiments.box import make, nodules, stages


def write_down(done, fail=()):
    def run(name):
        if name in fail:
            raise InputError(f"{name} failed")
        done.append(name)

    return [stages.Stage(name, f"does {name}", lambda name=name: run(name)) for name in "abc"]


def test_a_stage_that_is_done_is_passed_over_and_one_that_failed_comes_again(tmp_path, capsys):
    done = []
    with pytest.raises(InputError, match="b failed"):
        stages.run_all(write_down(done, fail="b"), tmp_path)
    stages.run_all(write_down(done), tmp_path)
    assert done == ["a", "b", "c"]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "[1/3] a: does a",
        "[2/3] b: does b",
        "[1/3] a: done before",
        "[2/3] b: does b",
        "[3/3] c: does c",
    ]
    stages.run_all(write_down(done), tmp_path, ["b"])
    assert done == ["a", "b", "c", "b"]
    with pytest.raises(InputError, match="--stages.*'d'"):
        stages.run_all(write_down(done), tmp_path, ["d"])


def test_a_command_that_fails_is_named():
    with pytest.raises(
        InputError, match="-m experiments.no_such_thing 1: exit status 1; start again to go on"
    ):
        stages.command("experiments.no_such_thing", 1)()


def test_the_stages_follow_from_one_another(tmp_path, monkeypatch):
    """Each command is seen in its order; a trial has few steps, and no network is scored before it is trained."""
    seen = []
    record = lambda module, *arguments: lambda: seen.append(f"{module} {' '.join(map(str, arguments))}")  # noqa: E731
    monkeypatch.setattr(stages, "command", record)
    monkeypatch.setattr(stages, "call", record)
    monkeypatch.setattr(nodules, "call", record)
    for name in ("make_slices", "make_pack"):
        monkeypatch.setattr(make, name, lambda *_, name=name, **__: seen.append(name))
    monkeypatch.setattr(nodules, "pack", lambda *_: seen.append("nodules.pack"))
    real = pathlib.Path("/real")
    stages.run_all(make.create_stages(real, tmp_path, trial=True), tmp_path / "stages")
    assert seen[0] == "make_slices" and seen[-2:] == ["nodules.pack", "make_pack"]
    lungs = [line for line in seen if line.startswith("auxseg.main")]
    assert len(lungs) == 2 + len(make.PATIENTS) and all(
        "--config.train.num_epochs=1" in line for line in lungs
    )
    for patient in make.PATIENTS:
        (own,) = [line for line in lungs if f"/runs/without_{patient} " in line]
        assert f"slices/without_{patient} " in own and own.endswith("--config.optim.cosine_epochs=1")
    assert seen.index(lungs[-1]) < next(k for k, line in enumerate(seen) if line.startswith("score "))
    looks = [line for line in seen if line.startswith("nodule_train")]
    assert len(looks) == 5 and all(f"--steps={nodules.TRIAL_STEPS}" in line for line in looks)
    assert [line.split("--fold=")[1][:2].strip() for line in looks] == ["0", "1", "0", "1", "-1"]
    seen.clear()
    full = make.create_stages(real, tmp_path, trial=False)
    stages.run_all(full, tmp_path / "again")
    assert not any("--steps" in line or "num_epochs" in line for line in seen)


def test_a_trial_stays_one(tmp_path):
    make.check_kind(tmp_path, True)
    make.check_kind(tmp_path, True)
    with pytest.raises(InputError, match="begun with --trial; give another folder"):
        make.check_kind(tmp_path, False)
