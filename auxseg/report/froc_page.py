"""The page of nodules in whole scans, judged by LUNA16's rule: the curve, the scans, and each nodule."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator

from auxseg.report import figures, viewer
from auxseg.report.document import NOT_CLINICAL, create_document
from auxseg.report.markup import element, interval, join, number, table
from auxseg.scoring import froc

RULES = (
    "A candidate hits a nodule if it lies closer to its centre than its radius. Further hits of it count nothing.",
    "Candidates within the radius of an excluded finding count nothing. All others are false.",
    "Of each scan the 100 most probable candidates are judged.",
    "A scan without a row in the annotations has no nodule: every candidate in it is false.",
    "CPM is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false ones a scan, linearly between points of the curve.",
    "Intervals are of 1,000 draws of scans with replacement, 95 %.",
)


def create_page(scores):
    """Returns the HTML of what `evaluation.detection.judge` found."""
    found = scores["scores"]
    title = f"Nodules in {found['num_scans']} whole {'scan' if found['num_scans'] == 1 else 'scans'}"
    picture = element("img", src=viewer.to_uri(draw_curve(scores)), alt="Nodules found by false ones a scan")
    sections = [
        ("What was found", join(element("ul", [_note(text) for text in describe(scores)], class_="findings"), _rates(found))),
        ("Curve", element("figure", picture, element("figcaption", _caption(found)))),
        ("Scans", _table(scores["scans"])),
        ("Nodules", _table(scores["nodules"])),
        ("Rules", element("ul", [element("li", rule) for rule in RULES])),
        ("Made by", _table([{"version of the box": one["version"], "SHA-256": one["sha256"]}
                            for one in scores["made_by"] if one])),
    ]  # fmt: skip
    head = element(
        "header",
        element("h1", title),
        element("p", element("span", NOT_CLINICAL, class_="badge")),
        class_="top",
    )
    body = [element("section", element("h2", heading), content) for heading, content in sections if content]
    return create_document(title, join(head, element("main", body)))


def describe(scores):
    """Returns what was found, and what to know of it, in sentences."""
    found, rows = scores["scores"], scores["scans"]
    lines = [
        f"{sum(row['found'] for row in rows)} of {found['num_nodules']} nodules found, and "
        f"{sum(row['false'] for row in rows)} false ones in {found['num_scans']} scans, as predicted."
    ]
    if found["cpm"] is None:
        lines.append(
            f"Fewer than {froc.LEAST_TO_RATE} scans or nodules: these are counts, which say nothing of a sensitivity."
        )
    else:
        lines.append(f"CPM {number(found['cpm'])}{interval(*found['cpm_interval'])}.")
    if scores["not_predicted"]:
        lines.append(f"Annotated scans that were not predicted, and are left out: {scores['not_predicted']}.")
    return lines


def draw_curve(scores):
    """Returns the PNG of nodules found by false ones a scan: a share, or a count where the scans are few."""
    found = scores["scores"]
    counted = found["sensitivity"] is None
    figure, axes = figures.create_axes((6.5, 4.0))
    panel = axes[0, 0]
    scale = found["num_nodules"] if counted else 1.0
    false, sensitivity = (np.asarray(scores["curve"][name]) for name in ("false_per_scan", "sensitivity"))
    if counted:
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.step(false, sensitivity * scale, where="post", color=figures.INK)
    else:
        panel.plot(false, sensitivity, color=figures.INK)
        rates = [float(rate) for rate in found["sensitivity_interval"]]
        low, high = np.array(list(found["sensitivity_interval"].values())).T
        panel.fill_between(rates, low, high, color="#1d4f91", alpha=0.15, linewidth=0)
        panel.plot(rates, list(found["sensitivity"].values()), "o", color="#1d4f91", markersize=4)
    rows = scores["scans"]
    panel.plot(
        sum(row["false"] for row in rows) / len(rows),
        sum(row["found"] for row in rows) * scale / max(1, found["num_nodules"]),
        "D", color="#ff9f1c",
    )  # fmt: skip
    panel.set_xscale("symlog", base=2, linthresh=0.125)
    panel.set_xticks([0, *froc.FALSE_PER_SCAN], ["0", "1/8", "1/4", "1/2", "1", "2", "4", "8"])
    panel.set_xlim(0, 10)
    panel.set_ylim(0, 1.05 * scale if scale else 1.0)
    figures.label(panel, "false ones a scan", "nodules found" if counted else "sensitivity", "")
    return figures.to_png(figure)


def _caption(found):
    shown = "in steps of a nodule" if found["sensitivity"] is None else "with its 95 % intervals"
    return f"The free-response curve {shown}. Yellow: the point that was predicted with."


def _rates(found):
    """Returns the table of nodules found at each number of false ones a scan."""
    rows = []
    for rate, count in found["found_at"].items():
        row = [rate, f"{count} of {found['num_nodules']}"]
        if found["sensitivity"] is not None:
            low, high = found["sensitivity_interval"][rate]
            row.append(f"{number(found['sensitivity'][rate])}{interval(low, high)}")
        rows.append(row)
    headings = ["false ones a scan", "nodules found", "sensitivity"][: len(rows[0])]
    return table(headings, rows)


def _note(text):
    return element("li", text, class_="finding note")


def _table(rows):
    if not rows:
        return None
    body = [["yes" if v is True else "no" if v is False else number(v) if isinstance(v, float) else v
             for v in row.values()] for row in rows]  # fmt: skip
    return table([name.replace("_", " ") for name in rows[0]], body)
