"""The only file that knows about devices and processes: pmap, copies of the state, shares of a batch.

One path for any number: a program for one device is a pmap over one. On `AXIS` a step sums what belongs to
the whole batch, so that the number of devices, and of processes that have them, does not change what is
computed. `devices` is the tuple of `choose_devices`, those of all processes; arrays [devices, ...] hold this
process's own. Process 0 decides and writes, the others follow it by `share`; one process alone shares with
nobody.
"""

import collections
import io
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from auxseg import partners
from auxseg.base import npz
from auxseg.base.errors import InputError

AXIS = "devices"
CLUSTER_VARIABLES = (
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
)
"""Each is set by a cluster in which jax finds the processes: SLURM, Open MPI, Kubernetes (indexed), TPUs."""
_HEARTBEAT_SECONDS = 600  # of jax.distributed; `partners` is quicker, and has a word for it
_group = None


def join(coordinator=None, num_processes=None, process_id=None):
    """Joins the processes of a run; to be called before anything is computed. One process alone joins nobody.

    Args:
        coordinator: 'HOST:PORT' where process 0 listens, the same in all processes.
        num_processes: how many there are.
        process_id: of this one, from 0. Where none is given, a cluster is asked by jax (`CLUSTER_VARIABLES`);
            without one there is one process.

    Raises:
        InputError: flags that do not go together, or processes that cannot reach each other.
    """
    global _group
    given = (coordinator, num_processes, process_id)
    if num_processes == 1 or (given == (None, None, None) and not _in_cluster(os.environ)):
        return
    _check_processes(*given)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `train`
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=_local_device_ids(os.environ),
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the processes of this run cannot be joined: {reason}; see --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 for this process alone"
        ) from error
    if jax.process_count() > 1:
        _group = _meet(coordinator.rsplit(":", 1)[0] if coordinator else None)


def leave(status):
    """Ends this process, and its part in the run: with `status` 0 or 75 together with the others, else at
    once."""
    sys.stdout.flush()
    if _group is None:
        sys.exit(status)
    if status in (0, partners.EXIT_LOST):
        _group.exchange(b"")  # so long as process 0 writes its report the others stay
        _group.leave()
        jax.distributed.shutdown()
        sys.exit(status)
    _group.stop(f"process {_group.process_id} stopped with status {status}; its own output says why", status)
    sys.stderr.flush()
    os._exit(status)  # what jax does at the end would wait for the others


def await_loss():
    """Waits whether a failed collective means that a partner is gone, which ends this process with a clear
    word."""
    if _group is not None:
        _group.await_loss()


def is_first():
    """Returns whether this process decides and writes."""
    return _group is None or _group.process_id == 0


def num_processes():
    """Returns how many processes the run has."""
    return 1 if _group is None else _group.num_processes


def share(value, *, label="", minutes=None):
    """Returns process 0's `value`, JSON types, in all processes; what the others give is ignored.

    Args:
        value: JSON types.
        label: what process 0 is about, in words; the others say it when it takes long.
        minutes: how long they wait at most, or None.

    Raises:
        InputError: it took longer.
    """
    if _group is None:
        return value
    content = json.dumps(value).encode() if is_first() else b""
    return json.loads(_group.share(content, label=label, seconds=minutes and 60.0 * minutes))


def share_tree(tree):
    """Returns process 0's tree of NumPy arrays in all processes; the others give one of the same
    structure."""
    if _group is None:
        return tree
    content = _group.share(_pack(jax.tree.leaves(tree)) if is_first() else b"", label="reading a checkpoint")
    return jax.tree.unflatten(jax.tree.structure(tree), _unpack(content))


def check_same(name, value):
    """Raises an InputError, in all processes, where one has another `value`, JSON types, than process 0."""
    if _group is None:
        return
    found = [json.loads(each) for each in _group.exchange(json.dumps(value).encode())]
    for process, each in enumerate(found):
        if each != found[0]:
            raise InputError(
                f"{name}: process {process} has {each}, process 0 has {found[0]}; expected the same"
            )


