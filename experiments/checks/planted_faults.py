"""Plants faults in a run's predictions and writes the report of each: does the page show them at a glance?

    python -m experiments.checks.planted_faults RUN [--split=test] [--out=runs/planted_faults]

Three faults: everything 3 pixels down and to the right; left and right lung swapped; the right lung lost.
The checks of each page are printed; the command ends with 1 where a fault is not among them.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command
from auxseg.base.classes import CLASS_NAMES
from auxseg.base.errors import InputError
from auxseg.evaluation import evaluate_run, score_cases
from auxseg.report import findings

BACKGROUND, LEFT, RIGHT = (CLASS_NAMES.index(name) for name in ("background", "left_lung", "right_lung"))


def shift(probabilities):
    """Returns [..., H, W, C], 3 pixels down and to the right."""
    return np.roll(probabilities, (3, 3), (-3, -2))


def swap(probabilities):
    """Returns [..., C] with the two lungs in each other's place."""
    order = np.arange(probabilities.shape[-1])
    order[[LEFT, RIGHT]] = RIGHT, LEFT
    return probabilities[..., order]


def lose(probabilities):
    """Returns [..., C] with the right lung taken for background."""
    changed = probabilities.copy()
    changed[..., BACKGROUND] += changed[..., RIGHT]
    changed[..., RIGHT] = 0
    return changed


FAULTS = {
    "shifted": (shift, "Predictions are shifted"),
    "swapped": (swap, "Left and right are swapped"),
    "lost": (lose, "Right lung is never found"),
}


def main(argv):
    """Runs the command; returns the exit status."""
    del argv
    if not flags.FLAGS.run:
        raise InputError("--run: not given, expected the workdir of a run")
    run, out = pathlib.Path(flags.FLAGS.run), pathlib.Path(flags.FLAGS.out)
    subject, split, _ = evaluate_run.open_run(run, flags.FLAGS.split)
    seen = [plant(subject, split, run, out / name, *fault) for name, fault in FAULTS.items()]
    return 0 if all(seen) else 1


def plant(subject, split, workdir, folder, fault, title):
    """Writes the page of a run with a fault; returns whether a check of that title is among its faults.

    Args:
        subject: Subject.
        split: to judge.
        workdir: of the run.
        folder: to write to.
        fault: probabilities [..., H, W, C] -> the same shape.
        title: of the check that is expected.
    """
    faulty = dataclasses.replace(
        subject, predict_fn=lambda batch: fault(np.asarray(subject.predict_fn(batch)))
    )
    judgement = score_cases.judge_split(faulty, split)
    page = score_cases.write_judgement(workdir, faulty, judgement, folder=folder)
    found = findings.find_all(judgement.evaluation, split=split)
    print(f"{page}: {'; '.join(each.title for each in found if each.level == findings.FAULT)}", flush=True)
    return title in [each.title for each in found if each.level == findings.FAULT]


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "workdir of a run; may be given without --run=")
    flags.DEFINE_string("split", None, "split to judge; default: test, else val")
    flags.DEFINE_string("out", "runs/planted_faults", "folder for the pages, one folder a fault")
    command.run(main, positional=("run",))
