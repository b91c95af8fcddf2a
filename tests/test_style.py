"""The code is as ruff formats it, and free of what ruff finds (pyproject.toml)."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("auxseg", "configs", "experiments", "tests")


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", *FOLDERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\npython -m ruff {command} {' '.join(FOLDERS)}"


def test_every_test_file_has_its_own_name():
    """Files of one name in two folders cannot be imported side by side."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
