"""End to end: train, stop, be killed, go on; the end is that of a run that was never stopped."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import fakes
import jax
import numpy as np
import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets import load
from auxseg.devices import parallel
from auxseg.devices.processes import Agreement
from auxseg.evaluation import evaluate_run
from auxseg.runs import bundles, checkpoints
from auxseg.runs.splits import claim_splits
from auxseg.training import augment, insertion, interruption, loop, validation
from auxseg.training import setup as training_setup
from auxseg.training.settings import create_step_settings
from auxseg.training.setup import create_initial_state, create_state, create_train_fn
from configs import base

ROOT = pathlib.Path(__file__).parents[2]
NUM_EPOCHS = 4


def small_config(folder, **changes):
    config = base.get_config()
    with config.unlocked():
        config.data.name = "npz"
        config.data.dir = str(folder)
        config.data.cache_dir = str(folder.parent / "cache")
        config.data.size = (16, 16)
        config.data.split = "train_val_test"
        config.model.base_width = 4
        config.model.depth = 1
        config.model.lowering = "plain"
        config.train.num_epochs = NUM_EPOCHS
        config.train.batch_size = 4
        config.train.bn_refresh_batches = 2
        config.train.num_devices = 1
        config.eval.num_panels = 0  # no report: test_evaluate.py has that path
        for name, value in changes.items():
            group, field = name.split("__")
            config[group][field] = value
    return config


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return fakes.write_npz(tmp_path_factory.mktemp("data") / "npz", fakes.two_discs(24))


@pytest.fixture(scope="module")
def unbroken(npz, tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    loop.train(small_config(npz, eval__num_pictures=2), workdir, finish=evaluate_run.finish)
    return workdir


@pytest.fixture
def half(unbroken, npz, tmp_path):
    """A run of half of the epochs; started with all of them it goes on."""
    workdir = tmp_path / "half"
    loop.train(small_config(npz, train__num_epochs=NUM_EPOCHS // 2), workdir, finish=evaluate_run.finish)
    return workdir


def assert_same_training(one, other):
    for kind in ("best", "latest"):
        steps = [
            max(int(p.name) for p in (w / "checkpoints" / kind).iterdir() if p.name.isdigit())
            for w in (one, other)
        ]
        assert steps[0] == steps[1]
    weights = [checkpoints.restore_best(w)[0] for w in (one, other)]
    for a, b in zip(*map(jax.tree.leaves, weights), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [
        [{**r["train"], **r["val"], "lr": r["learning_rate"]} for r in files.read_rows(w / "metrics.jsonl")]
        for w in (one, other)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == NUM_EPOCHS


def assert_same_run(one, other):
    assert_same_training(one, other)
    assert (one / "cases.csv").read_bytes() == (other / "cases.csv").read_bytes()


def command(npz, workdir, *flags, **variables):
    config = workdir.parent / "configs"
    config.mkdir(exist_ok=True)
    text = f"""
import pathlib
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests/training")!r}]
import test_loop
def get_config():
    return test_loop.small_config(pathlib.Path({str(npz)!r})).lock()
