"""Two real processes of four devices each, over loopback: one's results, a partner's death, going on."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import fakes
import fixtures_luna16
import jax
import numpy as np
import pytest
import test_loop
import test_steps

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets.luna16 import layout
from auxseg.devices import parallel, processes
from auxseg.runs import checkpoints
from auxseg.training import batching, setup
from configs import base

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
DEVICES, NUM_EPOCHS = 4, 8


def act(output, luna16):
    """What each of two processes runs: steps with an uneven last batch; the first writes what came out."""
    processes.join()
    assert processes.num_processes() == 2
    agreement = processes.Agreement(parallel.choose_devices(DEVICES))
    asked = [agreement.reached(not processes.is_first()) for _ in range(4)]
    assert asked == [False, False, True, True]  # one was told: both know, two steps later
    _, state, sums = test_steps.run_on(DEVICES, fakes.two_discs(22), test_steps.small_config())
    digest = [float(np.sum(np.abs(leaf))) for leaf in jax.tree.leaves(state)]
    processes.check_same("the state", digest)  # every process holds the same
    if processes.is_first():
        np.savez(output, *jax.tree.leaves((state, sums)))
    read_own_share()
    prepare_once(luna16)
    try:
        processes.check_same("a number", processes.is_first())
    except InputError as error:
        assert "a number: process 1 has False, process 0 has True" in str(error)
    else:
        raise AssertionError("a difference was not seen")
    processes.leave(
        2 if processes.is_first() else 0
    )  # a fault of the first ends the other, which waits for it


def read_own_share():
    """Of a batch of eight each process reads its four, and of a batch of two the second process nothing."""
    asked, data = [], fakes.two_discs(8)
    noting = dataclasses.replace(data, read=lambda rows: asked.append(rows.tolist()) or data.read(rows))
    feed = batching.create_feed(
        noting, np.arange(8), placement="stream", devices=parallel.choose_devices(DEVICES)
    )
    for count, shares in ((8, ([0, 1, 2, 3], [4, 5, 6, 7])), (2, ([0, 1], []))):
        rows = batching.padded_rows(np.arange(count), 8, 8)
        (_,) = batching.read_batches(feed, rows)
        assert sum(asked, []) == shares[0 if processes.is_first() else 1]
        asked.clear()


def prepare_once(luna16):
    """The first process reads the scans while the second waits, which then reads the records."""
    seen, read_slices = [], layout.read_slices
    layout.read_slices = lambda scan, *rest: seen.append(scan.uid) or read_slices(scan, *rest)
    config = base.get_config()
    with config.unlocked():
        config.data.dir, config.data.cache_dir = luna16, f"{luna16}-cache"
        config.data.size = (32, 32)
    assert len(setup.load_once(config)) == 3
    assert seen == (list(fixtures_luna16.UIDS) if processes.is_first() else [])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def slurm_variables():
    """Returns the environments of two tasks of a SLURM step here; the job's number gives the port."""
    for job in random.Random(os.getpid()).sample(range(4096), 4096):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 61440 + job)):
            break
    step = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": 2,
        "SLURM_STEP_NUM_TASKS": 2,
    }
    tasks = [{**step, "SLURM_PROCID": task, "SLURM_LOCALID": task} for task in range(2)]
    return [{name: str(value) for name, value in task.items()} for task in tasks]


def start(arguments, **variables):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS), str(TESTS / "training")]),
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def start_pair(config, workdir):
    """Returns the two processes of a run; only the first may use its workdir: the second gets another."""
    port, pair = free_port(), []
    for process in range(2):
        flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={process}"]
        where = workdir if process == 0 else workdir.with_name("not_to_be_written")
        pair.append(start(["-m", "auxseg.main", f"--config={config}", f"--workdir={where}", *flags]))
    return pair


