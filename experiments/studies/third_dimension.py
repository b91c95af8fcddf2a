"""What neighbouring slices bring: the paper's network in 2D, with slices as channels (2.5D), and in 3D, on the phantom.

    python -m experiments.studies.third_dimension --workdir=DIR [--out=experiments/results/third_dimension.json]
        [--seeds=1,2,3] [--epochs=5] [--num_scans=24] [--budgets="equal epochs,equal time"]

`slab_runs` says what is equal. The weights of the best validation epoch segment the test patients' whole scans: Dice of
lungs and nodules over the whole scan, nodules by LUNA16's rule. Both lungs are one class: a short
run did not learn the left one. A study that was stopped goes on with the same command.
"""

from __future__ import annotations

import pathlib
import time

import numpy as np
from absl import flags

from auxseg import datasets
from auxseg.base import command
from auxseg.base.classes import BOTH_LUNGS
from auxseg.datasets.luna16 import layout
from auxseg.prediction import segment
from auxseg.runs import networks, splits
from auxseg.scoring import froc
from configs import phantom
from experiments.studies import runner, slab_runs

MODULE = "experiments.studies.third_dimension"
SLICES = 5
CLASSES = ("background", BOTH_LUNGS, "nodule")
LUNG, NODULE = 1, 2
SHARED = {
    "data.classes": CLASSES,
    "data.size": (128, 128),
    "data.phantom.num_slices": 80,
    "data.phantom.matrix": 160,
    "data.slab_step_mm": 2.5,
    "model.depth": 3,
    "insert.enabled": False,
    "train.bn_refresh_batches": 5,
    "train.batch_size": 2,
    "optim.learning_rate": 4e-3,
    "loss.class_weights": (1.0, 1.0, 30.0),
    "eval.batch_size": 8,
    "eval.num_panels": 0,
}
COLUMNS = {
    "lungs, Dice": ("dice_lungs", ".3f"),
    "nodules, Dice": ("dice_nodules", ".3f"),
    "found": ("nodules_found", ".1f of nodules"),
    "found at 1 false a scan": ("found_at_1", ".1f of nodules"),
    "false a scan": ("false_a_scan", ".1f"),
    "processor s a scan": ("cpu_seconds_a_scan", ".1f"),
}


def create_config(kind, seed, epochs, num_scans, root):
    """Returns the locked settings of one run; the phantom lies in the folder `root`."""
    changes = {"seed": seed, "train.order_seed": seed, "data.phantom.num_scans": num_scans}
    changes |= {"data.dir": str(root / "scans"), "data.cache_dir": str(root / "cache")}
    changes |= {"train.num_epochs": epochs, "optim.cosine_epochs": epochs}
    return runner.override(phantom.get_config(), SHARED | slab_runs.settings_of(kind, SLICES) | changes)


def find_scans(config, workdir):
    """Returns [(`layout.Scan`, its reference masks)] of the test patients; see `read_references`."""
    dataset = datasets.load(config.data)
    members = splits.read_splits(workdir, dataset)
    return read_references(config.data.dir, set(dataset.table.series_uid[members["test"]].tolist()))


def read_references(directory, wanted=None):
    """Returns [(`layout.Scan`, its reference masks {slice: uint8 [H, W]}, values by `CLASSES`)] of a LUNA16 folder.

    Args:
        directory: of the folder.
        wanted: series UIDs, or None for all.
    """
    folder, settings = layout.list_folder(directory), layout.Settings(slices="lung")
    nodules_of = layout.create_nodule_reader(folder, settings)
    return [
        (scan, {each.index_z: merge(each.mask) for each in layout.read_slices(scan, settings, nodules_of)[0]})
        for scan in folder.scans
        if wanted is None or scan.uid in wanted
    ]


def merge(mask):
    """Returns a mask with values by `CLASSES` of one by `CLASS_NAMES`."""
    return np.array([0, LUNG, LUNG, NODULE], np.uint8)[mask]


def create_judge():
    """Returns the `judge` of the study: scores of a run on the test patients' whole scans, which are read once."""
    read = []

    def judge_run(workdir, config):
        if not read:
            read.extend(
                (
                    find_scans(config, workdir),
                    froc.read_annotations(pathlib.Path(config.data.dir) / "annotations.csv"),
                )
            )
        return judge(workdir, *read)

    return judge_run


