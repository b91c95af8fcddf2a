"""What neighbouring slices bring on real nodules: 2D, 2.5D and 3D on the slices that readers outlined.

    python -m experiments.studies.third_dimension_crops --crops=FOLDER --workdir=DIR
        [--out=experiments/results/third_dimension_crops.json] [--seeds=1,2,3] [--epochs=2]

`slab_runs` says what is equal. Crops are moved by up to 24 pixels, always by the same; there is no augmentation. A slab
has three slices of one nodule, whose outermost ones are repeated. Judged are the nodules of the test patients, in three
dimensions: Dice with the consensus over all slices, found by an overlap of at least `MIN_OBJECT_IOU`, and pieces that
touch no reader's mark. Nodules of two to four slices stand for themselves: there a slab is rarely whole.
"""

from __future__ import annotations

import pathlib

import numpy as np
import scipy.ndimage
from absl import flags

from auxseg import datasets
from auxseg.base import command
from auxseg.runs import networks, splits
from auxseg.scoring.matching import MIN_OBJECT_IOU
from configs import base
from experiments.studies import runner, slab_runs, third_dimension

MODULE = "experiments.studies.third_dimension_crops"
SLICES, SIZE, BATCH = 3, 64, 16
CLASSES = ("background", "nodule")
SHARED = {
    "data.name": "crops",
    "data.size": (SIZE, SIZE),
    "data.classes": CLASSES,
    "data.split": "train_val_test",
    "model.depth": 3,
    "optim.learning_rate": 3e-3,
    "train.bn_refresh_batches": 20,
    "train.batch_size": BATCH,
    "eval.batch_size": BATCH,
    "eval.num_panels": 0,
}
STRATA = {"": (1, 999), "_2_to_4": (2, 4), "_5_and_more": (5, 999)}
"""Ends of names of scores, and the slices that a nodule has."""
COLUMNS = {
    "nodules, Dice in 3D": ("dice", ".3f"),
    "found": ("found", ".3f"),
    "false ones a nodule": ("false_a_nodule", ".2f"),
    "Dice, 2 to 4 slices": ("dice_2_to_4", ".3f"),
    "Dice, 5 slices and more": ("dice_5_and_more", ".3f"),
}


def create_config(kind, seed, epochs, crops):
    """Returns the locked settings of one run on the folder `crops`."""
    changes = {"seed": seed, "train.order_seed": seed, "data.dir": str(crops)}
    changes |= {"train.num_epochs": epochs, "optim.cosine_epochs": epochs}
    return runner.override(base.get_config(), SHARED | slab_runs.settings_of(kind, SLICES) | changes)


def judge(workdir, config):
    """Returns the scores of a run's best weights on the nodules of the test patients, JSON types."""
    dataset = datasets.load(config.data)
    rows = splits.read_splits(workdir, dataset)["test"]
    marked = predict(networks.load_network(workdir), dataset, rows)
    nodules = {}
    for row, mask in zip(rows.tolist(), marked, strict=True):
        outline = dataset.read_outline(row)
        nodules.setdefault(outline.nodule, []).append((outline.place, mask, outline.readers))
    return summarise([score_nodule(slices) for slices in nodules.values()])


def predict(network, dataset, rows):
    """Returns where a network marks nodule, bool [n, H, W], in the cases `rows` of a data set."""
    marked = []
    for start in range(0, len(rows), BATCH):
        images, _ = dataset.read_seen(rows[start : start + BATCH])
        filled = np.pad(images, ((0, BATCH - len(images)), *((0, 0),) * (images.ndim - 1)))
        found = np.asarray(network.probabilities(filled))[: len(images)]
        marked.append(found.argmax(axis=-1) == CLASSES.index("nodule"))
    return np.concatenate(marked)


def score_nodule(slices):
    """Returns the scores of one nodule over all its slices.

    Args:
        slices: list of (place, marked bool [H, W], readers bool [readers, H, W]).
    """
    ordered = sorted(slices, key=lambda each: each[0])
    marked = np.stack([mask for _, mask, _ in ordered])
    readers = np.stack([marks for _, _, marks in ordered], axis=1)
    consensus = readers.mean(axis=0) >= 0.5
    both, either = np.count_nonzero(marked & consensus), np.count_nonzero(marked | consensus)
    pieces, count = scipy.ndimage.label(marked, np.ones((3, 3, 3)))
    touching = set(np.unique(pieces[readers.any(axis=0)]).tolist()) - {0}
    return {
        "slices": len(ordered),
        "dice": 2 * both / (either + both) if either else 1.0,
        "found": both >= MIN_OBJECT_IOU * either,
        "false": count - len(touching),
    }


def summarise(nodules):
    """Returns means over nodules by `STRATA`, from dicts of `score_nodule`."""
    scores = {}
    for end, (low, high) in STRATA.items():
        chosen = [each for each in nodules if low <= each["slices"] <= high]
        scores[f"nodules{end}"] = len(chosen)
        for name, key in (("dice", "dice"), ("found", "found"), ("false_a_nodule", "false")):
            scores[name + end] = float(np.mean([each[key] for each in chosen])) if chosen else None
    return scores


def create_study(crops, epochs):
    """Returns the `slab_runs.Study` on a folder of crops."""
    return slab_runs.Study(
        title="The third dimension on real nodules",
        command=f"python -m {MODULE} --crops=FOLDER --workdir=FOLDER --epochs={epochs}",
        create_config=lambda kind, seed, epochs: create_config(kind, seed, epochs, crops),
        judge=judge,
        columns=COLUMNS,
        describe=f"crops of LIDC-IDRI of {SIZE} x {SIZE}, slabs of {SLICES}, split by patient",
    )


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    study = create_study(given.crops, given.epochs)
    seeds = runner.whole_numbers("--seeds", given.seeds)
    root, out = pathlib.Path(given.workdir), pathlib.Path(given.out)
    slab_runs.run(study, root, out, seeds=seeds, epochs=given.epochs, budgets=given.budgets)


if __name__ == "__main__":
    third_dimension.define_flags(out="experiments/results/third_dimension_crops.json", epochs=2)
    flags.adopt_module_key_flags(third_dimension)
    flags.DEFINE_string("crops", None, "Folder with nodules.npz and index.csv.", required=True)
    command.run(main)
