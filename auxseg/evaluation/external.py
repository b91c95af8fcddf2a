"""A run judged on a data set that it was not trained on: every case counts, but those of patients that it learned from."""

from __future__ import annotations

import dataclasses
import pathlib
import zlib

import numpy as np

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.ct import names
from auxseg.datasets import load, scale
from auxseg.devices import parallel
from auxseg.evaluation import evaluate_run, score_cases
from auxseg.runs import decisions, networks, run_folder
from auxseg.training import batching

SPLIT = "external"
_LEARNED_FROM = ("train", "val")
_CHANGEABLE = (
    "name", "dir", "cache_dir", "slices", "label_map", "meanings", "labels", "nodules", "lidc", "skip_bad_scans", "placement",
)  # fmt: skip
"""Settings of `data` that say which data: the others belong to the network."""


def check_changes(changed, config):
    """Returns the settings, after looking which were changed.

    Args:
        changed: {setting: value} of the flags that were given.
        config: the run's settings with these changes.

    Raises:
        InputError: one that belongs to the network, or no data set is named.
    """
    wrong = [
        name
        for name in changed
        if name.removeprefix("data.") not in _CHANGEABLE and not name.startswith("data.phantom.")
    ]
    if wrong:
        allowed = ", ".join(f"data.{name}" for name in _CHANGEABLE)
        raise InputError(
            f"--config.{wrong[0]}: belongs to the run; for another data set give {allowed} alone"
        )
    if not {"data.dir", "data.name"} & changed.keys():
        raise InputError(
            f"--config.{next(iter(changed))}: given without --config.data.dir, the other data set"
        )
    if "data.meanings" not in changed:  # the run's own say what the run's labels mean
        with config.unlocked():
            config.data.meanings = ()
    return config


def report(workdir, data_config, *, output=None, explained=(), tuned=False, flip=False):
    """Returns (summary, page) of a run's best weights on another data set, after writing a folder of its own.

    Args:
        workdir: pathlib.Path of a run.
        data_config: `config.data` of the other data set, with the network's size, window and classes.
        output: folder to write to; default: `workdir/external/NAME`, by the data's folder and settings.
        explained: as `evaluate_run.report_run`.
        tuned: take the run's stored threshold and least size of nodules.
        flip: average with the mirrored slices.

    Raises:
        InputError: the data cannot be used, or the run has learned from all of their patients.
    """
    config, variables, found = networks.read_best(workdir)
    own = config.data
    seen, doubt = scale.seen_scale(own)
    with config.unlocked():
        config.data = data_config.copy_and_resolve_references()
        config.data.extra_dir, config.data.sources = None, {}
        if config.data.name not in scale.CUT_SOURCES:
            config.data.mm_per_pixel = seen
    dataset = load(config.data)
    kept, left_out, notes = leave_out_known(workdir, own, dataset)
    notes += [doubt] if doubt and config.data.name not in scale.CUT_SOURCES else []
    devices = parallel.choose_devices(config.train.num_devices)
    subject = score_cases.Subject(
        config,
        dataset,
        {SPLIT: kept},
        batching.create_feed(dataset, kept, placement=config.data.placement, devices=devices),
        variables,
        score_cases.create_predict_fn(config, variables, devices, flip=flip),
        decisions.read_decision(workdir, flip=flip) if tuned else score_cases.operating_point.Decision(),
        flip,
    )
    score_cases.find_cases(dataset, explained or ())
    results = evaluate_run.evaluate_split(subject, SPLIT)
    judgement = score_cases.judge_split(subject, SPLIT)
    output = pathlib.Path(output) if output else workdir / SPLIT / _name(config.data)
    scores = evaluate_run.summarise_decided(subject, SPLIT, results, judgement, tuned or flip)
    summary = {
        "run": workdir.resolve().name,
        "epoch": found["epoch"],
        "dataset": dataset.name,
        "data_dir": config.data.dir,
        "left_out_patients": left_out,
        "notes": [*notes, *dataset.notes],
        **scores,
    }
    files.write_csv(output / "cases.csv", evaluate_run.case_rows(judgement, results))
    files.write_json(output / "summary.json", summary)
    page = score_cases.write_judgement(
        workdir,
        subject,
        judgement,
        explained=explained,
        folder=output / "report",
        records=_records(workdir, subject),
        notes=notes,
    )
    return summary, page


def leave_out_known(workdir, own_data, dataset):
    """Returns (indices of cases that a run did not learn from, the patients left out, notes).

    A patient counts as known by the patient's name, by a series, or by a case of the run's train or val split.

    Args:
        workdir: of the run.
        own_data: `config.data` of the run.
        dataset: the other data set.

    Raises:
        InputError: no case is left.
    """
    splits = run_folder.read_records(workdir).splits
    cases = {case for name in _LEARNED_FROM for case in splits.get(name, ())}
    known, notes = set(cases), []
    try:
        table = load(own_data).table
        rows = np.isin(table.case_id, sorted(cases))
        known |= {*table.patient[rows].tolist(), *table.series_uid[rows].tolist()}
    except InputError as error:
        notes.append(
            f"the run's own data cannot be read, so its patients are known by the names of cases alone: {error}"
        )
    table = dataset.table
    columns = (table.patient, table.series_uid, table.case_id)
    seen = np.any([np.isin(column, sorted(known)) for column in columns], axis=0)
    left_out = sorted(set(table.patient[seen].tolist()))
    kept = np.flatnonzero(~np.isin(table.patient, left_out))
    if not len(kept):
        raise InputError(
            f"data.dir: {workdir} has learned from all {len(left_out)} patients of {dataset.name}; give others, or judge its own "
            "test split by --split=test"
        )
    if left_out:
        notes.insert(0, f"left out, as the run has learned from them: {', '.join(left_out)}")
    return kept, left_out, notes


def _name(data_config):
    """Returns the name of the results: that of the data's folder, and a number made of what is read of it."""
    place = (
        pathlib.Path(data_config.dir).expanduser().resolve()
        if data_config.dir
        else pathlib.Path(data_config.name)
    )
    said = " ".join(
        f"{name}={data_config.get(name)}" for name in _CHANGEABLE if name not in ("cache_dir", "placement")
    )
    return names.file_name(f"{place.name}-{zlib.crc32(f'{place} {said}'.encode()):08x}")


def _records(workdir, subject):
    """Returns the run's Records with the cases of the other data set beside those that it learned from."""
    records = run_folder.read_records(workdir)
    cases = subject.dataset.table.case_id[subject.members[SPLIT]].tolist()
    learned = {name: records.splits[name] for name in _LEARNED_FROM if name in records.splits}
    return dataclasses.replace(records, splits={**learned, SPLIT: cases})
