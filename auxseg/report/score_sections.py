"""Sections of the page that show scores: of masks, of nodules as objects, of areas, of probabilities."""

from __future__ import annotations

import math

from auxseg.report import findings, tables
from auxseg.report.figure_parts import show_figures
from auxseg.report.markup import element, interval, join, number, table
from auxseg.scoring import calibration, matching


def scores_section(report, pictures, named):
    """Returns the section on the scores of each class, at both sizes where there are two."""
    main = named["scores"]
    intervals = (
        " with 95 % intervals (bootstrap by patient)" if tables.has_intervals(report.evaluation) else ""
    )
    parts = [
        element("ul", [_tile(main, name) for name in report.evaluation.foreground], class_="tiles"),
        show_figures(pictures, "dice"),
        _score_matrix(main, f"Means{intervals}, {report.resolution}"),
        _pooled(named["pooled"]),
    ]
    if report.native is not None:
        again = named["scores_native"]
        parts.insert(
            3,
            _score_matrix(again, "The same at the scan's own resolution: the prediction is resized to it"),
        )
    return join(parts)


def _tile(rows, name):
    dice = tables.find_score(rows, name, "Dice")
    distance = next(row for row in rows if row["class"] == name and row["score"].startswith("HD95"))
    missed, ends = f"{dice['missed']} missed", interval(dice["low"], dice["high"])
    return element(
        "li",
        element("div", tables.TITLES[name], " Dice"),
        element("div", number(dice["mean"]), class_="big"),
        element(
            "div",
            element(
                "small",
                f"95 %{ends}; median {number(dice['median'])}"
                if ends
                else f"median {number(dice['median'])}",
            ),
        ),
        element(
            "div",
            element("small", f"{distance['score']} {number(distance['mean'], 1)} (n = {distance['cases']})"),
        ),
        element(
            "div",
            element("small", f"{findings.count_of(dice['cases'], 'case')}, "),
            element("small", missed, class_="bad" if dice["missed"] else None),
            element("small", f", {findings.count_of(dice['false_positive_cases'], 'false-positive case')}"),
        ),
        class_=f"tile {name}",
    )


def _score_matrix(rows, caption):
    titles = list(dict.fromkeys(row["score"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    headings = ["Score", *(_class_heading(name) for name in names)]
    body = [
        [title, *(_score_cell(tables.find_score(rows, name, title)) for name in names)] for title in titles
    ]
    counts = [tables.find_score(rows, name, "Dice") for name in names]
    body.append(["Missed cases", *(str(row["missed"]) for row in counts)])
    body.append(["False-positive cases", *(str(row["false_positive_cases"]) for row in counts)])
    return table(headings, body, caption=caption)


def _class_heading(name):
    return join(element("span", class_=f"swatch {name}"), tables.TITLES[name])


def _score_cell(row):
    if not row["cases"]:
        return join("n/a", element("span", "n = 0", class_="count"))
    digits = 2 if row["unit"] else 4 if row["score"] in ("Specificity", "Accuracy") else 3
    return join(
        number(row["mean"], digits),
        interval(row["low"], row["high"], digits),
        element("span", f"n = {row['cases']}", class_="count"),
    )


def _pooled(pooled):
    known = any(not math.isnan(row["low"]) for row in pooled)
    rows = [
        [
            row["score"],
            row["over"].replace("_", " "),
            number(row["value"], 4),
            *([interval(row["low"], row["high"], 4).strip() or "n/a"] if known else []),
            row["cases"],
        ]
        for row in pooled
    ]
    caption = "Pooled over the pixels of all cases: large structures decide, never to be read alone"
    headings = ["Score", "Over", "Value", *(["95 % interval"] if known else []), "n"]
    return table(headings, rows, caption=caption)


def nodules_section(report, pictures, named):
    """Returns the section on nodules as objects: found, missed, false, by size."""
    rows = named["nodules"]
    if not rows[-1]["nodules"] and not rows[-1]["false"]:
        return element("p", "There is no nodule in the references, and none was predicted.")
    headings = [
        "Size",
        "Nodules",
        "Found",
        "Missed",
        "False",
        "Sensitivity",
        "Precision",
        "F1",
        "False per slice",
        "IoU of found",
    ]
    body = [
        [
            row["size"],
            row["nodules"],
            row["found"],
            row["missed"],
            row["false"],
            number(row["sensitivity"], 2) + interval(row["sensitivity_low"], row["sensitivity_high"], 2),
            number(row["precision"], 2),
            number(row["f1"], 2),
            number(row["false_per_slice"], 2)
            + interval(row["false_per_slice_low"], row["false_per_slice_high"], 2),
            number(row["mean_iou_of_found"], 2),
        ]
        for row in rows
    ]
    caption = f"Matched by overlap (IoU at least {matching.MIN_OBJECT_IOU}), in {len(report.evaluation.rows)} slices"
    return join(show_figures(pictures, "objects"), table(headings, body, caption=caption))


def agreement_section(pictures, named):
    """Returns the section on how far predicted areas are from those of the references, or None."""
    rows = named.get("agreement")
    if not rows:
        return None
    headings = ["Class", "Unit", "Bias", "Lower limit", "Upper limit", "R of the areas", "n"]
    body = [
        [
            _class_heading(row["class"]),
            row["unit"].replace("mm2", "mm²"),
            *(
                number(row[key], 1) + interval(row[f"{key}_low"], row[f"{key}_high"], 1)
                for key in ("bias", "lower_limit", "upper_limit")
            ),
            number(row["pearson_r"]) + interval(row["pearson_r_low"], row["pearson_r_high"]),
            row["cases"],
        ]
        for row in rows
    ]
    names = [name for name in reversed(pictures) if name.startswith("bland_altman_")]
    caption = "Predicted minus reference: Bland-Altman bias and limits, Pearson's R"
    caption += ", 95 % intervals" if any(not math.isnan(row["bias_low"]) for row in rows) else ""
    return join(
        show_figures(pictures, *names, "lung_nodule"),
        table(headings, body, caption=caption),
    )


def calibration_section(pictures, named):
    """Returns the section on how well probabilities fit, or None."""
    rows = named.get("calibration")
    if not rows:
        return None
    headings = ["Class", "Calibration error", "Without the lowest bin", "Pixels there"]
    body = [
        [
            row["class"].replace("_", " "),
            number(row["expected_calibration_error"], 4),
            number(row["without_the_lowest_bin"], 4),
            number(row["pixels_above_the_lowest_bin"]),
        ]
        for row in rows
    ]
    caption = (
        f"Expected calibration error, {calibration.NUM_BINS} equal bins; most pixels of a small class "
        "lie in the lowest"
    )
    return join(show_figures(pictures, "reliability"), table(headings, body, caption=caption))
