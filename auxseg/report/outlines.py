"""The page of nodules among their readers: each with its image, every reader's outline and the network's."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.report import document, markup, viewer
from auxseg.report.markup import Markup, element, join

READER_COLOURS = ("#4dabf7", "#51cf66", "#ffd43b", "#b197fc", "#66d9e8", "#ffa94d", "#f783ac", "#ced4da")
NETWORK_COLOUR = "#ff4040"
MARGIN_PX = 14
"""Shown around what anybody marked."""
SCALE = 4
"""Pixels of the screen a pixel of the slice."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """A nodule as the page shows it.

    Attributes:
        name: of the nodule.
        diameter_mm: of it.
        image_hu: int16 [H, W], the slice.
        readers: bool [R, H, W].
        marked: bool [H, W], the network's.
        dice: of the network with the consensus; NaN where that is empty.
        reader_dice: mean of the readers, each with the consensus of the others; NaN where nobody has others.
        ratings: as `dataset.Outline`.
    """

    name: str
    diameter_mm: float
    image_hu: np.ndarray
    readers: np.ndarray
    marked: np.ndarray
    dice: float
    reader_dice: float
    ratings: dict


def create_page(tiles, scores, *, split, window_hu):
    """Returns the HTML of all nodules, the worst first.

    Args:
        tiles: list of Tile.
        scores: of `scoring.readers.judge` on the slices that are shown.
        split: its name.
        window_hu: (low, high) of the pictures.
    """
    ordered = sorted(tiles, key=lambda tile: (-1.0 if np.isnan(tile.dice) else tile.dice, tile.name))
    shown = element("ul", *(_item(tile, window_hu) for tile in ordered), class_="outlines")
    body = join(
        element("header", element("h1", f"Nodules among their readers: {split}"), _lead(tiles), class_="top"),
        element(
            "main",
            element("section", element("h2", "Scores"), _scores(scores)),
            element("section", element("h2", "Every nodule, the worst first"), _legend(tiles), shown),
        ),
    )
    return document.create_document(f"Nodules among their readers: {split}", body)


def _lead(tiles):
    return element(
        "p",
        f"{len(tiles)} nodules, each on the slice where its consensus is largest. The consensus is what at least half "
        "of the readers mark. Each reader, and the network, is scored against the consensus of the other readers.",
        class_="lead",
    )


def _scores(scores):
    rows = []
    for name, each in scores.items():
        if name == "margin" or not each["nodules"]:
            continue
        low, high = each["interval"] or (np.nan, np.nan)
        difference = markup.number(_or_nan(each["difference"])) + markup.interval(low, high)
        inside = {None: "n/a", True: "yes", False: "no"}[each["inside"]]
        values = [markup.number(_or_nan(each[key])) for key in ("consensus", "found", "reader", "network")]
        rows.append((name, f"{each['nodules']} of {each['patients']}", *values, difference, inside))
    headings = (
        "nodules", "number, of patients", "Dice with the consensus", "found", "a reader", "the network", "difference",
        f"inside the spread (margin {scores['margin']:g})",
    )  # fmt: skip
    return markup.table(headings, rows)


def _or_nan(value):
    return np.nan if value is None else value


def _legend(tiles):
    most = max((len(tile.readers) for tile in tiles), default=0)
    names = [(f"reader {i + 1}", READER_COLOURS[i % len(READER_COLOURS)]) for i in range(most)]
    swatches = [
        element("span", element("span", class_="swatch", style=f"background: {colour}"), f"{name} ")
        for name, colour in [*names, ("the network", NETWORK_COLOUR)]
    ]
    return element("p", *swatches)


def _item(tile, window_hu):
    """Returns one nodule: its slice around what is marked, outlines over it, and a line of words."""
    rows, columns = find_window(tile)
    image = viewer.to_gray(tile.image_hu[rows, columns], window_hu)
    height, width = image.shape
    paths = [
        _path(mask[rows, columns], READER_COLOURS[i % len(READER_COLOURS)], 0.5)
        for i, mask in enumerate(tile.readers)
    ]
    paths.append(_path(tile.marked[rows, columns], NETWORK_COLOUR, 0.8))
    picture = element(
        "svg",
        element("image", href=viewer.png_uri(image), width=width, height=height, preserveAspectRatio="none"),
        *paths,
        viewBox=f"0 0 {width} {height}",
        width=SCALE * width,
        height=SCALE * height,
        role="img",
        aria_label=f"{tile.name}: outlines of {len(tile.readers)} readers and of the network",
    )
    return element("li", element("figure", picture, element("figcaption", describe(tile))))


def _path(mask, colour, width):
    path = viewer.outline(mask)
    return element("path", d=path, fill="none", stroke=colour, stroke_width=width) if path else Markup("")


def find_window(tile):
    """Returns the slices of rows and columns that hold all marks and a margin, a square where the image allows it."""
    marks = tile.readers.any(axis=0) | tile.marked
    places = np.argwhere(marks) if marks.any() else np.array([[n // 2 for n in marks.shape]])
    low, high = places.min(axis=0) - MARGIN_PX, places.max(axis=0) + 1 + MARGIN_PX
    size, middle = int((high - low).max()), (low + high) // 2
    parts = []
    for centre, length in zip(middle.tolist(), marks.shape, strict=True):
        start = max(0, min(centre - size // 2, length - size))
        parts.append(slice(start, min(length, start + size)))
    return tuple(parts)


def describe(tile):
    """Returns a nodule in a line of words."""
    rated = [f"{name} {value:g}" for name, value in tile.ratings.items() if not np.isnan(value)]
    parts = [tile.name, f"{tile.diameter_mm:.1f} mm", f"network {markup.number(tile.dice)}"]
    parts.append(f"readers {markup.number(tile.reader_dice)}")
    return "; ".join(parts + rated)
