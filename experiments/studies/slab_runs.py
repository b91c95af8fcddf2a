"""The runs of a study of the third dimension: three kinds of network, by equal epochs and by equal time, resumably.

Every kind has about as many parameters (`WIDTHS`), the same cases, splits and settings. Each is trained with each seed
for as many epochs as the others, and for as much processor time as the dearest kind takes for those. Time is the
processor's, since the clock of a shared machine says little; compiling and the start of a run are left out of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np

from auxseg.base import files
from auxseg.training import loop, setup

KINDS = ("2D", "2.5D", "3D")
"""A slice alone; neighbouring slices as channels; volumes."""
WIDTHS = {"2D": 9, "2.5D": 9, "3D": 8}
"""Base widths of about as many parameters."""
BUDGETS = ("equal epochs", "equal time")
TRAINED, JUDGED = "trained.json", "judged.json"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is trained and how it is judged.

    Attributes:
        title: of the page.
        command: as somebody else would type it.
        create_config: (kind, seed, epochs) -> locked settings of a run.
        judge: (workdir, config) -> scores, JSON types.
        columns: {title: (score, format)} of the table; ' of ' and another score may follow the format.
        describe: its data in words.
    """

    title: str
    command: str
    create_config: Callable
    judge: Callable
    columns: dict
    describe: str


def settings_of(kind, slices):
    """Returns what a kind changes in a config, {'group.name': value}; those but '2D' see `slices` together."""
    changes = {"model.base_width": WIDTHS[kind]}
    if kind != "2D":
        changes["data.slab"] = slices
    if kind == "3D":
        changes["model.name"] = "aux_unet3d"
    return changes


def train(config, workdir):
    """Trains a run, or goes on with it, or leaves it as it is; returns its processor seconds, None if it was stopped."""
    done = workdir / TRAINED
    if not done.is_file():
        unbroken, start = not workdir.exists(), time.process_time()
        loop.train(config, workdir, finish=lambda *_, **__: None)
        files.write_json(done, {"cpu_s": time.process_time() - start if unbroken else None})
        jax.clear_caches()
    return files.read_object(done)["cpu_s"]


def measure_epoch(study, kind, root, seeds, epochs):
    """Returns processor seconds of an epoch with its validation: what `epochs` take beyond one, programs being compiled.

    Of runs of one epoch it is the whole run, the shortest of the seeds'.
    """
    file = root / f"{_name(kind)}_epoch.json"
    if not file.is_file():
        runs = [
            train(study.create_config(kind, seed, epochs), _folder(root, kind, epochs, seed))
            for seed in seeds
        ]
        whole = [seconds for seconds in runs if seconds is not None]
        if epochs == 1 or not whole:
            seconds = min(whole or [_time_one(study, kind, root, seeds[0])])
        else:
            seconds = (min(whole) - _time_one(study, kind, root, seeds[0])) / (epochs - 1)
        files.write_json(file, {"seconds": seconds})
    return files.read_object(file)["seconds"]


def _time_one(study, kind, root, seed):
    """Returns the processor seconds of a run of one epoch; one that was stopped is left, and another begun."""
    for number in itertools.count():
        seconds = train(study.create_config(kind, seed, 1), root / f"{_name(kind)}_timed_{number}")
        if seconds is not None:
            return seconds


def _folder(root, kind, epochs, seed):
    return root / f"{_name(kind)}_{epochs}_{seed}"


def _name(kind):
    return kind.replace(".", "_")


def find_longest(root, kind, seed):
    """Returns the workdir of the longest finished run of a kind and seed below `root`, or None."""
    found = [path.parent for path in pathlib.Path(root).glob(f"{_name(kind)}_*_{seed}/{TRAINED}")]
    found = [path for path in found if "timed" not in path.name]
    return max(found, key=lambda path: int(path.name.split("_")[-2]), default=None)


