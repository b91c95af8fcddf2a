"""Rows of scans.csv: everything that was handed in, as done, skipped or failed, and what is printed of them."""

from __future__ import annotations

import sys

from auxseg.ct.checks import INFO

_MAX_LINES = 20
"""Lines printed about what was skipped; all of it is in the table."""


def create_row(source, status, seconds, about=None, reason=""):
    """Returns the row of a scan.

    Args:
        source: `find.Source`.
        status: 'done', 'done before' or 'failed'.
        seconds: that it took.
        about: what its prediction.json says, or None.
        reason: why it failed; without, its warnings.
    """
    about = about or {}
    left, right = about.get("lungs_ml", (None, None))
    warnings = [one["text"] for one in about.get("findings", []) if one["severity"] != INFO]
    series = about.get("series") or (_describe(source.series[0]) if len(source.series) == 1 else {})
    return {
        "scan": source.name, "status": status, "seconds": float(seconds), "left_lung_ml": left,
        "right_lung_ml": right, "nodules": about.get("nodules"), "warnings": len(warnings),
        "reason": reason or "; ".join(warnings), "path": str(source.path), **_series_cells(series),
        **{f"{name}_ml": ml for name, ml in about.get("others_ml", {}).items()},
    }  # fmt: skip


def describe_series(series):
    """Returns number, description, UID and number of files of a DICOM series as JSON types, {} of None."""
    return {} if series is None else _describe(series)


def _describe(series):
    return {"number": series.number, "description": series.description, "uid": series.uid,
            "files": len(series.paths)}  # fmt: skip


def _series_cells(series):
    return {
        "files": series.get("files"),
        "series_number": series.get("number"),
        "series_description": series.get("description"),
        "series_uid": series.get("uid"),
    }


def describe_skipped(skipped):
    """Returns a `find.Skipped` as JSON types."""
    about = {
        "name": skipped.name,
        "path": str(skipped.path),
        "reason": skipped.reason,
        "files": skipped.count,
    }
    return {**about, "series": describe_series(skipped.series)}


def create_skipped_row(about):
    """Returns the row of what was skipped, from `describe_skipped`."""
    return {
        "scan": about["name"], "status": "skipped", "seconds": 0.0, "left_lung_ml": None, "right_lung_ml": None,
        "nodules": None, "warnings": 0, "reason": about["reason"], "path": about["path"],
        **_series_cells(about["series"]), "files": about["files"],
    }  # fmt: skip


def print_rows(rows, output, table="scans.csv"):
    """Prints what was done, what was skipped and, last, what failed and why; returns the exit status.

    Args:
        rows: of `outputs.predict`.
        output: where the results are.
        table: the file there that holds the rows.
    """
    by_status = {name: [row for row in rows if row["status"] == name] for name in ("skipped", "failed")}
    scans = [row for row in rows if row["status"] != "skipped"]
    for row in scans:
        if row["status"] != "failed":
            print(_describe_row(row))
    skipped, failed = by_status["skipped"], by_status["failed"]
    for row in skipped[:_MAX_LINES]:
        print(_describe_skipped_row(row))
    if len(skipped) > _MAX_LINES:
        print(f"skipped: {len(skipped) - _MAX_LINES} more, in {table}")
    if len(scans) != 1:
        print(f"{len(scans) - len(failed)} of {len(scans)} scans done; results in {output}, table in {table}")
    if failed:
        print(f"failed: {len(failed)}", file=sys.stderr)
        width = max(len(row["scan"]) for row in failed)
        for row in failed:
            print(f"  {row['scan']:{width}}  {row['reason']}", file=sys.stderr)
    return 1 if failed else 0


def _describe_skipped_row(row):
    what = row["scan"]
    if row["series_uid"]:
        what += f" '{row['series_description']}' ({row['files']} files, {row['series_uid']})"
    elif row["files"] > 1:
        what += f" ({row['files']} files)"
    return f"skipped: {what} in {row['path']}: {row['reason']}"


def _describe_row(row):
    volumes = [f"{name.removesuffix('_ml').replace('_', ' ')} {value:.0f} mL"
               for name, value in row.items() if name.endswith("_ml") and value is not None]  # fmt: skip
    warnings = f"; warning: {row['reason']}" if row["reason"] else ""
    parts = [row["status"], *volumes, f"nodules {row['nodules']}"]
    return f"{row['scan']}: {', '.join(parts)}{warnings}"