def judge(workdir, scans, annotations, excluded=None):
    """Returns the scores of a run's best weights on whole scans, JSON types.

    Args:
        workdir: of the run.
        scans: of `find_scans`.
        annotations: {series UID: nodules} of `froc.read_annotations`.
        excluded: the same of what is neither nodule nor not, or None.
    """
    network, none = networks.load_network(workdir), np.zeros((0, 4))
    segment.segment(scans[0][0].path, [network], options=segment.Options(force=True, slices="middle"))
    counts, matches, seconds = [], [], []
    for scan, reference in scans:
        start = time.process_time()
        found = segment.segment(scan.path, [network], options=segment.Options(force=True))
        seconds.append(time.process_time() - start)
        counts.append(count_voxels(found.masks, reference))
        left_out = (excluded or {}).get(scan.uid, none)
        matches.append(froc.match(find_candidates(found), annotations.get(scan.uid, none), left_out))
    return summarise(np.array(counts), matches) | {"cpu_seconds_a_scan": float(np.mean(seconds))}


def count_voxels(masks, reference):
    """Returns voxels in both, ours and theirs of each class, int [classes][3]; slices without lung are background.

    Args:
        masks: uint8 [D, H, W].
        reference: {slice: uint8 [H, W]}.
    """
    empty = np.zeros(masks.shape[1:], np.uint8)
    counts = np.zeros((len(CLASSES), 3), np.int64)
    for index, ours in enumerate(masks):
        theirs = reference.get(index, empty)
        for value in range(len(CLASSES)):
            one, other = ours == value, theirs == value
            counts[value] += [np.count_nonzero(part) for part in (one & other, one, other)]
    return counts.tolist()


def find_candidates(found):
    """Returns the nodules of a `segment.Segmentation` as findings, float64 [n, 4]: a larger one is more certain."""
    rows = [row for row in found.measurements if row["structure"].startswith("nodule")]
    keys = ("x_mm", "y_mm", "z_mm", "volume_ml")
    return np.array([[row[key] for key in keys] for row in rows], np.float64).reshape(-1, 4)


def summarise(counts, matches):
    """Returns mean Dice over scans by class, and nodules found and false ones a scan.

    Args:
        counts: int [scans, classes, 3] of `count_voxels`.
        matches: `froc.Matches` of each scan.
    """
    shared, ours, theirs = (counts[..., part].astype(float) for part in range(3))
    dice = 2 * shared / np.maximum(ours + theirs, 1)
    hits = np.concatenate([each.hits for each in matches])
    marked = theirs[:, NODULE] > 0
    return {
        "scans": len(matches),
        "dice_lungs": float(dice[:, LUNG].mean()),
        "dice_nodules": float(dice[marked, NODULE].mean()) if marked.any() else None,
        "nodules": len(hits),
        "nodules_found": int((~np.isnan(hits)).sum()),
        "found_at_1": int((hits >= froc.choose_threshold(matches, 1.0)).sum()),
        "false_a_scan": float(np.mean([len(each.false) for each in matches])),
    }


def create_study(root, num_scans, epochs):
    """Returns the `slab_runs.Study` on `num_scans` scans of the phantom, which are drawn in the folder `root`."""
    size, num_slices = " x ".join(map(str, SHARED["data.size"])), SHARED["data.phantom.num_slices"]
    return slab_runs.Study(
        title="The third dimension on the phantom",
        command=f"python -m {MODULE} --workdir=FOLDER --epochs={epochs}",
        create_config=lambda kind, seed, epochs: create_config(kind, seed, epochs, num_scans, root),
        judge=create_judge(),
        columns=COLUMNS,
        describe=f"phantom, {num_scans} scans of {num_slices} slices, seen at {size}, slabs of {SLICES}",
    )


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    root = pathlib.Path(given.workdir)
    study = create_study(root, given.num_scans, given.epochs)
    seeds = runner.whole_numbers("--seeds", given.seeds)
    slab_runs.run(
        study, root, pathlib.Path(given.out), seeds=seeds, epochs=given.epochs, budgets=given.budgets
    )


def define_flags(*, out, epochs):
    """Defines the flags that the studies of the third dimension share."""
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("out", out, "File to write.")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "One run of each network and budget each.")
    flags.DEFINE_integer(
        "epochs", epochs, "Of each network; the cheaper ones train longer in equal time.", lower_bound=1
    )
    flags.DEFINE_list("budgets", list(slab_runs.BUDGETS), "What is equal.")


if __name__ == "__main__":
    define_flags(out="experiments/results/third_dimension.json", epochs=5)
    flags.DEFINE_integer("num_scans", 24, "Of the phantom.", lower_bound=5)
    command.run(main)
