"""What it costs to use scans of one's own: prepare, train a few steps, judge masks, each as a command of its own.

    python -m experiments.speed.folder_cost --scans=FOLDER [--label_map=1:left_lung,2:right_lung,9:background]

FOLDER holds scans with labels beside them. Everything is written to a temporary folder. The masks that are judged are the
labels themselves, so that their Dice must be 1. Writes `experiments/results/own_scans.json`.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.datasets.folder import listing
from experiments.made_by import made_by
from experiments.speed import machine

RESULT = pathlib.Path(__file__).parents[1] / "results" / "own_scans.json"
SIZE = 256


def main(argv):
    """Measures the three commands, prints a line each and writes the result."""
    del argv
    scans, label_map = pathlib.Path(flags.FLAGS.scans), flags.FLAGS.label_map
    found = listing.list_folder(scans)
    with tempfile.TemporaryDirectory(prefix="folder-cost-") as name:
        work = pathlib.Path(name)
        steps = {
            "prepare": ["auxseg.prepare", "--name=folder", f"--data_dir={scans}", "--slices=lung", f"--label_map={label_map}",
                        f"--size={SIZE},{SIZE}"],
            "train": ["auxseg.main", "--config=configs/own_scans.py", f"--config.data.dir={scans}",
                      f"--config.data.label_map={label_map}", "--config.train.num_epochs=1", "--config.eval.num_panels=0",
                      f"--workdir={work / 'run'}"],
            "evaluate": ["auxseg.evaluate", f"--reference={link_labels(found, work / 'labels')}", f"--prediction={work / 'labels'}",
                         f"--reference_label_map={label_map}", f"--prediction_label_map={label_map}", f"--output={work / 'judged'}"],
        }  # fmt: skip
        rows = [measure(step, arguments, work / "cache") for step, arguments in steps.items()]
        summary = files.read_json(work / "run" / "summary.json")
        judged = files.read_csv(work / "judged" / "scores.csv")
    splits = sum(scores["cases"] for scores in summary["scores"].values())
    about = {
        "machine": machine.describe_machine(),
        "scans": len(found.scans),
        "size": SIZE,
        "cases_judged": splits,
        "lowest_dice_with_itself": min(row["dice"] for row in judged),
        "steps": rows,
    }
    label = f"{len(found.scans)} scans: {', '.join(scan.uid for scan in found.scans)}"
    said = f"python -m experiments.speed.folder_cost --scans=FOLDER --label_map={label_map}"
    files.write_json(
        pathlib.Path(flags.FLAGS.out), {"made_by": made_by(said, data=label, seeds=(1,)), **about}
    )


def link_labels(found, folder):
    """Returns a folder with links to the labels of a `listing.Folder`."""
    folder.mkdir(parents=True)
    for scan in found.scans:
        for path in scan.labels:
            (folder / path.name).symlink_to(path.resolve())
    return folder


def measure(step, arguments, cache):
    """Returns seconds, seconds of the processor and peak memory of a command.

    Raises:
        InputError: it failed; the last line that it said.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "AUXSEG_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "step": step,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "largest_process_mib_so_far": round(after.ru_maxrss / 1024),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    flags.DEFINE_string("scans", None, "folder of scans with labels", required=True)
    flags.DEFINE_string("label_map", "1:left_lung,2:right_lung,9:background", "what the labels mean")
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
