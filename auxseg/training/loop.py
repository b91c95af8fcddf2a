"""The training loop: data, state, epochs, the best weights, the final scores.

A run is a function of its config and data: started again it goes on where it stopped and ends with the
same weights as one that was never stopped. Of several processes (`processes.join`) each runs this loop;
process 0 alone reads and writes the workdir, decides when to end, and the others follow it.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import signal
import time

import jax
import numpy as np

from auxseg.base import files, progress
from auxseg.base.errors import InputError
from auxseg.datasets import mixture
from auxseg.devices import parallel, processes
from auxseg.runs import checkpoints, run_folder
from auxseg.training import batching, events, journal, optim, steps, validation
from auxseg.training.interruption import Interrupted, Interruption
from auxseg.training.journal import Timing
from auxseg.training.setup import create_initial_state, create_setup, create_state

STOP_FILE = "STOP"


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
        """Returns the Position that `to_json` gave.

        Raises:
            InputError: it is none.
        """
        try:
            position = cls(int(value["epoch"]), optim.Schedule(**value["schedule"]), float(value["seconds"]))
            if not all(isinstance(each, (int, float)) for each in dataclasses.astuple(position.schedule)):
                raise TypeError(f"{position.schedule} is none")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint: where its run stood cannot be read ({error!r}); it is damaged or forged: start anew with "
                "another --workdir=DIR"
            ) from error
        return position


def train(config, workdir, *, finish):
    """Trains, or goes on with, the run in `workdir`; returns what `finish` makes of it; None but in process 0.

    Args:
        config: a ConfigDict with the settings of configs/base.py.
        workdir: folder, made where it is not there.
        finish: `evaluation.evaluate_run.finish`, called in process 0 while the folder is still held.

    Raises:
        InputError: settings, data, or a loss that is not finite (the last good weights are kept).
        Interrupted: on SIGTERM; in training after the state was saved.
    """
    with _held(workdir) as workdir, Interruption() as interruption:
        setup = create_setup(config, workdir)
        current, sums, position = _start(setup)
        with interruption.awaited():
            ended = _run_epochs(setup, current, sums, position, interruption)
        if not processes.is_first():
            return None
        return finish(
            workdir, config=config, dataset=setup.dataset, members=setup.members, feed=setup.feed, ended=ended
        )


def _held(workdir):
    """Returns a context with the workdir as a Path, locked by process 0 for all."""
    return run_folder.hold(workdir) if processes.is_first() else contextlib.nullcontext(pathlib.Path(workdir))


def _start(setup):
    """Returns (state, sums, Position) to go on from: process 0's, in all processes."""
    config = setup.config
    sums = jax.device_get(steps.empty_sums(len(setup.dataset.classes)))
    position = Position(0, optim.Schedule(config.optim.learning_rate))
    if processes.is_first():
        initial, sums, position = _read_start(setup, sums, position)
    else:
        initial = jax.device_get(create_state(config))
    initial, sums = processes.share_tree((initial, sums))
    position = Position.from_json(processes.share(position.to_json()))
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
    start, first = time.monotonic(), processes.is_first()
    agreement = processes.Agreement(setup.devices)
    if first:
        journal.print_header(setup, position)
    draw = _create_draw(setup) if first else None
    with events.open_events(setup.workdir, position.epoch) if first else contextlib.nullcontext() as writer:
        while (ended := processes.share(first and _why_ended(setup, position, start))) is None:
            began = time.perf_counter()
            current = set_learning_rate(current, _rate(setup, position), setup.devices)
            current, sums, timing = _train_epoch(setup, current, sums, position, interruption, agreement)
            current = _refresh_statistics(setup, current, position.epoch + 1)
            results = _validate(setup, current)
            position, row = _close_epoch(setup, position, sums, results, timing, time.perf_counter() - began)
            if first:
                _save_epoch(setup, current, position, row)
                events.write_row(writer, row)
                if draw:
                    events.write_pictures(writer, draw(parallel.fetch_first(current).variables), row["epoch"])
                journal.print_row(setup, row, position)
            sums = parallel.replicate(
                jax.device_get(steps.empty_sums(len(setup.dataset.classes))), setup.devices
            )
    return ended


def _create_draw(setup):
    """Returns `events.create_draw` of the run, or None where no pictures are asked for."""
    if not setup.config.eval.num_pictures:
        return None
    return events.create_draw(setup.config, setup.dataset, setup.members)


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
    batches = batching.read_batches(setup.feed, rows)
    label = f"epoch {position.epoch + 1}/{setup.config.train.num_epochs}"
    recent, waited, first = [], 0.0, None
    start = time.perf_counter()
    if processes.is_first():
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


def _epoch_rows(setup, epoch):
    rows, table = setup.members["train"], setup.dataset.table
    turn = {"seed": setup.config.train.order_seed, "epoch": epoch}
    shares = mixture.read_shares(setup.config.data)
    if shares:
        order = batching.mixed_order(rows, **turn, sources=table.source[rows], shares=shares)
    else:
        fraction = setup.config.train.nodule_fraction
        order = batching.epoch_order(
            rows, **turn, has_nodule=table.has_nodule[rows], nodule_fraction=fraction
        )
    size = setup.config.train.batch_size
    return batching.padded_rows(order, size, parallel.round_up(size, setup.devices))


def _refresh_statistics(setup, current, epoch):
    """Returns the state with batch statistics of its own weights, over the epoch's first batches."""
    rows = itertools.islice(_epoch_rows(setup, epoch), setup.config.train.bn_refresh_batches)
    for index, (batch, _) in enumerate(batching.read_batches(setup.feed, rows)):
        current = setup.statistics_fn(current, batch, parallel.replicate(np.int32(index), setup.devices))
    return current


def _validate(setup, current):
    return validation.evaluate_cases(
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
    val = validation.summarise(results, setup.dataset.classes)
    val |= validation.by_source(results, setup.dataset, setup.members["val"])
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
        "train": journal.divide_sums(sums, setup.dataset.classes),
        "val": val,
        "seconds": seconds,
        "first_step_seconds": timing.first_step_seconds,
        "images_per_second": timing.images_per_second,
        "waited_for_data": timing.waited_seconds / timing.seconds if timing.seconds else 0.0,
        **journal.peak_memory(parallel.local(setup.devices)[0]),
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


def _save_epoch(setup, current, position, row):
    """The row first, then the state, then the best weights: a kill in between costs an epoch, no weights."""
    files.append_row(setup.workdir / "metrics.jsonl", row)
    host = parallel.fetch_first(current)
    last = position.schedule.stopped or position.epoch == setup.config.train.num_epochs
    improved = position.schedule.best_epoch == position.epoch
    if improved or last or position.epoch % setup.config.checkpoint.every_epochs == 0:
        empty = jax.device_get(steps.empty_sums(len(setup.dataset.classes)))
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
    if processes.is_first():
        checkpoints.save_latest(setup.workdir, state=host, sums=sums, progress=position.to_json())
    done = int(host.step) - position.epoch * setup.steps_per_epoch
    raise Interrupted(
        f"stopped by {(interruption.signal or signal.SIGTERM).name} in epoch {position.epoch + 1} after {done} of "
        f"{setup.steps_per_epoch} steps; saved in {setup.workdir}: start the same command again to go on"
    )


def set_learning_rate(current, learning_rate, devices):
    """Returns a replicated TrainState with another learning rate."""
    rate = parallel.replicate(np.float32(learning_rate), devices)
    return current._replace(opt_state=optim.set_learning_rate(current.opt_state, rate))
