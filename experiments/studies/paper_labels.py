"""What the paper's reading of value 5 does: airways taken for nodules, against nodules, on the same slices.

    python -m experiments.studies.paper_labels --data=phantom --seeds=1,2,3
    python -m experiments.studies.paper_labels --data=luna16 --data_dir=LUNA16
    python -m experiments.studies.paper_labels --measure_only --masks=LUNA16/seg-lungs-LUNA16 [--nodule_areas=CSV]

Two arms are trained on the same slices of the same patients, in the same splits: 'anatomy', where class 3 is what
annotations call a nodule, and 'airway', where it is value 5 of LUNA16's masks, as the paper has it. Their scores
stand beside each other and are not tested against each other, since class 3 is another structure in each. For
both the study gives what the paper prints of class 3: Dice, and the areas of Fig 12 with bias and limits.

With --masks the areas of value 5 are measured on every slice of the masks in a folder, without any scan; with
--nodule_areas those of real nodules are read from a CSV with the columns `area_px` (at 512 x 512) and `uid`.
All areas are given in pixels of 320 x 320, the paper's size.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import COLOURS
from auxseg.base.errors import InputError
from auxseg.ct import images
from auxseg.datasets import labels, load, splits
from auxseg.report import figures, paper
from auxseg.report.markup import number
from auxseg.scoring import statistics
from experiments.studies import effects, runner
from experiments.studies.comparison import arm_cases, read_arms

ARMS = {"anatomy": {"data.labels": "anatomy"}, "airway": {"data.labels": "airway_as_nodule"}}
TITLES = {
    "anatomy": "class 3 = nodules, from annotations",
    "airway": "class 3 = value 5, the airway (the paper's reading)",
}
PAPER_PIXELS = 320 * 320
FIG_12_MEAN_PX = (0.0, 400.0)
"""Range of the mean areas in Fig 12 (its x-axis), px at 320 x 320."""
NODULE_AREA_PIXELS = 512 * 512
"""Of the slices that the areas in --nodule_areas were counted on."""


def plan(protocol, only=()):
    """Returns the Runs of the study; `only` has no effect: both arms are needed."""
    del only
    return runner.plan(runner.create_config(protocol), ARMS, protocol)


def study(
    protocol,
    folder,
    *,
    jobs=1,
    dry_run=False,
    reuse=(),
    only=(),
    names=("dice",),
    masks=None,
    nodule_areas=None,
):
    """Runs the study and writes its tables, figure and page; returns the summary, None after a dry run.

    Args:
        protocol: runner.Protocol; not of NPZ data that have classes 0 to 3, which say nothing of airways.
        folder: pathlib.Path of the study.
        jobs: runs at once.
        dry_run: only list the runs.
        reuse: folders of other studies, as `runner.run_all`.
        only: has no effect: both arms are needed.
        names: scores.
        masks: folder of LUNA16's masks to measure, or None.
        nodule_areas: CSV, or None.

    Raises:
        InputError: as `runner.run_all`; files that cannot be used.
    """
    planned = plan(protocol, only)
    if not dry_run:
        share_splits(folder, planned)
    workdirs = runner.run_all(folder, planned, jobs=jobs, dry_run=dry_run, reuse=reuse)
    if dry_run:
        return None
    config = runner.create_config(protocol)
    comparison = runner.finish(folder, workdirs, titles=TITLES, pairs=[], names=names)
    areas = {arm: read_areas(workdirs, arm, comparison["split"]) for arm in ARMS}
    summary = {
        "arms": {arm: summarise_arm(workdirs, arm, areas[arm], comparison["split"]) for arm in ARMS},
        "measured": measure(folder, masks, nodule_areas),
    }
    files.write_bytes(folder / "labels.png", draw(areas))
    files.write_json(folder / "labels.json", summary)
    lines = ["# The paper's reading of value 5", "", *effects.describe_protocol(workdirs, config), ""]
    lines += [*format_arms(summary["arms"]), "", *(f"* {line}" for line in describe(summary))]
    files.write_text(folder / "summary.md", "\n".join(lines) + "\n")
    print("\n".join(describe(summary)), flush=True)
    return summary


def share_splits(folder, planned):
    """Writes the splits of the 'anatomy' arm into every workdir, so that both arms have the same patients.

    Seeded splits deal out the patients with a nodule first, and each reading has others.
    """
    made = {}
    for run in planned:
        workdir = folder / "runs" / run.name
        path = workdir / "splits.json"
        if path.exists():
            continue
        data = run.config.data
        key = (data.fold, data.split_seed)
        if key not in made:
            table = load(runner.override(run.config, ARMS["anatomy"]).data).table
            parts = splits.make_splits(
                table, split=data.split, fold=data.fold, num_folds=data.num_folds, seed=data.split_seed
            )
            made[key] = {name: [str(table.case_id[i]) for i in rows] for name, rows in parts.items()}
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(path, made[key])


def read_areas(workdirs, arm, split):
    """Returns (reference, predicted) areas of class 3, float64 [n] px at 320 x 320, of the cases that have it.

    The predicted area of a case is the mean over the arm's runs.
    """
    found = {}
    for run, workdir in workdirs.items():
        if run.arm != arm:
            continue
        scale = PAPER_PIXELS / np.prod(run.config.data.size)
        for row in files.read_csv(workdir / "cases.csv"):
            if row["split"] == split and row["nodule_reference_px"] > 0:
                pair = (row["nodule_reference_px"] * scale, row["nodule_predicted_px"] * scale)
                found.setdefault(row["case_id"], []).append(pair)
    means = np.array([np.mean(pairs, axis=0) for pairs in found.values()]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def summarise_arm(workdirs, name, areas, split):
    """Returns what the paper prints of class 3, JSON types: Dice, pooled DSC, areas, bias and limits."""
    reference, predicted = areas
    agreement = statistics.bland_altman(predicted - reference)
    of_arm = {run: path for run, path in workdirs.items() if run.arm == name}
    summaries = [files.read_json(path / "summary.json")["scores"][split] for path in of_arm.values()]
    found, _ = read_arms(list(workdirs.values()), split=split, arms=runner.name_arms(workdirs))
    arm = next(each for each in found if each.name == name)
    cases = arm_cases(arm, "dice", "nodule")
    return {
        "runs": len(of_arm),
        "cases": len({case for each in arm.runs for case in each.cases}),
        "cases_with_class_3": len(reference),
        "pooled_dsc": float(np.mean([each["pooled_dsc"] for each in summaries])),
        "dice_class_3": float(np.mean(list(cases.values()))) if cases else None,
        "false_positive_cases": float(
            np.mean([each["false_positive_cases"]["nodule"] for each in summaries])
        ),
        "reference_px": quantiles(reference),
        "within_fig_12": share_within(reference),
        "bias_px": agreement.bias,
        "limits_px": [agreement.lower_limit, agreement.upper_limit],
    }


def quantiles(areas):
    """Returns {'min', 'median', 'mean', 'max'} of areas, None for each where there are none."""
    if not len(areas):
        return dict.fromkeys(("min", "median", "mean", "max"))
    found = {"min": np.min, "median": np.median, "mean": np.mean, "max": np.max}
    return {name: float(function(areas)) for name, function in found.items()}


def share_within(areas):
    """Returns the share of areas in the range of Fig 12's means, None where there are none."""
    low, high = FIG_12_MEAN_PX
    return float(np.mean((areas >= low) & (areas <= high))) if len(areas) else None


