"""The training loop: data, state, epochs, the best weights, the final scores.

A run is a function of its config and data: started again it goes on where it stopped and ends with the
same weights as one that was never stopped. Of several processes (`parallel.join`) each runs this loop;
process 0 alone reads and writes the workdir, decides when to end, and the others follow it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import pathlib
import resource
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from auxseg import augment, evaluate, input_pipeline, insertion, losses, models, optim
from auxseg.base import files, progress
from auxseg.base.classes import NODULE
from auxseg.base.errors import InputError
from auxseg.datasets import cache_dir, load
from auxseg.devices import parallel
from auxseg.devices.processes import Agreement, check_same, is_first, num_processes, share, share_tree
from auxseg.runs import checkpoints, networks, run_folder, splits, state
from auxseg.steps import empty_sums, statistics_step, train_step

STOP_FILE = "STOP"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What stays the same during a run; see `create_setup`."""

    config: Any
    workdir: pathlib.Path
    devices: tuple
    dataset: Any
    members: dict
    feed: input_pipeline.Feed
    train_fn: Any
    statistics_fn: Any
    eval_fn: Any

    @property
    def steps_per_epoch(self):
        """Updates in an epoch."""
        return input_pipeline.num_batches(len(self.members["train"]), self.config.train.batch_size)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where the loop stands, stored with each checkpoint.

    Attributes:
        epoch: epochs finished.
        schedule: optim.Schedule.
        seconds: of training and validation so far, over all starts.
    """

    epoch: int
    schedule: optim.Schedule
    seconds: float = 0.0

    def to_json(self):
        """Returns JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value):
        """Returns the Position that `to_json` gave."""
        return cls(value["epoch"], optim.Schedule(**value["schedule"]), value["seconds"])


class Interrupted(BaseException):
    """The run was told to stop by a signal; its state is saved. No Exception, so that nothing mends it."""


def train(config, workdir):
    """Trains, or goes on with, the run in `workdir`; returns its summary, JSON types; None but in process 0.

    Args:
        config: a ConfigDict with the settings of configs/base.py.
        workdir: folder, made where it is not there.

    Raises:
        InputError: settings, data, or a loss that is not finite (the last good weights are kept).
        Interrupted: on SIGTERM; in training after the state was saved.
    """
    with _held(workdir) as workdir, Interruption() as interruption:
        setup = create_setup(config, workdir)
        current, sums, position = _start(setup)
        with interruption.awaited():
            ended = _run_epochs(setup, current, sums, position, interruption)
        if not is_first():
            return None
        return evaluate.finish(
            workdir, config=config, dataset=setup.dataset, members=setup.members, feed=setup.feed, ended=ended
        )


def _held(workdir):
    """Returns a context with the workdir as a Path, locked by process 0 for all."""
    return files.locked(workdir) if is_first() else contextlib.nullcontext(pathlib.Path(workdir))


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
    if is_first():
        for note in dataset.notes:
            print(f"note: {note}", flush=True)
        run_folder.claim_config(workdir, config)
        computed = {"lowering": models.create_settings(config.model).lowering}
        run_folder.write_json(workdir / "versions.json", run_folder.describe_machine(devices) | computed)
    members = _share_splits(workdir, dataset, config.data)
    _check_tuning(config, dataset, members)
    used = np.concatenate(list(members.values()))
    feed = input_pipeline.create_feed(dataset, used, placement=config.data.placement, devices=devices)
    aux_labels = evaluate.read_aux_labels(config, dataset, members)
    plan = insertion.create_plan(
        config.insert, dataset, lidc=config.data.lidc, held_out=_held_out_series(dataset, members)
    )
    train_fn = create_train_fn(config, devices, aux_labels, plan)
    eval_fn = evaluate.create_eval_fn(config, devices, aux_labels)
    statistics_fn = create_statistics_fn(config, devices, plan)
    return Setup(config, workdir, devices, dataset, members, feed, train_fn, statistics_fn, eval_fn)


