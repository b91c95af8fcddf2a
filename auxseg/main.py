"""Trains and evaluates a network as a config file says, on all devices of this host, or of many hosts.

    python -m auxseg.main --config=configs/phantom.py [--workdir=DIR] [--config.train.num_epochs=5]
    python -m auxseg.main --workdir=DIR

`--config` is a settings file, or the name of one of auxseg's own: `--config=phantom` works in any folder. With
`--workdir` alone the run in that folder goes on.
"""

import pathlib
import sys

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.runs import config_files

CONFIG = config_files.define("settings: a Python file, or a name such as phantom for configs/phantom.py")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/NAME for configs/NAME.py")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; found on SLURM and the like")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "of this run; found on SLURM and the like")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "of this process, from 0; found on SLURM and the like")


def main(argv):
    """Runs one training; returns the exit status."""
    del argv
    if CONFIG.value is None:
        raise InputError(
            "--config: not given; expected a settings file such as configs/phantom.py, or a --workdir"
        )
    # What computes is imported here: --help and a mistake in a flag are answered at once.
    import jax

    from auxseg.devices import parallel, processes
    from auxseg.evaluation import evaluate_run
    from auxseg.training import interruption, loop

    workdir = pathlib.Path(WORKDIR.value or config_files.default_workdir())
    if CONFIG.value.train.deterministic:
        parallel.make_deterministic()
    processes.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    try:
        summary = loop.train(CONFIG.value, workdir, finish=evaluate_run.finish)
    except interruption.Interrupted as stop:
        if processes.is_first():
            print(stop, file=sys.stderr)
        return command.EXIT_INTERRUPTED
    except jax.errors.JaxRuntimeError:
        processes.await_loss()
        raise
    if summary is not None:
        print(evaluate_run.describe(summary))
    return 0


def leave(status):
    """Ends the process with a status, after the others of the run."""
    from auxseg.devices import processes

    processes.leave(status)


if __name__ == "__main__":
    command.run(main, leave=leave, complete=config_files.with_settings_of_workdir)
