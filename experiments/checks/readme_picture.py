"""Draws the README's picture from a prediction: a slice, its mask, and the largest nodule that was found.

    auxseg predict SCAN OUT
    python -m experiments.checks.readme_picture --scan=SCAN --prediction=OUT --credit="LIDC-IDRI-0001, CC BY 3.0"

OUT is what `predict` wrote, with the mask as NIfTI.
"""

import pathlib
import tempfile

import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from auxseg.base import command, files
from auxseg.base.classes import CLASS_NAMES, COLOURS
from auxseg.base.errors import InputError
from auxseg.ct import images, scans
from auxseg.prediction.overlay import WINDOWS_HU
from auxseg.scoring import components

RESULT = pathlib.Path(__file__).parents[1] / "results" / "readme_picture.png"
SIDE_PX, GAP_PX, FOOT_PX = 300, 6, 18
CLOSE_UP_MM = 60.0
_LUNG_ALPHA, _NODULE_ALPHA = 0.45, 0.85
_NODULE = CLASS_NAMES.index("nodule")


def find_largest_nodule(masks):
    """Returns (slice, row, column) of the largest nodule's largest slice and its centre there.

    Args:
        masks: uint8 [D, H, W], canonical.

    Raises:
        InputError: no nodule was found.
    """
    pieces = components.find_components(masks, _NODULE)
    if not pieces.pieces:
        raise InputError("--prediction: no nodule was found in this scan; choose another")
    index = pieces.pieces[0].largest_slice
    rows, columns = np.nonzero(pieces.read(masks, index) == 1)  # the largest comes first
    return index, round(rows.mean()), round(columns.mean())


def draw(image_hu, mask, centre_yx, pixel_mm, credit):
    """Returns three panels as a PIL image: the slice, the slice with its mask, and the nodule with its outline.

    Args:
        image_hu: int16 [H, W].
        mask: uint8 [H, W], class indices.
        centre_yx: row and column of the nodule.
        pixel_mm: distance between pixels.
        credit: whose scan it is.
    """
    grey = _grey(image_hu)
    box = _close_up(centre_yx, pixel_mm, mask.shape)
    outline = (mask == _NODULE) & ~_shrink(mask == _NODULE)
    lungs, nodules = np.where(mask == _NODULE, 0, mask), np.where(mask == _NODULE, mask, 0)
    marked = _paint(_paint(grey, lungs, _LUNG_ALPHA), nodules, _NODULE_ALPHA)
    panels = [grey, marked, _paint(grey, np.where(outline, mask, 0), 1.0)[box]]
    canvas = Image.new("RGB", (3 * SIDE_PX + 2 * GAP_PX, SIDE_PX + FOOT_PX), "white")
    for number, panel in enumerate(panels):
        picture = Image.fromarray(panel).resize((SIDE_PX, SIDE_PX), Image.LANCZOS)
        canvas.paste(picture, (number * (SIDE_PX + GAP_PX), 0))
    ImageDraw.Draw(canvas).text((2, SIDE_PX + 4), credit, fill="black")
    return canvas.quantize(256, dither=Image.Dither.NONE)


def _grey(image_hu):
    """Returns uint8 [H, W, 3] in the lung window."""
    low, high = WINDOWS_HU["lung"]
    scaled = (np.clip(image_hu, low, high) - low) * (255.0 / (high - low))
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=-1)


def _paint(grey, mask, alpha):
    """Returns a slice with each class of a mask over it in its colour."""
    painted = grey.astype(float)
    for value, name in enumerate(CLASS_NAMES[1:], start=1):
        colour = np.array([int(COLOURS[name][k : k + 2], 16) for k in (1, 3, 5)])
        chosen = mask == value
        painted[chosen] = (1 - alpha) * painted[chosen] + alpha * colour
    return np.rint(painted).astype(np.uint8)


def _shrink(mask):
    """Returns the pixels of a mask whose four neighbours are in it."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask


def _close_up(centre_yx, pixel_mm, shape_yx):
    """Returns the slices of a square of `CLOSE_UP_MM` around a place, moved inside the image."""
    side = min(round(CLOSE_UP_MM / pixel_mm), *shape_yx)
    starts = [
        min(max(0, place - side // 2), length - side)
        for place, length in zip(centre_yx, shape_yx, strict=True)
    ]
    return tuple(slice(start, start + side) for start in starts)


def main(argv):
    """Writes the picture and says which slice it shows."""
    del argv
    values = flags.FLAGS
    masks = images.read_volume(pathlib.Path(values.prediction) / "mask.nii.gz")
    index, *centre_yx = find_largest_nodule(masks.astype(np.uint8))
    (source,) = scans.find_scans(values.scan)
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(source, scratch)
        if (scan.num_slices, *scan.geometry.shape_zyx[1:]) != masks.shape:
            raise InputError(f"--prediction: got a mask of {masks.shape}, expected the scan's size")
        image = scan.read(index, index + 1)[0]
        pixel_mm = scan.geometry.spacing_zyx_mm[2]
    picture = draw(image, masks[index].astype(np.uint8), centre_yx, pixel_mm, values.credit)
    with files.write_whole(pathlib.Path(values.out)) as file:
        picture.save(file, "PNG", optimize=True)
    print(f"{values.out}: slice {index}, nodule at row {centre_yx[0]}, column {centre_yx[1]}")


if __name__ == "__main__":
    flags.DEFINE_string("scan", None, "the scan", required=True)
    flags.DEFINE_string("prediction", None, "folder that predict wrote", required=True)
    flags.DEFINE_string("credit", "", "line below the picture")
    flags.DEFINE_string("out", str(RESULT), "PNG to write")
    command.run(main)
