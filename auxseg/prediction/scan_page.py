"""The page of a scan, on which it can be scrolled with its mask, and the overview beside it."""

from __future__ import annotations

import numpy as np

from auxseg.base import files
from auxseg.ct import geometry
from auxseg.ct.checks import ERROR, WARNING
from auxseg.prediction import overlay
from auxseg.prediction.segment import NUM_PANELS
from auxseg.report import viewer
from auxseg.report.document import create_document
from auxseg.report.markup import Markup, element, join, script_json, table
from auxseg.report.model_card import NOT_CLINICAL

_LINKED = "its slice"
_LEVELS = {ERROR: "fault", WARNING: "caution"}
_LEAST_CORONAL = 8  # slices: fewer make no picture
_DATA = Markup("<!--data-->")
"""Where the slices go, one after another, so that not all of them are held as text."""


def write_page(path, *, title, pictures, masks, labels, first_slice, spacing_zyx_mm, tables, notes, start):
    """Writes one self-contained page in which the scan can be scrolled with the overlay.

    Args:
        path: the .html file.
        title: of the page.
        pictures: JPEGs of the slices (`overlay.encode_picture`), from inferior to superior.
        masks: uint8 [H, W] of the same slices.
        labels: one line a slice.
        first_slice: index in the scan of the first of them.
        spacing_zyx_mm: of the voxels; its ratios set the proportions.
        tables: list of (heading, rows as dicts with the same keys).
        notes: lines of (severity, text).
        start: index of the slice to show first.
    """
    coronal = len(masks) >= _LEAST_CORONAL
    stage = viewer.create_slice_viewer(
        overlay.WINDOWS_HU, num_slices=len(masks), start=start, coronal=coronal
    )
    keys = "The patient's right is on the left. Scroll with the wheel, the slider or the arrow keys; 'o' shows the overlay."
    sections = [
        ("Findings", element("ul", [_note(*each) for each in notes], class_="findings") if notes else None),
        ("Slices", join(element("p", keys), stage, _DATA)),
        *((heading, _table(rows)) for heading, rows in tables),
    ]
    header = element(
        "header",
        element("h1", title),
        element("p", element("span", NOT_CLINICAL, class_="badge")),
        class_="top",
    )
    body = [element("section", element("h2", heading), content) for heading, content in sections if content]
    page = create_document(title, join(header, element("main", body)), script=True)
    before, after = page.split(_DATA)
    data = viewer.describe(levels=overlay.LEVELS_HU, windows=overlay.WINDOWS_HU)
    data["start"] = start
    if coronal:
        aspect = spacing_zyx_mm[0] / spacing_zyx_mm[2]
        data["coronal"] = _item(
            *overlay.cut_coronal(pictures, masks), (len(masks), masks[0].shape[1]), aspect
        )
    with files.write_whole(path) as file:
        file.write(before.encode("utf-8", "backslashreplace"))
        file.write(b'<script type="application/json" id="viewer-data">\n')
        file.write(script_json(data).removesuffix("}").encode() + b',"items":[\n')
        for index, (picture, mask, label) in enumerate(zip(pictures, masks, labels)):
            aspect = spacing_zyx_mm[1] / spacing_zyx_mm[2]
            item = _item(picture, overlay.encode_mask(mask), mask.shape, aspect)
            item |= {"key": f"slice-{first_slice + index}", "title": label, "about": ""}
            file.write((",\n" * (index > 0) + script_json(item)).encode())
        file.write(b"\n]}</script>" + after.encode("utf-8", "backslashreplace"))


def _item(picture, classes, shape, aspect):
    """Returns a picture and its mask as the script takes them, JSON types."""
    return {
        "ct": viewer.to_uri(picture, "jpeg"),
        "codes": viewer.to_uri(classes),
        "rows": shape[0],
        "columns": shape[1],
        "aspect": aspect,
    }


def _note(severity, text):
    level = _LEVELS.get(severity, "note")
    return element("li", element("span", severity, class_="tag"), " ", text, class_=f"finding {level}")


