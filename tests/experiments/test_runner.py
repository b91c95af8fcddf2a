"""Studies: planned, resumed, failing in part, several at once; most with a made-up training."""

import csv
import sys

import fakes
import pytest

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from auxseg.training import interruption, loop, setup
from configs import base
from experiments.studies import runner

ARMS = {"se": {}, "no_se": {"model.se": False}}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return fakes.write_npz(tmp_path_factory.mktemp("data") / "npz", fakes.two_discs(24))


def small_protocol(npz, **settings):
    config = base.get_config()
    with config.unlocked():
        config.data.cache_dir = str(npz.parent / "cache")
        config.model.depth = 1
        config.model.lowering = "plain"
        config.train.num_devices = 1
    settings = {"size": 16, "base_width": 4, "epochs": 1, "batch_size": 8, "seeds": (1, 2)} | settings
    return runner.Protocol(data="npz", data_dir=str(npz), num_folds=3, config=config, **settings)


def fake_train(calls, fail=()):
    """Returns a training that writes what a run leaves: the Dice of case i is 0.8 + i / 100, less without SE."""

    def trained(config, workdir, *, finish):
        calls.append(workdir.name)
        if workdir.name in fail:
            raise InputError("the loss is not finite")
        run_folder.claim_config(workdir, config)
        with open(workdir / "cases.csv", "w", newline="", encoding="utf-8") as handle:
            names = [f"{c}_{k}" for c in ("left_lung", "right_lung", "nodule") for k in runner.SCORE_COLUMNS]
            writer = csv.DictWriter(handle, ["case_id", "patient", "split", *names])
            writer.writeheader()
            for i in range(8):
                dice = 0.8 + i / 100 - 0.05 * (not config.model.se)
                case = f"fold{config.data.fold}-{i}"
                row = {n: dice if n.endswith("dice") else 50 for n in names}
                writer.writerow({"case_id": case, "patient": case, "split": "test", **row})
        files.write_json(workdir / "summary.json", {"seconds": 1.0})

    return trained


@pytest.fixture
def calls(monkeypatch):
    """Training made up and counted; no time is measured."""
    found = []
    monkeypatch.setattr(loop, "train", fake_train(found))
    monkeypatch.setattr(runner, "estimate_seconds", lambda config, in_child=False: 7200.0)
    return found


def test_the_plan_keeps_arms_level_and_changes_only_what_it_says(npz):
    protocol = small_protocol(npz, folds=(0, 1))
    config = runner.create_config(protocol)
    planned = runner.plan(config, ARMS, protocol)
    assert [run.name for run in planned[:4]] == ["se-f0-s1", "no_se-f0-s1", "se-f1-s1", "no_se-f1-s1"]
    assert len(planned) == 8 and all(run.config.is_locked for run in planned)
    assert (config.data.size, config.model.base_width, config.data.split) == ((16, 16), 4, "kfold")
    changed = run_folder.list_differences(
        run_folder.config_to_dict(config), run_folder.config_to_dict(planned[7].config)
    )
    assert [text.split(":")[0] for text in changed] == [
        "data.fold",
        "model.se",
        "seed",
        "train.order_seed",
    ]


def test_paired_seeds_run_on_one_fold_each(npz):
    protocol = small_protocol(npz, folds=(0, 2), paired=True)
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    assert [run.name for run in planned] == ["se-f0-s1", "no_se-f0-s1", "se-f2-s2", "no_se-f2-s2"]
    assert runner.list_draws(small_protocol(npz, folds=(0, 2))) == [(1, 0), (1, 2), (2, 0), (2, 2)]
    with pytest.raises(InputError, match="got 2 seeds and 1 folds"):
        runner.list_draws(small_protocol(npz, paired=True))


@pytest.mark.parametrize("data", ["phantom", "npz", "luna16"])
def test_every_choice_of_data_gives_a_config_that_can_be_run(data):
    config = runner.create_config(runner.Protocol(data=data, data_dir="somewhere"))
    setup.check_settings(config)
    assert config.data.name == data and config.is_locked