def load_once(config):
    """Returns the data set; process 0 prepares what is missing while the others wait, then all read it.

    Raises:
        InputError: data that cannot be used, that process 0 took too long for, or that is not the same in
        all.
    """
    dataset = load(config.data) if is_first() else None
    share(True, label="preparing the data", minutes=config.train.wait_minutes)
    if dataset is None:
        dataset = load(config.data)
    digest = hashlib.sha256("\n".join(dataset.table.case_id.tolist()).encode()).hexdigest()
    check_same("data.dir", f"{dataset.name}, {len(dataset)} cases of digest {digest[:16]}")
    return dataset


def _share_splits(workdir, dataset, data_config):
    """Returns {split: indices} of `claim_splits` in all processes."""
    members = splits.claim_splits(workdir, dataset, data_config) if is_first() else {}
    shared = share({split: rows.tolist() for split, rows in members.items()})
    return {split: np.array(rows, np.int64) for split, rows in shared.items()}


def check_settings(config):
    """Raises InputError for the first setting out of its range that no other file checks."""
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
    if (config.model.name == "unet3d") != (config.data.slab > 1):
        raise InputError(
            f"data.slab: got {config.data.slab} with model.name={config.model.name!r}; 'unet3d' needs slabs of 3 or more "
            "slices, and the other networks see one slice"
        )
    if config.data.slab > 1 and config.insert.enabled:
        raise InputError("insert.enabled: nodules are inserted into single slices; give data.slab=1")
    low, high = config.data.window_hu
    if not low < high:
        raise InputError(f"data.window_hu: got {(low, high)}, expected (low, high) in HU with low < high")
    if len(config.loss.class_weights) != config.model.num_classes:
        raise InputError(f"loss.class_weights: got {len(config.loss.class_weights)}, expected one a class")


def _check_tuning(config, dataset, members):
    """Raises InputError, before anything is trained, where no threshold can be chosen at the end."""
    if config.eval.tune_nodules and not dataset.table.labels[members["val"], NODULE].any():
        raise InputError(
            "eval.tune_nodules: no validation slice has a nodule to choose a threshold by; choose another split "
            "(data.split, data.split_seed) or leave it off"
        )


def _held_out_series(dataset, members):
    """Returns the series UIDs of all splits but train."""
    rows = [indices for split, indices in members.items() if split != "train"]
    return set(dataset.table.series_uid[np.concatenate(rows)].tolist())


def create_train_fn(config, devices, aux_labels=None, insertion_plan=None):
    """Returns train_step compiled for `devices`: (TrainState, EpochSums, RawBatch) -> (TrainState,
    EpochSums)."""
    step = bind_train_step(
        config, axis_name=parallel.AXIS, aux_labels=aux_labels, insertion_plan=insertion_plan
    )
    return parallel.parallelize(step, devices, donate_argnums=(0,))


def bind_train_step(config, *, axis_name=None, aux_labels=None, insertion_plan=None):
    """Returns train_step with the settings of a config bound, not yet transformed.

    Args:
        config: a ConfigDict with the settings of configs/base.py.
        axis_name: of the devices, or None.
        aux_labels: as `input_pipeline.to_batch`.
        insertion_plan: from `insertion.create_plan` of the same settings, or None.
    """
    return functools.partial(
        train_step,
        model=models.create_model(config.model, axis_name=axis_name),
        optimizer=create_optimizer(config.optim),
        segmentation_loss=losses.create_segmentation_loss(config.loss, axis_name),
        aux_weight=config.loss.aux_weight,
        num_classes=config.model.num_classes,
        window_hu=tuple(config.data.window_hu),
        bn_momentum=config.model.bn_momentum,
        bn_warmup=config.train.bn_warmup,
        augmentation=_augmentation(config.augment),
        augment_seed=config.augment.seed,
        aux_labels=aux_labels,
        insertion_plan=insertion_plan,
        accumulate_steps=config.train.accumulate_steps,
        axis_name=axis_name,
    )


