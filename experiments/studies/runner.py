"""Runs a study: a list of runs, one after another or several at once, resumably, and then one comparison.

    python -m experiments.studies.ablations --data=npz --data_dir=FOLDER --seeds=1,2,3 --folds=0,1,2

A study lives in a folder: `runs/NAME` is the workdir of each run (`auxseg.training.loop`), `study.json` says which
runs belong to it, `cases.csv` has the scores of every case of every run, `compare/` the tables and the page.
A run is finished when it has a `summary.json`; a study that was killed is started again with the same command
and goes on, in the middle of a run too. A run that fails (a loss that is not finite) does not stop the others:
it is named at the end and the exit status is 1.

A study adds its arms as {name: {setting: value}} and calls `plan`, `run_all` and `finish`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import classes_of
from auxseg.base.errors import InputError, check_choice
from auxseg.evaluation import evaluate_run
from auxseg.runs import config_files, run_folder
from experiments.studies import compare, comparison

CONFIGS = {"phantom": "phantom", "npz": "luna16_npz", "luna16": "base", "crops": "recommended"}
"""The config of each choice of --data; 'quick' runs have smoke.py instead."""
QUICK = {
    "data.size": (32, 32),
    "model.depth": 1,
    "model.lowering": "plain",
    "train.num_epochs": 1,
}
"""What a quick run changes in smoke.py: compiling is nearly all that it does, and this compiles soonest."""
SPLITS = {"phantom": "kfold", "npz": "kfold", "luna16": "folds", "crops": "kfold"}
CASE_COLUMNS = ("case_id", "patient", "split")
"""Columns of a run's cases.csv that the study's own keeps, beside the scores of each class."""
CHILD = (sys.executable, "-m", "experiments.studies.runner")
"""The command that trains one run in a process of its own; --workdir is added."""
SCORE_COLUMNS = ("dice", "reference_px", "predicted_px")
"""Likewise of each class."""
EVALUATED_COST = 1 / 3
"""Of evaluating a case, in training steps' time: a forward pass is a third of a training step."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What all runs of a study share; None leaves a setting as the config has it.

    Attributes:
        data: 'phantom', 'npz', 'luna16' or 'crops'.
        data_dir: folder of the data.
        seeds: of initialisation and order of the examples, one run each.
        folds: test folds, by patient; LUNA16's own subsets with 'luna16'.
        paired: the first seed runs on the first fold alone, the second on the second, and so on.
        num_folds: of all but 'luna16'.
        base_width: channels of the first level.
        size: rows and columns.
        epochs: at most.
        batch_size: examples in a step.
        quick: a tiny phantom and network: shows that everything works, and its scores mean nothing.
        config: a ConfigDict to start from instead of the one of `data`.
    """

    data: str = "phantom"
    data_dir: str | None = None
    seeds: tuple[int, ...] = (1, 2, 3)
    folds: tuple[int, ...] = (0,)
    paired: bool = False
    num_folds: int = 5
    base_width: int | None = None
    size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    quick: bool = False
    config: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of a study.

    Attributes:
        name: of its workdir in the study's folder.
        arm: the arm's name.
        config: locked ConfigDict.
    """

    name: str
    arm: str
    config: Any


def create_config(protocol):
    """Returns the settings that all runs of a study share, a locked ConfigDict.

    Raises:
        InputError: an unknown choice of data, or --quick with data that is no phantom.
    """
    check_choice("--data", protocol.data, tuple(CONFIGS))
    if protocol.quick and protocol.data != "phantom":
        raise InputError(f"--quick: got --data={protocol.data}, expected --data=phantom")
    name = "smoke" if protocol.quick else CONFIGS[protocol.data]
    config = protocol.config or importlib.import_module(f"configs.{name}").get_config()
    with config.unlocked():
        config.data.name = protocol.data
        config.data.split = SPLITS[protocol.data]
        config.data.num_folds = protocol.num_folds
        config.data.dir = protocol.data_dir
        config.eval.num_panels = 0  # one page for all runs, at the end
    asked = {
        "model.base_width": protocol.base_width,
        "data.size": protocol.size and (protocol.size, protocol.size),
        "train.num_epochs": protocol.epochs,
        "train.batch_size": protocol.batch_size,
    }
    if config.optim.cosine_epochs:
        asked["optim.cosine_epochs"] = protocol.epochs
    given = {name: value for name, value in asked.items() if value is not None}
    return override(config, (QUICK if protocol.quick else {}) | given)