def measure(folder, masks, nodule_areas):
    """Returns the areas of value 5 in a folder of masks and of real nodules, JSON types; writes the former."""
    found = {}
    if masks:
        rows = measure_masks(pathlib.Path(masks))
        files.write_csv(folder / "airway_areas.csv", rows)
        found["airway"] = summarise_masks(rows)
    if nodule_areas:
        found["nodules"] = summarise_nodules(*read_nodule_areas(pathlib.Path(nodule_areas)))
    return found


def measure_masks(folder):
    """Returns one row for each slice of each mask with the area of value 5, px at 320 x 320.

    Raises:
        InputError: no masks there, or one that cannot be read or has other values.
    """
    files = sorted(folder.glob("*.mhd")) if folder.is_dir() else []
    if not files:
        raise InputError(f"--masks: {folder} holds no .mhd; expected LUNA16's folder seg-lungs-LUNA16")
    return [row for file in files for row in _measure_mask(file)]


def _measure_mask(file):
    volume = images.read_volume(file)
    labels.check_values(volume, labels.LUNA16_VALUES, where=file.name)
    scale = PAPER_PIXELS / np.prod(volume.shape[1:])
    lung = np.isin(volume, (labels.LUNA16_LEFT, labels.LUNA16_RIGHT)).any(axis=(1, 2))
    areas = (volume == labels.LUNA16_AIRWAY).sum(axis=(1, 2)) * scale
    return [
        {
            "series_uid": file.stem,
            "slice": index,
            "slices": len(volume),
            "middle": index == len(volume) // 2,
            "has_lung": bool(lung[index]),
            "value_5_px": float(areas[index]),
        }
        for index in range(len(volume))
    ]


