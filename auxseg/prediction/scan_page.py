"""The page of a scan, on which it can be scrolled with its mask, and the overview beside it."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, value_of
from auxseg.ct import geometry
from auxseg.ct.checks import ERROR, WARNING
from auxseg.prediction import measure, morphology, overlay, page_rows
from auxseg.prediction.segment import NUM_PANELS
from auxseg.report import viewer
from auxseg.report.document import NOT_CLINICAL, create_document
from auxseg.report.markup import Markup, element, join, script_json, table

_LEVELS = {ERROR: "fault", WARNING: "caution"}
_LEAST_CORONAL = 8  # slices: fewer make no picture
_MOST_CORONALS = 20  # beside the first, of the largest nodules
_RING_PX = 4.0  # from a nodule to the ring around it
_DATA = Markup("<!--data-->")
"""Where the slices go, one after another, so that not all of them are held as text."""


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: of the page.
        facts: whose scan it is, {words: text}.
        notes: lines of (severity, text).
        pictures: JPEGs of the slices (`overlay.encode_picture`), from inferior to superior.
        masks: uint8 [H, W] of the same slices.
        labels: one line a slice.
        first_slice: index in the scan of the first of them.
        spacing_zyx_mm: of the voxels; its ratios set the proportions.
        nodules: rows of the table above the slices, dicts with the same keys.
        tables: below them, of (heading, rows).
        marks: of `create_marks`.
        start: index of the slice to show first.
        classes: names by mask value.
    """

    title: str
    facts: dict
    notes: list
    pictures: tuple[bytes, ...]
    masks: np.ndarray
    labels: list
    first_slice: int
    spacing_zyx_mm: tuple[float, float, float]
    nodules: list
    tables: list
    marks: list
    start: int
    classes: tuple[str, ...] = CLASS_NAMES


def write_page(path, page):
    """Writes a `Page` as one self-contained file in which the scan can be scrolled with the overlay."""
    data = _describe(page)
    before, after = _lay_out(page, bool(data["coronals"])).split(_DATA)
    with files.write_whole(path) as file:
        file.write(before.encode("utf-8", "backslashreplace"))
        file.write(b'<script type="application/json" id="viewer-data">\n')
        file.write(script_json(data).removesuffix("}").encode() + b',"items":[\n')
        encoded = morphology.by_slice(overlay.encode_mask, page.masks)
        aspect = page.spacing_zyx_mm[1] / page.spacing_zyx_mm[2]
        for index, (picture, mask, label) in enumerate(zip(page.pictures, encoded, page.labels)):
            item = _item(picture, mask, page.masks[0].shape, aspect)
            item |= {"key": f"slice-{page.first_slice + index}", "title": label, "about": ""}
            file.write((",\n" * (index > 0) + script_json(item)).encode())
        file.write(b"\n]}</script>" + after.encode("utf-8", "backslashreplace"))


def _lay_out(page, has_coronal):
    """Returns the HTML of a page, with `_DATA` where the slices go."""
    stage = viewer.create_slice_viewer(
        overlay.WINDOWS_HU,
        num_slices=len(page.masks),
        start=page.start,
        coronal=has_coronal,
        classes=page.classes,
    )
    keys = (
        "The patient's right is on the left. Scroll with the wheel, the slider or the arrow keys; 'o' shows the overlay, "
        "1 to 3 choose the window. A click on a row of a table shows its slice."
    )
    notes = element("ul", [_note(*each) for each in page.notes], class_="findings") if page.notes else None
    sections = [
        ("Findings", notes),
        ("Nodules", _table(page.nodules)),
        ("Slices", join(element("p", keys), stage, _DATA)),
        *((heading, _table(rows)) for heading, rows in page.tables),
    ]
    facts = [element("div", element("dt", name), element("dd", text)) for name, text in page.facts.items()]
    header = element(
        "header",
        element("h1", page.title),
        element("p", element("span", NOT_CLINICAL, class_="badge")),
        element("dl", facts, class_="facts"),
        class_="top",
    )
    body = [element("section", element("h2", heading), content) for heading, content in sections if content]
    body = join(header, element("main", body))
    return create_document(page.title, body, script=True, classes=page.classes)


