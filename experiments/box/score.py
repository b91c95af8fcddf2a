"""Scores the lungs of whole scans, cut out by `predict`'s own way, against label maps beside them.

    python -m experiments.box.score --scans=FOLDER [--runs=DIR] [--out=experiments/results/box_lungs.json]
        [--boxes=CSV] [--shift=-1,-1] [--pictures=DIR]

FOLDER holds scans, each with a label map NAME_lungs.nii.gz beside it (`auxseg.evaluation.whole_scans`). With --runs each
is segmented by the run DIR/without_PATIENT, where its name begins with PATIENT: a network that does not know him
(experiments/box/make.py); without, by the networks in the box. In the boxes of CSV nothing is known. With --shift every scan is scored twice, as the map is given and with the map moved by so many rows
and columns. The map itself, with its edges at -400 HU, is scored as well: what the clean-up's rule for edges costs. One scan is
also segmented with twice its field, filled up with air, and two kernels of one scan are compared.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from auxseg.base import command, errors, files
from auxseg.base.classes import LEFT, RIGHT
from auxseg.ct import scans
from auxseg.evaluation import whole_scans
from auxseg.prediction import airway, box, lungs, segment
from auxseg.runs.networks import load_network
from configs import lungs as lungs_config
from experiments import made_by
from experiments.box import draw

_AIR_HU = -1000
KERNELS = ("Lung_Dx-A0001-B", "Lung_Dx-A0001-L")
"""One scan, reconstructed twice."""


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    files.write_json(pathlib.Path(given.out), measure(given))


def measure(given):
    """Returns what `--out` holds, JSON types; prints a line a score."""
    shifts = [(0, 0)] + ([tuple(int(n) for n in given.shift.split(","))] if given.shift else [])
    rows, volumes = [], {}
    for path in find_labelled(pathlib.Path(given.scans)):
        row = _score_scan(path, load_judged(given.runs, path.name), given, shifts)
        rows.append(row)
        volumes[path.name] = (row["scores"][0]["left_ml"], row["scores"][0]["right_ml"])
    return {
        "made_by": _made_by(given, [row["scan"] for row in rows]),
        "far_mm": whole_scans.FAR_MM,
        "shifts_yx": [list(shift) for shift in shifts],
        "scans": rows,
        "kernels": _compare_kernels(volumes),
        "padded": _pad_scan(given, rows),
    }


def load_judged(runs, name):
    """Returns the `Network` that segments the scan `name`: of the run that does not know it, or in the box.

    Raises:
        InputError: there is no such run, or no box.
    """
    if runs is None:
        return box.load_box().lungs
    found = [
        path
        for path in sorted(pathlib.Path(runs).glob("without_*"))
        if name.startswith(path.name.removeprefix("without_"))
    ]
    if not found:
        raise errors.InputError(f"--runs: {runs} holds no run without_PATIENT for {name}")
    return load_network(found[0])


def find_labelled(folder):
    """Returns the paths of the scans in a folder that have a label map beside them.

    Raises:
        InputError: none has.
    """
    maps = sorted(folder.glob("*_lungs.nii.gz"))
    found = [path.with_name(path.name.removesuffix("_lungs.nii.gz")) for path in maps]
    found = [path for path in found if path.exists()]
    if not found:
        raise errors.InputError(f"--scans: {folder} holds no scan NAME beside a NAME_lungs.nii.gz")
    return found


def _score_scan(path, network, given, shifts):
    """Returns one row of the result."""
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        start, cpu = time.perf_counter(), time.process_time()
        result = segment.segment_scan(scan, [network], segment.Options(), pathlib.Path(scratch))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        masks = np.array(result.masks)
        maps = [read_labels(path, scan, given.boxes, shift) for shift in shifts]
        limit, taken = draw_edges(scan, maps[-1]), measure_taken_airway(scan, masks, maps[-1])
    scores, limits = [], []
    for shift, labels in zip(shifts, maps, strict=True):
        for found, what in ((scores, masks), (limits, limit)):
            found.append(whole_scans.score_lungs(what, labels, scan.geometry.spacing_zyx_mm))
        print(path.name, shift, {name: round(value, 4) for name, value in scores[-1].items() if value is not None},
              flush=True)  # fmt: skip
    if given.pictures:
        pictures = pathlib.Path(given.pictures)
        pictures.mkdir(parents=True, exist_ok=True)
        draw.draw_scan(pictures / f"{path.name}.png", scan, masks, maps[-1])
    return {
        "scan": path.name,
        "network": {"name": network.name, "sha256": network.checksum},
        "slices": scan.num_slices,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "scores": scores,
        "map_with_edges": limits,
        "airway_that_the_map_calls_lung_ml": taken,
        "cleaned_ml": result.changed["clean_lungs"],
        "warnings": [finding.text for finding in result.findings if finding.severity == "warning"],
    }


def read_labels(path, scan, boxes, shift_yx):
    """Returns the label map beside a scan, uint8 [D, H, W], moved and with its boxes (CSV or None) unknown."""
    labels = whole_scans.read_labels(path.with_name(f"{path.name}_lungs.nii.gz"), scan, shift_yx=shift_yx)
    rows = whole_scans.read_boxes(pathlib.Path(boxes), path.name) if boxes else ()
    whole_scans.leave_out(labels, rows, scan)
    return labels


def draw_edges(scan, labels):
    """Returns the lungs of a label map with their edges where the clean-up puts them, uint8 [D, H, W].

    Such a mask knows where the lungs are. What it lacks by the map is what the clean-up's rule for edges costs.
    """
    masks = np.where((labels == LEFT) | (labels == RIGHT), labels, 0).astype(np.uint8)
    for index, mask in enumerate(masks):
        known = np.isin(labels[index], (whole_scans.AIRWAY, whole_scans.UNKNOWN))
        lungs.move_edges(mask, scan.read(index, index + 1)[0], known, scan.geometry.spacing_zyx_mm[1:])
    return masks


def measure_taken_airway(scan, masks, labels):
    """Returns how many mL of a map's lungs are missing in the masks because they belong to the trachea's tree of air."""
    spacing = scan.geometry.spacing_zyx_mm
    tree = airway.find_airway(scan.read(0, scan.num_slices), masks, spacing)
    theirs = (labels == LEFT) | (labels == RIGHT)
    taken = sum(np.count_nonzero(tree.read(k) & theirs[k] & (masks[k] == 0)) for k in range(len(masks)))
    return float(taken * np.prod(spacing) / 1000.0)


def _compare_kernels(volumes):
    """Returns by how much the lungs' volumes of the two kernels differ, relative, or None without both."""
    if not set(KERNELS) <= volumes.keys():
        return None
    first, second = (np.array(volumes[name]) for name in KERNELS)
    return {"scans": list(KERNELS), "relative_difference": np.abs(first / second - 1.0).tolist()}


