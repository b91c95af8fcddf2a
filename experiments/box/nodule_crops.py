"""Scores of the nodule look on held-out crops, moved so that the place tells nothing.

    python -m experiments.box.nodule_crops --real=DIR --runs=DIR --output=FILE [--tta] [--test] [--picture=FILE]

Every crop is moved by up to 24 pixels (edges mirrored, a fixed seed) and scored by the network of its own fold, which
did not train on the patient. With `--tta` (test-time augmentation) it is seen in eight turns and several sizes:
probabilities are averaged over the turns, their logits over the sizes. Dice is over all pixels that the network calls nodule in the crop; found means an
overlap (IoU) of at least 0.1. Over all slices means of a nodule's slices together, those of empty consensus included.
"""

import itertools
import json
import pathlib

import numpy as np
import scipy.ndimage
from absl import flags

from auxseg.base import command, files
from auxseg.datasets import crops as crops_lib
from auxseg.evaluation import among_readers
from auxseg.prediction import nodule_look
from auxseg.report import figures, outlines
from auxseg.scoring.matching import MIN_OBJECT_IOU
from experiments.box import nodule_data, nodule_train
from experiments.made_by import made_by

THRESHOLD = 0.5
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
SHARES = (0.75, 0.875, 1.0)
"""Sizes at which crops are seen: nodules are found that look unlike those of the training at their own size."""
PICTURED = 32
STRATA_MM = ((0.0, 6.0), (6.0, 10.0), (10.0, 99.0))


def predict(crops, rows, forward, *, batch_size=32, tta=False):
    """Returns (probability of nodule uint8 [n, S, S] of 255ths, consensus bool [n, S, S]) of shifted crops."""
    shifts = crops_lib.draw_shifts(len(crops), most_px=crops_lib.MOST_SHIFT_PX, seed=crops_lib.SHIFT_SEED)
    size = crops.images.shape[1]
    images, references = [], []
    for row in rows:
        images.append(nodule_look.to_input(crops_lib.cut(crops.image_hu(row), shifts[row], size)))
        marks = crops_lib.cut(crops.readers[row], shifts[row], size)
        references.append(crops_lib.consensus(marks, crops.num_readers[row]))
    found = []
    for start in range(0, len(rows), batch_size):
        part = np.stack(images[start : start + batch_size])
        part = np.pad(part, ((0, batch_size - len(part)), (0, 0), (0, 0)))
        values = augmented(part, forward) if tta else np.asarray(forward(part[..., None]))
        found.append(np.round(255.0 * values).astype(np.uint8))
    return np.concatenate(found)[: len(rows)], np.stack(references)


def augmented(images, forward):
    """Returns the probability of nodule, float32 [N, S, S]: the mean over eight turns, and of that the mean logit over `SHARES`.

    Args:
        images: float32 [N, S, S] in [0, 1].
        forward: float32 [N, s, s, 1] -> probability float32 [N, s, s].
    """
    logits = np.zeros(images.shape, np.float32)
    for share in SHARES:
        found = _turned(_zoom(images, share), forward)
        found = np.clip(_zoom(found, 1.0 / share), 1e-3, 1.0 - 1e-3)
        logits += np.log(found / (1.0 - found)) / len(SHARES)
    return 1.0 / (1.0 + np.exp(-logits))


def _turned(images, forward):
    """Returns the mean probability over eight turns, float32 [N, s, s]."""
    total = np.zeros(images.shape, np.float32)
    for swapped, y, x in itertools.product((False, True), (1, -1), (1, -1)):
        given = (images.swapaxes(1, 2) if swapped else images)[:, ::y, ::x, None]
        found = np.asarray(forward(np.ascontiguousarray(given)))[:, ::y, ::x]
        total += found.swapaxes(1, 2) if swapped else found
    return total / 8.0


