"""The figures of a report as PNG: the paper's, from the run's own data, and those that it lacks.

Each function returns a matplotlib Figure, made without pyplot, so that nothing is left in a global state;
`to_png` gives its bytes. A figure whose data is not there is None.
"""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from auxseg.base.classes import CLASS_NAMES, COLOURS, DIFFERENCE_COLOUR, UNKNOWN
from auxseg.report import tables
from auxseg.report.tables import MARKERS
from auxseg.scoring import calibration, statistics

INK, GRID = "#1f2933", "#d9dee3"
DPI = 110


def to_png(figure):
    """Returns the PNG bytes of a Figure."""
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, facecolor="white")
    return content.getvalue()


def _whole_epochs(figure):
    for panel in figure.axes:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def create_axes(size, *, columns=1, rows=1, **settings):
    """Returns a Figure of a size in inches and its axes [rows, columns], in the house's style."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **settings)
    for each in axes.flat:
        each.grid(True, color=GRID, linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8, colors=INK)
    return figure, axes


def label(axes, x, y, title):
    """Writes the names of both axes and the title."""
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.set_title(title, fontsize=10, color=INK, loc="left")


def draw_curves(epochs):
    """Returns loss, accuracy and Dice by epoch (Figs 5, 7, 9), or None without epochs.

    Args:
        epochs: rows of `metrics.jsonl`: epoch, train and val with loss, accuracy, pooled_dsc, dice by
            class.
    """
    if not epochs:
        return None
    figure, axes = create_axes((11, 3.4), columns=3)
    x = [row["epoch"] for row in epochs]
    for panel, key, title, corner in (
        (axes[0, 0], "loss", "Loss", "upper right"),
        (axes[0, 1], "accuracy", "Pixel accuracy (paper)", "lower right"),
    ):
        for split, style in (("train", "--"), ("val", "-")):
            panel.plot(x, _series(epochs, split, key), style, color=INK, linewidth=1.4, label=split)
        label(panel, "Epoch", "", title)
        panel.legend(loc=corner, fontsize=8, frameon=False)  # "best" takes seconds, and says so
    for name in [name for name in epochs[0]["val"]["dice"] if name != "background"]:
        values = _series(epochs, "val", "dice", name)
        axes[0, 2].plot(
            x,
            values,
            color=COLOURS[name],
            linewidth=1.4,
            marker=MARKERS[name],
            markersize=3,
            label=tables.TITLES[name],
        )
    label(axes[0, 2], "Epoch", "", "Mean Dice of validation cases")
    axes[0, 2].set_ylim(0, 1.02)
    axes[0, 2].legend(loc="lower right", fontsize=8, frameon=False)
    best = (
        int(np.nanargmin(_series(epochs, "val", "loss")))
        if np.any(np.isfinite(_series(epochs, "val", "loss")))
        else 0
    )
    for panel in axes.flat:
        panel.axvline(x[best], color=DIFFERENCE_COLOUR, linewidth=1.5, zorder=0)
    axes[0, 0].text(x[best], axes[0, 0].get_ylim()[1], f" best: {x[best]}", fontsize=8, va="top", color=INK)
    return _whole_epochs(figure)


def _series(epochs, *path):
    values = []
    for row in epochs:
        for key in path:
            row = (row or {}).get(key)
        values.append(np.nan if row is None else row)
    return np.array(values, np.float64)


def draw_schedule(epochs):
    """Returns learning rate and memory by epoch (Table 3), or None without epochs."""
    if not epochs:
        return None
    figure, axes = create_axes((9, 2.8), columns=2)
    x = [row["epoch"] for row in epochs]
    axes[0, 0].step(x, _series(epochs, "learning_rate"), where="mid", color=INK)
    axes[0, 0].set_yscale("log")
    label(axes[0, 0], "Epoch", "", "Learning rate")
    axes[0, 1].plot(x, _series(epochs, "peak_memory_mb") / 1e3, color=INK)
    axes[0, 1].set_ylim(bottom=0)
    label(axes[0, 1], "Epoch", "GB", f"Peak memory ({epochs[-1].get('memory_of', 'process')})")
    return _whole_epochs(figure)


def draw_dice(evaluation):
    """Returns every case's Dice by class, its mean and interval; missed cases are crosses at 0."""
    figure, axes = create_axes((6.4, 3.4))
    panel = axes[0, 0]
    owners = tables.patients(evaluation)
    labels = []
    for at, name in enumerate(evaluation.foreground):
        values = tables.column(evaluation, f"{name}_dice")
        missed = tables.statuses(evaluation, name) == "missed"
        there = ~np.isnan(values)
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
        panel.scatter(
            at + jitter[there & ~missed],
            values[there & ~missed],
            s=14,
            color=COLOURS[name],
            alpha=0.55,
            marker=MARKERS[name],
            linewidths=0,
        )
        panel.scatter(at + jitter[missed], values[missed], s=30, color=COLOURS[name], marker="x")
        interval = statistics.bootstrap_mean(values, owners)
        if interval.num_cases:
            panel.plot([at + 0.33] * 2, [interval.low, interval.high], color=INK, linewidth=2)
            panel.plot(at + 0.33, interval.estimate, "D", color=INK, markersize=5)
        labels.append(f"{tables.TITLES[name]}\nn = {interval.num_cases}, missed {missed.sum()}")
    panel.set_xticks(range(len(labels)), labels)
    panel.set_ylim(-0.03, 1.03)
    panel.grid(False, axis="x")
    beside = " and 95 % interval by patient" if tables.has_intervals(evaluation) else ""
    label(panel, "", "Dice", f"Dice by case; mean{beside} (black)")
    return figure


