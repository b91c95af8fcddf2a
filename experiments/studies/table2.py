"""Table 2 again: the systems that the paper compares with, trained on the same cases and judged in the same way.

    python -m experiments.studies.table2 --data=phantom --seeds=1,2,3
    python -m experiments.studies.table2 --data=npz --data_dir=FOLDER --extra_data=FOLDER2 [--base_width=8] [--size=96]
    python -m experiments.studies.table2 --data=luna16 --data_dir=LUNA16 --width=both --dry_run
    python -m experiments.studies.table2 --config=experiments/nodules/window_config.py --data=crops --data_dir=CROPS

The paper sets figures of other papers, on other data, beside its own. Here every network has the same cases,
splits, loss, schedule and scores. `--width=matched`: each at the base width that has as many parameters as
the paper's network at `--base_width`; `published`: at its own width, scaled by `--base_width` / 64; `both`.
`--extra_data` adds the U-Net with a second data set (a folder of NPZ files, which train and are not
tested). The study's folder has the files of `experiments.studies.ablations`, and `table2.md`, `table2.json` with the
paper's figures beside ours. SAM is a table of its own (`experiments.sam.study`), since it is told where to look.
The 3D U-Net sees slabs of seven slices (`data.slab`), which NPZ files of single slices do not hold: there it is left out.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import flags

from auxseg.base import command, files
from experiments import made_by
from experiments.studies import comparators, effects, runner

WIDTHS = ("matched", "published", "both")
EXTRA = "unet_extra"


def find_width(config, system, target):
    """Returns the base width at which a System has the number of parameters and statistics nearest `target`.

    Args:
        config: settings that all runs share.
        system: comparators.System.
        target: parameters and statistics.
    """

    def count(width):
        return comparators.count_values(config, system, int(width))

    # Every layer's channels are multiples of the width, halves rounded down: nearly a polynomial of degree 2.
    widths = np.array([8, 16, 32])
    polynomial = np.polynomial.Polynomial.fit(widths, [count(width) for width in widths], 2)
    guess = int(np.argmin(np.abs(polynomial(np.arange(1, 129)) - target))) + 1
    near = range(max(1, guess - 1), guess + 2)
    return min(near, key=lambda width: abs(count(width) - target))


def create_arms(config, *, width, extra_data=None):
    """Returns ({arm: changes}, {arm: words}, {arm: the paper's percent or None}).

    Args:
        config: settings that all runs share; its base width is the paper's network's.
        width: one of `WIDTHS`.
        extra_data: folder of the second data set, or None.
    """
    scale = config.model.base_width / 64
    target = comparators.count_values(config, comparators.SYSTEMS["aux_unet"], config.model.base_width)
    systems = {name: system for name, system in comparators.SYSTEMS.items() if fits(config, system)}
    arms, titles, paper = {}, {}, {}
    for name, system in systems.items():
        widths = {"published": max(1, round(system.published_width * scale))}
        if name != "aux_unet" and width != "published":
            widths = {"matched": find_width(config, system, target), **widths}
        for kind, value in widths.items():
            if width not in ("both", kind) and name != "aux_unet":
                continue
            if kind == "published" and width == "both" and value == widths.get("matched"):
                continue  # the same network
            arm = name if name == "aux_unet" else f"{name}_{kind}"
            arms[arm] = comparators.create_changes(system, value)
            titles[arm] = f"{system.title}, width {value}"
            paper[arm] = system.paper_percent
    if extra_data:
        kind = "published" if width == "published" else "matched"
        arms[EXTRA] = {**arms[f"unet_{kind}"], "data.extra_dir": extra_data}
        titles[EXTRA] = f"{comparators.SECOND_DATA.title}, width {arms[EXTRA]['model.base_width']}"
        paper[EXTRA] = comparators.SECOND_DATA.paper_percent
    return arms, titles, paper


def fits(config, system):
    """Returns whether the data of a config can give what a System takes: NPZ files have no slabs."""
    return system.slices == 1 or config.data.name != "npz"


def create_effects(titles):
    """Returns the Effects of the study: each system against the paper's network, and the second data set."""
    first, *others = titles
    found = [
        effects.Effect(arm, f"{titles[arm]} against {titles[first]}", {titles[arm]: 1, titles[first]: -1})
        for arm in others
    ]
    alone = next((arm for arm in titles if arm.startswith("unet_") and arm != EXTRA), None)
    if EXTRA in titles and alone:
        weights = {titles[EXTRA]: 1, titles[alone]: -1}
        found.append(effects.Effect("second_data", "U-Net with against without a second data set", weights))
    return found


def list_rows(workdirs, titles, paper):
    """Returns one row an arm: parameters, the paper's figure, our pooled DSC and Dice by class, over the runs.

    Args:
        workdirs: {runner.Run: path} of the runs that finished.
        titles: {arm: words}.
        paper: {arm: percent or None}.
    """
    rows = []
    for arm, title in titles.items():
        summaries = [
            files.read_json(path / "summary.json") for run, path in workdirs.items() if run.arm == arm
        ]
        if not summaries:
            continue
        scores = [summary["scores"].get("test") or summary["scores"]["val"] for summary in summaries]
        classes = list(scores[0]["dice"])[1:]  # without the background
        rows.append(
            {
                "arm": arm,
                "system": title,
                "parameters": summaries[0]["parameters"],
                "paper_percent": paper[arm],
                "pooled_dsc_percent": 100 * float(np.mean([each["pooled_dsc"] for each in scores])),
                "dice": {name: _mean(scores, name) for name in classes},
                "dice_cases": {name: sum(each["dice_cases"][name] for each in scores) for name in classes},
                "runs": len(scores),
            }
        )
    return rows


def _mean(scores, name):
    values = [each["dice"][name] for each in scores if each["dice"][name] is not None]
    return float(np.mean(values)) if values else None


def format_rows(rows):
    """Returns the lines of `table2.md`."""
    classes = list(rows[0]["dice"])
    titles = [f"{name.replace('_', ' ')} (cases)" for name in classes]
    yield "# Table 2, the paper's figures beside ours\n"
    yield "The paper's column is what it prints for each system, most of it taken from that system's own publication: other"
    yield "data, other scores. Ours are all of the same test cases. Pooled DSC is the paper's score: over the pixels of"
    yield "all classes with background, so that it stays high where no nodule is found; Dice is the mean over cases.\n"
    yield f"| system | parameters | the paper, % | pooled DSC, % | {' | '.join(titles)} | runs |"
    yield "| --- | --- | --- | --- |" + " --- |" * (len(classes) + 1)
    for row in rows:
        dice = [f"{_three(row['dice'][name])} ({row['dice_cases'][name]})" for name in classes]
        paper = "-" if row["paper_percent"] is None else f"{row['paper_percent']:.2f}"
        yield (
            f"| {row['system']} | {row['parameters']:,} | {paper} | {row['pooled_dsc_percent']:.2f} | "
            f"{' | '.join(dice)} | {row['runs']} |"
        )


def _three(value):
    return "-" if value is None else f"{value:.3f}"


def plan(protocol, only=(), *, width="matched", extra_data=None):
    """Returns the Runs of the study; arguments and errors as `study`."""
    config = runner.create_config(protocol)
    arms, _, _ = create_arms(config, width=width, extra_data=extra_data)
    return runner.plan(config, runner.choose_arms(arms, only), protocol)


def study(
    protocol,
    folder,
    *,
    jobs=1,
    dry_run=False,
    reuse=(),
    only=(),
    names=("dice",),
    width=None,
    extra_data=None,
):
    """Runs the study and writes its tables and page; returns them, None after a dry run.

    Args:
        protocol, folder, jobs, dry_run, reuse, only, names: as `arms_study.ArmsStudy.run`.
        width: one of `WIDTHS`; None: this and `extra_data` are the flags'.
        extra_data: folder of the second data set, or None.

    Raises:
        InputError: as `runner.run_all` and `runner.choose_arms`.
    """
    if width is None:
        width, extra_data = flags.FLAGS.width, flags.FLAGS.extra_data
    config = runner.create_config(protocol)
    arms, titles, paper = create_arms(config, width=width, extra_data=extra_data)
    arms = runner.choose_arms(arms, only)
    titles = {arm: titles[arm] for arm in arms}
    planned = runner.plan(config, arms, protocol)
    workdirs = runner.run_all(folder, planned, jobs=jobs, dry_run=dry_run, reuse=reuse)
    if dry_run:
        return None
    result = effects.write_effects(
        folder, workdirs, config, titles, create_effects(titles), names=names, heading="Table 2"
    )
    rows = list_rows(workdirs, titles, paper)
    origin = made_by.made_by(
        effects.format_command(sys.argv), data=f"{config.data.name}, as in summary.md", seeds=protocol.seeds
    )
    files.write_json(folder / "table2.json", {"made_by": origin, "rows": rows})
    files.write_text(folder / "table2.md", "\n".join(format_rows(rows)) + "\n")
    return {**result, "rows": rows}


if __name__ == "__main__":
    runner.define_flags(out="runs/table2")
    flags.adopt_module_key_flags(runner)
    flags.DEFINE_enum("width", "matched", WIDTHS, "of the networks that the paper's is compared with")
    flags.DEFINE_string("extra_data", None, "folder of NPZ files: adds the U-Net with a second data set")
    command.run(runner.main_of(study))
