"""A second data set beside the first, for training alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.errors import InputError
from auxseg.datasets import scale
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
    name = f"{dataset.name}+{second.name}"
    notes = (*dataset.notes, f"{len(second)} cases of {second.name} train too", *second.notes)
    return combine((dataset, second), name=name, table=_join_tables(dataset.table, second.table), notes=notes)


def combine(parts, *, name, table, notes, fingerprint=""):
    """Returns the `Dataset` of several of one size, whose cases follow each other, with all that each of them knows.

    Args:
        parts: each a `Dataset` of single slices; at a fixed scale the largest canvas becomes that of all.
        name: of all together.
        table: `CaseTable` of all, one after another.
        notes: as `Dataset.notes`.
        fingerprint: as `Dataset.fingerprint`.
    """
    size_yx = tuple(max(sizes) for sizes in zip(*(each.size_yx for each in parts), strict=True))
    read, read_native_mask = concatenate(parts, size_yx)
    read_train = None
    if any(each.read_train for each in parts):
        read_train, _ = concatenate(parts, size_yx, lambda each: each.read_train or each.read)
    return Dataset(
        name=name,
        table=table,
        size_yx=size_yx,
        read=read,
        read_native_mask=read_native_mask,
        notes=notes,
        fingerprint=fingerprint,
        read_train=read_train,
        readers=_join_readers(parts),
        read_outline=_join_outlines(parts),
        scale=parts[0].scale,
    )


def concatenate(datasets, size_yx, read_of=lambda dataset: dataset.read):
    """Returns (read, read_native_mask) of several data sets, whose cases follow each other.

    Args:
        datasets: each a `Dataset`.
        size_yx: rows and columns of what `read` returns.
        read_of: function of a `Dataset` that gives what reads its cases.
    """
    ends = np.cumsum([len(dataset) for dataset in datasets])
    starts = ends - [len(dataset) for dataset in datasets]

    def read(indices):
        indices = np.asarray(indices, np.int64).reshape(-1)
        shape = (len(indices), *size_yx)
        images, masks = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for dataset, start, end in zip(datasets, starts, ends, strict=True):
            rows = (indices >= start) & (indices < end)
            if rows.any():
                own = indices[rows] - start
                images[rows], masks[rows] = scale.refit(
                    *read_of(dataset)(own), dataset.table.rows(own), size_yx
                )
        return images, masks

    def read_native_mask(index):
        place = int(np.searchsorted(ends, index, side="right"))
        return datasets[place].read_native_mask(index - int(starts[place]))

    return read, read_native_mask


def join_tables(tables, **columns):
    """Returns the `CaseTable` of several, one after another; `columns` replace theirs.

    A column that only some have is filled up with what it means where it is not there.
    """
    classes, counts = tables[0].classes, [len(table) for table in tables]
    missing = {
        "meanings": lambda n: np.repeat(np.eye(len(classes), dtype=np.uint8)[None], n, axis=0),
        "is_cut": lambda n: np.zeros(n, bool),
        "added": lambda n: np.zeros(n, bool),
    }
    for field in dataclasses.fields(tables[0]):
        parts = [getattr(table, field.name) for table in tables]
        if field.name in columns or field.name == "classes" or all(part is None for part in parts):
            continue
        columns[field.name] = np.concatenate(
            [missing[field.name](n) if part is None else part for part, n in zip(parts, counts, strict=True)]
        )
    return type(tables[0])(**columns, classes=classes)


def _join_tables(first, second):
    renamed = {
        name: np.array([PREFIX + value for value in getattr(second, name).tolist()])
        for name in ("case_id", "series_uid", "patient")
    }
    added = np.arange(len(first) + len(second)) >= len(first)
    return join_tables((first, dataclasses.replace(second, **renamed)), added=added)


def _join_readers(parts):
    """Returns uint8 [N, 2], `Dataset.readers`; zeros where there are none; None where no source has any."""
    if all(each.readers is None for each in parts):
        return None
    return np.concatenate(
        [np.zeros((len(each), 2), np.uint8) if each.readers is None else each.readers for each in parts]
    )


def _join_outlines(parts):
    """Returns `Dataset.read_outline` of all, None where no source has any."""
    if all(each.read_outline is None for each in parts):
        return None
    ends = np.cumsum([len(each) for each in parts])

    def read_outline(index):
        place = int(np.searchsorted(ends, index, side="right"))
        part = parts[place]
        return None if part.read_outline is None else part.read_outline(index - int(ends[place]) + len(part))

    return read_outline