"""
    (config / "small.py").write_text(text, encoding="utf-8")
    arguments = [
        sys.executable,
        "-m",
        "auxseg.main",
        f"--config={config / 'small.py'}",
        f"--workdir={workdir}",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture(scope="module")
def unbroken_command(npz, tmp_path_factory):
    """As `unbroken`, but by the command: another process has another number of threads, and other rounding.

    In the plainest of locales, where Python takes text for ASCII.
    """
    workdir = tmp_path_factory.mktemp("commands") / "unbroken"
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    code, _, err = finish(command(npz, workdir, **plain))
    assert code == 0, err
    return workdir


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_run_leaves_what_it_should(unbroken):
    names = {p.name for p in unbroken.iterdir()}
    expected = {
        "config.json",
        "versions.json",
        "splits.json",
        "metrics.jsonl",
        "summary.json",
        "cases.csv",
        "checkpoints",
    }
    assert expected <= names and any(n.startswith("events.") for n in names)
    content = b"".join(path.read_bytes() for path in unbroken.glob("events.*"))
    assert len(set(re.findall(rb"val/case\d+", content))) == 2 and content.count(b"IHDR") == 2 * NUM_EPOCHS
    rows = files.read_rows(unbroken / "metrics.jsonl")
    assert [r["epoch"] for r in rows] == list(range(1, NUM_EPOCHS + 1))
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]
    for row in rows:
        assert {
            "learning_rate",
            "seconds",
            "images_per_second",
            "peak_memory_mb",
            "waited_for_data",
        } <= row.keys()
        assert {"loss", "accuracy", "pooled_dsc", "dice", "dice_cases"} <= row["val"].keys()
    splits = files.read_json(unbroken / "splits.json")
    cases = [case for members in splits.values() for case in members]
    assert len(cases) == len(set(cases)) == 24 and set(splits) == {"train", "val", "test"}
    lines = (unbroken / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(splits["val"]) + len(splits["test"])


def test_evaluate_gives_the_same_numbers_from_the_checkpoint_alone(unbroken, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(unbroken, copy)
    for name in ("summary.json", "cases.csv", "metrics.jsonl", "checkpoints/latest"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stored = files.read_json(unbroken / "summary.json")["scores"]
    for split in ("val", "test"):
        found = evaluate_run.evaluate(copy, split=split)
        for name, value in stored[split].items():
            assert found[name] == value
    assert evaluate_run.evaluate(copy)["split"] == "test"
    with pytest.raises(InputError, match="split: got 'tset', expected one of 'train', 'val', 'test'"):
        evaluate_run.evaluate(copy, split="tset")


def test_resumed_run_equals_an_unbroken_one(half, unbroken, npz):
    loop.train(small_config(npz), half, finish=evaluate_run.finish)
    assert_same_run(half, unbroken)


def stopped_after(num_steps, config, workdir, monkeypatch, where="in epoch 2 after 2 of 5 steps"):
    """Trains until a signal is seen after some steps."""
    calls = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(Agreement, "reached", lambda *_: next(calls) == num_steps)
        with pytest.raises(interruption.Interrupted, match=where):
            loop.train(config, workdir, finish=evaluate_run.finish)


def test_resumed_run_with_inserted_nodules_equals_an_unbroken_one(npz, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch: what is inserted is a function of the step."""
    changes = {"enabled": True, "probability": 1.0, "max_nodules": 1, "field_mm": 60.0}
    changes = {f"insert__{name}": value for name, value in changes.items()}
    config = small_config(npz, train__bn_refresh_batches=0, **changes)
    dataset, devices = load(config.data), parallel.choose_devices(1)
    # Compiled once for both runs, and without the scores at their end, since either is slow.
    step = create_train_fn(config, devices, None, insertion.create_plan(config.insert, dataset))
    score = validation.create_eval_fn(config, devices)
    monkeypatch.setattr(training_setup, "create_train_fn", lambda *_: step)
    monkeypatch.setattr(validation, "create_eval_fn", lambda *_: score)
    monkeypatch.setattr(evaluate_run, "finish", lambda *_, **__: {})
    loop.train(config, tmp_path / "whole", finish=evaluate_run.finish)
    members = files.read_json(tmp_path / "whole" / "splits.json")["train"]
    real = dataset.table.labels[np.isin(dataset.table.case_id, members), 3].sum()
    for row in files.read_rows(tmp_path / "whole" / "metrics.jsonl"):
        assert row["train"]["dice_cases"]["nodule"] > real + 4  # something was inserted
    stopped_after(7, config, tmp_path / "told", monkeypatch)
    loop.train(config, tmp_path / "told", finish=evaluate_run.finish)
    assert_same_training(tmp_path / "told", tmp_path / "whole")