def run(study, root, out, *, seeds, epochs, budgets=BUDGETS):
    """Returns the rows of a study, which lie in `out` after each run, with a table beside it.

    Args:
        study: `Study`.
        root: folder of the runs.
        out: pathlib.Path of the JSON file.
        seeds: ints.
        epochs: of each kind; the cheaper ones train longer in equal time.
        budgets: of `BUDGETS`.
    """
    root.mkdir(parents=True, exist_ok=True)
    if tuple(budgets) != BUDGETS:
        study = dataclasses.replace(study, command=f'{study.command} --budgets="{",".join(budgets)}"')
    rows, seconds = [], {}
    for budget in budgets:
        times = dict.fromkeys(KINDS, 1.0)
        if budget == "equal time":
            seconds = {kind: measure_epoch(study, kind, root, seeds, epochs) for kind in KINDS}
            times = {kind: max(seconds.values()) / seconds[kind] for kind in KINDS}
        for seed, kind in itertools.product(seeds, KINDS):
            length = max(1, round(epochs * times[kind]))
            rows.append({"budget": budget, "kind": kind, "seed": seed, "epochs": length})
            rows[-1] |= _train_and_judge(study, kind, _folder(root, kind, length, seed), seed, length)
            print(rows[-1], flush=True)
            write(study, out, rows, seconds)
    return rows


def _train_and_judge(study, kind, workdir, seed, epochs):
    config = study.create_config(kind, seed, epochs)
    training_s = train(config, workdir)
    if not (workdir / JUDGED).is_file():
        files.write_json(workdir / JUDGED, study.judge(workdir, config))
        jax.clear_caches()
    losses = [row["val"]["loss"] for row in files.read_rows(workdir / "metrics.jsonl")]
    about = {"parameters": count_parameters(config), "training_s": training_s}
    about |= {"best_epoch": int(np.argmin(losses)) + 1, "val_losses": losses}
    return about | files.read_object(workdir / JUDGED)


def count_parameters(config):
    """Returns the trainable parameters of a config's network."""
    shapes = jax.eval_shape(lambda: setup.create_state(config).params)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write(study, out, rows, seconds):
    """Writes the result file, and the table beside it as Markdown."""
    from experiments import made_by

    seeds = sorted({row["seed"] for row in rows})
    origin = made_by.made_by(study.command, data=study.describe, seeds=seeds)
    files.write_json(out, {"made_by": origin, "seconds_an_epoch": seconds, "rows": rows})
    files.write_text(out.with_suffix(".md"), "\n".join(format_table(study, rows)) + "\n")


def format_table(study, rows):
    """Yields the lines of a Markdown page, a row a budget and kind: means over seeds, least and most in brackets."""
    yield f"# {study.title}\n"
    yield f"By `{study.command}`; {study.describe}. Means over seeds, in brackets the least and the most.\n"
    titles = ["budget", "network", "parameters", "seeds", "epochs", "best epoch", "training, processor s"]
    yield f"| {' | '.join([*titles, *study.columns])} |"
    yield "|" + " --- |" * (len(titles) + len(study.columns))
    for budget, kind in itertools.product(BUDGETS, KINDS):
        chosen = [row for row in rows if (row["budget"], row["kind"]) == (budget, kind)]
        if chosen:
            yield _format_row(budget, kind, chosen, study.columns)


def _format_row(budget, kind, rows, columns):
    first = rows[0]
    times = [row["training_s"] for row in rows if row["training_s"] is not None]
    cells = [budget, kind, f"{first['parameters']:,}", str(len(rows)), str(first["epochs"])]
    cells += [
        spread([row["best_epoch"] for row in rows], ".0f"),
        f"{min(times):.0f}" if times else "not measured",
    ]
    return f"| {' | '.join([*cells, *format_scores(rows, columns)])} |"


def format_scores(rows, columns):
    """Returns the cells of some rows' scores, in the order of `Study.columns`."""
    cells = []
    for name, form in columns.values():
        form, _, total = form.partition(" of ")
        shown = spread([row[name] for row in rows], form)
        cells.append(f"{shown} of {rows[0][total]}" if total else shown)
    return cells


def spread(values, form):
    """Returns 'mean (least-most)' of numbers, or the one number; None among them is left out."""
    values = [value for value in values if value is not None]
    if not values:
        return "none"
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{np.mean(values):{form}} ({min(values):{form}}-{max(values):{form}})"