def _describe(page):
    """Returns what the script needs besides the slices, JSON types."""
    data = viewer.describe(levels=overlay.LEVELS_HU, windows=overlay.WINDOWS_HU, classes=page.classes)
    data["start"] = page.start
    data["marks"] = [{**mark, "coronal": 0} for mark in page.marks]
    if len(page.masks) < _LEAST_CORONAL:
        return data
    rows = [overlay.choose_coronal(page.masks, value_of("nodule", page.classes))]
    rest = "lung" if page.classes == CLASS_NAMES else "of all that is marked"
    titles = ["with the most nodule" if page.marks else f"with the most {rest}"]
    for number, mark in enumerate(data["marks"][:_MOST_CORONALS], start=1):
        mark["coronal"] = number
        rows.append(round(mark["row"]))
        titles.append(f"through {mark['title']}")
    shape = (len(page.masks), page.masks[0].shape[1])
    aspect = page.spacing_zyx_mm[0] / page.spacing_zyx_mm[2]
    for row, title, plane in zip(rows, titles, overlay.cut_coronals(page.pictures, page.masks, rows)):
        data["coronals"].append(_item(*plane, shape, aspect) | {"title": f"row {row}, {title}"})
    return data


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
    """Returns a table whose rows lead to what they are of, where it has a slice or a nodule; None without rows."""
    if not rows:
        return None
    headings = [str(name).replace("_", " ") for name in rows[0]]
    body = []
    for row in rows:
        title, *cells = row.values()
        anchor = title.replace(" ", "-") if "probability" in row else f"slice-{row.get('its slice')}"
        body.append([element("a", title, href=f"#{anchor}") if "its slice" in row else title, *cells])
    return table(headings, body, class_="rows")


def write_pictures(folder, result, makers):
    """Writes `overview.png` and `report.html` of a `Segmentation` into a folder.

    Args:
        folder: pathlib.Path.
        result: `Segmentation`.
        makers: of `page_rows.describe_makers`.
    """
    scan, masks = result.scan, result.masks
    spacing = scan.geometry.spacing_zyx_mm
    heights = [geometry.index_to_mm(scan.geometry, (0, 0, k))[2] for k in range(result.start, result.stop)]
    labels = [f"slice {k}" + (f", z {mm:.1f} mm" if scan.has_geometry else "") + _image_of(scan, k)
              for k, mm in zip(range(result.start, result.stop), heights)]  # fmt: skip
    shown = choose_panels(result)
    overlay.write_overview(
        folder / "overview.png", [result.pictures[k] for k in shown], [masks[k] for k in shown],
        [f"slice {k + result.start}" for k in shown], spacing[1:], result.classes,
    )  # fmt: skip
    marks = create_marks(result)
    usual = result.classes == CLASS_NAMES
    what = "Lungs and nodules" if usual else ", ".join(result.classes[1:]).replace("_", " ").capitalize()
    tables = [
        ("Lungs" if usual else "Structures", page_rows.shorten_structures(result.measurements)),
        ("Scan", [page_rows.describe_grid(scan)]),
        ("Made by", [{"network": one["name"], "version": one["version"], "SHA-256 of the weights": one["sha256"]}
                     for one in makers]),
    ]  # fmt: skip
    page = Page(
        title=f"{what}: {scan.name}",
        facts=page_rows.describe_scan(scan),
        notes=[(finding.severity, finding.text) for finding in result.findings],
        pictures=result.pictures,
        masks=masks,
        labels=labels,
        first_slice=result.start,
        spacing_zyx_mm=spacing,
        nodules=page_rows.shorten_nodules(result.measurements),
        tables=tables,
        marks=marks,
        start=marks[0]["item"] if marks else len(masks) // 2,
        classes=result.classes,
    )
    write_page(folder / "report.html", page)


def _image_of(scan, index):
    frame = scan.find_frame(index)
    return f", DICOM instance {frame.number}" if frame is not None else ""


def create_marks(result):
    """Returns where the page shows each nodule of a `Segmentation`, JSON types.

    `item`, `first` and `last` count the slices segmented, `row`, `column` and `radius` (of the ring around it) pixels.
    """
    scan, marks = result.scan, []
    for row in filter(measure.is_nodule, result.measurements):
        stored = [row[name] for name in "ijk"]
        column, line = (
            scan.stored.size_xyz[axis] - 1 - stored[axis] if flipped else stored[axis]
            for axis, flipped in zip(scan.orientation.axes[:2], scan.orientation.flips[:2])
        )
        half_px = row["long_axis_mm"] / scan.geometry.spacing_zyx_mm[2] / 2.0
        half_px = half_px if np.isfinite(half_px) else np.sqrt(row["area_pixels"] / np.pi)
        title = page_rows.name_of(row)
        marks.append({
            "key": title.replace(" ", "-"), "title": title, "number": title.split()[-1],
            "item": row["slice"] - result.start, "first": row["first_slice"] - result.start,
            "last": row["last_slice"] - result.start, "row": line, "column": column,
            "radius": round(float(half_px) + _RING_PX, 1),
        })  # fmt: skip
    return marks


def choose_panels(result):
    """Returns the slices to show: the largest of the largest nodules, and others spread over all else."""
    nodules = [row["slice"] - result.start for row in result.measurements if measure.is_nodule(row)]
    others = [row for row in result.measurements if not measure.is_nodule(row)]
    low = min((row["first_slice"] for row in others), default=result.start) - result.start
    high = max((row["last_slice"] for row in others), default=result.stop - 1) - result.start
    shown = list(dict.fromkeys(nodules))[: NUM_PANELS // 2]
    spread = np.rint(np.linspace(low, high, NUM_PANELS + 2)[1:-1]).astype(int).tolist()
    shown += [k for k in dict.fromkeys(spread) if k not in shown][: NUM_PANELS - len(shown)]
    return sorted(shown)