def create_statistics_fn(config, devices, insertion_plan=None):
    """Returns statistics_step compiled for `devices`: (TrainState, RawBatch, int32 index) -> TrainState."""
    step = functools.partial(
        statistics_step,
        model=models.create_model(config.model, axis_name=parallel.AXIS),
        num_classes=config.model.num_classes,
        window_hu=tuple(config.data.window_hu),
        augmentation=_augmentation(config.augment),
        augment_seed=config.augment.seed,
        insertion_plan=insertion_plan,
        axis_name=parallel.AXIS,
    )
    return parallel.parallelize(step, devices, donate_argnums=(0,))


def _augmentation(config):
    """Returns the augment.Ranges of `config.augment`, or None where it is off."""
    return augment.Ranges(*(config[name] for name in augment.Ranges._fields)) if config.enabled else None


def create_optimizer(config):
    """Returns the optimiser of `config.optim`."""
    return optim.create_optimizer(beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon)


def create_state(config):
    """Returns a TrainState with initialised weights."""
    return state.create_state(
        model=models.create_model(config.model),
        optimizer=create_optimizer(config.optim),
        seed=config.seed,
        size_yx=tuple(config.data.size),
    )


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


def _start(setup):
    """Returns (state, sums, Position) to go on from: process 0's, in all processes."""
    config = setup.config
    sums = jax.device_get(empty_sums(config.model.num_classes))
    position = Position(0, optim.Schedule(config.optim.learning_rate))
    if is_first():
        initial, sums, position = _read_start(setup, sums, position)
    else:
        initial = jax.device_get(create_state(config))
    initial, sums = share_tree((initial, sums))
    position = Position.from_json(share(position.to_json()))
    return parallel.replicate(initial, setup.devices), parallel.replicate(sums, setup.devices), position


def _read_start(setup, sums, position):
    """Returns (state, sums, Position) on the host: of the newest checkpoint, or of the beginning."""
    config = setup.config
    initial = jax.device_get(create_initial_state(config))
    restored = checkpoints.restore_latest(setup.workdir, state=initial, sums=sums)
    if restored is not None:
        initial, sums, stored = restored
        position = Position.from_json(stored)
        done = int(initial.step) - position.epoch * setup.steps_per_epoch
        if not 0 <= done <= setup.steps_per_epoch:
            raise InputError(
                f"{setup.workdir}/checkpoints: update {initial.step} does not lie in epoch {position.epoch + 1} of "
                f"{setup.steps_per_epoch} steps; the checkpoint is of another run: give another --workdir=DIR"
            )
        print(
            f"resuming {setup.workdir} after epoch {position.epoch}" + (f" and {done} steps" if done else "")
        )
        _keep_best(setup, initial, position)
    run_folder.keep_rows(setup.workdir / "metrics.jsonl", position.epoch)
    return initial, sums, position


def _run_epochs(setup, current, sums, position, interruption):
    """Returns why the run ended, after training to its end."""
    start, first = time.monotonic(), is_first()
    agreement = Agreement(setup.devices)
    if first:
        print_header(setup, position)
    with open_events(setup.workdir, position.epoch) if first else contextlib.nullcontext() as events:
        while (ended := share(first and _why_ended(setup, position, start))) is None:
            began = time.perf_counter()
            current = set_learning_rate(current, _rate(setup, position), setup.devices)
            current, sums, timing = _train_epoch(setup, current, sums, position, interruption, agreement)
            current = _refresh_statistics(setup, current, position.epoch + 1)
            results = _validate(setup, current)
            position, row = _close_epoch(setup, position, sums, results, timing, time.perf_counter() - began)
            if first:
                _save_epoch(setup, current, position, row)
                write_events(events, row)
                print_row(setup, row, position)
            sums = parallel.replicate(
                jax.device_get(empty_sums(setup.config.model.num_classes)), setup.devices
            )
    return ended


