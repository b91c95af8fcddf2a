"""Nodules of a whole scan in two looks: marked slice by slice inside the lungs, then judged one by one in 3D.

The first look is a network (`nodule_look.py`); a soft scan is sharpened for it (`sharpness.py`). The second joins what it
marked in three dimensions and weighs its probability, its volume and its shape. A network of three views in place of that was
tried and did not find more on scans that it had never seen (experiments/results/box_nodules.md).

The folder of the networks holds `look.npz` (parameters by name) and `about.json`: how the network is run, how sharp its
training data are, how a candidate's probability comes about, and which probability gives how many false ones a scan.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from auxseg.base import disk_arrays, files, npz
from auxseg.base.errors import InputError
from auxseg.devices import programs
from auxseg.models.inference import create_inference, fold_batch_norm
from auxseg.models.kernels import build
from auxseg.models.layers import resolve_lowering
from auxseg.prediction import nodule_candidates, nodule_look, sharpness
from auxseg.runs.networks import flatten, read_sources, unflatten

MOST_BYTES = 1 << 26
"""Of a file of weights."""
MOST_KEPT = 255
"""Of one scan; a mask of uint8 holds no more."""
EVIDENCE = ("mean_logit", "log_sum", "log_short_axis")
"""What a probability is made of, a weight each: the mean probability of the look as a logit, and the logarithms of its
sum over the volume in mm3 and of the shortest axis over the longest."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """The network of the first look and the weights of the second, ready to run.

    Attributes:
        forward: float32 [N, H, W, 1] in [0, 1] -> probability of nodule float32 [N, H, W].
        above: probability that every voxel of a candidate exceeds.
        weights: of `EVIDENCE`, and a constant last.
        operating_points: float64 [n, 2], false ones a scan (rising) and the least probability that gives them.
        known: how sharp what the look was trained on is; soft scans are sharpened for it.
        about: what `about.json` says.
    """

    forward: Callable[[np.ndarray], Any]
    above: float
    weights: tuple[float, ...]
    operating_points: np.ndarray
    known: sharpness.Known
    about: dict


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in a scan.

    Attributes:
        mask: uint8 [D, H, W], 0 or the number of a kept candidate, from 1, the most probable first.
        candidates: dicts, the most probable first: `probability`, `kept`, `centre_zyx` (voxels) and the
            measures of `nodule_candidates.measure`.
        least_probability: of those that are kept.
        sharpened: how many times the scan's own detail was added for the look; 0.0 where it was sharp enough.
    """

    mask: np.ndarray
    candidates: list[dict]
    least_probability: float
    sharpened: float = 0.0


def find_nodules(volume, lungs, spacing_zyx_mm, networks, *, false_per_scan=1.0):
    """Returns the `Found` of a scan.

    Args:
        volume: int16 [D, H, W] in HU, canonical; may lie on disk.
        lungs: [D, H, W], not 0 inside a lung.
        spacing_zyx_mm: distances of slices, rows, columns.
        networks: from `load_networks`.
        false_per_scan: that are accepted on average, by which the least probability is chosen.

    Raises:
        InputError: shapes that differ, or a rate that is no positive number.
    """
    if volume.shape != lungs.shape or volume.ndim != 3:
        raise InputError(
            f"nodules: a scan of {volume.shape} and lungs of {lungs.shape}, expected one shape [D, H, W]"
        )
    least = least_probability(networks, false_per_scan)
    box = find_box(lungs, spacing_zyx_mm)

    def read(index):
        plane = volume[index + box[0].start]
        image = np.array(plane[box[1:]])
        disk_arrays.release(plane)
        return image

    marked, gain = look(read, np.asarray(lungs[box]) > 0, spacing_zyx_mm, networks.forward, networks.known)
    candidates = nodule_candidates.find_candidates(marked, read, spacing_zyx_mm, above=networks.above)
    probabilities = probability([candidate.measures for candidate in candidates], networks.weights)
    order = np.argsort(-probabilities, kind="stable")
    kept = [place for place in order if probabilities[place] >= least][:MOST_KEPT]
    mask = np.zeros(volume.shape, np.uint8)
    corner = [part.start for part in box]
    for number, place in enumerate(kept, 1):
        piece = nodule_candidates.largest_piece(candidates[place].places, marked.shape)
        mask[tuple((piece + corner).T)] = number
    described = [
        _describe(candidates[place], float(probabilities[place]), number < len(kept), box)
        for number, place in enumerate(order)
    ]
    return Found(mask, described, least, gain)


def look(read, inside, spacing_zyx_mm, forward, known):
    """Returns (what the look marks in the lungs of a scan, uint8 [D, H, W] of 255ths; how much it was sharpened for that).

    Args:
        read: index of a slice -> [H, W] in HU.
        inside: bool [D, H, W], the lungs.
        spacing_zyx_mm: distances of slices, rows, columns.
        forward: as of `Networks`.
        known: as of `Networks`.
    """
    read_sharp, gain = sharpness.reader(read, inside, spacing_zyx_mm[1:], known)
    region = nodule_look.find_region(inside, spacing_zyx_mm[1:])
    del inside  # as large as the region
    return nodule_look.mark(read_sharp, region, forward), gain


