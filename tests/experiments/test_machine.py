"""Memory that is a process's own."""

import numpy as np
import pytest

from experiments.speed import machine

if not machine.pathlib.Path("/proc/self/status").exists():
    pytest.skip("only Linux says what memory is a process's own", allow_module_level=True)


def test_own_memory_counts_arrays_and_no_mapped_file(tmp_path):
    np.zeros(64 << 20, np.uint8).tofile(tmp_path / "file")
    with machine.own_memory(every_s=0.005) as before:
        machine.threading.Event().wait(0.05)
    with machine.own_memory(every_s=0.005) as mapped:
        np.memmap(tmp_path / "file", np.uint8, "r").sum()
    with machine.own_memory(every_s=0.005) as own:
        array = np.ones(64 << 20, np.uint8)
        machine.threading.Event().wait(0.05)
    assert array.sum() == 64 << 20
    assert mapped[-1] < before[-1] + 32 and own[-1] > before[-1] + 60
