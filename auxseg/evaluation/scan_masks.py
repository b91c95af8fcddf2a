"""Masks of whole scans, of whichever tool, judged against reference masks: tables, and one page for all tools.

Scans and predictions belong together by name. A folder that `predict` wrote is read as well as nnU-Net's, lungmask's or
TotalSegmentator's; `data.label_map`'s conventions say what the values mean.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np

from auxseg.base import files, progress
from auxseg.base.classes import CLASS_NAMES, UNKNOWN, value_of
from auxseg.base.errors import InputError
from auxseg.ct import geometry, images, label_files
from auxseg.datasets.folder import label_map, labels, listing
from auxseg.report import masks_page
from auxseg.scoring import volumes


@dataclasses.dataclass(frozen=True)
class Tool:
    """A folder of masks.

    Attributes:
        name: what to call it.
        folder: where.
        meaning: `label_map.LabelMap` of its values.
        labels: `labels.Label`s, what was found there.
        value_names: {value: name} of a dataset.json there or above.
    """

    name: str
    folder: pathlib.Path
    meaning: label_map.LabelMap
    labels: list
    value_names: dict


def judge(reference, predictions, output, *, reference_map=None, prediction_maps=()):
    """Writes scores.csv, nodules.csv, scans.csv, scores.json and index.html; returns (scores, path of the page).

    Args:
        reference: folder of masks.
        predictions: folders of masks, one a tool.
        output: folder to write to.
        reference_map: what the reference's values mean, text of `label_map.parse`.
        prediction_maps: the same of each prediction; fewer than predictions: the last ones have our own values.

    Raises:
        InputError: a folder is missing or has no mask, or no scan is in both.
    """
    texts = [*prediction_maps, *[None] * (len(predictions) - len(prediction_maps))]
    if len(texts) > len(predictions):
        raise InputError(
            f"--prediction_label_map: got {len(texts)}, expected at most one for each --prediction"
        )
    truth = _read_tool("reference", pathlib.Path(reference), reference_map, "--reference")
    names = _name_tools([pathlib.Path(folder) for folder in predictions])
    tools = [
        _read_tool(name, pathlib.Path(folder), text, "--prediction")
        for name, folder, text in zip(names, predictions, texts)
    ]
    rows, nodules, scans, pictures = [], [], [], []
    for tool in tools:
        pairs, alone = _pair(truth, tool)
        scans += alone
        for name, paths in progress.track(pairs, total=len(pairs), label=f"Scoring {tool.name}", unit="scan"):
            found = _judge_scan(truth, tool, name, *paths)
            scans.append(
                {
                    "tool": tool.name,
                    "scan": name,
                    "what": "failed" if "why" in found else "scored",
                    "why": found.get("why", ""),
                }
            )
            rows += found.get("rows", ())
            nodules += found.get("nodules", ())
            pictures += found.get("pictures", ())
    if not rows:
        whys = list(dict.fromkeys(one["why"] for one in scans))
        more = f" (and {len(whys) - 1} more like this)" if len(whys) > 1 else ""
        raise InputError(f"--prediction: no scan could be scored: {whys[0]}{more}")
    scores = _collect(rows, nodules, scans, truth)
    output = pathlib.Path(output)
    files.write_csv(output / "scores.csv", scores["rows"], digits=files.FEW_DIGITS)
    files.write_csv(
        output / "nodules.csv", scores["nodules"], masks_page.NODULE_COLUMNS, digits=files.FEW_DIGITS
    )
    files.write_csv(output / "scans.csv", scans)
    files.write_json(output / "scores.json", scores)
    files.write_text(output / "index.html", masks_page.create_page(scores, pictures))
    return scores, output / "index.html"


def _read_tool(name, folder, text, flag):
    if not folder.is_dir():
        raise InputError(f"{flag}: {folder} does not exist or is no folder; expected masks, one a scan")
    found, _ = labels.list_labels(folder)
    if not found:
        raise InputError(
            f"{flag}: {folder} holds no mask: neither an image, DICOM-SEG, RTSTRUCT nor a folder of them"
        )
    about = next(
        (place / listing.DATASET for place in (folder, folder.parent) if (place / listing.DATASET).is_file()),
        None,
    )
    value_names = labels.read_value_names(files.read_object(about).get("labels")) if about else {}
    return Tool(name, folder, label_map.parse(text, f"{flag}_label_map"), found, value_names)


def _name_tools(folders):
    """Returns a name for each folder: its own, with its parent's where two share it."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else "/".join(folder.resolve().parts[-2:])
        for name, folder in zip(names, folders)
    ]


