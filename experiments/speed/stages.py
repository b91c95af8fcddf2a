"""Where the time of `auxseg predict` goes: its functions, each with a clock around it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import time

from auxseg.ct import scans
from auxseg.prediction import (
    batches,
    lungs,
    measure,
    nodule_candidates,
    nodule_look,
    outputs,
    overlay,
    plausible,
    segment,
)
from auxseg.scoring import components

STAGES = (
    ("a sample of slices checked", segment, "_check"),
    ("slices: resized", batches, "_resize_all"),
    ("slices: pictures", overlay, "encode_picture"),
    ("slices: brought to the scan's size", segment, "_finish"),
    ("3D clean-up", components, "clean"),
    ("3D clean-up", lungs, "clean"),
    ("3D clean-up", plausible, "check_lungs"),
    ("nodules: where to look", nodule_look, "find_region"),
    ("nodules: network", nodule_look, "mark"),
    ("nodules: candidates", nodule_candidates, "find_candidates"),
    ("measurements", measure, "measure"),
    ("writing mask and pages", outputs, "write_segmentation"),
)
"""(stage, owner, function): what stands within another stage is counted there too."""
OPENING, READING = "opening the scan", "slices: read"
"""Stages apart: an open scan brings the function that reads its slices."""
ALL_SLICES = "all slices, lungs network included"
_BESIDE = ("slices: resized", "slices: pictures", "slices: brought to the scan's size")
"""Stages of threads beside the network's: their processor time is their thread's."""


@dataclasses.dataclass
class Clock:
    """Seconds of one stage: as the clock on the wall has them, and of the processor."""

    wall: float = 0.0
    cpu: float = 0.0
    calls: int = 0


@contextlib.contextmanager
def measured():
    """Puts clocks around the functions of `STAGES`; yields {stage: Clock}."""
    clocks, lock = {stage: Clock() for stage in (OPENING, ALL_SLICES, READING)}, threading.Lock()
    with contextlib.ExitStack() as undo:
        undo.callback(setattr, scans, "open_scan", scans.open_scan)
        scans.open_scan = _timed_opening(scans.open_scan, clocks, lock)
        for stage, owner, name in STAGES:
            clock = clocks.setdefault(stage, Clock())
            own = time.thread_time if stage in _BESIDE else time.process_time
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, _timed(getattr(owner, name), clock, own, lock))
        undo.callback(setattr, segment, "_predict_batches", segment._predict_batches)
        segment._predict_batches = _timed_generator(segment._predict_batches, clocks[ALL_SLICES])
        yield clocks


def _timed(function, clock, cpu_time, lock):
    @functools.wraps(function)
    def run(*arguments, **options):
        start, cpu = time.perf_counter(), cpu_time()
        try:
            return function(*arguments, **options)
        finally:
            wall, used = time.perf_counter() - start, cpu_time() - cpu
            with lock:
                clock.wall, clock.cpu, clock.calls = clock.wall + wall, clock.cpu + used, clock.calls + 1

    return run


def _timed_opening(function, clocks, lock):
    opening = _timed(function, clocks[OPENING], time.process_time, lock)

    def run(*arguments, **options):
        scan = opening(*arguments, **options)
        return dataclasses.replace(scan, read=_timed(scan.read, clocks[READING], time.thread_time, lock))

    return run


def _timed_generator(function, clock):
    def run(*arguments):
        start, cpu = time.perf_counter(), time.process_time()
        yield from function(*arguments)
        clock.wall, clock.cpu, clock.calls = time.perf_counter() - start, time.process_time() - cpu, 1

    return run


def to_rows(clocks):
    """Returns the stages as JSON types."""
    return [{"stage": stage, **dataclasses.asdict(clock)} for stage, clock in clocks.items()]
