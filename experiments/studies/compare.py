"""Compares runs: mean and spread over seeds, paired differences per case, and whether they are supported.

    python -m experiments.studies.compare RUN RUN ... [--out=DIR] [--split=test] [--score=dice]

RUN is the workdir of a run that was evaluated (it has `config.json` and `cases.csv`). Runs whose settings
differ in nothing but seeds and the test fold are one arm. Every pair of arms is compared on the cases that both have, each
case's score averaged over the arm's runs first. It writes one page, `index.html`, and its tables as CSV
into DIR (default: runs/compare).
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.classes import COLOURS
from auxseg.base.errors import check_choice
from auxseg.report import tables
from auxseg.report.document import create_document
from auxseg.report.markup import element, interval, join, number, table
from experiments.studies import comparison
from experiments.studies.comparison import RULES, SCORES


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    for name in given.score:
        check_choice("--score", name, tuple(sorted(SCORES)))
    runs = [pathlib.Path(run) for run in given.runs]
    result = comparison.compare(runs, split=given.split, names=given.score)
    page = write_comparison(pathlib.Path(given.out), result)
    for sentence in result["sentences"]:
        print(sentence)
    print(f"page: {page}")


def write_comparison(folder, result, sections=()):
    """Writes the page and the tables of `compare` into a folder; returns the page's path.

    Args:
        folder: pathlib.Path.
        result: from `compare`.
        sections: (heading, Markup) to show first.
    """
    for name in ("runs", "arms", "differences"):
        files.write_csv(folder / f"{name}.csv", result[name])
    files.write_json(folder / "compare.json", result)
    picture = draw(result)
    if picture:
        files.write_bytes(folder / "compare.png", picture)
    files.write_text(folder / "index.html", create_page(result, picture, sections))
    return folder / "index.html"


def draw(result):
    """Returns the PNG of each run's mean by arm and class, and of the differences with their intervals."""
    from auxseg.report import figures

    names, arms = (
        list(dict.fromkeys(row[key] for row in result[of]))
        for key, of in (("class", "arms"), ("arm", "runs"))
    )
    key = next(key for key, title in SCORES.items() if title == result["arms"][0]["score"])
    rows = [row for row in result["differences"] if row["score"] == SCORES[key] and row["cases"]]
    figure, axes = figures.create_axes((11, max(3.0, 0.32 * len(rows) + 1.6)), columns=2)
    for at, name in enumerate(names):
        for i, arm in enumerate(arms):
            values = [row[f"{name}_{key}"] for row in result["runs"] if row["arm"] == arm]
            place = at + (i - (len(arms) - 1) / 2) * 0.8 / max(len(arms), 1)
            axes[0, 0].plot(
                [place] * len(values), values, figures.MARKERS[name], color=COLOURS[name], alpha=0.7
            )
            axes[0, 0].plot(place, np.mean(values), "_", color=figures.INK, markersize=14)
    axes[0, 0].set_xticks(range(len(names)), [tables.TITLES[name] for name in names])
    figures.label(axes[0, 0], "", SCORES[key], "Mean of each run; arms from left to right as in the table")
    for i, row in enumerate(reversed(rows)):
        axes[0, 1].plot([row["low"], row["high"]], [i, i], color=COLOURS[row["class"]], linewidth=2)
        axes[0, 1].plot(
            row["difference"],
            i,
            "D" if row["supported"] else "o",
            color=COLOURS[row["class"]],
            markerfacecolor=None if row["supported"] else "white",
        )
    labels = [
        f"{arms.index(row['second']) + 1} - {arms.index(row['first']) + 1}, {tables.TITLES[row['class']]}"
        for row in rows
    ]
    axes[0, 1].set_yticks(range(len(rows)), labels[::-1])
    axes[0, 1].axvline(0, color=figures.INK, linewidth=1)
    figures.label(
        axes[0, 1], f"Difference in {SCORES[key]}", "", "Paired differences, 95 %; filled: supported"
    )
    return figures.to_png(figure)


