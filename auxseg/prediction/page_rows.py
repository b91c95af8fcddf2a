"""What of a scan stands in the tables of its page, in words and rounded; measurements.csv has it all."""

from __future__ import annotations

import numpy as np

from auxseg.ct import dicom_study
from auxseg.prediction.measure import is_nodule


def describe_scan(scan):
    """Returns whose scan it is, {words: text}: patient, study and series of DICOM, else the file's name."""
    if scan.volume is None:
        return {"file": scan.path.name}
    return dicom_study.read_study(scan.volume)


def describe_grid(scan):
    """Returns the row of a scan: its form, size and spacing."""
    spacing = " x ".join(f"{v:.3g}" for v in scan.stored.spacing_xyz_mm)
    size = " x ".join(map(str, scan.stored.size_xyz))
    return {"scan": scan.path.name, "form": scan.kind, "size": size, "spacing mm": spacing}


def describe_makers(networks, box=None):
    """Returns rows of what made a mask: name, version and SHA-256 of its weights.

    Args:
        networks: `networks.Network`s.
        box: version and sha256 of the box that they are of, or None.
    """
    rows = [{"name": one.name, "version": "", "sha256": one.checksum} for one in networks]
    if box is None:
        return rows
    return [{"name": "networks in the box", "version": box["version"], "sha256": box["sha256"]}, *rows]


def shorten_structures(measurements):
    """Returns the rows of the lungs and of whatever else is no nodule, of `measure`'s."""
    return [
        {
            "structure": name_of(row),
            "volume, mL": _digits(row["volume_ml"]),
            "largest area, mm2": _digits(row["area_mm2"]),
            "its slice": row["slice"],
            "slices": _span(row),
            "centre x, y, z, mm (LPS)": _place(row),
        }
        for row in measurements
        if not is_nodule(row)
    ]


def shorten_nodules(measurements):
    """Returns the rows of nodules and masses, of `measure`'s; DICOM images where there are some."""
    rows = []
    for row in filter(is_nodule, measurements):
        cells = {
            "structure": name_of(row),
            "probability": _digits(row["probability"]),
            "long axis, mm": _digits(row["long_axis_mm"]),
            "short axis, mm": _digits(row["short_axis_mm"]),
            "volume, mm3": _digits(row["volume_mm3"]),
            "mean HU": f"{row['mean_hu']:.0f}",
            "above -300 HU": f"{row['solid_share']:.0%}",
            "inside": row["inside"].replace("_", " "),
            "its slice": row["slice"],
        }
        if "instance_number" in row:
            frame = f", frame {row['frame']}" if row["frame"] else ""
            cells["DICOM instance"] = f"{row['instance_number']}{frame}"
        cells |= {"slices": _span(row), "centre x, y, z, mm (LPS)": _place(row)}
        if "instance_number" in row:
            cells["SOP instance UID"] = row["sop_instance_uid"]
        rows.append(cells)
    return rows


def describe_nodule(row):
    """Returns probability and size of a nodule in a line."""
    parts = [("probability", _digits(row["probability"]), ""), ("long axis", _digits(row["long_axis_mm"]), " mm"),
             ("short axis", _digits(row["short_axis_mm"]), " mm"), ("volume", _digits(row["volume_mm3"]), " mm3"),
             ("mean", f"{row['mean_hu']:.0f}", " HU")]  # fmt: skip
    return ", ".join(f"{name} {value}{unit}" for name, value, unit in parts if value)


def name_of(row):
    """Returns 'left lung', 'nodule 1' or, where it is that wide, 'mass 1'."""
    name = row["structure"].replace("_", " ")
    return name.replace("nodule", "mass") if row["kind"] == "mass" else name


def _span(row):
    return f"{row['first_slice']} to {row['last_slice']}"


def _place(row):
    place = [row[f"{axis}_mm"] for axis in "xyz"]
    return ", ".join(f"{v:.0f}" for v in place) if np.isfinite(place).all() else ""


def _digits(value):
    """Returns a number with three digits, or all those before the point; '' where it is not known."""
    if not np.isfinite(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