def gather_batches(batches, devices):
    """Returns the rows of all of `devices`, whole batches in their order, as one tree of NumPy arrays.

    Args:
        batches: list of trees of NumPy arrays [n, ...]: this process's rows of each batch.
        devices: those that shared the batches; where they are of several processes, all of these must call.
    """
    own = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    leaves = [[leaf] for leaf in jax.tree.leaves(own)]
    if len(local(devices)) < len(devices):
        found = [_unpack(content) for content in _group.exchange(_pack(jax.tree.leaves(own)))]
        leaves = zip(*found, strict=True)
    rows = [np.concatenate(parts, axis=1) for parts in leaves]
    return jax.tree.unflatten(jax.tree.structure(own), [x.reshape(-1, *x.shape[2:]) for x in rows])


class Agreement:
    """Whether any process was told to stop, agreed on at the same step by all, while the devices go on.

    The question travels with the steps, and its answer is read when they are done anyway. To be made before
    the first step: it has the processes meet.
    """

    def __init__(self, devices):
        self._devices, self._asked = devices, collections.deque()
        self._ask = parallelize(lambda told: jax.lax.pmax(told, AXIS), devices)
        if _group is not None:
            # Processes must come to their first collective at about the same time, or it fails: here they do,
            # while the first training step, which compiles, may take one much longer than another.
            _group.exchange(b"")
            fetch_first(self._ask(replicate(np.int32(0), devices)))

    def reached(self, told, delay=2):
        """Returns whether any process was told, `delay` calls ago; alone, whether this one is."""
        if num_processes() == 1:
            return told
        self._asked.append(self._ask(replicate(np.int32(told), self._devices)))
        return len(self._asked) > delay and bool(fetch_first(self._asked.popleft()))


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
    kernels by trying them out, are left out (`python -m experiments.benchmark --deterministic`).
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
    """Keeps compiled programs in `folder`, so that a second start of the same program takes seconds."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
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


def _check_processes(coordinator, num_processes, process_id):
    if coordinator is not None and None in (num_processes, process_id):
        raise InputError("--coordinator: got no --num_processes and --process_id with it; expected all three")
    if num_processes is not None and num_processes < 1:
        raise InputError(f"--num_processes: got {num_processes}, expected at least 1")
    if process_id is not None and not 0 <= process_id < (num_processes or 1 << 31):
        raise InputError(f"--process_id: got {process_id}, expected 0 to {(num_processes or 1 << 31) - 1}")
    if coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise InputError(f"--coordinator: got {coordinator!r}, expected HOST:PORT such as node1:12345")


def _in_cluster(environment):
    """Returns whether a cluster has started this process as one of several."""
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1" or environment.get("OMPI_COMM_WORLD_SIZE") == "1"
    return not alone and any(name in environment for name in CLUSTER_VARIABLES)


def _local_device_ids(environment):
    """Returns the GPUs of this process where it is the only one of its machine, else None: jax chooses.

    jax gives each process of SLURM and Open MPI one GPU, that of its number on the machine; a process that is
    alone there is to have all of them.
    """
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    one = re.fullmatch(r"1(\(x\d+\))?", tasks or "") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    if not one:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return list(range(len([name for name in visible.split(",") if name])))
    found = [name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]
    return list(range(len(found))) or None


def _meet(host):
    """Returns the `partners.Group` of the run: process 0 tells the others where it is by a collective."""
    door = partners.Door([host] if host else []) if jax.process_index() == 0 else None
    told = np.zeros(1024, np.int32)
    if door is not None:
        content = json.dumps(door.address).encode()
        told[: len(content)] = np.frombuffer(content, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(told)).astype(np.uint8).tobytes()
    if door is not None:
        return door.let_in(jax.process_count())
    return partners.knock(json.loads(heard.rstrip(b"\0")), jax.process_index(), jax.process_count())


def _pack(arrays):
    file = io.BytesIO()
    np.savez(file, **{f"{place:05d}": array for place, array in enumerate(arrays)})
    return file.getvalue()


def _unpack(content):
    arrays = npz.read_npz(io.BytesIO(content), most_bytes=partners.MOST_BYTES)
    return [arrays[name] for name in sorted(arrays)]
