"""Freed memory stays in the process: a large array that comes back faults no pages in."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
from auxseg.base.command import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import numpy as np
def faults():
    np.zeros(50_000_000, np.uint8).fill(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.empty(50_000_000, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, faults()]))
"""


def run(mode):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_used_again():
    kept, faults = run("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    _, plain = run("plain")
    assert faults < plain / 10
