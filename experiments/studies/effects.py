"""Effects of a study: contrasts of arms, paired per case, tested by patient, and what they support in words.

An effect is a weighted sum of arms, such as the main effect of squeeze-and-excitation in the factorial of SE
and auxiliary head: (both + SE alone) / 2 - (head alone + neither) / 2. For each case the arms' scores, averaged
over their runs, are summed with the weights; the mean over cases has a bootstrap interval by patient and a
sign-flip test on the patients' means, corrected by Holm over all effects, classes and scores of the study.
Since cases say nothing of other initialisations, an effect counts as supported only if its interval over
seeds (each gives one value, averaged over its folds) leaves out 0 as well. With one seed nothing is supported: the
runs of a seed start from the same weights on every fold, and a start that fails does so on all of them.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

from auxseg.base import files
from auxseg.report import tables
from auxseg.report.markup import element, interval, number, table
from auxseg.scoring import statistics
from experiments.studies import comparison, runner
from experiments.studies.comparison import (
    SCORES,
    arm_cases,
    by_seed,
    correct,
    means_by_draw,
    patients,
    read_arms,
    student,
)

PAPER_SIZE, PAPER_WIDTH = (320, 320), 64
NOT_FOUND = 0.05
"""Nodules with a mean Dice below it in every arm are said not to be found."""


@dataclasses.dataclass(frozen=True)
class Effect:
    """A contrast.

    Attributes:
        key: short name.
        title: what it is, in words.
        weights: {arm's name: weight}; they sum to 0.
    """

    key: str
    title: str
    weights: dict


def measure(arms, effects, names=("dice",)):
    """Returns one row for each effect, score and class; an effect whose arms are not all there is left out.

    Args:
        arms: list of compare.Arm.
        effects: list of Effect.
        names: scores, of `comparison.SCORES`.
    """
    named = {arm.name: arm for arm in arms}
    rows = [
        _row(effect, named, key, name)
        for effect in effects
        if effect.weights.keys() <= named.keys()
        for key in names
        for name in comparison.scored_classes(arms)
    ]
    return correct(rows, judge)


def judge(row, p_holm, family):
    """Returns {'supported', 'why'} as `comparison.judge`, and False for one initialisation."""
    found = comparison.judge(row, p_holm, family)
    if found["supported"] and row["seeds"] < 2:
        why = f"corrected p = {p_holm:.2g} over cases, but of one initialisation, which may be the cause"
        return {"supported": False, "why": why}
    return found


def _row(effect, named, key, name):
    weights = {arm: weight for arm, weight in effect.weights.items() if weight}
    values = combine({arm: arm_cases(named[arm], key, name) for arm in weights}, weights)
    owners = patients(named[next(iter(weights))])
    cases = sorted(values)
    test = statistics.paired_test(
        np.zeros(len(cases)), [values[case] for case in cases], [owners[case] for case in cases]
    )
    draws = combine({arm: means_by_draw(named[arm], key, name) for arm in weights}, weights)
    seeds = by_seed(draws)
    low, high = student(seeds)
    return {
        "effect": effect.key,
        "title": effect.title,
        "class": name,
        "score": SCORES[key],
        "difference": test.difference.estimate,
        "low": test.difference.low,
        "high": test.difference.high,
        "effect_size_dz": test.effect_size,
        "p": test.p_value,
        "cases": len(cases),
        "patients": test.difference.num_patients,
        "runs_first": len(draws),
        "runs_second": len(draws),
        "seeds": len(seeds),
        "between_runs_low": low,
        "between_runs_high": high,
    }


def combine(values, weights):
    """Returns {key: weighted sum} over the keys that all arms have, of {arm: {key: value}}."""
    common = set.intersection(*(set(each) for each in values.values()))
    return {key: sum(weights[arm] * values[arm][key] for arm in values) for key in common}


def describe(row):
    """Returns an effect as one sentence with its interval and whether it is supported."""
    name = f"{tables.TITLES[row['class']]} {row['score']}"
    if not row["cases"]:
        return f"{row['title']}, {name}: the arms have no case in common; nothing is supported."
    verdict = "Supported" if row["supported"] else "Not supported"
    return (
        f"{row['title']}, {name}: {row['difference']:+.4f}{interval(row['low'], row['high'], 4)} over {row['cases']} "
        f"cases of {row['patients']} patients, {row['runs_first']} runs an arm. {verdict}: {row['why']}."
    )


def conclude(rows, arms, config):
    """Returns sentences on what the effects support: generated from the numbers, and no more than they show.

    Args:
        rows: from `measure`.
        arms: list of compare.Arm.
        config: settings that the runs share.
    """
    return [
        *_conclude_supported(rows),
        *_conclude_bounds(rows),
        *_conclude_nodules(arms),
        *_conclude_limits(config, arms),
    ]


def _conclude_supported(rows):
    supported = [row for row in rows if row["supported"]]
    if not supported:
        return [
            f"Of {len(rows)} effects (each on each class) none is supported by these runs: they give no reason to "
            "say that any of the parts helps or harms."
        ]
    listed = "; ".join(
        f"{row['title']} on {tables.TITLES[row['class']]} {row['score']} ({row['difference']:+.4f})"
        for row in supported
    )
    return [f"Of {len(rows)} effects (each on each class) these runs support {len(supported)}: {listed}."]


def _conclude_bounds(rows):
    """Says how large the effects that are not supported could be, by the wider of their two intervals."""
    if rows and max(row["seeds"] for row in rows) < 2:
        return [
            "All runs of an arm start from one initialisation: the intervals over cases say nothing of what another "
            "start would give."
        ]
    found = []
    for row in rows:
        ends = [row["low"], row["high"], row["between_runs_low"], row["between_runs_high"]]
        if not row["supported"] and row["cases"] and not np.isnan(ends[:2]).any():
            low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
            if low == high:  # the same in all arms, as a structure that none of them finds
                continue
            name = f"{tables.TITLES[row['class']]} {row['score']}"
            found.append(f"{row['title']} on {name} between {low:+.4f} and {high:+.4f}")
    listed = "; ".join(found)
    return [f"What these runs leave open (the wider of both 95 % intervals): {listed}."] if found else []


def _conclude_nodules(arms):
    means = [
        float(np.mean(list(cases.values()))) for arm in arms if (cases := arm_cases(arm, "dice", "nodule"))
    ]
    if not means:
        return ["No test case has a nodule: nothing is said about nodules."]
    if max(means) < NOT_FOUND:
        return [
            f"No arm finds nodules (mean Dice {max(means):.3f} at most): nothing is said about nodules, and a "
            "high pooled score would not show it."
        ]
    return []


def _conclude_limits(config, arms):
    limits = []
    if config.model.base_width != PAPER_WIDTH or tuple(config.data.size) != PAPER_SIZE:
        rows, columns = config.data.size
        limits.append(
            f"the networks have base width {config.model.base_width} and see {rows} x {columns} pixels, the paper's "
            f"{PAPER_WIDTH} and {PAPER_SIZE[0]} x {PAPER_SIZE[1]}"
        )
    if config.data.name == "phantom":
        limits.append("the images are drawn, not CT")
    seeds = min(len({run.draw[comparison.SEEDS.index("seed")] for run in arm.runs}) for arm in arms)
    if seeds < 5:
        limits.append(f"initialisations of an arm: {seeds}, and fewer than five say little about others")
    return [f"Limits: {'; '.join(limits)}."] if limits else []


def create_section(rows, sentences):
    """Returns (heading, Markup) of the effects, for the study's page."""
    body = [
        [
            row["title"],
            tables.TITLES[row["class"]],
            row["score"],
            number(row["difference"], 4) + interval(row["low"], row["high"], 4),
            interval(row["between_runs_low"], row["between_runs_high"], 4).strip() or "n/a",
            number(row["effect_size_dz"], 2),
            number(row["p"], 4),
            number(row["p_holm"], 4),
            f"{row['cases']} ({row['patients']} patients)",
            row["runs_first"],
            "yes" if row["supported"] else "no",
        ]
        for row in rows
    ]
    headings = [
        "Effect", "Class", "Score", "Mean over cases, 95 %", "95 % over seeds", "Effect size d", "p", "p, Holm",
        "Cases", "Runs an arm", "Supported",
    ]  # fmt: skip
    return "Effects", element(
        "div",
        element("ul", [element("li", sentence) for sentence in sentences]),
        table(headings, body, caption="Effects, paired per case", class_="wrap"),
    )


def format_table(rows):
    """Returns the lines of a Markdown table of the effects."""
    lines = [
        "| effect | class | difference, 95 % over cases | 95 % over seeds | p (Holm) | cases | seeds | supported |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            row["title"],
            f"{tables.TITLES[row['class']]} {row['score']}",
            f"{row['difference']:+.4f}{interval(row['low'], row['high'], 4)}",
            interval(row["between_runs_low"], row["between_runs_high"], 4).strip() or "n/a",
            number(row["p_holm"], 3),
            f"{row['cases']} of {row['patients']} patients",
            str(row["seeds"]),
            "yes" if row["supported"] else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_effects(folder, workdirs, config, titles, contrasts, *, heading, names=("dice",)):
    """Writes a study's page, `effects.csv`, `effects.json`, `cases.csv` and `summary.md` into its folder.

    Args:
        folder: pathlib.Path of the study.
        workdirs: {runner.Run: path} of the runs that finished.
        config: settings that all runs share.
        titles: {arm: words}; every arm is compared with the first.
        contrasts: list of Effect, by the arms' words.
        heading: of the summary.
        names: scores, of `comparison.SCORES`.

    Returns:
        {'effects': rows, 'sentences': list of str, 'comparison': as `comparison.compare`}.
    """
    arms, _ = read_arms(list(workdirs.values()), arms=runner.name_arms(workdirs, titles))
    rows = measure(arms, contrasts, names)
    sentences = conclude(rows, arms, config)
    compared = runner.finish(
        folder,
        workdirs,
        titles=titles,
        pairs=[(next(iter(titles)), arm) for arm in list(titles)[1:]],
        names=names,
        sections=[create_section(rows, sentences)],
    )
    result = {"effects": rows, "sentences": sentences, "comparison": compared}
    files.write_csv(folder / "effects.csv", rows)
    files.write_json(folder / "effects.json", {"effects": rows, "sentences": sentences})
    lines = [
        f"# {heading}",
        "",
        *describe_protocol(workdirs, config),
        "",
        *format_arms(compared["arms"]),
        "",
    ]
    lines += ["## Effects", "", *format_table(rows), "", "## What they support", ""]
    lines += [f"* {sentence}" for sentence in sentences]
    files.write_text(folder / "summary.md", "\n".join(lines) + "\n")
    print("\n".join(sentences), flush=True)
    return result


def describe_protocol(workdirs, config):
    """Returns lines that say what was run: data, network, runs and the command."""
    found = [run.config for run in workdirs]
    seeds = sorted({each.seed for each in found})
    folds = sorted({each.data.fold for each in found})
    rows, columns = config.data.size
    slices = "as they lie there" if config.data.name in ("npz", "crops") else config.data.slices
    return [
        f"Command: `{format_command(sys.argv)}`",
        "",
        f"Data {config.data.name} (slices: {slices}), "
        f"{rows} x {columns} pixels; base width {config.model.base_width}, batches of {config.train.batch_size}, at most "
        f"{config.train.num_epochs} epochs; {len(found)} runs: seeds {', '.join(map(str, seeds))} on the test folds "
        f"{', '.join(map(str, folds))} ({config.data.split}). Weights of the epoch with the lowest validation loss.",
    ]


def format_command(arguments):
    """Returns the command that was given, without the folders of one machine."""
    module = sys.modules["__main__"].__spec__
    shown = [f"python -m {module.name}" if module else arguments[0].rsplit("/", 1)[-1]]
    for argument in arguments[1:]:
        name = argument.split("=")[0].lstrip("-")
        if name in ("data_dir", "extra_data", "config.data.extra_dir"):
            shown.append(f"--{name}=FOLDER")
        elif name not in ("out", "jobs", "reuse"):
            shown.append(argument)
    return " ".join(shown)


def format_arms(rows):
    """Returns the lines of a Markdown table of the arms: mean and standard deviation over the runs' means."""
    classes = list(dict.fromkeys((row["class"], row["score"]) for row in rows))
    lines = [
        f"| arm | {' | '.join(f'{tables.TITLES[name]} {score}' for name, score in classes)} | runs |",
        f"| --- |{' --- |' * (len(classes) + 1)}",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of_arm = {(row["class"], row["score"]): row for row in rows if row["arm"] == arm}
        cells = [_format_mean(of_arm[each]) for each in classes]
        lines.append(f"| {arm} | {' | '.join(cells)} | {max(row['runs'] for row in of_arm.values())} |")
    return lines


def _format_mean(row):
    spread = "" if np.isnan(row["sd_over_runs"]) else f" +- {row['sd_over_runs']:.4f}"
    return f"{number(row['mean_over_runs'], 4)}{spread} ({row['cases']} cases)"
