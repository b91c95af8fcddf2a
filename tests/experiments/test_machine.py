"""Memory that is a process's own."""

import pathlib
import subprocess
import sys

import pytest

if not pathlib.Path("/proc/self/status").exists():
    pytest.skip("only Linux says what memory is a process's own", allow_module_level=True)

CODE = """
import sys, threading
import numpy as np
from experiments.speed import machine

np.zeros(64 << 20, np.uint8).tofile(sys.argv[1])
with machine.own_memory(every_s=0.005) as before:
    threading.Event().wait(0.05)
with machine.own_memory(every_s=0.005) as mapped:
    file = np.memmap(sys.argv[1], np.uint8, "r")
    file.max()
    threading.Event().wait(0.05)
with machine.own_memory(every_s=0.005) as own:
    array = np.ones(64 << 20, np.uint8)
    threading.Event().wait(0.05)
print(before[-1], mapped[-1], own[-1], array[0])
"""
"""In a process of its own: one that has run other tests has memory to give."""


def test_own_memory_counts_arrays_and_no_mapped_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    before, mapped, own, _ = map(int, done.stdout.split())
    assert mapped < before + 32 and own > before + 60