def _rate(setup, position):
    """Returns the learning rate of the epoch after `position`."""
    return optim.epoch_rate(position.schedule, epoch=position.epoch + 1, config=setup.config.optim)


def _why_ended(setup, position, start):
    limit = setup.config.train.max_minutes
    stop_file = setup.workdir / STOP_FILE
    if position.schedule.stopped:
        return "early stopping"
    if position.epoch >= setup.config.train.num_epochs:
        return "all epochs"
    if position.epoch and stop_file.exists():
        stop_file.unlink()
        return "stop file"
    if position.epoch and limit is not None and time.monotonic() - start > 60.0 * limit:
        return "max_minutes"
    return None


def _train_epoch(setup, current, sums, position, interruption, agreement):
    """Returns (state, sums, timing) after the rest of an epoch; nothing waits for the device but the bar."""
    done = int(parallel.fetch_first(current.step)) - position.epoch * setup.steps_per_epoch
    rows = list(itertools.islice(_epoch_rows(setup, position.epoch + 1), done, None))
    batches = input_pipeline.read_batches(setup.feed, rows)
    label = f"epoch {position.epoch + 1}/{setup.config.train.num_epochs}"
    recent, waited, first = [], 0.0, None
    start = time.perf_counter()
    if is_first():
        batches = progress.track(batches, total=len(rows), label=label, unit="step")
    for batch, seconds in batches:
        current, sums = setup.train_fn(current, sums, batch)
        waited += seconds
        recent.append(sums.weight)
        if first is None:
            jax.block_until_ready(sums)
            first = time.perf_counter() - start
        elif len(recent) > 2:
            # Keeps two steps in flight: the bar is true, and the queue of work never runs dry.
            recent.pop(0).block_until_ready()
        if agreement.reached(interruption.signal is not None):
            _save_interrupted(setup, current, sums, position, interruption)
    jax.block_until_ready(sums)
    seconds = time.perf_counter() - start
    examples = int(sum(weights.sum() for _, weights in rows))
    return current, sums, Timing(len(rows), examples, seconds, first or 0.0, waited)


@dataclasses.dataclass(frozen=True)
class Timing:
    steps: int
    examples: int
    seconds: float
    first_step_seconds: float
    waited_seconds: float

    @property
    def images_per_second(self):
        """Of the steps after the first, which may compile."""
        if self.steps < 2:
            return self.examples / self.seconds if self.seconds else 0.0
        later = self.examples * (self.steps - 1) / self.steps
        return later / (self.seconds - self.first_step_seconds)


def _epoch_rows(setup, epoch):
    order = input_pipeline.epoch_order(
        setup.members["train"],
        seed=setup.config.train.order_seed,
        epoch=epoch,
        has_nodule=setup.dataset.table.labels[setup.members["train"], NODULE] > 0,
        nodule_fraction=setup.config.train.nodule_fraction,
    )
    size = setup.config.train.batch_size
    return input_pipeline.padded_rows(order, size, parallel.round_up(size, setup.devices))


def _refresh_statistics(setup, current, epoch):
    """Returns the state with batch statistics of its own weights, over the epoch's first batches."""
    rows = itertools.islice(_epoch_rows(setup, epoch), setup.config.train.bn_refresh_batches)
    for index, (batch, _) in enumerate(input_pipeline.read_batches(setup.feed, rows)):
        current = setup.statistics_fn(current, batch, parallel.replicate(np.int32(index), setup.devices))
    return current


def _validate(setup, current):
    return evaluate.evaluate_cases(
        setup.eval_fn,
        current.variables,
        setup.feed,
        setup.members["val"],
        batch_size=setup.config.eval.batch_size,
    )


