"""What neighbouring slices bring on whole real scans: 2D, 2.5D and 3D, each patient left out in turn.

    python -m experiments.studies.third_dimension_real --real=DIR --phantom=DIR --workdir=DIR
        [--out=experiments/results/third_dimension_real.json] [--seeds=1,2,3] [--epochs=8]

DIR of --phantom is the workdir of `third_dimension`: its longest run of each network and seed is judged on the real scans
as it is, and then trained on with two of the four patients, a third being validation, and judged on the one left out.
The scans are put into LUNA16's own layout below --workdir, with `MATRIX` rows and columns. Reference lungs are by
thresholds; nodules are spheres.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import LEFT, RIGHT
from auxseg.base.errors import InputError
from auxseg.ct import geometry as ct
from auxseg.ct import images
from auxseg.datasets import labels
from auxseg.datasets.luna16 import layout
from auxseg.evaluation import whole_scans
from auxseg.scoring import froc
from configs import base
from experiments import made_by
from experiments.box import nodule_data
from experiments.studies import runner, slab_runs, third_dimension

MODULE = "experiments.studies.third_dimension_real"
SCANS = ("LIDC-IDRI-0001", "LIDC-IDRI-0314", "Lung_Dx-A0001-L", "Lung_Dx-A0002-B70f")
"""One of each patient. In the Lung_Dx scans only the mass is known: other findings there are not known to be false."""
ALONE, WITH_OTHERS = "phantom alone", "and two of the other scans"
EXCLUDED = "annotations_excluded.csv"
MATRIX = 256
"""Twice what the networks see: the scans' own 512 would cost four times as much and show them nothing more."""


def write_folder(real, folder):
    """Writes the scans in LUNA16's layout, a subset each, with annotations and excluded findings; once.

    Args:
        real: folder with `scans`.
        folder: pathlib.Path to write to.
    """
    if (folder / "annotations.csv").is_file():
        return
    nodules, excluded = [], []
    for place in range(len(SCANS)):
        (folder / f"subset{place}").mkdir(parents=True, exist_ok=True)
    (folder / layout.MASK_FOLDER).mkdir(exist_ok=True)
    for place, name in enumerate(SCANS):
        scan = nodule_data.read_scan(pathlib.Path(real) / "scans", name)
        hu, lungs, geometry = shrink(scan.hu, to_luna16(scan.lungs), scan.geometry)
        images.write_volume(folder / f"subset{place}" / f"{name}.mhd", hu, geometry, compress=False)
        images.write_volume(folder / layout.MASK_FOLDER / f"{name}.mhd", lungs, geometry)
        nodules += [(name, *row) for row in scan.nodules.tolist()]
        excluded += [(name, *row) for row in scan.excluded.tolist()]
    columns = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    for file, rows in ((EXCLUDED, excluded), ("annotations.csv", nodules)):
        files.write_csv(folder / file, [dict(zip(columns, row, strict=True)) for row in rows], columns)


