"""What speed is measured on, and how: the machine in words, peaks of memory, work in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading

LIBRARIES = (
    "jax",
    "flax",
    "optax",
    "torch",
    "keras",
    "tensorflow",
    "onnxruntime",
    "openvino",
    "lungmask",
    "numpy",
)


def describe_machine():
    """Returns processor, cores, memory, load and library versions, JSON types."""
    processor, memory = platform.processor(), None
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = importlib.metadata.packages_distributions()
    versions = {name: importlib.metadata.version(there[name][0]) for name in LIBRARIES if name in there}
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory,
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def peak_mib():
    """Returns the peak resident memory of this process on Linux (getrusage would have that of its parent in it)."""
    return round(_status_kib("VmHWM") / 1024)


def _status_kib(name):
    lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def own_memory(every_s=0.05):
    """Yields a list that ends with the most memory in MiB that was this process's own meanwhile; files in memory are not.

    The kernel takes back pages of files that are mapped into memory where somebody needs them, so they cost nobody
    anything. It keeps no peak without them: they are looked at every so many seconds.
    """
    most, done = [0], threading.Event()

    def watch():
        while not done.wait(every_s):
            most[-1] = max(most[-1], round(_status_kib("RssAnon") / 1024))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def forget_peak():
    """Makes the kernel forget this process's peak so far, where it can."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def measure_apart(module, asked, env=None, more=()):
    """Returns the figures that `python -m MODULE --measure=ASKED MORE` prints as JSON, in a process of its own.

    Raises:
        RuntimeError: it failed; the last line that it said.
    """
    command = [sys.executable, "-m", module, f"--measure={asked}", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
