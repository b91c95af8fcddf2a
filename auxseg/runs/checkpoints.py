"""Save and restore, each checkpoint with checksums; the only importer of Orbax.

    checkpoints/latest/STEP/{weights,training,progress}   the two newest, to resume from
    checkpoints/best/STEP/{weights,progress}              the weights that early stopping keeps
    checkpoints/KIND-STEP.sha256.json                     written last: without it a checkpoint does not count

Orbax moves a finished checkpoint into its place whole, but restores flipped bytes without an error and does
not fall back by itself; the checksums and `_newest_intact` do that. Of several processes only the first comes
here.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import re
import shutil
import threading

import jax
import numpy as np
from absl import logging

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.runs.state import TrainState

LATEST, BEST = "latest", "best"
MOST_BYTES = 1 << 35
"""Of the arrays of a checkpoint: a stranger's may claim any size."""
_KEPT = 2


def save_latest(workdir, *, state, sums, progress):
    """Saves all that a resumed run needs.

    Args:
        workdir: pathlib.Path.
        state: TrainState of NumPy arrays, one copy.
        sums: steps.EpochSums of NumPy arrays, of an epoch that is not over.
        progress: JSON types: where the loop stands.
    """
    leaves = [np.asarray(x) for x in jax.tree.leaves((state.step, state.opt_state, sums))]
    training = {f"{i:05d}": x for i, x in enumerate(leaves)}
    _save(workdir, LATEST, int(state.step), state.variables, progress, training)


def save_best(workdir, *, step, variables, progress):
    """Saves the weights of the best epoch so far; `step` is the number of updates."""
    _save(workdir, BEST, step, variables, progress)


def restore_latest(workdir, *, state, sums):
    """Returns (TrainState, EpochSums, progress) of the newest intact checkpoint, or None before the first.

    Args:
        workdir: pathlib.Path.
        state: a TrainState of the same structure and shapes.
        sums: an EpochSums of the same shapes.

    Raises:
        InputError: there are checkpoints and none is intact, or they are of another network.
    """
    step = _newest_intact(workdir, LATEST)
    if step is None:
        return None
    items = _restore(workdir, LATEST, step, ("weights", "training", "progress"))
    expected = (state.step, state.opt_state, sums)
    structure = jax.tree.structure(expected)
    leaves = [items["training"][name] for name in sorted(items["training"])]
    if [np.shape(leaf) for leaf in leaves] != [np.shape(leaf) for leaf in jax.tree.leaves(expected)]:
        raise InputError(
            f"{workdir}/checkpoints: what {LATEST} checkpoint {step} holds is not of this network and optimiser; it is "
            "of another run, or forged"
        )
    step_count, opt_state, sums = jax.tree.unflatten(structure, leaves)
    weights = match_variables(items["weights"], state.variables, where=f"{workdir}/checkpoints")
    restored = TrainState(step_count, weights["params"], weights["batch_stats"], opt_state)
    return restored, sums, items["progress"]


def restore_best(workdir):
    """Returns (variables of NumPy arrays, progress) of the best epoch of a run.

    Raises:
        InputError: the run has no intact checkpoint.
    """
    workdir = pathlib.Path(workdir)
    step = _newest_intact(workdir, BEST)
    if step is None:
        raise InputError(f"workdir {workdir}: no checkpoint in it; train first, or name the workdir of a run")
    items = _restore(workdir, BEST, step, ("weights", "progress"))
    if not isinstance(items["progress"], dict) or not isinstance(items["progress"].get("epoch"), int):
        raise InputError(f"{workdir}/checkpoints: {BEST} checkpoint {step} names no epoch; it is forged")
    return items["weights"], items["progress"]


def best_step(workdir):
    """Returns the updates of the newest intact best checkpoint, or None."""
    return _newest_intact(workdir, BEST)


