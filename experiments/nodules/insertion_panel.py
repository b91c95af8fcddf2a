"""Inserted nodules beside real ones, in a random order: can a reader tell them apart?

    python -m experiments.nodules.insertion_panel --data_dir=FOLDER [--size=512] [--seed=1]

Writes `results/inserted_beside_real.png`, numbered crops of FOLDER's real slices, each about one nodule, and
`results/inserted_beside_real.json`, which says which of them are real. Inserted ones have diameters like the
real ones of the folder (4 to 15 mm), one a slice, in slices without a nodule.
"""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from absl import flags
from scipy import ndimage

from auxseg.base import command, files
from auxseg.base.classes import NODULE
from auxseg.base.errors import InputError
from auxseg.datasets import npz
from auxseg.training import batching, insertion
from configs import base

RESULTS = pathlib.Path(__file__).parents[1] / "results"
NUM_INSERTED = 16
REACH_MM = 25.0
WINDOW_HU = (-1000.0, 400.0)
COLUMNS = 8


def real_crops(dataset):
    """Returns [(crop float32 [h, w] in HU, facts)] of every nodule of a data set, on its largest slice."""
    rows = np.flatnonzero(dataset.table.has_nodule)
    images, masks = dataset.read(rows)
    return [
        _crop(dataset, row, image, mask == NODULE, real=True)
        for row, image, mask in zip(rows, images, masks, strict=True)
    ]


def inserted_crops(dataset, *, seed, num):
    """Returns [(crop, facts)] of `num` inserted nodules, one a slice, in slices without a real one."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(dataset.table.labels[:, NODULE] == 0))
    plan = insertion.create_plan(_settings(seed), dataset)
    insert = jax.jit(lambda raw: insertion.insert(raw, plan, np.int32(0)))
    crops = []
    for start in range(0, len(rows), 4):
        some = rows[start : start + 4].astype(np.int32)
        raw = batching.RawBatch(*dataset.read(some), some, np.ones(len(some), np.float32))
        out = jax.device_get(insert(raw))
        for row, image, mask in zip(some, out.images, out.masks, strict=True):
            if (mask == NODULE).any() and len(crops) < num:
                crops.append(_crop(dataset, int(row), image, mask == NODULE, real=False))
        if len(crops) == num:
            return crops
    raise InputError(f"--data_dir: only {len(crops)} of {num} slices had room for a nodule; give more slices")


def _settings(seed):
    config = base.get_config().insert
    with config.unlocked():
        config.enabled, config.probability, config.max_nodules, config.seed = True, 1.0, 1, seed
        config.diameter_mm = (5.0, 15.0)
    return config


def _crop(dataset, row, image, inside, *, real):
    labels, _ = ndimage.label(inside, np.ones((3, 3)))
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    pixel_mm = float(insertion.pixel_sizes_mm(dataset, base.get_config().insert.field_mm)[row])
    reach = round(REACH_MM / pixel_mm)
    y, x = (round(float(each)) for each in ndimage.center_of_mass(largest))
    padded = np.pad(image.astype(np.float32), reach, constant_values=-1000.0)
    crop = padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
    facts = {
        "case_id": str(dataset.table.case_id[row]),
        "real": real,
        "pixels": int(largest.sum()),
        "diameter_mm": float(2 * np.sqrt(largest.sum() / np.pi) * pixel_mm),
        "mean_hu": float(image[largest].mean()),
    }
    return crop, facts


def draw(path, crops):
    """Writes the crops as a numbered panel."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    num_rows = -(-len(crops) // COLUMNS)
    figure, axes = plt.subplots(num_rows, COLUMNS, figsize=(1.6 * COLUMNS, 1.75 * num_rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, (crop, _)) in enumerate(zip(axes.flat, crops, strict=False), start=1):
        axis.imshow(crop, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        axis.set_title(str(number), fontsize=8, pad=2)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv):
    """Draws the panel and writes its key."""
    del argv
    given = flags.FLAGS
    dataset = npz.read_npz(given.data_dir, size_yx=(given.size, given.size))
    crops = real_crops(dataset) + inserted_crops(dataset, seed=given.seed, num=NUM_INSERTED)
    order = np.random.default_rng(given.seed).permutation(len(crops))
    crops = [crops[i] for i in order]
    draw(RESULTS / "inserted_beside_real.png", crops)
    facts = {str(number): each for number, (_, each) in enumerate(crops, start=1)}
    settings = {"size": given.size, "seed": given.seed}
    files.write_json(RESULTS / "inserted_beside_real.json", {"settings": settings, "crops": facts})
    print(RESULTS / "inserted_beside_real.png")


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder of NPZ slices, some with a nodule", required=True)
    flags.DEFINE_integer("size", 512, "rows and columns of a slice", lower_bound=64)
    flags.DEFINE_integer("seed", 1, "of the inserted nodules and the order of the crops")
    command.run(main)
