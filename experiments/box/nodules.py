"""The stages of `make` for the nodule networks of the box: trained for each fold, judged, and packed.

The networks in the box train on the patients of all folds; what is reported are the scores of their sisters, each
fold's networks, on what they never saw.
"""

from auxseg.base import files
from auxseg.prediction import nodules
from experiments.box import nodule_data, nodule_scans, nodule_train
from experiments.box.stages import Stage, call

OUTLINES = "outlines"
TRIAL_STEPS = 3


def create_stages(real, output, *, trial):
    """Returns the `Stage`s of both networks of every fold and of the box, and of their scores.

    Args:
        real: pathlib.Path of the real data.
        output: pathlib.Path of the whole box's folder.
        trial: a few steps in place of a training.
    """
    common, few = [f"--real={real}"], [f"--steps={TRIAL_STEPS}"] * trial
    work, results = output / "nodules", output / "results"
    outlines = work / OUTLINES
    found = []
    for fold in range(nodule_data.NUM_FOLDS):
        run = outlines / f"fold{fold}"
        train = ["nodule_train", *common, f"--output={run}", f"--fold={fold}", "--recipe=outlines", *few]
        found.append(Stage(f"outlines{fold}", f"trains the outlines of nodules, fold {fold}", call(*train)))
    for fold in (*range(nodule_data.NUM_FOLDS), nodule_data.BOX):
        found += _fold_stages(fold, output, common, few)
    crops, test = results / "box_nodule_crops.json", results / "box_nodule_test.json"
    picture = f"--picture={results / 'box_nodule_outlines.png'}"
    found += [
        Stage("crops", "scores held-out crops", call(
            "nodule_crops", *common, f"--runs={outlines}", f"--output={crops}", "--tta", picture)),
        Stage("test", "scores the test patients", call(
            "nodule_crops", *common, f"--runs={work}", f"--output={test}", "--test")),
        Stage("study", "chooses how candidates are ranked, and the operating points", call(
            "nodule_study", f"--runs={work}", f"--output={results / 'box_nodules.json'}")),
        Stage("nodules_page", "writes the page of the nodule looks", call("nodule_page", f"--results={results}")),
        Stage("nodules_pack", "writes the nodule network into the box", lambda: pack(work, results, output / "box" / "nodules")),
    ]  # fmt: skip
    return found


def _fold_stages(fold, output, common, few):
    """Returns the stages of a fold's look and judge, and of what they mark in the scans that judge the fold."""
    work, lungs = output / "nodules", f"--lungs={output / 'runs'}"
    name = "box" if fold == nodule_data.BOX else fold
    start = f"--init_from={work / OUTLINES / f'fold{max(fold, 0)}'}"  # the box's network may see everybody
    scans = [scan for scan, own in nodule_data.FOLD_OF_SCAN.items() if own == fold]
    sisters = [f"--sisters={work}"] if fold == nodule_data.BOX else []
    scans += nodule_data.READ_FOR_MASS if fold == nodule_data.BOX else (nodule_scans.CROPS,)
    own = [f"--runs={work}", f"--fold={fold}"]
    return [
        Stage(f"look_{name}", f"trains the look, fold {name}", call(
            "nodule_train", *common, f"--output={work / f'fold{fold}'}", f"--fold={fold}", start, *sisters, *few)),
        Stage(f"judge_{name}", f"trains the judge, fold {name}", call("nodule_judge", *common, *own, *few)),
        Stage(f"scans_{name}", f"looks at {', '.join(scans)}", call("nodule_scans", *common, *own, lungs, *scans)),
    ]  # fmt: skip


def pack(work, results, folder):
    """Writes the files of the box's nodule networks into a folder: `look.npz`, `about.json`.

    Args:
        work: pathlib.Path of the runs.
        results: pathlib.Path with box_nodules.json.
        folder: pathlib.Path to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe, variables = nodule_train.read_variables(work / f"fold{nodule_data.BOX}")
    nodules.write_weights(folder / "look.npz", variables)
    study = files.read_json(results / "box_nodules.json")
    files.write_json(
        folder / "about.json",
        {
            "look": {"base_width": recipe.base_width, "depth": recipe.depth},
            "above": nodule_scans.ABOVE,
            "sharpness": read_sharpness(work),
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


def read_sharpness(work):
    """Returns how sharp the crops are that the box's look was trained on, as `nodule_scans` measured them."""
    path = work / f"fold{nodule_data.BOX}" / f"candidates_{nodule_data.READ_FOR_MASS[0]}.json"
    return files.read_json(path)["sharpness"]
