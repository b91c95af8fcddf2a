"""What is known of the cases beside their images and masks, as training needs it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from auxseg.base.classes import UNKNOWN
from auxseg.base.errors import InputError


class CaseFacts(NamedTuple):
    """What a step looks up by a case's row in the data set.

    Attributes:
        aux_labels: float32 [cases, C] that the auxiliary head is told, from `shuffle_labels`; None: those of the masks.
        meanings: uint8 [cases, C, C], `CaseTable.meanings`, or None.
        is_cut: bool [cases], `CaseTable.is_cut`, or None.
        filled_yx: int32 [cases, 2], `CaseTable.filled_yx`, or None.
        readers: uint8 [cases, 2], `Dataset.readers` where masks that train hold votes, or None.
    """

    aux_labels: Any = None
    meanings: Any = None
    is_cut: Any = None
    filled_yx: Any = None
    readers: Any = None


def read_facts(config, dataset, members):
    """Returns the CaseFacts of a run.

    Args:
        config: settings of the run.
        dataset: Dataset.
        members: {split: indices}.
    """
    shuffled = config.loss.shuffle_aux_labels
    return CaseFacts(
        aux_labels=shuffle_labels(dataset.table.labels, members, seed=config.seed) if shuffled else None,
        meanings=dataset.table.meanings,
        is_cut=dataset.table.is_cut,
        filled_yx=dataset.table.filled_yx,
        readers=dataset.readers if asks_readers(config.data) else None,
    )


def asks_readers(data_config):
    """Returns the target, 'reader' or 'share', that some source has in place of the consensus; None where none has.

    Raises:
        InputError: two sources have different ones.
    """
    sources = data_config.get("sources", {}).values() or [data_config]
    base = data_config.get("target", "consensus")
    found = {each.get("target", base) for each in sources} - {"consensus"}
    if len(found) > 1:
        raise InputError(
            f"data.target: got {', '.join(sorted(found))} in one run, expected one beside 'consensus'"
        )
    return next(iter(found), None)


def for_training(dataset, indices):
    """Returns the data set whose cases `indices` are read as they train (`Dataset.read_train`), the others as they are."""
    if dataset.read_train is None:
        return dataset
    trains = np.zeros(len(dataset), bool)
    trains[indices] = True

    def read(chosen):
        chosen = np.asarray(chosen, np.int64).reshape(-1)
        shape = (len(chosen), *dataset.size_yx)
        images, masks = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for reads, rows in ((dataset.read_train, trains[chosen]), (dataset.read, ~trains[chosen])):
            if rows.any():
                images[rows], masks[rows] = reads(chosen[rows])
        return images, masks

    return dataclasses.replace(dataset, read=read)


def shuffle_labels(labels, members, *, seed):
    """Returns float32 [N, C]: the label vectors exchanged at random among the cases of each split; -1.0 is not known.

    The placebo of the auxiliary head (`loss.shuffle_aux_labels`): each split keeps how often a class is in
    a slice, and what a slice is told says nothing of it. The exchange is a function of (seed, the split's
    cases) and stays the same through a run.

    Args:
        labels: uint8 [N, C], `CaseTable.labels`.
        members: {split: int [n]}.
        seed: of the exchange.
    """
    labels = np.where(labels == UNKNOWN, -1.0, labels).astype(np.float32)
    shuffled = labels.copy()
    for place, rows in enumerate(members.values()):
        generator = np.random.Generator(np.random.PCG64([seed, place]))
        shuffled[rows] = labels[generator.permutation(rows)]
    return shuffled
