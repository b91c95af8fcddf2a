"""Which case is in which split of a run: written once, read again by every command."""

import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.datasets import splits
from auxseg.runs import run_folder


def default_split(members):
    """Returns 'test', or 'val' for the paper's protocol, which has no test split."""
    return "test" if "test" in members else "val"


def read_splits(workdir, dataset):
    """Returns {split: indices} of a run, matched to the data set by case id.

    Raises:
        InputError: the data set lacks a case of the run, or the file is damaged or has a case in two splits.
    """
    rows = {name: i for i, name in enumerate(dataset.table.case_id)}
    path = workdir / "splits.json"
    stored = run_folder.read_split_lists(workdir)
    if not {"train", "val"} <= stored.keys():
        raise InputError(f"{path}: expected lists of case ids by split, train and val among them; restore it")
    missing = [case for cases in stored.values() for case in cases if case not in rows]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of its cases are not in {dataset.name}, first "
            f"{missing[0]}; give the data that the run was started with (config.data.dir)"
        )
    members = {split: np.array([rows[case] for case in cases], np.int64) for split, cases in stored.items()}
    try:
        splits.check_splits(dataset.table, members)
    except InputError as error:
        raise InputError(f"{path}: {error}; its scores would be worthless: restore it") from error
    return members


def claim_splits(workdir, dataset, data_config):
    """Returns {split: indices}; stored by case id in a new run, read and checked in an old one.

    Raises:
        InputError: the data set is not the one that the run was started with: other cases, or other content.
    """
    path = workdir / "splits.json"
    _claim_content(workdir, dataset)
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


def describe_changes(workdir, dataset):
    """Returns (sentence,) where the data set holds other images or masks of the same names than the run learned from; else ()."""
    path = workdir / "data.json"
    if not path.exists():
        return ()
    before = files.read_object(path)
    changed = [name for name, value in _content(dataset).items() if before.get(name) != value]
    if not changed:
        return ()
    return (
        f"data.dir: {dataset.name} is no longer what {workdir} was started with ({', '.join(changed)} differ): "
        "images, masks or their table have changed since",
    )


def _content(dataset):
    """Returns what tells data sets of the same case ids apart, JSON types."""
    return {"cases": len(dataset), "fingerprint": dataset.fingerprint, "table": dataset.table.digest()}


def _claim_content(workdir, dataset):
    """Stores what the data set holds in a new run; in an old one refuses other images or masks of the same names."""
    for change in describe_changes(workdir, dataset):
        raise InputError(f"{change}; restore them, or start a new run with --workdir=DIR")
    path = workdir / "data.json"
    if not path.exists():
        files.write_json(path, _content(dataset))
