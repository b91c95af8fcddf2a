"""The nodule networks of the box: trained for each fold, judged, and packed.

    python -m experiments.box.nodules --real=DIR --work=DIR --folder=auxseg/weights/nodules

Every step goes on where it stopped. The networks in the box train on the patients of all folds; what is reported are
the scores of their sisters, each fold's networks, on what they never saw.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags

from auxseg.base import command, files
from auxseg.prediction import nodules
from experiments.box import nodule_data, nodule_scans, nodule_train

OUTLINES = "outlines"
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def train(work_dir, real_dir):
    """Trains both networks of every fold and of the box, and writes their scores.

    Args:
        work_dir: folder of the runs.
        real_dir: folder of the real data.
    """
    work, common = pathlib.Path(work_dir), [f"--real={real_dir}"]
    outlines = work / OUTLINES
    for fold in range(nodule_data.NUM_FOLDS):
        _run(
            "nodule_train",
            *common,
            f"--output={outlines / f'fold{fold}'}",
            f"--fold={fold}",
            "--recipe=outlines",
        )
    for fold in (*range(nodule_data.NUM_FOLDS), nodule_data.BOX):
        run = work / f"fold{fold}"
        start = f"--init_from={outlines / f'fold{max(fold, 0)}'}"  # the box's network may see everybody
        _run("nodule_train", *common, f"--output={run}", f"--fold={fold}", start)
        if not (run / "judge.npz").exists():
            _run("nodule_judge", *common, f"--runs={work}", f"--fold={fold}")
        scans = [name for name, own in nodule_data.FOLD_OF_SCAN.items() if own == fold]
        others = nodule_data.READ_FOR_MASS if fold == nodule_data.BOX else (nodule_scans.CROPS,)
        _run("nodule_scans", *common, f"--runs={work}", f"--fold={fold}", *scans, *others)
    picture, crops = f"--picture={RESULTS / 'box_nodule_outlines.png'}", RESULTS / "box_nodule_crops.json"
    _run("nodule_crops", *common, f"--runs={outlines}", f"--output={crops}", "--mirror", picture)
    _run("nodule_crops", *common, f"--runs={work}", f"--output={RESULTS / 'box_nodule_test.json'}", "--test")
    _run("nodule_study", f"--runs={work}", f"--output={RESULTS / 'box_nodules.json'}")
    _run("nodule_page")


def pack(work_dir, folder):
    """Writes the files of the box's nodule networks into a folder: `look.npz`, `about.json`."""
    run, folder = pathlib.Path(work_dir) / f"fold{nodule_data.BOX}", pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, variables = nodule_train.read_variables(run)
    nodules.write_weights(folder / "look.npz", variables)
    study = json.loads((RESULTS / "box_nodules.json").read_text())
    files.write_json(
        folder / "about.json",
        {
            "look": {"base_width": recipe.base_width, "depth": recipe.depth},
            "above": nodule_scans.ABOVE,
            "weights": list(study["weights"].values()),
            "operating_points": study["operating_points"],
            "operating_points_from": study["operating_points_from"],
            "operating_points_nodules": sum(
                one["nodules"] for one in study["default_point_chosen_on_the_other_scans"].values()
            ),
            "steps": recipe.steps,
            "made_by": study["made_by"],
        },
    )


def _run(module, *arguments):
    subprocess.run([sys.executable, "-m", f"experiments.box.{module}", *map(str, arguments)], check=True)


def main(argv):
    """Trains, judges and packs."""
    del argv
    options = flags.FLAGS
    train(options.work, options.real)
    pack(options.work, options.folder)


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("work", None, "folder for the runs", required=True)
    flags.DEFINE_string("folder", None, "to write the weights to", required=True)
    command.run(main)
