"""Shares of a batch, copies of a state, and how many devices."""

import jax
import numpy as np
import pytest

from auxseg import parallel
from auxseg.errors import InputError


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
