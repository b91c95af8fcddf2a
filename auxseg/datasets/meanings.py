"""Sources that do not tell all classes apart: what the values of their masks may mean.

A crop knows nodule from the rest; the rest is background or a lung. A set of lungs knows no nodules: what it calls
lung is lung or nodule. Such a source states for each value of its masks the classes that it may mean
(`data.meanings`), and its cases keep that (`CaseTable.meanings`): a loss adds their probabilities up, a label that
is not told carries no loss, and a class that a source does not know is not scored.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from auxseg.base.classes import BOTH_LUNGS, UNKNOWN
from auxseg.base.errors import InputError

_LUNGS = {"left_lung", "right_lung"}


def parse(texts, classes):
    """Returns what each value of a source's masks may mean, a tuple of tuples of class names.

    Args:
        texts: of `data.meanings`: by value the names of classes, joined by '+'; () where each is its class.
        classes: of the network.

    Raises:
        InputError: a name that is no class, more values than classes, or two values that start with the same class.
    """
    if not texts:
        return tuple((name,) for name in classes)
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    values = tuple(tuple(str(text).split("+")) for text in texts)
    firsts = [names[0] for names in values]
    unknown = [name for names in values for name in names if name not in classes]
    if unknown or len(set(firsts)) < len(values) or firsts[0] != classes[0]:
        raise InputError(
            f"data.meanings: got {texts}, expected for each value of the masks the classes that it may mean, such as "
            f"'left_lung+nodule', of {', '.join(classes)}, value 0 starting with {classes[0]!r} and no two with the same"
        )
    return values


def own_classes(values):
    """Returns the names that a source's own values have, by value: a class, or 'lung' for one that may be either."""
    return tuple(BOTH_LUNGS if names[0] in _LUNGS and _LUNGS <= set(names) else names[0] for names in values)


def spread(dataset, values, classes):
    """Returns a `Dataset` of `classes` whose masks have a value at the place of the first class that it may mean.

    Args:
        dataset: whose masks hold the places of `values`, and `UNKNOWN`.
        values: from `parse`.
        classes: of the network.
    """
    if values == tuple((name,) for name in classes):
        return dataset
    places = np.arange(UNKNOWN + 1, dtype=np.uint8)
    places[: len(values)] = [classes.index(names[0]) for names in values]
    table = dataset.table
    meanings = meanings_of(values, classes)
    stated = np.zeros((len(table), len(classes)), np.uint8)
    stated[:, places[: len(values)]] = table.labels

    def placed(read):
        def read_placed(indices):
            images, masks = read(indices)
            return images, places[masks]

        return read_placed

    return dataclasses.replace(
        dataset,
        table=dataclasses.replace(
            table,
            labels=_labels(stated, meanings),
            classes=tuple(classes),
            meanings=np.repeat(meanings[None], len(table), axis=0),
        ),
        read=placed(dataset.read),
        read_train=dataset.read_train and placed(dataset.read_train),
        read_native_mask=lambda index: places[dataset.read_native_mask(index)],
    )


def meanings_of(values, classes):
    """Returns uint8 [C, C], 1 where a value (first axis) may mean a class (second).

    A class that no value means is one that the masks lack: its value means itself.
    """
    meanings = np.zeros((len(classes), len(classes)), np.uint8)
    for names in values:
        meanings[classes.index(names[0]), [classes.index(name) for name in names]] = 1
    missing = np.flatnonzero(~meanings.any(axis=0))
    meanings[missing, missing] = 1
    return meanings


def _labels(stated, meanings):
    """Returns uint8 [N, C] of labels of values, as `CaseTable.labels`: what may be of several classes is not known."""
    alone = meanings.sum(axis=1) == 1
    sure = ((stated == 1)[:, :, None] & (meanings * alone[:, None])[None].astype(bool)).any(axis=1)
    possible = ((stated != 0)[:, :, None] & meanings[None].astype(bool)).any(axis=1)
    return np.where(sure, 1, np.where(possible, UNKNOWN, 0)).astype(np.uint8)
