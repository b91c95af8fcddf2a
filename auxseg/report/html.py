"""The page of a report: one file, everything in it, nothing from the network."""

from __future__ import annotations

import json
import math

import numpy as np

from auxseg.base.classes import CLASS_NAMES
from auxseg.report import findings, model_card, paper, tables, viewer
from auxseg.report.document import create_document
from auxseg.report.markup import element, interval, join, number, table
from auxseg.runs import run_folder
from auxseg.scoring import calibration, case_scores, matching


def create_page(report, pictures, named=None):
    """Returns the HTML of a report.

    Args:
        report: `report.Report`.
        pictures: of `pictures.draw_all`.
        named: of `name_tables`, where it is at hand: its intervals take a second.
    """
    named = name_tables(report) if named is None else named
    sections = _sections(report, pictures, named)
    title = f"{report.run.name}: {report.split} split"
    links = [element("li", element("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    head = element(
        "header",
        element("h1", title),
        element("p", element("span", model_card.NOT_CLINICAL, class_="badge")),
        element("p", _lead(report), class_="lead"),
        class_="top",
    )
    body = [
        element(
            "section",
            element("h2", heading, id=f"{anchor}-title"),
            content,
            id=anchor,
            aria_labelledby=f"{anchor}-title",
        )
        for anchor, heading, content in sections
    ]
    foot = element("footer", element("p", f"auxseg {_version(report)}. {model_card.NOT_CLINICAL}"))
    skip = element("a", "Skip to the content", class_="skip", href="#checks")
    nav = element("nav", element("ul", links), aria_label="Sections")
    page = join(skip, head, nav, element("main", body, id="main"), foot)
    return create_document(title, page, script=bool(report.cases), classes=report.evaluation.classes)


def _version(report):
    return report.run.versions.get("packages", {}).get("auxseg") or ""


def _lead(report):
    owners = len(set(tables.patients(report.evaluation)))
    cases = len(report.evaluation.rows)
    data = report.run.summary.get("dataset") or report.run.config.get("data", {}).get("name", "")
    counts = f"{findings.count_of(cases, 'case')} of {findings.count_of(owners, 'patient')}"
    return f"{counts}, {report.resolution}. Data: {data}."


def _sections(report, pictures, named):
    """Returns (anchor, heading, content) of each section that has something to show, in the page's order."""
    every = [
        ("checks", "Automatic checks", _checks(report)),
        ("scores", "Scores", _scores(report, pictures, named)),
        ("cases", "Cases", _cases(report)),
        ("confusion", "Where pixels went", _figures(pictures, "confusion", "shift")),
        ("nodules", "Nodules as objects", _nodules(report, pictures, named)),
        ("agreement", "Agreement of areas", _agreement(pictures, named)),
        ("calibration", "Calibration", _calibration(pictures, named)),
        ("panels", "Panels", _figures(pictures, "panels")),
        ("explanations", "What drives the network", _explanations(report, pictures)),
        ("training", "Training", _training(report, pictures)),
        ("paper", "Beside the paper", _paper(report, named)),
        ("run", "What was run", _run(report)),
        ("card", "Model card", _card(report, named)),
        ("rules", "Rules of the scores", _rules()),
        ("files", "Files", _files(pictures, named)),
    ]
    return [each for each in every if each[2]]


def _checks(report):
    found = findings.find_all(
        report.evaluation, split=report.split, splits=report.run.splits, finished=bool(report.run.summary)
    )
    open_ones = [each for each in found if each.level != findings.PASSED]
    passed = [each for each in found if each.level == findings.PASSED]
    calm = None if open_ones else element("p", f"All {len(passed)} checks passed.")
    rest = element(
        "details",
        element("summary", f"{len(passed)} checks passed"),
        element("ul", map_list(_finding, passed), class_="findings"),
    )
    return join(
        calm, element("ul", map_list(_finding, open_ones), class_="findings"), rest if passed else None
    )


def map_list(function, values):
    """Returns [function(value), ...], which `element` takes as content."""
    return [function(value) for value in values]


def _finding(finding):
    return element(
        "li",
        element("span", finding.level, class_="tag"),
        element("strong", finding.title),
        finding.text,
        " ",
        element("a", "See", href=f"#{finding.section}"),
        class_=f"finding {finding.level}",
    )


def _scores(report, pictures, named):
    main = named["scores"]
    parts = [
        element("ul", [_tile(main, name) for name in report.evaluation.foreground], class_="tiles"),
        _score_matrix(main, f"Means with 95 % intervals (bootstrap by patient), {report.resolution}"),
        _pooled(named["pooled"]),
        _figures(pictures, "dice"),
    ]
    if report.native is not None:
        again = named["scores_native"]
        parts.insert(
            2,
            _score_matrix(again, "The same at the scan's own resolution: the prediction is resized to it"),
        )
    return join(parts)


def _tile(rows, name):
    dice = tables.find_score(rows, name, "Dice")
    distance = next(row for row in rows if row["class"] == name and row["score"].startswith("HD95"))
    missed = f"{dice['missed']} missed"
    return element(
        "li",
        element("div", tables.TITLES[name], " Dice"),
        element("div", number(dice["mean"]), class_="big"),
        element(
            "div",
            element(
                "small",
                f"95 %{interval(dice['low'], dice['high']) or ': n/a'}; median {number(dice['median'])}",
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
    rows = [
        [
            row["score"],
            row["over"].replace("_", " "),
            number(row["value"], 4),
            interval(row["low"], row["high"], 4).strip() or "n/a",
            row["cases"],
        ]
        for row in pooled
    ]
    caption = "Pooled over the pixels of all cases: large structures decide, never to be read alone"
    return table(["Score", "Over", "Value", "95 % interval", "n"], rows, caption=caption)


def _cases(report):
    if not report.cases:
        return None
    keys = {
        "b": " and ",
        "n": ". ",
        "t": " truth, ",
        "p": " prediction, ",
        "d": " where they differ. Image left is the patient's right.",
    }
    return join(
        element(
            "p",
            "Worst, median and best of each class by Dice, and the largest false positive. Click a "
            "picture, or use ",
            [[element("kbd", key), text] for key, text in keys.items()],
        ),
        element(
            "noscript",
            element("p", "The viewer needs JavaScript; the figure of panels below shows the same cases."),
        ),
        viewer.create_case_viewer(report.cases),
    )


def _figures(pictures, *names):
    shown = [_figure(pictures[name]) for name in names if name in pictures]
    if not shown:
        return None
    return (
        element("div", shown, class_="pair wide" if len(shown) > 2 else "pair")
        if len(shown) > 1
        else shown[0]
    )


def _figure(picture):
    image = element("img", src=viewer.to_uri(picture.png), alt=picture.alt, loading="lazy")
    return element("figure", image, element("figcaption", picture.caption))


def _nodules(report, pictures, named):
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
    return join(table(headings, body, caption=caption), _figures(pictures, "objects"))


def _agreement(pictures, named):
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
    caption = "Predicted minus reference: Bland-Altman bias and limits, Pearson's R, 95 % intervals"
    return join(
        table(headings, body, caption=caption),
        _figures(pictures, *names, "lung_nodule"),
    )


def _calibration(pictures, named):
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
    return join(table(headings, body, caption=caption), _figures(pictures, "reliability"))


def _explanations(report, pictures):
    if not report.explanations:
        return None
    words = (
        "Grad-CAM weighs the channels of a layer by the gradient of the class's logit and shows where "
        "they are active: what the decision rests on, coarsely. It is no proof of what the network looks "
        "at."
    )
    names = [f"explanation_{number}" for number in range(1, len(report.explanations) + 1)]
    return join(element("p", words), [_figures(pictures, name) for name in names])


def _training(report, pictures):
    rates = group_rates(report.run.epochs)
    if not rates:
        return None
    body = [
        [
            "this run",
            row["epochs"],
            f"{row['learning_rate']:g}",
            number(row["memory_gb"], 2),
            number(row["seconds_per_epoch"], 1),
        ]
        for row in rates
    ]
    body += [
        [f"the paper, {run}", epochs, f"{rate:g}", number(memory, 1), ""]
        for run, epochs, rate, memory in paper.TABLE_3
    ]
    of = report.run.epochs[-1].get("memory_of", "process")
    headings = [
        "Run",
        "Epochs",
        "Learning rate",
        f"Peak memory, GB (this run: of the {of})",
        "Seconds an epoch",
    ]
    return join(
        _figures(pictures, "curves"),
        _figures(pictures, "schedule"),
        table(headings, body, caption="Learning rate and memory by epoch (the paper's Table 3)"),
    )


def group_rates(epochs):
    """Returns one row for each stretch of epochs with one learning rate, as the paper's Table 3."""
    rows = []
    for epoch in epochs:
        rate = epoch.get("learning_rate")
        if not rows or rows[-1]["learning_rate"] != rate:
            rows.append({"learning_rate": rate, "first": epoch["epoch"], "of": []})
        rows[-1]["of"].append(epoch)
    return [
        {
            "epochs": f"{row['first']}-{row['of'][-1]['epoch']}",
            "learning_rate": row["learning_rate"],
            "memory_gb": _largest(row["of"], "peak_memory_mb") / 1e3,
            "seconds_per_epoch": float(np.mean([each.get("seconds", math.nan) for each in row["of"]])),
        }
        for row in rows
    ]


def _largest(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(max(values)) if values else math.nan


def _paper(report, named):
    if report.evaluation.classes != CLASS_NAMES:
        return None
    pooled = named["pooled"]
    dice = [tables.find_score(named["scores"], name, "Dice") for name in report.evaluation.foreground]
    headings = [
        "Study",
        "Data",
        "DSC as they report it, %",
        "Dice by case: left lung",
        "right lung",
        "nodule",
    ]
    body = [
        [
            row["study"],
            row["data"],
            number(row["dsc_percent"], 2),
            "not reported",
            "not reported",
            "not reported",
        ]
        for row in paper.TABLE_2
    ]
    data = report.run.summary.get("dataset") or report.run.config.get("data", {}).get("name", "")
    ours = [
        f"This run ({report.split})",
        data,
        f"{100 * pooled[0]['value']:.2f} (pooled DSC, paper's)",
        *(f"{number(row['mean'])} (n = {row['cases']})" for row in dice),
    ]
    return join(
        table(headings, [*body, ours], caption="The paper's Table 2 and this run", class_="wrap"),
        element("p", paper.WHY_NOT_COMPARABLE),
    )


def _run(report):
    run = report.run
    sizes = {f"{name} split": f"{len(cases)} cases" for name, cases in run.splits.items()}
    seeds = {key: value for key, value in run_folder.flatten(run.config).items() if "seed" in key}
    known = report.facts | sizes | {f"seed: {key}": str(value) for key, value in seeds.items()}
    versions = run_folder.flatten(run.versions)
    return join(
        table(
            ["What", "Value"],
            [[key, value] for key, value in known.items()],
            caption="This run",
            class_="wrap",
        ),
        element(
            "details",
            element("summary", "Versions and hardware"),
            table(["What", "Value"], [[key, _text(value)] for key, value in versions.items()], class_="wrap"),
        ),
        element(
            "details",
            element("summary", "Settings"),
            table(
                ["Setting", "Value"],
                [[key, _text(value)] for key, value in run_folder.flatten(run.config).items()],
                class_="wrap",
            ),
        ),
        element(
            "details",
            element("summary", "Cases by split"),
            [
                element("p", element("strong", f"{name} ({len(cases)}): "), ", ".join(cases))
                for name, cases in run.splits.items()
            ],
        ),
        [element("p", f"Note: {note}") for note in run.summary.get("notes", ())],
    )


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


def _card(report, named):
    card = model_card.create_card(
        report.run,
        score_table=named["scores"],
        objects=named["nodules"],
        split=report.split,
    )
    return join(
        [
            [element("h3", heading), element("ul", [element("li", line) for line in lines])]
            for heading, lines in card
        ]
    )


def _rules():
    return element("ul", [element("li", rule) for rule in case_scores.RULES])


def name_tables(report):
    """Returns {file name without ending: rows} of all tables of a report."""
    evaluation = report.evaluation
    named = {
        "scores": tables.score_table(evaluation),
        "pooled": tables.pooled_table(evaluation),
        "nodules": tables.object_table(evaluation),
        "agreement": tables.agreement_table(evaluation),
        "calibration": tables.calibration_table(evaluation),
        "learning_rate": group_rates(report.run.epochs),
        "paper": [*paper.TABLE_2],
        "cases": list(evaluation.rows),
        "objects": list(evaluation.objects),
    }
    named["se_scales"] = [
        {
            "case_id": each.case_id,
            "class": each.class_name,
            "block": block,
            "channel": channel,
            "scale": float(scale),
        }
        for each in report.explanations
        for block, scales in each.se_scales.items()
        for channel, scale in enumerate(scales)
    ]
    if report.native is not None:
        named |= {
            "scores_native": tables.score_table(report.native),
            "pooled_native": tables.pooled_table(report.native),
            "nodules_native": tables.object_table(report.native),
            "agreement_native": tables.agreement_table(report.native),
            "cases_native": list(report.native.rows),
            "objects_native": list(report.native.objects),
        }
    return {name: rows for name, rows in named.items() if rows}


def _files(pictures, named):
    csvs = [
        element("li", element("code", f"tables/{name}.csv"), f" ({len(rows)} rows)")
        for name, rows in named.items()
    ]
    pngs = [element("li", element("code", f"figures/{name}.png")) for name in pictures]
    return join(
        element("p", "Beside this page:"),
        element("ul", csvs, pngs, element("li", element("code", "scores.json"))),
    )
