"""Draws the study of nodules: each nodule with what was found of it, free-response curves, Markdown tables."""

from __future__ import annotations

import numpy as np

from experiments.nodules import scores
from experiments.nodules.arms import title_of
from experiments.nodules.scores import CROPS_FILE, MAX_FALSE, OUTCOMES, POINTS, SHOWN, WINDOW_HU


def draw(path, workdirs, *, flip=False):
    """Writes a picture of every test nodule of some runs: the reference's outline in green, what was found in red.

    Args:
        path: pathlib.Path of a PNG.
        workdirs: pathlib.Paths of runs that `score_run` scored.
        flip: as `count_run`.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    crops = [
        crop
        for workdir in workdirs
        for crop in np.load(scores.kept(workdir, CROPS_FILE, flip), allow_pickle=False).values()
    ]
    figure, axes = plt.subplots(2, max(1, len(crops)), figsize=(1.7 * max(1, len(crops)), 3.5), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (above, below), (image, reference, prediction) in zip(axes.T, crops, strict=False):
        for axis in (above, below):
            axis.imshow(image, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1])
        for mask, colour in ((reference, "lime"), (prediction, "red")):
            if mask.any():
                below.contour(mask, [0.5], colors=colour, linewidths=1.0)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_curves(path, result):
    """Writes the free-response curves of the arms: nodules found against false ones a slice, over all thresholds.

    Points are the most likely class and what was chosen on val of all runs, with the exact interval of the share
    where the mean over the seeds is a whole number of nodules. Recipes that mark no nodule at all have no curve; they stand in the legend.

    Args:
        path: pathlib.Path of a PNG.
        result: of `collect`.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9.5, 5.0))
    colours = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
    for number, (arm, about) in enumerate(result["arms"].items()):
        colour, first = colours[number % len(colours)], arm == "recommended"
        curve = [each for each in about["curve"] if each["false per slice"] > 0]
        axis.plot(
            [each["false per slice"] for each in curve],
            [each["found"] / each["nodules"] for each in curve],
            color=colour, linewidth=2.5 if first else 1.2, label=f"{title_of(arm).removeprefix('recommended, ')} ({about['runs']} runs)",
        )  # fmt: skip
        for point, marker in ((POINTS[0], "o"), (SHOWN, "s")):
            share, false = about[point]["sensitivity"], about[point]["false per slice"]["estimate"]
            if false:
                axis.plot(false, share["estimate"], marker, color=colour, markersize=8 if first else 5)
                if first and share["exact_low"] is not None:
                    ends = [
                        [share["estimate"] - share["exact_low"]],
                        [share["exact_high"] - share["estimate"]],
                    ]
                    axis.errorbar(false, share["estimate"], ends, color=colour, capsize=3, linewidth=0.8)
    axis.axvline(MAX_FALSE, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("false nodules a slice (curves: at the network's size, points: at the slice's own)")
    axis.set_ylabel("share of the real nodules found")
    axis.set_title(f"circle: {POINTS[0]}; square: {SHOWN}", fontsize=9)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def to_markdown(result):
    """Returns the tables of `collect` as Markdown: scores, and differences; intervals in brackets."""
    columns = (
        "sensitivity", "sensitivity, under 6 mm", "sensitivity, 6-10 mm", "sensitivity, over 10 mm",
        "sensitivity, 6 mm and more",
        "false per slice", "nodule Dice", "nodule Dice where found", "Dice of a found nodule", "left_lung Dice",
        "right_lung Dice",
    )  # fmt: skip
    names = ["recipe", "operating point", "seeds x slices", *columns]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    for arm, about in result["arms"].items():
        for point in POINTS:
            table = about[point]
            cells = [title_of(arm), point, str(table["slices"]), *(_cell(table[name]) for name in columns)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_contrast_lines(result["contrasts"])]) + "\n"


def _contrast_lines(contrasts):
    """Returns the lines of the second table: each arm less the recommended one."""
    if not contrasts:
        return []
    names = [f"less {title_of('recommended')}", "seeds", *OUTCOMES]
    lines = [
        "",
        f"At the {POINTS[0]}, paired by slice and seed; p over patients, by Holm's method for the whole table.",
        "",
        "| " + " | ".join(names) + " |",
        "| " + " | ".join("---" for _ in names) + " |",
    ]
    for arm, differences in contrasts.items():
        seeds = next(iter(differences.values()))["seeds"]
        cells = [title_of(arm), str(seeds), *(_difference(each, name) for name, each in differences.items())]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference(interval, outcome):
    if interval["estimate"] is None:
        return "-"
    digits = 4 if "lung" in outcome else 2
    ends = [interval["estimate"], interval["low"], interval["high"]]
    value, low, high = ("-" if each is None else f"{each:+.{digits}f}" for each in ends)
    p = "" if interval["p"] is None else f" p={interval['p']:.3f}"
    return f"{value} [{low}, {high}]{p}"


def _cell(interval):
    if interval["estimate"] is None:
        return "-"
    digits = 3 if interval["num_cases"] > 50 and interval["estimate"] > 0.9 else 2
    ends = [interval["estimate"], interval["low"], interval["high"]]
    value, low, high = ("-" if each is None else f"{each:.{digits}f}" for each in ends)
    return f"{value} [{low}, {high}] ({interval['num_cases']})"
