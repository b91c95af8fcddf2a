"""A second data set beside the first, for training alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.errors import InputError
from auxseg.datasets.dataset import Dataset

PREFIX = "added-"
"""Of the case ids, series and patients of the second data set."""


def add(dataset, second):
    """Returns a `Dataset` of both, in which the cases of the second are `added`: they only train.

    Patients of the two are taken to be different people, unless their names say otherwise: a patient or
    series of the first that is in the second too is refused, since it may be in a test split.

    Args:
        dataset: the first `Dataset`, which is split.
        second: another of the same size.

    Raises:
        InputError: they share a patient or a series.
    """
    for name in ("patient", "series_uid"):
        shared = set(getattr(dataset.table, name).tolist()) & set(getattr(second.table, name).tolist())
        if shared:
            raise InputError(
                f"data.extra_dir: {name} {min(shared)} is in {dataset.name} too; a case that trains must not be "
                "tested: leave it out of the second data set"
            )
    if dataset.classes != second.classes:
        raise InputError(
            f"data.extra_dir: its classes are {second.classes}, expected those of {dataset.name}, {dataset.classes}"
        )
    count = len(dataset)

    def read(indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        shape = (len(indices), *dataset.size_yx)
        images, masks = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for source, rows, start in ((dataset, indices < count, 0), (second, indices >= count, count)):
            if rows.any():
                images[rows], masks[rows] = source.read(indices[rows] - start)
        return images, masks

    def read_native_mask(index):
        return dataset.read_native_mask(index) if index < count else second.read_native_mask(index - count)

    name = f"{dataset.name}+{second.name}"
    notes = (*dataset.notes, f"{len(second)} cases of {second.name} train too", *second.notes)
    table = _join_tables(dataset.table, second.table)
    return Dataset(name, table, dataset.size_yx, read, read_native_mask, notes)


def _join_tables(first, second):
    columns = {}
    for field in dataclasses.fields(first):
        if field.name in ("added", "classes"):
            continue
        mine, other = getattr(first, field.name), getattr(second, field.name)
        if mine is None and other is None:
            continue
        if field.name in ("case_id", "series_uid", "patient"):
            other = np.array([PREFIX + value for value in other.tolist()])
        columns[field.name] = np.concatenate([mine, other])
    return type(first)(
        **columns, added=np.arange(len(first) + len(second)) >= len(first), classes=first.classes
    )