def finish(pair):
    return [test_loop.finish(process) for process in pair]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Returns the settings' file: 24 cases, batches of 6 on eight devices."""
    folder = tmp_path_factory.mktemp("data")
    npz = fakes.write_npz(folder / "npz", fakes.two_discs(24))
    text = f"""
import pathlib
import test_loop
def get_config():
    changes = {{
        "train__num_devices": {DEVICES},
        "train__num_epochs": {NUM_EPOCHS},
        "train__batch_size": 6,
        "data__placement": "stream",
    }}
    return test_loop.small_config(pathlib.Path({str(npz)!r}), **changes).lock()
"""
    (folder / "pair.py").write_text(text, encoding="utf-8")
    return folder / "pair.py"


def wait_for_rows(workdir, number, pair):
    end = time.monotonic() + 400
    while len(files.read_rows(workdir / "metrics.jsonl")) < number:
        assert all(process.poll() is None for process in pair), finish(pair)
        assert time.monotonic() < end
        time.sleep(0.01)


def weights_and_rows(workdir):
    rows = files.read_rows(workdir / "metrics.jsonl")
    numbers = [[row["train"]["loss"], row["val"]["loss"], row["learning_rate"]] for row in rows]
    return jax.tree.leaves(checkpoints.restore_best(workdir)[0]), numbers


def assert_close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
def test_two_processes_of_four_compute_what_one_of_one_and_of_eight_do(tmp_path):
    code = "import sys, test_processes; test_processes.act(*sys.argv[1:])"
    arguments = [tmp_path / "out.npz", fixtures_luna16.write_folder(tmp_path / "luna16")]
    pair = [start(["-c", code, *arguments], **variables) for variables in slurm_variables()]
    config, data = test_steps.small_config(), fakes.two_discs(22)
    alone = [jax.tree.leaves(test_steps.run_on(number, data, config)[1:]) for number in (1, 8)]
    (first, _, first_err), (second, _, err) = finish(pair)
    assert (first, second) == (2, 2), (first_err, err)
    assert "process 0 stopped with status 2; its own output says why" in err
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        found = [file[name] for name in file.files]
    for leaves in alone:
        assert_close(found, leaves, 1e-5)


@pytest.mark.slow
def test_a_killed_partner_stops_the_other_and_the_pair_goes_on_to_the_same_end(config, tmp_path):
    """The unbroken run is one process of eight devices; of the pair one is killed, then one told to stop."""
    unbroken = tmp_path / "alone" / "run"
    command = ["-m", "auxseg.main", f"--config={config}", f"--workdir={unbroken}"]
    alone = start([*command, "--config.train.num_devices=8"], JAX_NUM_CPU_DEVICES="8")
    workdir = tmp_path / "pair" / "run"
    pair = start_pair(config, workdir)
    wait_for_rows(workdir, 1, pair)
    pair[1].send_signal(signal.SIGKILL)
    (code, _, err), (killed, _, _) = finish(pair)
    assert killed == -signal.SIGKILL
    assert code == 75 and "process 1 is gone" in err and "start the same command again" in err, err

    pair = start_pair(config, workdir)
    wait_for_rows(workdir, 2, pair)
    pair[1].send_signal(signal.SIGTERM)  # the one that does not write
    results = finish(pair)
    assert [code for code, _, _ in results] == [75, 75], results
    assert "stopped by SIGTERM in epoch" in results[0][2]

    (code, out, err), (other, _, other_err) = finish(start_pair(config, workdir))
    assert (code, other) == (0, 0), (err, other_err)
    assert "resuming" in out and "of 2 processes" in out and "mean Dice" in out
    assert not (workdir.parent / "not_to_be_written").exists()
    code, _, err = test_loop.finish(alone)
    assert code == 0, err
    (weights, rows), (expected, expected_rows) = weights_and_rows(workdir), weights_and_rows(unbroken)
    assert len(rows) == NUM_EPOCHS
    assert_close(weights, expected, 1e-4)
    assert_close(rows, expected_rows, 1e-4)
    assert json.loads((workdir / "summary.json").read_text(encoding="utf-8"))["ended"] == "all epochs"