def _close_epoch(setup, position, sums, results, timing, seconds):
    """Returns (Position, row) after an epoch; raises InputError where a loss is not finite."""
    epoch, sums = position.epoch + 1, parallel.fetch_first(sums)
    _check_finite(setup, epoch, sums)
    val = evaluate.summarise(results)
    if val["loss"] is None:
        raise InputError(
            f"epoch {epoch}: the validation loss is not finite; the weights of the last good epoch are in "
            f"{setup.workdir}; lower optim.learning_rate (it was {_rate(setup, position):g})"
        )
    schedule = optim.update_schedule(
        position.schedule, epoch=epoch, value=val["loss"], config=setup.config.optim
    )
    row = {
        "epoch": epoch,
        "step": epoch * setup.steps_per_epoch,
        "learning_rate": _rate(setup, position),
        "train": divide_sums(sums),
        "val": val,
        "seconds": seconds,
        "first_step_seconds": timing.first_step_seconds,
        "images_per_second": timing.images_per_second,
        "waited_for_data": timing.waited_seconds / timing.seconds if timing.seconds else 0.0,
        **peak_memory(parallel.local(setup.devices)[0]),
    }
    return Position(epoch, schedule, position.seconds + seconds), row


def _check_finite(setup, epoch, sums):
    bad = int(sums.bad_step)
    if bad == np.iinfo(np.int32).max:
        return
    batch = bad - (epoch - 1) * setup.steps_per_epoch
    indices, weights = next(itertools.islice(_epoch_rows(setup, epoch), batch, None))
    cases = ", ".join(str(setup.dataset.table.case_id[i]) for i in indices[weights > 0])
    raise InputError(
        f"step {bad + 1} (epoch {epoch}, batch {batch + 1}): the loss is not finite, on the cases {cases}; the weights "
        f"of the last good epoch are in {setup.workdir}; lower optim.learning_rate, or look at these cases"
    )


def divide_sums(sums):
    weight, cases = float(sums.weight), np.asarray(sums.dice_cases, np.float64)
    dice = [float(d / n) if n else None for d, n in zip(sums.dice, cases, strict=True)]
    return {
        "loss": float(sums.loss) / weight,
        "segmentation_loss": float(sums.segmentation) / weight,
        "auxiliary_loss": float(sums.auxiliary) / weight,
        "accuracy": float(sums.accuracy) / weight,
        "pooled_dsc": float(sums.accuracy) / weight,
        "dice": evaluate.by_class(dice),
        "dice_cases": evaluate.by_class(map(int, cases)),
    }


def _save_epoch(setup, current, position, row):
    """The row first, then the state, then the best weights: a kill in between costs an epoch, no weights."""
    files.append_row(setup.workdir / "metrics.jsonl", row)
    host = parallel.fetch_first(current)
    last = position.schedule.stopped or position.epoch == setup.config.train.num_epochs
    improved = position.schedule.best_epoch == position.epoch
    if improved or last or position.epoch % setup.config.checkpoint.every_epochs == 0:
        empty = jax.device_get(empty_sums(setup.config.model.num_classes))
        checkpoints.save_latest(setup.workdir, state=host, sums=empty, progress=position.to_json())
    _keep_best(setup, host, position)


def _keep_best(setup, host_state, position):
    """Saves the weights as the best where they are and are not saved yet."""
    step = int(host_state.step)
    is_best = (
        position.schedule.best_epoch == position.epoch > 0 and step == position.epoch * setup.steps_per_epoch
    )
    if is_best and checkpoints.best_step(setup.workdir) != step:
        checkpoints.save_best(
            setup.workdir,
            step=step,
            variables=host_state.variables,
            progress={"epoch": position.epoch, "val_loss": position.schedule.stop_best},
        )


def _save_interrupted(setup, current, sums, position, interruption):
    host, sums = parallel.fetch_first(current), parallel.fetch_first(sums)
    _check_finite(setup, position.epoch + 1, sums)
    if is_first():
        checkpoints.save_latest(setup.workdir, state=host, sums=sums, progress=position.to_json())
    done = int(host.step) - position.epoch * setup.steps_per_epoch
    raise Interrupted(
        f"stopped by {(interruption.signal or signal.SIGTERM).name} in epoch {position.epoch + 1} after {done} of "
        f"{setup.steps_per_epoch} steps; saved in {setup.workdir}: start the same command again to go on"
    )


