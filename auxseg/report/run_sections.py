"""Sections of the page about the run: what drives the network, training, the paper beside it, settings, model card, files."""

from __future__ import annotations

import json

from auxseg.report import all_tables, model_card, paper, tables
from auxseg.report.figure_parts import show_figures
from auxseg.report.markup import element, join, number, table
from auxseg.runs import run_folder


def explanations_section(report, pictures):
    """Returns the section on what drives the network, by case and class."""
    if not report.explanations:
        return None
    words = (
        "Grad-CAM weighs the channels of a layer by the gradient of the class's logit and shows where "
        "they are active: what the decision rests on, coarsely. It is no proof of what the network looks "
        "at."
    )
    names = [f"explanation_{number}" for number in range(1, len(report.explanations) + 1)]
    return join(element("p", words), [show_figures(pictures, name) for name in names])


def training_section(report, pictures):
    """Returns the section on the curves of training, and learning rate and memory by epoch."""
    rates = all_tables.group_rates(report.run.epochs)
    if not rates:
        return None
    body = [
        [
            "this run",
            row["epochs"],
            f"{row['learning_rate']:g}",
            number(row["memory_gb"], 2),
            number(row["seconds_per_epoch"], 1),
        ]
        for row in rates
    ]
    papers = paper.TABLE_3 if paper.is_papers(report.run.config) else ()
    body += [
        [f"the paper, {run}", epochs, f"{rate:g}", number(memory, 1), ""]
        for run, epochs, rate, memory in papers
    ]
    of = report.run.epochs[-1].get("memory_of", "process")
    headings = [
        "Run",
        "Epochs",
        "Learning rate",
        f"Peak memory, GB (this run: of the {of})",
        "Seconds an epoch",
    ]
    return join(
        show_figures(pictures, "curves"),
        show_figures(pictures, "schedule"),
        table(
            headings,
            body,
            caption=f"Learning rate and memory by epoch{' (Table 3 of the paper)' if papers else ''}",
        ),
    )


def paper_section(report, named):
    """Returns the section on the paper's Table 2 beside this run, or None for other data than the paper's."""
    if not paper.is_papers(report.run.config):
        return None
    pooled = named["pooled"]
    dice = [tables.find_score(named["scores"], name, "Dice") for name in report.evaluation.foreground]
    headings = [
        "Study",
        "Data",
        "DSC as they report it, %",
        "Dice by case: left lung",
        "right lung",
        "nodule",
    ]
    body = [
        [
            row["study"],
            row["data"],
            number(row["dsc_percent"], 2),
            "not reported",
            "not reported",
            "not reported",
        ]
        for row in paper.TABLE_2
    ]
    data = report.run.summary.get("dataset") or report.run.config.get("data", {}).get("name", "")
    ours = [
        f"This run ({report.split})",
        data,
        f"{100 * pooled[0]['value']:.2f} (pooled DSC, paper's)",
        *(f"{number(row['mean'])} (n = {row['cases']})" for row in dice),
    ]
    return join(
        table(headings, [*body, ours], caption="The paper's Table 2 and this run", class_="wrap"),
        element("p", paper.WHY_NOT_COMPARABLE),
    )


def run_section(report):
    """Returns the section on what was run: facts, versions, settings, cases by split."""
    run = report.run
    sizes = {f"{name} split": f"{len(cases)} cases" for name, cases in run.splits.items()}
    seeds = {key: value for key, value in run_folder.flatten(run.config).items() if "seed" in key}
    known = report.facts | sizes | {f"seed: {key}": str(value) for key, value in seeds.items()}
    versions = run_folder.flatten(run.versions)
    return join(
        table(
            ["What", "Value"],
            [[key, value] for key, value in known.items()],
            caption="This run",
            class_="wrap",
        ),
        element(
            "details",
            element("summary", "Versions and hardware"),
            table(["What", "Value"], [[key, _text(value)] for key, value in versions.items()], class_="wrap"),
        ),
        element(
            "details",
            element("summary", "Settings"),
            table(
                ["Setting", "Value"],
                [[key, _text(value)] for key, value in run_folder.flatten(run.config).items()],
                class_="wrap",
            ),
        ),
        element(
            "details",
            element("summary", "Cases by split"),
            [
                element("p", element("strong", f"{name} ({len(cases)}): "), ", ".join(cases))
                for name, cases in run.splits.items()
            ],
        ),
        [element("p", f"Note: {note}") for note in run.summary.get("notes", ())],
    )


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


def card_section(report, named):
    """Returns the section on the model card."""
    card = model_card.create_card(
        report.run,
        score_table=named["scores"],
        objects=named["nodules"],
        split=report.split,
    )
    return join(
        [
            [element("h3", heading), element("ul", [element("li", line) for line in lines])]
            for heading, lines in card
        ]
    )


def files_section(pictures, named):
    """Returns the section on the files beside the page."""
    csvs = [
        element("li", element("code", f"tables/{name}.csv"), f" ({len(rows)} rows)")
        for name, rows in named.items()
    ]
    pngs = [element("li", element("code", f"figures/{name}.png")) for name in pictures]
    return join(
        element("p", "Beside this page:"),
        element("ul", csvs, pngs, element("li", element("code", "scores.json"))),
    )
