"""What each part of a recipe brings: a config, and the same config without each of the parts that it adds to the paper's.

    python -m experiments.studies.parts --config=FILE --data=npz --data_dir=FOLDER --seeds=1,2,3,4,5 --folds=0,1,2,3,4 --paired

A part is a setting of `GROUPS` that the config changes in `configs/base.py`; without it the setting is the paper's
again. `none` is the config without all of them. What says how long and how much is trained is no part (`KEPT`). The
study's folder has the same files as that of `experiments.studies.ablations`.
"""

from __future__ import annotations

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from configs import base
from experiments.studies import effects, runner
from experiments.studies.arms_study import ArmsStudy

GROUPS = ("loss", "insert", "augment", "optim", "train")
SWITCHES = ("insert", "augment")
"""Groups of which a part is whether they are on, and not how."""
KEPT = (
    *run_folder.FREE_SETTINGS,
    "train.batch_size",
    "train.accumulate_steps",
    "train.num_epochs",
    "train.order_seed",
    "train.deterministic",
    "optim.stop_patience_epochs",
)
START = ("train.init_from", "train.freeze")
"""One part: without a start there is nothing to freeze."""
WHOLE, NONE = "whole", "none"


def list_parts(config):
    """Returns {setting: its value in `configs/base.py`} of what a config adds to the paper's recipe."""
    given, paper = (
        run_folder.flatten(run_folder.config_to_dict(each)) for each in (config, base.get_config())
    )
    parts = {}
    for name, value in paper.items():
        group, _, setting = name.partition(".")
        counts = group in GROUPS and name not in KEPT and (group not in SWITCHES or setting == "enabled")
        if counts and given[name] != value:
            parts[name] = tuple(value) if isinstance(value, list) else value
    return parts


def create_arms(config):
    """Returns {arm: changes}: the whole recipe, without each part, and without all of several.

    Raises:
        InputError: the config has no part.
    """
    parts = list_parts(config)
    if not parts:
        raise InputError(f"--config: it adds nothing to the paper's recipe in {', '.join(GROUPS)}")
    start = {name: parts[name] for name in START if name in parts}
    arms = {WHOLE: {}} | {f"no_{name}": {name: value} for name, value in parts.items() if name not in start}
    if start:
        arms[f"no_{next(iter(start))}"] = start
    return arms | ({NONE: parts} if len(arms) > 2 else {})


def create_titles(arms, config):
    """Returns {arm: words}."""
    given = run_folder.flatten(run_folder.config_to_dict(config))
    titles = {WHOLE: "the whole recipe", NONE: "none of these parts"}
    for arm, changes in arms.items():
        if arm not in titles:
            name, value = next(iter(changes.items()))
            titles[arm] = f"{name}={_word(value)}, not {_word(given[name])}"
    return {arm: titles[arm] for arm in arms}


def _word(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def create_effects(titles):
    """Returns the Effects of the study: the whole recipe against it without each part, and without all."""
    whole = titles[WHOLE]
    return [
        effects.Effect(arm, f"whole against {title}", {whole: 1, title: -1})
        for arm, title in titles.items()
        if arm != WHOLE
    ]


STUDY = ArmsStudy("Parts of a recipe", create_arms, create_titles, create_effects, reference=WHOLE)


if __name__ == "__main__":
    runner.define_flags(out="runs/parts")
    flags.adopt_module_key_flags(runner)
    command.run(runner.main_of(STUDY.run))
