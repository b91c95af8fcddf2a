"""Looks at real slices again with the same networks: does a closer look, or another, find more, and at what cost?

    python -m experiments.second_look --data_dir=FOLDER --study=runs/nodules [--arm=recommended] [--sizes=320,384,512]

The network is fully convolutional: the runs of a finished `experiments.nodules` predict each of their slices at the
size that they were trained at, at larger ones up to the slice's own, and mirrored. Probabilities are brought to the
slice's own size and scored there: each look alone, its mean with the first one, and the means of the networks of
all seeds. Threshold and least size are chosen on the validation slices of all runs that hold no slice of the
test split (`nodules.find_pool`), for each look anew. Writes `second_look.json` into the study's folder: for each
look, over all test slices, the most likely class, the chosen operating point, and its cost: the pixels that the
network sees, in multiples of the first look's (its operations are proportional to them); and what share of a
slice a look at crops along the lungs would have to see.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from absl import flags

from auxseg import augment, cli, decision, evaluate, input_pipeline, judge, parallel, runs
from auxseg.datasets import load
from auxseg.datasets.labels import LEFT, RIGHT
from auxseg.errors import InputError
from experiments import nodules, runner

FILE = "second_look.json"
MARGIN_PX, STEP_PX = 16, 16
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


def predict_native(subject, split, *, mirrored):
    """Returns {case id: probabilities float16 [H0, W0, C]} of a split at the slices' own size.

    Args:
        subject: judge.Subject.
        split: its name.
        mirrored: show the network the mirror image, and turn its answer back.
    """
    if mirrored:
        subject = dataclasses.replace(subject, predict_fn=_mirror(subject.predict_fn))
    table = subject.dataset.table
    return {
        str(table.case_id[index]): judge.resize_probabilities(
            probabilities, tuple(table.native_size_yx[index])
        ).astype(np.float16)
        for index, probabilities in judge.predict(subject, subject.members[split])
    }


def count_looks(paths, sizes, data_dir):
    """Returns {look: {'val': decision.Counts, 'test': decision.Counts, 'cost': as above}} of finished runs.

    Args:
        paths: workdirs of one run, or of runs with the same splits, whose probabilities are averaged.
        sizes: rows and columns of each look, the network's own first.
        data_dir: folder of the slices.
    """
    looks = name_looks(sizes)
    views = dict.fromkeys(view for parts in looks.values() for view in parts)
    subjects = {view: [open_at(path, view[0], data_dir) for path in paths] for view in views}
    counted = {name: {} for name in looks}
    for split in ("val", "test"):
        seen = {
            view: [predict_native(each, split, mirrored=view[1]) for each in subjects[view]] for view in views
        }
        for name, parts in looks.items():
            chosen = [each for view in parts for each in seen[view]]
            cases = _mean_cases(subjects[parts[0]][0], split, chosen)
            counted[name][split] = decision.count(
                cases, nominal_pixel_mm=decision.NOMINAL_FIELD_MM / NATIVE_PX
            )
            counted[name]["cost"] = len(paths) * sum((size / sizes[0]) ** 2 for size, _ in parts)
    return counted


def name_looks(sizes):
    """Returns {name of a look: ((size, mirrored), ...)}: each size, and the first together with each other look."""
    first, *others = sizes
    return (
        {str(first): ((first, False),)}
        | {str(size): ((size, False),) for size in others}
        | {f"mean of {first} and {size}": ((first, False), (size, False)) for size in others}
        | {f"mean of {first} and its mirror image": ((first, False), (first, True))}
    )


def _mirror(predict_fn):
    """Returns a `judge.create_predict_fn` that sees mirror images; the two lungs are exchanged back."""
    return lambda variables, batch: augment.turn_back(
        predict_fn(variables, batch._replace(images=batch.images[..., ::-1]))
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
    table = {}
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
        cost = next(iter(counted.values()))[look]["cost"]
        table[look] = {"cost": cost} | {name: _sum(each) for name, each in rows.items()}
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


def share_of_boxes(mask, *, margin=MARGIN_PX, step=STEP_PX):
    """Returns the share of a slice that the boxes of its two lungs take: what crops along them cost of the whole.

    Args:
        mask: uint8 [H, W], class indices.
        margin: pixels about each lung, within the slice.
        step: the sides of a box are multiples of it, as the network's poolings ask for.
    """
    pixels = 0
    for side in (LEFT, RIGHT):
        places = np.argwhere(mask == side)
        if len(places):
            sides = np.minimum(np.ptp(places, axis=0) + 1 + 2 * margin, mask.shape)
            pixels += np.prod(-(-sides // step) * step)
    return float(pixels / mask.size)


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
        counted[path] = count_looks([path], sizes, given.data_dir)
        print(f"looked again: {path.name}", flush=True)
    table = collect(counted, workdirs) | _average_seeds(workdirs, sizes[0], given.data_dir)
    runs.write_json(
        folder / FILE,
        {"arm": given.arm, "runs": len(workdirs), "looks": table, "boxes": _measure_boxes(workdirs)},
    )
    for look, about in table.items():
        best = about["tuned"]
        print(
            f"{look}: {best['found']} of {best['nodules']}, {best['false per slice']:.2f} false ones a slice, "
            f"Dice {best['nodule Dice']:.2f}, {about['cost']:.1f} times the cost"
        )


def _measure_boxes(workdirs):
    """Returns the mean and the range of `share_of_boxes` over the slices of some runs, at their own size."""
    dataset = load(next(iter(workdirs)).config.data)
    shares = [share_of_boxes(dataset.read_native_mask(index)) for index in range(len(dataset))]
    return {"slices": len(shares), "mean": np.mean(shares), "least": min(shares), "largest": max(shares)}


def _average_seeds(workdirs, size, data_dir):
    """Returns `collect` of the mean of the networks of all seeds of each fold; {} of one seed."""
    folds = {}
    for run, path in workdirs.items():
        folds.setdefault(run.config.data.fold, {})[run] = path
    num_seeds = len(next(iter(folds.values())))
    if num_seeds == 1:
        return {}
    firsts = dict(next(iter(fold.items())) for fold in folds.values())
    counted = {
        next(iter(fold.values())): count_looks(list(fold.values()), (size,), data_dir)
        for fold in folds.values()
    }
    return {f"{num_seeds} networks: {look}": about for look, about in collect(counted, firsts).items()}


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder of NPZ slices", required=True)
    flags.DEFINE_string("study", None, "folder of a finished experiments.nodules", required=True)
    flags.DEFINE_string("arm", "recommended", "whose runs look again")
    flags.DEFINE_list("sizes", ["320", "384", "512"], "rows and columns of the further looks")
    cli.run(main)