def test_resumed_run_of_a_mixture_equals_an_unbroken_one(npz, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, with augmentation; the smaller source comes back within each epoch."""
    other = fakes.write_npz(tmp_path / "other", fakes.two_discs(6, seed=1))
    config = small_config(npz, train__bn_refresh_batches=0, augment__enabled=True)
    with config.unlocked():
        config.data.sources = {"many": {"dir": str(npz), "share": 2}, "few": {"dir": str(other), "share": 2}}
    devices = parallel.choose_devices(1)
    step, score = create_train_fn(config, devices), validation.create_eval_fn(config, devices)
    monkeypatch.setattr(training_setup, "create_train_fn", lambda *_: step)
    monkeypatch.setattr(validation, "create_eval_fn", lambda *_: score)
    whole, told = tmp_path / "whole", tmp_path / "told"
    loop.train(config, whole, finish=lambda *_, **__: {})
    members = files.read_json(whole / "splits.json")["train"]
    steps = -(-len(members) // 4)
    few = sum(name.startswith("few-") for name in members)
    assert 0 < few < 2 * steps  # its cases come back
    where = f"in epoch 3 after 2 of {steps} steps"
    stopped_after(2 * steps + 2, config, told, monkeypatch, where)
    loop.train(config, told, finish=lambda *_, **__: {})
    assert_same_training(told, whole)


def test_a_run_at_a_fixed_scale_trains_on_windows_and_is_judged_on_whole_slices(tmp_path):
    """Windows of 16x16 of 32x32 pixels miss a lung now and then; whole slices hold both."""
    wide = fakes.write_npz(tmp_path / "wide", fakes.two_discs(24, size=32))
    config = small_config(wide, train__num_epochs=1, train__bn_refresh_batches=0)
    config.data.mm_per_pixel = "own"
    summary = loop.train(config, tmp_path / "own", finish=evaluate_run.finish)
    members = files.read_json(tmp_path / "own" / "splits.json")
    (row,) = files.read_rows(tmp_path / "own" / "metrics.jsonl")
    assert 0 < row["train"]["dice_cases"]["left_lung"] < len(members["train"])
    assert row["val"]["dice_cases"]["left_lung"] == len(members["val"])
    assert summary["scores"]["test"]["dice_cases"]["left_lung"] == len(members["test"])
    config.loss.shuffle_aux_labels = True
    with pytest.raises(InputError, match="loss.shuffle_aux_labels: .* training sees windows of them"):
        training_setup.check_settings(config)


def test_a_clock_that_goes_backwards_changes_nothing(half, unbroken, npz, monkeypatch):
    past = itertools.count(time.time() - 1e6, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(past))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(past)))
    loop.train(small_config(npz), half, finish=evaluate_run.finish)
    assert_same_run(half, unbroken)


def test_run_on_streamed_data_equals_one_on_the_device(unbroken, npz, tmp_path, capsys):
    loop.train(small_config(npz, data__placement="stream"), tmp_path / "stream", finish=evaluate_run.finish)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == NUM_EPOCHS and all(re.search(r"  waited for data \d+%", line) for line in lines)
    assert_same_run(tmp_path / "stream", unbroken)


def test_other_settings_are_refused(half, npz):
    with pytest.raises(InputError, match="model.se: true -> false"):
        loop.train(small_config(npz, model__se=False), half, finish=evaluate_run.finish)


def test_checkpoint_of_another_run_is_refused(half, npz):
    splits = files.read_json(half / "splits.json")
    splits["train"] = splits["train"][:4]
    files.write_json(half / "splits.json", splits)
    with pytest.raises(InputError, match="update 10 does not lie in epoch 3 of 1 steps"):
        loop.train(small_config(npz), half, finish=evaluate_run.finish)


def test_damaged_checkpoint_costs_an_epoch_and_not_the_run(half, unbroken, npz, caplog):
    latest = max((half / "checkpoints/latest").iterdir(), key=lambda p: int(p.name))
    largest = max((p for p in latest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 4
    largest.write_bytes(content)
    loop.train(small_config(npz), half, finish=evaluate_run.finish)
    assert "trying the one before" in caplog.text
    assert_same_run(half, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("after_rows", [1, 3])
def test_killed_run_goes_on_and_ends_the_same(unbroken_command, npz, tmp_path, after_rows):
    workdir = tmp_path / "killed"
    process = command(npz, workdir)
    wait_for(lambda: len(files.read_rows(workdir / "metrics.jsonl")) >= after_rows, process)
    process.send_signal(signal.SIGKILL)  # while the checkpoint of that epoch is being written
    assert finish(process)[0] == -signal.SIGKILL
    code, out, err = finish(command(npz, workdir))
    assert code == 0, err
    assert_same_run(workdir, unbroken_command)


@pytest.mark.slow
def test_sigterm_saves_says_so_and_goes_on_in_the_middle_of_an_epoch(unbroken_command, npz, tmp_path):
    workdir = tmp_path / "told"
    process = command(npz, workdir)
    wait_for(lambda: files.read_rows(workdir / "metrics.jsonl"), process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75 and "stopped by SIGTERM in epoch" in err and "to go on" in err
    code, out, err = finish(command(npz, workdir))
    assert code == 0 and "resuming" in out, err
    assert_same_run(workdir, unbroken_command)


@pytest.mark.parametrize(("module", "stop"), [(training_setup, "load_once"), (loop, "_run_epochs")])
def test_sigterm_outside_of_training_ends_the_run_at_once(npz, tmp_path, monkeypatch, module, stop):
    """Before it, where data may be prepared for hours, and after the last step."""

    def told(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return "all epochs"

    monkeypatch.setattr(module, stop, told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(interruption.Interrupted, match="SIGTERM outside of training; nothing is lost"):
        loop.train(small_config(npz), tmp_path, finish=evaluate_run.finish)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_command_line_mistakes_get_one_line(npz, tmp_path):
    cases = {
        ("--config.model.see=False",): "see",
        ("--config.model.se=maybe",): "maybe",
        ("--wrokdir=x",): "wrokdir",
        ("stray",): "got the argument 'stray'",
        ("--config.train.batch_size=0",): "train.batch_size: got 0",
        ("--config.data.dir=/nowhere/at/all",): "/nowhere/at/all",
        ("--config.model.depth=5",): "16",
    }
    processes = {flags: command(npz, tmp_path / f"run{i}", *flags) for i, flags in enumerate(cases)}
    for flags, process in processes.items():
        code, out, err = finish(process)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2 and "Traceback" not in err, (flags, err)
        assert cases[flags] in lines[-1] and len(lines) <= 2, (flags, err)


def test_loss_that_is_not_finite_names_step_batch_and_cases_and_keeps_the_weights(half, npz, monkeypatch):
    before, _ = checkpoints.restore_best(half)
    original = create_train_fn

    def poisoned(config, devices, *rest):
        step = original(config, devices, *rest)
        calls = []

        def run(state, sums, batch):
            calls.append(None)
            state, sums = step(state, sums, batch)
            if len(calls) == 2:
                state = state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
            return state, sums

        return run

    monkeypatch.setattr(training_setup, "create_train_fn", poisoned)
    with pytest.raises(
        InputError, match=r"step 11 \(epoch 3, batch 3\): the loss is not finite, on the cases ID|case"
    ):
        loop.train(small_config(npz), half, finish=evaluate_run.finish)
    after, _ = checkpoints.restore_best(half)
    for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert checkpoints.best_step(half) is not None


def test_init_from_starts_with_the_other_runs_best_weights(unbroken, npz):
    config = small_config(npz)
    with config.unlocked():
        config.train.init_from = str(unbroken)
    state = create_initial_state(config)
    best, _ = checkpoints.restore_best(unbroken)
    for a, b in zip(*map(jax.tree.leaves, (state.variables, best)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert state.step == 0
    with config.unlocked():
        config.model.base_width = 8
    with pytest.raises(InputError, match="expected"):
        create_initial_state(config)


def test_init_from_starts_from_a_bundle_of_weights(unbroken, npz, tmp_path):
    images = np.zeros((1, 16, 16), np.int16)
    config = small_config(npz)
    for kind in ("saved", "stablehlo"):
        bundles.export(unbroken, kind, tmp_path / kind, images=images, checked_on="an empty slice")
    with config.unlocked():
        config.train.init_from = str(tmp_path / "saved")
    state = create_initial_state(config)
    best, _ = checkpoints.restore_best(unbroken)
    jax.tree.map(np.testing.assert_array_equal, dict(state.variables), best)
    with config.unlocked():
        config.train.init_from = str(tmp_path / "stablehlo")
    with pytest.raises(InputError, match="'stablehlo', which holds a program and no weights"):
        create_initial_state(config)


def test_stop_file_and_max_minutes_end_a_run_cleanly(half, npz, tmp_path):
    (half / loop.STOP_FILE).touch()
    assert loop.train(small_config(npz), half, finish=evaluate_run.finish)["ended"] == "stop file"
    assert not (half / loop.STOP_FILE).exists() and (half / "summary.json").exists()
    summary = loop.train(
        small_config(npz, train__max_minutes=0.0001), tmp_path / "short", finish=evaluate_run.finish
    )
    assert summary["ended"] == "max_minutes" and summary["epochs"] == 1


def seeded(config, dataset, workdir):
    """Returns what each seed draws: initial weights, split, order of an epoch, keys of the augmentation."""
    workdir.mkdir()
    members = claim_splits(workdir, dataset, config.data)
    place = np.zeros(1, np.int32)
    setup = types.SimpleNamespace(
        members={"train": np.arange(24)}, config=config, dataset=dataset, devices=parallel.choose_devices(1)
    )
    seed = create_step_settings(config).augment_seed
    return {
        "seed": [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(create_state(config)))],
        "data.split_seed": {split: rows.tolist() for split, rows in members.items()},
        "train.order_seed": [rows.tolist() for rows, _ in loop._epoch_rows(setup, 1)],
        "augment.seed": jax.random.key_data(augment.case_keys(seed, 0, place)).tolist(),
    }


def test_each_seed_changes_only_its_own(npz, tmp_path):
    dataset = load(small_config(npz).data)
    before = seeded(small_config(npz), dataset, tmp_path / "before")
    for name in before:
        config = small_config(npz)
        config.update_from_flattened_dict({name: 9})
        after = seeded(config, dataset, tmp_path / name)
        assert [other for other in before if after[other] != before[other]] == [name]


def test_summary_is_strict_json(unbroken):
    json.loads(
        (unbroken / "summary.json").read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name)
    )
