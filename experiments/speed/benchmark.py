"""Measures auxseg against the same network in other libraries, in one run, turn by turn.

    python -m experiments.speed.benchmark --json=experiments/results/benchmark_cpu.json
    python -m experiments.speed.benchmark --dtype=bfloat16 --rows=train:8,train:64,infer:1,infer:8,epoch:8
    python -m experiments.speed.benchmark --draw=experiments/results/benchmark_cpu.json

Every implementation runs in a process of its own with the same weights, images, loss and optimiser, and
they take turns, so that what else the machine does hits all alike: trust the ratios. The losses of the
first five steps must agree to 1e-3 (bfloat16: 3e-2), or the comparison is void and the exit status is 1. What is not
installed is left out by name, and so is what would take longer than `--turn_seconds` a turn. The result file is
written after every row. Peers: the extra `bench`; `torch.compile` needs g++. On a GPU jax, flax, optax, orbax and
numpy are enough for auxseg's and Flax's rows (not for `scan` and `prepare`). With `--dtype=bfloat16` name
auxseg_float32 in `--only` to have our float32 in the same turns.

`--devices=8` measures instead how training scales with devices (`experiments/speed/scaling.py`). `--deterministic`
has XLA compute the same on a GPU each time: run with and without it for what that costs.

To add a row, add an entry to `ROWS` and, in each `experiments/speed/peers/run_*.py` that can do it, the function
that builds its step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import select
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from auxseg.base import files
from auxseg.base.command import run
from auxseg.base.errors import InputError, check_choice
from auxseg.devices import parallel
from experiments.made_by import made_by
from experiments.speed import machine, prepare_cost, scan_cost
from experiments.speed.peers.task import Task

IMPLEMENTATIONS = {
    "auxseg": (),
    "auxseg_float32": (),
    "flax": (),
    "torch": ("torch",),
    "torch_compile": ("torch",),
    "keras_jax": ("keras",),
    "keras_tensorflow": ("keras", "tensorflow"),
    "onnxruntime": ("onnxruntime", "onnx", "torch"),
    "openvino": ("openvino", "torch"),
}
"""The modules that each implementation needs beside auxseg's own."""
ROWS = {
    "train": "training step, s an image",
    "infer": "inference, s an image",
    "start": "from process start to the first masks, nothing compiled before, s",
    "restart": "from process start to the first masks, compiled programs kept, s",
    "epoch": "an epoch of 799 images, s",
    "feed": "an epoch of 799 images without the model, s",
    "prepare": "preparing the middle slice of a 512x512x240 scan, s a scan",
    "scan": "preparing and predicting a whole 512x512 scan, s",
}
"""What a row measures; those of `_ONCE` give seconds in all, the others seconds an image."""
_UNITS = {"prepare": "scans", "scan": "slices"}
_ONCE = ("start", "restart", "epoch", "feed", "prepare", "scan")
_DRAWN = {"train": "training step", "infer": "inference"}
_OURS, _PEER = "#1f5fa8", "#b9bfc7"
ANSWER_SECONDS = 400.0
"""A worker that says nothing for longer is ended and reported."""
LOSS_STEPS = 5
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
MACS_PER_IMAGE = 11.83e9
"""Multiply-adds of the paper's network, forward, at 320 x 320; a training step takes three times as many."""
TRAIN_BYTES_PER_IMAGE = {"float32": 49e9 / 8, "bfloat16": 25e9 / 8}
"""Memory traffic of a training step at 320 x 320 if each array is moved once by whoever needs it."""