def override(config, changes):
    """Returns a locked copy of a config with {'group.name': value} changed.

    Raises:
        InputError: a setting that there is not, or a value of another type.
    """
    copied = config.copy_and_resolve_references().lock()
    try:
        copied.update_from_flattened_dict(changes)
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"settings {changes}: {error}") from error
    return copied.lock()


def plan(config, arms, protocol):
    """Returns the Runs of {arm: changes}: all arms of one seed and fold before the next, so that they stay level.

    Args:
        config: from `create_config`.
        arms: {name: {'group.name': value}}.
        protocol: Protocol.
    """
    return [
        Run(
            f"{arm}-f{fold}-s{seed}",
            arm,
            override(config, {"seed": seed, "train.order_seed": seed, "data.fold": fold, **changes}),
        )
        for seed, fold in list_draws(protocol)
        for arm, changes in arms.items()
    ]


def list_draws(protocol):
    """Returns the (seed, fold) of an arm's runs, in their order.

    Raises:
        InputError: paired, and not as many seeds as folds.
    """
    if not protocol.paired:
        return list(itertools.product(protocol.seeds, protocol.folds))
    if len(protocol.seeds) != len(protocol.folds):
        raise InputError(
            f"--paired: got {len(protocol.seeds)} seeds and {len(protocol.folds)} folds, expected as many of both"
        )
    return list(zip(protocol.seeds, protocol.folds, strict=True))


def choose_arms(arms, only):
    """Returns the arms {name: changes} whose names are in `only`, all of them for ().

    Raises:
        InputError: a name that there is not, or fewer than two.
    """
    for name in only:
        check_choice("--arms", name, tuple(arms))
    chosen = {name: changes for name, changes in arms.items() if name in only or not only}
    if len(chosen) < 2:
        raise InputError(f"--arms: got {','.join(chosen)}, expected at least two of {', '.join(arms)}")
    return chosen


def run_all(folder, planned, *, jobs=1, dry_run=False, reuse=()):
    """Returns the workdirs {Run: path} of the runs that finished, after running those that have not.

    Args:
        folder: pathlib.Path of the study.
        planned: list of Run.
        jobs: runs at once, each in a process of its own; 0: as many as there are devices here.
        dry_run: only list the runs and the time they will take.
        reuse: folders of other studies: a run with the same settings that has ended there is not run again.

    Raises:
        InputError: a run was started with other settings, data that cannot be used, or every run failed.
        auxseg.training.interruption.Interrupted: on SIGTERM, after the run at hand was saved.
    """
    finished = _find_finished(reuse)
    workdirs = {}
    for run in planned:
        workdirs[run] = folder / "runs" / run.name
        _check_settings(run, workdirs[run])
        if not is_finished(workdirs[run]):
            workdirs[run] = finished.get(_settings_key(run.config), workdirs[run])
    left = [run for run in planned if not is_finished(workdirs[run])]
    jobs = min(jobs or count_devices(), max(1, len(left)))
    _announce(folder, planned, left, jobs, dry_run)
    if dry_run or not left:
        return {} if dry_run else workdirs
    runs_of_arms = {run.name: run.arm for run in planned}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "study.json", {"command": sys.argv, "runs": runs_of_arms})
    failed = _run_in_turn(left, workdirs) if jobs == 1 else _run_at_once(left, workdirs, jobs)
    for run, reason in failed.items():
        print(f"failed: {run.name}: {reason}", flush=True)
    if len(failed) == len(planned):
        raise InputError(f"{folder}: every run failed, the first because of: {next(iter(failed.values()))}")
    return {run: workdir for run, workdir in workdirs.items() if run not in failed}


def is_finished(workdir):
    """Returns whether a run has ended and was scored."""
    return (workdir / "summary.json").is_file()


def find_left(folder, planned, reuse=()):
    """Returns the Runs that have neither ended in the folder of their study nor, alike, in another one."""
    finished = _find_finished(reuse)
    return [
        run
        for run in planned
        if not is_finished(folder / "runs" / run.name) and _settings_key(run.config) not in finished
    ]


def drop_repeated(left):
    """Returns Runs without those whose settings another one has."""
    return list({_settings_key(run.config): run for run in reversed(left)}.values())[::-1]


def _find_finished(folders):
    """Returns {key of the settings: workdir} of the finished runs of other studies."""
    paths = [path for folder in folders for path in sorted((folder / "runs").glob("*")) if is_finished(path)]
    return {_settings_key(run_folder.read_config(path)): path for path in paths}


