"""What a reader must not overlook: automatic checks of an evaluation, each a plain sentence with its numbers.

A mean hides a fault: with left and right swapped the pooled DSC is still high. Each check looks for one
fault that has been seen in practice and says what it saw; a check that finds nothing says that too.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.report import tables
from auxseg.runs import run_folder
from auxseg.scoring import calibration, case_scores, statistics

FAULT, CAUTION, NOTE, PASSED = "fault", "caution", "note", "passed"
LEVELS = (FAULT, CAUTION, NOTE, PASSED)
SWAPPED_SHARE = 0.5
"""Of a case's lung pixels on the wrong side: above it, its sides are swapped."""
FOUND_SHARE = 0.2
"""Of a case's lung pixels that are predicted as lung: below it, its sides cannot be told."""
CONFUSED_SHARE = 0.01
"""Of all lung pixels on the wrong side: above it the sides are confused."""
SHIFT_PX = 0.75
"""A systematic shift of a whole pixel shows; centroids of good predictions differ by a few tenths."""
SHIFT_GAIN = 0.001
"""Of lung Dice, gained by moving the prediction back: else a difference of shape, not a shift."""
AREA_SHARE = 0.1
"""Of the area: beyond it a class is systematically too large or too small."""
HIDDEN_DICE = 0.5
LOST_DICE = 0.05
"""Mean Dice of nodules: below it they are not segmented at all, wherever the predicted pixels lie."""
DOUBTFUL_NODULE_DICE = 0.9
"""Two radiologists agree to 0.82 on the largest slice of a nodule (experiments/results/readers.json)."""
FEW = 10
"""Patients; an interval from fewer is too narrow."""
CALIBRATION_LIMIT = 0.05


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One check's result.

    Attributes:
        level: 'fault', 'caution', 'note' or 'passed'.
        title: a few words.
        text: a plain sentence or two, with numbers.
        section: anchor in the page that shows more.
    """

    level: str
    title: str
    text: str
    section: str


def find_all(evaluation, *, split="test", splits=None, finished=True, num_steps=None):
    """Returns the Findings of all checks, gravest first.

    Args:
        evaluation: case_scores.Evaluation.
        split: its name; 'val' chose the weights, 'train' taught them.
        splits: {name: case ids} of the run, or None: not checked.
        finished: whether training ended by itself.
        num_steps: of training, or None: not known.
    """
    found = [check_trained(num_steps), check_sides(evaluation), check_shift(evaluation)]
    found += [check_missed(evaluation, name) for name in evaluation.foreground]
    found += [check_area(evaluation, name) for name in evaluation.foreground]
    found += [check_false_positives(evaluation, name) for name in evaluation.foreground]
    found += [check_pooled(evaluation), check_doubtful(evaluation), check_calibration(evaluation)]
    found += [
        check_numbers(evaluation),
        check_spacing(evaluation),
        check_split(split),
        check_overlap(splits),
    ]
    found.append(check_finished(finished))
    return sorted((each for each in found if each), key=lambda each: LEVELS.index(each.level))


def check_trained(num_steps):
    """Returns a fault for a run that was over before it had learned anything, as that of smoke.py; else None."""
    if num_steps is None or num_steps >= run_folder.FEW_STEPS:
        return None
    return CheckResult(
        FAULT,
        "These scores mean nothing",
        f"Training was {count_of(num_steps, 'step')}, which shows that everything works and teaches no network.",
        "training",
    )


def check_sides(evaluation):
    """Returns whether lung pixels are given to the other lung; None where lungs were hardly found."""
    left, right = case_scores.LUNGS
    sizes = [tables.column(evaluation, f"{name}_reference_px") for name in case_scores.LUNGS]
    both = (sizes[0] > 0) & (sizes[1] > 0)
    if not both.any():
        return None
    wrong = sum(tables.column(evaluation, f"pixels_{a}_as_{b}") for a, b in ((left, right), (right, left)))
    lungs = wrong + sum(tables.column(evaluation, f"pixels_{a}_as_{a}") for a in case_scores.LUNGS)
    told = both & (lungs > FOUND_SHARE * sum(sizes))
    if not told.any():
        return None
    share = wrong / np.maximum(lungs, 1)
    swapped, pooled = int(np.sum(share[told] > SWAPPED_SHARE)), wrong[told].sum() / lungs[told].sum()
    text = f"{pooled:.1%} of the lung pixels that were found lie in the other lung."
    if swapped:
        every = "; the labels or the orientation are flipped" if swapped > 0.8 * told.sum() else ""
        return CheckResult(
            FAULT,
            "Left and right are swapped",
            f"In {swapped} of {told.sum()} cases with both lungs{every}. {text}",
            "confusion",
        )
    if pooled > CONFUSED_SHARE:
        return CheckResult(CAUTION, "Left and right are confused", text, "confusion")
    return CheckResult(PASSED, "Left and right", text, "confusion")


def check_shift(evaluation):
    """Returns whether all predictions lie to one side of the reference; None where no lung was found."""
    shifts = np.stack([tables.column(evaluation, f"shift_{axis}_px") for axis in "yx"], axis=-1)
    there = ~np.isnan(shifts).any(-1)
    if not there.any():
        return None
    center = np.median(shifts[there], axis=0)
    length = float(np.hypot(*center))
    alike = float(np.mean(np.hypot(*(shifts[there] - center).T) < max(1.0, length / 2)))
    before = tables.column(evaluation, "lungs_dice")[there].mean()
    after = tables.column(evaluation, "lungs_dice_moved_back")[there].mean()
    where = (
        f"{abs(center[0]):.1f} px {'down' if center[0] > 0 else 'up'} and {abs(center[1]):.1f} px to the "
        + ("right" if center[1] > 0 else "left")
    )
    if length >= SHIFT_PX and alike >= 0.7 and after - before > SHIFT_GAIN:
        return CheckResult(
            FAULT,
            "Predictions are shifted",
            f"The predicted lungs lie {where} of the reference in the image, alike in {alike:.0%} of "
            f"{there.sum()} cases. Moved back, lung Dice rises from {before:.3f} to {after:.3f}: look for "
            "an offset in a crop, a resize or a flip.",
            "confusion",
        )
    return CheckResult(
        PASSED,
        "Shift",
        f"Median offset of the lungs: {length:.2f} px, over {there.sum()} cases.",
        "confusion",
    )


def check_missed(evaluation, name):
    """Returns how often a class was missed altogether; None where no reference has it."""
    status = tables.statuses(evaluation, name)
    present, missed = int(np.isin(status, ("scored", "missed")).sum()), int(np.sum(status == "missed"))
    title = tables.TITLES[name]
    if not present:
        return CheckResult(
            NOTE, f"{title}: no case has it", "Nothing can be said about this class here.", "scores"
        )
    if missed == present:
        return CheckResult(
            FAULT,
            f"{title} is never found",
            f"No prediction holds one pixel of it, in {count_of(present, 'case')} that should.",
            "scores",
        )
    mean = float(np.nanmean(tables.column(evaluation, f"{name}_dice")))
    if mean < LOST_DICE and name not in case_scores.LUNGS:  # lungs have checks of their sides and place
        return CheckResult(
            FAULT,
            f"{title} is not found",
            f"Mean Dice {mean:.3f} in {count_of(present, 'case')} that should have it: {missed} without a "
            f"pixel of it, the others beside it.",
            "scores",
        )
    if missed:
        level = FAULT if name in case_scores.LUNGS else CAUTION
        return CheckResult(
            level,
            f"{title} is lost in {missed} of {count_of(present, 'case')}",
            "They count with the worst value in every mean.",
            "scores",
        )
    return CheckResult(
        PASSED, f"{title} found", f"In {count_of(present, 'case')} that should have it.", "scores"
    )


def count_of(number, noun):
    """Returns '1 case', '2 cases'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_area(evaluation, name):
    """Returns whether a class is systematically too large or too small; None with fewer than 5 cases."""
    values = tables.column(evaluation, f"{name}_area_error_relative")
    if np.sum(~np.isnan(values)) < 5 or (tables.statuses(evaluation, name) == "missed").all():
        return None
    interval = statistics.bootstrap_mean(values, tables.patients(evaluation))
    ends = "" if np.isnan(interval.low) else f" [{interval.low:+.1%}, {interval.high:+.1%}]"
    text = f"Mean relative area error {interval.estimate:+.1%}{ends}."
    title = tables.TITLES[name]
    if abs(interval.estimate) > AREA_SHARE and (interval.low > 0 or interval.high < 0):
        size = "large" if interval.estimate > 0 else "small"
        return CheckResult(CAUTION, f"{title} comes out too {size}", text, "agreement")
    return CheckResult(PASSED, f"{title} area", text, "agreement")