class Worker:
    """An implementation's process; see `experiments/speed/peers/worker.py` for the commands.

    Args:
        name: of the implementation.
        task: `experiments.speed.peers.task.Task`.
        cache: folder for compiled programs, or None: nothing is kept.
    """

    def __init__(self, name, task, cache=None):
        self.name = name
        arguments = [
            sys.executable,
            "-m",
            "experiments.speed.peers.worker",
            name,
            json.dumps(dataclasses.asdict(task)),
        ]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_env(cache),
        )

    def ask(self, **command):
        """Returns the answer to a command: a dictionary, with 'error' where it failed."""
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
                self.process.kill()
                return {"error": f"no answer in {ANSWER_SECONDS:.0f} s"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": "the process ended (out of memory?)"}

    def close(self):
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _env(cache=None):
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is None:
        return {**env, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return {
        **env,
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch",
    }


def find_installed(only):
    """Returns the implementations to run, and those left out with the module that is missing.

    Raises:
        InputError: `only` names one that does not exist.
    """
    for name in only:
        check_choice("--only", name, tuple(IMPLEMENTATIONS))
    chosen, left_out = [], {}
    for name, modules in IMPLEMENTATIONS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if name not in (only or IMPLEMENTATIONS.keys() - {"auxseg_float32"}):
            continue
        if missing:
            left_out[name] = f"{missing[0]} is not installed"
        else:
            chosen.append(name)
    return chosen, left_out


def parse_rows(texts):
    """Returns [(kind, batch size)] of texts such as 'train:8'.

    Raises:
        InputError: a text is none of these.
    """
    rows = []
    for text in texts:
        kind, _, batch = text.partition(":")
        check_choice("--rows", kind, tuple(ROWS))
        if not batch.isdigit() or int(batch) < 1:
            raise InputError(f"--rows: got {text!r}, expected kind:batch size, such as 'train:8'")
        rows.append((kind, int(batch)))
    return rows


def measure_row(workers, kind, batch, repeats, expected=None, turn_seconds=float("inf")):
    """Returns {implementation: {'seconds': [...], 'losses': [...], 'peak_bytes': ...} or {'error': ...}}.

    The first step of each, which compiles, is not among the seconds.

    Args:
        workers: list of `Worker`.
        kind, batch, repeats: of the row.
        expected: {implementation: seconds a turn is expected to take}, from a smaller batch.
        turn_seconds: implementations that are expected to take longer are left out, saying so.
    """
    results = {}
    for worker in workers:
        seconds = (expected or {}).get(worker.name, 0.0)
        if seconds > turn_seconds:
            results[worker.name] = {"error": f"left out: a turn would take about {seconds:.0f} s"}
            continue
        answer = worker.ask(prepare=kind, batch=batch)
        if "unsupported" not in answer:
            results[worker.name] = _first_result(answer)
    for _ in range(repeats):
        for worker in workers:
            result = results.get(worker.name)
            if result and "error" not in result:
                _add_turn(result, worker.ask(run=True))
    for worker in workers:
        worker.ask(release=True)
    return results


def _first_result(answer):
    if "error" in answer:
        return answer
    return {"first_seconds": answer["seconds"], "seconds": [], "losses": [answer["loss"]]}


def _add_turn(result, answer):
    if "error" in answer:
        result["error"] = answer["error"]
        return
    result["seconds"].append(answer["seconds"])
    if "cpu_seconds" in answer:
        result.setdefault("cpu_seconds", []).append(answer["cpu_seconds"])
    result["losses"].append(answer["loss"])
    result["peak_bytes"] = answer["peak_bytes"]


def measure_start(names, task, batch, keep):
    """Returns `measure_row`'s results for fresh processes: import, build, compile and predict one batch.

    Two turns each. With `keep` compiled programs are kept (JAX's cache, PyTorch's), and a turn that is not
    counted fills them; else each turn compiles.
    """
    results = {name: {"seconds": [], "losses": []} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        turns = [(turn, name) for turn in range(3 if keep else 2) for name in names]
        for turn, name in turns:
            start = time.perf_counter()
            worker = Worker(name, task, folder if keep else None)
            answer = worker.ask(prepare="infer", batch=batch)
            answer["seconds"] = time.perf_counter() - start
            worker.close()
            if "error" not in results[name] and (turn or not keep or "error" in answer):
                _add_turn(results[name], {"loss": None, "peak_bytes": None, **answer})
    return results


def measure_alone(kind, number):
    """Returns `measure_row`'s results of auxseg for work that is a script's: 'prepare' or 'scan'."""
    try:
        if kind == "prepare":
            row = _measure_preparation(number)
            seconds, peak = row["seconds_per_scan"], row["peak_mib"]
        else:
            row = machine.measure_apart(scan_cost.MODULE, number, _env())
            seconds, peak = row["predict_seconds"], row["peak_mib_after"]
    except RuntimeError as error:
        return {"auxseg": {"error": str(error)}}
    return {"auxseg": {"seconds": [seconds], "losses": [], "peak_bytes": peak * 2**20, "details": row}}


def _measure_preparation(num_scans):
    with tempfile.TemporaryDirectory() as name:
        prepare_cost.write_scan(pathlib.Path(name))
        return prepare_cost.run(pathlib.Path(name), "middle", num_scans, _env())


def find_disagreement(results, dtype="float32"):
    """Returns why the losses of a training row disagree, or None where they agree to `LOSS_TOLERANCE`."""
    runs = {name: result["losses"][:LOSS_STEPS] for name, result in results.items() if "error" not in result}
    reference_name, reference = next(iter(runs.items()), (None, ()))
    for name, losses in runs.items():
        for step, (loss, expected) in enumerate(zip(losses, reference, strict=True)):
            if not abs(loss - expected) <= LOSS_TOLERANCE[dtype]:
                return f"loss of {name} at step {step}: {loss:.6f}, of {reference_name}: {expected:.6f}"
    return None


def summarise(kind, batch, results):
    """Returns {implementation: figures}: median and least seconds an image, and the ratio to auxseg."""
    images = 1 if kind in _ONCE else batch
    figures = {}
    for name, result in results.items():
        if "error" in result or not result["seconds"]:
            figures[name] = {"error": result.get("error", "no turn was measured")}
            continue
        seconds = sorted(value / images for value in result["seconds"])
        figures[name] = {
            "median_s": statistics.median(seconds),
            "least_s": seconds[0],
            "turns": len(seconds),
            "peak_bytes": result.get("peak_bytes"),
        }
        if result.get("cpu_seconds"):
            # On a busy machine the processor's time says more than the clock; what spins while it waits is in it.
            cpu = statistics.median(result["cpu_seconds"]) / images
            figures[name]["median_cpu_s"] = cpu
    base = figures.get("auxseg", {}).get("median_s")
    for figure in figures.values():
        if base and "median_s" in figure:
            figure["times_auxseg"] = figure["median_s"] / base
        base_cpu = figures["auxseg"].get("median_cpu_s") if base else None
        if base_cpu and "median_cpu_s" in figure:
            figure["cpu_times_auxseg"] = figure["median_cpu_s"] / base_cpu
    return figures


def add_rates(figures, kind, dtype, limits, is_paper):
    """Adds achieved FLOP/s and, in training, GB/s to the JAX implementations, beside the device's limits.

    Of the least seconds, as the limits are: a median beside them would count what else the machine does.
    """
    if kind not in ("train", "infer") or not is_paper:
        return
    for name in ("auxseg", "auxseg_float32", "flax"):
        figure = figures.get(name, {})
        if "median_s" not in figure:
            continue
        passes = 3 if kind == "train" else 1
        figure["tflop_per_s"] = 2e-12 * MACS_PER_IMAGE * passes / figure["least_s"]
        if name == "auxseg_float32":
            continue  # the limits are of another type
        figure["of_product"] = figure["tflop_per_s"] / limits["product_tflop_per_s"]
        if kind == "train":
            figure["gb_per_s"] = 1e-9 * TRAIN_BYTES_PER_IMAGE[dtype] / figure["least_s"]
            figure["of_copy"] = figure["gb_per_s"] / limits["copy_gb_per_s"]


def format_table(rows):
    """Returns the lines of a Markdown table of all rows."""
    lines = [
        "| row | implementation | median | least | x auxseg | of CPU | x auxseg | peak GB | TFLOP/s | GB/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        for name, figure in row["figures"].items():
            title = _title(row["kind"], row["batch"])
            if "error" in figure:
                lines.append(f"| {title} | {name} | {figure['error']} | | | | | | | |")
                continue
            peak = figure.get("peak_bytes")
            cells = [
                f"{figure['median_s']:.4g}",
                f"{figure['least_s']:.4g}",
                _cell(figure.get("times_auxseg"), ".2f"),
                _cell(figure.get("median_cpu_s"), ".4g"),
                _cell(figure.get("cpu_times_auxseg"), ".2f"),
                _cell(peak and peak / 1e9, ".2f"),
                _cell(figure.get("tflop_per_s"), ".3g"),
                _cell(figure.get("gb_per_s"), ".3g"),
            ]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return lines


def _title(kind, number):
    return f"{ROWS[kind]}, {_UNITS.get(kind, 'batch')} {number}"


def _cell(value, form):
    return "" if value is None else format(value, form)


def _write_weights(task):
    """Draws the weights in a process of its own: this one keeps off the device."""
    code = (
        "import json, sys; from experiments.speed.peers.task import Task, draw_variables; "
        "draw_variables(Task(**json.loads(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(dataclasses.asdict(task))], check=True, env=_env())


def measure(task, names, rows, *, repeats, turn_seconds, save):
    """Returns (measured rows, device limits or None); prints each row's progress to stderr.

    Args:
        task: `experiments.speed.peers.task.Task`.
        names: implementations.
        rows: of `parse_rows`.
        repeats, turn_seconds: see `measure_row`.
        save: function of what is returned, called after each row.
    """
    _write_weights(task)
    workers = [Worker(name, task) for name in names]
    is_paper = (task.size, task.base_width) == (320, 64)
    try:
        limits = workers[0].ask(limits=True) if names[0] in ("auxseg", "flax") else None
        measured = []
        for kind, batch in rows:
            began = time.perf_counter()
            if kind in ("start", "restart"):
                results = measure_start(names, task, batch, kind == "restart")
            elif kind in ("prepare", "scan"):
                results = measure_alone(kind, batch)
            else:
                expected = _expected_seconds(measured, kind, batch)
                results = measure_row(workers, kind, batch, repeats, expected, turn_seconds)
            figures = summarise(kind, batch, results)
            if limits and "error" not in limits:
                add_rates(figures, kind, task.dtype, limits, is_paper)
            void = find_disagreement(results, task.dtype) if kind == "train" else None
            measured.append({"kind": kind, "batch": batch, "figures": figures, "void": void, "raw": results})
            print(
                f"{_title(kind, batch)}: took {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            save(measured, limits)
    finally:
        for worker in workers:
            worker.close()
    return measured, limits


def _expected_seconds(measured, kind, batch):
    """Returns {implementation: seconds of a turn}, from the rows of the same kind so far."""
    expected = {}
    for row in measured:
        if row["kind"] == kind:
            for name, figure in row["figures"].items():
                # What was left out of a smaller batch, or failed in it, is not tried again.
                expected[name] = figure["median_s"] * batch if "median_s" in figure else float("inf")
    return expected


def _define_flags():
    flags.DEFINE_list(
        "rows",
        [
            "infer:1",
            "infer:8",
            "train:2",
            "train:8",
            "feed:8",
            "prepare:8",
            "start:1",
            "restart:1",
            "scan:240",
        ],
        "kind:batch size, in order; prepare:number of scans, scan:number of slices.",
    )
    flags.DEFINE_integer("size", 320, "Rows and columns of an image.", lower_bound=16)
    flags.DEFINE_integer("base_width", 64, "Channels of the first level; the paper's is 64.", lower_bound=4)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
    flags.DEFINE_integer("repeats", 5, "Turns of each implementation in each row.", lower_bound=4)
    flags.DEFINE_float(
        "turn_seconds",
        16.0,
        "Leave an implementation out of a row whose turn would take longer.",
        lower_bound=1.0,
    )
    flags.DEFINE_list("only", [], "Implementations to run; default: all that are installed.")
    flags.DEFINE_string("json", None, "File to write the results to.")
    flags.DEFINE_string(
        "draw", None, "Write table and PNG of this result file anew from its turns, and measure nothing."
    )
    flags.DEFINE_integer(
        "devices", None, "Measure scaling on 1 to this many simulated devices.", lower_bound=1
    )
    flags.DEFINE_bool("deterministic", False, "As train.deterministic: the same on a GPU each time.")


def main(_):
    """Runs the benchmark of the flags; returns 1 where a comparison is void."""
    values = flags.FLAGS
    if values.draw:
        summarise_again(pathlib.Path(values.draw))
        print(draw(pathlib.Path(values.draw)))
        return 0
    if values.deterministic:
        parallel.make_deterministic()  # by the environment, which the implementations' processes inherit
    if values.devices:
        from experiments.speed import scaling  # it trains by the loop, which needs more than the other rows

        report, agreed = scaling.run(values.devices)
        if values.json:
            files.write_json(values.json, report)
        return 0 if agreed else 1
    rows = parse_rows(values.rows)
    names, left_out = find_installed(values.only)
    if not names:
        raise InputError(f"--only: nothing to run: {left_out}")
    described = machine.describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        task = Task(values.size, values.base_width, values.dtype, str(pathlib.Path(folder) / "weights.npz"))

        def save(measured, limits):
            report = {"machine": described, "limits": limits, "left_out": left_out}
            report |= {"size": task.size, "base_width": task.base_width, "dtype": task.dtype}
            report["made_by"] = made_by(_asked(values), data="images made from a seed", seeds=(0,))
            if values.json:
                write_report({**report, "rows": measured}, pathlib.Path(values.json))

        measured, _ = measure(
            task, names, rows, repeats=values.repeats, turn_seconds=values.turn_seconds, save=save
        )
    print("\n".join(format_table(measured)))
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})")
    voids = [row["void"] for row in measured if row["void"]]
    for void in voids:
        print(f"void: {void}")
    return 1 if voids else 0


def _asked(values):
    """Returns the command of the flags, as somebody else would type it."""
    listed = [f"--dtype={values.dtype}", f"--only={','.join(values.only)}", f"--rows={','.join(values.rows)}"]
    size = [f"--size={values.size}", f"--base_width={values.base_width}"]
    return " ".join(["python -m experiments.speed.benchmark", *listed, *size, f"--repeats={values.repeats}"])


def write_report(report, path):
    """Writes the report to `path`, and its table beside it as Markdown."""
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = f"{about['processor']}, {about['cores']} cores; load at the start {about['load_at_start']}"
    lines = [
        f"# Speed: {report['dtype']}, {report['size']}x{report['size']}, width {report['base_width']}",
        "",
        f"{where}; {versions}.",
        "",
        *format_table(report["rows"]),
        "",
        *(f"Left out: {name} ({reason})." for name, reason in report["left_out"].items()),
        *(f"**Void**: {row['void']}." for row in report["rows"] if row["void"]),
    ]
    files.write_json(path, report)
    files.write_text(path.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")


def summarise_again(path):
    """Writes a result file and its table anew from the turns that it holds."""
    report = files.read_object(path)
    is_paper = (report["size"], report["base_width"]) == (320, 64)
    for row in report["rows"]:
        row["figures"] = summarise(row["kind"], row["batch"], row["raw"])
        if report["limits"] and "error" not in report["limits"]:
            add_rates(row["figures"], row["kind"], report["dtype"], report["limits"], is_paper)
    write_report(report, path)


def draw(path):
    """Draws a result file, a panel for each row of training and inference; returns the PNG beside it."""
    from matplotlib import pyplot  # measuring does without

    report = files.read_object(path)
    rows = [row for row in report["rows"] if row["kind"] in _DRAWN and not row["void"]]
    pyplot.switch_backend("agg")
    figure, panels = pyplot.subplots(1, len(rows), figsize=(3.6 * len(rows), 2.8), squeeze=False)
    for row, panel in zip(rows, panels[0], strict=True):
        _draw_row(panel, row)
    where = f"{report['machine']['processor']}, {report['machine']['cores']} cores"
    figure.suptitle(f"{report['dtype']}, {report['size']}x{report['size']}; {where}", fontsize=9)
    figure.tight_layout()
    target = path.with_suffix(".png")
    figure.savefig(target, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return target


def _draw_row(panel, row):
    """Draws one row: the fastest on top, what was not measured left out."""
    figures = {name: figure for name, figure in row["figures"].items() if "median_s" in figure}
    names = sorted(figures, key=lambda name: -figures[name]["median_s"])
    seconds = [figures[name]["median_s"] for name in names]
    bars = panel.barh(names, seconds, color=[_OURS if name == "auxseg" else _PEER for name in names])
    panel.bar_label(bars, [f"{value:.3g}" for value in seconds], padding=2, fontsize=7)
    panel.set_title(f"{_DRAWN[row['kind']]}, batch {row['batch']}", fontsize=9)
    panel.set_xlabel("seconds an image (median)", fontsize=8)
    panel.set_xlim(0, 1.25 * max(seconds, default=1.0))
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    _define_flags()
    run(main)
