"""Stages of a long work: each says what it does, leaves a mark when it is done, and is passed over when it has one."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable

from auxseg.base import errors, files


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        name: by which it is asked for and marked.
        words: what it does.
        run: does it, and goes on where it was stopped.
    """

    name: str
    words: str
    run: Callable[[], None]


def call(module, *arguments):
    """Returns a function that runs a module of `experiments.box` in a process of its own."""
    return command(f"experiments.box.{module}", *arguments)


def command(module, *arguments):
    """Returns a function that runs a module in a process of its own, and raises an InputError where it fails."""

    def run():
        line = [sys.executable, "-m", module, *map(str, arguments)]
        status = subprocess.run(line, check=False).returncode
        if status:
            raise errors.InputError(f"{' '.join(line[1:])}: exit status {status}; start again to go on")

    return run


def run_all(stages, folder, wanted=()):
    """Runs the stages that have no mark, in their order.

    Args:
        stages: `Stage`s.
        folder: pathlib.Path of the marks.
        wanted: names of those that are asked for, marked or not; () for all.

    Raises:
        InputError: a name that no stage has, or a stage failed.
    """
    names = [stage.name for stage in stages]
    for name in wanted:
        errors.check_choice("--stages", name, names)
    for number, stage in enumerate(stages, start=1):
        mark = folder / f"{stage.name}.json"
        if wanted and stage.name not in wanted:
            continue
        before = f"[{number}/{len(stages)}] {stage.name}:"
        if mark.is_file() and not wanted:
            print(f"{before} done before", flush=True)
            continue
        print(f"{before} {stage.words}", flush=True)
        start = time.monotonic()
        stage.run()
        files.write_json(mark, {"stage": stage.words, "seconds": round(time.monotonic() - start, 1)})
