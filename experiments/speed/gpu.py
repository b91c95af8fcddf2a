"""What a GPU makes of auxseg, in nine minutes and one JSON file; `gpu.sh` starts it.

    sh experiments/speed/gpu.sh [--tiny] [--seconds=540] [--out=gpu.json]

The stages, the most wanted first; each runs in processes of its own, and what the time does not reach is said:

    steps_bfloat16, steps_float32    training at both batches and prediction at batch 1, beside PyTorch compiled (AMP in
                                     bfloat16, channels last), with TFLOP/s and GB/s beside a measured product and copy
    run                              the paper's: 34 epochs of 799 images made on the device
    profile                          the kernels of a training step that take longest
    deterministic                    training as train.deterministic has it

`--tiny` runs all of it at a small size, on a CPU too: it shows that it runs, and no figure of it means anything.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from auxseg.base import command, files
from experiments.made_by import made_by
from experiments.speed import machine
from experiments.speed.peers.task import Task, draw_variables

MODULE = "experiments.speed.gpu"
NUM_KERNELS, PROFILED_STEPS = 25, 3


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        size, base_width: of images and network.
        batches: of training.
        repeats: turns of a row, at least 4.
        epochs: of the run.
    """

    size: int
    base_width: int
    batches: tuple[int, int]
    repeats: int
    epochs: int


PAPER, TINY = Sizes(320, 64, (8, 64), 8, 34), Sizes(32, 4, (2, 4), 4, 4)


def list_stages(sizes, folder):
    """Returns {stage: (command, file that it writes)}, in order.

    Args:
        sizes: `Sizes`.
        folder: pathlib.Path for the files.
    """
    train = [f"train:{batch}" for batch in sizes.batches]

    def benchmark(name, dtype, rows, *more, repeats=sizes.repeats, only="auxseg"):
        path = folder / f"{name}.json"
        network = [f"--size={sizes.size}", f"--base_width={sizes.base_width}", f"--dtype={dtype}"]
        asked = [f"--rows={','.join(rows)}", f"--only={only}", f"--repeats={repeats}", f"--json={path}"]
        return ["experiments.speed.benchmark", *network, *asked, *more], path

    rows, both = [*train, "infer:1"], "auxseg,torch_compile"
    profile = folder / "profile.json"
    return {
        "steps_bfloat16": benchmark("steps_bfloat16", "bfloat16", rows, only=both),
        "run": benchmark("run", "bfloat16", [f"epoch:{sizes.batches[0]}"], repeats=sizes.epochs),
        "profile": ([MODULE, f"--profile={profile}", *(["--tiny"] if sizes == TINY else [])], profile),
        "steps_float32": benchmark("steps_float32", "float32", rows, only=both),
        "deterministic": benchmark("deterministic", "bfloat16", train, "--deterministic"),
    }


def run_stage(arguments, path, seconds):
    """Returns the report that `python -m ARGUMENTS` writes to `path`, or {'error': why there is none}."""
    if seconds <= 0:
        return {"error": "left out: the time was used up"}
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
        said = (errors.strip().splitlines() or ["no message"])[-1] if process.returncode else None
    except subprocess.TimeoutExpired:
        # Its own processes as well: one that is left would hold the device while the next is measured.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        said = f"ended after {seconds:.0f} s: the time was used up"
    report = files.read_object(path) if path.exists() else {}  # the rows that were measured by then
    return {**report, "error": said} if said else report


def summarise_run(report):
    """Returns {'epochs', 'seconds', 'first_seconds'} of the paper's run: all epochs, the first with compilation."""
    found = report["rows"][0]["raw"]["auxseg"] if report.get("rows") else {}
    if "first_seconds" not in found:
        return {"error": report.get("error") or found.get("error", "nothing was measured")}
    # The first epoch also compiles; it is one of the epochs.
    seconds = [found["first_seconds"], *found["seconds"][:-1]]
    return {"epochs": len(seconds), "seconds": sum(seconds), "first_seconds": seconds[0]}


def profile(sizes, path):
    """Writes the device's name and its slowest kernels in training steps: seconds a step, calls and share."""
    import jax

    from experiments.speed.peers import run_jax

    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "weights.npz"
        task = Task(sizes.size, sizes.base_width, "bfloat16", str(weights))
        draw_variables(task)
        step = run_jax.create("auxseg", task)["train"](sizes.batches[0])
        step()
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_STEPS):
                step()
        (traced,) = pathlib.Path(folder).rglob("*.xplane.pb")
        kernels = list_kernels(jax.profiler.ProfileData.from_file(str(traced)).planes)
    files.write_json(path, {"device": jax.devices()[0].device_kind, "kernels": kernels})


def list_kernels(planes):
    """Returns the slowest kernels of a trace, of the devices' planes or of a CPU's threads.

    Args:
        planes: with name and lines, these with name and events, these with name and duration_ns.
    """
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices or planes for line in plane.lines]
    streams = [line for line in lines if "Stream" in line.name] or lines
    calls, nanoseconds = collections.Counter(), collections.Counter()
    for event in (event for line in streams for event in line.events):
        calls[event.name] += 1
        nanoseconds[event.name] += event.duration_ns
    total = sum(nanoseconds.values())
    return [
        {
            "kernel": name,
            "seconds_a_step": 1e-9 * each / PROFILED_STEPS,
            "calls_a_step": calls[name] / PROFILED_STEPS,
            "share": each / total,
        }
        for name, each in nanoseconds.most_common(NUM_KERNELS)
    ]


def main(_):
    """Runs the stages until the time is used up; returns 1 where one failed."""
    given = flags.FLAGS
    sizes = TINY if given.tiny else PAPER
    if given.profile:
        profile(sizes, pathlib.Path(given.profile))
        return 0
    end = time.monotonic() + given.seconds
    asked = "sh experiments/speed/gpu.sh" + (" --tiny" if given.tiny else "")
    result = {
        "made_by": made_by(asked, data="images made on the device", seeds=(0,)),
        "machine": machine.describe_machine(),
        "sizes": dataclasses.asdict(sizes),
        "stages": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (arguments, path) in list_stages(sizes, pathlib.Path(folder)).items():
            began = time.monotonic()
            report = run_stage(arguments, path, end - began)
            if name == "run":
                report = {**summarise_run(report), "report": report}
            result["stages"][name] = {**report, "took_seconds": time.monotonic() - began}
            print(f"{name}: {report.get('error') or 'done'}, {time.monotonic() - began:.0f} s", flush=True)
            files.write_json(pathlib.Path(given.out), result)
    failed = [name for name, report in result["stages"].items() if report.get("error")]
    print(json.dumps({"written": given.out, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    flags.DEFINE_bool("tiny", False, "run all at a small size, to see that it runs")
    flags.DEFINE_float("seconds", 540.0, "that all stages may take together", lower_bound=1.0)
    flags.DEFINE_string("out", "gpu.json", "JSON file to write")
    flags.DEFINE_string("profile", None, "of the stages' own process: write the profile here")
    command.run(main)