def summarise_masks(rows):
    """Returns the areas of value 5 on the middle slices and on all slices that have it, JSON types."""
    areas = np.array([row["value_5_px"] for row in rows])
    middle = np.array([row["middle"] for row in rows])
    lung = np.array([row["has_lung"] for row in rows])
    there = areas > 0
    return {
        "masks": len({row["series_uid"] for row in rows}),
        "middle_slices_px": areas[middle].tolist(),
        "slices_with_value_5": int(there.sum()),
        "lung_slices": int(lung.sum()),
        "lung_slices_with_value_5": int((lung & there).sum()),
        "all_px": quantiles(areas[there]),
        "within_fig_12": share_within(areas[there]),
    }


def read_nodule_areas(path):
    """Returns (areas float64 [n] px at 320 x 320, scans [n]): the nodule area of each middle slice that shows any.

    Areas of one scan are added up, since Fig 12 has one point a slice.

    Args:
        path: CSV with `uid` and `area_px` at 512 x 512, one nodule on its scan's middle slice a row.

    Raises:
        InputError: it cannot be read, or lacks a column.
    """
    try:
        rows = files.read_cells(path, ("uid", "area_px"))
        pairs = [(row["uid"], float(row["area_px"])) for row in rows]
    except ValueError as error:
        raise InputError(
            f"--nodule_areas: {path} cannot be used ({error}); expected a CSV with the columns uid and area_px"
        ) from error
    totals = {}
    for owner, area in pairs:
        totals[owner] = totals.get(owner, 0.0) + area * PAPER_PIXELS / NODULE_AREA_PIXELS
    return np.array(list(totals.values())), list(totals)


def summarise_nodules(areas, owners):
    """Returns the areas of real nodules with what they say of Fig 12's bias, JSON types."""
    mean = statistics.bootstrap_mean(areas, owners)
    return {
        "slices": len(areas),
        "px": quantiles(areas),
        "mean_px_interval": [mean.low, mean.high],
        "within_fig_12": share_within(areas),
    }


def describe(summary):
    """Returns sentences on what was measured; no more than the numbers show."""
    sentences = [_describe_arm(arm, found) for arm, found in summary["arms"].items()]
    measured = summary["measured"]
    bias = paper.BLAND_ALTMAN_PX["nodule"][0]
    if "airway" in measured:
        sentences.append(_describe_airway(measured["airway"]))
    if "nodules" in measured:
        found = measured["nodules"]
        low, high = found["mean_px_interval"]
        sentences.append(
            f"Real nodules on the {found['slices']} middle slices that show any, by slice: "
            f"{number(found['px']['min'], 0)} to {number(found['px']['max'], 0)} px at 320 x 320, median "
            f"{number(found['px']['median'], 0)}, mean {number(found['px']['mean'], 1)} [{number(low, 1)}, "
            f"{number(high, 1)}]; {found['within_fig_12']:.0%} lie in Fig 12's range, so that the range alone decides "
            f"nothing. A predicted area is not below 0: a mean difference of {bias} px asks for a mean reference of "
            f"{-bias} px or more over the cases of Fig 12"
            + (
                ", which is above that interval: nodules like these could not give it even if all were missed."
                if high < -bias
                else ", which nodules like these do not exclude."
            )
        )
    return sentences


def _describe_arm(arm, found):
    if not found["cases_with_class_3"]:
        return f"{TITLES[arm]}: no test case has it."
    low, high = found["limits_px"]
    area = found["reference_px"]
    printed = paper.BLAND_ALTMAN_PX["nodule"]
    return (
        f"{TITLES[arm]}: mean Dice of class 3 {found['dice_class_3']:.3f} over {found['cases_with_class_3']} of "
        f"{found['cases']} test cases, pooled DSC {found['pooled_dsc']:.4f} ({found['runs']} runs); reference "
        f"areas {number(area['min'], 0)} to {number(area['max'], 0)} px at 320 x 320, median {number(area['median'], 0)}; "
        f"bias {found['bias_px']:+.1f} px, limits [{low:.1f}, {high:.1f}] (the paper's Fig 12: {printed[0]}, "
        f"[{printed[1]}, {printed[2]}])."
    )