def _pair(truth, tool):
    """Returns ([(scan, (reference paths, predicted paths))], rows of what is in one folder alone)."""
    pairs, alone, taken = [], [], set()
    for label in truth.labels:
        own = [one for one in tool.labels if one.names & label.names]
        taken |= {id(one) for one in own}
        name = label.name
        if len(own) == 1 and own[0].paths:
            pairs.append((name, (label.paths, own[0].paths)))
        else:
            why = f"{len(own)} predictions have its name" if len(own) > 1 else "no prediction has its name"
            alone.append({"tool": tool.name, "scan": name, "what": "not scored", "why": why})
    for one in tool.labels:
        if id(one) not in taken:
            why = "no reference has its name"
            alone.append({"tool": tool.name, "scan": one.name, "what": "not scored", "why": why})
    return pairs, alone


def _judge_scan(truth, tool, name, reference_paths, predicted_paths):
    """Returns rows by class, nodules and a picture of one scan; or `why` it could not be scored."""
    with (
        tempfile.TemporaryDirectory(prefix="auxseg-") as one,
        tempfile.TemporaryDirectory(prefix="auxseg-") as other,
    ):
        try:
            grid = _find_grid([*reference_paths, *predicted_paths])
            reference = labels.read_classes(reference_paths, grid, one, truth.meaning, truth.value_names)
            prediction = labels.read_classes(predicted_paths, grid, other, tool.meaning, tool.value_names)
        except InputError as error:
            return {"why": str(error)}
        labels.forget_unmarked(reference)
        measured = _measure(grid)
        shared = {"tool": tool.name, "scan": name}
        rows = [
            shared | {"class": kind} | volumes.score_class(prediction, reference, value_of(kind), measured)
            for kind in CLASS_NAMES[1:]
        ]
        nodules = [shared | row for row in volumes.match_nodules(prediction, reference, measured)]
        return {
            "rows": rows,
            "nodules": nodules,
            "pictures": [(tool.name, name, *_differing(prediction, reference))],
        }


def _find_grid(paths):
    """Returns the canonical grid of the first image among label files.

    Raises:
        InputError: none of them is one.
    """
    for path in paths:
        images_of = (
            label_files.list_structures(path)
            if path.is_dir()
            else [path]
            if label_files.is_image(path)
            else []
        )
        if images_of:
            return images.read_geometry(images_of[0])
    raise InputError(
        f"{paths[0]}: neither side is an image, which says where the voxels lie; convert one of them"
    )


def _measure(grid):
    corners = geometry.index_to_mm(grid, [(0, 0, 0), np.array(grid.size_xyz) - 1])
    volume_mm3 = float(np.prod(grid.spacing_xyz_mm) * abs(np.linalg.det(geometry.direction_matrix(grid))))
    return volumes.Grid(
        lambda index_zyx: geometry.index_to_mm(grid, index_zyx[:, ::-1]),
        volume_mm3,
        float(np.linalg.norm(corners[1] - corners[0])),
    )


def _differing(prediction, reference):
    """Returns (index, prediction, reference) of the slice where most known voxels differ."""
    counts = [np.count_nonzero((p != r) & (r != UNKNOWN)) for p, r in zip(prediction, reference)]
    index = int(np.argmax(counts))
    return index, np.array(prediction[index]), np.array(reference[index])


def _collect(rows, nodules, scans, truth):
    """Returns the scores without classes that one side never marks, and notes that say which."""
    kept, notes = [], []
    for tool in dict.fromkeys(row["tool"] for row in rows):
        for kind in CLASS_NAMES[1:]:
            own = [row for row in rows if row["tool"] == tool and row["class"] == kind]
            if not any(row["reference_ml"] for row in own):
                notes.append(f"{tool}: no reference marks a {kind.replace('_', ' ')}; it is not scored.")
            elif not any(row["volume_ml"] for row in own):
                notes.append(f"{tool}: no prediction marks a {kind.replace('_', ' ')}; it is not scored.")
            else:
                kept += own
    scored = {row["tool"] for row in kept if row["class"] == "nodule"}
    return {
        "reference": truth.folder.name,
        "notes": list(dict.fromkeys(notes)),
        "rows": kept,
        "nodules": [row for row in nodules if row["tool"] in scored],
        "scans": scans,
    }
