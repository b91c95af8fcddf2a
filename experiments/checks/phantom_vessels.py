"""Counts what is bright in the lungs of real scans and of phantom ones, and how bright their lungs are.

    python -m experiments.checks.phantom_vessels --scans=FOLDER [--out=experiments/results/phantom_vessels.json]

FOLDER holds scans with a label map NAME_lungs.nii.gz beside each. The slices of both are smoothed over a pixel; what lies
within 4 mm of a lung's edge does not count. A structure is a connected piece in one slice that is brighter than a level.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from absl import flags
from scipy import ndimage

from auxseg.base import command, files
from auxseg.ct import scans
from auxseg.datasets.phantom import drawing, render
from auxseg.evaluation import whole_scans
from configs import base
from experiments import made_by
from experiments.box.score import find_labelled

LEVELS_HU = (-700, -500, -300, -100)
HEIGHTS = (0.25, 0.4, 0.55, 0.7, 0.85)
"""Of the lungs, from their lowest slice to their highest."""
PERCENTILES = (5, 25, 50, 75, 95, 99)
NUM_SCANS = 12
SEED = 1000
_EDGE_MM = 4.0


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    real = [count_real(path) for path in find_labelled(pathlib.Path(given.scans))]
    phantom = [count_phantom(number) for number in range(NUM_SCANS)]
    for row in real + phantom:
        print(row, flush=True)
    result = {
        "made_by": made_by.made_by(
            "python -m experiments.checks.phantom_vessels --scans=FOLDER",
            data=", ".join(row["scan"] for row in real),
            seeds=(SEED,),
        ),
        "levels_hu": list(LEVELS_HU),
        "percentiles": list(PERCENTILES),
        "real": real,
        "phantom": phantom,
        "medians": {"real": _medians(real), "phantom": _medians(phantom)},
    }
    files.write_json(pathlib.Path(given.out), result)


def count_real(path):
    """Returns a row of the result for a real scan."""
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        labels = whole_scans.read_labels(path.with_name(f"{path.name}_lungs.nii.gz"), scan)
        lungs = (labels == 1) | (labels == 2)
        chosen = _levels(np.flatnonzero(lungs.any(axis=(1, 2))))
        pairs = [(scan.read(k, k + 1)[0], lungs[k]) for k in chosen]
    return {"scan": path.name, **_count(pairs, scan.geometry.spacing_zyx_mm)}


def count_phantom(number):
    """Returns a row of the result for a phantom scan."""
    config = base.get_config().data.phantom
    with config.unlocked():
        config.seed, config.matrix, config.num_slices = SEED, 512, (300, 130, 70)[number % 3]
    settings = drawing.create_settings(config)
    scan = drawing.create_scan(settings, number)
    patient = scan.scene.patient
    canvas = render.create_canvas(scan.scene, scan.x_mm, scan.y_mm, **scan.canvas)
    pairs = []
    for height in HEIGHTS:
        rng = np.random.default_rng([SEED, number, int(100 * height)])
        image, mask = render.render_slice(scan.scene, canvas, height * patient.height_mm, rng)
        pairs.append((image, (mask == 3) | (mask == 4)))
    pixel = float(scan.x_mm[1] - scan.x_mm[0])
    return {"scan": f"phantom {number}", **_count(pairs, (float(scan.z_mm[1] - scan.z_mm[0]), pixel, pixel))}


def _levels(indices):
    low, high = int(indices[0]), int(indices[-1])
    return [round(low + height * (high - low)) for height in HEIGHTS]


def _count(pairs, spacing_zyx_mm):
    """Returns structures per 100 cm2 of lung, their share of it, and the lungs' HU, from slices and masks."""
    counts, shares, values, area_cm2 = np.zeros(len(LEVELS_HU)), np.zeros(len(LEVELS_HU)), [], 0.0
    reach = int(np.ceil(_EDGE_MM / spacing_zyx_mm[1]))
    for image, lungs in pairs:
        image = ndimage.gaussian_filter(image.astype(np.float32), 1.0)
        lungs = ndimage.binary_erosion(ndimage.binary_fill_holes(lungs), iterations=reach)
        area_cm2 += lungs.sum() * spacing_zyx_mm[1] * spacing_zyx_mm[2] / 100.0
        values.append(image[lungs])
        for which, level in enumerate(LEVELS_HU):
            bright = lungs & (image > level)
            counts[which] += ndimage.label(bright, np.ones((3, 3)))[1]
            shares[which] += bright.sum()
    values = np.concatenate(values)
    return {
        "slice_mm": round(float(spacing_zyx_mm[0]), 2),
        "structures_per_100_cm2": (counts * 100.0 / area_cm2).round(1).tolist(),
        "share": (shares / len(values)).round(4).tolist(),
        "hu_percentiles": np.percentile(values, PERCENTILES).round().tolist(),
    }


def _medians(rows):
    keys = ("structures_per_100_cm2", "share", "hu_percentiles")
    return {key: np.median([row[key] for row in rows], axis=0).round(4).tolist() for key in keys}


if __name__ == "__main__":
    flags.DEFINE_string("scans", None, "folder of scans and label maps", required=True)
    flags.DEFINE_string("out", "experiments/results/phantom_vessels.json", "JSON file to write")
    command.run(main)