class Interruption:
    """Ends the run on SIGTERM: at once, or while `awaited` after the step at hand.

    Only the main thread can listen; in any other nothing is waited for.
    """

    def __init__(self):
        self.signal = None
        self._old = None
        self._awaited = False

    def __enter__(self):
        try:
            self._old = signal.signal(signal.SIGTERM, self._receive)
        except ValueError:
            logging.info("not in the main thread: SIGTERM will not be waited for")
        return self

    def __exit__(self, *_):
        if self._old is not None:
            signal.signal(signal.SIGTERM, self._old)

    @contextlib.contextmanager
    def awaited(self):
        """Only remembers a signal within; one that nobody acted on ends the run on leaving."""
        self._awaited = True
        yield
        self._awaited = False
        if self.signal is not None:
            self._stop()

    def _receive(self, number, _):
        self.signal = signal.Signals(number)
        if not self._awaited:
            self._stop()

    def _stop(self):
        raise Interrupted(
            f"stopped by {self.signal.name} outside of training; nothing is lost: start the same command again "
            "to go on"
        )


def set_learning_rate(current, learning_rate, devices):
    """Returns a replicated TrainState with another learning rate."""
    rate = parallel.replicate(np.float32(learning_rate), devices)
    return current._replace(opt_state=optim.set_learning_rate(current.opt_state, rate))


def peak_memory(device):
    _, peak = parallel.device_memory_bytes(device)
    if peak is not None and device.platform != "cpu":
        return {"peak_memory_mb": peak / 1e6, "memory_of": "device"}
    return {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "memory_of": "process",
    }


def open_events(workdir, epoch):
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(workdir), purge_step=epoch + 1)


def write_events(events, row):
    for split in ("train", "val"):
        scores = {k: v for k, v in row[split].items() if isinstance(v, float)}
        scores |= {f"dice/{name}": v for name, v in row[split]["dice"].items() if v is not None}
        for name, value in scores.items():
            events.add_scalar(f"{split}/{name}", value, row["epoch"])
    for name in ("learning_rate", "seconds", "images_per_second", "peak_memory_mb", "waited_for_data"):
        events.add_scalar(name, row[name], row["epoch"])
    events.flush()


def print_header(setup, position):
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in setup.members.items())
    device, processes = setup.devices[0], num_processes()
    of = f" of {processes} processes" if processes > 1 else ""
    print(
        f"{setup.dataset.name}: {sizes} cases; {len(setup.devices)} x {device.device_kind} ({device.platform}){of}, "
        f"data on the {'device' if setup.feed.placement == 'device' else 'disk'}; workdir {setup.workdir}",
        flush=True,
    )
    if position.epoch == 0:
        print("the first step compiles the network; this takes up to a minute", file=sys.stderr, flush=True)


def print_row(setup, row, position):
    val = row["val"]
    dice = "  ".join(
        f"{name.replace('_', ' ')} {'-' if value is None else f'{value:.3f}'} ({val['dice_cases'][name]})"
        for name, value in val["dice"].items()
        if name != "background"
    )
    streamed = setup.feed.placement == "stream"
    waited = f"  waited for data {row['waited_for_data']:.0%}" if streamed else ""
    best = "  best" if position.schedule.best_epoch == row["epoch"] else ""
    print(
        f"epoch {row['epoch']}/{setup.config.train.num_epochs}  loss {row['train']['loss']:.4f}  "
        f"val {val['loss']:.4f}  Dice {dice}  lr {row['learning_rate']:g}  {row['seconds']:.1f} s  "
        f"{row['images_per_second']:.1f} images/s{waited}{best}",
        flush=True,
    )
