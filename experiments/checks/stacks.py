"""How much of the third dimension a folder of crops has: slices of each nodule, and how many slabs are whole.

    python -m experiments.checks.stacks --crops=FOLDER [--out=experiments/results/stacks.json]

A slab of a crop stays within the slices of its nodule, and repeats the outermost ones (`auxseg.datasets.crops`). It is
whole where none is repeated. Only `index.csv` is read.
"""

from __future__ import annotations

import collections
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.datasets import slabs
from experiments import made_by

SLABS = (3, 5, 7)
STEP_MM = 2.5


def count_whole(stacks, num_slices):
    """Returns {'slabs': whole ones, 'nodules': those that have one}.

    Args:
        stacks: list of (slices of a nodule, mm between them).
        num_slices: of a slab, odd.
    """
    whole = [
        _whole_slabs(slices, slabs.slices_apart(gap_mm, STEP_MM), num_slices) for slices, gap_mm in stacks
    ]
    return {"slabs": sum(whole), "nodules": sum(count > 0 for count in whole)}


def _whole_slabs(slices, apart, num_slices):
    return max(0, slices - 2 * apart * (num_slices // 2))


def read_stacks(path):
    """Returns [(slices, mm between them)], one a nodule, of an `index.csv`.

    Raises:
        InputError: no such file, or columns missing.
    """
    rows = files.read_cells(path, ("nodule", "gap_mm"), hint="name a folder of crops")
    slices = collections.Counter(row["nodule"] for row in rows)
    gaps = {row["nodule"]: float(row["gap_mm"]) for row in rows}
    return [(count, gaps[nodule]) for nodule, count in slices.items()]


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    stacks = read_stacks(pathlib.Path(given.crops) / "index.csv")
    gaps = sorted(gap_mm for _, gap_mm in stacks)
    report = {
        "made_by": made_by.made_by(
            "python -m experiments.checks.stacks --crops=FOLDER",
            data=f"{len(stacks)} nodules of lidc_nodules",
            seeds=[],
        ),
        "nodules": len(stacks),
        "slices": sum(count for count, _ in stacks),
        "of_two_to_four_slices": sum(2 <= count <= 4 for count, _ in stacks),
        "gap_mm": {"least": gaps[0], "median": float(np.median(gaps)), "most": gaps[-1]},
        "step_mm": STEP_MM,
        "whole": [{"num_slices": each, **count_whole(stacks, each)} for each in SLABS],
    }
    files.write_json(pathlib.Path(given.out), report)


if __name__ == "__main__":
    flags.DEFINE_string("crops", None, "folder with index.csv", required=True)
    flags.DEFINE_string("out", "experiments/results/stacks.json", "JSON file to write")
    command.run(main)
