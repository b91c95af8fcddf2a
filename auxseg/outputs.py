"""Writers of what `predict` hands over: masks in the input's geometry, measurements, pictures, a report.

Volumes are written slice by slice, so that neither a mask nor a probability map of a whole scan is held in
memory. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import pathlib

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS
from auxseg.base.errors import InputError

PICTURE_WINDOW_HU = (-1350.0, 150.0)
"""A radiologist's lung window (width 1500, level -600); for pictures only."""
_OVERLAY_ALPHA = 110
_MAX_PICTURE_PIXELS = 512


def write_table(path, rows):
    """Writes rows (dicts with the same keys) as CSV; empty where a value is None or not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    with files.write_whole(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def _cell(value):
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    if isinstance(value, float):
        return np.format_float_positional(value, precision=6, fractional=False, trim="-")
    return value


def write_json(path, value):
    """Writes strict, indented JSON, whole or not at all."""
    with files.write_whole(path) as file:
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def read_json(path):
    """Returns the JSON value of a file.

    Raises:
        InputError: it cannot be read as JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); remove it and start again") from error


def encode_picture(image_hu):
    """Returns one slice as a JPEG in the lung window, at most 512 pixels wide or high.

    Args:
        image_hu: int16 [H, W].
    """
    buffer = io.BytesIO()
    _shrink(_grey(image_hu)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def encode_overlay(mask):
    """Returns one mask as a PNG with a transparent background, at most 512 pixels wide or high.

    Args:
        mask: uint8 [H, W], class indices.
    """
    from PIL import Image

    image = _shrink(Image.fromarray(np.ascontiguousarray(mask), "L"), nearest=True)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([0, 0, 0, *(v for name in CLASS_NAMES[1:] for v in COLOURS[name])])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 255, 255, 255]), bits=2)
    return buffer.getvalue()


def _grey(image_hu):
    from PIL import Image

    low, high = PICTURE_WINDOW_HU
    grey = (np.clip(image_hu, low, high) - low) * (255.0 / (high - low))
    return Image.fromarray(grey.astype(np.uint8), "L")


def _shrink(image, nearest=False):
    from PIL import Image

    factor = _MAX_PICTURE_PIXELS / max(image.size)
    if factor >= 1:
        return image
    size = tuple(max(1, round(n * factor)) for n in image.size)
    return image.resize(size, Image.NEAREST if nearest else Image.BILINEAR)


def draw_overview(pictures, masks, captions, spacing_yx_mm):
    """Returns panels of slices with overlay as a PIL image, four to a row, in true proportions.

    Args:
        pictures: JPEGs of the slices (`encode_picture`).
        masks: uint8 [H, W] of the same slices.
        captions: one line a slice.
        spacing_yx_mm: pixel size; its ratio sets the proportions.
    """
    from PIL import Image, ImageDraw

    height, width = np.array(masks[0].shape) * spacing_yx_mm
    tall, wide = (round(360 * n / max(height, width)) for n in (height, width))
    columns = min(4, len(masks))
    rows = -(-len(masks) // columns)
    canvas = Image.new("RGB", (columns * (wide + 6) + 6, rows * (tall + 26) + 28), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (picture, mask, caption) in enumerate(zip(pictures, masks, captions)):
        x, y = 6 + index % columns * (wide + 6), 6 + index // columns * (tall + 26)
        canvas.paste(_blend(picture, mask, (wide, tall)), (x, y))
        draw.text((x + 2, y + tall + 4), caption, fill="black")
    x, y = 8, canvas.height - 20
    for name in CLASS_NAMES[1:]:
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=COLOURS[name])
        draw.text((x + 16, y), name.replace("_", " "), fill="black")
        x += 110
    return canvas


def _blend(picture, mask, size):
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").resize(size, Image.BILINEAR)
    overlay = Image.open(io.BytesIO(encode_overlay(mask))).convert("RGBA").resize(size, Image.NEAREST)
    visible = overlay.getchannel("A").point(lambda a: _OVERLAY_ALPHA if a else 0)
    image.paste(overlay.convert("RGB"), (0, 0), visible)
    return image


def write_overview(path, *args):
    """Writes `draw_overview(*args)` as PNG."""
    with files.write_whole(path) as file:
        draw_overview(*args).save(file, "PNG", compress_level=3)  # level 6 takes three times as long for 4%


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
            parts = [_data_url("jpeg", picture), _data_url("png", encode_overlay(mask)), label]
            file.write((json.dumps(parts).replace("<", "\\u003c") + ",\n").encode())
        file.write(b"];\n" + _SCRIPT.encode() + b"</script>\n</main></body></html>\n")


def _data_url(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _html_table(heading, rows):
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in rows[0]) if rows else ""
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(_cell(v)))}</td>" for v in row.values()) + "</tr>"
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
