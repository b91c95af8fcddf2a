"""What neighbouring slices bring: the paper's network in 2D, with slices as channels (2.5D), and in 3D, on the phantom.

    python -m experiments.studies.third_dimension --workdir=DIR [--out=experiments/results/third_dimension.json]
        [--seeds=1,2,3] [--epochs=5] [--num_scans=8]

Every arm has about as many parameters (`WIDTHS`), the same cases, splits and settings, and is trained with each seed
twice over: for `--epochs` epochs, and for as much processor time as the dearest arm takes for those. Time is the
processor's, since the clock of a shared machine says little; compilation is left out of it. The weights of the best validation epoch then segment the
test patients' whole scans: Dice of lungs and nodules over the whole scan, nodules by LUNA16's rule. A study that was
stopped goes on with the same command.
"""

from __future__ import annotations

import pathlib
import time

import jax
import numpy as np
from absl import flags

from auxseg import datasets
from auxseg.base import command, files
from auxseg.base.classes import CLASS_NAMES, LEFT, NODULE, RIGHT
from auxseg.datasets.luna16 import layout
from auxseg.prediction import segment
from auxseg.runs import networks, splits
from auxseg.scoring import froc
from auxseg.training import loop, setup
from configs import phantom
from experiments import made_by
from experiments.studies import runner

ARMS = {
    "2D": {},
    "2.5D, 5 slices": {"data.slab": 5},
    "3D, 7 slices": {"model.name": "aux_unet3d", "data.slab": 7},
}
WIDTHS = {"2D": 12, "2.5D, 5 slices": 12, "3D, 7 slices": 11}
"""Base widths of about as many parameters."""
BUDGETS = ("equal epochs", "equal time")
_TRAINED, _JUDGED = "trained", "judged.json"
SHARED = {
    "data.size": (96, 96),
    "data.phantom.num_slices": 80,
    "data.phantom.matrix": 96,
    "data.slab_step_mm": 2.5,
    "model.depth": 3,
    "insert.enabled": False,
    "train.bn_refresh_batches": 5,
    "train.batch_size": 4,
    "eval.batch_size": 8,
    "eval.num_panels": 0,
}


def create_config(arm, seed, epochs, num_scans, root):
    """Returns the locked settings of one run; the phantom lies in the folder `root`."""
    changes = {"seed": seed, "train.order_seed": seed, "data.phantom.num_scans": num_scans}
    changes |= {"data.dir": str(root / "scans"), "data.cache_dir": str(root / "cache")}
    changes |= {"train.num_epochs": epochs, "optim.cosine_epochs": epochs, "model.base_width": WIDTHS[arm]}
    return runner.override(phantom.get_config(), SHARED | ARMS[arm] | changes)


def train(config, workdir):
    """Trains a run, or goes on with it, or leaves it as it is; returns the processor's seconds of this call."""
    start = time.process_time()
    if not (workdir / _TRAINED).is_file():
        loop.train(config, workdir, finish=lambda *_, **__: None)
        files.write_text(workdir / _TRAINED, "")
    return time.process_time() - start


def measure_epoch(arm, root, given):
    """Returns processor seconds of an epoch of an arm: what three take beyond one, programs being compiled before."""
    file = root / f"{_name(arm)}_epoch.json"
    if not file.is_file():
        seconds = [
            train(create_config(arm, 1, epochs, given.num_scans, root), root / f"{_name(arm)}_timed_{number}")
            for number, epochs in enumerate((1, 1, 3))
        ]
        files.write_json(file, {"seconds": (seconds[2] - seconds[1]) / 2})
    return files.read_object(file)["seconds"]


def _name(arm):
    return arm.split(",")[0].replace(".", "_")


def find_scans(config, workdir):
    """Returns [(`layout.Scan`, its reference masks {slice: uint8 [H, W]})] of the test patients."""
    dataset = datasets.load(config.data)
    members = splits.read_splits(workdir, dataset)
    wanted = set(dataset.table.series_uid[members["test"]].tolist())
    folder = layout.list_folder(config.data.dir)
    settings = layout.Settings(size_yx=tuple(config.data.size), slices="lung")
    nodules_of = layout.create_nodule_reader(folder, settings)
    return [
        (scan, {each.index_z: each.mask for each in layout.read_slices(scan, settings, nodules_of)[0]})
        for scan in folder.scans
        if scan.uid in wanted
    ]


def judge(workdir, scans, annotations):
    """Returns the scores of a run's best weights on whole scans, JSON types.

    Args:
        workdir: of the run.
        scans: of `find_scans`.
        annotations: {series UID: nodules} of `froc.read_annotations`.
    """
    network = networks.load_network(workdir)
    options = segment.Options(force=True)
    segment.segment(scans[0][0].path, [network], options=segment.Options(force=True, slices="middle"))
    counts, matches, seconds = [], [], []
    for scan, reference in scans:
        start = time.process_time()
        found = segment.segment(scan.path, [network], options=options)
        seconds.append(time.process_time() - start)
        counts.append(_count(found.masks, reference))
        matches.append(froc.match(_candidates(found), annotations.get(scan.uid, np.zeros((0, 4)))))
    return _summarise(np.array(counts), matches) | {"cpu_seconds_a_scan": float(np.mean(seconds))}


