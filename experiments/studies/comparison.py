"""Arms of runs, compared case by case: paired tests over patients, intervals over runs, and what both support.

Runs that differ in seeds and the test fold alone are one arm. `compare` gives tables and sentences; the command
`experiments.studies.compare` writes them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
from scipy import stats

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.report import tables
from auxseg.report.markup import interval
from auxseg.runs import run_folder
from auxseg.scoring import statistics
from auxseg.scoring.case_scores import FOREGROUND
from configs import base

SEEDS = ("seed", "data.split_seed", "train.order_seed", "augment.seed", "data.fold")
"""Settings that make another run of the same arm: its draws of initialisation, order and patients."""
SCORES = {
    "dice": "Dice",
    "iou": "IoU",
    "sensitivity": "Sensitivity",
    "precision": "Precision",
    "hd95_mm": "HD95 mm",
    "assd_mm": "ASSD mm",
    "surface_dice_1mm": "Surface Dice at 1 mm",
    "surface_dice_2mm": "Surface Dice at 2 mm",
}
ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class RunScores:
    """One run as it is compared.

    Attributes:
        name: of its workdir.
        settings: flat, without seeds and without what changes no result.
        cases: {case_id: row of `cases.csv`} of the split.
        draw: values of `SEEDS`.
    """

    name: str
    settings: dict
    cases: dict
    draw: tuple = ()

    @property
    def fold(self):
        """The test fold, None where the run has none."""
        return dict(zip(SEEDS, self.draw, strict=False)).get("data.fold")


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but seeds and the test fold.

    Attributes:
        name: the settings that set it apart from the other arms, or the run's name.
        runs: its runs.
    """

    name: str
    runs: tuple[RunScores, ...]


def compare(workdirs, *, split=None, names=("dice",), arms=None, pairs=None):
    """Returns the tables and sentences of a comparison: split, runs, arms, differences, sentences.

    Args:
        workdirs: pathlib.Path of each run, at least two.
        split: 'test', 'val' or None: test where all runs have it, else val.
        names: of `SCORES`.
        arms: {workdir: name of its arm}; None: by the settings that differ.
        pairs: (name of the first arm, of the second) to compare, one family for Holm; None: all pairs. A pair
            with an arm that has no run is left out.

    Raises:
        InputError: fewer than two runs, the same run twice, a run without scores, no case of the split, runs
            of other settings under one name.
    """
    arms, split = read_arms(workdirs, split=split, arms=arms)
    differences = _compare_arms(_choose_pairs(arms, pairs), names)
    return {
        "split": split,
        "runs": [_run_row(arm, run, names) for arm in arms for run in arm.runs],
        "arms": [_arm_row(arm, key, name) for arm in arms for key in names for name in scored_classes(arms)],
        "differences": differences,
        "sentences": _sentences(arms, differences),
    }


def read_arms(workdirs, *, split=None, arms=None):
    """Returns (list of Arm, split) of runs; arguments and errors are those of `compare`."""
    if len({path.resolve() for path in workdirs}) < max(2, len(workdirs)):
        raise InputError(f"compare: got {len(workdirs)} runs, expected at least two different ones")
    raw = [(path, read_scores(path)) for path in workdirs]
    split = split or _common_split(raw)
    runs = [_select(path, settings, rows, split) for path, (settings, rows) in raw]
    if arms is None:
        return group_arms(runs), split
    return _named_arms(runs, [arms[path] for path in workdirs]), split


def read_scores(path):
    """Returns (flat settings, rows of cases.csv) of a workdir.

    Raises:
        InputError: it has no `config.json` or no `cases.csv`.
    """
    for name in ("config.json", "cases.csv"):
        if not (path / name).is_file():
            raise InputError(
                f"{path / name}: no such file; give the workdir of a run that has ended, or evaluate it: "
                f"python -m auxseg.evaluate --workdir={path}"
            )
    return run_folder.flatten(files.read_object(path / "config.json")), files.read_csv(path / "cases.csv")