def _describe_airway(found):
    middle = ", ".join(number(area, 0) for area in found["middle_slices_px"])
    area = found["all_px"]
    return (
        f"Value 5 in {found['masks']} of LUNA16's masks: middle slices {middle} px at 320 x 320; "
        f"{found['lung_slices_with_value_5']} of {found['lung_slices']} slices with lung have it; where it is there, "
        f"{number(area['min'], 0)} to {number(area['max'], 0)} px, median {number(area['median'], 0)}."
    )


def format_arms(arms):
    """Returns the lines of a Markdown table of both readings, with the paper's numbers below."""
    lines = [
        "| class 3 | Dice of class 3 | pooled DSC | cases with it | reference area, px: min, median, max | bias, px | limits, px |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, found in arms.items():
        area = found["reference_px"]
        cells = [
            TITLES[arm],
            number(found["dice_class_3"], 3),
            number(found["pooled_dsc"], 4),
            str(found["cases_with_class_3"]),
            ", ".join(number(area[name], 0) for name in ("min", "median", "max")),
            number(found["bias_px"], 1),
            ", ".join(number(each, 1) for each in found["limits_px"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    bias, low, high = paper.BLAND_ALTMAN_PX["nodule"]
    return [
        *lines,
        f"| the paper, Figs 11 and 12 | 0.2 to 0.9 by case | 0.984 | not said | 0 to 400 (means) | {bias} | {low}, {high} |",
    ]


def draw(areas):
    """Returns the PNG of Fig 12 for both readings, side by side; (reference, predicted) by arm."""
    figure, axes = figures.create_axes((11, 4), columns=len(areas))
    for panel, (arm, (reference, predicted)) in zip(axes[0], areas.items(), strict=True):
        agreement = statistics.bland_altman(predicted - reference)
        panel.axvspan(*FIG_12_MEAN_PX, color=figures.INK, alpha=0.06)
        panel.plot((reference + predicted) / 2, predicted - reference, ".", color=COLOURS["nodule"])
        for height in (agreement.bias, agreement.lower_limit, agreement.upper_limit):
            if np.isfinite(height):
                panel.axhline(height, color=figures.INK, linewidth=1)
        for height in paper.BLAND_ALTMAN_PX["nodule"]:
            panel.axhline(height, color=figures.INK, linewidth=1, linestyle=":")
        figures.label(panel, "Mean area, px at 320 x 320", "Predicted - reference, px", TITLES[arm])
    return figures.to_png(figure)


def measure_only(folder, masks, nodule_areas):
    """Measures the areas of --masks and --nodule_areas alone, without training; returns the summary.

    Raises:
        InputError: neither was given, or cannot be used.
    """
    if not (masks or nodule_areas):
        raise InputError("--measure_only: needs --masks=FOLDER or --nodule_areas=CSV")
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"arms": {}, "measured": measure(folder, masks, nodule_areas)}
    files.write_json(folder / "areas.json", summary["measured"] | {"sentences": describe(summary)})
    print("\n".join(describe(summary)), flush=True)
    return summary


def main():
    """Runs what the flags ask for; returns the exit status."""
    given = flags.FLAGS
    if given.measure_only:
        measure_only(pathlib.Path(given.out), given.masks, given.nodule_areas)
        return 0
    return runner.main_of(
        lambda *arguments, **settings: study(
            *arguments, masks=given.masks, nodule_areas=given.nodule_areas, **settings
        )
    )(None)


if __name__ == "__main__":
    runner.define_flags(out="runs/paper_labels")
    flags.adopt_module_key_flags(runner)
    flags.DEFINE_string("masks", None, "folder of LUNA16's masks to measure value 5 in")
    flags.DEFINE_string("nodule_areas", None, "CSV of areas of real nodules: uid, area_px at 512 x 512")
    flags.DEFINE_bool("measure_only", False, "train nothing")
    command.run(runner.guard(main))
