"""Where libraries disagree about scores: one table, computed, of ordinary and degenerate masks.

    python -m experiments.checks.score_libraries [--out=experiments/results/score_libraries.md]

Libraries that are not installed are left out and named. surface-distance's release on PyPI predates NumPy 2
and asks for `numpy.NaN` and `numpy.Inf` on empty masks; they are given to it here.
"""

from __future__ import annotations

import importlib.metadata
import math

import numpy as np
from absl import flags
from scipy import ndimage

from auxseg.base import command, files
from auxseg.scoring import case_scores

SPACING_YX_MM = (0.7, 0.9)


def main(argv):
    """Writes and prints the table."""
    del argv
    text = create_table()
    files.write_text(flags.FLAGS.out, text)
    print(text)


def create_table():
    """Returns the table as Markdown."""
    found = {name: function for name, function in LIBRARIES.items() if _is_there(_MODULES[name])}
    missing = [name for name in LIBRARIES if name not in found]
    lines = [
        "Dice / HD95 mm / ASSD mm / surface Dice at 1 mm, pixels of "
        f"{SPACING_YX_MM[0]} x {SPACING_YX_MM[1]} mm. {', '.join(_version(name) for name in found)}.",
        "",
    ]
    lines += [f"Not installed where this was computed: {', '.join(missing)}.", ""] if missing else []
    lines += ["| masks | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for name, (prediction, reference) in make_pairs().items():
        cells = [_cell(function, prediction, reference) for function in found.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def make_pairs():
    """Returns name -> (prediction, reference), bool [48, 40]."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 48, 40))
    blobs = [ndimage.gaussian_filter(each, 3) > 0.02 for each in noise]
    empty, pixel, corner = np.zeros((3, 48, 40), bool)
    pixel[5, 7] = corner[:6, :9] = True
    return {
        "both empty": (empty, empty),
        "missed": (empty, blobs[0]),
        "false positive": (blobs[0], empty),
        "identical": (blobs[0], blobs[0]),
        "blobs": (blobs[0], blobs[1]),
        "blobs, again": (blobs[2], blobs[3]),
        "one pixel, another": (pixel, np.roll(pixel, (20, 11), (0, 1))),
        "one pixel, a blob": (pixel, blobs[0]),
        "noise": (noise[0] > 1.2, noise[1] > 1.2),
        "opposite corners": (corner, corner[::-1, ::-1]),
        "all of the image": (np.ones_like(empty), blobs[1]),
    }


def _version(name):
    package = _PACKAGES[name]
    return f"{package} {importlib.metadata.version(package)}"


def _is_there(module):
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _cell(function, prediction, reference):
    values = [_guarded(score, prediction, reference) for score in function()]
    return " / ".join(value if isinstance(value, str) else f"{value:.3f}" for value in values)


def _guarded(score, prediction, reference):
    if score is None:
        return "-"
    try:
        return float(score(prediction, reference))
    except (RuntimeError, ValueError):
        return "error"


def _ours():
    def score(key):
        return lambda prediction, reference: case_scores.score_class(
            prediction=prediction, reference=reference, spacing_yx_mm=np.array(SPACING_YX_MM)
        )[key]

    return [score(key) for key in ("dice", "hd95_mm", "assd_mm", "surface_dice_1mm")]


def _surface_distance():
    import surface_distance as library

    for name, value in (("NaN", math.nan), ("Inf", math.inf)):
        if not hasattr(np, name):
            setattr(np, name, value)

    def on_distances(score):
        return lambda prediction, reference: score(
            library.compute_surface_distances(reference, prediction, SPACING_YX_MM)
        )

    return [
        lambda prediction, reference: library.compute_dice_coefficient(reference, prediction),
        on_distances(lambda distances: library.compute_robust_hausdorff(distances, 95)),
        on_distances(lambda distances: np.mean(library.compute_average_surface_distance(distances))),
        on_distances(lambda distances: library.compute_surface_dice_at_tolerance(distances, 1)),
    ]


def _monai():
    import torch
    from monai import metrics

    def score(function, *arguments, **keywords):
        def compute(prediction, reference):
            tensors = [torch.tensor(each[None, None].astype(np.float32)) for each in (prediction, reference)]
            return function(*tensors, *arguments, **keywords)

        return compute

    return [
        score(metrics.compute_dice),
        score(metrics.compute_hausdorff_distance, percentile=95, spacing=SPACING_YX_MM),
        score(metrics.compute_average_surface_distance, symmetric=True, spacing=SPACING_YX_MM),
        score(metrics.compute_surface_dice, [1.0], spacing=SPACING_YX_MM),
    ]


def _simpleitk():
    import SimpleITK as itk

    def images(*masks):
        found = [itk.GetImageFromArray(each.astype(np.uint8)) for each in masks]
        for image in found:
            image.SetSpacing(SPACING_YX_MM[::-1])
        return found

    def dice(prediction, reference):
        measure = itk.LabelOverlapMeasuresImageFilter()
        measure.Execute(*images(reference, prediction))
        return measure.GetDiceCoefficient()

    def hausdorff(read):
        def compute(prediction, reference):
            measure = itk.HausdorffDistanceImageFilter()
            measure.Execute(*images(reference, prediction))
            return read(measure)

        return compute

    return [
        dice,
        hausdorff(lambda measure: measure.GetHausdorffDistance()),
        hausdorff(lambda measure: measure.GetAverageHausdorffDistance()),
        None,
    ]


LIBRARIES = {
    "auxseg": _ours,
    "MONAI": _monai,
    "surface-distance (DeepMind)": _surface_distance,
    "SimpleITK (its HD is the maximum, its mean that of areas)": _simpleitk,
}
_PACKAGES = dict(zip(LIBRARIES, ("auxseg", "monai", "surface-distance", "SimpleITK"), strict=True))
_MODULES = dict(
    zip(
        LIBRARIES,
        ("auxseg.scoring.case_scores", "monai.metrics", "surface_distance", "SimpleITK"),
        strict=True,
    )
)


if __name__ == "__main__":
    flags.DEFINE_string("out", "experiments/results/score_libraries.md", "Markdown file to write")
    command.run(main)
