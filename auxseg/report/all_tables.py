"""All tables of a report, by the name of their file."""

from __future__ import annotations

import math

import numpy as np

from auxseg.report import paper, tables


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
