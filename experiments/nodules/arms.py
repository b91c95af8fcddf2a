"""The arms of the study of nodules, each a config."""

from __future__ import annotations

import dataclasses

from configs import base, recommended
from experiments.studies import runner

PAPER = {
    name: base.get_config()[name.split(".")[0]][name.split(".")[1]]
    for name in (
        "loss.name", "loss.class_weights", "loss.hard_fraction", "loss.aux_weight", "insert.enabled",
        "augment.enabled", "optim.cosine_epochs", "optim.plateau_patience_epochs", "train.bn_refresh_batches",
    )
} | {"train.num_epochs": base.get_config().train.num_epochs}  # fmt: skip
"""What the recommended recipe changes in loss, data and schedule, as the paper has it."""
TITLES = {
    "paper": "the paper's recipe",
    "paper_pretrained": "the paper's recipe, started from the phantom",
    "recommended": "recommended",
    "no_pretraining": "recommended, without the phantom, as many epochs as the paper's",
    "no_insertion": "recommended, without inserted nodules",
    "no_augmentation": "recommended, without augmentation",
    "paper_loss": "recommended, with the paper's loss",
    "case_dice": "recommended, Dice by case",
    "all_pixels": "recommended, without mining of hard pixels",
    "even_weights": "recommended, all classes weighted alike",
    "tversky": "recommended, Tversky for Dice",
    "focal_tversky": "recommended, focal Tversky for Dice",
    "more_nodules": "recommended, every fourth slice with a real nodule",
    "aux_0.3": "recommended, the paper's weight of the auxiliary loss",
    "no_aux_loss": "recommended, auxiliary head not trained on real slices",
    "other_start": "recommended, from another run on the phantom",
    "no_se": "recommended, without SE, there and on the phantom",
    "no_aux": "recommended, without the auxiliary head, there and on the phantom",
    "size_384": "recommended, 384x384",
    "size_512": "recommended, 512x512",
}
STARTS = {
    "other_start": "--init_from_other",
    "no_se": "--init_from_no_se",
    "no_aux": "--init_from_no_aux",
}
"""The flag of the pre-training of each arm that has its own."""


def create_arms(init_from, epochs=None, starts=None):
    """Returns {arm: changes of configs/recommended.py}; see `TITLES`.

    Args:
        init_from: workdir or bundle that the arms with pre-training start from.
        epochs: of the paper's recipe; None: those of `PAPER`.
        starts: {arm: the same for it} of the arms in `STARTS`.
    """
    start, starts = {"train.init_from": init_from}, starts or {}
    paper = PAPER if epochs is None else {**PAPER, "train.num_epochs": epochs}
    return {
        "paper": paper,
        "recommended": start,
        "paper_pretrained": {**paper, **start},
        "no_pretraining": {
            f"{name}_epochs": paper["train.num_epochs"] for name in ("train.num", "optim.cosine")
        },
        "no_insertion": {**start, "insert.enabled": False},
        "no_augmentation": {**start, "augment.enabled": False},
        "paper_loss": {**start, **{name: value for name, value in PAPER.items() if name.startswith("loss.")}},
        "case_dice": {**start, "loss.name": "dice_ce"},
        "all_pixels": {**start, "loss.hard_fraction": 1.0},
        "even_weights": {**start, "loss.class_weights": (1.0, 1.0, 1.0, 1.0)},
        "tversky": {**start, "loss.name": "tversky_ce"},
        "focal_tversky": {**start, "loss.name": "focal_tversky_ce"},
        "more_nodules": {**start, "train.nodule_fraction": 0.25},
        "aux_0.3": {**start, "loss.aux_weight": 0.3},
        "no_aux_loss": {**start, "loss.aux_weight": 0.0},
        "other_start": {"train.init_from": starts.get("other_start")},
        "no_se": {"train.init_from": starts.get("no_se"), "model.se": False},
        "no_aux": {"train.init_from": starts.get("no_aux"), "model.aux": False},
        "size_384": {**start, "data.size": (384, 384)},
        "size_512": {**start, "data.size": (512, 512)},
    }


def create_config(protocol):
    """Returns the settings that all arms share, locked: configs/recommended.py, cross-validated."""
    config = recommended.get_config()
    with config.unlocked():
        config.eval.tune_nodules = False  # chosen here for every arm, beside the most likely class
    return runner.create_config(dataclasses.replace(protocol, data="npz", config=config))
