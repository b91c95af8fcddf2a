"""What scans of one's own cost: the first mask, preparing, an epoch, evaluating, each as its command does it.

    python -m experiments.speed.folder_cost --scans=FOLDER [--label_map=1:left_lung,2:right_lung,9:background]

FOLDER holds scans with labels beside them. The commands are those of `auxseg/datasets/README.md`, with a cache of their own in
which nothing lies but the compiled kernels, so that the first mask without any other help is measured too. Processor seconds
are those of all processes of a command, for what takes a few seconds the median of several starts. Python keeps its bytecode, as
it does unless told otherwise: start the program twice in a new clone. Writes `experiments/results/own_scans.json`.
"""

import json
import os
import pathlib
import resource
import shutil
import statistics
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
MODULE = "experiments.speed.folder_cost"
STARTS = 5
"""Of what takes a few seconds."""


def main(argv):
    """Measures each command, prints a line for it and writes the result."""
    del argv
    scans, label_map = pathlib.Path(flags.FLAGS.scans), flags.FLAGS.label_map
    found, about = listing.list_folder(scans), machine.describe_machine()
    with tempfile.TemporaryDirectory(prefix="folder-cost-") as name:
        work = pathlib.Path(name)
        rows = [measure(*step, work / "cache") for step in list_steps(found, label_map, work)]
        summary = files.read_json(work / "run" / "summary.json")
    report = {
        "made_by": made_by(
            f"python -m {MODULE} --scans=FOLDER --label_map={label_map}",
            data=f"{len(found.scans)} scans with masks of their lungs: {', '.join(scan.uid for scan in found.scans)}",
            seeds=(1,),
        ),
        "machine": about,
        "scans": len(found.scans),
        "cases": {split: scores["cases"] for split, scores in summary["scores"].items()},
        "steps": {row.pop("step"): row for row in rows},
    }
    files.write_json(pathlib.Path(flags.FLAGS.out), report)


def list_steps(found, label_map, work):
    """Returns [(what, arguments, starts, whether each has a new cache)] of the commands, in the order in which somebody gives
    them."""
    scan, run = found.scans[0].source.path, work / "run"
    own = [f"--config.data.dir={found.path}", f"--config.data.label_map={label_map}"]
    train = ["train", "--config=own_scans", *own, "--config.train.num_epochs=1", f"--workdir={run}"]
    mask = ["predict", scan, work / "masks", "--slice=middle", "--overwrite"]
    return [
        ("help", ["predict", "--help"], STARTS, False),
        ("first mask, kernels built", mask, STARTS, True),
        ("first mask, programs kept", mask, STARTS, False),
        ("prepare", ["prepare", "--name=folder", f"--data_dir={found.path}", "--slices=lung", "--size=256,256",
                     f"--label_map={label_map}"], 1, False),
        ("train one epoch, with its report", train, 1, False),
        ("evaluate", ["evaluate", f"--workdir={run}"], 1, False),
    ]  # fmt: skip


def measure(what, arguments, starts, is_fresh, cache):
    """Returns medians of seconds and processor seconds of an `auxseg` command, and the load after it.

    Args:
        what: name of the step.
        arguments: of the command.
        starts: how often it is given.
        is_fresh: each start finds nothing in the cache but the kernels.
        cache: folder.

    Raises:
        InputError: it failed; the last line that it said.
    """
    times = []
    for _ in range(starts):
        if is_fresh:
            shutil.rmtree(cache, ignore_errors=True)
        if not cache.exists():
            shutil.copytree(files.default_cache_dir() / "kernels", cache / "kernels")
        times.append(_start(what, arguments, cache))
    seconds, cpu_seconds = (round(statistics.median(each), 2) for each in zip(*times))
    row = {"step": what, "seconds": seconds, "cpu_seconds": cpu_seconds, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(row), flush=True)
    return row


def _start(what, arguments, cache):
    """Returns (seconds, processor seconds) of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-m", "auxseg", *map(str, arguments)],
        env=environment | {"AUXSEG_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{what}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    flags.DEFINE_string("scans", None, "folder of scans with labels", required=True)
    flags.DEFINE_string("label_map", "1:left_lung,2:right_lung,9:background", "what the labels mean")
    flags.DEFINE_string("out", str(RESULT), "JSON file to write")
    command.run(main)
