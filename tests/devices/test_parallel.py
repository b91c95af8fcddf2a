"""Shares of a batch, copies of a state, and how many devices."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.devices import parallel, processes


def test_choice_of_devices():
    assert len(parallel.choose_devices()) == 8
    assert parallel.choose_devices(3) == tuple(jax.local_devices()[:3])
    for wrong in (0, 9):
        with pytest.raises(InputError, match=f"train.num_devices: got {wrong}, expected 1 to 8"):
            parallel.choose_devices(wrong)


@pytest.mark.parametrize(("batch_size", "rows"), [(1, 3), (3, 3), (4, 6), (8, 9)])
def test_a_batch_is_filled_up_to_the_devices(batch_size, rows):
    assert parallel.round_up(batch_size, parallel.choose_devices(3)) == rows


def test_shares_and_copies_come_back_whole():
    devices = parallel.choose_devices(4)
    batch = {"x": np.arange(24).reshape(8, 3), "w": np.arange(8.0, dtype=np.float32)}
    shares = parallel.shard(batch, devices)
    assert shares["x"].shape == (4, 2, 3)
    np.testing.assert_array_equal(shares["x"].addressable_shards[1].data[0], batch["x"][2:4])
    back = parallel.fetch_rows(shares)
    for name, value in batch.items():
        np.testing.assert_array_equal(back[name], value)
    copies = parallel.replicate(batch, devices)
    assert copies["w"].shape == (4, 8)
    np.testing.assert_array_equal(parallel.fetch_first(copies)["x"], batch["x"])


def test_results_of_a_step_can_be_fed_back_without_compiling_again():
    devices = parallel.choose_devices(2)
    traces = []

    def step(state, x):
        traces.append(None)
        return state + parallel.sum_over_devices(x.sum(), parallel.AXIS)

    function = parallel.parallelize(step, devices)
    state = parallel.replicate(np.float32(0), devices)
    x = parallel.shard(np.ones(4, np.float32), devices)
    with jax.log_compiles(False):
        for _ in range(3):
            state = function(state, x)
    assert parallel.fetch_first(state) == 12.0
    assert len(traces) == 1


def test_sum_without_devices_is_the_value():
    assert parallel.sum_over_devices(3.0, None) == 3.0


def test_one_process_shares_with_nobody():
    assert processes.is_first() and processes.num_processes() == 1
    assert processes.share({"a": [1, None]}) == {"a": [1, None]}
    assert processes.share_tree((1, 2)) == (1, 2)
    processes.check_same("x", 1)
    processes.await_loss()
    with pytest.raises(SystemExit) as end:
        processes.leave(75)
    assert end.value.code == 75
    devices = parallel.choose_devices(2)
    agreement = processes.Agreement(devices)
    assert [agreement.reached(told) for told in (False, True)] == [False, True]
    assert parallel.local(devices) == devices
    rows = np.arange(6)
    np.testing.assert_array_equal(parallel.local_rows(rows, devices), rows)


def test_rows_of_batches_are_put_together_in_order():
    batches = [{"x": np.arange(4) + 10 * i, "y": np.full((4, 2), i)} for i in range(3)]
    found = processes.gather_batches(batches, parallel.choose_devices(2))
    np.testing.assert_array_equal(found["x"], [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])
    assert found["y"].shape == (12, 2)


def test_arrays_travel_as_they_are():
    arrays = [np.float32([-0.0, np.nan]), np.int32(7), np.zeros((0, 3), np.uint8)]
    for a, b in zip(arrays, processes._unpack(processes._pack(arrays)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("node1:1234", None, None), "--coordinator: got no --num_processes"),
        (("node1", 2, 0), "--coordinator: got 'node1', expected HOST:PORT"),
        (("node1:1234", 0, 0), "--num_processes: got 0"),
        (("node1:1234", 2, 2), "--process_id: got 2, expected 0 to 1"),
        ((None, None, 1), "cannot be joined"),
    ],
)
def test_flags_of_processes_that_do_not_go_together(given, message):
    with pytest.raises(InputError, match=message):
        processes.join(*given)
    assert processes.num_processes() == 1


def test_deterministic_is_told_to_xla_before_it_starts(monkeypatch):
    gpu = [dataclasses.make_dataclass("Device", ["platform"])("gpu")]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force=1")
    with pytest.raises(InputError, match="train.deterministic: XLA was started without it"):
        parallel.check_deterministic(gpu)
    parallel.check_deterministic(parallel.choose_devices(1))
    parallel.make_deterministic()
    parallel.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_force=1 --xla_gpu_deterministic_ops=true"
    parallel.check_deterministic(gpu)


def test_xla_knows_the_switch():
    """XLA ends the process at a flag that it does not know."""
    code = "import jax; from auxseg.devices import parallel as p; p.make_deterministic(); print(jax.numpy.ones(2).sum())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.stdout == "2.0\n", done.stderr


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
}


def test_clusters_are_recognised():
    assert not processes._in_cluster({})
    assert processes._in_cluster(SLURM)
    assert not processes._in_cluster({**SLURM, "SLURM_STEP_NUM_TASKS": "1"})  # a shell within an allocation
    assert processes._in_cluster(
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}
    )
    assert not processes._in_cluster(
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}
    )


@pytest.mark.parametrize(
    ("variables", "ids"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        ({"SLURM_TASKS_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, [0, 1]),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "CUDA_VISIBLE_DEVICES": "5"}, [0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_a_process_alone_on_its_machine_takes_all_of_its_gpus(variables, ids):
    assert processes._local_device_ids(variables) == ids


def test_compiled_programs_of_a_folder_that_others_may_write_are_not_run(tmp_path, monkeypatch, capsys):
    set_to = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_to.append((name, value)))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    parallel.keep_compiled_programs(tmp_path / "open")
    assert not set_to and "compiled programs are not kept" in capsys.readouterr().err
    parallel.keep_compiled_programs(tmp_path / "own")
    (folder,) = (tmp_path / "own").iterdir()  # of this processor: homes are shared
    assert ("jax_compilation_cache_dir", str(folder)) in set_to and len(folder.name) == 24
