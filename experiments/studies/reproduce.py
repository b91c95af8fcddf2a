"""Everything in the paper that is a table or a figure, from a folder of data, unattended.

    python -m experiments.studies.reproduce --all --data=luna16 --data_dir=LUNA16 [--seeds=1,2,3,4,5]
    python -m experiments.studies.reproduce --all --data=luna16 --data_dir=LUNA16 --dry_run
    python -m experiments.studies.reproduce --all --data=phantom --quick
    python -m experiments.studies.reproduce --steps=seeds,ablations --data=npz --data_dir=FOLDER

It says first how long it takes, and goes on where it stopped when it is started again. Runs that two studies
share are run once. What it makes lies in --out (default: runs/reproduce): a folder for each step, and
`index.html` and `results.json`, one row for each table and figure with the paper's value beside ours. A step
that cannot be done with these data (NPZ files say nothing of the airway) is named and left out.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError, check_choice
from auxseg.report import paper, tables
from auxseg.report.document import create_document
from auxseg.report.markup import element, join, number, table
from configs import base
from experiments.checks import complexity
from experiments.studies import ablations, comparators, losses, paper_labels, runner, table2

PAPER_SEEDS = (1, 2, 3)
"""The paper's runs; seed, split and order are of the same number."""
READINGS = {"anatomy": {}, "airway": {"data.labels": "airway_as_nodule"}}
"""Class 3 as annotations have it, and as the paper has it."""
NUM_PANELS = 6


@dataclasses.dataclass(frozen=True)
class Step:
    """A part of the work.

    Attributes:
        what: of the paper, in words.
        plan: (protocol, only) -> list of runner.Run.
        study: (protocol, folder, jobs=, reuse=, only=).
        quick: names of the arms of a quick run, () for all.
        needs_airway: whether the data must have LUNA16's value 5.
    """

    what: str
    plan: Callable
    study: Callable
    quick: tuple[str, ...] = ()
    needs_airway: bool = False


def plan_seeds(protocol, only=()):
    """Returns the paper's runs, each with a report: with LUNA16 on its 90/10 split, else (phantom, NPZ) 70/10/20.

    Args:
        protocol: runner.Protocol.
        only: of `READINGS`, () for all that the data allow.
    """
    config = runner.create_config(protocol)
    split = "paper" if protocol.data == "luna16" else "train_val_test"
    readings = {
        name: READINGS[name] for name in only or READINGS if name == "anatomy" or protocol.data != "npz"
    }
    return [
        runner.Run(
            f"{name}-seed{seed}",
            name,
            runner.override(
                config,
                {
                    "seed": seed,
                    "train.order_seed": seed,
                    "data.split_seed": seed,
                    "data.split": split,
                    "eval.num_panels": NUM_PANELS,
                    **changes,
                },
            ),
        )
        for seed in (PAPER_SEEDS[:1] if protocol.quick else PAPER_SEEDS)
        for name, changes in readings.items()
    ]


def run_seeds(protocol, folder, *, jobs=1, reuse=(), only=()):
    """Trains the runs of `plan_seeds`: Figs 5 to 14 and Table 3; returns {Run: workdir}."""
    del reuse  # each is to have its own report
    return runner.run_all(folder, plan_seeds(protocol, only), jobs=jobs)


def plan_table2(protocol, only=()):
    """Returns the runs of Table 2: as many parameters as the paper's network; a quick run: published widths."""
    return table2.plan(protocol, only, width=_table2_width(protocol))


def run_table2(protocol, folder, *, jobs=1, reuse=(), only=()):
    """Runs the study of Table 2; see `plan_table2`."""
    width = _table2_width(protocol)
    return table2.study(protocol, folder, jobs=jobs, reuse=reuse, only=only, width=width)


def _table2_width(protocol):
    return "published" if protocol.quick else "matched"


def run_complexity(protocol, folder, *, jobs=1, reuse=(), only=()):
    """Counts parameters and multiply-accumulates, and SE against attention: section 3.1; returns the page's path.

    A quick run counts the networks of `only` at its own size.
    """
    del jobs, reuse
    systems = {name: comparators.SYSTEMS[name] for name in only or comparators.SYSTEMS}
    config = runner.create_config(protocol) if protocol.quick else base.get_config()
    size = config.data.size[0]
    rows = complexity.describe_all(config, systems, size=size)
    return complexity.write_complexity(
        folder, rows, complexity.compare_attention(complexity.SE_SHAPE), size=size
    )


STEPS = {
    "complexity": Step(
        "section 3.1: parameters, and SE against attention", lambda *_: [], run_complexity, ("plain",)
    ),
    "seeds": Step(
        "section 4, Figs 5 to 14, Table 3: the paper's three runs", plan_seeds, run_seeds, ("anatomy",)
    ),
    "paper_labels": Step(
        "Fig 12: value 5 as nodules, against nodules", paper_labels.plan, paper_labels.study, (), True
    ),
    "ablations": Step(
        "what SE and the auxiliary head do", ablations.STUDY.plan, ablations.STUDY.run, ("se_aux", "placebo")
    ),
    "losses": Step(
        "section 4: the losses that were tried",
        losses.STUDY.plan,
        losses.STUDY.run,
        ("dice_ce_weighted", "iou"),
    ),
    "table2": Step(
        "Table 2: the systems that the paper compares with",
        plan_table2,
        run_table2,
        ("aux_unet", "unet_published"),
    ),
}


