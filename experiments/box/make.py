"""Makes the networks in the box, from named data and seeds.

    python -m experiments.box.make --real=FOLDER --work=DIR [--steps=slices,phantom,lungs,sisters,pack]

FOLDER holds `luna16_middle` (NPZ slices of LUNA16 with classes 0 to 3 and an `index.csv`) and `scans` (`SCANS`, each with a
label map NAME_lungs.nii.gz, and boxes of what is not known). DIR receives slices and runs. The steps, each of which goes on
where it stopped and is passed over when it is done:

    slices    slices of the phantom, the middle slices and the scans, cut to the body; dense disease is drawn into some
    phantom   the lungs network on the phantom (configs/lungs_phantom.py)
    lungs     the same on the middle slices and the scans (configs/lungs.py): what is shipped
    sisters   one more for each patient of the scans, who is left out: they score (experiments/box/score.py)
    pack      the weights of `lungs` to auxseg/weights, and box.json over all files there

The middle slice of a patient whose whole scan judges trains none of them (`slices.LEFT_OUT`).
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

from absl import flags

from auxseg.base import command, errors, files
from auxseg.datasets import npz
from auxseg.datasets.phantom import drawing
from auxseg.prediction import box
from auxseg.runs import bundles, networks, run_folder
from configs import lungs_phantom
from experiments.box import slices

VERSION = "1"
STEPS = ("slices", "phantom", "lungs", "sisters", "pack")
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
NUM_SCANS = 64
"""Of the phantom."""
_CHECK_SLICES = 8


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    for name in given.steps:
        errors.check_choice("--steps", name, STEPS)
        globals()[f"make_{name}"](pathlib.Path(given.real), pathlib.Path(given.work))


def make_slices(real, work):
    """Writes the folders of slices that are not there."""
    plans = {
        "phantom": lambda folder: slices.write_phantom(folder, create_phantom_settings(), stride=2),
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


def create_phantom_settings():
    """Returns the `drawing.Settings` of the phantom that the network starts from."""
    config = lungs_phantom.get_config()
    config.data.phantom.num_scans = NUM_SCANS
    return drawing.create_settings(config.data.phantom)


def make_phantom(real, work):
    """Trains on the phantom, or goes on."""
    del real
    _train("lungs_phantom", work / "runs" / "phantom", {"data.dir": work / "slices" / "phantom"})


def make_lungs(real, work):
    """Trains on middle slices and all scans from the phantom's weights, or goes on."""
    del real
    _train("lungs", work / "runs" / "lungs", _fine_tuning(work, None))


def make_sisters(real, work):
    """Trains for each patient of the scans a network that does not know him, or goes on."""
    del real
    for patient in PATIENTS:
        _train("lungs", work / "runs" / scans_name(patient), _fine_tuning(work, patient))


def _fine_tuning(work, left_out):
    return {
        "data.dir": work / "slices" / "middle",
        "data.extra_dir": work / "slices" / scans_name(left_out),
        "train.init_from": work / "runs" / "phantom",
    }


def _train(name, workdir, changes):
    if (workdir / "summary.json").is_file():
        return
    command = [sys.executable, "-m", "auxseg.main", f"--config=configs/{name}.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise errors.InputError(f"{' '.join(command)}: exit status {done.returncode}; start again to go on")


def make_pack(real, work, folder=box.FOLDER):
    """Writes the weights to the box and then `box.json`.

    Args:
        real: not read.
        work: of the runs.
        folder: of the box.
    """
    del real
    trained = _without_paths(networks.read_run(work / "runs" / "lungs"), f"lungs of auxseg's box {VERSION}")
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


def _without_paths(trained, name):
    """Returns a `networks.Trained` by another name, whose settings name no folder of this machine."""
    config = networks.to_config(run_folder.config_to_dict(trained.config))
    config.data.update({"dir": None, "extra_dir": None, "cache_dir": None})
    config.train.update({"init_from": None})
    return networks.Trained(name, config, trained.variables)


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "folder with luna16_middle and scans", required=True)
    flags.DEFINE_string("work", None, "folder for slices and runs", required=True)
    flags.DEFINE_list("steps", list(STEPS), "which steps, in their order")
    command.run(main)