def _common_split(raw):
    there = [{row.get("split", "test") for row in rows} for _, (_, rows) in raw]
    return "test" if all("test" in each for each in there) else "val"


def _select(path, settings, rows, split):
    kept = {row["case_id"]: row for row in rows if row.get("split", "test") == split}
    if not kept:
        raise InputError(
            f"{path / 'cases.csv'}: got no case of the split {split!r}; choose another with --split"
        )
    # A setting that came after a run is at its default there, which changes nothing.
    full = run_folder.flatten(run_folder.config_to_dict(base.get_config())) | settings
    fixed = {key: value for key, value in full.items() if key not in SEEDS + run_folder.FREE_SETTINGS}
    draw = tuple(full.get(key) for key in SEEDS)
    return RunScores(path.resolve().name, fixed, kept, draw)


def group_arms(runs):
    """Returns the Arms of runs, in the order of their first run, named by the settings that differ."""
    groups = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    if len(groups) == 1:
        return [Arm(runs[0].name if len(runs) == 1 else "all runs", tuple(runs))]
    keys = sorted({key for group in groups.values() for key in group[0].settings})
    values = {key: [json.dumps(group[0].settings.get(key)) for group in groups.values()] for key in keys}
    differing = [key for key in keys if len(set(values[key])) > 1]
    return [
        Arm(", ".join(f"{key}={values[key][at]}" for key in differing), tuple(group))
        for at, group in enumerate(groups.values())
    ]


def _named_arms(runs, names):
    """Returns the Arms of runs by the name of each."""
    groups = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault(name, []).append(run)
    for name, members in groups.items():
        other = next((run for run in members if run.settings != members[0].settings), None)
        if other is not None:
            keys = members[0].settings.keys() | other.settings.keys()
            differing = [k for k in sorted(keys) if members[0].settings.get(k) != other.settings.get(k)]
            raise InputError(
                f"arm {name!r}: runs {members[0].name} and {other.name} differ in {', '.join(differing)}, expected "
                "to differ in seeds and fold alone"
            )
    return [Arm(name, tuple(members)) for name, members in groups.items()]


def _choose_pairs(arms, pairs):
    """Returns the (Arm, Arm) to compare; `pairs` are names or None for all."""
    if pairs is None:
        return list(itertools.combinations(arms, 2))
    named = {arm.name: arm for arm in arms}
    return [(named[a], named[b]) for a, b in pairs if a in named and b in named]


def scored_classes(arms):
    """Returns the classes of `FOREGROUND` that every run of some arms has scores of; data may lack the lungs."""
    rows = [row for arm in arms for run in arm.runs for row in run.cases.values()]
    return tuple(name for name in FOREGROUND if all(f"{name}_reference_px" in row for row in rows))


def case_scores(run, key, name):
    """Returns {case_id: score} of a class over the cases whose reference has it."""
    column = f"{name}_{key}"
    if any(column not in row for row in run.cases.values()):
        raise InputError(
            f"run {run.name}: cases.csv has no column {column}; evaluate the run again, or choose a score"
        )
    present = {case: row for case, row in run.cases.items() if row[f"{name}_reference_px"] > 0}
    return {case: float(row[column]) for case, row in present.items() if not np.isnan(row[column])}


def _run_row(arm, run, names):
    row = {"arm": arm.name, "run": run.name}
    for key in names:
        for name in scored_classes([arm]):
            values = list(case_scores(run, key, name).values())
            row |= {
                f"{name}_{key}": float(np.mean(values)) if values else np.nan,
                f"{name}_{key}_cases": len(values),
            }
    return row


def _run_means(arm, key, name):
    found = [list(case_scores(run, key, name).values()) for run in arm.runs]
    return [float(np.mean(values)) for values in found if values]


