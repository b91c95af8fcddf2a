"""Kills and signals at any moment of training, preparing, evaluating, predicting, and of two processes of one run.

Each kind of work is done once undisturbed. Then it is killed again and again, started anew each time, and in the end
let through: what it leaves must be what the undisturbed one left. After each kill no file may pass for a whole that is
none.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import nibabel
import numpy as np

from auxseg.base import files
from auxseg.ct import images
from auxseg.ct.geometry import Geometry
from auxseg.datasets.luna16 import layout
from auxseg.datasets.preparation import pieces, records
from auxseg.devices import parallel, processes
from auxseg.evaluation import evaluate_run
from auxseg.prediction import outputs, segment
from auxseg.runs import networks
from auxseg.training import interruption, loop
from experiments.checks import campaign_runs, campaign_scans, forked
from experiments.checks.lost_process import free_port

COUNT = 140
_OF_EACH = {"train": 36, "prepare": 40, "predict": 40, "evaluate": 16, "two processes": 8}
"""Kills; together `COUNT`."""
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_SCANS = 4


def kind_of(number):
    """Returns (kind of work, which kill of it)."""
    for kind, count in _OF_EACH.items():
        if number < count:
            return kind, number
        number -= count
    raise ValueError(number)


def prepare(folder):
    """Writes what the work is done on: scans, a LUNA16 folder, slices and a trained run."""
    campaign_runs.prepare(folder / "run_files")
    (folder / "scans").mkdir()
    for index in range(_SCANS):
        np.savez(folder / "scans" / f"{index}.npz", image=campaign_scans.TRUTH + index,
                 spacing_zyx_mm=np.array([20.0, 14.0, 14.0]))  # fmt: skip
    grid = Geometry(campaign_scans.TRUTH.shape[::-1], (14.0, 14.0, 20.0), (-160.0, -130.0, 0.0))
    lungs = np.where(campaign_scans.TRUTH < -500, np.where(np.arange(24) > 11, 3, 4), 0).astype(np.int16)
    for index in range(_SCANS):
        for name, voxels in ((f"subset{index}", campaign_scans.TRUTH), ("seg-lungs-LUNA16", lungs)):
            (folder / "luna16" / name).mkdir(parents=True, exist_ok=True)
            images.write_volume(folder / "luna16" / name / f"1.2.{index}.mhd", voxels, grid, compress=False)
    (folder / "luna16/annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.0,-60,0,60,20\n"
    )


def _train(folder, target):
    parallel.keep_compiled_programs(folder / "run_files/cache/compiled")
    config = campaign_runs.settings(folder / "run_files/data", num_epochs=6)
    try:
        loop.train(config, target, finish=evaluate_run.finish)
    except interruption.Interrupted:
        return 75
    return 0


def _prepare(folder, target):
    settings = layout.Settings(size_yx=(24, 24), slices="lung")
    write_all = _write_all_here
    records.prepare(folder / "luna16", cache_dir=target, settings=settings, write_all=write_all)


def _write_all_here(*args):
    return pieces.write_all(*args, num_workers=1)


def _predict(folder, target):
    parallel.keep_compiled_programs(folder / "run_files/cache/compiled")
    network = campaign_runs.threshold_network()
    outputs.predict(
        folder / "scans", target, [network], options=segment.Options(force=True), formats=("nii.gz", "npz")
    )


def _evaluate(folder, target):
    parallel.keep_compiled_programs(folder / "run_files/cache/compiled")
    if not target.exists():
        shutil.copytree(folder / "run_files/run", target.with_suffix(".part"))
        os.replace(target.with_suffix(".part"), target)
    evaluate_run.report_run(target, explained=None)


def _describe_run(target):
    """Returns what a run came to, without times."""
    rows = [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: row[name] for name in ("epoch", "loss", "val_loss") if name in row} for row in rows]
    _, weights, found = networks.read_best(target)
    return {"rows": kept, "weights": networks.weights_checksum(weights), "epoch": found["epoch"]}


def _describe_records(target):
    settings = layout.Settings(size_yx=(24, 24), slices="lung")
    (folder,) = (target / "luna16").glob("lung-*")
    dataset = records.read_records(folder, settings=settings)
    pictures, masks = dataset.read(np.arange(len(dataset)))
    left = sorted(path.name for path in (target / "luna16").iterdir())
    return {
        "cases": dataset.table.case_id.tolist(),
        "sums": [int(pictures.sum()), int(masks.sum())],
        "left": left,
    }


def _describe_masks(target):
    rows = [(row["scan"], row["status"].split()[0]) for row in files.read_cells(target / "scans.csv")]
    sums = {}
    for index in range(_SCANS):
        mask = np.asarray(nibabel.load(target / str(index) / "mask.nii.gz").dataobj)
        sums[index] = [np.bincount(mask.ravel().astype(int), minlength=4).tolist(), str(mask.shape)]
    left = sorted(str(path.relative_to(target)) for path in target.rglob(".*") if path.name != ".lock")
    return {"rows": rows, "sums": sums, "left": left}


def _describe_report(target):
    return {"run": _describe_run(target), "page": len((target / "report/index.html").read_bytes()) // 10_000}


_WORK = {
    "train": (_train, _describe_run),
    "prepare": (_prepare, _describe_records),
    "predict": (_predict, _describe_masks),
    "evaluate": (_evaluate, _describe_report),
    "two processes": (None, _describe_run),
}  # fmt: skip


def check_whole(target):
    """Returns the first file of a folder that passes for a whole and is none, or ''."""
    for path in sorted(target.rglob("*")):
        if (
            not path.is_file()
            or path.name.startswith(".")
            or any(part.startswith(".") for part in path.relative_to(target).parts)
        ):
            continue
        try:
            if path.suffix == ".json" and "tmp" not in str(path.relative_to(target)):
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                files.read_cells(path)
            elif path.name.endswith(".nii.gz"):
                np.asarray(nibabel.load(path).dataobj)
            elif path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    [arrays[name] for name in arrays.files]
        except Exception as error:
            return f"{path.relative_to(target)}: {error}"
    return ""


def _start_two(folder, target, number):
    """Starts two processes of a run; returns what waits for both."""
    port = free_port()

    def work(process):
        processes.join(f"127.0.0.1:{port}", 2, process)
        processes.leave(_train(folder, target))  # the other may still write the report

    log = _open_log(target)
    pair = [forked.start(lambda process=process: work(process), log) for process in range(2)]
    os.close(log)
    return pair if number % 2 == 0 else pair[::-1]


def _open_log(target):
    return os.open(target.parent / f"{target.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _start(kind, folder, target, number):
    """Returns the processes of a work, the one to be killed first."""
    if kind == "two processes":
        return _start_two(folder, target, number)
    log = _open_log(target)
    child = forked.start(lambda: _WORK[kind][0](folder, target), log)
    os.close(log)
    return [child]


def _finish(pair):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in pair]


def undisturbed(kind, folder):
    """Returns (seconds that a work takes, what it leaves), of two that nobody disturbed: the second finds programs."""
    place = folder / "undisturbed" / f"{kind.replace(' ', '-')}.json"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        for name in ("first", "second"):
            target, start = folder / f"{name}-{kind.replace(' ', '-')}", time.monotonic()
            shutil.rmtree(target, ignore_errors=True)
            statuses = _finish(_start(kind, folder, target, 0))
            seconds = time.monotonic() - start
            if any(statuses):
                raise RuntimeError(f"{kind}: undisturbed it ends with {statuses}; see {target}.log")
        left = _in_child(kind, target)
        if not isinstance(left, dict):
            raise RuntimeError(f"{kind}: what it leaves undisturbed {left}")
        files.write_json(place, {"seconds": seconds, "left": left})
    found = files.read_object(place)
    return found["seconds"], found["left"]


def _in_child(kind, target):
    """Returns what a work left, read by a process of its own: this one forks, and computes nothing."""
    answer = target.parent / f"{target.name}.answer"
    status, said = forked.call(lambda: files.write_json(answer, _WORK[kind][1](target)))
    return files.read_json(answer) if status == 0 else f"cannot be read: {said.splitlines()[-1:]}"


def act(number, seed, folder):
    """Returns (what was done, how it ended, more) of one kill.

    The kills of a kind go on with the folder that the one before left, until a start ends by itself before its kill;
    every fourth is let through.
    """
    kind, which = kind_of(number)
    random = np.random.default_rng((seed, number))
    seconds, expected = undisturbed(kind, folder)
    target = folder / f"target-{kind.replace(' ', '-')}"
    number_signal, moment = int(random.choice(_SIGNALS)), float(random.uniform(0.02, 1.0)) * seconds
    pair = _start(kind, folder, target, which)
    time.sleep(moment)
    for child in pair[:1]:
        os.kill(child, number_signal)
    statuses = _finish(pair)
    what = f"{kind}: {signal.Signals(number_signal).name} after {moment / seconds:.0%}"
    damaged = check_whole(target) if target.exists() else ""
    if damaged:
        return what, "fault: half-written", damaged
    by_itself = not any(statuses)
    if which % 4 != 3 and not by_itself:
        return what, "right", f"ended with {statuses}; not yet let through"
    if not by_itself:
        statuses = _finish(_start(kind, folder, target, which))
    left = _in_child(kind, target)
    shutil.rmtree(target)
    how = "ended by itself" if by_itself else "let through"
    if any(statuses) or left != expected:
        return what, "fault: wrong", f"{how}: {statuses}, and leaves {json.dumps(left)[:300]}"
    return what, "right", f"{how}, it leaves what the undisturbed one left"
