"""The scans of a folder, each prepared by itself, by several processes or a cluster side by side.

A piece is what becomes of one scan: for records a file `UID.npz` with its examples, for the NPZ form the
`.npz` files of its slices and then `UID.json` with their rows of `index.csv`. It appears under its name when
it is whole, so that a preparation that was killed goes on with the pieces that are there. Workers are
processes of `worker`; one that dies is replaced once for the scan that it died of. Nothing here needs
tensorflow_datasets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import threading
import zlib
from typing import Any

import numpy as np

from auxseg.base import classes, files, npz, workers
from auxseg.base.errors import InputError
from auxseg.datasets import labels, layouts, resize
from auxseg.datasets.npz import MOST_BYTES, write_case

FORMS = ("records", "npz")
MAX_WORKERS = 16
"""By default: more only wait for the disk."""
SCANS_PER_WORKER = 4
"""Fewer are done sooner than a process starts."""
_FIELDS = ("image", "mask", "labels", "slice_index", "spacing_zyx_mm", "num_nodules", "native_size_yx")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is made of each scan.

    Attributes:
        form: one of `FORMS`.
        folder: of the scans.
        settings: of a layout (`auxseg.datasets.layouts`).
        place: folder of the pieces.
        npz_size_yx: rows and columns of the NPZ form; None for those of the scan.
    """

    form: str
    folder: str
    settings: Any
    place: str
    npz_size_yx: tuple[int, int] | None = None

    def to_json(self):
        """Returns the Job as one line of JSON."""
        return json.dumps(dataclasses.asdict(self) | {"layout": layouts.name_of(self.settings)})

    @classmethod
    def from_json(cls, line):
        """Returns the Job that `to_json` gave."""
        fields = json.loads(line)
        settings, name = fields.pop("settings"), fields.pop("layout")
        size, npz_size = settings.pop("size_yx"), fields.pop("npz_size_yx")
        return cls(
            **fields,
            settings=layouts.get_layout(name).Settings(size_yx=size and tuple(size), **settings),
            npz_size_yx=npz_size and tuple(npz_size),
        )

    def path_of(self, uid):
        """Returns the file whose presence says that the scan is done."""
        return pathlib.Path(self.place) / f"{uid}{'.npz' if self.form == 'records' else '.json'}"