def choose_steps(names, protocol):
    """Returns ({name: Step} to do, {name: why it is left out}); all for ().

    Raises:
        InputError: a step that there is not.
    """
    for name in names:
        check_choice("--steps", name, tuple(STEPS))
    chosen = {name: step for name, step in STEPS.items() if name in names or not names}
    left_out = {
        name: "NPZ files with classes 0 to 3 say nothing of the airway"
        for name, step in chosen.items()
        if step.needs_airway and protocol.data == "npz"
    }
    return {name: step for name, step in chosen.items() if name not in left_out}, left_out


def reproduce(protocol, folder, *, names=(), jobs=1, dry_run=False):
    """Does the steps, and writes `results.json` and `index.html`; returns the page's path, None after a dry run.

    Args:
        protocol: runner.Protocol.
        folder: pathlib.Path.
        names: of `STEPS`, () for all.
        jobs: runs at once.
        dry_run: only say what would be run and how long it takes.

    Raises:
        InputError: settings or data that cannot be used.
        auxseg.training.interruption.Interrupted: on SIGTERM, after the run at hand was saved.
    """
    if protocol.data == "crops":
        raise InputError("--data: got crops, which have no lungs; the paper's figures are of whole slices")
    steps, left_out = choose_steps(names, protocol)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}", flush=True)
    announce(protocol, folder, steps, jobs)
    if dry_run:
        return None
    done = []
    for name, step in steps.items():
        print(f"== {name}: {step.what}", flush=True)
        step.study(protocol, folder / name, jobs=jobs, reuse=tuple(done), only=_only(step, protocol))
        done.append(folder / name)
    items = collect(folder, steps)
    files.write_json(folder / "results.json", items)
    files.write_text(folder / "index.html", create_page(items, left_out))
    print(f"page: {folder / 'index.html'}", flush=True)
    return folder / "index.html"


def _only(step, protocol):
    return step.quick if protocol.quick else ()


def announce(protocol, folder, steps, jobs):
    """Prints the runs of each step that are left, and the time of all at most."""
    left = []
    for name, step in steps.items():
        planned = step.plan(protocol, _only(step, protocol))
        folders = [folder / other for other in steps if other != name]
        of_step = runner.find_left(folder / name, planned, folders)
        print(f"{name}: {step.what}: {len(planned)} runs, {len(of_step)} left", flush=True)
        left += of_step
    distinct = runner.drop_repeated(left)
    if distinct:
        total = runner.estimate_total(distinct, jobs)
        print(
            f"{len(distinct)} different runs are left: at most about {runner.format_seconds(total)}, measured on a "
            "few steps of each network",
            flush=True,
        )


def collect(folder, steps):
    """Returns one item for each table and figure that the steps made: JSON types.

    An item has 'paper' (which), 'printed' (the paper's value), 'ours' and 'file' (beside the page).
    """
    items = []
    if "seeds" in steps:
        items += _collect_seeds(folder)
    if "complexity" in steps:
        items.append(_collect_complexity(folder))
    for name in steps:
        summary = folder / name / "summary.md"
        if summary.is_file():
            effects = folder / name / "effects.json"
            sentences = files.read_json(effects)["sentences"] if effects.is_file() else _labels(folder / name)
            items.append(_item(steps[name].what, "", " ".join(sentences), summary, folder))
    if "table2" in steps:
        items += _collect_table2(folder)
    return items


def _collect_table2(folder):
    path = folder / "table2" / "table2.json"
    return [
        _item(
            f"Table 2 ({row['system']})",
            "" if row["paper_percent"] is None else f"{row['paper_percent']:.2f} %",
            f"pooled DSC {row['pooled_dsc_percent']:.2f} %, nodule Dice {number(row['dice'].get('nodule'), 3)}",
            path.with_suffix(".md"),
            folder,
        )
        for row in files.read_json(path)["rows"]
    ]


def _collect_complexity(folder):
    found = files.read_json(folder / "complexity" / "complexity.json")
    first = found["networks"][0]
    se, attention = (row["formula"] for row in found["attention"][:2])
    ours = (
        f"{first['title']}: {first['trainable']:,} and {first['statistics']:,} parameters; SE {se:,}, attention "
        f"{attention:,}, ratio {attention / se:.0f}, at {' x '.join(map(str, found['attention_shape']))}"
    )
    printed = (
        "6,565,441 and 11,776 parameters; SE 6,555,648, attention 1,684,275,200, ratio 257, at 320 x 320 x 64"
    )
    what = STEPS["complexity"].what
    return _item(what, printed, ours, folder / "complexity" / "complexity.md", folder)


