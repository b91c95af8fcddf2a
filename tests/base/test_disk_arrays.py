"""Arrays in files: their room, and the memory that they give back."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from auxseg.base import disk_arrays

ROOT = pathlib.Path(__file__).parents[2]
STATUS = pathlib.Path("/proc/self/status")


def test_the_room_of_an_array_is_taken_at_once(tmp_path):
    array = disk_arrays.create_array(tmp_path / "a.npy", np.int16, (1000, 1000))
    taken = (tmp_path / "a.npy").stat()
    assert taken.st_blocks * 512 >= array.nbytes and not array.any()


def test_an_array_that_does_not_fit_is_an_error_and_no_signal(tmp_path):
    code = (
        "import resource, sys, numpy as np\n"
        "from auxseg.base import disk_arrays\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "try:\n"
        "    disk_arrays.create_array(sys.argv[1], np.uint8, (2 << 20,))\n"
        "except OSError as error:\n"
        "    print('refused', error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.npy"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and done.stdout.startswith("refused"), done.stderr


def held_mb():
    """Returns the memory of this process whose content lies in files."""
    rows = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(int(rows[name].split()[0]) for name in ("RssFile", "RssShmem")) / 1024


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells what a process holds of files")
@pytest.mark.parametrize("mode", ["r+", "r"])
def test_released_memory_is_given_back_and_the_values_stay(tmp_path, mode):
    array = disk_arrays.create_array(tmp_path / "a.npy", np.int16, (64, 1024, 1024))
    for index, plane in enumerate(array):
        plane[:] = index
    if mode == "r":
        array.flush()
        array = np.load(tmp_path / "a.npy", mmap_mode="r")
        assert [int(plane.max()) for plane in array] == list(range(64))
    full = held_mb()
    disk_arrays.release(array[:32])
    assert 62 < full - held_mb() < 66  # of 128
    assert [(int(plane.min()), int(plane.max())) for plane in array] == [
        (index, index) for index in range(64)
    ]


def test_small_parts_and_arrays_in_memory_stay_as_they_are(tmp_path):
    array = disk_arrays.create_array(tmp_path / "a.npy", np.uint8, (3, 5, 7))
    array[:] = np.arange(105).reshape(3, 5, 7)
    disk_arrays.release(array[1])
    disk_arrays.release(np.asarray(array))
    kept = np.arange(105)
    disk_arrays.release(kept)
    assert (array.ravel() == kept).all() and (kept == np.arange(105)).all()