def default_workers(num_scans):
    """Returns how many processes to prepare with: one for each processor, fewer for few scans."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, MAX_WORKERS, num_scans // SCANS_PER_WORKER))


def write_all(job, scans, nodules_of, *, num_workers=None):
    """Yields (scan, problem) as each scan is done: problem is one line where it cannot be used, else None.

    Scans whose pieces are there are done at once.

    Args:
        job: Job.
        scans: of its folder.
        nodules_of: from the layout's `create_nodule_reader`, for this process.
        num_workers: processes; None for `default_workers`, 1 for this process alone.

    Raises:
        InputError: a worker died twice of the same scan, or the disk is full.
    """
    left = []
    for scan in scans:
        if job.path_of(scan.uid).is_file():
            yield scan, None
        else:
            left.append(scan)
    num_workers = default_workers(len(left)) if num_workers is None else min(num_workers, len(left))
    if num_workers < 2:
        yield from ((scan, write_piece(job, scan, nodules_of)) for scan in left)
        return
    with contextlib.closing(_write_by_workers(job, left, num_workers)) as results:
        yield from results


def write_piece(job, scan, nodules_of):
    """Writes the piece of one scan; returns None, or one line where the scan cannot be used.

    Raises:
        InputError: the piece cannot be written.
    """
    try:
        slices, notes = layouts.layout_of(job.settings).read_slices(scan, job.settings, nodules_of)
    except InputError as error:
        return str(error)
    (_write_examples if job.form == "records" else _write_cases)(job, scan, slices, notes)
    return None


def read_examples(job, scan, nodules_of):
    """Returns (examples of a scan for records, in rising order of their slices, notes); makes a damaged piece
    anew. Of slices that stay as they are the mask is left out, since the native mask is the same.

    Raises:
        InputError: the piece is damaged, and the scan cannot be used any more.
    """
    try:
        return _read_examples(job, scan)
    except npz.UNREADABLE:
        problem = write_piece(job, scan, nodules_of)
        if problem is not None:
            raise InputError(f"{scan.uid}: {problem}") from None
        return _read_examples(job, scan)


def read_rows(job, scan):
    """Returns (rows of index.csv of a scan's NPZ files, notes)."""
    found = files.read_object(job.path_of(scan.uid), hint="remove it and start again")
    return found["rows"], found["notes"]


def _write_examples(job, scan, slices, notes):
    shape = job.settings.size_yx or (slices[0].mask.shape if slices else (0, 0))
    masks = [resize.resize_mask(part.mask, shape) for part in slices]
    packed = [zlib.compress(part.mask.tobytes(), 1) for part in slices]
    count = len(slices)
    columns = {
        "image": [resize.resize_image(part.image, shape) for part in slices],
        "mask": masks,
        "labels": [labels.label_vector(mask) for mask in masks],
        "slice_index": [part.index_z for part in slices],
        "spacing_zyx_mm": [part.spacing_zyx_mm for part in slices],
        "num_nodules": [part.num_nodules for part in slices],
        "native_size_yx": [part.mask.shape for part in slices],
    }
    shapes = {"image": shape, "mask": shape, "labels": (len(classes.CLASS_NAMES),), "spacing_zyx_mm": (3,)}
    types = {"image": np.int16, "mask": np.uint8, "labels": np.uint8, "spacing_zyx_mm": np.float32}
    arrays = {
        name: np.array(columns[name], types.get(name, np.int32)).reshape(
            count, *shapes.get(name, (2,) if name == "native_size_yx" else ())
        )
        for name in _FIELDS
    }
    arrays["native_mask"] = np.frombuffer(b"".join(packed), np.uint8)
    arrays["native_mask_bytes"] = np.array([len(mask) for mask in packed], np.int64)
    arrays["notes"] = np.array(notes, np.str_)
    with files.write_whole(job.path_of(scan.uid)) as file:
        np.savez(file, **arrays)


def _read_examples(job, scan):
    arrays = npz.read_npz(job.path_of(scan.uid), most_bytes=MOST_BYTES)
    ends = np.cumsum(arrays["native_mask_bytes"])
    native = np.split(arrays["native_mask"], ends[:-1]) if len(ends) else []
    examples = [
        {name: arrays[name][place] for name in _FIELDS if name != "mask" or job.settings.size_yx}
        | {"native_mask": native[place].tobytes()}
        | {"series_uid": scan.uid, "patient": scan.patient, "subset": scan.subset}
        for place in range(len(ends))
    ]
    return examples, tuple(arrays["notes"].tolist())


def _write_cases(job, scan, slices, notes):
    rows = [_write_case(pathlib.Path(job.place), scan, part, job.npz_size_yx) for part in slices]
    files.write_json(job.path_of(scan.uid), {"rows": rows, "notes": notes})


def _write_case(place, scan, part, size_yx):
    """Writes one slice; returns its row of index.csv. Spacings are those of the file's pixels."""
    image, mask, spacing = part.image, part.mask, part.spacing_zyx_mm
    if size_yx:
        image, mask = resize.resize_image(image, size_yx), resize.resize_mask(mask, size_yx)
        scales = np.divide(part.mask.shape, size_yx)
        spacing = (spacing[0], *(np.asarray(spacing[1:]) * scales))
    case_id = f"{scan.uid}_{part.index_z:04d}"
    write_case(place / f"{case_id}.npz", image, mask)
    return {
        "id": case_id,
        "slice_index": int(part.index_z),
        "series_uid": scan.uid,
        "patient": scan.patient,
        "subset": int(scan.subset),
        "pixel_spacing_mm": f"{spacing[2]:.9g}",
        "row_spacing_mm": "" if np.isclose(spacing[1], spacing[2]) else f"{spacing[1]:.9g}",
        "slice_spacing_mm": f"{spacing[0]:.9g}",
        "num_nodules": int(part.num_nodules),
    }


def _write_by_workers(job, scans, num_workers):
    """Yields as `write_all`; one thread for each worker hands it a scan at a time."""
    tasks, results = queue.SimpleQueue(), queue.SimpleQueue()
    for scan in scans:
        tasks.put(scan)
    hands = [_Hand(job, tasks, results) for _ in range(num_workers)]
    try:
        for _ in scans:
            scan, problem, fault = results.get()
            if fault is not None:
                raise InputError(f"preparing {scan.uid}: {fault}")
            yield scan, problem
    finally:
        for hand in hands:
            hand.end()


class _Hand:
    """A thread with a worker process."""

    def __init__(self, job, tasks, results):
        self._job, self._tasks, self._results = job, tasks, results
        self._worker, self._ended = None, False
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self):
        """Ends the worker, whatever it is at."""
        with self._starting:
            self._ended = True
            if self._worker is not None:
                self._worker.terminate()
        self._thread.join()

    def _run(self):
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                scan = self._tasks.get_nowait()
                answer = self._ask(scan) or self._ask(scan)
                fault = (
                    answer.get("fault") if answer else "a process died of it twice; is there memory enough?"
                )
                self._results.put((scan, answer and answer.get("problem"), fault))
        if self._worker is not None:
            self._worker.stdin.close()
            self._worker.stdout.close()
            self._worker.wait()

    def _ask(self, scan):
        """Returns the worker's answer, or None where it has died."""
        try:
            with self._starting:
                if self._worker is None and not self._ended:
                    self._worker = _start_worker(self._job)
            if self._ended:
                return None
            self._worker.stdin.write(scan.uid + "\n")
            self._worker.stdin.flush()
            line = self._worker.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if line.endswith("\n"):
            return json.loads(line)
        with contextlib.suppress(OSError):
            self._worker.stdin.close()
        self._worker.stdout.close()
        self._worker.wait()
        self._worker = None
        return None


def _start_worker(job):
    worker = workers.start(
        "auxseg.datasets.preparation.worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    worker.stdin.write(job.to_json() + "\n")
    return worker


def open_job(job):
    """Returns ({uid: Scan}, nodule reader) of a Job's folder, in whichever process it is done."""
    layout = layouts.layout_of(job.settings)
    folder = layout.list_folder(job.folder)
    return {scan.uid: scan for scan in folder.scans}, layout.create_nodule_reader(folder, job.settings)
