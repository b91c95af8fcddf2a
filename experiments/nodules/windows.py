"""Writes small windows of real nodules, and of lung without one, as NPZ folders that the studies train on.

    python -m experiments.nodules.windows --real=DIR --output=FOLDER
    python -m experiments.studies.ablations --data=npz --data_dir=FOLDER/judged --paired ...

`judged` holds windows of patients that are split by patient; `added` those that may only train: the crops of LUNA16's
subsets 0 to 2 and the middle slices, whose patients are not known apart. The test patients of
`experiments/box/test_patients.csv` are in neither. Classes are background and nodule, by consensus. Every
window of a nodule is moved by up to `crops.MOST_SHIFT_PX` pixels, so that the place tells nothing.
"""

import csv
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command
from auxseg.datasets import crops as crops_lib
from auxseg.datasets import npz
from experiments.box import nodule_data, nodule_train

SIZE_PX = 64
SLICES_OF_NODULE = 2
"""The largest, and one drawn from the others."""
FREE_OF_MIDDLE, FREE_OF_SCAN = 500, 150
SEED = 14
COLUMNS = ("id", "patient", "series_uid", "subset", "pixel_spacing_mm")


def choose_slices(crops, rows, generator):
    """Returns the slices of each nodule that windows are cut from, int [n]: the largest first, then drawn ones."""
    chosen = []
    for largest in crops_lib.largest_slices(crops, rows).tolist():
        others = [row for row in rows[crops.nodule[rows] == crops.nodule[largest]].tolist() if row != largest]
        chosen += [largest, *generator.permutation(others)[: SLICES_OF_NODULE - 1].astype(int).tolist()]
    return np.array(chosen, np.int64)


def write_nodules(folder, crops, rows):
    """Writes a window for each slice of `rows`; returns the lines of the index."""
    shifts = crops_lib.draw_shifts(len(crops), most_px=crops_lib.MOST_SHIFT_PX, seed=crops_lib.SHIFT_SEED)
    lines = []
    for row in rows.tolist():
        name = f"nodule_{row:05d}"
        image = crops_lib.cut(crops.image_hu(row), shifts[row], SIZE_PX)
        marks = crops_lib.cut(crops.readers[row], shifts[row], SIZE_PX)
        npz.write_case(
            folder / f"{name}.npz", np.round(image), crops_lib.consensus(marks, crops.num_readers[row])
        )
        subset = crops.subset[row] if crops.subset[row] >= 0 else ""
        lines.append((name, crops.patient[row], crops.series_uid[row], subset, f"{crops.spacing_mm[row]:g}"))
    return lines


def write_free(folder, volume, count, generator, spacing_mm):
    """Writes `count` windows of a volume's region without a nodule; returns the lines of the index."""
    places = nodule_train.region_places(volume, generator)
    lines = []
    for place in places:
        if len(lines) == count:
            break
        index, *centre = place.tolist()
        low = [at - SIZE_PX // 2 for at in centre]
        inside = tuple(slice(at, at + SIZE_PX) for at in low)
        known = volume.known[index][inside]
        if min(low) < 0 or known.shape != (SIZE_PX, SIZE_PX) or not known.all():
            continue
        name = f"free_{volume.name}_{len(lines):04d}"
        npz.write_case(
            folder / f"{name}.npz", volume.hu[index][inside], np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        )
        lines.append((name, volume.name, "", "", f"{spacing_mm:g}" if spacing_mm else ""))
    return lines


def write_windows(real, output):
    """Writes the folders `judged` and `added`; returns how many windows each holds.

    Args:
        real: folder with lidc_nodules, luna16_middle, scans.
        output: folder to write.
    """
    real, output = pathlib.Path(real), pathlib.Path(output)
    crops = nodule_data.read_crops(real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    generator = np.random.Generator(np.random.PCG64(SEED))
    lines = {"judged": [], "added": []}
    for name in lines:
        (output / name).mkdir(parents=True, exist_ok=True)
        rows = np.flatnonzero(folds == nodule_data.ALWAYS if name == "added" else folds >= 0)
        lines[name] += write_nodules(output / name, crops, choose_slices(crops, rows, generator))
    middle = nodule_data.read_middle(real / "luna16_middle")
    lines["added"] += write_free(output / "added", middle, FREE_OF_MIDDLE, generator, None)
    for scan_name in nodule_data.READ_COMPLETELY:
        scan = nodule_data.read_scan(real / "scans", scan_name)
        spacing_mm, volume = scan.geometry.spacing_zyx_mm[1], nodule_data.to_negative(scan)
        lines["judged"] += write_free(output / "judged", volume, FREE_OF_SCAN, generator, spacing_mm)
    for name, rows in lines.items():
        with open(output / name / "index.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    return {name: len(rows) for name, rows in lines.items()}


def main(argv):
    """Writes the windows and says how many."""
    del argv
    options = flags.FLAGS
    counts = write_windows(options.real, options.output)
    print(", ".join(f"{count} windows in {options.output}/{name}" for name, count in counts.items()))


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("output", None, "folder to write", required=True)
    command.run(main)
