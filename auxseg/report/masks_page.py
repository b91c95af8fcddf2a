"""The page of masks of whole scans: tools side by side, by class; then each scan; then nodules."""

from __future__ import annotations

import io

import numpy as np

from auxseg.base.classes import CLASS_NAMES, COLOURS, UNKNOWN, to_rgb
from auxseg.report import figures, viewer
from auxseg.report.document import NOT_CLINICAL, create_document
from auxseg.report.markup import element, interval, join, number, table
from auxseg.scoring import matching, statistics, volumes

NODULE_COLUMNS = (
    "tool",
    "scan",
    "kind",
    "iou",
    "diameter_mm",
    "stratum",
    "volume_mm3",
    "x_mm",
    "y_mm",
    "z_mm",
)
LEAST_SCANS = 5
"""Fewer have no interval."""
_MOST_PICTURES = 12
_WIDTH = 240
_MEANS = {
    "dice": "Dice", "surface_dice_1mm": "Surface Dice, 1 mm", "surface_dice_2mm": "Surface Dice, 2 mm", "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm", "volume_error_ml": "Volume error, mL",
}  # fmt: skip
_UNKNOWN_COLOUR = "#777777"


def create_page(scores, pictures):
    """Returns the HTML of what `evaluation.scan_masks.judge` found.

    Args:
        scores: dict with rows, nodules, scans, notes and the reference's name.
        pictures: (tool, scan, slice, prediction, reference) for each scan, masks uint8 [H, W].
    """
    tools = list(dict.fromkeys(row["tool"] for row in scores["rows"]))
    title = f"Masks of whole scans: {', '.join(tools)}"
    sections = [
        ("Where masks differ", _pictures(scores, pictures)),
        ("By class", join(_notes(scores), *[_summary(scores["rows"], kind) for kind in CLASS_NAMES[1:]])),
        ("Nodules", _nodules(scores)),
        ("Scans", _scans(scores["rows"])),
        ("Not scored", _not_scored(scores["scans"])),
        ("Rules of the scores", element("ul", [element("li", rule) for rule in volumes.RULES])),
    ]
    head = element(
        "header",
        element("h1", title),
        element("p", element("span", NOT_CLINICAL, class_="badge")),
        element("p", f"Against the masks of {scores['reference']}.", class_="lead"),
        class_="top",
    )
    body = [element("section", element("h2", heading), content) for heading, content in sections if content]
    return create_document(title, join(head, element("main", body)))


def describe(scores):
    """Returns the means by tool and class, in lines of text."""
    lines = list(scores["notes"])
    for tool, kind in dict.fromkeys((row["tool"], row["class"]) for row in scores["rows"]):
        own = [row for row in scores["rows"] if (row["tool"], row["class"]) == (tool, kind)]
        dice = [row["dice"] for row in own if not np.isnan(row["dice"])]
        hd95 = [row["hd95_mm"] for row in own if not np.isnan(row["hd95_mm"])]
        lines.append(
            f"{tool}, {kind.replace('_', ' ')}: mean Dice {np.mean(dice):.3f}, HD95 {np.mean(hd95):.1f} mm ({len(dice)} scans)"
        )
    return lines + [
        f"{row['tool']}, {row['scan']}: {row['what']}: {row['why']}" for row in scores["scans"] if row["why"]
    ]


def _notes(scores):
    return element(
        "ul", [element("li", text, class_="finding note") for text in scores["notes"]], class_="findings"
    )


def _summary(rows, kind):
    """Returns the table of one class: a row a tool, means over the scans whose reference has the class."""
    own = [row for row in rows if row["class"] == kind]
    if not own:
        return None
    body = []
    for tool in dict.fromkeys(row["tool"] for row in own):
        of_tool = [row for row in own if row["tool"] == tool]
        present = [row for row in of_tool if row["reference_ml"]]
        false = sum(row["status"] == "false positive" for row in of_tool)
        missed = sum(row["status"] == "missed" for row in of_tool)
        means = [_mean([row[name] for row in present]) for name in _MEANS]
        dice = [row["dice"] for row in present]
        worst = number(min(dice)) if dice else "n/a"
        body.append([tool, len(present), *means, worst, missed, false])
    headings = ["tool", "scans", *_MEANS.values(), "lowest Dice", "missed", "false-positive scans"]
    return table(headings, body, caption=kind.replace("_", " ").capitalize())


