"""A made-up run and its scores, small enough to write a report of in a second."""

import json

import numpy as np

from auxseg.base.classes import CLASS_NAMES
from auxseg.report import Report, viewer
from auxseg.runs import run_folder
from auxseg.scoring import case_scores, surfaces

SIZE = (96, 96)
WINDOW_HU = (-1000.0, 400.0)


def make_reference(seed, size=SIZE):
    """Returns uint8 [H, W]: two lungs (the right one at the image's left), a nodule in two of three."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size) / np.reshape(size, (2, 1, 1))
    mask = np.zeros(size, np.uint8)
    for name, center in (("right_lung", 0.29), ("left_lung", 0.71)):
        y, x, tall, wide = (
            0.5 + rng.normal(0, 0.02),
            center + rng.normal(0, 0.01),
            rng.uniform(0.26, 0.34),
            0.15,
        )
        mask[((rows - y) / tall) ** 2 + ((columns - x) / wide) ** 2 < 1] = CLASS_NAMES.index(name)
    if seed % 3:
        y, x, radius = rng.uniform(0.4, 0.6), rng.choice([0.29, 0.71]), rng.uniform(0.025, 0.05)
        mask[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = CLASS_NAMES.index("nodule")
    return mask


def make_image(mask, seed):
    """Returns int16 [H, W] in HU: air in the lungs, soft tissue elsewhere, noise."""
    hu = np.array([40, -850, -850, 30])[mask]
    return (hu + np.random.default_rng(seed).normal(0, 20, mask.shape)).astype(np.int16)


def predict_well(mask, seed):
    """Returns the reference with noise along the contours: what a good network gives."""
    rng = np.random.default_rng(1000 + seed)
    prediction = mask.copy()
    for index in range(1, len(CLASS_NAMES)):
        edge = surfaces.contour(mask == index)
        prediction[edge & (rng.random(mask.shape) < 0.25)] = 0
    return prediction


def make_probabilities(prediction):
    """Returns float32 [H, W, C]: 0.91 for the predicted class."""
    return (np.eye(len(CLASS_NAMES), dtype=np.float32)[prediction] * 0.88 + 0.03).astype(np.float32)


def make_evaluation(
    change=lambda prediction, seed: prediction, *, num_cases=18, spacing=(0.9, 1.1), probabilities=True
):
    """Returns case_scores.Evaluation and {case_id: (image, reference, prediction)}, the predictions changed."""
    cases, pixels = [], {}
    for seed in range(num_cases):
        reference = make_reference(seed)
        prediction = change(predict_well(reference, seed), seed)
        case_id = f"case_{seed:03d}"
        pixels[case_id] = (make_image(reference, seed), reference, prediction)
        cases.append(
            case_scores.score_case(
                prediction=prediction,
                reference=reference,
                spacing_yx_mm=spacing,
                probabilities=make_probabilities(prediction) if probabilities else None,
                identity={"case_id": case_id, "patient": f"patient_{seed // 2}"},
            )
        )
    return case_scores.collect(cases), pixels


def make_cases(evaluation, pixels):
    """Returns the viewer.CaseImage of the cases that a report would choose."""
    rows = {row["case_id"]: row for row in evaluation.rows}
    return tuple(
        viewer.CaseImage(case_id, reasons, *pixels[case_id], WINDOW_HU, rows[case_id])
        for case_id, reasons in viewer.choose_cases(evaluation).items()
    )


def make_epochs(count=7):
    """Returns rows as `metrics.jsonl` holds them."""
    rows = []
    for epoch in range(1, count + 1):
        part = {"loss": 1.5 / epoch, "accuracy": 1 - 0.1 / epoch, "pooled_dsc": 1 - 0.1 / epoch}
        dice = {
            "background": 0.99,
            "left_lung": 1 - 0.3 / epoch,
            "right_lung": 1 - 0.28 / epoch,
            "nodule": None,
        }
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": 1e-3 if epoch < 5 else 5e-4,
                "train": part | {"dice": dice},
                "val": part | {"dice": dice | {"nodule": 0.8 - 0.7 / epoch}},
                "seconds": 3.0,
                "peak_memory_mb": 900.0 + epoch,
                "memory_of": "process",
            }
        )
    return rows


def write_workdir(folder, *, name="phantom", seed=1, **settings):
    """Writes the records of a made-up run into a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "seed": seed,
        "data": {"name": name, "size": [96, 96], "window_hu": list(WINDOW_HU), "split_seed": 1},
        "model": {"base_width": 8, "se": True},
        "train": {"order_seed": seed},
    } | settings
    splits = {
        "train": [f"train_{i}" for i in range(40)],
        "val": ["val_0"],
        "test": [f"case_{i:03d}" for i in range(18)],
    }
    versions = {"python": "3.11", "packages": {"auxseg": "0.1", "jax": "0.10.2"}, "devices": ["cpu"]}
    summary = {
        "epochs": 7,
        "best_epoch": 7,
        "seconds": 21.0,
        "dataset": f"{name}/test",
        "notes": ["a note with <b>"],
    }
    for file, value in (
        ("config", config),
        ("splits", splits),
        ("versions", versions),
        ("summary", summary),
    ):
        (folder / f"{file}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_epochs()))
    return folder


def make_report(folder, change=lambda prediction, seed: prediction, *, name="phantom", **settings):
    """Returns a Report of a made-up run in `folder` with changed predictions."""
    evaluation, pixels = make_evaluation(change, **settings)
    return Report(
        run=run_folder.read_records(write_workdir(folder, name=name)),
        split="test",
        resolution="96 x 96 pixels, as the network sees",
        evaluation=evaluation,
        cases=make_cases(evaluation, pixels),
        facts={"parameters": "1,234", "time": "21 s"},
    )


def shift_by_three(prediction, seed):
    """A fault: all predictions lie 3 px down and to the right."""
    return np.roll(prediction, (3, 3), (0, 1))


def swap_sides(prediction, seed):
    """A fault: left and right lung are each other's."""
    return np.array([0, 2, 1, 3], np.uint8)[prediction]


def lose_a_lung(prediction, seed):
    """A fault: there is no right lung."""
    return np.where(prediction == 2, 0, prediction).astype(np.uint8)


FAULTS = {"shift": shift_by_three, "swap": swap_sides, "lost": lose_a_lung}
