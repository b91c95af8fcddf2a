"""Processes that do a share of the work: modules of auxseg, run by this Python."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(module, *arguments, **streams):
    """Returns the process of `python -m MODULE ARGUMENTS`, which finds auxseg from any working directory.

    Args:
        module: such as 'auxseg.datasets.preparation.worker'.
        arguments: texts or what becomes text.
        streams: `stdin` and `stdout` of subprocess.Popen.
    """
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(command, text=True, encoding="utf-8", env=environment, **streams)
