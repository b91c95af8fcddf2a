"""The tables of a report as lists of rows, and how they are written as CSV and JSON.

A table is a list of mappings with the same keys; NaN and None mean that there is no value: an empty cell, a
null.
"""

from __future__ import annotations

import math

import numpy as np

from auxseg.base.classes import ByClass
from auxseg.scoring import calibration, case_scores, matching, statistics

OVERLAP = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
}
SURFACE = {
    "hd95": "HD95",
    "assd": "ASSD",
    "surface_dice_1": "Surface Dice at 1",
    "surface_dice_2": "Surface Dice at 2",
}


TITLES = ByClass(lambda name: name.replace("_", " ").capitalize())
MARKERS = ByClass(lambda name: "D", left_lung="o", right_lung="s", nodule="^")


def column(evaluation, name):
    """Returns float64 [N], one score of all cases; NaN where a case has none, as of a class that is not there."""
    return np.array([row.get(name, math.nan) for row in evaluation.rows], np.float64)


def patients(evaluation):
    """Returns str [N], the patient of each case; the case itself where it is not known."""
    return np.array(
        [str(row.get("patient") or row.get("case_id", i)) for i, row in enumerate(evaluation.rows)]
    )


def has_intervals(evaluation):
    """Returns whether an interval can be given: the cases of one patient say nothing of others."""
    return len(set(patients(evaluation).tolist())) > 1


def statuses(evaluation, name):
    """Returns str [N], the status of a class in each case, see `scores`."""
    return np.array([row[f"{name}_status"] for row in evaluation.rows])


def is_told(evaluation, name):
    """Returns bool [N], whether the labels of a case tell the class from the others; background from all of them."""
    names = evaluation.foreground if name == evaluation.classes[0] else (name,)
    return np.all([statuses(evaluation, each) != "unknown" for each in names], axis=0)


def score_table(evaluation):
    """Returns one row for each class and score: mean with its interval by patient, spread and counts.

    `cases` went into the mean, `missed` of them with the worst value; `false_positive_cases` did not.
    `mean_of_found` is over the cases of the class that were not missed: it says how well what was found
    was outlined, and is no score of a method.
    """
    owners = patients(evaluation)
    return [
        _score_row(evaluation, owners, name, key, title, unit)
        for name in evaluation.foreground
        for key, title, unit in score_columns(evaluation)
    ]


def score_columns(evaluation):
    """Returns (column, title, unit) of the scores; distances in px only where a spacing is unknown."""
    known = ~np.isnan(column(evaluation, "spacing_y_mm"))
    units = (["mm"] if known.any() else []) + (["px"] if not known.all() else [])
    found = [(key, title, "") for key, title in OVERLAP.items()]
    for unit in units:
        for key, title in SURFACE.items():
            is_ratio = key.startswith("surface_dice")
            found.append(
                (
                    f"{key}{unit}" if is_ratio else f"{key}_{unit}",
                    f"{title} {unit}",
                    "" if is_ratio else unit,
                )
            )
    return [*found, ("area_error_relative", "Relative area error", "")]


def _score_row(evaluation, owners, name, key, title, unit):
    values = column(evaluation, f"{name}_{key}")
    interval = statistics.bootstrap_mean(values, owners)
    there = values[~np.isnan(values)]
    status = statuses(evaluation, name)
    return {
        "class": name,
        "score": title,
        "column": f"{name}_{key}",
        "unit": unit,
        "mean": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "sd": float(np.std(there, ddof=1)) if len(there) > 1 else math.nan,
        "median": float(np.median(there)) if len(there) else math.nan,
        "mean_of_found": _mean(values[status == "scored"]),
        "worst": _worst(there, key),
        "cases": interval.num_cases,
        "patients": interval.num_patients,
        "missed": int(np.sum(status == "missed")),
        "false_positive_cases": int(np.sum(status == "false_positive")),
    }


def _mean(values):
    return float(values.mean()) if len(values) else math.nan


def _worst(values, key):
    if not len(values):
        return math.nan
    if key == "area_error_relative":
        return float(values[np.argmax(np.abs(values))])
    return float(values.max() if key.startswith(("hd95", "assd")) else values.min())


def find_score(table, name, title):
    """Returns the row of a class and score of `score_table`."""
    return next(row for row in table if row["class"] == name and row["score"] == title)


def confusion(evaluation):
    """Returns int64 [C, C], pixels of all cases by reference class and predicted class."""
    return np.array(
        [
            [int(column(evaluation, f"pixels_{true}_as_{given}").sum()) for given in evaluation.classes]
            for true in evaluation.classes
        ]
    )


def pooled_table(evaluation):
    """Returns the scores over the pixels of all cases, named as such, with intervals by patient.

    The paper's DSC and accuracy come first; for hard masks both are the part of the pixels that is right.
    """
    owners = patients(evaluation)
    counts = np.array(
        [
            [[row[f"pixels_{t}_as_{g}"] for g in evaluation.classes] for t in evaluation.classes]
            for row in evaluation.rows
        ],
        np.float64,
    )
    right = np.trace(counts, axis1=1, axis2=2)
    total = counts.sum((1, 2))
    table = [
        _pooled_row("pooled DSC (paper)", "all classes with background", 2 * right, 2 * total, owners),
        _pooled_row("pooled accuracy (paper)", "all classes with background", right, total, owners),
    ]
    for index, name in enumerate(evaluation.classes):
        both = counts[:, index].sum(-1) + counts[:, :, index].sum(-1)
        told = is_told(evaluation, name)
        table.append(
            _pooled_row("pooled Dice", name, 2 * told * counts[:, index, index], told * both, owners)
        )
    return table