def _zoom(images, share):
    return (
        images if share == 1.0 else scipy.ndimage.zoom(images, (1.0, share, share), order=1, mode="nearest")
    )


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
        if not chosen:
            continue
        slices = np.array([numbers[place[row]] for row in chosen])
        volumes = np.array([of_nodule[crops.nodule[row]] for row in chosen])
        results[f"{low:g}-{high:g} mm"] = {
            "nodules": len(chosen),
            "patients": len(set(crops.patient[chosen].tolist())),
            "dice_largest": float(dice(slices).mean()),
            "dice_largest_median": float(np.median(dice(slices))),
            "found": float((iou(slices) >= MIN_OBJECT_IOU).mean()),
            "dice_all_slices": float(dice(volumes).mean()),
        }
    return results


def dice(numbers):
    """Returns the Dice of rows (marked, reference, both)."""
    return 2.0 * numbers[:, 2] / np.maximum(numbers[:, 0] + numbers[:, 1], 1)


def iou(numbers):
    """Returns the intersection over union of rows (marked, reference, both)."""
    return numbers[:, 2] / np.maximum(numbers[:, 0] + numbers[:, 1] - numbers[:, 2], 1)


def seen_slices(crops, rows, marked):
    """Yields the `among_readers.Seen` of shifted slices.

    Args:
        crops: `Crops`.
        rows: slices, int [n].
        marked: bool [n, S, S], what the network marks in them.
    """
    shifts = crops_lib.draw_shifts(len(crops), most_px=crops_lib.MOST_SHIFT_PX, seed=crops_lib.SHIFT_SEED)
    size = crops.images.shape[1]
    for row, mask in zip(rows.tolist(), marked, strict=True):
        marks = crops_lib.cut(crops.readers[row], shifts[row], size)
        image = np.round(crops_lib.cut(crops.image_hu(row), shifts[row], size)).astype(np.int16)
        yield among_readers.Seen(str(crops.patient[row]), crops_lib.outline(crops, row, marks), mask, image)


def keep_one(probability, threshold):
    """Returns the one object of a crop that is most likely the nodule, bool [S, S].

    For who is told that there is one: of what reaches the threshold, the piece with the largest sum; where nothing
    does, of what reaches half of the largest probability.

    Args:
        probability: uint8 [S, S], 255ths.
        threshold: from 0 to 1.
    """
    marked = probability >= 255 * threshold
    if not marked.any():
        marked = probability >= max(1, probability.max() / 2)
    pieces, count = scipy.ndimage.label(marked, np.ones((3, 3)))
    if count < 2:
        return marked
    return pieces == 1 + np.argmax(scipy.ndimage.sum_labels(probability, pieces, range(1, count + 1)))


def choose_thresholds(crops, parts):
    """Returns {fold: threshold}, each the best of `THRESHOLDS` by the mean Dice of the largest slices of the other folds.

    Args:
        crops: `Crops`.
        parts: {fold: (rows int [n], probabilities uint8 [n, S, S], references bool [n, S, S])}.
    """
    dice_of = {
        fold: [
            score(crops, rows, counts(probabilities >= 255 * threshold, references))["0-99 mm"][
                "dice_largest"
            ]
            for threshold in THRESHOLDS
        ]
        for fold, (rows, probabilities, references) in parts.items()
    }
    chosen = {}
    for fold in parts:
        others = [values for other, values in dice_of.items() if other != fold]
        chosen[fold] = THRESHOLDS[int(np.mean(others, axis=0).argmax())] if others else THRESHOLD
    return chosen


def predict_parts(crops, runs, *, test, tta):
    """Returns the `parts` of `choose_thresholds`: every fold's held-out slices, or the box's test slices."""
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    held_out = {nodule_data.BOX: nodule_data.TEST} if test else {f: f for f in range(nodule_data.NUM_FOLDS)}
    parts = {}
    for fold, part in held_out.items():
        forward = nodule_train.create_forward(*nodule_train.read_cycles(pathlib.Path(runs) / f"fold{fold}"))
        rows = np.flatnonzero(folds == part)
        parts[fold] = (rows, *predict(crops, rows, forward, tta=tta))
    return parts


