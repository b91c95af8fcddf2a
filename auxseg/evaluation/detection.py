"""Nodules of whole scans judged as LUNA16 judges: what `predict` wrote against a table of annotations.

A prediction's folder holds candidates.csv, every candidate with its probability, and prediction.json, which says how the
scan is called in tables (`seriesuid`) and which candidates were kept. The rule is that of `scoring.froc`. Where masks with
nodules are at hand, the outlines are compared too.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from auxseg.base import files
from auxseg.base.classes import NODULE
from auxseg.base.errors import InputError
from auxseg.ct import geometry, headers, images, own, writers
from auxseg.report import froc_page
from auxseg.scoring import components, froc

AGAIN = "predict again, without --workdir: the networks in the box give each candidate a probability"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` found in one scan.

    Attributes:
        folder: of its results.
        name: of the scan.
        uid: how tables call it.
        findings: float64 [n, 4]: x, y, z in mm (LPS) and probability.
        least_probability: of those that were kept.
        about: what `prediction.json` says.
    """

    folder: pathlib.Path
    name: str
    uid: str
    findings: np.ndarray
    least_probability: float
    about: dict


def judge(prediction, annotations, output, *, excluded=None, reference=None):
    """Writes scores.json, scans.csv, nodules.csv and index.html; returns (scores, path of the page).

    Args:
        prediction: folder that `predict` wrote, of one scan or of many.
        annotations: CSV of nodules in LUNA16's form.
        output: folder to write to.
        excluded: CSV of findings that are neither nodule nor not, or None.
        reference: folder of masks, named as the scans, whose class nodule is compared with the predicted one; or None.

    Raises:
        InputError: a file is missing or of another form, or no predicted scan is among the annotations.
    """
    predictions = read_predictions(prediction)
    known = froc.read_annotations(annotations)
    left_out = froc.read_annotations(excluded) if excluded else {}
    if not {one.uid for one in predictions} & (known.keys() | left_out.keys()):
        raise InputError(
            f"--annotations: {annotations} names none of the {len(predictions)} predicted scans, such as "
            f"{predictions[0].uid}; its seriesuid must be the series' UID, or the name of a file that is no DICOM"
        )
    empty = np.zeros((0, 4))
    matches = {
        one.uid: froc.match(one.findings, known.get(one.uid, empty), left_out.get(one.uid, empty))
        for one in predictions
    }
    nodules = _list_nodules(predictions, known, matches, reference)
    scores = {
        "rule": "LUNA16",
        "annotations": pathlib.Path(annotations).name,
        "excluded": pathlib.Path(excluded).name if excluded else None,
        "made_by": _list_makers(predictions),
        "not_predicted": len(known.keys() - matches.keys()),
        "scores": froc.summarise(matches.values()),
        "curve": dict(zip(("false_per_scan", "sensitivity"), froc.curve(matches.values()))),
        "scans": [_describe_scan(one, matches[one.uid]) for one in predictions],
        "nodules": nodules,
    }
    output = pathlib.Path(output)
    files.write_csv(output / "scans.csv", scores["scans"], digits=files.FEW_DIGITS)
    files.write_csv(output / "nodules.csv", nodules, digits=files.FEW_DIGITS)
    files.write_json(output / "scores.json", scores)
    files.write_text(output / "index.html", froc_page.create_page(scores))
    return scores, output / "index.html"


def read_predictions(folder):
    """Returns the `Prediction`s below a folder, in the order of their names.

    Raises:
        InputError: there is none, two are of one scan, or one has no candidates.
    """
    found = [_read_prediction(path.parent) for path in sorted(pathlib.Path(folder).rglob(own.DONE))]
    if not found:
        raise InputError(f"--prediction: {folder} holds no {own.DONE}; give the folder that predict wrote")
    seen = {}
    for one in found:
        if one.uid in seen:
            raise InputError(
                f"--prediction: {one.folder} and {seen[one.uid]} are both of the scan {one.uid}; keep one of them"
            )
        seen[one.uid] = one.folder
    return found


def _read_prediction(folder):
    about = files.read_object(folder / own.DONE, hint=AGAIN)
    path = folder / own.CANDIDATES
    if not path.is_file() or about.get("least_probability") is None:
        raise InputError(f"--prediction: {folder} has no {own.CANDIDATES}; {AGAIN}")
    _check_about(about, folder / own.DONE)
    uid = about["seriesuid"]
    findings = froc.read_candidates(path).get(uid, np.zeros((0, 4)))
    return Prediction(folder, about["name"], uid, findings, about["least_probability"], about)


_KINDS = {"name": str, "seriesuid": str, "least_probability": (int, float), "files": list}


def _check_about(about, path):
    """Raises where what is read of a prediction.json is of another kind than auxseg writes."""
    box = about.setdefault("box", None)
    sound = {name: isinstance(about.get(name), kind) for name, kind in _KINDS.items()}
    sound["files"] = sound["files"] and all(isinstance(name, str) for name in about["files"])
    sound["box"] = box is None or (isinstance(box, dict) and {"version", "sha256"} <= box.keys())
    for name in (name for name, is_sound in sound.items() if not is_sound):
        raise InputError(
            f"{path}: {name} is none of auxseg's, {about.get(name)!r:.80}; it is damaged: {AGAIN}"
        )


