"""The viewer of a page: cases of a report, or slices of a scan, that a browser draws without a library.

The CT is a picture of 256 grey levels whose HU the page knows, so that the window can be changed there. Masks are
pictures of class indices; those of cases are also outlines along the edges of pixels (SVG paths, exact at any zoom).
The script is `page.js`.
"""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES, COLOURS, DIFFERENCE_COLOUR, UNKNOWN
from auxseg.report.markup import element, join, script_data

_UNKNOWN_CODE = 15
"""Of an unknown reference in a page, where `UNKNOWN` has no room: no class has it, for there are 15 at most."""


@dataclasses.dataclass(frozen=True)
class CaseImage:
    """One case to look at.

    Attributes:
        case_id: of `row`.
        reasons: why it was chosen, such as 'nodule: worst'.
        image: int16 [H, W] in HU.
        reference: uint8 [H, W], class indices and `UNKNOWN`.
        prediction: uint8 [H, W].
        window_hu: (low, high) that the picture shows.
        row: its scores, as `case_scores.CaseScores.row`.
        classes: names by mask value.
    """

    case_id: str
    reasons: tuple[str, ...]
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    window_hu: tuple[float, float]
    row: dict
    classes: tuple[str, ...] = CLASS_NAMES


def choose_cases(evaluation):
    """Returns {case_id: reasons}: worst, median, best of each class by Dice, the largest false positive.

    Ties go by case id, so that the choice repeats itself.
    """
    chosen = {}
    for name in evaluation.foreground:
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
    names = cases[0].classes[1:] if cases else ()
    order = ("median", "worst", "best", "largest false positive")
    wanted = [f"{name}: {rank}" for rank in order for name in reversed(names)]
    ranked = [next((case for case in cases if reason in case.reasons), None) for reason in wanted]
    unique = list({case.case_id: case for case in ranked if case is not None}.values())
    return unique[:count]


def create_case_viewer(cases):
    """Returns the Markup of a viewer of CaseImages, its data included."""
    low, high = cases[0].window_hu
    classes = cases[0].classes
    data = describe(
        classes=classes,
        levels=np.linspace(low, high, 256),
        windows={"as the network sees": (low, high)},
    )
    data["items"] = [to_item(case) for case in cases]
    controls = join(
        _steps(),
        _fieldset(
            "Outlines",
            _check("show-truth", "Truth (solid)"),
            _check("show-prediction", "Prediction (dashed)"),
        ),
        _fills(("none", "truth", "prediction", "difference"), "difference", opacity=60),
        _classes(classes),
        _score_table(classes),
    )
    return join(
        element("div", id="strip", class_="strip", role="group", aria_label="Cases"),
        _stage(controls),
        script_data("viewer-data", data),
    )


def create_slice_viewer(windows, *, num_slices, start, coronal, classes=CLASS_NAMES):
    """Returns the Markup of a viewer of a scan's slices, without its data.

    Args:
        windows: names of the windows to choose from.
        num_slices: how many slices.
        start: index of the slice to show first.
        coronal: whether a coronal view stands beside it.
        classes: names by mask value.
    """
    view = element("canvas", id="coronal", role="img", aria_label="Coronal view")
    controls = join(
        _steps(),
        _windows(windows),
        _fills(("none", "prediction"), "prediction", opacity=40),
        _classes(classes, _check("show-marks", "Numbers of nodules")),
        _fieldset("Coronal", view, element("div", id="coronal-title", class_="count")) if coronal else None,
    )
    slider = element(
        "input",
        type="range",
        id="position",
        class_="position",
        min=0,
        max=num_slices - 1,
        value=start,
        aria_label="Slice",
    )
    return _stage(controls, slider)


def describe(*, levels, windows, classes=CLASS_NAMES):
    """Returns what the script needs besides its items, JSON types.

    Args:
        levels: float [256], HU of each grey level.
        windows: {name: (low, high)} in HU, the first shown at the start.
        classes: names by mask value.
    """
    return {
        "levels": [round(float(level), 1) for level in levels],
        "windows": [{"name": name, "hu": list(window)} for name, window in windows.items()],
        "classes": [{"name": name, "title": _title(name), "colour": COLOURS[name]} for name in classes[1:]],
        "difference": DIFFERENCE_COLOUR,
        "start": 0,
        "coronals": [],
        "marks": [],
    }