def _count(masks, reference):
    """Returns voxels in both, ours and theirs of each class, int64 [classes, 3]; slices without lung are background."""
    empty = np.zeros(masks.shape[1:], np.uint8)
    theirs = np.stack([reference.get(index, empty) for index in range(len(masks))])
    return [
        [((masks == value) & (theirs == value)).sum(), (masks == value).sum(), (theirs == value).sum()]
        for value in range(len(CLASS_NAMES))
    ]


def _candidates(found):
    """Returns the nodules of a `segment.Segmentation` as findings, float64 [n, 4]: a larger one is more certain."""
    rows = [row for row in found.measurements if row["structure"].startswith("nodule")]
    keys = ("x_mm", "y_mm", "z_mm", "volume_ml")
    return np.array([[row[key] for key in keys] for row in rows], np.float64).reshape(-1, 4)


def _summarise(counts, matches):
    """Returns mean Dice over scans by class, and nodules found and false ones a scan."""
    shared, ours, theirs = (counts[..., part].astype(float) for part in range(3))
    dice = 2 * shared / np.maximum(ours + theirs, 1)
    hits = np.concatenate([each.hits for each in matches])
    return {
        "scans": len(matches),
        "dice_left_lung": float(dice[:, LEFT].mean()),
        "dice_right_lung": float(dice[:, RIGHT].mean()),
        "dice_nodules": float(dice[theirs[:, NODULE] > 0, NODULE].mean()),
        "nodules": len(hits),
        "nodules_found": int((~np.isnan(hits)).sum()),
        "false_a_scan": float(np.mean([len(each.false) for each in matches])),
    }


def run(given):
    """Returns what `--out` holds, JSON types; written anew after each run."""
    root = pathlib.Path(given.workdir)
    root.mkdir(parents=True, exist_ok=True)
    seconds = {arm: measure_epoch(arm, root, given) for arm in ARMS}
    dearest = max(seconds.values())
    rows, scans, annotations = [], None, None
    for budget in BUDGETS:
        for seed in map(int, given.seeds):
            for arm in ARMS:
                times = dearest / seconds[arm] if budget == "equal time" else 1.0
                epochs = round(given.epochs * times)
                config = create_config(arm, seed, epochs, given.num_scans, root)
                workdir = root / f"{_name(arm)}_{epochs}_{seed}"
                train(config, workdir)
                if scans is None:
                    scans = find_scans(config, workdir)
                    annotations = froc.read_annotations(pathlib.Path(config.data.dir) / "annotations.csv")
                if not (workdir / _JUDGED).is_file():
                    files.write_json(workdir / _JUDGED, judge(workdir, scans, annotations))
                row = {"budget": budget, "arm": arm, "seed": seed, "epochs": epochs}
                row |= {"parameters": count_parameters(config), "training_s": epochs * seconds[arm]}
                rows.append(row | files.read_object(workdir / _JUDGED))
                print(rows[-1], flush=True)
                write(given, rows, seconds)
    return rows


def count_parameters(config):
    """Returns the trainable parameters of a config's network."""
    shapes = jax.eval_shape(lambda: setup.create_state(config).params)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write(given, rows, seconds):
    """Writes the result file, and the table beside it as Markdown."""
    out = pathlib.Path(given.out)
    origin = made_by.made_by(
        "python -m experiments.studies.third_dimension --workdir=FOLDER",
        data=f"phantom, {given.num_scans} scans of {SHARED['data.phantom.num_slices']} slices",
        seeds=[int(seed) for seed in given.seeds],
    )
    files.write_json(out, {"made_by": origin, "seconds_an_epoch": seconds, "rows": rows})
    files.write_text(out.with_suffix(".md"), "\n".join(format_table(rows)) + "\n")


def format_table(rows):
    """Returns the lines of a Markdown table, a row an arm and budget: means over seeds, least and most in brackets."""
    yield "# The third dimension on the phantom\n"
    yield "By `python -m experiments.studies.third_dimension`. Means over seeds, in brackets the least and the most.\n"
    yield "| budget | network | parameters | epochs | training, processor s | left lung | right lung | nodules, Dice | found | false a scan | s a scan |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for budget in BUDGETS:
        for arm in ARMS:
            chosen = [row for row in rows if (row["budget"], row["arm"]) == (budget, arm)]
            if chosen:
                yield _format_row(budget, arm, chosen)


def _format_row(budget, arm, rows):
    def spread(key, form):
        values = [row[key] for row in rows]
        return f"{np.mean(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    first = rows[0]
    cells = [
        budget, arm, f"{first['parameters']:,}", f"{first['epochs']}", f"{first['training_s']:.0f}",
        spread("dice_left_lung", ".3f"), spread("dice_right_lung", ".3f"), spread("dice_nodules", ".3f"),
        f"{spread('nodules_found', '.1f')} of {first['nodules']}", spread("false_a_scan", ".1f"),
        spread("cpu_seconds_a_scan", ".1f"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(argv):
    """Runs the command."""
    del argv
    run(flags.FLAGS)


def _define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("out", "experiments/results/third_dimension.json", "File to write.")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "One run of each arm and budget each.")
    flags.DEFINE_integer(
        "epochs", 5, "Of each arm; the cheaper ones train longer in equal time.", lower_bound=1
    )
    flags.DEFINE_integer("num_scans", 8, "Of the phantom.", lower_bound=3)


if __name__ == "__main__":
    _define_flags()
    command.run(main)