def match_variables(variables, expected, *, where):
    """Returns `variables` if they have the names and shapes of `expected`.

    Raises:
        InputError: the first weight that is missing, unknown or of another shape.
    """
    got, want = (
        {jax.tree_util.keystr(path): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (variables, expected)
    )
    kinds = {np.asarray(leaf).dtype.kind for leaf in jax.tree.leaves(variables)}
    if kinds - {"f", "V"}:  # V: bfloat16
        raise InputError(f"{where}: its weights are no floating-point numbers; it is damaged or forged")
    for name in sorted(got.keys() | want.keys()):
        if got.get(name) != want.get(name):
            raise InputError(
                f"weight {name} in {where}: got shape {got.get(name)}, expected {want.get(name)}; "
                "the weights are of a network with other settings (config.model)"
            )
    return variables


def _save(workdir, kind, step, variables, progress, training=None):
    ocp, folder = _orbax(), workdir / "checkpoints"
    items = {"weights": ocp.args.StandardSave(jax.tree.map(np.asarray, dict(variables)))}
    items["progress"] = ocp.args.JsonSave(progress)
    if training is not None:
        items["training"] = ocp.args.StandardSave(training)
    try:
        _remove_leftovers(folder, kind)
        _remove(folder, kind, step)
        kept = _write(folder, kind, step, items)
        files.write_json(_manifest_path(folder, kind, step), _checksums(folder / kind / str(step)))
    except (OSError, ValueError) as error:
        _remove_leftovers(folder, kind)
        raise InputError(
            f"{folder}: {kind} checkpoint {step} could not be saved: {_reason(error)}; the ones before it are "
            "whole: make room, or make the folder writable, and start the same command again to go on"
        ) from error
    for path in folder.glob(f"{kind}-*.sha256.json"):
        if path.name.split(".")[0].rsplit("-", 1)[1] not in map(str, kept):
            path.unlink()


def _write(folder, kind, step, items):
    """Has Orbax write a checkpoint; returns the steps that are kept."""
    (folder / kind).mkdir(parents=True, exist_ok=True)
    with _quiet(), _manager(folder, kind) as manager:
        if not manager.save(step, args=_orbax().args.Composite(**items), force=True):
            raise RuntimeError(f"Orbax did not save {kind} checkpoint {step} in {folder}")
        manager.wait_until_finished()
        return set(manager.all_steps())


@contextlib.contextmanager
def _quiet():
    """Keeps Orbax and its threads from printing tracebacks of an error that is raised to the caller as well."""
    verbosity, hook = logging.get_verbosity(), threading.excepthook
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = lambda about: None
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        threading.excepthook = hook


def _reason(error):
    """Returns the system's word for what kept a file from being written; tensorstore gives its number
    only."""
    error = error.__cause__ if isinstance(error, InputError) else error  # of a file that was written whole
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else _say(error)


def _remove_leftovers(folder, kind):
    """Removes what a save that was killed or failed has left: Orbax does not, and the disk would fill up."""
    with contextlib.suppress(OSError):
        for path in (folder / kind).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _say(error):
    """Returns an error of Orbax in one line: a stranger's files beside a checkpoint lead it anywhere."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _restore(workdir, kind, step, names):
    """Returns {name: what Orbax restores}; what it does not understand is refused in one line."""
    try:
        return _restore_by_orbax(workdir, kind, step, names)
    except InputError:
        raise
    except Exception as error:  # a stranger's files lead it anywhere
        raise InputError(
            f"{workdir}/checkpoints: {kind} checkpoint {step} cannot be read ({_say(error)}); it is damaged, or of another version"
        ) from error


def _restore_by_orbax(workdir, kind, step, names):
    ocp = _orbax()
    _check_sizes(workdir / "checkpoints" / kind / str(step), [name for name in names if name != "progress"])
    args = {
        name: ocp.args.JsonRestore() if name == "progress" else ocp.args.StandardRestore() for name in names
    }
    options = ocp.CompositeOptions(multiprocessing_options=_first_alone())
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=_first_alone()) as checkpointer:
        folder = (workdir / "checkpoints" / kind / str(step)).absolute()
        return checkpointer.restore(folder, args=ocp.args.Composite(**args))


def _check_sizes(folder, names):
    """Raises an InputError where arrays take more than `MOST_BYTES`, going by their metadata alone."""
    total = 0
    for name in names:
        found = _orbax().StandardCheckpointHandler().metadata((folder / name).absolute())
        for leaf in jax.tree.leaves(found.tree, is_leaf=lambda x: hasattr(x, "shape")):
            total += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if total > MOST_BYTES:
        raise InputError(
            f"{folder}: its arrays take {total >> 30} GiB, expected at most {MOST_BYTES >> 30}; it is damaged "
            "or forged"
        )


def _orbax():
    """Returns Orbax, which takes longer to import than a slice to segment, and which a bundle does not need."""
    import orbax.checkpoint

    return orbax.checkpoint


def _first_alone():
    """Returns the options by which Orbax does not wait for other processes: only the first saves and restores."""
    return _orbax().options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="auxseg"
    )


def _manager(folder, kind):
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT,
        create=False,
        enable_async_checkpointing=False,
        multiprocessing_options=_first_alone(),
    )
    return ocp.CheckpointManager((folder / kind).absolute(), options=options)


def _remove(folder, kind, step):
    _manifest_path(folder, kind, step).unlink(missing_ok=True)
    if (folder / kind / str(step)).exists():
        shutil.rmtree(folder / kind / str(step))


def _newest_intact(workdir, kind):
    folder = pathlib.Path(workdir) / "checkpoints"
    steps = sorted((int(p.name) for p in (folder / kind).glob("*") if p.name.isdecimal()), reverse=True)
    for step in steps:
        fault = _find_fault(folder, kind, step)
        if fault is None:
            return step
        logging.warning("%s checkpoint %d in %s: %s; trying the one before", kind, step, folder, fault)
    if steps and any(folder.glob(f"{kind}-*.sha256.json")):
        raise InputError(
            f"{folder}: none of the {len(steps)} {kind} checkpoints is intact; restore them from a backup, "
            "or start anew with another --workdir=DIR"
        )
    return None


def _find_fault(folder, kind, step):
    path = _manifest_path(folder, kind, step)
    if not path.exists():
        return "it was not finished"
    try:
        expected = files.read_object(path)
    except InputError:
        return "its list of checksums is damaged"
    found = _checksums(folder / kind / str(step))
    damaged = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    return f"{damaged[0]} is damaged" if damaged else None


def _checksums(folder):
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): _sha256(p) for p in found}


def _sha256(path):
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _manifest_path(folder, kind, step):
    return folder / f"{kind}-{step}.sha256.json"
