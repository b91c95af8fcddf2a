"""A kill while a report is written: the former page stays as it was, no file is half there."""

import os
import pathlib
import signal
import subprocess
import sys

import made_up_run

from auxseg.report import pictures, write_report

HERE = pathlib.Path(__file__).parent


def write(folder):
    """Writes a report without figures, which take the time; returns its page."""
    pictures.draw_all, draw_all = (lambda report: {}), pictures.draw_all
    try:
        return write_report(folder / "report", made_up_run.make_report(folder / "run"))
    finally:
        pictures.draw_all = draw_all


def write_and_die(folder, name):
    """Writes a report, and dies when the file `name` is to take its place."""
    replace = os.replace

    def replace_or_die(old, new):
        if pathlib.Path(new).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = replace_or_die
    write(pathlib.Path(folder))


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kill_amid_a_report_leaves_the_former_page(tmp_path):
    page = write(tmp_path)
    before = files_in(tmp_path / "report")
    paths = [str(HERE), str(HERE.parent.parent)]
    code = (
        f"import sys; sys.path[:0] = {paths!r}; import test_killed; test_killed.write_and_die(*sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), page.name], capture_output=True, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = files_in(tmp_path / "report")
    (left,) = after.keys() - before.keys()
    assert left.match(f".{page.name}.*.part")
    assert after[page] == before[page]
    write(tmp_path)
    assert files_in(tmp_path / "report").keys() == before.keys() | {left}
