"""The only file that knows about devices: pmap, copies of the state, shares of a batch.

One path for any number: a program for one device is a pmap over one. On `AXIS` a step sums what belongs
to the whole batch, so that the number of devices does not change what is computed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from auxseg.errors import InputError

AXIS = "devices"


def choose_devices(limit=None):
    """Returns the local devices to use: all of them, or the first `limit`.

    Raises:
        InputError: `limit` is not between 1 and the number of local devices.
    """
    devices = jax.local_devices()
    if limit is None:
        return tuple(devices)
    if not 1 <= limit <= len(devices):
        raise InputError(f"train.num_devices: got {limit}, expected 1 to {len(devices)}, the devices here")
    return tuple(devices[:limit])


def keep_compiled_programs(folder):
    """Keeps compiled programs in `folder`, so that a second start of the same program takes seconds."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def parallelize(function, devices, donate_argnums=()):
    """Returns `function` compiled for `devices`; every argument has the devices as its first axis."""
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate_argnums)


def replicate(tree, devices):
    """Returns a tree of arrays with one copy on each device, [devices, ...]."""

    def put(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (len(devices), *x.shape)), _sharding(devices))

    return jax.tree.map(put, tree)


def fetch_first(tree):
    """Returns the first device's copy as NumPy arrays; waits for it."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data[0]), tree)


def fetch_rows(tree):
    """Returns [devices, n, ...] as NumPy [devices * n, ...]; waits for it."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def shard(tree, devices):
    """Returns host arrays [B, ...] as device arrays [devices, B / devices, ...]."""

    def put(x):
        x = np.asarray(x)
        return jax.device_put(x.reshape(len(devices), -1, *x.shape[1:]), _sharding(devices))

    return jax.tree.map(put, tree)


def round_up(batch_size, devices):
    """Returns the smallest multiple of the number of devices that holds `batch_size` rows."""
    return -(-batch_size // len(devices)) * len(devices)


def sum_over_devices(tree, axis_name):
    """Returns `tree` summed over the devices; `tree` itself where `axis_name` is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def device_memory_bytes(device):
    """Returns (bytes that `device` has for data, or None; peak bytes in use, or None)."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit"), stats.get("peak_bytes_in_use")


def take_rows(arrays, indices):
    """Returns the rows `indices` int [n] of each array [N, ...]; runs on the device."""
    return jax.tree.map(lambda a: jnp.take(a, indices, axis=0), arrays)


def lies_on_host(array):
    """Returns whether reading an array on the host copies nothing: it is NumPy's, or a CPU device's."""
    return not isinstance(array, jax.Array) or all(one.platform == "cpu" for one in array.devices())


def _sharding(devices):
    # What pmap itself gives its results: another sharding of the same rows would compile again.
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
