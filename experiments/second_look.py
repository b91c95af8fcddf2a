"""Looks at real slices at other sizes with the same networks: does a closer look find more, and what does it cost?

    python -m experiments.second_look --data_dir=FOLDER --study=runs/nodules [--arm=recommended] [--sizes=320,384,512]

The network is fully convolutional: the runs of a finished `experiments.nodules` predict each of their slices at the
size that they were trained at and at larger ones, up to the slice's own. Probabilities are brought to the slice's
own size and scored there, each look alone and its mean with the first look. Threshold and least size are chosen
on the validation slices of all runs that hold no slice of the test split (`nodules.pool_counts`), for each look
anew. Writes `second_look.json` into the study's folder: for each look, over all test slices of all runs, the most
likely class, the chosen operating point, and the processor's time of a slice in multiples of the first look's.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time

import numpy as np
from absl import flags

from auxseg import cli, decision, evaluate, input_pipeline, judge, parallel, runs
from auxseg.datasets import load
from auxseg.errors import InputError
from experiments import nodules, runner

FILE = "second_look.json"
NATIVE_PX = 512
"""Of a slice whose size in mm is not known, by which a least size becomes pixels: LUNA16's."""


def open_at(workdir, size, data_dir):
    """Returns the judge.Subject of a run with its slices resized to `size` rows and columns."""
    subject, _, _ = evaluate.open_run(workdir, "test")
    if tuple(subject.dataset.size_yx) == (size, size):
        first = subject.dataset
    else:
        config = runner.override(subject.config, {"data.size": (size, size), "data.dir": data_dir})
        first = load(config.data)
        subject = dataclasses.replace(subject, config=config, dataset=first)
    used = np.concatenate([subject.members["val"], subject.members["test"]])
    feed = input_pipeline.create_feed(
        first,
        used,
        placement=subject.config.data.placement,
        devices=parallel.choose_devices(subject.config.train.num_devices),
    )
    return dataclasses.replace(subject, feed=feed, members=evaluate.read_splits(workdir, first))


def predict_native(subject, split):
    """Returns ({case id: probabilities float16 [H0, W0, C]} of a split at the slices' own size, seconds a slice).

    The seconds are the processor's, without those of the first batch, which compiles.
    """
    table, found, began = subject.dataset.table, {}, None
    members, batch = subject.members[split], subject.config.eval.batch_size
    for number, (index, probabilities) in enumerate(judge.predict(subject, members), start=1):
        if number == batch + 1:
            began = time.process_time()
        native = judge.resize_probabilities(probabilities, tuple(table.native_size_yx[index]))
        found[str(table.case_id[index])] = native.astype(np.float16)
    later = len(members) - batch
    return found, (time.process_time() - began) / later if began and later > 0 else float("nan")


def count_looks(workdir, sizes, data_dir):
    """Returns {look: {'val': decision.Counts, 'test': decision.Counts, 'seconds': a slice}} of a finished run.

    Args:
        workdir: pathlib.Path.
        sizes: rows and columns of each look, the network's own first.
        data_dir: folder of the slices.
    """
    subjects = {size: open_at(workdir, size, data_dir) for size in sizes}
    looks = {name: {} for name in name_looks(sizes)}
    for split in ("val", "test"):
        seen = {size: predict_native(subject, split) for size, subject in subjects.items()}
        for name, parts in name_looks(sizes).items():
            cases = _mean_cases(subjects[sizes[0]], split, [seen[size][0] for size in parts])
            looks[name][split] = decision.count(cases, nominal_pixel_mm=decision.NOMINAL_FIELD_MM / NATIVE_PX)
            looks[name]["seconds"] = float(sum(seen[size][1] for size in parts))
    return looks


def name_looks(sizes):
    """Returns {name of a look: its sizes}: each size, and the first together with each other one."""
    first, *others = sizes
    return (
        {str(first): (first,)}
        | {str(size): (size,) for size in others}
        | {f"mean of {first} and {size}": (first, size) for size in others}
    )


def _mean_cases(subject, split, looks):
    """Yields what `decision.count` takes: mean probabilities at the slice's own size, its mask and its spacing."""
    table = subject.dataset.table
    for index in subject.members[split]:
        mean = np.mean([look[str(table.case_id[index])].astype(np.float32) for look in looks], axis=0)
        yield mean, subject.dataset.read_native_mask(index), table.spacing_zyx_mm[index, 1:].astype(float)


def collect(counted, workdirs):
    """Returns by look what was found on the test slices, JSON types.

    Args:
        counted: {workdir: `count_looks`}.
        workdirs: {Run: workdir}.
    """
    nominal = decision.NOMINAL_FIELD_MM / NATIVE_PX
    choices = decision.create_choices(nominal)
    table, first = {}, None
    for look in next(iter(counted.values())):
        rows = {"most likely class": [], "tuned": []}
        for run, path in workdirs.items():
            siblings = nodules.find_siblings(run, workdirs)
            val = sum(
                (counted[each][look]["val"] for each in nodules.find_pool(path, siblings)),
                start=counted[path][look]["val"],
            )
            chosen, _ = decision.choose(val, max_false=nodules.MAX_FALSE, nominal_pixel_mm=nominal)
            test = counted[path][look]["test"]
            for name, point in (("most likely class", decision.Decision()), ("tuned", chosen)):
                rows[name].append((test.slices, *test.sums[choices.index(point)]))
        seconds = float(np.mean([each[look]["seconds"] for each in counted.values()]))
        first = seconds if first is None else first
        table[look] = {"cost": seconds / first} | {name: _sum(each) for name, each in rows.items()}
    return table


def _sum(rows):
    slices, found, missed, false, dice, with_nodule = np.sum(rows, axis=0).tolist()
    return {
        "slices": int(slices),
        "nodules": int(found + missed),
        "found": int(found),
        "false per slice": false / slices,
        "nodule Dice": dice / with_nodule if with_nodule else None,
    }


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    folder = pathlib.Path(given.study)
    workdirs = nodules.find_runs(folder, given.arm)
    if not workdirs:
        raise InputError(
            f"--study={folder}: no finished run of --arm={given.arm}; run experiments.nodules first"
        )
    own = next(iter(workdirs)).config.data.size[0]
    sizes = (own, *runner.whole_numbers("--sizes", given.sizes))
    counted = {}
    for path in workdirs.values():
        counted[path] = count_looks(path, sizes, given.data_dir)
        print(f"looked again: {path.name}", flush=True)
    table = collect(counted, workdirs)
    runs.write_json(folder / FILE, {"arm": given.arm, "runs": len(workdirs), "looks": table})
    for look, about in table.items():
        best = about["tuned"]
        print(
            f"{look}: {best['found']} of {best['nodules']}, {best['false per slice']:.2f} false ones a slice, "
            f"Dice {best['nodule Dice']:.2f}, {about['cost']:.1f} times the time"
        )


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder of NPZ slices", required=True)
    flags.DEFINE_string("study", None, "folder of a finished experiments.nodules", required=True)
    flags.DEFINE_string("arm", "recommended", "whose runs look again")
    flags.DEFINE_list("sizes", ["320", "384", "512"], "rows and columns of the further looks")
    cli.run(main)
