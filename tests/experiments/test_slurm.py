"""The examples for SLURM, with made-up commands of the cluster: what is started, and what happens at the end."""

import os
import pathlib
import subprocess

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "slurm"


def run(script, arguments, tmp_path, *, status=0, **variables):
    """Returns (exit status, lines) of a script: each command that it starts is a line."""
    for name in ("srun", "auxseg", "scontrol"):
        code = f'#!/bin/sh\necho "{name} $*"\n' + (f"exit {status}\n" if name == "srun" else "")
        (tmp_path / name).write_text(code)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(FOLDER / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_each_task_takes_its_part_of_the_archive(tmp_path):
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert run("predict.sbatch", ["in", "out dir"], tmp_path, **array) == (
        0,
        ["auxseg predict in out dir --part=3/8"],
    )


@pytest.mark.parametrize(("status", "again"), [(0, []), (75, ["scontrol requeue 12"]), (2, [])])
def test_a_training_is_queued_again_only_where_it_saved_itself(tmp_path, status, again):
    found = run("train.sbatch", ["--config=seed3"], tmp_path, status=status, SLURM_JOB_ID="12")
    assert found == (status, ["srun --kill-on-bad-exit=0 auxseg train --config=seed3", *again])
