"""SAM prompted by boxes, on the same cases: a table of its own, since it is told where to look.

    python -m experiments.sam.study --weights=FILE --workdir=RUN [--split=test]
    python -m experiments.sam.study --weights=FILE --data=npz --data_dir=FOLDER [--jitter=0.05,0.1,0.2] [--limit=20]

FILE holds the weights of a SAM, which are not shipped here: the published checkpoint of ViT-B, -L or -H or a
fine-tuned one with the same names (safetensors, NPZ, or PyTorch's with torch installed). Three kinds of box: around the
reference (what the paper's comparison has: an upper bound, since the place and the size of the answer are
given), around the reference but with each side moved by up to a share of the box (a reader's hand), and
around our own network's prediction (`--workdir`), which needs no reference. A lung has one box, nodules one for each
connected region. Without a box for a class that the reference has, its Dice is 0 and it counts as missed.
The folder (--out) receives `sam.md`, `sam.json` and `cases.csv`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy import ndimage

from auxseg.base import command, files, progress
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import load, splits
from auxseg.evaluation import evaluate_run, score_cases
from auxseg.models import interface
from auxseg.report import tables
from auxseg.report.markup import interval, number
from auxseg.runs.splits import default_split
from auxseg.scoring import statistics
from experiments.sam import model
from experiments.sam.weights import read_weights
from experiments.studies import comparators, runner

FOREGROUND = CLASS_NAMES[1:]
ALONE = "our network alone, no SAM"


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases to segment.

    Attributes:
        dataset: Dataset.
        indices: int [n], its rows.
        window_hu: (low, high).
        predictions: {index: uint8 [H, W]} of our network, or None.
    """

    dataset: Any
    indices: np.ndarray
    window_hu: tuple[float, float]
    predictions: dict | None = None


def read_cases(protocol, *, workdir=None, split=None, limit=None):
    """Returns the Cases of a run's split, with its predictions, or of the data alone.

    Args:
        protocol: runner.Protocol; without effect with `workdir`.
        workdir: pathlib.Path of a run, or None.
        split: of 'train', 'val', 'test'; None: test, else val.
        limit: at most so many cases, or None.

    Raises:
        InputError: no such run, data or split.
    """
    if workdir is not None:
        subject, split, _ = evaluate_run.open_run(workdir, split)
        indices = subject.members[split][:limit]
        found = score_cases.predict(subject, indices, label="predicting")
        predictions = {index: each.argmax(-1).astype(np.uint8) for index, each in found}
        return Cases(subject.dataset, indices, tuple(subject.config.data.window_hu), predictions)
    config = runner.override(runner.create_config(protocol), {"data.fold": protocol.folds[0]})
    dataset, data = load(config.data), config.data
    members = splits.make_splits(
        dataset.table, split=data.split, fold=data.fold, num_folds=data.num_folds, seed=data.split_seed
    )
    split = check_choice("--split", split or default_split(members), tuple(members))
    return Cases(dataset, members[split][:limit], tuple(data.window_hu))


