"""One step over all devices: choosing them, spreading batches, replicating state, fetching results."""

import hashlib
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from auxseg.base import files, machine
from auxseg.base.errors import InputError

AXIS = "devices"


def choose_devices(limit=None):
    """Returns the devices of all processes, process by process: all of them, or the first `limit` of each.

    Raises:
        InputError: `limit` is not between 1 and the number of local devices, or processes have fewer than
        others.
    """
    here = len(jax.local_devices())
    if limit is not None and not 1 <= limit <= here:
        raise InputError(f"train.num_devices: got {limit}, expected 1 to {here}, the devices here")
    each = [jax.local_devices(process) for process in range(jax.process_count())]
    if limit is None and len(set(map(len, each))) > 1:
        raise InputError(
            f"the processes have {', '.join(str(len(found)) for found in each)} devices; expected as many in "
            "each (train.num_devices sets it)"
        )
    return tuple(device for found in each for device in found[:limit])


def local(devices):
    """Returns those of `devices` that are this process's own."""
    return tuple(device for device in devices if device.process_index == jax.process_index())


_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def make_deterministic():
    """Has XLA compute the same bits on a GPU each time; to be called before anything is computed.

    The same program on a CPU does so anyway. It costs speed: sums by atomic additions, and the choice among
    kernels by trying them out, are left out (`python -m experiments.speed.benchmark --deterministic`).
    """
    if _DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}".strip()


def check_deterministic(devices):
    """Raises an InputError where `make_deterministic` was not called and `devices` are GPUs."""
    if devices[0].platform == "gpu" and _DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise InputError(
            "train.deterministic: XLA was started without it; run auxseg.main, or set "
            f"XLA_FLAGS={_DETERMINISTIC} before"
        )


def keep_compiled_programs(folder):
    """Keeps compiled programs in `folder`, by processor, so that a second start of the same program takes seconds.

    They are run as they are: where somebody else may have written there, nothing is read or kept, and one line says so.
    """
    try:
        files.make_private(folder)
        folder = folder / hashlib.sha256(machine.describe_processor()).hexdigest()[:24]
        files.make_private(folder)
    except OSError as error:
        print(f"compiled programs are not kept: {error}", file=sys.stderr, flush=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def parallelize(function, devices, donate_argnums=()):
    """Returns `function` compiled for `devices`; every argument has the local devices as its first axis."""
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate_argnums)


def replicate(tree, devices):
    """Returns a tree of arrays with one copy on each local device, [devices, ...]."""
    devices = local(devices)

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
    """Returns host arrays [B, ...] as arrays [devices, B / devices, ...] on the local devices."""
    devices = local(devices)

    def put(x):
        x = np.asarray(x)
        return jax.device_put(x.reshape(len(devices), -1, *x.shape[1:]), _sharding(devices))

    return jax.tree.map(put, tree)


def local_rows(tree, devices):
    """Returns this process's rows of host arrays [B, ...] that hold the rows of all devices."""
    places = [place for place, device in enumerate(devices) if device.process_index == jax.process_index()]

    def cut(x):
        each = len(x) // len(devices)
        return x[places[0] * each : (places[-1] + 1) * each]

    return jax.tree.map(cut, tree)


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
