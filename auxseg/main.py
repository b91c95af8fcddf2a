"""Trains and evaluates a network as a config file says.

python -m auxseg.main --config=configs/phantom.py [--workdir=DIR] [--config.train.num_epochs=5]
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from auxseg import cli, evaluate, train
from auxseg.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "settings: a Python file such as configs/phantom.py")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/NAME for configs/NAME.py")


def main(argv):
    """Runs one training; returns the exit status."""
    del argv
    path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]) or "")
    if not path.is_file():
        raise InputError(f"--config: got {str(path)!r}, expected a settings file such as configs/phantom.py")
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / path.stem)
    try:
        summary = train.train(CONFIG.value, workdir)
    except train.Interrupted as stop:
        print(stop, file=sys.stderr)
        return cli.EXIT_INTERRUPTED
    print(evaluate.describe(summary))
    return 0


if __name__ == "__main__":
    cli.run(main)