def _labels(folder):
    return paper_labels.describe(files.read_json(folder / "labels.json"))


def _item(what, printed, ours, file, folder):
    return {"paper": what, "printed": printed, "ours": ours, "file": os.path.relpath(file, folder)}


def _collect_seeds(folder):
    """Returns the items of the paper's runs, by reading of class 3."""
    items = []
    workdirs = sorted((folder / "seeds" / "runs").glob("*"))
    for workdir in filter(runner.is_finished, workdirs):
        name = workdir.name.replace("-", ", ")
        report = workdir / "report"
        summary = files.read_json(workdir / "summary.json")
        split = "test" if "test" in summary["scores"] else "val"
        found = summary["scores"][split]
        dice = ", ".join(
            f"{tables.TITLES[key].lower()} {number(value, 3)}"
            for key, value in found["dice"].items()
            if key != "background"
        )
        ours = f"pooled DSC {found['pooled_dsc']:.4f} of {found['cases']} {split} cases; mean Dice {dice}"
        items.append(
            _item(
                f"section 4, Table 2 ({name})",
                _printed_dsc(workdir.name),
                ours,
                report / "index.html",
                folder,
            )
        )
        items += _collect_figures(name, report, folder)
        rates = files.read_csv(report / "tables" / "learning_rate.csv")
        items.append(
            _item(
                f"Table 3 ({name})",
                _printed_rates(workdir.name),
                _rates(rates),
                report / "tables" / "learning_rate.csv",
                folder,
            )
        )
    return items


def _printed_dsc(name):
    printed = {row["study"]: row["dsc_percent"] for row in paper.TABLE_2}
    value = printed.get(f"The paper, seed {name[-1]}")
    return "" if value is None else f"pooled DSC {value / 100:.4f}"


def _printed_rates(name):
    return ", ".join(
        f"{epochs}: {rate:g}" for run, epochs, rate, _ in paper.TABLE_3 if run == f"seed {name[-1]}"
    )


def _rates(rows):
    return ", ".join(f"{row['epochs']}: {row['learning_rate']:g}" for row in rows)


def _collect_figures(name, report, folder):
    agreement = {}
    path = report / "tables" / "agreement.csv"
    if path.is_file():
        agreement = {row["class"]: row for row in files.read_csv(path) if row["unit"] == "px"}
    wanted = [
        ("Figs 5, 7, 9", "curves", "", "loss, accuracy and Dice by epoch"),
        ("Figs 6, 8, 10", "panels", "", "input, truth, prediction, overlay"),
        ("Fig 11", "lung_nodule", f"R = {paper.FIG_11_R}", "lung against nodule Dice"),
    ]
    for figure, key in (("Fig 12", "nodule"), ("Fig 13", "right_lung"), ("Fig 14", "left_lung")):
        bias, low, high = paper.BLAND_ALTMAN_PX[key]
        ours = "no case has the class"
        if key in agreement:
            row = agreement[key]
            ours = (
                f"bias {number(row['bias'], 2)} px, limits [{number(row['lower_limit'], 2)}, "
                f"{number(row['upper_limit'], 2)}], {row['cases']:.0f} cases"
            )
        wanted.append((figure, f"bland_altman_{key}", f"bias {bias} px, limits [{low}, {high}]", ours))
    return [
        _item(f"{figure} ({name})", printed, ours, report / "figures" / f"{file}.png", folder)
        for figure, file, printed, ours in wanted
        if (report / "figures" / f"{file}.png").is_file()
    ]


def create_page(items, left_out):
    """Returns the HTML of the overview, one file that links to what lies beside it."""
    title = "The paper's tables and figures, made again"
    body = [
        [each["paper"], each["printed"], each["ours"], element("a", each["file"], href=each["file"])]
        for each in items
    ]
    missing = [element("li", f"{name}: {why}") for name, why in left_out.items()]
    main = element(
        "main",
        element("section", table(["The paper", "Printed", "Ours", "File"], body, class_="wrap")),
        element("section", element("h2", "Left out"), element("ul", missing)) if missing else None,
    )
    header = element("header", element("h1", title), class_="top")
    return create_document(title, join(header, main))


def main():
    """Does what the flags ask for; returns the exit status."""
    given = flags.FLAGS
    if given.all == bool(given.steps):
        raise InputError(f"give --all, or --steps=NAME,... of {', '.join(STEPS)}")
    reproduce(
        runner.read_protocol(),
        pathlib.Path(given.out),
        names=tuple(given.steps),
        jobs=given.jobs,
        dry_run=given.dry_run,
    )
    return 0


if __name__ == "__main__":
    runner.define_flags(out="runs/reproduce")
    flags.adopt_module_key_flags(runner)
    flags.DEFINE_bool("all", False, "every table and figure")
    flags.DEFINE_list("steps", [], f"of {', '.join(STEPS)}")
    command.run(runner.guard(main))
