"""Scores of the nodule look on held-out crops, moved so that the place tells nothing.

    python -m experiments.box.nodule_crops --real=DIR --runs=DIR [--mirror]

Every crop is moved by up to 24 pixels (edges mirrored, a fixed seed) and scored by the network of its own fold, which
did not train on the patient. Dice is over all pixels that the network calls nodule in the crop; found means an
overlap (IoU) of at least 0.1. Over all slices means of a nodule's slices together, those of empty consensus included.
"""

import argparse
import json
import pathlib

import numpy as np

from auxseg.datasets import crops as crops_lib
from auxseg.prediction import nodule_look
from experiments.box import nodule_data, nodule_train

MOST_SHIFT_PX = 24
SHIFT_SEED = 24
MIN_IOU = 0.1
STRATA_MM = ((0.0, 6.0), (6.0, 10.0), (10.0, 99.0))


def predict(crops, rows, forward, *, batch_size=32, mirror=False):
    """Returns (probability of nodule uint8 [n, S, S] of 255ths, consensus bool [n, S, S]) of shifted crops."""
    shifts = crops_lib.draw_shifts(len(crops), most_px=MOST_SHIFT_PX, seed=SHIFT_SEED)
    size = crops.images.shape[1]
    images, references = [], []
    for row in rows:
        images.append(nodule_look.to_input(crops_lib.cut(crops.image_hu(row), shifts[row], size)))
        marks = crops_lib.cut(crops.readers[row], shifts[row], size)
        references.append(crops_lib.consensus(marks, crops.num_readers[row]))
    found = []
    for start in range(0, len(rows), batch_size):
        part = np.stack(images[start : start + batch_size])
        part = np.pad(part, ((0, batch_size - len(part)), (0, 0), (0, 0)))[..., None]
        values = np.asarray(forward(part))
        if mirror:
            values = 0.5 * (values + np.asarray(forward(part[:, :, ::-1]))[:, :, ::-1])
        found.append(np.round(255.0 * values).astype(np.uint8))
    return np.concatenate(found)[: len(rows)], np.stack(references)


def counts(marked, references):
    """Returns pixels marked, of the reference, and of both, int64 [n, 3]."""
    both = marked & references
    return np.stack([part.sum(axis=(1, 2)) for part in (marked, references, both)], axis=1)


def score(crops, rows, numbers):
    """Returns the scores of `numbers` int [n, 3] (from `counts`) by stratum of diameter, a dict."""
    place = {row: i for i, row in enumerate(rows.tolist())}
    largest = crops_lib.largest_slices(crops, rows)
    names, owner = np.unique(crops.nodule[rows], return_inverse=True)
    pooled = np.zeros((len(names), 3), np.int64)
    np.add.at(pooled, owner, numbers)
    of_nodule = {name: pooled[i] for i, name in enumerate(names)}
    results = {}
    for low, high in ((0.0, 99.0), *STRATA_MM):
        chosen = [row for row in largest.tolist() if low <= crops.diameter_mm[row] < high]
        slices = np.array([numbers[place[row]] for row in chosen])
        volumes = np.array([of_nodule[crops.nodule[row]] for row in chosen])
        results[f"{low:g}-{high:g} mm"] = {
            "nodules": len(chosen),
            "patients": len(set(crops.patient[chosen].tolist())),
            "dice_largest": float(dice(slices).mean()),
            "dice_largest_median": float(np.median(dice(slices))),
            "found": float((iou(slices) >= MIN_IOU).mean()),
            "dice_all_slices": float(dice(volumes).mean()),
        }
    return results


def dice(numbers):
    """Returns the Dice of rows (marked, reference, both)."""
    return 2.0 * numbers[:, 2] / np.maximum(numbers[:, 0] + numbers[:, 1], 1)


def iou(numbers):
    """Returns the intersection over union of rows (marked, reference, both)."""
    return numbers[:, 2] / np.maximum(numbers[:, 0] + numbers[:, 1] - numbers[:, 2], 1)


def main():
    """Scores every fold whose training has ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--mirror", action="store_true")
    options = parser.parse_args()
    crops = nodule_data.read_crops(options.real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    rows, numbers = [], {}
    for fold in range(nodule_data.NUM_FOLDS):
        run = pathlib.Path(options.runs) / f"fold{fold}"
        if not (run / "recipe.json").exists():
            continue
        forward = nodule_train.create_forward(*nodule_train.read_variables(run))
        held_out = np.flatnonzero(folds == fold)
        probability, references = predict(crops, held_out, forward, mirror=options.mirror)
        rows.append(held_out)
        for threshold in (0.3, 0.4, 0.5, 0.6, 0.7):
            marked = probability >= 255 * threshold
            numbers.setdefault(threshold, []).append(counts(marked, references))
    rows = np.concatenate(rows)
    print(json.dumps({str(t): score(crops, rows, np.concatenate(n)) for t, n in numbers.items()}, indent=1))


if __name__ == "__main__":
    main()
