"""Draws phantom slices beside real ones, and asks a network trained on real slices to find phantom lungs.

    python -m experiments.checks.phantom_panel --real=FOLDER --scan=SCAN [--workdir=RUN]

FOLDER holds real middle slices as `ID_*.npz` (`image` in HU, `mask`), SCAN is a whole real scan; the picture goes to
`experiments/results/phantom_beside_real.png`. With a run that was trained on real slices its Dice on the
lungs of phantom slices that no training has seen goes to `experiments/results/phantom_realism.json`.
"""

import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from scipy import ndimage

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.ct import scans
from auxseg.datasets import resize
from auxseg.datasets.phantom import drawing, render
from configs import base

REAL = flags.DEFINE_string("real", None, "folder of real middle slices, ID_*.npz", required=True)
SCAN = flags.DEFINE_string("scan", None, "a whole real scan of LIDC-IDRI", required=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "a run trained on real slices; scored on phantom lungs if given"
)
OUTPUT = flags.DEFINE_string("output", "experiments/results", "where the picture and the scores go")
NUM_COLUMNS = 7
NUM_SCANS = 24  # that the scores are taken on
SCORED_HEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the lungs, from the lowest recess to the apices
SHOWN_HEIGHTS = (-0.2, 0.0, 0.14, 0.3, 0.55, 0.9, 1.12)
SEED = 1000  # apart from the seeds that configs use
CREDIT = (
    "Real slices: LIDC-IDRI (CC BY 3.0, doi:10.7937/K9/TCIA.2015.LO9QL9SX) by way of LUNA16 (CC BY 4.0, "
    "doi:10.1016/j.media.2017.06.015), reduced; the uniform noise of their release smoothed over 1 pixel."
)


def main(argv):
    del argv
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    settings = _settings()
    real = (_read_real(pathlib.Path(REAL.value)), _read_scan(pathlib.Path(SCAN.value)))
    draw_panel(*real, settings, output / "phantom_beside_real.png")
    print(f"wrote {output / 'phantom_beside_real.png'}")
    if WORKDIR.value:
        scores = score(WORKDIR.value, settings)
        files.write_json(output / "phantom_realism.json", scores)
        print(f"wrote {output / 'phantom_realism.json'}: {scores['mean_dice']}")


def _settings():
    config = base.get_config().data.phantom
    with config.unlocked():
        config.seed, config.matrix, config.prone_fraction = SEED, 512, 0.0
    return drawing.create_settings(config)


def _read_real(folder):
    """Returns `NUM_COLUMNS` real slices spread over the folder, float32 [512, 512] in HU."""
    paths = sorted(folder.glob("ID_*.npz"))
    if len(paths) < NUM_COLUMNS:
        raise InputError(f"--real: {folder} holds {len(paths)} ID_*.npz, expected at least {NUM_COLUMNS}")
    images = []
    for path in paths[:: len(paths) // NUM_COLUMNS][:NUM_COLUMNS]:
        with np.load(path, allow_pickle=False) as file:
            images.append(ndimage.gaussian_filter(file["image"].astype(np.float32), 1.0))
    return images


def _read_scan(path):
    """Returns `NUM_COLUMNS` slices of a whole scan from its lowest to its highest, int16 [H, W] in HU."""
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        chosen = np.linspace(0, scan.num_slices - 1, NUM_COLUMNS).round().astype(int).tolist()
        return [scan.read(k, k + 1)[0] for k in chosen]


def draw_slice(settings, number, height):
    """Returns the slice of scan `number` at a relative height: HU float32 [H, W], LUNA16's mask values."""
    scan = drawing.create_scan(settings, number)
    patient = scan.scene.patient
    canvas = render.create_canvas(scan.scene, scan.x_mm, scan.y_mm, **scan.canvas)
    noise = np.random.default_rng([settings.seed, number, int(1000 * (1 + height))])
    return render.render_slice(scan.scene, canvas, height * patient.height_mm, noise)


def draw_panel(real, scan, settings, path):
    """Writes the picture: real middle slices and phantom ones, a real scan and a phantom from the kidneys to the neck."""
    middle = [draw_slice(settings, number, 0.5 + 0.02 * (number % 5))[0] for number in range(NUM_COLUMNS)]
    rising = [draw_slice(settings, NUM_COLUMNS, height) for height in SHOWN_HEIGHTS]
    rows = (real, middle, scan, [image for image, _ in rising])
    titles = (
        "real, middle slice",
        "phantom, about the middle",
        "one real scan, kidneys to neck",
        "one phantom, kidneys to neck",
    )
    figure, axes = plt.subplots(4, NUM_COLUMNS, figsize=(2 * NUM_COLUMNS, 8.8), squeeze=False)
    for row, images in enumerate(rows):
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(image[::2, ::2], cmap="gray", vmin=-1000, vmax=400)
            axis.set_axis_off()
        axes[row, 0].set_title(titles[row], loc="left", fontsize=9)
    for axis, (_, mask) in zip(axes[3], rising, strict=True):
        for value, colour in ((3, "tab:red"), (4, "tab:green"), (5, "tab:cyan")):
            if (mask == value).any():
                axis.contour(mask[::2, ::2] == value, [0.5], colors=colour, linewidths=0.7)
    figure.text(0.01, 0.008, CREDIT, fontsize=6.5)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.972, bottom=0.023, wspace=0.02, hspace=0.14)
    figure.savefig(path, dpi=85)
    plt.close(figure)


def score(workdir, settings):
    """Returns the Dice of a run's lungs on phantom slices: mean and lowest, and how many slices."""
    from auxseg.runs import networks

    network = networks.load_network(workdir)
    images, masks = [], []
    for number in range(NUM_SCANS):
        for height in SCORED_HEIGHTS:
            image, mask = draw_slice(settings, number, height)
            images.append(resize.resize_image(image, network.size_yx))
            classes = np.select([mask == 3, mask == 4], [1, 2]).astype(np.uint8)
            masks.append(resize.resize_mask(classes, network.size_yx))
    found = np.concatenate([np.asarray(network.probabilities(np.stack(images[first : first + 8]))).argmax(-1)
                            for first in range(0, len(images), 8)])  # fmt: skip
    dice = np.array([[_dice(predicted == value, mask == value) for value in (1, 2)]
                     for predicted, mask in zip(found, masks, strict=True)])  # fmt: skip
    return {
        "network": network.name,
        "network_size": list(network.size_yx),
        "scans": NUM_SCANS,
        "slices": len(images),
        "heights": list(SCORED_HEIGHTS),
        "seed": settings.seed,
        "mean_dice": _by_lung(dice.mean(axis=0)),
        "lowest_dice": _by_lung(dice.min(axis=0)),
        "mean_dice_by_height": {
            str(height): _by_lung(dice[number :: len(SCORED_HEIGHTS)].mean(axis=0))
            for number, height in enumerate(SCORED_HEIGHTS)
        },
    }


def _by_lung(values):
    return {
        name: round(float(value), 4) for name, value in zip(("left_lung", "right_lung"), values, strict=True)
    }


def _dice(predicted, reference):
    return 2.0 * (predicted & reference).sum() / (predicted.sum() + reference.sum())


if __name__ == "__main__":
    command.run(main)