def _mean(values):
    """Returns a mean as text, with its 95 % interval over scans where there are enough."""
    if not values:
        return "n/a"
    if len(values) < LEAST_SCANS:
        return number(float(np.mean(values)))
    found = statistics.bootstrap_mean(values, np.arange(len(values)))
    return number(found.estimate) + interval(found.low, found.high)


def _nodules(scores):
    """Returns the table of nodules as objects: a row for each tool and size."""
    if not any(row["class"] == "nodule" for row in scores["rows"]):
        return None
    body = []
    for tool in dict.fromkeys(row["tool"] for row in scores["rows"] if row["class"] == "nodule"):
        num_scans = len({row["scan"] for row in scores["rows"] if row["tool"] == tool})
        for size in (None, *matching.STRATA[:3]):
            own = [row for row in scores["nodules"] if row["tool"] == tool and size in (None, row["stratum"])]
            counts = [sum(row["kind"] == kind for row in own) for kind in ("found", "missed", "false")]
            body.append([tool, size or "all", *counts, number(counts[2] / num_scans, 2)])
    return table(["tool", "size", "found", "missed", "false", "false a scan"], body)


def _scans(rows):
    headings = ["scan", "tool", "class", "status", *_MEANS.values(), "volume, mL", "reference, mL"]
    names = [*_MEANS, "volume_ml", "reference_ml"]
    body = [
        [
            row["scan"],
            row["tool"],
            row["class"].replace("_", " "),
            row["status"],
            *(number(row[name]) for name in names),
        ]
        for row in sorted(rows, key=lambda row: (row["scan"], row["class"], row["tool"]))
        if row["status"] != "absent"
    ]
    return table(headings, body)


def _not_scored(scans):
    rows = [[row["scan"], row["tool"], row["what"], row["why"]] for row in scans if row["why"]]
    return table(["scan", "tool", "what", "why"], rows) if rows else None


def _pictures(scores, pictures):
    """Returns figures of the scans with the lowest Dice: reference and prediction of the slice that differs most."""
    lowest = {}
    for row in scores["rows"]:
        if not np.isnan(row["dice"]):
            key = row["tool"], row["scan"]
            lowest[key] = min(lowest.get(key, 1.0), row["dice"])
    chosen = sorted((one for one in pictures if one[:2] in lowest), key=lambda one: lowest[one[:2]])[
        :_MOST_PICTURES
    ]
    return join([
        element(
            "figure",
            element("img", src=_draw(prediction, reference), alt=f"Reference, prediction and difference in {scan}"),
            element("figcaption", f"{scan}, {tool}, slice {index}: reference, prediction, and the prediction with yellow where it differs"),
        )
        for tool, scan, index, prediction, reference in chosen
    ])  # fmt: skip


def _draw(prediction, reference):
    """Returns the data URI of three panels on black."""
    from PIL import Image

    step = max(1, reference.shape[1] // _WIDTH)
    prediction, reference = prediction[::step, ::step], reference[::step, ::step]
    colours = np.zeros((256, 3), np.uint8)
    for value, name in enumerate(CLASS_NAMES[1:], start=1):
        colours[value] = to_rgb(COLOURS[name])
    colours[UNKNOWN] = to_rgb(_UNKNOWN_COLOUR)
    known = np.where(prediction == UNKNOWN, 0, prediction)
    difference = np.rint(255 * figures.overlay(reference, known, alpha=1.0)[..., :3]).astype(np.uint8)
    content = io.BytesIO()
    panels = np.concatenate([colours[reference], colours[prediction], difference], axis=1)
    Image.fromarray(panels).save(content, format="PNG", optimize=True)
    return viewer.to_uri(content.getvalue())
