"""Time and peak memory of preparing records, by the number of scans of 512x512x240.

    python -m experiments.speed.prepare_cost

Writes `experiments/results/prepare_cost.json`. The scans are random bytes with masks of two ellipsoids in a
temporary folder (they share one voxel file of 126 MB by hard links, so that the disk is not what is
measured). Each preparation runs in its own process; its peak is the resident memory that the kernel reports,
the libraries' own share (`peak_mib` of 0 scans) included.
"""

import json
import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from auxseg.base import command, files
from experiments.made_by import made_by
from experiments.speed import machine

SIZE_XYZ = (512, 512, 240)
SPACING_XYZ_MM = (0.7, 0.7, 1.25)
NUM_SCANS = {"middle": (0, 1, 8, 32, 96), "nodule": (0, 1, 2, 4, 8), "lung": (0, 1, 2, 4, 8)}
RESULT = pathlib.Path(__file__).parents[1] / "results" / "prepare_cost.json"
MODULE = "experiments.speed.prepare_cost"


def main(argv):
    """Measures all, prints a line each and writes the result."""
    del argv
    if flags.FLAGS.measure:
        folder, slices, num_scans = flags.FLAGS.measure
        return measure(pathlib.Path(folder), slices, int(num_scans))
    rows = []
    with tempfile.TemporaryDirectory(prefix="prepare-cost-") as name:
        write_scan(pathlib.Path(name))
        for slices, numbers in NUM_SCANS.items():
            for num_scans in numbers:
                rows.append(run(pathlib.Path(name), slices, num_scans))
                print(json.dumps(rows[-1]), flush=True)
    origin = made_by(f"python -m {MODULE}", data="random scans of 512x512x240", seeds=(0,))
    about = {"size_xyz": SIZE_XYZ, "resized_to": (320, 320), "machine": machine.describe_machine()}
    files.write_json(pathlib.Path(flags.FLAGS.out), {"made_by": origin, **about, "rows": rows})
    return 0


def write_scan(folder):
    """Writes one scan and one mask, to be linked to."""
    from auxseg.ct import geometry, images

    grid = geometry.Geometry(SIZE_XYZ, SPACING_XYZ_MM, (-178.85, -178.85, -150.0))
    voxels = np.frombuffer(np.random.default_rng(0).bytes(2 * np.prod(SIZE_XYZ)), np.int16)
    images.write_volume(folder / "scan.mhd", voxels.reshape(grid.shape_zyx), grid, compress=False)
    z, y, x = np.ogrid[-1:1:240j, -1:1:512j, -1:1:512j]
    mask = np.zeros(grid.shape_zyx, np.uint8)
    for value, side in ((3, 0.4), (4, -0.4)):
        mask[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.9) ** 2 < 1] = value
    images.write_volume(folder / "mask.mhd", mask, grid, compress=True)


def link_folder(source, target, num_scans):
    """Makes a LUNA16 folder of `num_scans` scans, all in one subset, each with three nodules."""
    (target / "subset0").mkdir(parents=True)
    (target / "seg-lungs-LUNA16").mkdir()
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for index in range(num_scans):
        uid = f"1.2.3.{index}"
        for kind, folder, suffix in (("scan", "subset0", "raw"), ("mask", "seg-lungs-LUNA16", "zraw")):
            (target / folder / f"{uid}.{suffix}").hardlink_to(source / f"{kind}.{suffix}")
            header = (
                (source / f"{kind}.mhd")
                .read_text(encoding="utf-8")
                .replace(f"{kind}.{suffix}", f"{uid}.{suffix}")
            )
            (target / folder / f"{uid}.mhd").write_text(header)
        lines += [f"{uid},{x},0,{z},{d}" for x, z, d in ((70, 0, 6.4), (-70, -40, 10.0), (60, 40, 20.0))]
    (target / "annotations.csv").write_text("\n".join(lines) + "\n")


def run(source, slices, num_scans, env=None):
    """Returns the figures of one preparation, in a process of its own; 0 scans: of the libraries alone."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=source) as name:
        folder = pathlib.Path(name)
        if num_scans:
            link_folder(source, folder / "luna16", num_scans)
        return machine.measure_apart(MODULE, f"{folder},{slices},{num_scans}", env)


def measure(folder, slices, num_scans):
    """Prepares in this process and prints the figures."""
    import SimpleITK  # noqa: F401  (its share of the memory is that of the libraries)

    from auxseg.datasets.luna16 import layout
    from auxseg.datasets.preparation import records

    started, busy, num_slices = time.perf_counter(), time.process_time(), 0
    if num_scans:
        settings = layout.Settings(slices=slices)
        prepared = records.prepare(folder / "luna16", cache_dir=folder / "cache", settings=settings)
        num_slices = len(records.read_records(prepared, settings=settings))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    figures = {
        "slices": slices,
        "num_scans": num_scans,
        "num_slices": num_slices,
        "seconds_per_scan": round(seconds / max(1, num_scans), 3),
        "cpu_seconds_per_scan": round(busy / max(1, num_scans), 3),
        "peak_mib": machine.peak_mib(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    flags.DEFINE_list("measure", None, "of the command's own processes: FOLDER,SLICES,SCANS to measure here")
    command.run(main)
