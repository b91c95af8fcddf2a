"""Writers of what `predict` hands over: masks in the input's geometry, measurements, pictures, a report.

Volumes are written slice by slice, so that neither a mask nor a probability map of a whole scan is held in
memory. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import base64
import html
import json

import numpy as np

from auxseg.base import files
from auxseg.ct import geometry
from auxseg.prediction import overlay
from auxseg.prediction.segment import NUM_PANELS


def write_report(path, *, title, pictures, masks, labels, spacing_yx_mm, tables, notes, start):
    """Writes one self-contained page in which the scan can be scrolled with the overlay.

    Args:
        path: the .html file.
        title: of the page.
        pictures: JPEGs of the slices, from inferior to superior.
        masks: uint8 [H, W] of the same slices.
        labels: one line a slice.
        spacing_yx_mm: pixel size; its ratio sets the proportions.
        tables: list of (heading, rows as dicts with the same keys).
        notes: lines of (severity, text).
        start: index of the slice to show first.
    """
    height, width = np.array(masks[0].shape) * spacing_yx_mm
    with files.write_whole(path) as file:
        file.write(_PAGE_HEAD.format(title=html.escape(title)).encode())
        for severity, text in notes:
            file.write(f'<p class="{severity}">{html.escape(text)}</p>\n'.encode())
        file.write(
            _VIEWER.format(last=len(masks) - 1, start=start, ratio=f"{width:.4f}/{height:.4f}").encode()
        )
        for heading, rows in tables:
            file.write(_html_table(heading, rows).encode())
        file.write(b"<script>\nconst slices=[\n")
        for picture, mask, label in zip(pictures, masks, labels):
            parts = [_data_url("jpeg", picture), _data_url("png", overlay.encode_overlay(mask)), label]
            file.write((json.dumps(parts).replace("<", "\\u003c") + ",\n").encode())
        file.write(b"];\n" + _SCRIPT.encode() + b"</script>\n</main></body></html>\n")


def _data_url(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _html_table(heading, rows):
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in rows[0]) if rows else ""
    lines = [
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(files.format_cell(v, digits=files.FEW_DIGITS)))}</td>"
            for v in row.values()
        )
        + "</tr>"
        for row in rows
    ]
    return (
        f"<h2>{html.escape(heading)}</h2>\n<div class=wide><table><tr>{head}</tr>\n"
        + "\n".join(lines)
        + "</table></div>\n"
    )


_PAGE_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 0; color: #222; background: #fff; }}
main {{ max-width: 1000px; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; }}
.error {{ color: #b00020; }} .warning {{ color: #8a5a00; }} .info {{ color: #555; }} p {{ margin: .3rem 0; }}
#view {{ position: relative; width: min(100%, 640px); background: #000; touch-action: none; }}
#view img {{ position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: auto; }}
#over {{ opacity: .4; }}
.bar {{ display: flex; gap: 1rem; flex-wrap: wrap; align-items: center; width: min(100%, 640px); }}
.bar input[type=range] {{ flex: 1; min-width: 8rem; }}
.key i {{ display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ border: 1px solid #ccc; padding: .2rem .5rem; text-align: right; }}
td:first-child {{ text-align: left; }} td {{ overflow-wrap: anywhere; }} th {{ vertical-align: bottom; }}
</style></head><body><main>
<h1>{title}</h1>
<p class="warning">For research. Not for clinical use.</p>
"""
_VIEWER = """<div id="view" style="aspect-ratio: {ratio}" tabindex="0" aria-label="slices; arrow keys scroll">
<img id="pic" alt="slice"><img id="over" alt="overlay of the segmentation"></div>
<div class="bar"><input id="at" type="range" min="0" max="{last}" value="{start}" aria-label="slice">
<span id="label"></span></div>
<div class="bar"><label><input id="on" type="checkbox" checked> overlay (o)</label>
<input id="see" type="range" min="0" max="100" value="40" aria-label="opacity of the overlay">
<span class="key"><i style="background: #dc322f"></i>left lung<i style="background: #40a02b"></i>right lung<i
style="background: #266eeb"></i>nodule</span></div>
<p class="info">The patient's right is on the left of the picture. Scroll with the wheel, the slider or the
arrow keys.</p>
"""
_SCRIPT = """const by = id => document.getElementById(id);
function show() {
  const one = slices[+by('at').value];
  by('pic').src = one[0]; by('over').src = one[1]; by('label').textContent = one[2];
  by('over').style.opacity = by('on').checked ? by('see').value / 100 : 0;
}
function move(step) { by('at').value = +by('at').value + step; show(); }
by('view').addEventListener('wheel', e => {
  e.preventDefault();
  move(e.deltaY > 0 ? -1 : 1);
}, {passive: false});
document.addEventListener('keydown', e => {
  if (e.target.type === 'range') return;
  const step = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10}[e.key];
  if (step) { e.preventDefault(); move(step); }
  if (e.key === 'o') { by('on').checked = !by('on').checked; show(); }
});
for (const id of ['at', 'on', 'see']) by(id).addEventListener('input', show);
show();
"""


def write_pictures(folder, result, networks):
    scan, masks = result.scan, result.masks
    spacing = scan.geometry.spacing_zyx_mm[1:]
    heights = [geometry.index_to_mm(scan.geometry, (0, 0, k))[2] for k in range(result.start, result.stop)]
    labels = [f"slice {k}" + (f", z {mm:.1f} mm" if scan.has_geometry else "")
              for k, mm in zip(range(result.start, result.stop), heights)]  # fmt: skip
    shown = choose_panels(result)
    overlay.write_overview(
        folder / "overview.png", [result.pictures[k] for k in shown], [masks[k] for k in shown],
        [labels[k] for k in shown], spacing,
    )  # fmt: skip
    nodules = [row for row in result.measurements if row["structure"].startswith("nodule")]
    first = nodules[0]["slice"] - result.start if nodules else len(masks) // 2
    facts = [{"scan": scan.path.name, "form": scan.kind, "size": " x ".join(map(str, scan.stored.size_xyz)),
              "spacing mm": " x ".join(f"{v:.3g}" for v in scan.stored.spacing_xyz_mm)}]  # fmt: skip
    models = [{"network": one.name, "SHA-256 of the weights": one.checksum} for one in networks]
    tables = [("Measurements", shorten_rows(result.measurements)), ("Scan", facts), ("Made by", models)]
    write_report(
        folder / "report.html",
        title=f"Lungs and nodules: {scan.name}",
        pictures=result.pictures,
        masks=masks,
        labels=labels,
        spacing_yx_mm=spacing,
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
            "structure": row["structure"].replace("_", " "),
            "inside": row["inside"].replace("_", " "),
            "volume, mL": _digits(row["volume_ml"]),
            "largest area, mm2": _digits(row["area_mm2"]),
            "its diameter, mm": _digits(row["equivalent_diameter_mm"]),
            "its slice": row["slice"],
            "slices": f"{row['first_slice']} to {row['last_slice']}",
            "centre x, y, z, mm (LPS)": ", ".join(f"{v:.0f}" for v in place) if np.isfinite(place).all() else "",
        })  # fmt: skip
    return rows


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