def to_item(case):
    """Returns what the script needs of a CaseImage, JSON types.

    `ct` and `codes` are PNG data URIs: grey levels of the window, and 16 * reference + prediction, where an unknown
    reference is 15.
    """
    truth = np.where(case.reference == UNKNOWN, _UNKNOWN_CODE, case.reference)
    codes = (truth * 16 + case.prediction).astype(np.uint8)
    rows, columns = case.image.shape
    return {
        "key": case.case_id,
        "title": f"{case.case_id}: {'; '.join(case.reasons).replace('_', ' ')}",
        "about": _size(case),
        "reasons": list(case.reasons),
        "rows": rows,
        "columns": columns,
        "aspect": 1.0,
        "ct": png_uri(to_gray(case.image, case.window_hu)),
        "codes": png_uri(codes),
        "truth": {name: outline(case.reference == index) for index, name in enumerate(case.classes) if index},
        "prediction": {
            name: outline(case.prediction == index) for index, name in enumerate(case.classes) if index
        },
        "row": files.to_json(case.row),
    }


def _size(case):
    rows, columns = case.image.shape
    y, x = case.row["spacing_y_mm"], case.row["spacing_x_mm"]
    known = f"pixel {y:.3f} x {x:.3f} mm" if np.isfinite(y) else "pixel size unknown"
    low, high = case.window_hu
    return f"{rows} x {columns} pixels, {known}, window {low:g} to {high:g} HU"


def _stage(controls, below=None):
    picture = element(
        "div",
        element("canvas", id="canvas"),
        element(
            "svg", id="outlines", role="img", xmlns="http://www.w3.org/2000/svg", preserveAspectRatio="none"
        ),
        id="picture",
        class_="layers",
    )
    readout = element("div", id="readout", class_="readout", aria_live="off")
    stage = element("div", element("div", picture, below, readout, class_="stage"))
    return join(
        element("h3", "", id="item-title", aria_live="polite"),
        element("div", stage, element("div", controls, class_="controls"), class_="viewer", id="viewer"),
    )


_ZOOMS = {"fit": "fit the width", "1": "1 screen pixel a pixel", "2": "2 x", "3": "3 x", "5": "5 x"}


def _steps():
    return _fieldset(
        "Move, size",
        element("button", "Previous", type="button", id="previous", class_="step"),
        " ",
        element("button", "Next", type="button", id="next", class_="step"),
        " ",
        element(
            "select",
            [element("option", text, value=value) for value, text in _ZOOMS.items()],
            id="zoom",
            aria_label="Size",
        ),
    )


def _windows(names):
    """Returns a button for each window; the first is chosen, and the keys 1, 2, ... choose too."""
    buttons = [
        element(
            "button",
            _title(name),
            type="button",
            class_="step",
            data_window=at,
            aria_pressed=str(at == 0).lower(),
        )
        for at, name in enumerate(names)
    ]
    return _fieldset("Window", [join(button, " ") for button in buttons])


def _fills(names, chosen, *, opacity):
    return _fieldset(
        "Fill",
        [
            _radio(name, "where they differ" if name == "difference" else name, name == chosen)
            for name in names
        ],
        element("label", "Opacity ", element("output", "", id="opacity-value"), for_="opacity"),
        element("input", type="range", id="opacity", min=0, max=100, value=opacity, step=5),
    )


def _classes(classes, more=None):
    swatches = [(name, element("span", class_=f"swatch {name}")) for name in classes[1:]]
    return _fieldset(
        "Classes", [_check(f"class-{name}", join(swatch, _title(name))) for name, swatch in swatches], more
    )


def _score_table(classes):
    headings = [
        element(
            "th", element("span", class_=f"swatch {name}"), _title(name).replace(" lung", ""), scope="col"
        )
        for name in classes[1:]
    ]
    head = element("thead", element("tr", element("th", "", scope="col"), headings))
    return element("div", element("table", head, element("tbody", id="item-scores")), class_="scroll")


def _title(name):
    return name.replace("_", " ").capitalize()


def _fieldset(legend, *content):
    return element("fieldset", element("legend", legend), *content)


def _check(identity, label):
    return element("label", element("input", type="checkbox", id=identity, checked=True), label)


def _radio(value, label, checked):
    box = element("input", type="radio", name="fill", id=f"fill-{value}", value=value, checked=checked)
    return element("label", box, label)


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


def to_uri(content, kind="png"):
    """Returns the data URI of a picture's bytes."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


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
