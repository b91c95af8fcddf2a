"""How far radiologists agree with each other on the outlines of nodules.

    python -m experiments.checks.readers --data_dir=FOLDER

FOLDER holds `nodules.npz` (`readers` uint8 [N, H, W]: bit r is set where reader r marked nodule) and `index.csv`
(a row a slice: patient, nodule, readers, diameter_mm, consensus_px), made from LIDC-IDRI's outlines. Of each nodule
the slice with the largest consensus counts.
"""

import itertools
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.scoring import matching, statistics
from experiments.made_by import made_by

RESULT = pathlib.Path(__file__).parents[1] / "results" / "readers.json"
PAIRS, OTHERS = "one reader and another", "a reader and the consensus of the others"


def list_agreements(outlines):
    """Returns {what: Dice values} of the readers of one slice.

    Args:
        outlines: bool [R, H, W], one a reader.
    """
    others = [np.delete(outlines, reader, axis=0) for reader in range(len(outlines))]
    consensus = [2 * each.sum(axis=0) >= len(each) for each in others]
    return {
        PAIRS: [_dice(*pair) for pair in itertools.combinations(outlines, 2)],
        OTHERS: [_dice(*pair) for pair in zip(outlines, consensus, strict=True)],
    }


def _dice(first, second):
    total = first.sum() + second.sum()
    return float(2 * (first & second).sum() / total) if total else np.nan


def find_largest_slices(rows):
    """Returns the index of each nodule's slice with the largest consensus, in the order of the rows."""
    best = {}
    for index, row in enumerate(rows):
        size = int(row["consensus_px"])
        if row["nodule"] not in best or size > best[row["nodule"]][0]:
            best[row["nodule"]] = size, index
    return [index for _, index in best.values()]


def compare(rows, readers):
    """Returns {what: {nodules: interval}}, Dice averaged over comparisons, by diameter and over all.

    Args:
        rows: of `index.csv`, one a slice.
        readers: uint8 [N, H, W].
    """
    found = {PAIRS: [], OTHERS: []}
    for index in find_largest_slices(rows):
        row = rows[index]
        count = int(row["readers"])
        outlines = np.stack([readers[index] >> bit & 1 for bit in range(count)]).astype(bool)
        stratum = matching.stratum(float(row["diameter_mm"]))
        for what, values in list_agreements(outlines).items():
            found[what] += [(value, row["patient"], stratum) for value in values if not np.isnan(value)]
    return {what: _by_size(values) for what, values in found.items()}


def _by_size(values):
    groups = {"all": values}
    for name in matching.STRATA[:3]:
        groups[name] = [each for each in values if each[2] == name]
    return {name: _interval(group) for name, group in groups.items()}


def _interval(group):
    dice, patients = [each[0] for each in group], [each[1] for each in group]
    interval = statistics.bootstrap_mean(np.array(dice), np.array(patients))
    return {
        "dice": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "comparisons": interval.num_cases,
        "patients": interval.num_patients,
    }


def main(argv):
    """Writes the results file and prints it."""
    del argv
    folder = pathlib.Path(flags.FLAGS.data_dir)
    rows = files.read_csv(folder / "index.csv")
    readers = np.load(folder / "nodules.npz", allow_pickle=False)["readers"]
    if len(rows) != len(readers):
        raise InputError(f"--data_dir: {folder} has {len(rows)} rows in index.csv and {len(readers)} slices")
    about = (
        f"LIDC-IDRI: {len(find_largest_slices(rows))} nodules with at least 3 readers, largest slice of each"
    )
    origin = made_by("python -m experiments.checks.readers --data_dir=FOLDER", data=about, seeds=())
    path = pathlib.Path(flags.FLAGS.out)
    files.write_json(path, {"made_by": origin, **compare(rows, readers)})
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder with nodules.npz and index.csv", required=True)
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