def check_false_positives(evaluation, name):
    """Returns how often a class is predicted where there is none; None where every reference has it."""
    status = tables.statuses(evaluation, name)
    without, false = (
        int(np.isin(status, ("absent", "false_positive")).sum()),
        int(np.sum(status == "false_positive")),
    )
    if not without:
        return None
    text = f"Predicted in {false} of {count_of(without, 'case')} without it; such cases are in no mean."
    return CheckResult(
        CAUTION if false else PASSED, f"{tables.TITLES[name]}: false-positive cases", text, "scores"
    )


def check_pooled(evaluation):
    """Returns a caution where a high pooled DSC stands beside a class that is not segmented."""
    pooled = tables.pooled_table(evaluation)[0]["value"]
    means = {
        name: statistics.bootstrap_mean(
            tables.column(evaluation, f"{name}_dice"), tables.patients(evaluation)
        )
        for name in evaluation.foreground
    }
    low = {name: each.estimate for name, each in means.items() if each.estimate < HIDDEN_DICE}
    if pooled < 0.95 or not low:
        return None
    named = ", ".join(f"{tables.TITLES[name].lower()} {value:.2f}" for name, value in low.items())
    return CheckResult(
        CAUTION,
        "The pooled DSC hides a class",
        f"Pooled DSC (paper) {pooled:.3f} beside a mean Dice of {named}. Quote the classes.",
        "scores",
    )


