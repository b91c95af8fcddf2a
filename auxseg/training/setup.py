"""What a run trains with, made from its config: data, splits, step, optimiser, state."""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from auxseg import models
from auxseg.base import files
from auxseg.base.classes import classes_of
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import cache_dir, load, mixture, scale
from auxseg.devices import parallel, processes
from auxseg.runs import checkpoints, networks, run_folder, splits, state
from auxseg.training import batching, insertion, steps, validation
from auxseg.training.facts import asks_readers, for_training, read_facts
from auxseg.training.settings import create_optimizer, create_step_settings


@dataclasses.dataclass(frozen=True)
class Setup:
    """What stays the same during a run; see `create_setup`."""

    config: Any
    workdir: pathlib.Path
    devices: tuple
    dataset: Any
    members: dict
    feed: batching.Feed
    train_fn: Any
    statistics_fn: Any
    eval_fn: Any

    @property
    def steps_per_epoch(self):
        """Updates in an epoch."""
        return batching.num_batches(len(self.members["train"]), self.config.train.batch_size)


def create_setup(config, workdir):
    """Returns the Setup of a run: data read and split, functions compiled on first use.

    Raises:
        InputError: settings or data that cannot be used, or other ones than the run was started with.
    """
    check_settings(config)
    parallel.keep_compiled_programs(cache_dir(config.data) / "compiled")
    devices = parallel.choose_devices(config.train.num_devices)
    if config.train.deterministic:
        parallel.check_deterministic(devices)
    dataset = load_once(config)
    if processes.is_first():
        for note in dataset.notes:
            print(f"note: {note}", flush=True)
        if not (workdir / "config.json").exists():
            _check_start(config)
        run_folder.claim_config(workdir, config)
        computed = {"lowering": models.create_settings(config.model, len(dataset.classes)).lowering}
        files.write_json(workdir / "versions.json", run_folder.describe_machine(devices) | computed)
    members = _share_splits(workdir, dataset, config.data)
    _check_tuning(config, dataset, members)
    _check_insertion(config, dataset)
    used = np.concatenate(list(members.values()))
    feed = batching.create_feed(
        for_training(dataset, members["train"]) if config.augment.enabled else dataset,
        used,
        placement=config.data.placement,
        devices=devices,
    )
    facts = read_facts(config, dataset, members)
    plan = insertion.create_plan(
        config.insert, dataset, lidc=config.data.lidc, held_out=_held_out_series(dataset, members)
    )
    train_fn = create_train_fn(config, devices, facts, plan)
    eval_fn = validation.create_eval_fn(config, devices, facts)
    statistics_fn = create_statistics_fn(config, devices, plan, facts)
    return Setup(config, workdir, devices, dataset, members, feed, train_fn, statistics_fn, eval_fn)


def load_once(config):
    """Returns the data set; process 0 prepares what is missing while the others wait, then all read it.

    Raises:
        InputError: data that cannot be used, that process 0 took too long for, or that is not the same in
        all.
    """
    dataset = load(config.data) if processes.is_first() else None
    processes.share(True, label="preparing the data", minutes=config.train.wait_minutes)
    if dataset is None:
        dataset = load(config.data)
    digest = hashlib.sha256("\n".join(dataset.table.case_id.tolist()).encode()).hexdigest()
    processes.check_same("data.dir", f"{dataset.name}, {len(dataset)} cases of digest {digest[:16]}")
    return dataset


def _share_splits(workdir, dataset, data_config):
    """Returns {split: indices} of `claim_splits` in all processes."""
    members = splits.claim_splits(workdir, dataset, data_config) if processes.is_first() else {}
    shared = processes.share({split: rows.tolist() for split, rows in members.items()})
    return {split: np.array(rows, np.int64) for split, rows in shared.items()}


def check_settings(config):
    """Raises InputError for the first setting that cannot be used, before data are prepared or a run is begun."""
    least = {
        "train.batch_size": 1,
        "train.accumulate_steps": 1,
        "train.num_epochs": 1,
        "train.bn_refresh_batches": 0,
        "optim.cosine_epochs": 0,
        "eval.batch_size": 1,
        "checkpoint.every_epochs": 1,
    }
    for name, low in least.items():
        group, field = name.split(".")
        if config[group][field] < low:
            raise InputError(f"{name}: got {config[group][field]}, expected at least {low}")
    models.check_slab(config.model.name, config.data.slab)
    if config.data.slab > 1 and config.insert.enabled:
        raise InputError("insert.enabled: nodules are inserted into single slices; give data.slab=1")
    if asks_readers(config.data) and not config.augment.enabled:
        raise InputError(
            f"data.target={asks_readers(config.data)!r}: crops that train on it lie in the middle, and a network would "
            "learn the place; set augment.enabled=True, which moves them"
        )
    _check_shares(config)
    if scale.read_scale(config.data) and config.loss.shuffle_aux_labels:
        raise InputError(
            "loss.shuffle_aux_labels: exchanges the labels of whole slices, and with data.mm_per_pixel training sees windows of them; "
            "leave one of the two out"
        )
    low, high = config.data.window_hu
    if not low < high:
        raise InputError(f"data.window_hu: got {(low, high)}, expected (low, high) in HU with low < high")
    if config.insert.enabled and not {"left_lung", "right_lung", "nodule"} <= set(classes_of(config.data)):
        raise InputError(
            "insert.enabled: nodules are put into lungs; data.classes must name left_lung, right_lung and nodule"
        )
    create_step_settings(config)  # network, optimizer, loss and augmentation say what they cannot do
    if config.train.get("freeze", ()) and config.train.init_from is None:
        raise InputError("train.freeze: keeps the weights of train.init_from, which is not given")