def create_page(result, picture, first=()):
    """Returns the HTML of a comparison, one file that needs no network."""
    title = f"Comparison of {len(result['runs'])} runs, {result['split']} split"
    order = {arm: i for i, arm in enumerate(dict.fromkeys(row["arm"] for row in result["arms"]), start=1)}
    sections = [
        (
            "What is supported",
            element("ul", [_sentence(*pair) for pair in _pair_sentences(result)], class_="findings"),
        ),
        ("Arms", _arms_table(result, order)),
        ("Differences", _differences_table(result, order)),
        ("Runs", _runs_table(result, order)),
        ("Rules", element("ul", [element("li", rule) for rule in RULES])),
    ]
    if picture:
        from auxseg.report import viewer

        image = element("img", src=viewer.to_uri(picture), alt="Means of runs by arm and paired differences")
        sections.insert(1, ("At a glance", element("figure", image)))
    body = [element("section", element("h2", heading), content) for heading, content in (*first, *sections)]
    header = element("header", element("h1", title), class_="top")
    return create_document(title, join(header, element("main", body)))


def _pair_sentences(result):
    flags = [row["supported"] for row in result["differences"]] or [False]
    return zip(result["sentences"], flags, strict=True)


def _sentence(text, supported):
    level = "passed" if supported else "note"
    return element(
        "li",
        element("span", "supported" if supported else "not supported", class_="tag"),
        " ",
        text,
        class_=f"finding {level}",
    )


def _arms_table(result, order):
    body = [
        [
            order[row["arm"]],
            row["arm"],
            tables.TITLES[row["class"]],
            row["score"],
            number(row["mean_over_runs"], 4),
            number(row["sd_over_runs"], 4),
            f"{number(row['lowest'], 4)} to {number(row['highest'], 4)}",
            row["runs"],
            row["cases"],
        ]
        for row in result["arms"]
    ]
    headings = [
        "Arm",
        "Settings that set it apart",
        "Class",
        "Score",
        "Mean over runs",
        "SD over runs",
        "Range",
        "Runs",
        "Cases",
    ]
    return table(headings, body, caption="Mean and standard deviation over runs", class_="wrap")


def _differences_table(result, order):
    body = [
        [
            f"{order[row['second']]} - {order[row['first']]}",
            tables.TITLES[row["class"]],
            row["score"],
            number(row["difference"], 4) + interval(row["low"], row["high"], 4),
            number(row["effect_size_dz"], 2),
            number(row["p"], 4),
            number(row["p_holm"], 4),
            interval(row["between_runs_low"], row["between_runs_high"], 4).strip() or "n/a",
            f"{row['cases']} ({row['patients']} patients)",
            "yes" if row["supported"] else "no",
        ]
        for row in result["differences"]
    ]
    headings = [
        "Arms",
        "Class",
        "Score",
        "Difference, 95 %",
        "Effect size d",
        "p",
        "p, Holm",
        "95 % over runs",
        "Cases",
        "Supported",
    ]
    return table(headings, body, caption="Paired differences")


def _runs_table(result, order):
    columns = [key for key in result["runs"][0] if key not in ("arm", "run") and not key.endswith("_cases")]
    body = [
        [
            row["run"],
            order[row["arm"]],
            *(
                join(number(row[key], 4), element("span", f"n = {row[f'{key}_cases']}", class_="count"))
                for key in columns
            ),
        ]
        for row in result["runs"]
    ]
    return table(["Run", "Arm", *(key.replace("_", " ") for key in columns)], body, caption="Each run")


if __name__ == "__main__":
    flags.DEFINE_list("runs", [], "workdirs of evaluated runs; may be given without --runs=")
    flags.DEFINE_string("out", "runs/compare", "folder for the page and the tables")
    flags.DEFINE_string("split", None, "split to compare on; default: test, else val")
    flags.DEFINE_list("score", ["dice"], f"some of {', '.join(sorted(SCORES))}")
    command.run(main, positional=("runs",))