def find_box(lungs, spacing_zyx_mm):
    """Returns the slices, rows and columns that hold the lungs and a margin, three slices; all of it without lungs."""
    margins = [0, *(int(np.ceil(2.0 * nodule_look.MARGIN_MM / step)) + 1 for step in spacing_zyx_mm[1:])]
    holds, seen = np.zeros(len(lungs), bool), np.zeros(lungs.shape[1:], bool)
    for index, plane in enumerate(lungs):
        inside = np.asarray(plane) > 0
        holds[index] = inside.any()
        seen |= inside
    box = []
    for axis, (margin, held) in enumerate(
        zip(margins, (holds, seen.any(axis=1), seen.any(axis=0)), strict=True)
    ):
        places = np.flatnonzero(held)
        first, last = (places[0], places[-1]) if len(places) else (0, lungs.shape[axis] - 1)
        box.append(slice(max(0, int(first) - margin), min(lungs.shape[axis], int(last) + 1 + margin)))
    return tuple(box)


def probability(measures, weights):
    """Returns the probability of candidates, float64 [n].

    Args:
        measures: of `nodule_candidates.measure`, n dicts.
        weights: of `EVIDENCE`, and a constant.
    """
    return 1.0 / (1.0 + np.exp(-(evidence(measures) @ np.asarray(weights[:-1]) + weights[-1])))


def evidence(measures):
    """Returns `EVIDENCE` of candidates, float64 [n, 3], from their measures, n dicts."""
    names = ("mean", "sum", "short_axis")
    mean, total, short = (np.array([one[name] for one in measures], np.float64) for name in names)
    mean = np.clip(mean, 1e-3, 1.0 - 1e-3)
    logarithms = [np.log(np.maximum(values, 1e-3)) for values in (total, short)]
    return np.stack([np.log(mean / (1.0 - mean)), *logarithms], axis=1)


def least_probability(networks, false_per_scan):
    """Returns the least probability for a rate of false ones, between the operating points linearly in its logarithm.

    Raises:
        InputError: the rate is not above 0.
    """
    check_rate(false_per_scan)
    rates, least = networks.operating_points.T
    return float(np.interp(np.log(false_per_scan), np.log(rates), least))


def check_rate(false_per_scan):
    """Raises an InputError unless the rate is a number above 0."""
    if not 0.0 < false_per_scan < np.inf:
        raise InputError(f"--false_per_scan: got {false_per_scan}, expected a number above 0")


def load_networks(folder):
    """Returns the `Networks` of a folder.

    Raises:
        InputError: a file is missing, damaged, or of another network.
    """
    folder = pathlib.Path(folder)
    about = _read_about(folder / "about.json")
    settings = nodule_look.network_settings(resolve_lowering("auto"), **about["look"])
    variables = read_weights(folder / "look.npz")

    def create():
        from auxseg.models.aux_unet import AuxUNet  # not where a program of it is kept from before

        apply_fn, _ = create_inference(AuxUNet(settings), variables)

        def forward(weights, images):
            logits = apply_fn(weights, images)
            return jax.nn.sigmoid(logits[..., 1] - logits[..., 0])

        return forward

    def made_of():
        return repr(settings).encode() + read_sources() + pathlib.Path(__file__).read_bytes()

    return Networks(
        programs.Kept(
            create, fold_batch_norm(variables, settings.bn_epsilon), made_of=made_of, calls=build.TARGETS
        ),
        about["above"],
        tuple(about["weights"]),
        np.array(about["operating_points"], np.float64),
        sharpness.Known(**about["sharpness"]),
        about,
    )


def write_weights(path, tree):
    """Writes nested dicts of arrays as `.npz`, a name a leaf with its owners before it, parted by slashes."""
    np.savez_compressed(path, **flatten(tree))


def read_weights(path):
    """Returns the nested dicts of arrays that `write_weights` wrote; raises an InputError where it cannot."""
    try:
        return unflatten(npz.read_npz(path, most_bytes=MOST_BYTES))
    except npz.UNREADABLE as error:
        raise InputError(f"{path}: the weights cannot be read: {error}; install the package again") from error


def _read_about(path):
    about = files.read_json(path)
    missing = [
        name for name in ("look", "above", "weights", "operating_points", "sharpness") if name not in about
    ]
    if not missing and set(about["sharpness"]) != set(sharpness.Known._fields):
        missing = [f"sharpness with {' and '.join(sharpness.Known._fields)}"]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; install the package again")
    return about


def _describe(candidate, probability, kept, box):
    centre = [place + part.start for place, part in zip(candidate.centre_zyx, box, strict=True)]
    return {"probability": probability, "kept": kept, "centre_zyx": tuple(centre)} | candidate.measures