def _check_shares(config):
    """Raises an InputError unless the shares of the sources make up a batch."""
    shares = mixture.read_shares(config.data)
    if not shares:
        return
    if sum(shares.values()) != config.train.batch_size:
        raise InputError(
            f"data.sources: their shares of a batch are {shares}, expected the sum to be train.batch_size, "
            f"{config.train.batch_size}"
        )
    if config.train.nodule_fraction is not None:
        raise InputError(
            "train.nodule_fraction: has no meaning beside data.sources, whose shares say what a batch has"
        )


def _check_tuning(config, dataset, members):
    """Raises InputError, before anything is trained, where no threshold can be chosen at the end."""
    if config.eval.tune_nodules and not _can_tune(dataset, members):
        raise InputError(
            "eval.tune_nodules: no validation slice has a nodule to choose a threshold by; choose another split "
            "(data.split, data.split_seed) or leave it off"
        )


def _check_insertion(config, dataset):
    """Raises InputError where nodules are to be inserted into cases whose labels have no value for them."""
    meanings = dataset.table.meanings
    if not config.insert.enabled or meanings is None:
        return
    nodule = dataset.classes.index("nodule")
    if not meanings[:, nodule, nodule].all():
        raise InputError(
            "insert.enabled: a source does not tell nodules from other classes (data.meanings), so that none can be "
            "put into it; leave it off"
        )


def _can_tune(dataset, members):
    return "nodule" in dataset.classes and dataset.table.has_nodule[members["val"]].any()


def _held_out_series(dataset, members):
    """Returns the series UIDs of all splits but train."""
    rows = [indices for split, indices in members.items() if split != "train"]
    return set(dataset.table.series_uid[np.concatenate(rows)].tolist())


def create_train_fn(config, devices, facts=None, insertion_plan=None):
    """Returns train_step compiled: (TrainState, EpochSums, RawBatch) -> (TrainState, EpochSums)."""
    settings = create_step_settings(
        config, axis_name=parallel.AXIS, facts=facts, insertion_plan=insertion_plan
    )
    step = functools.partial(steps.train_step, settings=settings)
    return parallel.parallelize(step, devices, donate_argnums=(0,))


def create_statistics_fn(config, devices, insertion_plan=None, facts=None):
    """Returns statistics_step compiled for `devices`: (TrainState, RawBatch, int32 index) -> TrainState."""
    settings = create_step_settings(
        config, axis_name=parallel.AXIS, facts=facts, insertion_plan=insertion_plan
    )
    step = functools.partial(steps.statistics_step, settings=settings)
    return parallel.parallelize(step, devices, donate_argnums=(0,))


def create_state(config):
    """Returns a TrainState with initialised weights."""
    return state.create_state(
        model=models.create_model(config.model, num_classes=len(classes_of(config.data))),
        optimizer=create_optimizer(config.optim),
        seed=config.seed,
        size_yx=tuple(config.data.size),
        slab=config.data.slab,
    )


def _check_start(config):
    """Raises an InputError, before a run is begun, where there are no weights to start from or parts to freeze."""
    source = config.train.init_from
    if source is None:
        return
    initial = jax.eval_shape(lambda: create_state(config))
    checkpoints.match_variables(networks.read_trained(source).variables, initial.variables, where=source)
    _check_frozen(config, initial)


def _check_frozen(config, initial):
    """Raises an InputError for a part to freeze that is not there, or without weights to keep."""
    frozen = tuple(config.train.get("freeze", ()))
    for name in frozen:
        check_choice("train.freeze", name, tuple(sorted(initial.params)))
    if frozen and set(frozen) == set(initial.params):
        raise InputError("train.freeze: names all parts of the network; nothing is left to train")


def create_initial_state(config):
    """Returns the TrainState before the first step: initialised, or from `train.init_from`.

    Raises:
        InputError: `train.init_from` is neither a run nor a 'saved' bundle, or its network has other weights.
    """
    initial = create_state(config)
    source = config.train.init_from
    if source is None:
        return initial
    variables = networks.read_trained(source).variables
    return state.replace_variables(
        initial, checkpoints.match_variables(variables, initial.variables, where=source)
    )
