"""Pictures of slices with their masks over them: grey levels that hold every window, overlays, an overview."""

from __future__ import annotations

import io

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS, NODULE, to_rgb
from auxseg.prediction import morphology

WINDOWS_HU = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0), "bone": (-500.0, 1300.0)}
"""A radiologist's windows, for pictures only."""
_KNOTS_HU, _KNOTS_LEVEL = (-1350, -160, 240, 1650), (0, 85, 200, 255)
LEVELS_HU = np.interp(np.arange(256), _KNOTS_LEVEL, _KNOTS_HU)
"""float64 [256], HU of the grey levels of pictures: steps of 14 HU in lung, 3.5 in soft tissue, 26 in bone."""
_LEVEL_OF_HU = np.rint(np.interp(np.arange(_KNOTS_HU[0], _KNOTS_HU[-1] + 1), _KNOTS_HU, _KNOTS_LEVEL)).astype(
    np.uint8
)
_OVERLAY_ALPHA = 110
_MAX_PICTURE_PIXELS = 512
_NAME_PX = 110  # of a name and its colour below an overview


def encode_picture(image_hu):
    """Returns one slice as a JPEG in grey levels of `LEVELS_HU`, at most 512 pixels wide or high.

    Args:
        image_hu: int16 [H, W].
    """
    from PIL import Image

    places = np.clip(image_hu, _KNOTS_HU[0], _KNOTS_HU[-1]).astype(np.int32) - _KNOTS_HU[0]
    buffer = io.BytesIO()
    _shrink(Image.fromarray(_LEVEL_OF_HU[places], "L")).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def encode_mask(mask):
    """Returns one mask as a PNG whose pixels are class indices, at most 512 pixels wide or high.

    Args:
        mask: uint8 [H, W], class indices.
    """
    from PIL import Image

    return _encode_classes(_shrink(Image.fromarray(np.ascontiguousarray(mask), "L"), nearest=True))


def _encode_classes(image):
    buffer = io.BytesIO()
    bits = 2 if image.getextrema()[1] < 4 else 4
    _with_palette(image, [(value,) * 3 for value in range(2**bits)]).save(buffer, "PNG", bits=bits)
    return buffer.getvalue()


def _with_palette(image, colours):
    from PIL import Image

    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([part for colour in colours for part in colour])
    return image


def _shrink(image, nearest=False):
    from PIL import Image

    factor = _MAX_PICTURE_PIXELS / max(image.size)
    if factor >= 1:
        return image
    size = tuple(max(1, round(n * factor)) for n in image.size)
    return image.resize(size, Image.NEAREST if nearest else Image.BILINEAR)


def choose_coronal(masks, nodule=NODULE):
    """Returns the row whose coronal plane shows the most nodule, or else the most of all that is marked.

    Args:
        masks: uint8 [H, W], by slice.
        nodule: value of nodules, or `NO_CLASS`.
    """
    found = sum(np.stack([(mask > 0).sum(1), (mask == nodule).sum(1)]) for mask in masks)
    return int(found[int(found[1].any())].argmax())


def cut_coronals(pictures, masks, rows):
    """Returns the coronal planes of some rows as [(JPEG, PNG), ...], superior at the top.

    Args:
        pictures: JPEGs of the slices (`encode_picture`), from inferior to superior.
        masks: uint8 [H, W] of the same slices.
        rows: of the masks.
    """
    from PIL import Image

    height, width = masks[0].shape

    def read(picture):
        plane = np.asarray(Image.open(io.BytesIO(picture)))
        return plane[[row * len(plane) // height for row in rows]]

    levels = np.stack(morphology.by_slice(read, pictures[::-1]), axis=1)
    columns = np.arange(levels.shape[2]) * width // levels.shape[2]
    planes = []
    for row, plane in zip(rows, levels):
        classes = np.stack([masks[k][row][columns] for k in reversed(range(len(masks)))])
        buffer = io.BytesIO()
        Image.fromarray(plane, "L").save(buffer, "JPEG", quality=90)
        planes.append((buffer.getvalue(), _encode_classes(Image.fromarray(classes, "L"))))
    return planes


def draw_overview(pictures, masks, captions, spacing_yx_mm, classes=CLASS_NAMES):
    """Returns panels of slices with overlay as a PIL image, four to a row, in true proportions.

    Args:
        pictures: JPEGs of the slices (`encode_picture`).
        masks: uint8 [H, W] of the same slices.
        captions: one line a slice.
        spacing_yx_mm: pixel size; its ratio sets the proportions.
        classes: names by mask value.
    """
    from PIL import Image, ImageDraw

    height, width = np.array(masks[0].shape) * spacing_yx_mm
    tall, wide = (round(360 * n / max(height, width)) for n in (height, width))
    columns = min(4, len(masks))
    rows = -(-len(masks) // columns)
    canvas = Image.new("RGB", (columns * (wide + 6) + 6, rows * (tall + 26) + 28), "white")
    names_a_line = max(1, (canvas.width - 8) // _NAME_PX)
    lines = -(-(len(classes) - 1) // names_a_line)
    canvas = canvas.resize((canvas.width, canvas.height + 20 * (lines - 1)))
    draw = ImageDraw.Draw(canvas)
    for index, (picture, mask, caption) in enumerate(zip(pictures, masks, captions)):
        x, y = 6 + index % columns * (wide + 6), 6 + index // columns * (tall + 26)
        canvas.paste(_blend(picture, mask, (wide, tall), classes), (x, y))
        draw.text((x + 2, y + tall + 4), caption, fill="black")
    for index, name in enumerate(classes[1:]):
        x = 8 + _NAME_PX * (index % names_a_line)
        y = canvas.height - 20 * (lines - index // names_a_line)
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=COLOURS[name])
        draw.text((x + 16, y), name.replace("_", " "), fill="black")
    return canvas


def _blend(picture, mask, size, classes):
    """Returns a slice in the lung window with its mask over it, as a PIL image."""
    from PIL import Image

    low, high = WINDOWS_HU["lung"]
    grey = np.clip((LEVELS_HU - low) / (high - low), 0, 1) * 255
    image = Image.open(io.BytesIO(picture)).point(np.rint(grey).astype(int).tolist())
    image = image.convert("RGB").resize(size, Image.BILINEAR)
    shown = Image.fromarray(np.ascontiguousarray(mask), "L").resize(size, Image.NEAREST)
    visible = shown.point([_OVERLAY_ALPHA if value else 0 for value in range(256)])
    colours = [(0, 0, 0), *(to_rgb(COLOURS[name]) for name in classes[1:])]
    image.paste(_with_palette(shown, colours).convert("RGB"), (0, 0), visible)
    return image


def write_overview(path, *args):
    """Writes `draw_overview(*args)` as PNG."""
    with files.write_whole(path) as file:
        draw_overview(*args).save(file, "PNG", compress_level=3)  # level 6 takes three times as long for 4%
