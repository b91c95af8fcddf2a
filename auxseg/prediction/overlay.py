"""Pictures of slices with their masks over them."""

from __future__ import annotations

import io

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS, to_rgb

PICTURE_WINDOW_HU = (-1350.0, 150.0)
"""A radiologist's lung window (width 1500, level -600); for pictures only."""
_OVERLAY_ALPHA = 110
_MAX_PICTURE_PIXELS = 512


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
    image.putpalette([0, 0, 0, *(v for name in CLASS_NAMES[1:] for v in to_rgb(COLOURS[name]))])
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
