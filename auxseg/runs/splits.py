"""Which case is in which split of a run: written once, read again by every command."""

import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets import splits


def default_split(members):
    """Returns 'test', or 'val' for the paper's protocol, which has no test split."""
    return "test" if "test" in members else "val"


def read_splits(workdir, dataset):
    """Returns {split: indices} of a run, matched to the data set by case id.

    Raises:
        InputError: the data set lacks a case of the run.
    """
    rows = {name: i for i, name in enumerate(dataset.table.case_id)}
    stored = files.read_object(workdir / "splits.json")
    missing = [case for cases in stored.values() for case in cases if case not in rows]
    if missing:
        raise InputError(
            f"{workdir / 'splits.json'}: {len(missing)} of its cases are not in {dataset.name}, first "
            f"{missing[0]}; give the data that the run was started with (config.data.dir)"
        )
    return {split: np.array([rows[case] for case in cases]) for split, cases in stored.items()}


def claim_splits(workdir, dataset, data_config):
    """Returns {split: indices}; stored by case id in a new run, read and checked in an old one.

    Raises:
        InputError: the data set is not the one that the run was started with.
    """
    path = workdir / "splits.json"
    if not path.exists():
        made = splits.make_splits(
            dataset.table,
            split=data_config.split,
            fold=data_config.fold,
            num_folds=data_config.num_folds,
            seed=data_config.split_seed,
        )
        files.write_json(
            path, {name: [str(dataset.table.case_id[i]) for i in rows] for name, rows in made.items()}
        )
    return read_splits(workdir, dataset)
