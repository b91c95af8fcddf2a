"""Scores a network that has seen nothing but a phantom on whole real scans: what that phantom taught it.

    python -m experiments.box.phantom_alone --scans=FOLDER --workdir=RUN --version=2 [--boxes=CSV] [--shift=-1,-1]

FOLDER is as for `experiments.box.score`; the run was trained by configs/lungs_phantom.py on a phantom of that version. A
scan is scored twice: as the network marks it, and after the clean-up of lungs in three dimensions. With --shift the label
maps are moved by so many rows and columns. In the boxes of CSV nothing is known. Writes
`experiments/results/phantom_alone_VERSION.json`.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.ct import scans
from auxseg.evaluation import whole_scans
from auxseg.prediction import lungs, segment
from auxseg.runs import networks
from configs import lungs_phantom
from experiments import made_by
from experiments.box.score import find_labelled, read_labels

_SCORES = (
    "left_dice",
    "right_dice",
    "outside_ml",
    "far_outside_ml",
    "missed_ml",
    "airway_ml",
    "airway_marked_ml",
)


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    network, summary = networks.load_network(given.workdir), pathlib.Path(given.workdir) / "summary.json"
    shift_yx = tuple(int(number) for number in given.shift)
    paths = find_labelled(pathlib.Path(given.scans))
    rows = [score_scan(path, network, given.boxes, shift_yx) for path in paths]
    flag = " --boxes=CSV" if given.boxes else ""
    line = f"python -m experiments.box.phantom_alone --scans=FOLDER --workdir=RUN --version={given.version}{flag}"
    origin = made_by.made_by(
        f"{line} --shift={','.join(given.shift)}",
        data=", ".join(path.name for path in paths),
        seeds=(lungs_phantom.get_config().seed,),
    )
    result = {
        "made_by": origin,
        "phantom": given.version,
        "network": {"sha256": network.checksum, "epochs": files.read_object(summary)["epochs"]},
        "scans": rows,
    }
    files.write_json(pathlib.Path(given.out) / f"phantom_alone_{given.version}.json", result)


def score_scan(path, network, boxes, shift_yx):
    """Returns the scores of one scan, as marked and as cleaned; prints a line of each."""
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        options = segment.Options(clean_lungs=False, force=True)
        marked = segment.segment_scan(scan, [network], options, pathlib.Path(scratch))
        cleaned = _clean(scan, marked)
        labels = read_labels(path, scan, boxes, shift_yx)
        row = {"scan": path.name}
        for name, masks in (("marked", np.array(marked.masks)), ("cleaned", cleaned)):
            scores = whole_scans.score_lungs(masks, labels, scan.geometry.spacing_zyx_mm)
            row[name] = {score: scores[score] for score in _SCORES}
            print(path.name, name, {key: round(value, 3) for key, value in row[name].items()}, flush=True)
    return row


def _clean(scan, marked):
    """Returns the masks after the clean-up that `predict` does to the lungs of a whole scan."""
    parts, shape_yx = marked.box.cut_mask(marked.masks), marked.masks.shape[1:]
    volume = marked.box.cut(scan.read(0, scan.num_slices))
    lungs.clean(parts, volume, scan.geometry.spacing_zyx_mm, marked.box.shown(shape_yx))
    return marked.box.paste(parts, shape_yx)


if __name__ == "__main__":
    flags.DEFINE_string("scans", None, "folder of scans and label maps", required=True)
    flags.DEFINE_string("workdir", None, "run on a phantom", required=True)
    flags.DEFINE_integer("version", None, "of its phantom", required=True)
    flags.DEFINE_list("shift", ["0", "0"], "ROWS,COLUMNS by which to move the label maps")
    flags.DEFINE_string("boxes", None, "CSV of boxes in which nothing is known")
    flags.DEFINE_string("out", "experiments/results", "folder of the results")
    command.run(main)
