"""The losses that the paper tried, and near relatives, under one protocol.

    python -m experiments.studies.losses --data=phantom --seeds=1,2,3 --folds=0,1,2,3,4
    python -m experiments.studies.losses --data=luna16 --data_dir=LUNA16 --dry_run

The paper trains with Dice + cross-entropy and says that IoU, hybrid, weighted and Tversky losses were worse; it
defines none of them. Here each is what `auxseg.training.losses` documents; the weighted cross-entropy counts a nodule's
pixels thirtyfold (as configs/phantom.py does), and so does the weighted form of the paper's loss. Everything but
the loss is the same, the auxiliary term included; each run stops by its own validation loss, and all are
compared on Dice. The study's folder has the same files as that of `experiments.studies.ablations`.
"""

from __future__ import annotations

from absl import flags

from auxseg.base import command
from auxseg.base.classes import classes_of
from experiments.studies import effects, runner
from experiments.studies.arms_study import ArmsStudy

ONES, RARE = 1.0, 30.0
TITLES = {
    "dice_ce": "Dice + cross-entropy",
    "dice_ce_weighted": "Dice + cross-entropy, nodules weighted",
    "ce": "cross-entropy",
    "weighted_ce": "cross-entropy, nodules weighted",
    "dice": "Dice",
    "iou": "IoU",
    "tversky": "Tversky",
    "focal_tversky": "focal Tversky",
    "hybrid": "hybrid: focal cross-entropy + IoU",
}
"""The first is the paper's, with which all others are compared."""


def create_arms(classes):
    """Returns {arm: changes}: a loss by name, with its weights of the pixels by class; the nodule is the last."""
    arms = {
        name: {"loss.name": name.removesuffix("_weighted"), "loss.class_weights": (ONES,)} for name in TITLES
    }
    for name in ("dice_ce_weighted", "weighted_ce"):
        arms[name]["loss.class_weights"] = (ONES,) * (len(classes) - 1) + (RARE,)
    return arms


def create_effects(titles):
    """Returns the Effects of the study: each loss against the paper's."""
    first, *others = titles
    return [
        effects.Effect(arm, f"{titles[arm]} against {titles[first]}", {titles[arm]: 1, titles[first]: -1})
        for arm in others
    ]


STUDY = ArmsStudy(
    "Losses",
    lambda config: create_arms(classes_of(config.data)),
    lambda arms, config: {arm: TITLES[arm] for arm in arms},
    create_effects,
)


if __name__ == "__main__":
    runner.define_flags(out="runs/losses")
    flags.adopt_module_key_flags(runner)
    command.run(runner.main_of(STUDY.run))
