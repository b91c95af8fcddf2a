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
import numpy as np
from jax.experimental import multihost_utils

from auxseg.base import npz
from auxseg.base.errors import InputError
from auxseg.devices import group, parallel
from auxseg.devices.parallel import AXIS

CLUSTER_VARIABLES = (
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
)
"""Each is set by a cluster in which jax finds the processes: SLURM, Open MPI, Kubernetes (indexed), TPUs."""
_MOST_BYTES = 1 << 36
"""Of a tree of arrays."""
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
    jax.config.update("jax_enable_recoverability", True)  # else jax aborts all where one is gone; see `group`
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=_local_device_ids(os.environ),
            cluster_detection_method="deactivate" if coordinator else None,
            coordinator_bind_address=_bind_address(coordinator),
            heartbeat_timeout_seconds=group.HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the processes of this run cannot be joined: {reason}; see --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 for this process alone"
        ) from error
    if jax.process_count() > 1:
        _group = group.Group(group.coordination_client(), jax.process_index(), jax.process_count())


def leave(status):
    """Ends this process, and its part in the run: with `status` 0 or 75 together with the others, else at
    once."""
    sys.stdout.flush()
    if _group is None:
        sys.exit(status)
    if status in (0, group.EXIT_LOST):
        _group.leave(jax.distributed.shutdown)  # so long as process 0 writes its report the others stay
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
    content = _pack(jax.tree.leaves(tree)) if is_first() else b""
    size = share(
        len(content), label="reading a checkpoint"
    )  # all come to the collective at about the same time
    words = np.zeros(-(-size // 4), np.int32)
    words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
    found = np.ascontiguousarray(multihost_utils.broadcast_one_to_all(words)).view(np.uint8)[:size].tobytes()
    return jax.tree.unflatten(jax.tree.structure(tree), _unpack(found))


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
    if len(parallel.local(devices)) < len(devices):
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
        self._ask = parallel.parallelize(lambda told: jax.lax.pmax(told, AXIS), devices)
        if _group is not None:
            # Processes must come to their first collective at about the same time, or it fails: here they do,
            # while the first training step, which compiles, may take one much longer than another.
            _group.exchange(b"")
            parallel.fetch_first(self._ask(parallel.replicate(np.int32(0), devices)))

    def reached(self, told, delay=2):
        """Returns whether any process was told, `delay` calls ago; alone, whether this one is."""
        if num_processes() == 1:
            return told
        self._asked.append(self._ask(parallel.replicate(np.int32(told), self._devices)))
        return len(self._asked) > delay and bool(parallel.fetch_first(self._asked.popleft()))


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


def _bind_address(coordinator):
    """Returns where jax's service listens: on this machine alone where the coordinator is; None: as jax chooses."""
    host, _, port = (coordinator or "").rpartition(":")
    return f"127.0.0.1:{port}" if host in ("localhost", "127.0.0.1") else None


def _pack(arrays):
    file = io.BytesIO()
    np.savez(file, **{f"{place:05d}": array for place, array in enumerate(arrays)})
    return file.getvalue()


def _unpack(content):
    arrays = npz.read_npz(io.BytesIO(content), most_bytes=_MOST_BYTES)
    return [arrays[name] for name in sorted(arrays)]