def shrink(hu, lungs, geometry):
    """Returns (int16, uint8 [D, `MATRIX`, `MATRIX`], `ct.Geometry`): means of blocks of HU, every block's middle label.

    Args:
        hu: int16 [D, H, W], H and W a multiple of `MATRIX`.
        lungs: uint8 [D, H, W].
        geometry: of both.
    """
    slices, rows, columns = hu.shape
    down, across = rows // MATRIX, columns // MATRIX
    means = hu.reshape(slices, MATRIX, down, MATRIX, across).mean(axis=(2, 4), dtype=np.float32)
    x_mm, y_mm, z_mm = geometry.spacing_xyz_mm
    smaller = dataclasses.replace(
        geometry,
        size_xyz=(MATRIX, MATRIX, slices),
        spacing_xyz_mm=(x_mm * across, y_mm * down, z_mm),
        origin_xyz_mm=tuple(ct.index_to_mm(geometry, ((across - 1) / 2, (down - 1) / 2, 0.0))),
    )
    return np.rint(means).astype(np.int16), lungs[:, down // 2 :: down, across // 2 :: across], smaller


def to_luna16(lungs):
    """Returns LUNA16's values, uint8 [D, H, W], of a map with 1 left lung, 2 right lung, 9 airway."""
    values = np.zeros(256, np.uint8)
    luna16 = (labels.LUNA16_LEFT, labels.LUNA16_RIGHT, labels.LUNA16_AIRWAY)
    values[[LEFT, RIGHT, whole_scans.AIRWAY]] = luna16
    return values[lungs]


def create_config(kind, seed, epochs, fold, root, start):
    """Returns the locked settings of a run that leaves the patient of `fold` out and starts from the run `start`."""
    changes = {"data.name": "luna16", "data.dir": str(root / "scans"), "data.cache_dir": str(root / "cache")}
    changes |= {
        "data.slices": "nodule",
        "data.split": "kfold",
        "data.num_folds": len(SCANS),
        "data.fold": fold,
    }
    changes |= {"seed": seed, "train.order_seed": seed, "train.init_from": str(start)}
    changes |= {"train.num_epochs": epochs, "optim.cosine_epochs": epochs, "optim.learning_rate": 3e-4}
    shared = {name: value for name, value in third_dimension.SHARED.items() if "phantom" not in name}
    settings = slab_runs.settings_of(kind, third_dimension.SLICES)
    return runner.override(base.get_config(), shared | settings | changes)


def read_annotations(root):
    """Returns (nodules, excluded findings), each {scan: float64 [n, 4]}."""
    folder = root / "scans"
    return froc.read_annotations(folder / "annotations.csv"), froc.read_annotations(folder / EXCLUDED)


def run(given):
    """Returns the rows of `--out`, which is written after each."""
    root, out = pathlib.Path(given.workdir), pathlib.Path(given.out)
    write_folder(given.real, root / "scans")
    annotations, references, rows = (
        read_annotations(root),
        third_dimension.read_references(root / "scans"),
        [],
    )
    for seed, kind in itertools.product(runner.whole_numbers("--seeds", given.seeds), slab_runs.KINDS):
        start = slab_runs.find_longest(given.phantom, kind, seed)
        if start is None:
            raise InputError(
                f"--phantom: {given.phantom} has no finished {kind} run of seed {seed}; train it first"
            )
        about = {"kind": kind, "seed": seed}
        for scan in references:
            file = root / f"alone_{kind}_{seed}_{scan[0].uid}.json"
            rows.append({"trained": ALONE, **about, **_judge_once(file, start, scan, annotations)})
        for fold in range(len(SCANS)):
            config = create_config(kind, seed, given.epochs, fold, root, start)
            workdir = root / f"{kind.replace('.', '_')}_{seed}_without_{fold}"
            slab_runs.train(config, workdir)
            held_out = {each.uid for each, _ in third_dimension.find_scans(config, workdir)}
            (scan,) = [each for each in references if each[0].uid in held_out]
            judged = _judge_once(workdir / slab_runs.JUDGED, workdir, scan, annotations)
            rows.append({"trained": WITH_OTHERS, **about, **judged})
        write(out, rows, given.epochs)
    return rows


def _judge_once(file, workdir, scan, annotations):
    """Returns the scores of one scan, kept in `file`."""
    if not file.is_file():
        scores = third_dimension.judge(workdir, [scan], *annotations)
        files.write_json(file, {"scan": scan[0].uid, **scores})
    return files.read_object(file)


def write(out, rows, epochs):
    """Writes the result file, and the table beside it as Markdown."""
    line = f"python -m {MODULE} --real=FOLDER --phantom=FOLDER --workdir=FOLDER"
    data = f"real scans of {MATRIX} x {MATRIX}: {', '.join(SCANS)}; {epochs} epochs"
    origin = made_by.made_by(line, data=data, seeds=sorted({row["seed"] for row in rows}))
    files.write_json(out, {"made_by": origin, "rows": rows})
    files.write_text(out.with_suffix(".md"), "\n".join(format_table(rows)) + "\n")


def format_table(rows):
    """Yields the lines of a Markdown page, a row a training, scan and network: means over seeds, least and most."""
    yield "# The third dimension on real scans\n"
    yield f"By `python -m {MODULE}`. Means over seeds, in brackets the least and the most.\n"
    titles = ["trained on", "scan", "network", "seeds", *third_dimension.COLUMNS]
    yield f"| {' | '.join(titles)} |"
    yield "|" + " --- |" * len(titles)
    for trained, scan, kind in itertools.product((ALONE, WITH_OTHERS), SCANS, slab_runs.KINDS):
        chosen = [row for row in rows if (row["trained"], row["scan"], row["kind"]) == (trained, scan, kind)]
        if chosen:
            cells = [
                trained,
                scan,
                kind,
                str(len(chosen)),
                *slab_runs.format_scores(chosen, third_dimension.COLUMNS),
            ]
            yield f"| {' | '.join(cells)} |"


def main(argv):
    """Runs the command."""
    del argv
    run(flags.FLAGS)


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "Folder of the real data, with scans.", required=True)
    flags.DEFINE_string("phantom", None, "Workdir of third_dimension.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
    flags.DEFINE_string("out", "experiments/results/third_dimension_real.json", "File to write.")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "Of the runs on the phantom.")
    flags.DEFINE_integer("epochs", 8, "On the real scans.", lower_bound=1)
    command.run(main)
