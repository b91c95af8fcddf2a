"""The arms of the study of nodules, each a config."""

from __future__ import annotations

import dataclasses

from configs import base, recommended
from experiments.studies import parts, runner

TITLES = {
    "paper": "the paper's recipe",
    "paper_pretrained": "the paper's recipe, started from the phantom",
    "recommended": "recommended",
    "no_pretraining": "recommended, without the phantom, as many epochs as the paper's",
}
"""Of the arms that every recipe has."""


def create_arms(init_from, epochs=None):
    """Returns {arm: changes of configs/recommended.py}: those of `TITLES`, and it without each of its parts.

    Args:
        init_from: workdir or bundle that the arms with pre-training start from.
        epochs: of the paper's recipe; None: the paper's.
    """
    config = recommended.get_config()
    start, own = {"train.init_from": init_from}, parts.list_parts(config)
    paper = own | {"train.num_epochs": epochs or base.get_config().train.num_epochs}
    longer = {"train.num_epochs": paper["train.num_epochs"]}
    if config.optim.cosine_epochs:
        longer["optim.cosine_epochs"] = paper["train.num_epochs"]
    return {
        "paper": paper,
        "recommended": start,
        "paper_pretrained": paper | start,
        "no_pretraining": longer,
        **{f"no_{name}": {**start, name: value} for name, value in own.items()},
    }


def title_of(arm):
    """Returns an arm in words."""
    if arm in TITLES:
        return TITLES[arm]
    config = recommended.get_config()
    return f"recommended, with {parts.create_titles(parts.create_arms(config), config)[arm]}"


def create_config(protocol):
    """Returns the settings that all arms share, locked: configs/recommended.py, cross-validated."""
    config = recommended.get_config()
    with config.unlocked():
        config.eval.tune_nodules = False  # chosen here for every arm, beside the most likely class
    return runner.create_config(dataclasses.replace(protocol, data="npz", config=config))
