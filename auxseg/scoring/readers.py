"""A network among the readers: everyone against the consensus of the others, and whether it lies in their spread.

For each reader the consensus of the *others* (at least half of them) is the reference, for the reader and for the
network alike. The difference of the two Dice scores is averaged over readers and nodules within a patient, and over
patients; its interval is a bootstrap over patients. The network is inside the readers' spread if the lower end of the
interval lies above minus a margin that was stated before. A reference without a pixel is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from auxseg.base.errors import InputError
from auxseg.scoring.matching import MIN_OBJECT_IOU

MARGIN = 0.02
"""Of Dice, by which the network may be worse than a reader."""
STRATA_MM = ((0.0, 6.0), (6.0, 10.0), (10.0, np.inf))
"""Diameters that are reported apart."""
RATED = {
    "texture": ((0.0, 2.0, "ground glass"), (2.0, 4.0, "part solid"), (4.0, np.inf, "solid")),
    "subtlety": ((0.0, 3.0, "subtle"), (3.0, 4.0, "fairly subtle"), (4.0, np.inf, "obvious")),
    "malignancy": ((0.0, 2.5, "unlikely"), (2.5, 3.5, "indeterminate"), (3.5, np.inf, "suspicious")),
}
"""Readers' median ratings that are reported apart: from, below, in words. LIDC-IDRI rates from 1 to 5: texture from
ground glass to solid, subtlety from extremely subtle to obvious (McNitt-Gray et al. 2007, doi:10.1016/j.acra.2007.07.021)."""


@dataclasses.dataclass(frozen=True)
class ReadCase:
    """A nodule, outlined by readers and marked by a network.

    Attributes:
        patient: whose it is.
        diameter_mm: of the nodule.
        readers: bool [R, ...], what each of the R readers marks; any shape of pixels.
        marked: bool [...], what the network marks.
        ratings: {one of `RATED`: the readers' median, NaN where unknown}; may lack some.
    """

    patient: str
    diameter_mm: float
    readers: np.ndarray
    marked: np.ndarray
    ratings: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Dice scores of one nodule, a row a reader whose others mark something; R readers.

    Attributes:
        reader, network: float64 [<= R], against the consensus of the others.
        network_to_reader: float64 [<= R], the network against each reader who marks something.
        between: float64, mean over all pairs of readers; NaN where none of them marks anything.
        consensus: float64, the network against the consensus of all; NaN where that is empty.
        found: whether the network's IoU with the consensus is at least `MIN_OBJECT_IOU`; NaN where that is empty.
        num_empty: readers left out.
    """

    reader: np.ndarray
    network: np.ndarray
    network_to_reader: np.ndarray
    between: float
    consensus: float
    found: float
    num_empty: int


def compare(readers, marked):
    """Returns the `Pairs` of one nodule.

    Args:
        readers: bool [R, ...].
        marked: bool [...].

    Raises:
        InputError: fewer than two readers, or other shapes.
    """
    readers, marked = np.asarray(readers, bool), np.asarray(marked, bool)
    if len(readers) < 2 or readers.shape[1:] != marked.shape:
        raise InputError(
            f"readers: masks of shape {readers.shape} and a network's of {marked.shape}, expected at least two readers "
            "and the same pixels"
        )
    readers, marked = readers.reshape(len(readers), -1), marked.reshape(-1)
    votes = readers.sum(axis=0)
    rows = []
    for mask in readers:
        others = 2 * (votes - mask) >= len(readers) - 1
        if others.any():
            rows.append((dice(mask, others), dice(marked, others)))
    pairs = [dice(a, b) for i, a in enumerate(readers) for b in readers[:i]]
    agreed = consensus_of(readers)
    columns = np.array(rows).reshape(-1, 2)
    consensus = dice(marked, agreed) if agreed.any() else np.nan
    return Pairs(
        reader=columns[:, 0],
        network=columns[:, 1],
        network_to_reader=np.array([dice(marked, mask) for mask in readers if mask.any()]),
        between=float(np.nanmean(pairs)) if not np.isnan(pairs).all() else np.nan,
        consensus=consensus,
        found=float(consensus / (2.0 - consensus) >= MIN_OBJECT_IOU)
        if agreed.any()
        else np.nan,  # Dice as IoU
        num_empty=len(readers) - len(rows),
    )


def consensus_of(marks):
    """Returns the pixels that at least half of the readers mark, bool [...], of bool [R, ...]."""
    return 2 * marks.sum(axis=0) >= len(marks)


def dice(first, second):
    """Returns the Dice of two masks, bool of one shape; NaN where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else np.nan


def judge(cases: Iterable[ReadCase], *, margin=MARGIN, num_resamples=2000, seed=0):
    """Returns the scores by stratum of diameter and rating, a dict ready for JSON; 'all' comes first.

    Each has `nodules`, `patients`, `left_out` (references without a pixel), `consensus` (mean Dice), `found` (share),
    `network` and `reader` (mean Dice, those two against the others' consensus), `network_to_reader`,
    `between_readers`, `difference` (network less reader, by patient), its `interval`, and `inside` the spread or
    not. Values are None where nothing is there; a stratum of a rating that no case has is left out.

    Args:
        cases: of any patients.
        margin: of Dice, stated before.
        num_resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    compared = [(case, compare(case.readers, case.marked)) for case in cases]
    results = {"margin": margin}
    for name, belongs in _strata().items():
        chosen = [(case.patient, pairs) for case, pairs in compared if belongs(case)]
        if chosen or ":" not in name:
            results[name] = _summarise(chosen, margin, num_resamples, seed)
    return results


def _strata():
    """Returns {name: `ReadCase` -> whether it belongs}; those of ratings have a colon."""
    strata = {"all": lambda case: True}
    for low, high in STRATA_MM:
        strata[_name(low, high)] = lambda case, low=low, high=high: low <= case.diameter_mm < high
    for rating, parts in RATED.items():
        for low, high, words in parts:
            strata[f"{rating}: {words}"] = lambda case, low=low, high=high, rating=rating: (
                low <= case.ratings.get(rating, np.nan) < high
            )
    return strata


def _name(low, high):
    return (
        f"under {high:g} mm"
        if low == 0
        else f"{low:g} mm and more"
        if np.isinf(high)
        else f"{low:g} to {high:g} mm"
    )


def _summarise(chosen, margin, num_resamples, seed):
    by_patient = {}
    for patient, pairs in chosen:
        by_patient.setdefault(patient, []).extend(pairs.network - pairs.reader)
    means = np.array([np.mean(values) for values in by_patient.values() if len(values)])
    interval = _bootstrap(means, num_resamples, seed)
    return {
        "nodules": len(chosen),
        "patients": len(by_patient),
        "left_out": sum(pairs.num_empty for _, pairs in chosen),
        "consensus": _mean([pairs.consensus for _, pairs in chosen]),
        "found": _mean([pairs.found for _, pairs in chosen]),
        "network": _mean([value for _, pairs in chosen for value in pairs.network]),
        "reader": _mean([value for _, pairs in chosen for value in pairs.reader]),
        "network_to_reader": _mean([value for _, pairs in chosen for value in pairs.network_to_reader]),
        "between_readers": _mean([pairs.between for _, pairs in chosen]),
        "difference": _mean(means),
        "interval": interval,
        "inside": None if interval is None else interval[0] > -margin,
    }


def _bootstrap(means, num_resamples, seed):
    if len(means) < 2:
        return None
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = means[generator.integers(len(means), size=(num_resamples, len(means)))].mean(axis=1)
    return [float(value) for value in np.percentile(drawn, (2.5, 97.5))]


def _mean(values):
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
