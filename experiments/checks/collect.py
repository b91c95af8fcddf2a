"""Keeps the small numbers of a run: experiments/results/NAME.json, with the settings and machine that made them.

python -m experiments.checks.collect --workdir=runs/phantom
"""

import pathlib

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.runs import run_folder
from configs import base

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def collect(workdir):
    """Returns what is kept of a finished run, JSON types.

    Args:
        workdir: pathlib.Path of the run.

    Raises:
        InputError: no run there, or one that has not ended.
    """
    summary = files.read_json(workdir / "summary.json")
    stored = files.read_json(workdir / "config.json")
    members = files.read_json(workdir / "splits.json")
    rows = files.read_rows(workdir / "metrics.jsonl")
    if summary["epochs"] != len(rows):
        raise InputError(
            f"{workdir}: the summary is of {summary['epochs']} epochs, metrics.jsonl of {len(rows)}"
        )
    return {
        "changed_from_base": run_folder.list_differences(
            run_folder.config_to_dict(base.get_config()), stored
        ),
        "cases": {split: len(cases) for split, cases in members.items()},
        "summary": {k: v for k, v in summary.items() if k != "report"},
        "epochs": [_short(row) for row in rows],
        "machine": files.read_json(workdir / "versions.json"),
    }


def main(argv):
    """Writes the file and names it."""
    del argv
    workdir = pathlib.Path(flags.FLAGS.workdir)
    path = RESULTS / f"{workdir.name}.json"
    files.write_json(path, collect(workdir))
    print(path)


def _short(row):
    return {
        "epoch": row["epoch"],
        "train_loss": row["train"]["loss"],
        "val_loss": row["val"]["loss"],
        "val_dice": row["val"]["dice"],
        "learning_rate": row["learning_rate"],
        "seconds": row["seconds"],
    }


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    command.run(main)
