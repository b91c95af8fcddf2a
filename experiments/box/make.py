"""Makes the networks in the box and their scores, from named data and seeds, by one command.

    python -m experiments.box.make --real=FOLDER --output=DIR [--stages=slices,...] [--trial]

FOLDER holds `luna16_middle` (NPZ slices of LUNA16 with classes 0 to 3 and an `index.csv`), `lidc_nodules` (crops of nodules with
readers' outlines) and `scans` (`SCANS`, each with a label map NAME_lungs.nii.gz, and boxes of what is not known). The
stages say what they do. One that is done is passed over, and one that was stopped goes on where it was:

    slices               slices of the phantom, the middle slices and the scans, cut to the body; dense disease is drawn in
    phantom              the lungs network on the phantom (configs/lungs_phantom.py)
    lungs                the same on the middle slices and the scans (configs/lungs.py): what is shipped
    without_PATIENT      one more for each patient of the scans, who is left out: they score
    lungs_scores         the scans' lungs, each by the network that does not know the patient (experiments/box/score.py)
    outlines0 to nodules_pack       the nodule networks and their scores (experiments/box/nodules.py)
    pack                 the lungs network, and box.json over all files

DIR receives slices, runs, nodules, results, and the box itself. `--stages=install` takes it from there into the package, with the
card's table and the results. `--trial` trains a few steps of everything: its networks are good for nothing.
The middle slice of a patient whose whole scan judges trains none of them (`slices.LEFT_OUT`).
"""

from __future__ import annotations

import functools
import pathlib
import shutil

from absl import flags

from auxseg.base import command, errors, files
from auxseg.datasets import npz
from auxseg.datasets.phantom import drawing
from auxseg.prediction import box
from auxseg.runs import bundles, networks, run_folder
from configs import lungs_phantom
from experiments.box import nodules, slices, stages
from experiments.box.stages import Stage

VERSION = "4"
SCANS = {
    "LIDC-IDRI-0001": 2,
    "LIDC-IDRI-0314": 3,
    "Lung_Dx-A0001-L": 1,
    "Lung_Dx-A0001-B": 1,
    "Lung_Dx-A0002-B70f": 1,
}
"""Scans that train, with the slices from one to the next."""
PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0314", "Lung_Dx-A0001", "Lung_Dx-A0002")
"""A scan's name begins with its patient's."""
LABELS_SHIFT_YX = (-1, -1)
"""The label maps lie a pixel further back and to the left than what they outline, as their edges at -400 HU show."""
NUM_SCANS, TRIAL_SCANS = 64, 8
"""Of the phantom."""
RESULTS = pathlib.Path(__file__).parents[1] / "results"
INSTALL = "install"
_CHECK_SLICES = 8


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    real, output = pathlib.Path(given.real).resolve(), pathlib.Path(given.output).resolve()
    check_kind(output, given.trial)
    found = create_stages(real, output, trial=given.trial)
    if INSTALL in given.stages:
        if given.trial:
            raise errors.InputError("--stages: got install with --trial, whose networks are good for nothing")
        found.append(
            Stage(INSTALL, "takes the box and its results into the package", lambda: install(output))
        )
    stages.run_all(found, output / "stages", given.stages)


def check_kind(output, trial):
    """Notes in a folder whether it is a trial.

    Raises:
        InputError: it was begun as the other.
    """
    path = output / "kind.json"
    if path.is_file() and files.read_object(path)["trial"] != trial:
        raise errors.InputError(
            f"--output: {output} was begun {'without' if trial else 'with'} --trial; give another folder"
        )
    files.write_json(path, {"trial": trial})


def create_stages(real, output, *, trial):
    """Returns the `Stage`s of the whole box.

    Args:
        real: pathlib.Path of the real data.
        output: pathlib.Path of the folder for everything.
        trial: a few steps in place of trainings.
    """
    scans, results = real / "scans", output / "results"
    score = [f"--scans={scans}", f"--runs={output / 'runs'}", f"--out={results / 'box_lungs.json'}"]
    score += [f"--boxes={scans / 'Lung_Dx_boxes.csv'}", f"--shift={','.join(map(str, LABELS_SHIFT_YX))}"]
    return [
        Stage("slices", "draws and cuts slices", functools.partial(make_slices, real, output, trial=trial)),
        _train("phantom", "lungs_phantom", output, {"data.dir": output / "slices" / "phantom"}, trial),
        *(
            _train("lungs" if left_out is None else scans_name(left_out), "lungs", output, {
                "data.dir": output / "slices" / "middle",
                "data.extra_dir": output / "slices" / scans_name(left_out),
                "train.init_from": output / "runs" / "phantom",
            }, trial)
            for left_out in (None, *PATIENTS)
        ),
        Stage("lungs_scores", "scores the lungs of the scans", stages.call("score", *score)),
        *nodules.create_stages(real, output, trial=trial),
        Stage("pack", "writes the lungs network into the box, and box.json", functools.partial(make_pack, output)),
    ]  # fmt: skip