def check_doubtful(evaluation):
    """Returns a caution where nodules score above what two radiologists agree to; None otherwise."""
    values = tables.column(evaluation, "nodule_dice")
    values = values[~np.isnan(values)]
    if len(values) < 5 or values.mean() <= DOUBTFUL_NODULE_DICE:
        return None
    return CheckResult(
        CAUTION,
        "Nodule Dice is above radiologists' agreement",
        f"{values.mean():.3f} over {len(values)} cases; two radiologists agree to 0.82 on one slice. Doubt "
        "it: synthetic data, leaked cases, or another structure taken for nodules?",
        "scores",
    )


def check_calibration(evaluation):
    """Returns whether confidence can be trusted; None without probabilities."""
    if evaluation.calibration is None:
        return None
    error = calibration.calibration_error(evaluation.calibration[-1])
    text = (
        f"Expected calibration error of the predicted class: {error:.3f} (all pixels, background included)."
    )
    if error > CALIBRATION_LIMIT:
        return CheckResult(CAUTION, "Probabilities are off", text, "calibration")
    return CheckResult(PASSED, "Calibration", text, "calibration")


def check_numbers(evaluation):
    """Returns a note where a mean rests on few patients."""
    owners = tables.patients(evaluation)
    counts = {
        name: len(set(owners[~np.isnan(tables.column(evaluation, f"{name}_dice"))]))
        for name in evaluation.foreground
    }
    few = [f"{tables.TITLES[name].lower()} {count}" for name, count in counts.items() if 0 < count < FEW]
    if not few:
        return None
    return CheckResult(
        NOTE,
        "Few patients",
        f"By class: {', '.join(few)}. Intervals from so few are too narrow, and one patient has none.",
        "scores",
    )


def check_spacing(evaluation):
    """Returns a note where cases have no spacing; None where all have one."""
    unknown = int(np.isnan(tables.column(evaluation, "spacing_y_mm")).sum())
    if not unknown:
        return None
    return CheckResult(
        NOTE,
        "Pixel size unknown",
        f"In {unknown} of {len(evaluation.rows)} cases: their distances are in pixels, in other rows.",
        "scores",
    )


def check_split(split):
    """Returns a caution for a split that had a part in training; None for a test split."""
    why = {
        "val": "These cases chose the weights and the learning rate",
        "train": "The network was trained on these cases",
    }
    if split not in why:
        return None
    return CheckResult(
        CAUTION, f"Scored on the {split} split", f"{why[split]}: the scores are optimistic.", "run"
    )


def check_overlap(splits):
    """Returns whether a case is in two splits; None where the splits are not known."""
    if not splits:
        return None
    names = list(splits)
    shared = {(a, b): set(splits[a]) & set(splits[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    bad = [f"{len(cases)} in {a} and {b}" for (a, b), cases in shared.items() if cases]
    if bad:
        return CheckResult(
            FAULT, "Cases are in two splits", f"{'; '.join(bad)}: the scores are worthless.", "run"
        )
    return CheckResult(PASSED, "Splits", "No case is in two of them.", "run")


def check_finished(finished):
    """Returns a note where training has not ended; None where it has."""
    text = "There is no summary.json: training goes on, or was stopped. These are the best weights so far."
    return None if finished else CheckResult(NOTE, "The run has not ended", text, "training")
