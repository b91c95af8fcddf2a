"""The model card: what the network is for, what it was taught with, and what it must not be used for."""

from __future__ import annotations

from auxseg.report import tables
from auxseg.report.document import NOT_CLINICAL


def create_card(run, *, score_table, objects, split):
    """Returns the model card as (heading, list of plain sentences) pairs, from the run's own records.

    Args:
        run: `run_folder.Records`.
        score_table: of `tables.score_table`.
        objects: of `tables.object_table`.
        split: that was scored.
    """
    return [
        ("Intended use", _intended_use()),
        ("Data", _data(run)),
        ("Performance", _performance(score_table, objects, split)),
        ("Limits", _limits(run)),
    ]


def _intended_use():
    return [
        f"{NOT_CLINICAL} It is no medical device: nobody has examined its safety, and it must not "
        "take part in a diagnosis.",
        "For research on segmenting lungs and nodules in axial slices of chest CT, and for teaching.",
        "Every output is to be looked at by a person who can read chest CT.",
    ]


def _data(run):
    sizes = ", ".join(f"{name} {len(cases)}" for name, cases in run.splits.items())
    data = run.config.get("data", {})
    lines = [
        f"Data set: {run.summary.get('dataset') or data.get('name', 'unknown')}. Cases by split: {sizes}."
    ]
    if data.get("name") == "phantom":
        lines.append("These are synthetic slices: scores on them say nothing about patients.")
    if data.get("labels") == "airway_as_nodule":
        lines.append("The class 'nodule' is the airway here: mask value 5 of LUNA16, as the paper reads it.")
    low, high = data.get("window_hu", (None, None))
    if low is not None:
        lines.append(f"The network sees {low:g} to {high:g} HU; what lies outside is clipped.")
    return lines


def _performance(score_table, objects, split):
    lines = []
    for name in dict.fromkeys(row["class"] for row in score_table):
        rows = [
            row for row in score_table if row["class"] == name and row["score"] == "Dice" and row["cases"]
        ]
        lines += [
            f"{tables.TITLES[name]}: mean Dice {row['mean']:.3f}{_interval(row)}; {split} split, "
            f"{row['cases']} cases that have it; {row['missed']} missed, {row['false_positive_cases']} "
            "false-positive."
            for row in rows
        ]
    total = objects[-1]
    if total["nodules"] or total["false"]:
        lines.append(
            f"Nodules as objects: {total['found']} of {total['nodules']} found, "
            f"{total['false_per_slice']:.2f} false ones a slice."
        )
    return lines


def _interval(row):
    return "" if row["low"] != row["low"] else f" [{row['low']:.3f}, {row['high']:.3f}]"


def _limits(run):
    size = run.config.get("data", {}).get("size", ())
    lines = [
        "It sees one slice at a time: a vessel cut across can look like a nodule, and a nodule is "
        "scored in one slice.",
        "Small nodules cover a handful of pixels"
        + (f" at {size[0]} x {size[1]}: " if len(size) == 2 else ": ")
        + "one pixel more or less moves their Dice by tenths.",
        "Outside the scanners, doses, diseases and ages of its training data nothing is known: large "
        "effusions, collapsed lungs, resections, children, devices.",
    ]
    if run.config.get("data", {}).get("name") != "phantom":
        lines.append(
            "Reference lung masks of LUNA16 were made by an algorithm; reference nodules by up to four "
            "radiologists, who do not agree among themselves."
        )
    if len(run.splits.get("train", ())) < 200:
        lines.append(f"It was trained on {len(run.splits.get('train', ()))} cases, which is few.")
    return lines