def _train(name, config, output, changes, trial):
    """Returns the stage of a training, which goes on where it stopped."""
    if trial:
        changes = {**changes, "train.num_epochs": 1, "optim.cosine_epochs": 1}
    given = [f"--config=configs/{config}.py", f"--workdir={output / 'runs' / name}"]
    given += [f"--config.{key}={value}" for key, value in changes.items()]
    return Stage(name, f"trains {config} to runs/{name}", stages.command("auxseg.main", *given))


def make_slices(real, work, *, trial):
    """Writes the folders of slices that are not there."""
    settings = create_phantom_settings(TRIAL_SCANS if trial else NUM_SCANS)
    plans = {
        "phantom": lambda folder: slices.write_phantom(folder, settings, stride=2),
        "middle": lambda folder: slices.write_middle(folder, real / "luna16_middle", diseased=0.5),
    }
    plans.update({f"scans/{name}": _scan_writer(real / "scans", name) for name in SCANS})
    sources = {name: work / "slices" / "scans" / name for name in SCANS}
    for left_out in (None, *PATIENTS):
        kept = [path for name, path in sources.items() if left_out is None or not name.startswith(left_out)]
        plans[scans_name(left_out)] = lambda folder, kept=kept: slices.join(folder, kept)
    for name, write in plans.items():
        folder = work / "slices" / name
        if not (folder / "index.csv").is_file():
            print(f"{folder}: {write(folder)} slices", flush=True)


def scans_name(left_out):
    """Returns the name of the slices of all scans, or of all but those of a patient."""
    return "all" if left_out is None else f"without_{left_out}"


def _scan_writer(folder, name):
    """Returns a function that writes the slices of a scan but those in which a kernel of it has a box."""
    patient = next(one for one in PATIENTS if name.startswith(one))
    boxes = files.read_cells(folder / "Lung_Dx_boxes.csv", ("scan", "z_mm"))
    skipped = [float(row["z_mm"]) for row in boxes if row["scan"].startswith(patient)]
    labels = folder / f"{name}_lungs.nii.gz"
    return lambda target: slices.write_scan(
        target,
        folder / name,
        labels,
        stride=SCANS[name],
        skip_mm=skipped,
        shift_yx=LABELS_SHIFT_YX,
        diseased=0.35,
    )


def create_phantom_settings(num_scans):
    """Returns the `drawing.Settings` of the phantom that the network starts from."""
    config = lungs_phantom.get_config()
    config.data.phantom.num_scans = num_scans
    return drawing.create_settings(config.data.phantom)


def make_pack(work):
    """Writes the weights of the lungs to the box and then `box.json`.

    Args:
        work: pathlib.Path of the runs and the box.
    """
    folder = work / "box"
    trained = _without_paths(
        networks.read_trained(work / "runs" / "lungs"), f"lungs of auxseg's box {VERSION}"
    )
    target = folder / "lungs"
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        path.unlink()
    bundles.write_bundle(target, trained, "saved")
    middle = npz.read_npz(work / "slices" / "middle", size_yx=slices.SIZE_YX)
    images = middle.read(range(_CHECK_SLICES))[0]
    about = bundles.check_bundle(target, trained, images, f"the first {_CHECK_SLICES} middle slices")
    box.write_box(folder, VERSION)
    print(f"{target}: {about['name']}, SHA-256 {about['weights_sha256']}")


def install(work):
    """Puts the box and its results into the package, in place of those that are there; the card gets the new table."""
    for name in ("lungs", "nodules"):
        files.replace_folder(_copy(work / "box" / name, box.FOLDER / f".{name}-new"), box.FOLDER / name)
    shutil.copy(work / "box" / box.FILE, box.FOLDER / box.FILE)
    for path in sorted((work / "results").iterdir()):
        shutil.copy(path, RESULTS / path.name)
    stages.call("card")()


def _copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    return pathlib.Path(shutil.copytree(source, target))


def _without_paths(trained, name):
    """Returns a `networks.Trained` by another name, whose settings name no folder of this machine."""
    config = run_folder.to_config(run_folder.config_to_dict(trained.config))
    config.data.update({"dir": None, "extra_dir": None, "cache_dir": None})
    config.train.update({"init_from": None})
    return networks.Trained(name, config, trained.variables)


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "folder with luna16_middle, lidc_nodules and scans", required=True)
    flags.DEFINE_string("output", None, "folder for slices, runs, results and the box", required=True)
    flags.DEFINE_list("stages", [], "which stages, done before or not; default: all that are not done")
    flags.DEFINE_bool("trial", False, "a few steps of every training, to see that all stages run")
    command.run(main)
