"""The cases that a report shows: which, by score, and as what a page can draw without a library.

Masks become outlines along the edges of pixels (SVG paths, exact at any zoom), the CT an 8-bit PNG in its
window.
"""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES
from auxseg.scoring import case_scores


@dataclasses.dataclass(frozen=True)
class CaseImage:
    """One case to look at.

    Attributes:
        case_id: of `row`.
        reasons: why it was chosen, such as 'nodule: worst'.
        image: int16 [H, W] in HU.
        reference: uint8 [H, W].
        prediction: uint8 [H, W].
        window_hu: (low, high) that the picture shows.
        row: its scores, as `scores.CaseScores.row`.
    """

    case_id: str
    reasons: tuple[str, ...]
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    window_hu: tuple[float, float]
    row: dict


def choose_cases(evaluation):
    """Returns {case_id: reasons}: worst, median, best of each class by Dice, the largest false positive.

    Ties go by case id, so that the choice repeats itself.
    """
    chosen = {}
    for name in case_scores.FOREGROUND:
        present = [row for row in evaluation.rows if row[f"{name}_status"] in ("scored", "missed")]
        present.sort(key=lambda row: (row[f"{name}_dice"], row["case_id"]))
        if present:
            places = {"worst": 0, "median": len(present) // 2, "best": len(present) - 1}
            for rank, at in places.items():
                chosen.setdefault(present[at]["case_id"], []).append(f"{name}: {rank}")
        false = [row for row in evaluation.rows if row[f"{name}_status"] == "false_positive"]
        if false:
            largest = max(false, key=lambda row: (row[f"{name}_predicted_px"], row["case_id"]))
            chosen.setdefault(largest["case_id"], []).append(f"{name}: largest false positive")
    return {case_id: tuple(reasons) for case_id, reasons in chosen.items()}


def choose_panels(cases, count):
    """Returns at most `count` cases to draw as a figure: each class and rank in turn, no case twice."""
    order = ("median", "worst", "best", "largest false positive")
    wanted = [f"{name}: {rank}" for rank in order for name in reversed(case_scores.FOREGROUND)]
    ranked = [next((case for case in cases if reason in case.reasons), None) for reason in wanted]
    unique = list({case.case_id: case for case in ranked if case is not None}.values())
    return unique[:count]


def to_page(case):
    """Returns what the page's script needs of a CaseImage, JSON types.

    `ct` and `codes` are PNG data URIs: grey levels of the window, and 16 * reference + prediction for the
    readout.
    """
    codes = case.reference.astype(np.uint8) * 16 + case.prediction.astype(np.uint8)
    return {
        "id": case.case_id,
        "reasons": list(case.reasons),
        "rows": case.image.shape[0],
        "columns": case.image.shape[1],
        "window": list(case.window_hu),
        "ct": png_uri(to_gray(case.image, case.window_hu)),
        "codes": png_uri(codes),
        "truth": {name: outline(case.reference == index) for index, name in enumerate(CLASS_NAMES) if index},
        "prediction": {
            name: outline(case.prediction == index) for index, name in enumerate(CLASS_NAMES) if index
        },
        "difference": outline(case.reference != case.prediction),
        "row": files.to_json(case.row),
    }


def to_gray(image, window_hu):
    """Returns uint8 [H, W], HU mapped from the window to 0-255 and clipped."""
    low, high = window_hu
    return np.clip(np.rint((image.astype(np.float32) - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def png_uri(pixels):
    """Returns the data URI of uint8 [H, W] as a grey PNG."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", optimize=True)
    return to_uri(content.getvalue())


def to_uri(png):
    """Returns the data URI of PNG bytes."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def outline(mask):
    """Returns the SVG path of a mask bool [H, W] along the edges of its pixels; '' where it is empty.

    Closed loops, x to the right and y down, one unit a pixel; fill by the even-odd rule leaves holes open.
    """
    steps = _edges(mask)
    parts = []
    while steps:
        start = point = next(iter(steps))
        loop = []
        while True:
            direction = _take(steps, point)
            if loop and loop[-1][0] == direction:
                loop[-1][1] += 1
            else:
                loop.append([direction, 1])
            point = (point[0] + _MOVES[direction][0], point[1] + _MOVES[direction][1])
            if point == start and point not in steps:
                break
        parts.append(
            f"M{start[1]} {start[0]}" + "".join(_SVG[way].format(length) for way, length in loop[:-1]) + "z"
        )
    return "".join(parts)


_MOVES = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
_SVG = {"right": "h{}", "left": "h-{}", "down": "v{}", "up": "v-{}"}


def _edges(mask):
    """Returns {(row, column) of a corner: directions that leave it}, the mask to the right of the way."""
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:-1], padded[1:, 1:-1]
    before, after = padded[1:-1, :-1], padded[1:-1, 1:]
    edges = {
        "right": np.argwhere(~above & below),
        "left": np.argwhere(above & ~below) + [0, 1],
        "down": np.argwhere(before & ~after),
        "up": np.argwhere(~before & after) + [1, 0],
    }
    steps = {}
    for direction, corners in edges.items():
        for corner in map(tuple, corners.tolist()):
            steps.setdefault(corner, []).append(direction)
    return steps


def _take(steps, point):
    directions = steps[point]
    direction = directions.pop()
    if not directions:
        del steps[point]
    return direction