def _arm_row(arm, key, name):
    means = _run_means(arm, key, name)
    return {
        "arm": arm.name,
        "class": name,
        "score": SCORES[key],
        "mean_over_runs": float(np.mean(means)) if means else np.nan,
        "sd_over_runs": float(np.std(means, ddof=1)) if len(means) > 1 else np.nan,
        "lowest": min(means, default=np.nan),
        "highest": max(means, default=np.nan),
        "runs": len(means),
        "cases": len({case for run in arm.runs for case in case_scores(run, key, name)}),
    }


def arm_cases(arm, key, name):
    """Returns {case_id: score averaged over the runs that have the case}."""
    found = {}
    for run in arm.runs:
        for case, value in case_scores(run, key, name).items():
            found.setdefault(case, []).append(value)
    return {case: float(np.mean(values)) for case, values in found.items()}


def _compare_arms(pairs, names):
    rows = [
        _difference_row(first, second, key, name)
        for first, second in pairs
        for key in names
        for name in scored_classes((first, second))
    ]
    return correct(rows, judge)


def correct(rows, judge_row):
    """Returns the rows of one family, each with 'p_holm', 'family' and what `judge_row` says of it, as `judge`."""
    corrected = statistics.holm([row["p"] for row in rows])
    family = int(np.sum(~np.isnan(corrected)))
    return [
        row | {"p_holm": float(p), "family": family} | judge_row(row, float(p), family)
        for row, p in zip(rows, corrected, strict=True)
    ]


def _difference_row(first, second, key, name):
    a, b = arm_cases(first, key, name), arm_cases(second, key, name)
    common = sorted(a.keys() & b.keys())
    owners = patients(first)
    test = statistics.paired_test([a[c] for c in common], [b[c] for c in common], [owners[c] for c in common])
    means = [_run_means(arm, key, name) for arm in (first, second)]
    low, high = between_runs(first, second, key, name)
    return {
        "first": first.name,
        "second": second.name,
        "class": name,
        "score": SCORES[key],
        "difference": test.difference.estimate,
        "low": test.difference.low,
        "high": test.difference.high,
        "effect_size_dz": test.effect_size,
        "p": test.p_value,
        "p_wilcoxon": test.wilcoxon_p,
        "exact": test.exact,
        "cases": len(common),
        "patients": test.difference.num_patients,
        "cases_first": len(a),
        "cases_second": len(b),
        "runs_first": len(means[0]),
        "runs_second": len(means[1]),
        "between_runs_low": low,
        "between_runs_high": high,
    }


def patients(arm):
    """Returns {case_id: patient}, else series, else the case itself."""
    return {
        case: next((str(row[key]) for key in ("patient", "series_uid") if row.get(key)), case)
        for run in arm.runs
        for case, row in run.cases.items()
    }


def between_runs(first, second, key, name):
    """Returns the 95 % interval over runs of the difference of two arms, second minus first.

    Over several test folds the runs are paired by seeds and fold, since the folds' cases differ more than runs
    do, and averaged over the folds: the interval is over initialisations (Student's t), since the runs of one
    seed on several folds start from the same weights. Of one fold the means are compared unpaired (Welch).
    """
    found = [means_by_draw(arm, key, name) for arm in (first, second)]
    folds = {run.fold for arm in (first, second) for run in arm.runs}
    if len(folds) < 2 or found[0].keys() != found[1].keys():
        return welch(*(list(means.values()) for means in found))
    return student(by_seed({draw: found[1][draw] - found[0][draw] for draw in found[0]}))


def by_seed(values):
    """Returns the mean of each initialisation's values, list of float, of {draw: value}."""
    found = {}
    for draw, value in values.items():
        found.setdefault(draw[SEEDS.index("seed")] if isinstance(draw, tuple) else draw, []).append(value)
    return [float(np.mean(each)) for each in found.values()]


