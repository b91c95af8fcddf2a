"""Compiled programs are kept in a folder that is the user's own, and nowhere else."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import pathlib, sys
import jax
from auxseg.devices import programs

print(programs.keep(pathlib.Path(sys.argv[1])))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
print(jax.jit(lambda x: 2.0 * x + 1.0)(3.0))
"""


def run(folder):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()


def test_a_program_lies_in_the_folder_of_this_processor(tmp_path):
    folder, value = run(tmp_path)
    assert value == "7.0" and pathlib.Path(folder).parent == tmp_path / "programs"
    assert any("lambda" in path.name for path in pathlib.Path(folder).iterdir())
    assert not pathlib.Path(folder).stat().st_mode & 0o077


def test_where_others_may_write_nothing_is_kept_and_nothing_is_run(tmp_path):
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs").chmod(0o777)
    assert run(tmp_path) == ["None", "7.0"]
    assert list((tmp_path / "programs").iterdir()) == []
