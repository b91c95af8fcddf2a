"""The ablations: squeeze-and-excitation x auxiliary head, with controls, over seeds and patient-wise folds.

    python -m experiments.studies.ablations --data=phantom --seeds=1,2,3,4,5 --folds=0,1,2,3,4
    python -m experiments.studies.ablations --data=npz --data_dir=FOLDER [--base_width=8] [--size=96] [--epochs=6]
    python -m experiments.studies.ablations --data=luna16 --data_dir=LUNA16 --dry_run

Arms: the four of the factorial; the network without both at the width that has as many parameters (67 for the
paper's 64), which separates SE and head from mere size; placebos with and without SE, the head trained on labels that
were exchanged among the cases, which separate what the labels say from one more loss; other weights of that loss.
The study's folder (--out) receives `compare/index.html`, `effects.csv`, `cases.csv` (every case of every
run) and `summary.md`. A study that was stopped goes on with the same command.
"""

from __future__ import annotations

import jax
import numpy as np
from absl import flags

from auxseg.base import command
from auxseg.runs import state
from auxseg.training import setup
from experiments.studies import effects, runner
from experiments.studies.arms_study import ArmsStudy

FACTORIAL = {
    "se_aux": {},
    "no_se": {"model.se": False},
    "no_aux": {"model.aux": False},
    "plain": {"model.se": False, "model.aux": False},
}
AUX_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
TITLES = {
    "se_aux": "SE + auxiliary head",
    "no_se": "auxiliary head alone",
    "no_aux": "SE alone",
    "plain": "neither",
    "placebo": "SE + head on shuffled labels",
    "placebo_no_se": "head alone, on shuffled labels",
}


def count_parameters(config):
    """Returns how many parameters and statistics the network of a config has; nothing is computed."""
    shapes = jax.eval_shape(lambda: setup.create_initial_state(config))
    return state.count_values(shapes.variables)


def find_matched_width(config):
    """Returns the base width at which the network without SE and head is nearest in size to the whole one.

    At the paper's width of 64 that is 67: 6,578,140 against 6,577,217.
    """
    widths = config.model.base_width * np.arange(1, 4)
    plain = [
        count_parameters(runner.override(config, {**FACTORIAL["plain"], "model.base_width": int(width)}))
        for width in widths
    ]
    # Every layer's channels are multiples of the width: the count is a polynomial of degree 2 in it.
    polynomial = np.polynomial.Polynomial.fit(widths, plain, 2)
    candidates = np.arange(widths[0], widths[1] + 1)
    return int(candidates[np.argmin(np.abs(polynomial(candidates) - count_parameters(config)))])


def create_arms(config):
    """Returns {arm: changes} of the study for the settings that all runs share."""
    matched = {**FACTORIAL["plain"], "model.base_width": find_matched_width(config)}
    weights = {
        f"aux_weight_{weight:g}": {"loss.aux_weight": weight}
        for weight in AUX_WEIGHTS
        if weight != config.loss.aux_weight
    }
    placebo = {"loss.shuffle_aux_labels": True}
    placebos = {"placebo": placebo, "placebo_no_se": {**FACTORIAL["no_se"], **placebo}}
    return {**FACTORIAL, "plain_matched": matched, **placebos, **weights}


def create_titles(arms, config):
    """Returns {arm: words}."""
    titles = {}
    for arm, changes in arms.items():
        if arm == "plain_matched":
            titles[arm] = f"neither, as many parameters (width {changes['model.base_width']})"
        elif "loss.aux_weight" in changes:
            titles[arm] = f"auxiliary weight {changes['loss.aux_weight']:g}"
        else:
            titles[arm] = TITLES[arm]
    if "se_aux" in titles:
        titles["se_aux"] += f" (weight {config.loss.aux_weight:g})"
    return titles


def create_effects(titles):
    """Returns the Effects of the study; the weights are by the arms' titles."""

    def effect(key, title, **weights):
        return effects.Effect(key, title, {titles.get(arm, arm): weight for arm, weight in weights.items()})

    found = [
        effect("se", "SE (main effect)", se_aux=0.5, no_aux=0.5, no_se=-0.5, plain=-0.5),
        effect("aux", "auxiliary head (main effect)", se_aux=0.5, no_se=0.5, no_aux=-0.5, plain=-0.5),
        effect("interaction", "SE x auxiliary head (interaction)", se_aux=1, no_aux=-1, no_se=-1, plain=1),
        effect("size", "SE + head against as many parameters", se_aux=1, plain_matched=-1),
        effect("placebo", "true against shuffled labels, with SE", se_aux=1, placebo=-1),
        effect("placebo_no_se", "true against shuffled labels, without SE", no_se=1, placebo_no_se=-1),
    ]
    others = [arm for arm in titles if arm.startswith("aux_weight_")]
    return found + [
        effect(arm, f"{titles[arm]} against the default", **{arm: 1, "se_aux": -1}) for arm in others
    ]


STUDY = ArmsStudy("Ablations", create_arms, create_titles, create_effects)


if __name__ == "__main__":
    runner.define_flags(out="runs/ablations")
    flags.adopt_module_key_flags(runner)
    command.run(runner.main_of(STUDY.run))