def student(values):
    """Returns the 95 % interval of a mean by Student's t, NaN with fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf((1 + statistics.LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def means_by_draw(arm, key, name):
    """Returns {seeds and fold, or the run's place: mean over its cases}, for runs that have the class."""
    draws = [run.draw for run in arm.runs]
    keys = draws if len(set(draws)) == len(draws) else range(len(draws))
    found = {
        draw: list(case_scores(run, key, name).values()) for draw, run in zip(keys, arm.runs, strict=True)
    }
    return {draw: float(np.mean(values)) for draw, values in found.items() if values}


def welch(first, second):
    """Returns the 95 % interval of the difference of means over runs (Welch), NaN with one run on a side."""
    if min(len(first), len(second)) < 2:
        return np.nan, np.nan
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return (float(second[0] - first[0]),) * 2
    found = stats.ttest_ind(second, first, equal_var=False).confidence_interval(statistics.LEVEL)
    return float(found.low), float(found.high)


def judge(row, p_holm, family):
    """Returns {'supported': bool, 'why': words} of a difference.

    It is supported where the corrected p of the paired test is under 0.05 and, with two runs or more on
    both sides, the interval over runs leaves out 0 as well: cases alone say nothing of other
    initialisations.
    """
    if not row["cases"]:
        return {"supported": False, "why": "the arms have no case in common"}
    if np.isnan(p_holm):
        return {"supported": False, "why": "cases of one patient alone cannot be tested"}
    if p_holm >= ALPHA:
        least = min(1.0, family * 2.0 ** (1 - row["patients"]))
        few = f"; so few patients allow no p below {least:.2g}" if least >= ALPHA else ""
        return {"supported": False, "why": f"corrected p = {p_holm:.2g}{few}"}
    if min(row["runs_first"], row["runs_second"]) < 2 or np.isnan(row["between_runs_low"]):
        return {
            "supported": True,
            "why": f"corrected p = {p_holm:.2g}; one run on a side: it may be one of initialisation",
        }
    if row["between_runs_low"] <= 0 <= row["between_runs_high"]:
        return {
            "supported": False,
            "why": f"corrected p = {p_holm:.2g} over cases, but no larger than between runs",
        }
    return {"supported": True, "why": f"corrected p = {p_holm:.2g}, and larger than between runs"}


def _sentences(arms, differences):
    if not differences and len(arms) > 1:
        return ["These arms are shown beside each other and not tested: no pair of them is to be compared."]
    if not differences:
        return [
            f"All {len(arms[0].runs)} runs have the same settings but for seeds: nothing to compare, "
            "only a spread."
        ]
    return [describe(row) for row in differences]


def describe(row):
    """Returns a difference as a plain sentence that says whether it is supported."""
    name = tables.TITLES[row["class"]]
    if not row["cases"]:
        return (
            f"{name} {row['score']}: no case in common of [{row['first']}] and [{row['second']}]; "
            "nothing is supported."
        )
    verdict = "The difference is supported" if row["supported"] else "A difference is not supported"
    return (
        f"{name} {row['score']}: [{row['second']}] minus [{row['first']}] = {row['difference']:+.4f}"
        f"{interval(row['low'], row['high'], 4)} over {row['cases']} cases of {row['patients']} patients. "
        f"{verdict}: {row['why']}."
    )


RULES = (
    "Scores are per case, over the cases whose reference has the class; a missed structure counts with "
    "the worst value.",
    "An arm is all runs with the same settings but for seeds and test fold. Mean and standard deviation over "
    "its runs are of the runs' means.",
    "Differences are paired: second minus first on the same case, each case averaged over the arm's runs "
    "first.",
    "Intervals: bootstrap by patient, 95 %. p: sign-flip test on the patients' means, exact up to "
    f"{statistics.EXACT_PATIENTS} patients, corrected by Holm over all differences of the page.",
    "Supported: corrected p under 0.05 and, where both arms have two runs or more, an interval over runs "
    "without 0 (several folds: over seeds, paired; one fold: Welch).",
)