def draw_lungs_against_nodules(evaluation):
    """Returns lung Dice against nodule Dice with R (Fig 11), or None without a case that has both."""
    lungs, nodules = tables.dice_pairs(evaluation)
    if not len(lungs):
        return None
    figure, axes = create_axes((4.8, 3.6))
    panel = axes[0, 0]
    panel.scatter(lungs, nodules, s=22, color=COLOURS["nodule"], alpha=0.65, linewidths=0)
    r = statistics.correlation(lungs, nodules, intervals=tables.has_intervals(evaluation))
    panel.set_ylim(-0.03, 1.03)
    panel.set_xlim(min(0.8, lungs.min() - 0.01), 1.0)
    text = (
        "too few or no spread" if np.isnan(r.estimate) else f"{r.estimate:.3f}{_span(r.low, r.high, '.2f')}"
    )
    label(panel, "Lung Dice (mean of both)", "Nodule Dice", f"R = {text}, n = {r.num_cases}")
    return figure


def _span(low, high, form):
    return "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"


def draw_bland_altman(evaluation, name):
    """Returns the Bland-Altman plots of a class (Figs 12-14) in px and mm2 where known, or None.

    One under the other: side by side their words would be too small to read on half a page.
    """
    units = [unit for unit in ("px", "mm2") if len(tables.area_pairs(evaluation, name, unit)[0])]
    if not units:
        return None
    figure, axes = create_axes((5.4, 3.2 * len(units)), rows=len(units))
    for panel, unit in zip(axes[:, 0], units, strict=True):
        pairs = tables.area_pairs(evaluation, name, unit)
        intervals = tables.has_intervals(evaluation)
        _draw_agreement(panel, *pairs, name, unit.replace("mm2", "mm²"), intervals)
    return figure


def _draw_agreement(panel, reference, predicted, name, unit, intervals):
    difference, mean = predicted - reference, (predicted + reference) / 2
    missed = predicted == 0
    panel.scatter(mean[~missed], difference[~missed], s=18, color=COLOURS[name], alpha=0.6, linewidths=0)
    panel.scatter(mean[missed], difference[missed], s=30, color=COLOURS[name], marker="x")
    agreement = statistics.bland_altman(difference, intervals=intervals)
    lines = (
        (agreement.bias, agreement.bias_interval, "-"),
        (agreement.lower_limit, agreement.lower_interval, "--"),
        (agreement.upper_limit, agreement.upper_interval, "--"),
    )
    shown = [*difference, *(value for value, _, _ in lines if np.isfinite(value)), 0.0]
    for value, interval, style in lines:
        if np.isfinite(value):
            panel.axhline(value, color=INK, linestyle=style, linewidth=1.2)
        # Of a handful of cases the intervals are wider than the picture: all grey, it would say nothing.
        if np.all(np.isfinite(interval)) and np.ptp(interval) < np.ptp(shown):
            panel.axhspan(*interval, color=INK, alpha=0.08, linewidth=0)
    panel.axhline(0, color=GRID, linewidth=1, zorder=0)
    margin = 0.3 * np.ptp(shown) or 1.0
    panel.set_ylim(min(shown) - margin, max(shown) + margin)
    limits = (
        ""
        if np.isnan(agreement.sd)
        else f", limits [{agreement.lower_limit:.0f}, {agreement.upper_limit:.0f}]"
    )
    title = f"{tables.TITLES[name]}: bias {agreement.bias:.1f} {unit}{limits}, n = {agreement.num_cases}"
    label(panel, f"Mean of both areas, {unit}", f"Predicted - reference, {unit}", title)
    panel.title.set_fontsize(8.5)