def _list_makers(predictions):
    """Returns what made the predictions, each once: version and checksum of the box."""
    boxes = [one.about["box"] for one in predictions]
    return [box for at, box in enumerate(boxes) if box not in boxes[:at]]


def _describe_scan(prediction, match):
    least = prediction.least_probability
    return {
        "scan": prediction.name,
        "nodules": len(match.hits),
        "found": int((match.hits >= least).sum()),
        "false": int((match.false >= least).sum()),
        "found_at_any": int((~np.isnan(match.hits)).sum()),
        "false_at_any": len(match.false),
        "least_probability": least,
        "seriesuid": prediction.uid,
    }


def _list_nodules(predictions, known, matches, reference):
    """Returns a row for each annotated nodule of the predicted scans; `found` is at the point that was predicted with."""
    rows = []
    for one in predictions:
        own = known.get(one.uid, ())
        masks = _read_masks(one, reference) if reference and len(own) else None
        for (x, y, z, diameter), hit in zip(own, matches[one.uid].hits):
            row = {
                "scan": one.name,
                "x_mm": float(x),
                "y_mm": float(y),
                "z_mm": float(z),
                "diameter_mm": float(diameter),
                "probability": float(hit),
                "found": bool(hit >= one.least_probability),
            }
            rows.append(row | (compare_outlines(*masks, (x, y, z), diameter) if masks else {}))
    return rows


def _read_masks(prediction, folder):
    """Returns (predicted mask, reference mask, their grid), masks uint8 [D, H, W]."""
    stored = [name for name in prediction.about["files"] if name.lower().endswith(headers.SUFFIXES)]
    masks = [name for name in stored if name.startswith("mask.")]
    if not masks:
        raise InputError(
            f"--reference: {prediction.folder} has no mask as a volume; predict with --format={writers.VOLUME_FORMATS[0]}"
        )
    header = images.read_header(prediction.folder / masks[0])
    paths = [pathlib.Path(folder) / f"{prediction.name}{suffix}" for suffix in headers.SUFFIXES]
    path = next((one for one in paths if one.is_file()), None)
    if path is None:
        raise InputError(
            f"--reference: no mask {paths[0].name} in {folder}, nor with {', '.join(headers.SUFFIXES[1:])}"
        )
    other = images.read_header(path)
    difference = geometry.geometry_difference(other.geometry, header.geometry)
    if difference:
        raise InputError(f"--reference: {path} lies on another grid than {header.path}: {difference}")
    predicted, truth = (images.read_volume(each.path, header=each) for each in (header, other))
    return predicted, truth, header.geometry


def compare_outlines(predicted, truth, grid, centre_xyz_mm, diameter_mm):
    """Returns Dice and volumes of one nodule, a dict; its values are NaN where the reference marks no nodule there.

    The nodule is the piece of the reference nearest to the annotated centre, within its radius. What is predicted is
    every piece that overlaps it.

    Args:
        predicted: [D, H, W], class indices.
        truth: the same of the reference.
        grid: their `Geometry`.
        centre_xyz_mm: of the annotation.
        diameter_mm: of the annotation.
    """
    own = _nearest_piece(truth, grid, np.array(centre_xyz_mm), diameter_mm)
    if own is None:
        return dict.fromkeys(("dice", "volume_mm3", "reference_volume_mm3", "volume_error"), np.nan)
    voxel_mm3 = float(np.prod(grid.spacing_xyz_mm)) * abs(np.linalg.det(geometry.direction_matrix(grid)))
    found = components.find_components(predicted, NODULE)
    slices = np.flatnonzero(own.any(axis=(1, 2)))
    touched = {int(n) for k in slices for n in np.unique(found.read(predicted, k)[own[k]])} - {0}
    voxels = sum(found.pieces[number - 1].voxels for number in touched)
    both = sum(np.count_nonzero(own[k] & (predicted[k] == NODULE)) for k in slices)
    size = int(own.sum())
    return {
        "dice": 2.0 * both / (size + voxels),
        "volume_mm3": voxels * voxel_mm3,
        "reference_volume_mm3": size * voxel_mm3,
        "volume_error": voxels / size - 1.0,
    }


def _nearest_piece(truth, grid, centre_xyz_mm, diameter_mm):
    """Returns the voxels of the piece with the voxel nearest to a place, bool [D, H, W]; None beyond the radius."""
    places = np.argwhere(truth == NODULE)
    if not len(places):
        return None
    apart = np.linalg.norm(geometry.index_to_mm(grid, places[:, ::-1]) - centre_xyz_mm, axis=1)
    radius = (froc.UNKNOWN_DIAMETER_MM if diameter_mm < 0 else diameter_mm) / 2.0
    if apart.min() >= radius:
        return None
    index, row, column = places[apart.argmin()]
    found = components.find_components(truth, NODULE)
    number = found.read(truth, index)[row, column]
    return np.stack([found.read(truth, k) == number for k in range(len(truth))])