def _settings_key(config):
    """Returns a text that is the same for runs with the same result."""
    settings = run_folder.flatten(run_folder.config_to_dict(config))
    return json.dumps(
        {key: value for key, value in settings.items() if key not in run_folder.FREE_SETTINGS}, sort_keys=True
    )


def _check_settings(run, workdir):
    """Raises InputError where `workdir` holds a run of other settings."""
    path = workdir / "config.json"
    if path.is_file():
        differences = run_folder.list_differences(
            files.read_json(path), run_folder.config_to_dict(run.config)
        )
        if differences:
            raise InputError(
                f"{workdir} was started with other settings: {'; '.join(differences)}; give the study another --out"
            )


def _announce(folder, planned, left, jobs, dry_run):
    """Prints what will be run, and how long it takes at most."""
    print(f"{folder}: {len(planned)} runs, {len(planned) - len(left)} finished", flush=True)
    if dry_run:
        for run in planned:
            print(f"  {run.name}: {'to run' if run in left else 'finished'}")
    if left:
        total = estimate_total(left, jobs)
        print(
            f"at most about {format_seconds(total)}: {format_seconds(total * jobs / len(left))} a run, {jobs} at "
            "once, measured on a few steps of each network",
            flush=True,
        )


def _run_in_turn(left, workdirs):
    """Runs in this process, one after another; returns {Run: why it failed}.

    Each run traces its own programs, which JAX would keep to the end: tens of megabytes a run. They are dropped; those
    compiled are read again from disk.
    """
    import jax

    from auxseg.training import loop

    failed, start = {}, time.monotonic()
    for done, run in enumerate(left, start=1):
        workdir = workdirs[run]
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            with open(workdir / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                loop.train(run.config, workdir, finish=evaluate_run.finish)
        except InputError as error:
            failed[run] = str(error)
        jax.clear_caches()
        _show_progress(run, done, len(left), time.monotonic() - start)
    return failed


def _run_at_once(left, workdirs, jobs):
    """Runs in processes of their own, each on its own device where there are several; returns {Run: reason}."""
    from auxseg.training import interruption

    waiting, running, failed, done, start = list(left), {}, {}, 0, time.monotonic()
    free = list(range(jobs))
    try:
        while waiting or running:
            while waiting and free:
                run, slot = waiting.pop(0), free.pop(0)
                running[run] = (_start_child(run, workdirs[run], slot), slot)
            time.sleep(0.1)
            for run, (process, slot) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[run]
                free.append(slot)
                done += 1
                if status == command.EXIT_INTERRUPTED:
                    raise interruption.Interrupted(
                        f"{run.name} was interrupted; start the same command again to go on"
                    )
                if not is_finished(workdirs[run]):
                    failed[run] = f"exit status {status}; see {workdirs[run] / 'log.txt'}"
                _show_progress(run, done, len(left), time.monotonic() - start)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return failed


def _start_child(run, workdir, slot):
    """Returns the process that trains `workdir`, on the device `slot` where there are more than one."""
    workdir.mkdir(parents=True, exist_ok=True)
    run_folder.claim_config(workdir, run.config)
    environment = dict(os.environ)
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)] if visible else str(slot)
    with open(workdir / "log.txt", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [*CHILD, f"--workdir={workdir}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def count_devices():
    """Returns how many accelerators there are, 1 where there is only the CPU; asked in a process of its own,
    since a process that has asked holds their memory."""
    code = "import jax; d = jax.local_devices(); print(len(d) if d[0].platform != 'cpu' else 1)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(asked.stdout.split()[-1])


def _show_progress(run, done, total, seconds):
    left = seconds / done * (total - done)
    print(
        f"[{done}/{total}] {run.name}; {format_seconds(seconds)} so far, {format_seconds(left)} left",
        flush=True,
    )


def format_seconds(seconds):
    """Returns seconds as text: '40 s', '12 min', '3.5 h' or '2.1 days'."""
    for limit, unit, name, form in (
        (90, 1, "s", ".0f"),
        (5400, 60, "min", ".0f"),
        (172800, 3600, "h", ".1f"),
    ):
        if seconds < limit:
            return f"{seconds / unit:{form}} {name}"
    return f"{seconds / 86400:.1f} days"


def estimate_total(left, jobs=1):
    """Returns the seconds that Runs take at most, `jobs` at once; a few steps of each network are measured."""
    seconds, total = {}, 0.0
    for run in left:
        model = run.config.model
        network = (model.name, model.base_width, tuple(run.config.data.size))
        if network not in seconds:
            seconds[network] = estimate_seconds(run.config, in_child=jobs > 1)
        total += seconds[network]
    return total / jobs


_MEASURED = {}
"""(seconds of the first step, of a later one) of each network measured in this process."""


def estimate_seconds(config, *, in_child=False):
    """Returns the seconds of one run at most: all epochs, from the time of a few training steps.

    The data are prepared first, where they are not.

    Args:
        config: of the run.
        in_child: measure in a process of its own, and leave the devices free.

    Raises:
        InputError: settings or data that cannot be used.
    """
    if in_child:
        code = (
            "import json, sys; from auxseg.runs import run_folder; from experiments.studies import runner; "
            "print(runner.estimate_seconds(run_folder.to_config(json.load(sys.stdin))))"
        )
        asked = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(run_folder.config_to_dict(config)),
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            raise InputError(f"the study cannot start: {asked.stderr.strip().splitlines()[-1]}")
        return float(asked.stdout.split()[-1])
    from auxseg.datasets import load, splits
    from auxseg.training import batching

    data = config.data
    table = load(data).table
    members = splits.make_splits(
        table, split=data.split, fold=data.fold, num_folds=data.num_folds, seed=data.split_seed
    )
    key = (run_folder.config_to_dict(config)["model"], tuple(config.data.size), config.train.batch_size)
    key = json.dumps(key, sort_keys=True)
    if key not in _MEASURED:
        _MEASURED[key] = measure_step(config)
    compiling, step = _MEASURED[key]
    batch = config.train.batch_size
    trained = batching.num_batches(len(members["train"]), batch)
    evaluated = EVALUATED_COST / batch
    epoch = trained + evaluated * len(members["val"])
    scored = 2 * evaluated * (len(members["val"]) + len(members.get("test", ())))
    return 2 * compiling + step * (config.train.num_epochs * epoch + scored)


def measure_step(config, *, num_steps=2):
    """Returns (seconds of the first training step, which compiles, of a later one) on made-up images."""
    import jax
    import numpy as np

    from auxseg.datasets import cache_dir
    from auxseg.devices import parallel
    from auxseg.training import batching, setup, steps

    setup.check_settings(config)
    parallel.keep_compiled_programs(cache_dir(config.data) / "compiled")
    devices = parallel.choose_devices(config.train.num_devices)
    size = parallel.round_up(config.train.batch_size, devices)
    rows, columns = config.data.size
    masks = np.zeros((size, rows, columns), np.uint8)
    images = np.zeros(masks.shape if config.data.slab == 1 else (*masks.shape, config.data.slab), np.int16)
    raw = batching.RawBatch(images, masks, np.zeros(size, np.int32), np.ones(size, np.float32))
    start = time.perf_counter()
    step = setup.create_train_fn(config, devices)
    current = parallel.replicate(jax.device_get(setup.create_initial_state(config)), devices)
    sums = parallel.replicate(jax.device_get(steps.empty_sums(len(classes_of(config.data)))), devices)
    raw = parallel.shard(raw, devices)
    seconds = []
    for _ in range(1 + num_steps):
        current, sums = jax.block_until_ready(step(current, sums, raw))
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return seconds[0], min(seconds[1:])


def name_arms(workdirs, titles=None):
    """Returns {path: words of its arm}, as `comparison.compare` takes it, of {Run: path}."""
    return {path: (titles or {}).get(run.arm, run.arm) for run, path in workdirs.items()}


def finish(folder, workdirs, *, titles=None, pairs=None, names=("dice",), sections=()):
    """Returns the comparison of a study's runs, after writing `compare/` and `cases.csv` into its folder.

    Args:
        folder: pathlib.Path of the study.
        workdirs: {Run: path} from `run_all`.
        titles: {arm: words}; default: the arms' names.
        pairs: (first arm, second arm) to compare; None: all.
        names: scores, of `comparison.SCORES`.
        sections: (heading, Markup) to show first on the page.

    Raises:
        InputError: as `comparison.compare`.
    """
    arms = name_arms(workdirs, titles)
    if pairs is not None:
        pairs = [tuple((titles or {}).get(arm, arm) for arm in pair) for pair in pairs]
    result = comparison.compare(list(workdirs.values()), names=names, arms=arms, pairs=pairs)
    write_cases(folder / "cases.csv", workdirs, split=result["split"])
    print(f"page: {compare.write_comparison(folder / 'compare', result, sections)}", flush=True)
    return result


def write_cases(path, workdirs, *, split):
    """Writes the scores of every case of a split of every run as one CSV: arm, seed, fold, case, Dice, pixels."""
    from auxseg.base import files
    from auxseg.scoring import case_scores

    rows = []
    for run, workdir in workdirs.items():
        which = {"arm": run.arm, "seed": run.config.seed, "fold": run.config.data.fold}
        for row in files.read_csv(workdir / "cases.csv"):
            if row["split"] != split:
                continue
            kept = {name: row[name] for name in CASE_COLUMNS}
            columns = [f"{name}_{column}" for name in case_scores.FOREGROUND for column in SCORE_COLUMNS]
            kept |= {column: row[column] for column in columns if column in row}
            rows.append(which | kept)
    files.write_csv(path, rows)


def define_flags(*, seeds=(1, 2, 3), folds=(0,), out):
    """Defines the flags that all studies share; `out` is the default of --out."""
    flags.DEFINE_enum("data", "phantom", tuple(CONFIGS), "what to train on")
    flags.DEFINE_string("data_dir", None, "folder of the data; the phantom needs none")
    flags.DEFINE_list("seeds", list(map(str, seeds)), "of initialisation and order, one run each")
    flags.DEFINE_list("folds", list(map(str, folds)), "test folds, by patient")
    flags.DEFINE_bool("paired", False, "each seed on one fold: the first on the first, and so on")
    flags.DEFINE_integer("num_folds", 5, "folds by patient; LUNA16 has ten of its own", lower_bound=3)
    flags.DEFINE_integer(
        "base_width", None, "channels of the first level; default: the config's", lower_bound=1
    )
    flags.DEFINE_integer("size", None, "rows and columns of an image; default: the config's", lower_bound=16)
    flags.DEFINE_integer("epochs", None, "at most; default: the config's", lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "examples in a step; default: the config's", lower_bound=1)
    flags.DEFINE_list("arms", [], "of the study; default: all")
    flags.DEFINE_multi_enum("score", ["dice"], sorted(comparison.SCORES), "to compare; repeat for several")
    flags.DEFINE_bool("quick", False, "a tiny phantom: shows that everything works, scores mean nothing")
    flags.DEFINE_bool("dry_run", False, "list the runs and the time, and stop")
    flags.DEFINE_integer("jobs", 1, "runs at once, each in its process; 0: one on each device", lower_bound=0)
    flags.DEFINE_string("out", out, "folder of the study")
    flags.DEFINE_list("reuse", [], "folders of other studies whose runs of the same settings are taken over")
    config_files.define("settings to start from instead of those of --data")


def read_protocol():
    """Returns the Protocol of the flags.

    Raises:
        InputError: seeds or folds that are not whole numbers, or one twice.
    """
    given = flags.FLAGS
    return Protocol(
        data=given.data,
        data_dir=given.data_dir,
        seeds=whole_numbers("--seeds", given.seeds),
        folds=whole_numbers("--folds", given.folds),
        paired=given.paired,
        num_folds=given.num_folds,
        base_width=given.base_width,
        size=given.size,
        epochs=given.epochs,
        batch_size=given.batch_size,
        quick=given.quick,
        config=given.config,
    )


def whole_numbers(name, texts):
    """Returns the tuple of different whole numbers that a list flag holds; raises InputError for others."""
    numbers = tuple(int(text) for text in texts if text.strip().isdigit())
    if len(numbers) != len(texts) or len(set(numbers)) != len(numbers) or not numbers:
        raise InputError(f"{name}: got {','.join(texts)!r}, expected different whole numbers, such as 1,2,3")
    return numbers


def main_of(study):
    """Returns the main(argv) of a study: `study(protocol, folder, jobs=, dry_run=, reuse=, only=, names=)`."""

    def run():
        given = flags.FLAGS
        study(
            read_protocol(),
            pathlib.Path(given.out),
            jobs=given.jobs,
            dry_run=given.dry_run,
            reuse=tuple(pathlib.Path(name) for name in given.reuse),
            only=tuple(given.arms),
            names=tuple(given.score),
        )
        return 0

    return guard(run)


def guard(study):
    """Returns `study` as a main(argv) whose exit status is that of an interrupted run where it was one."""

    def main(argv):
        from auxseg.training import interruption

        del argv
        try:
            return study()
        except interruption.Interrupted as stop:
            print(stop, file=sys.stderr)
            return command.EXIT_INTERRUPTED

    return main


def train_one(workdir):
    """Trains the run whose settings lie in a workdir: what `CHILD` does; returns the exit status."""
    from auxseg.training import loop

    loop.train(run_folder.read_config(workdir), workdir, finish=evaluate_run.finish)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of a run with its config.json", required=True)
    command.run(guard(lambda: train_one(pathlib.Path(flags.FLAGS.workdir))))
