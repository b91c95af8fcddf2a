"""Nodules that are found: the paper's recipe and ours on real slices, each scored on slices it did not see.

    python -m experiments.nodules.study --data_dir=FOLDER --init_from=runs/pretrained [--seeds=1,2] [--arms=paper,...]

FOLDER holds real slices as NPZ (120 middle slices of LUNA16, 8 of them with a nodule); `--init_from` is a run on
the phantom, whose weights most arms start from (configs/recommended.py names its command): they share what chance
made of it. All arms have the network, size, batches and folds of configs/recommended.py, and its epochs, but for the
paper's recipe and the one without the start, which have the paper's epochs. Cross-validated by patient over
`--num_folds` folds: one fold is test, the next one val, so that every slice, and every nodule, is scored once a
seed by a network that saw it neither in training nor in the choice of its threshold. Inserted nodules are for
training alone. Scores are at the slice's own resolution, at three operating points: the most likely class;
threshold and least size chosen on the run's own val; and chosen on val of all runs of the recipe, see
`pool_counts`. The study goes on where it was stopped, and takes in every finished run of its folder that fits the
command (`find_runs`), so that arms may have other numbers of seeds. `nodules.json`, `nodules.md` (the scores, and
each arm less the recommended one), `nodules.png`, every real nodule with what was found of it, and
`nodules_curves.png`, what every threshold finds at how many false ones, are written into its folder. With `--phantom` the networks are scored on the test split of the phantom that they started from,
too; with `--flip` the mean of each slice and its mirror image is scored, in files that end in `_flip`.
"""

from __future__ import annotations

import dataclasses
import pathlib

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError, check_choice
from auxseg.runs import run_folder
from experiments import made_by
from experiments.nodules import pictures, scores
from experiments.nodules.arms import create_arms, create_config
from experiments.studies import runner


def study(protocol, folder, *, init_from, jobs=1, dry_run=False, only=(), phantom=False, flip=False):
    """Runs the study, and returns what it found after writing it into `folder`; None with `dry_run`.

    Args:
        protocol: runner.Protocol; its data are NPZ slices.
        folder: pathlib.Path.
        init_from: workdir or bundle of the pre-training.
        jobs, dry_run: as `runner.run_all`.
        only: arms; empty: the paper's recipe and the recommended one.
        phantom: score on the test split of the pre-training's phantom, too.
        flip: score the mean with the mirrored slices, of the arms of `only` alone; the files end in '_flip'.

    Raises:
        InputError: an unknown arm, no pre-training, or what `runner.run_all` refuses.
    """
    arms = create_arms(init_from, protocol.epochs)
    chosen = only or ("paper", "recommended")
    for arm in chosen:
        check_choice("--arms", arm, tuple(arms))
        if "train.init_from" in arms[arm] and not arms[arm]["train.init_from"]:
            raise _no_start(arm)
    if phantom and init_from is None:
        raise _no_start("--phantom")
    config = create_config(protocol)
    planned = runner.plan(config, {arm: arms[arm] for arm in chosen}, protocol)
    if not flip:
        planned += find_others(folder, planned, config, arms, protocol)
    workdirs = runner.run_all(folder, planned, jobs=jobs, dry_run=dry_run)
    if dry_run:
        return None
    result = scores.collect(workdirs, pathlib.Path(init_from) if phantom else None, chosen, flip=flip)
    asked = f"python -m experiments.nodules.study --data_dir=FOLDER --init_from=RUN --arms={','.join(chosen)}"
    asked += "".join(f" --{name}" for name, given in (("phantom", phantom), ("flip", flip)) if given)
    data = f"NPZ slices, {protocol.num_folds} folds by patient"
    result["made_by"] = made_by.made_by(asked, data=data, seeds=protocol.seeds)
    files.write_json(scores.kept(folder, "nodules.json", flip), result)
    files.write_text(scores.kept(folder, "nodules.md", flip), pictures.to_markdown(result))
    shown = "recommended" if "recommended" in chosen else chosen[0]
    first = [
        path for run, path in workdirs.items() if (run.arm, run.config.seed) == (shown, protocol.seeds[0])
    ]
    pictures.draw(scores.kept(folder, "nodules.png", flip), first, flip=flip)
    pictures.draw_curves(scores.kept(folder, "nodules_curves.png", flip), result)
    print(pictures.to_markdown(result))
    return result


def _no_start(what):
    return InputError(f"--init_from: not given; {what} needs a run on the phantom to start from")


def find_others(folder, planned, config, arms, protocol):
    """Returns the Runs that have ended in the folder of the study and are not planned: other arms and seeds.

    Those with settings that the command would not give them are left out, and named.

    Args:
        folder: pathlib.Path of the study.
        planned: list of Run.
        config: of `create_config`.
        arms: of `create_arms`, all of them.
        protocol: runner.Protocol.
    """
    names, others = {run.name for run in planned}, []
    for arm in arms:
        for found, path in scores.find_runs(folder, arm).items():
            if found.name in names:
                continue
            place = dataclasses.replace(protocol, seeds=(found.config.seed,), folds=(found.config.data.fold,))
            (expected,) = runner.plan(config, {arm: arms[arm]}, place)
            differences = run_folder.list_differences(
                run_folder.config_to_dict(found.config), run_folder.config_to_dict(expected.config)
            )
            if differences:
                print(f"{path} is left out, its settings are others: {'; '.join(differences)}", flush=True)
            else:
                others.append(expected)
    return others


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    protocol = runner.Protocol(
        data="npz",
        data_dir=given.data_dir,
        seeds=runner.whole_numbers("--seeds", given.seeds),
        folds=runner.whole_numbers("--folds", given.folds or list(map(str, range(given.num_folds)))),
        num_folds=given.num_folds,
        base_width=given.base_width,
        size=given.size,
        epochs=given.epochs,
    )
    study(
        protocol,
        pathlib.Path(given.out),
        init_from=given.init_from,
        jobs=given.jobs,
        dry_run=given.dry_run,
        only=tuple(given.arms),
        phantom=given.phantom,
        flip=given.flip,
    )


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "folder of NPZ slices", required=True)
    flags.DEFINE_string(
        "init_from", None, "run or bundle on the phantom that arms with pre-training start from"
    )
    flags.DEFINE_list("seeds", ["1", "2"], "of initialisation and order, one run each")
    flags.DEFINE_list("folds", [], "test folds; default: all")
    flags.DEFINE_integer("num_folds", 4, "folds, by patient", lower_bound=3)
    flags.DEFINE_integer(
        "base_width", None, "channels of the first level; default: the config's", lower_bound=1
    )
    flags.DEFINE_integer("size", None, "rows and columns of an image; default: the config's", lower_bound=16)
    flags.DEFINE_integer("epochs", None, "of each run, at most; default: each recipe's own", lower_bound=1)
    flags.DEFINE_list("arms", [], f"of {', '.join(create_arms(None))}; default: paper,recommended")
    flags.DEFINE_bool("phantom", False, "score on the test split of the phantom of --init_from, too")
    flags.DEFINE_bool("flip", False, "score the mean with the mirrored slices; files that end in '_flip'")
    flags.DEFINE_bool("dry_run", False, "list the runs and the time, and stop")
    flags.DEFINE_integer("jobs", 1, "runs at once, each in its process; 0: one on each device", lower_bound=0)
    flags.DEFINE_string("out", "runs/nodules", "folder of the study")
    command.run(main)