def _pooled_row(title, over, above, below, owners):
    interval = statistics.bootstrap_ratio(above, below, owners)
    return {
        "score": title,
        "over": over,
        "value": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "cases": interval.num_cases,
        "patients": interval.num_patients,
    }


def object_table(evaluation):
    """Returns the nodules as objects by size and in all: counts, and rates with intervals by patient."""
    kinds = [name for name in matching.STRATA if any(item["stratum"] == name for item in evaluation.objects)]
    return [_object_row(evaluation, name) for name in [*kinds, "all"]]


def _object_row(evaluation, name):
    chosen = [item for item in evaluation.objects if name in ("all", item["stratum"])]
    found = [item for item in chosen if item["kind"] == "found"]
    missed = sum(item["kind"] == "missed" for item in chosen)
    false = [item for item in chosen if item["kind"] == "false"]
    sensitivity = _object_rate(evaluation, [i for i in chosen if i["kind"] != "false"], "found")
    per_slice = _false_per_slice(evaluation, false)
    total = len(found) + missed
    return {
        "size": name,
        "nodules": total,
        "found": len(found),
        "missed": missed,
        "false": len(false),
        "sensitivity": sensitivity.estimate,
        "sensitivity_low": sensitivity.low,
        "sensitivity_high": sensitivity.high,
        "precision": len(found) / (len(found) + len(false)) if found or false else math.nan,
        "f1": 2 * len(found) / (2 * len(found) + missed + len(false)) if chosen else math.nan,
        "false_per_slice": per_slice.estimate,
        "false_per_slice_low": per_slice.low,
        "false_per_slice_high": per_slice.high,
        "mean_iou_of_found": float(np.mean([i["iou"] for i in found])) if found else math.nan,
        "slices": len(evaluation.rows),
    }


def _object_rate(evaluation, items, kind):
    owners = [str(item.get("patient") or item.get("case_id", i)) for i, item in enumerate(items)]
    return statistics.bootstrap_ratio([item["kind"] == kind for item in items], np.ones(len(items)), owners)


def _false_per_slice(evaluation, items):
    names = [row.get("case_id", i) for i, row in enumerate(evaluation.rows)]
    counts = dict.fromkeys(names, 0)
    for item in items:
        counts[item["case_id"]] += 1
    return statistics.bootstrap_ratio(list(counts.values()), np.ones(len(counts)), patients(evaluation))


def agreement_table(evaluation):
    """Returns Bland-Altman and Pearson's R of areas, by class, in px and (where the spacing is known) mm2."""
    table = []
    for name in evaluation.foreground:
        for unit in ("px", "mm2"):
            reference, predicted = area_pairs(evaluation, name, unit)
            if len(reference):
                table.append(_agreement_row(name, unit, reference, predicted, has_intervals(evaluation)))
    return table


def area_pairs(evaluation, name, unit):
    """Returns reference and predicted areas, float64 [n] each, of the cases whose reference has the class."""
    reference = column(evaluation, f"{name}_reference_{unit}")
    there = (column(evaluation, f"{name}_reference_px") > 0) & ~np.isnan(reference)
    return reference[there], column(evaluation, f"{name}_predicted_{unit}")[there]


def _agreement_row(name, unit, reference, predicted, intervals):
    agreement = statistics.bland_altman(predicted - reference, intervals=intervals)
    r = statistics.correlation(reference, predicted, intervals=intervals)
    row = {"class": name, "unit": unit, "cases": agreement.num_cases}
    for key in ("bias", "lower_limit", "upper_limit"):
        low, high = getattr(agreement, {"bias": "bias_interval"}.get(key, key.replace("limit", "interval")))
        row |= {key: getattr(agreement, key), f"{key}_low": low, f"{key}_high": high}
    return row | {
        "sd": agreement.sd,
        "pearson_r": r.estimate,
        "pearson_r_low": r.low,
        "pearson_r_high": r.high,
    }


def dice_pairs(evaluation):
    """Returns mean lung Dice and nodule Dice, float64 [n] each, of the cases that have both (Fig 11)."""
    lungs = np.stack([column(evaluation, f"{name}_dice") for name in case_scores.LUNGS])
    there = ~np.isnan(lungs)
    mean = np.where(there, lungs, 0).sum(0) / np.maximum(there.sum(0), 1)
    nodules = column(evaluation, "nodule_dice")
    both = there.any(0) & ~np.isnan(nodules)
    return mean[both], nodules[both]


def calibration_table(evaluation):
    """Returns the calibration errors by class and of the predicted class; [] without probabilities."""
    if evaluation.calibration is None:
        return []
    names = [*evaluation.classes, "predicted class"]
    return [
        {
            "class": name,
            "expected_calibration_error": calibration.calibration_error(bins),
            "without_the_lowest_bin": calibration.calibration_error(bins, skip_lowest=True),
            "pixels": int(bins[:, 0].sum()),
            "pixels_above_the_lowest_bin": int(bins[1:, 0].sum()),
        }
        for name, bins in zip(names, evaluation.calibration, strict=True)
    ]
