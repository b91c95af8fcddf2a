"""A sweep: every combination of some settings under one protocol, and one table at the end, best first.

    python -m experiments.studies.sweep --grid=GRID --data=npz --data_dir=FOLDER --out=runs/sweep

GRID is a JSON file, {"group.name": [values]}. Runs, folders and going on are those of every study
(`experiments.studies.runner`): a sweep that was killed is started again with the same command. The table is of the
validation split alone; the chosen setting is then scored on cases that had no part in the choice.
"""

from __future__ import annotations

import itertools
import pathlib
import re

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from experiments.studies import runner

MOST_ARMS = 500


def read_grid(path):
    """Returns {setting: values} of a file.

    Raises:
        InputError: no such file, or no grid in it.
    """
    grid = files.read_object(pathlib.Path(path), hint='write {"group.name": [value, ...]}')
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"--grid: {path}: {name} is {values!r}, expected a list of values")
    if not grid:
        raise InputError(f"--grid: {path} names no setting")
    return {name: [tuple(v) if isinstance(v, list) else v for v in values] for name, values in grid.items()}


def create_arms(grid):
    """Returns {arm: changes} of all combinations; an arm is named by its values, fit for a folder.

    Raises:
        InputError: more combinations than anybody means, or two with one name.
    """
    count = int(np.prod([len(values) for values in grid.values()]))
    if count > MOST_ARMS:
        raise InputError(f"--grid: {count} combinations, expected at most {MOST_ARMS}")
    arms = {}
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values))
        arms["_".join(f"{name}={_word(value)}" for name, value in changes.items())] = changes
    if len(arms) < count:
        raise InputError("--grid: two of the combinations are the same; name each value once")
    return arms


def _word(value):
    """Returns a value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")


def create_table(grid, workdirs):
    """Returns one row for each arm whose runs ended, best first by mean validation Dice over the classes.

    Args:
        grid: from `read_grid`.
        workdirs: {Run: path} of the runs that ended.
    """
    by_arm = {}
    for run, workdir in workdirs.items():
        by_arm.setdefault(run.arm, []).append(files.read_object(workdir / "summary.json"))
    arms = create_arms(grid)
    rows = [dict(arms[arm]) | _describe(found) for arm, found in by_arm.items()]
    return sorted(rows, key=lambda row: -np.nan_to_num(row["mean_dice"], nan=-1.0))


def _describe(summaries):
    """Returns the mean validation scores of the runs of an arm; NaN where no case has a class."""
    scores = [summary["scores"]["val"] for summary in summaries]
    classes = list(scores[0]["dice"])[1:]
    dice = np.array([[one["dice"][name] for name in classes] for one in scores], np.float64)
    means = [
        float(np.mean(column[~np.isnan(column)])) if (~np.isnan(column)).any() else np.nan
        for column in dice.T
    ]
    known = [value for value in means if not np.isnan(value)]
    return {
        "runs": len(summaries),
        "mean_dice": float(np.mean(known)) if known else np.nan,
        **{f"dice_{name}": value for name, value in zip(classes, means)},
        "loss": float(np.mean([one["loss"] for one in scores])),
        "best_epoch": float(np.mean([summary["best_epoch"] for summary in summaries])),
        "minutes": sum(summary["seconds"] for summary in summaries) / 60.0,
    }


def format_table(rows):
    """Returns rows as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def sweep(protocol, folder, grid, *, jobs=1, dry_run=False, reuse=()):
    """Returns the rows of the table, after running what has not ended and writing `sweep.csv` and `sweep.md`.

    Args:
        protocol: runner.Protocol.
        folder: pathlib.Path of the sweep.
        grid: from `read_grid`.
        jobs, dry_run, reuse: as `runner.run_all`.

    Raises:
        InputError: a setting that there is not, or as `runner.run_all`.
    """
    planned = runner.plan(runner.create_config(protocol), create_arms(grid), protocol)
    workdirs = runner.run_all(folder, planned, jobs=jobs, dry_run=dry_run, reuse=reuse)
    if dry_run:
        return []
    rows = create_table(grid, workdirs)
    files.write_csv(folder / "sweep.csv", rows)
    files.write_text(folder / "sweep.md", format_table(rows) + "\n")
    print(format_table(rows))
    print(
        f"table: {folder / 'sweep.md'}; validation alone, so score the chosen setting on other cases",
        flush=True,
    )
    return rows


def main():
    """Runs the command; returns the exit status: 1 where a run failed."""
    given = flags.FLAGS
    protocol, grid = runner.read_protocol(), read_grid(given.grid)
    reuse = tuple(pathlib.Path(name) for name in given.reuse)
    rows = sweep(protocol, pathlib.Path(given.out), grid, jobs=given.jobs, dry_run=given.dry_run, reuse=reuse)
    asked = len(create_arms(grid)) * len(protocol.seeds) * len(protocol.folds)
    return int(not given.dry_run and sum(row["runs"] for row in rows) < asked)


if __name__ == "__main__":
    runner.define_flags(seeds=(1,), out="runs/sweep")
    flags.adopt_module_key_flags(runner)
    flags.DEFINE_string("grid", None, 'JSON file: {"group.name": [value, ...]}', required=True)
    command.run(runner.guard(main))