def find_boxes(mask, class_name):
    """Returns float32 [n, 4], the boxes (left, top, right, bottom, in pixels, inclusive) of a class in a mask.

    Args:
        mask: uint8 [H, W].
        class_name: one box around a lung, one around each 8-connected region of nodule.
    """
    wanted = mask == CLASS_NAMES.index(class_name)
    if class_name == "nodule":
        labelled, _ = ndimage.label(wanted, np.ones((3, 3)))
    else:
        labelled = wanted.astype(np.int32)
    found = [
        (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
        for rows, columns in ndimage.find_objects(labelled)
    ]
    return np.array(found, np.float32).reshape(-1, 4)


def jitter(boxes, share, generator, size_yx):
    """Returns boxes with each side moved by up to `share` of the box's width or height, inside the image.

    Args:
        boxes: float32 [n, 4].
        share: of the box's size, to either side, uniform.
        generator: numpy.random.Generator.
        size_yx: rows and columns of the image.
    """
    sizes = boxes[:, [2, 3, 2, 3]] - boxes[:, [0, 1, 0, 1]] + 1
    moved = boxes + sizes * generator.uniform(-share, share, boxes.shape)
    low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
    limits = np.array([size_yx[1], size_yx[0], size_yx[1], size_yx[0]]) - 1
    return np.clip(np.concatenate([low, high], 1), 0, limits).astype(np.float32)


def create_segment_fns(weights):
    """Returns (encode, decode), compiled, with the weights bound.

    encode: image float32 [H, W] in [0, 1] -> embedding [1, h, w, C]. decode: (embedding, box float32 [4] in pixels of
    the image, size_yx) -> bool [H, W].

    Raises:
        InputError: weights that are not those of a SAM.
    """
    settings = model.read_settings(weights)
    weights = jax.device_put(weights)

    @jax.jit
    def encode(weights, image):
        return model.encode_images(weights, model.preprocess(image[None], settings), settings)

    def decode(weights, embedding, box, size_yx):
        # To the first and the last pixel of the encoder's image that the box covers.
        factors = settings.image_size / jnp.array([size_yx[1], size_yx[0]], jnp.float32)
        scaled = jnp.concatenate([box[:2] * factors, (box[2:] + 1.0) * factors - 1.0])
        logits, _ = model.decode_masks(weights, embedding, scaled[None], settings)
        return jax.image.resize(logits[0], size_yx, "bilinear") > 0

    decode = jax.jit(decode, static_argnums=3)

    def run_encode(image):
        return encode(weights, image)

    def run_decode(embedding, box, size_yx):
        return np.asarray(decode(weights, embedding, box, tuple(size_yx)))

    return run_encode, run_decode


def segment_cases(cases, functions, *, shares, seed):
    """Returns one row for each case, source of boxes and class: Dice, pixels, boxes.

    Args:
        cases: Cases.
        functions: from `create_segment_fns`.
        shares: of the jitter study, such as (0.05, 0.1).
        seed: of the jitter.
    """
    rows, (encode, _) = [], functions
    for index in progress.track(cases.indices, total=len(cases.indices), label="SAM", unit="case"):
        images, masks = cases.dataset.read(np.array([index]))
        image = np.asarray(interface.normalise_hu(images[0], cases.window_hu))
        embedding, prediction = encode(image), (cases.predictions or {}).get(int(index))
        identity = {
            "case_id": str(cases.dataset.table.case_id[index]),
            "patient": str(cases.dataset.table.patient[index]),
        }
        # Each case has its own generator: leaving out others does not change it.
        generator = np.random.default_rng([seed, int(index)])
        for source, class_name, boxes in _list_boxes(masks[0], prediction, shares, generator):
            mask = _segment(functions, embedding, boxes, masks[0].shape)
            rows.append(identity | _score(source, class_name, mask, masks[0], len(boxes)))
        if prediction is not None:
            rows += [
                identity | _score(ALONE, name, prediction == CLASS_NAMES.index(name), masks[0], 0)
                for name in FOREGROUND
            ]
    return rows


def _list_boxes(mask, prediction, shares, generator):
    for class_name in FOREGROUND:
        reference = find_boxes(mask, class_name)
        yield "reference", class_name, reference
        for share in shares:
            yield f"jittered by {share:g}", class_name, jitter(reference, share, generator, mask.shape)
        if prediction is not None:
            yield "our prediction", class_name, find_boxes(prediction, class_name)


def _segment(functions, embedding, boxes, shape):
    found = np.zeros(shape, bool)
    for box in boxes:
        found |= functions[1](embedding, box, shape)
    return found


def _score(source, class_name, found, reference, num_boxes):
    true = reference == CLASS_NAMES.index(class_name)
    both = int(found.sum()) + int(true.sum())
    return {
        "boxes": source,
        "class": class_name,
        "dice": 2.0 * float((found & true).sum()) / both if true.any() else np.nan,
        "reference_px": int(true.sum()),
        "found_px": int(found.sum()),
        "num_boxes": num_boxes,
    }


def summarise(rows):
    """Returns one row for each source of boxes and class: mean Dice with its interval, missed, false positives."""
    found = []
    for source in dict.fromkeys(row["boxes"] for row in rows):
        for name in FOREGROUND:
            own = [row for row in rows if row["boxes"] == source and row["class"] == name]
            mean = statistics.bootstrap_mean([row["dice"] for row in own], [row["patient"] for row in own])
            present = [row for row in own if row["reference_px"]]
            found.append(
                {
                    "boxes": source,
                    "class": name,
                    "dice": mean.estimate,
                    "low": mean.low,
                    "high": mean.high,
                    "cases": mean.num_cases,
                    "missed": sum(row["found_px"] == 0 for row in present),
                    "false_positive_cases": sum(not r["reference_px"] and r["found_px"] > 0 for r in own),
                }
            )
    return found


def format_summary(summary, *, name, dataset):
    """Returns the lines of `sam.md`."""
    yield "# SAM, prompted by boxes\n"
    yield f"Weights: {name}; data: {dataset}. The paper prints {comparators.SAM_PERCENT} % for SAM with transfer learning, without"
    yield "saying which score or where its boxes come from. A box around the reference gives away where the answer is and how"
    yield "large: those rows are no competitors of a network that is given the image alone.\n"
    yield "| boxes from | class | mean Dice, 95 % over patients | cases | missed | false-positive cases |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in summary:
        dice = number(row["dice"], 3) + interval(row["low"], row["high"], 3)
        yield (
            f"| {row['boxes']} | {tables.TITLES[row['class']]} | {dice} | {row['cases']} | {row['missed']} | "
            f"{row['false_positive_cases']} |"
        )


def study(weights_path, cases, out, *, shares, seed=1):
    """Returns the summary, after writing `sam.md`, `sam.json` and `cases.csv`.

    Args:
        weights_path: pathlib.Path of the weights.
        cases: Cases.
        out: pathlib.Path of the folder.
        shares: of the jitter study.
        seed: of the jitter.

    Raises:
        InputError: weights that cannot be read or are not those of a SAM, or no case.
    """
    functions = create_segment_fns(read_weights(weights_path))
    if not len(cases.indices):
        raise InputError("--split: it has no case")
    rows = segment_cases(cases, functions, shares=shares, seed=seed)
    summary = summarise(rows)
    files.write_csv(out / "cases.csv", rows)
    files.write_json(out / "sam.json", {"weights": weights_path.name, "summary": summary})
    lines = format_summary(summary, name=weights_path.name, dataset=cases.dataset.name)
    files.write_text(out / "sam.md", "\n".join(lines) + "\n")
    return summary


def read_shares(texts):
    """Returns the shares of --jitter as floats; raises InputError for what is no share from 0 to 1."""
    try:
        shares = tuple(float(text) for text in texts)
    except ValueError as error:
        raise InputError(f"--jitter: {error}; expected shares such as 0.05,0.1") from error
    if not all(0.0 < share <= 1.0 for share in shares):
        raise InputError(f"--jitter: got {shares}, expected shares of a box's size, above 0 and at most 1")
    return shares


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    shares, weights = read_shares(given.jitter), pathlib.Path(given.weights)
    model.read_settings(read_weights(weights))  # before anything that takes time
    protocol = runner.Protocol(given.data, given.data_dir, folds=(given.fold,), size=given.size)
    workdir = pathlib.Path(given.workdir) if given.workdir else None
    cases = read_cases(protocol, workdir=workdir, split=given.split, limit=given.limit)
    out = pathlib.Path(given.out)
    study(weights, cases, out, shares=shares, seed=given.seed)
    print((out / "sam.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "file of a SAM's weights", required=True)
    flags.DEFINE_string("workdir", None, "a run whose split and predictions to take")
    flags.DEFINE_enum("data", "phantom", tuple(runner.CONFIGS), "without --workdir: the data")
    flags.DEFINE_string("data_dir", None, "folder of the data (npz, luna16)")
    flags.DEFINE_integer("fold", 0, "test fold, by patient")
    flags.DEFINE_integer("size", None, "rows and columns of a case; default: the config's", lower_bound=16)
    flags.DEFINE_string("split", None, "train, val or test; default: test")
    flags.DEFINE_list("jitter", ["0.05", "0.1", "0.2"], "shares of a box by which its sides are moved")
    flags.DEFINE_integer("seed", 1, "of the jitter")
    flags.DEFINE_integer("limit", None, "at most so many cases", lower_bound=1)
    flags.DEFINE_string("out", "runs/sam", "folder of the table")
    command.run(main)