def test_a_cosine_ends_with_the_epochs_asked_for():
    phantom = runner.create_config(runner.Protocol(data="phantom", epochs=3))
    assert phantom.optim.cosine_epochs == phantom.train.num_epochs == 3
    assert runner.create_config(runner.Protocol(data="luna16", epochs=3)).optim.cosine_epochs == 0


@pytest.mark.parametrize(
    ("changes", "words"), [({"model.typo": 1}, "typo"), ({"model.se": "yes"}, "model.se")]
)
def test_settings_that_there_are_not(npz, changes, words):
    config = runner.create_config(small_protocol(npz))
    with pytest.raises(InputError, match=words):
        runner.override(config, changes)


def test_a_study_runs_once_and_goes_on_where_it_stopped(npz, tmp_path, calls, capsys):
    protocol = small_protocol(npz, folds=(0, 1))
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    assert runner.run_all(tmp_path / "study", planned, dry_run=True) == {}
    assert not calls and not (tmp_path / "study").exists()
    assert "8 runs, 0 finished" in capsys.readouterr().out
    runner.run_all(tmp_path / "study", planned[:3])
    workdirs = runner.run_all(tmp_path / "study", planned)
    assert calls == [run.name for run in planned] and list(workdirs) == planned
    out = capsys.readouterr().out
    assert "8 runs, 3 finished" in out and "10.0 h" in out and "[5/5]" in out
    result = runner.finish(tmp_path / "study", workdirs, titles={"no_se": "without SE"})
    assert [row["arm"] for row in result["arms"][::3]] == ["se", "without SE"]
    row = result["differences"][0]
    assert row["cases"] == 16 and row["difference"] == pytest.approx(-0.05)
    assert row["supported"] and row["between_runs_high"] == pytest.approx(-0.05)  # paired by seed and fold
    with open(tmp_path / "study" / "cases.csv", encoding="utf-8", newline="") as handle:
        kept = list(csv.DictReader(handle))
    assert len(kept) == 8 * 8 and {row["fold"] for row in kept} == {"0", "1"}
    assert (tmp_path / "study" / "compare" / "index.html").is_file()


def test_other_settings_are_refused_before_anything_is_run(npz, tmp_path, calls):
    protocol = small_protocol(npz)
    runner.run_all(tmp_path, runner.plan(runner.create_config(protocol), ARMS, protocol))
    other = small_protocol(npz, epochs=3)
    with pytest.raises(InputError, match=r"train.num_epochs: 1 -> 3.*--out"):
        runner.run_all(tmp_path, runner.plan(runner.create_config(other), ARMS, other))
    assert len(calls) == 4


def test_a_run_that_fails_does_not_stop_the_others(npz, tmp_path, calls, monkeypatch, capsys):
    protocol = small_protocol(npz)
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    monkeypatch.setattr(loop, "train", fake_train(calls, fail=("se-f0-s1",)))
    workdirs = runner.run_all(tmp_path / "one", planned)
    assert [run.name for run in workdirs] == ["no_se-f0-s1", "se-f0-s2", "no_se-f0-s2"]
    assert "failed: se-f0-s1: the loss is not finite" in capsys.readouterr().out
    monkeypatch.setattr(loop, "train", fake_train(calls, fail=[run.name for run in planned]))
    with pytest.raises(InputError, match="every run failed"):
        runner.run_all(tmp_path / "all", planned)


def test_a_run_of_another_study_is_taken_over(npz, tmp_path, calls):
    protocol = small_protocol(npz)
    config = runner.create_config(protocol)
    runner.run_all(tmp_path / "first", runner.plan(config, ARMS, protocol))
    planned = runner.plan(config, {"whole": {}, "aux_0": {"loss.aux_weight": 0.0}}, protocol)
    workdirs = runner.run_all(tmp_path / "second", planned, reuse=[tmp_path / "first", tmp_path / "nowhere"])
    assert calls[4:] == ["aux_0-f0-s1", "aux_0-f0-s2"]
    assert [str(path.relative_to(tmp_path)) for path in workdirs.values()] == [
        "first/runs/se-f0-s1",
        "second/runs/aux_0-f0-s1",
        "first/runs/se-f0-s2",
        "second/runs/aux_0-f0-s2",
    ]