def _table(rows):
    """Returns a table whose slices lead to their picture, or None without rows."""
    if not rows:
        return None
    headings = [str(name).replace("_", " ") for name in rows[0]]
    body = [
        [
            element("a", value, href=f"#slice-{value}") if name == _LINKED else value
            for name, value in row.items()
        ]
        for row in rows
    ]
    return table(headings, body)


def write_pictures(folder, result, networks):
    """Writes `overview.png` and `report.html` of a `Segmentation` into a folder.

    Args:
        folder: pathlib.Path.
        result: `Segmentation`.
        networks: what made it.
    """
    scan, masks = result.scan, result.masks
    spacing = scan.geometry.spacing_zyx_mm
    heights = [geometry.index_to_mm(scan.geometry, (0, 0, k))[2] for k in range(result.start, result.stop)]
    labels = [f"slice {k}" + (f", z {mm:.1f} mm" if scan.has_geometry else "")
              for k, mm in zip(range(result.start, result.stop), heights)]  # fmt: skip
    shown = choose_panels(result)
    overlay.write_overview(
        folder / "overview.png", [result.pictures[k] for k in shown], [masks[k] for k in shown],
        [labels[k] for k in shown], spacing[1:],
    )  # fmt: skip
    nodules = [row for row in result.measurements if row["structure"].startswith("nodule")]
    first = nodules[0]["slice"] - result.start if nodules else len(masks) // 2
    facts = [{"scan": scan.path.name, "form": scan.kind, "size": " x ".join(map(str, scan.stored.size_xyz)),
              "spacing mm": " x ".join(f"{v:.3g}" for v in scan.stored.spacing_xyz_mm)}]  # fmt: skip
    models = [{"network": one.name, "SHA-256 of the weights": one.checksum} for one in networks]
    tables = [("Measurements", shorten_rows(result.measurements)), ("Scan", facts), ("Made by", models)]
    write_page(
        folder / "report.html",
        title=f"Lungs and nodules: {scan.name}",
        pictures=result.pictures,
        masks=masks,
        labels=labels,
        first_slice=result.start,
        spacing_zyx_mm=spacing,
        tables=tables,
        notes=[(finding.severity, finding.text) for finding in result.findings],
        start=first,
    )


def shorten_rows(measurements):
    """Returns what of `measure`'s rows fits the width of a page, in words and rounded; the CSV has it all."""
    rows = []
    for row in measurements:
        place = [row[f"{axis}_mm"] for axis in "xyz"]
        rows.append({
            "structure": _name(row),
            "probability": _digits(row["probability"]),
            "inside": row["inside"].replace("_", " "),
            "volume, mL": _digits(row["volume_ml"]),
            "largest area, mm2": _digits(row["area_mm2"]),
            "its diameter, mm": _digits(row["equivalent_diameter_mm"]),
            _LINKED: row["slice"],
            "slices": f"{row['first_slice']} to {row['last_slice']}",
            "centre x, y, z, mm (LPS)": ", ".join(f"{v:.0f}" for v in place) if np.isfinite(place).all() else "",
        })  # fmt: skip
    return rows


def _name(row):
    """Returns 'left lung', 'nodule 1' or, where it is that wide, 'mass 1'."""
    name = row["structure"].replace("_", " ")
    return name.replace("nodule", "mass") if row["kind"] == "mass" else name


def _digits(value):
    """Returns a number with three digits, or all those before the point; '' where it is not known."""
    if not np.isfinite(value):
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def choose_panels(result):
    """Returns the slices to show: the largest of the largest nodules, and others spread over the lungs."""
    nodules = [
        row["slice"] - result.start for row in result.measurements if row["structure"].startswith("nodule")
    ]
    lungs = [row for row in result.measurements if row["structure"].endswith("lung")]
    low = min((row["first_slice"] for row in lungs), default=result.start) - result.start
    high = max((row["last_slice"] for row in lungs), default=result.stop - 1) - result.start
    shown = list(dict.fromkeys(nodules))[: NUM_PANELS // 2]
    spread = np.rint(np.linspace(low, high, NUM_PANELS + 2)[1:-1]).astype(int).tolist()
    shown += [k for k in dict.fromkeys(spread) if k not in shown][: NUM_PANELS - len(shown)]
    return sorted(shown)