def _pad_scan(given, rows):
    """Returns how a scan of few slices and the same with twice its field, filled up with air, agree."""
    name = min(rows, key=lambda row: row["slices"])["scan"]
    network = load_judged(given.runs, name)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        scan = scans.open_scan(scans.find_scans(pathlib.Path(given.scans) / name)[0], one)
        plain = segment.segment_scan(scan, [network], segment.Options(), pathlib.Path(one)).masks
        wide_scan = pad(scan)
        wide = segment.segment_scan(wide_scan, [network], segment.Options(), pathlib.Path(other)).masks
        height, width = plain.shape[1:]
        inner = wide[:, height // 2 : height // 2 + height, width // 2 : width // 2 + width]
        dice = [2.0 * np.count_nonzero((plain == side) & (inner == side))
                / (np.count_nonzero(plain == side) + np.count_nonzero(wide == side)) for side in (LEFT, RIGHT)]  # fmt: skip
    return {"scan": name, "left_dice": dice[0], "right_dice": dice[1]}


def pad(scan):
    """Returns a scan with twice as many rows and columns, filled up with air all round."""
    width, height, depth = scan.geometry.size_xyz
    around = ((0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2))
    geometry = dataclasses.replace(scan.geometry, size_xyz=(2 * width, 2 * height, depth))
    return dataclasses.replace(
        scan,
        geometry=geometry,
        stored=geometry,
        read=lambda start, stop: np.pad(scan.read(start, stop), around, constant_values=_AIR_HU),
    )


def _made_by(given, names):
    parts = [" --runs=DIR" if given.runs else "", " --boxes=CSV" if given.boxes else ""]
    parts.append(f" --shift={given.shift}" if given.shift else "")
    command = f"python -m experiments.box.score --scans=FOLDER{''.join(parts)}"
    return made_by.made_by(command, data=", ".join(names), seeds=(lungs_config.get_config().seed,))


if __name__ == "__main__":
    flags.DEFINE_string("scans", None, "folder of scans and label maps", required=True)
    flags.DEFINE_string("runs", None, "folder of the sisters; default: the networks in the box")
    flags.DEFINE_string("out", "experiments/results/box_lungs.json", "JSON file to write")
    flags.DEFINE_string("boxes", None, "CSV of boxes in which nothing is known")
    flags.DEFINE_string("shift", None, "ROWS,COLUMNS by which to move the label maps for a second score")
    flags.DEFINE_string("pictures", None, "folder for a picture of each scan")
    command.run(main)