@pytest.mark.parametrize(
    ("only", "words"), [(("sse",), "'se', 'no_se'"), (("se",), "at least two of se, no_se")]
)
def test_arms_that_there_are_not(only, words):
    with pytest.raises(InputError, match=words):
        runner.choose_arms(ARMS, only)


def test_runs_of_other_settings_are_not_one_arm(npz, tmp_path, calls):
    protocol = small_protocol(npz)
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    workdirs = runner.run_all(tmp_path, planned)
    with pytest.raises(InputError, match=r"se-f0-s1 and no_se-f0-s1 differ in model.se"):
        runner.finish(tmp_path, workdirs, titles={"se": "both", "no_se": "both"})


CHILD = """
import pathlib, sys, time
from auxseg.base import files
from auxseg.runs import run_folder
workdir = pathlib.Path(sys.argv[1].removeprefix("--workdir="))
config = run_folder.read_config(workdir)
started = workdir / "started"
started.touch()
for _ in range(600):
    if len(list(workdir.parent.glob("*/started"))) >= 2:
        break
    time.sleep(0.1)
if workdir.name in FAIL:
    sys.exit(STATUS)
files.write_json(workdir / "summary.json", {"se": config.model.se})
"""


def use_child(monkeypatch, fail=(), status=3):
    """Replaces training in processes by a script that waits until another one has started."""
    code = CHILD.replace("FAIL", repr(fail)).replace("STATUS", str(status))
    monkeypatch.setattr(runner, "CHILD", (sys.executable, "-c", code))


def test_runs_at_once_are_processes_of_their_own(npz, tmp_path, calls, monkeypatch, capsys):
    use_child(monkeypatch, fail=("no_se-f0-s2",))
    protocol = small_protocol(npz)
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    workdirs = runner.run_all(tmp_path / "study", planned, jobs=2)
    out = capsys.readouterr().out
    assert list(workdirs) == planned[:3] and "2 at once" in out and "2.0 h a run" in out
    assert "failed: no_se-f0-s2: exit status 3" in out
    assert [files.read_json(path / "summary.json")["se"] for path in workdirs.values()] == [True, False, True]


def test_an_interrupted_process_ends_the_study(npz, tmp_path, calls, monkeypatch):
    use_child(monkeypatch, fail=("se-f0-s1",), status=command.EXIT_INTERRUPTED)
    protocol = small_protocol(npz)
    planned = runner.plan(runner.create_config(protocol), ARMS, protocol)
    with pytest.raises(interruption.Interrupted, match="start the same command again"):
        runner.run_all(tmp_path / "study", planned, jobs=2)


def test_the_process_trains_what_it_is_told(npz, tmp_path, calls):
    config = runner.create_config(small_protocol(npz))
    (tmp_path / "one").mkdir()
    run_folder.claim_config(tmp_path / "one", config)
    assert runner.train_one(tmp_path / "one") == 0
    assert calls == ["one"] and runner.is_finished(tmp_path / "one")


def test_the_estimate_counts_what_a_run_does(npz, monkeypatch):
    config = runner.create_config(small_protocol(npz, epochs=10))
    monkeypatch.setattr(runner, "measure_step", lambda config: (5.0, 2.0))
    # 24 cases in 3 folds: 8 are a step of training; 8 of val a third of one each epoch, val and test at the end
    assert runner.estimate_seconds(config) == pytest.approx(10 + 2 * (10 * (1 + 1 / 3) + 2 * 2 / 3))


def test_durations_are_words():
    assert [runner.format_seconds(s) for s in (40, 700, 7200, 300_000)] == [
        "40 s",
        "12 min",
        "2.0 h",
        "3.5 days",
    ]


@pytest.mark.parametrize("texts", [["1", "1"], ["a"], [], ["1", "-2"]])
def test_wrong_numbers_are_one_clear_line(texts):
    with pytest.raises(InputError, match="--seeds: got .*expected different whole numbers"):
        runner.whole_numbers("--seeds", texts)