def draw_confusion(evaluation):
    """Returns where the pixels of each class went, rows summing to 100 %."""
    counts = tables.confusion(evaluation)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = create_axes((5.2, 3.9))
    panel = axes[0, 0]
    panel.grid(False)
    right = np.eye(len(evaluation.classes), dtype=bool)
    for mask, palette in ((~right, "YlOrRd"), (right, "Greens")):
        panel.imshow(np.ma.masked_where(~mask, shares), cmap=palette, vmin=0, vmax=1)
    for i, j in np.ndindex(shares.shape):
        text = f"{shares[i, j]:.1%}" if counts[i].sum() else "-"
        panel.text(
            j, i, text, ha="center", va="center", fontsize=9, color="white" if shares[i, j] > 0.6 else INK
        )
    names = [tables.TITLES[name] for name in evaluation.classes]
    panel.set_xticks(range(len(names)), names, rotation=20)
    panel.set_yticks(range(len(names)), names)
    panel.spines[:].set_visible(False)
    label(panel, "Predicted", "Reference", "Where the pixels of each class went")
    return figure


def draw_shifts(evaluation):
    """Returns how far the predicted lungs lie from the reference, by case; None where none was found."""
    shifts = np.stack([tables.column(evaluation, f"shift_{axis}_px") for axis in "yx"])
    shifts = shifts[:, ~np.isnan(shifts).any(0)]
    if not shifts.size:
        return None
    figure, axes = create_axes((3.9, 3.9))
    panel = axes[0, 0]
    reach = max(2.0, 1.2 * np.abs(shifts).max())
    panel.axhline(0, color=INK, linewidth=0.8)
    panel.axvline(0, color=INK, linewidth=0.8)
    panel.scatter(shifts[1], shifts[0], s=18, color="#6b46c1", alpha=0.5, linewidths=0)
    panel.plot(
        *np.median(shifts, axis=1)[::-1], "+", color=COLOURS["left_lung"], markersize=16, markeredgewidth=2.5
    )
    panel.set_xlim(-reach, reach)
    panel.set_ylim(reach, -reach)
    panel.set_aspect("equal")
    label(panel, "right in the image, px", "down in the image, px", "Predicted lungs against the reference")
    return figure


def draw_reliability(evaluation):
    """Returns the reliability diagram, or None without probabilities."""
    if evaluation.calibration is None:
        return None
    figure, axes = create_axes((8.6, 3.6), columns=2)
    curves = [("predicted class", INK, "D", evaluation.calibration[-1])]
    curves += [
        (tables.TITLES[name], COLOURS[name], MARKERS[name], evaluation.calibration[place])
        for place, name in enumerate(evaluation.foreground, start=1)
    ]
    for title, color, marker, bins in curves:
        confidence, frequency = calibration.reliability(bins)
        axes[0, 0].plot(
            confidence, frequency, color=color, marker=marker, markersize=4, linewidth=1.2, label=title
        )
        axes[0, 1].plot(
            (np.arange(len(bins)) + 0.5) / len(bins),
            np.where(bins[:, 0] > 0, bins[:, 0], np.nan),
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.2,
        )
    axes[0, 0].plot([0, 1], [0, 1], color=GRID, linewidth=2, zorder=0)
    axes[0, 1].set_yscale("log")
    axes[0, 0].legend(loc="upper left", fontsize=8, frameon=False)
    label(axes[0, 0], "Confidence", "Frequency of hits", "Reliability, all pixels")
    label(axes[0, 1], "Confidence", "Pixels", "How many pixels stand behind each point")
    return figure


def draw_objects(evaluation):
    """Returns the nodules found, missed and false by size, or None without any."""
    table = [row for row in tables.object_table(evaluation) if row["size"] != "all"]
    if not table:
        return None
    figure, axes = create_axes((5.6, 3.2))
    panel = axes[0, 0]
    colors = {"found": "#2563eb", "missed": "#9aa5b1", "false": DIFFERENCE_COLOUR}
    for offset, (kind, color) in zip((-0.27, 0, 0.27), colors.items(), strict=True):
        bars = panel.bar(
            [i + offset for i in range(len(table))],
            [row[kind] for row in table],
            0.25,
            color=color,
            label=kind,
        )
        panel.bar_label(bars, fontsize=8)
    panel.set_xticks(range(len(table)), [row["size"] for row in table])
    panel.grid(False, axis="x")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.margins(y=0.15)
    panel.legend(loc="upper right", fontsize=8, frameon=False)
    label(panel, "Equivalent diameter in the slice", "Nodules", "Nodules as objects")
    return figure


