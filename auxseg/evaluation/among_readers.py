"""Judges a run by several readers: against each, their consensus, and whether it lies in their spread.

Slices of a data set whose source knows what each reader marked (`Dataset.read_outline`). Every nodule is judged on the
slice where its consensus is largest, and over all of its slices that the split has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from auxseg.base import files
from auxseg.base.classes import value_of
from auxseg.report import outlines
from auxseg.scoring import readers

FILE, PAGE = "readers.json", "nodules.html"
LARGEST, ALL = "largest slice", "all slices"


@dataclasses.dataclass(frozen=True)
class Seen:
    """A slice of a nodule as it was judged.

    Attributes:
        patient: whose it is.
        outline: `dataset.Outline`.
        marked: bool [H, W], what the network marks.
        image_hu: int16 [H, W].
    """

    patient: str
    outline: object
    marked: np.ndarray
    image_hu: np.ndarray


def write(folder, dataset, decided: Iterable, *, split, window_hu):
    """Writes `readers.json` and `nodules.html` into a folder; returns the scores, as `judge`.

    Args:
        folder: pathlib.Path of the report.
        dataset: Dataset with `read_outline`.
        decided: (index, mask uint8 [H, W]) of each case.
        split: its name.
        window_hu: (low, high) of the pictures.
    """
    seen = list(collect(dataset, decided))
    scores = judge(seen)
    files.write_json(folder / FILE, {"split": split, **scores})
    tiles = [to_tile(slices) for slices in by_nodule(seen).values()]
    page = outlines.create_page(tiles, scores[LARGEST], split=split, window_hu=window_hu)
    files.write_text(folder / PAGE, page)
    return scores


def collect(dataset, decided):
    """Yields a `Seen` for each slice with a nodule; arguments as `write`."""
    nodule = value_of("nodule", dataset.classes)
    for index, mask in decided:
        outline = dataset.read_outline(index)
        if outline is not None:
            image, _ = dataset.read_case(index)
            yield Seen(str(dataset.table.patient[index]), outline, mask == nodule, image)


def by_nodule(seen):
    """Returns {nodule: its `Seen` slices in order}."""
    found = {}
    for each in seen:
        found.setdefault(each.outline.nodule, []).append(each)
    return {name: sorted(slices, key=lambda each: each.outline.place) for name, slices in found.items()}


def largest(slices):
    """Returns the `Seen` whose consensus is largest, the first of equal ones."""
    return max(slices, key=lambda each: readers.consensus_of(each.outline.readers).sum())


def judge(seen):
    """Returns `scoring.readers.judge` of `Seen` slices: {'largest slice': scores, 'all slices': scores}."""
    nodules = by_nodule(seen).values()
    return {
        LARGEST: readers.judge(_case([largest(slices)]) for slices in nodules),
        ALL: readers.judge(_case(slices) for slices in nodules),
    }


def describe(scores):
    """Returns in words where the network stands among the readers on the largest slices; see `judge`."""
    found = scores[LARGEST]["all"]
    if not found["nodules"]:
        return "no nodule in this split"
    words = f"{found['nodules']} nodules of {found['patients']} patients, Dice with the consensus {found['consensus']:.3f}"
    if found["inside"] is None:
        return f"{words}; too few patients to place it among the readers ({PAGE})"
    low, high = found["interval"]
    place = "inside" if found["inside"] else "not inside"
    return (
        f"{words}; less a reader {found['difference']:+.3f} [{low:.3f}, {high:.3f}], which is {place} their spread by a "
        f"margin of {scores[LARGEST]['margin']:g} ({PAGE})"
    )


def _case(slices):
    first = slices[0]
    marks = np.stack([each.outline.readers for each in slices], axis=1)
    marked = np.stack([each.marked for each in slices])
    return readers.ReadCase(
        first.patient, first.outline.diameter_mm, marks, marked, ratings=first.outline.ratings
    )


def to_tile(slices):
    """Returns the `outlines.Tile` of a nodule's largest slice."""
    shown = largest(slices)
    pairs = readers.compare(shown.outline.readers, shown.marked)
    return outlines.Tile(
        name=shown.outline.nodule,
        diameter_mm=shown.outline.diameter_mm,
        image_hu=shown.image_hu,
        readers=shown.outline.readers,
        marked=shown.marked,
        dice=pairs.consensus,
        reader_dice=float(np.mean(pairs.reader)) if len(pairs.reader) else np.nan,
        ratings=shown.outline.ratings,
    )