def draw(tiles):
    """Returns the PNG of some `outlines.Tile`: each reader's outline thin, the network's red and wide."""
    figure, axes = figures.create_axes((16, 2.9 * -(-len(tiles) // 8)), columns=8, rows=-(-len(tiles) // 8))
    for panel in axes.flat:
        panel.axis("off")
    for tile, panel in zip(tiles, axes.flat, strict=False):
        rows, columns = outlines.find_window(tile)
        panel.imshow(tile.image_hu[rows, columns], cmap="gray", vmin=-1000, vmax=400)
        for mask, colour in zip(tile.readers, outlines.READER_COLOURS, strict=False):
            if mask.any():
                panel.contour(mask[rows, columns], [0.5], colors=[colour], linewidths=0.9)
        if tile.marked.any():
            panel.contour(tile.marked[rows, columns], [0.5], colors=[outlines.NETWORK_COLOUR], linewidths=1.8)
        panel.set_title(f"{tile.diameter_mm:.0f} mm, Dice {tile.dice:.2f}", fontsize=9)
    return figures.to_png(figure)


def write_pictures(seen, picture, page, scores):
    """Writes a picture of `PICTURED` nodules drawn by a seed, and the page of all, where they are asked for."""
    tiles = [among_readers.to_tile(slices) for slices in among_readers.by_nodule(seen).values()]
    if picture:
        chosen = np.random.default_rng(crops_lib.SHIFT_SEED).permutation(len(tiles))[:PICTURED]
        files.write_bytes(pathlib.Path(picture), draw([tiles[place] for place in sorted(chosen)]))
    if page:
        html = outlines.create_page(
            tiles, scores[among_readers.LARGEST], split="held out", window_hu=(-1000, 400)
        )
        files.write_text(pathlib.Path(page), html)


def main(argv):
    """Writes the scores of every fold, or of the test patients, as JSON."""
    del argv
    options = flags.FLAGS
    crops = nodule_data.read_crops(options.real)
    parts = predict_parts(crops, options.runs, test=options.test, tta=options.tta)
    chosen = choose_thresholds(crops, parts)
    marked = np.concatenate([found >= 255 * chosen[fold] for fold, (_, found, _) in parts.items()])
    rows, probabilities, references = map(np.concatenate, zip(*parts.values(), strict=True))
    seen = list(seen_slices(crops, rows, marked))
    one = np.concatenate(
        [[keep_one(each, chosen[fold]) for each in found] for fold, (_, found, _) in parts.items()]
    )
    extra = "".join(f" --{name}" for name in ("tta", "test") if getattr(options, name))
    results = {
        "made_by": made_by(
            f"python -m experiments.box.nodule_crops --real=FOLDER --runs=RUNS --output=FILE{extra}",
            data=f"{len(set(crops.nodule[rows].tolist()))} held-out nodules of "
            f"{len(set(crops.patient[rows].tolist()))} patients of LIDC-IDRI, crops moved by up to {crops_lib.MOST_SHIFT_PX} px",
            seeds=[nodule_data.SPLIT_SEED, crops_lib.SHIFT_SEED, nodule_train.Recipe.seed],
        ),
        "thresholds": {
            str(threshold): score(crops, rows, counts(probabilities >= 255 * threshold, references))
            for threshold in THRESHOLDS
        },
        "chosen_on_the_other_fold": {f"fold {fold}": threshold for fold, threshold in chosen.items()},
        "at_the_chosen": score(crops, rows, counts(marked, references)),
        "readers": among_readers.judge(seen),
        "told_that_there_is_one": {
            "at_the_chosen": score(crops, rows, counts(one, references)),
            "readers": among_readers.judge(list(seen_slices(crops, rows, one))),
        },
    }
    files.write_json(pathlib.Path(options.output), results)
    write_pictures(seen, options.picture, options.page, results["readers"])
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_string("output", None, "JSON file to write", required=True)
    flags.DEFINE_bool("tta", False, "test-time augmentation: eight turns, several sizes")
    flags.DEFINE_bool("test", False, "the network in the box, on the test patients")
    flags.DEFINE_string("picture", None, "PNG file for some nodules and their outlines")
    flags.DEFINE_string("page", None, "HTML file for all of them")
    command.run(main)