def draw_panels(cases):
    """Returns input, truth, prediction and overlay of cases (Figs 6, 8, 10), or None without cases.

    Args:
        cases: list of `viewer.CaseImage`.
    """
    if not cases:
        return None
    figure = Figure(figsize=(10, 2.75 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 4, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        _draw_case(row, case)
    for panel, title in zip(
        axes[0], ("CT", "Truth", "Prediction", "Overlay (yellow: they differ)"), strict=True
    ):
        panel.set_title(title, fontsize=10, color=INK)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


def _draw_case(row, case):
    window = {"cmap": "gray", "vmin": case.window_hu[0], "vmax": case.window_hu[1]}
    palette = ListedColormap(["#000000", *(COLOURS[name] for name in case.classes[1:])]).with_extremes(
        over=_UNKNOWN_COLOUR
    )
    row[0].imshow(case.image, **window)
    row[0].set_ylabel(shorten(case.case_id), fontsize=8, color=INK)
    for panel, mask in ((row[1], case.reference), (row[2], case.prediction)):
        panel.imshow(mask, cmap=palette, vmin=0, vmax=len(case.classes) - 1, interpolation="nearest")
    row[3].imshow(case.image, **window)
    row[3].imshow(overlay(case.reference, case.prediction, case.classes), interpolation="nearest")
    dice = [case.row[f"{name}_dice"] for name in case.classes[1:]]
    named = zip([name[0].upper() for name in case.classes[1:]], dice, strict=True)
    row[3].set_xlabel(
        "Dice  " + "  ".join(f"{k} {'-' if np.isnan(v) else f'{v:.3f}'}" for k, v in named), fontsize=8
    )


_UNKNOWN_COLOUR = "#777777"


def shorten(case_id, length=28):
    """Returns a case's name with its middle left out where it is longer: a series UID is as long as a row."""
    if len(case_id) <= length:
        return case_id
    return f"{case_id[: length // 2 - 2]}...{case_id[-(length // 2) :]}"


def overlay(reference, prediction, classes=CLASS_NAMES, *, alpha=0.45):
    """Returns float [H, W, 4], RGBA: the prediction in the paper's colours, yellow where it is known to be wrong."""
    colors = np.zeros((len(classes) + 1, 4))
    for index, value in enumerate([*(COLOURS[name] for name in classes[1:]), DIFFERENCE_COLOUR], start=1):
        colors[index] = [*(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)), alpha]
    colors[-1, 3] = 0.9
    wrong = (reference != prediction) & (reference != UNKNOWN)
    return colors[np.where(wrong, len(classes), prediction)]


def draw_explanation(explanation):
    """Returns the CT with a Grad-CAM map over it for each layer, and the scales of squeeze-and-excitation.

    Args:
        explanation: `explain.Explanation`.
    """
    tiles = [("CT and truth", None), *explanation.maps.items()]
    rows, scales = -(-len(tiles) // _TILES), explanation.se_scales
    figure = Figure(figsize=(11, 2.9 * rows + (2.4 if scales else 0)), layout="constrained")
    grid = figure.add_gridspec(rows + bool(scales), _TILES, height_ratios=[2.9] * rows + [2.4] * bool(scales))
    for place, (title, heat) in enumerate(tiles):
        _draw_heat(figure.add_subplot(grid[divmod(place, _TILES)]), explanation, title, heat)
    if scales:
        _draw_scales(figure.add_subplot(grid[rows, :]), scales)
    return figure


_TILES = 4


def _draw_heat(panel, explanation, title, heat):
    low, high = explanation.window_hu
    panel.imshow(explanation.image, cmap="gray", vmin=low, vmax=high)
    if heat is not None:
        panel.imshow(heat, cmap="inferno", alpha=0.8 * heat, vmin=0, vmax=1)
    if np.any(explanation.target):
        color = COLOURS.get(explanation.class_name, "#ffffff")
        panel.contour(explanation.target, [0.5], colors=[color], linewidths=0.9)
    panel.set_title(title, fontsize=9, color=INK)
    panel.set_xticks([])
    panel.set_yticks([])


def _draw_scales(panel, scales):
    names = list(scales)
    values = [scales[name][np.isfinite(scales[name])] for name in names]
    parts = panel.violinplot(values, showmedians=True, widths=0.85)
    for body in parts["bodies"]:
        body.set_facecolor("#6b46c1")
    panel.set_xticks(range(1, len(names) + 1), names, fontsize=8, rotation=20)
    panel.set_ylim(0, 1)
    panel.grid(True, axis="y", color=GRID, linewidth=0.6)
    label(panel, "", "Scale", "Squeeze-and-excitation: scales of the channels of each block")
