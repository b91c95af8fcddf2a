"""What breaks from outside: kills amid a save, a full disk, a folder that cannot be written.

The processes that are killed, or whose disk is full, run `_act` of this file.
"""

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import test_checkpoints

from auxseg.base.errors import InputError
from auxseg.runs import checkpoints, run_folder

TESTS = pathlib.Path(__file__).parent


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_when_it_appears(folder, pattern):
    """Kills this process as soon as a file fits: amid whatever writes it."""

    def watch():
        while not any(folder.glob(pattern)):
            time.sleep(0)
        _kill()

    threading.Thread(target=watch, daemon=True).start()


def _save_and_die(workdir, moment):
    test_checkpoints.save(workdir, 1)
    if moment == "amid the arrays":
        _kill_when_it_appears(workdir / "checkpoints/latest", "2*tmp*/*")
    elif moment == "before the checksums":
        checkpoints._checksums = lambda folder: _kill()
    else:
        os.replace = lambda *names: _kill()
    test_checkpoints.save(workdir, 2)


def _large_state(step, num_values):
    state = test_checkpoints.make_state(step)
    values = np.random.default_rng(step).normal(size=(num_values // 64, 64)).astype(np.float32)
    return state._replace(params={**state.params, "large": {"kernel": values}})


def _fill_the_disk(workdir, way):
    """Saves one checkpoint that fits and one that does not; prints what is said of the second."""
    test_checkpoints.save(workdir, 1)
    if way == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    try:
        large = _large_state(2, 400_000)
        checkpoints.save_latest(
            workdir, state=large, sums=test_checkpoints.make_sums(), progress={"epoch": 2}
        )
    except InputError as error:
        print(error)
    if way == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not list((workdir / "checkpoints/latest").glob("*tmp*"))
    assert test_checkpoints.restore(workdir)[2] == {"epoch": 1}
    test_checkpoints.save(workdir, 3)  # there is room again
    assert test_checkpoints.restore(workdir)[2] == {"epoch": 3}


def _act(name, folder, detail):
    {"save": _save_and_die, "fill": _fill_the_disk}[name](pathlib.Path(folder), detail)


def _start(*arguments, prefix=()):
    paths = [str(TESTS), str(TESTS / "runs"), str(TESTS.parent)]
    code = f"import sys; sys.path[:0] = {paths!r}; import test_survival; test_survival._act(*sys.argv[1:])"
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_kill_amid_a_save_leaves_the_checkpoint_before_it(tmp_path):
    moments = ("amid the arrays", "before the checksums", "amid the checksums")
    started = {moment: _start("save", tmp_path / str(i), moment) for i, moment in enumerate(moments)}
    for i, (moment, process) in enumerate(started.items()):
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, (moment, err)
        workdir = tmp_path / str(i)
        found, _, progress = test_checkpoints.restore(workdir)
        assert progress == {"epoch": 1}, moment
        test_checkpoints.assert_same(found, test_checkpoints.make_state(1))
        assert any((workdir / "checkpoints/latest").glob("2*")), f"{moment}: killed too early"
        test_checkpoints.save(workdir, 2)
        assert test_checkpoints.restore(workdir)[2] == {"epoch": 2}
        assert not list((workdir / "checkpoints/latest").glob("*tmp*"))


def _can_mount():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def test_full_disk_is_one_clear_line_and_costs_nothing(tmp_path):
    """On a disk of 1 MB where one can be mounted; else with a limit on the size of a file."""
    (tmp_path / "disk").mkdir()
    if _can_mount():
        script = f'mount -t tmpfs -o size=1m none {tmp_path / "disk"} && exec "$@"'
        prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
        way, reason = "tmpfs", os.strerror(errno.ENOSPC)
    else:
        prefix, way, reason = (), "limit", os.strerror(errno.EFBIG)
    process = _start("fill", tmp_path / "disk" / "run", way, prefix=prefix)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (line,) = out.splitlines()
    assert f"latest checkpoint 2 could not be saved: {reason}; the ones before it are whole" in line


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """Returns a folder, by its name in the current one, that may not be written, for root neither."""
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed").chmod(0o555)
    tmp_path.chmod(0o755)  # where names are looked up from
    monkeypatch.chdir(tmp_path)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield pathlib.Path("fixed")
    if root:
        os.seteuid(0)
    (tmp_path / "fixed").chmod(0o755)


def test_read_only_workdir_is_one_clear_line(read_only):
    assert list(read_only.iterdir()) == []  # it can be read
    for workdir in (read_only, read_only / "run"):
        with pytest.raises(InputError, match="fixed.*: Permission denied; choose another with --workdir=DIR"):
            with run_folder.hold(workdir):
                pass


def test_checkpoints_that_cannot_be_written_are_one_clear_line(read_only):
    with pytest.raises(InputError, match="best checkpoint 1 could not be saved: Permission denied"):
        checkpoints.save_best(
            read_only, step=1, variables=test_checkpoints.make_state(1).variables, progress={"epoch": 1}
        )
