"""What each stage of the nodule looks gains on held-out crops and scans; the probability and operating points of the box.

    python -m experiments.box.nodule_study --runs=DIR --output=FILE

Held-out crops give true and false candidates of many patients, from which the weights of the probability are fitted
(a logistic model; without the patients whose scan is judged). Whole scans that were read completely, each seen by the
networks of the fold that never saw its patient, give the false ones a scan. Lung_Dx scans were read for their mass
alone: what is found outside its boxes is counted apart, and is not known to be false.
"""

import json
import pathlib

import numpy as np
import scipy.optimize
from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.prediction import nodules
from auxseg.scoring import froc
from experiments.box import nodule_data, nodule_judge, nodule_train
from experiments.made_by import made_by

CHOSEN = "look and shape"
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DEFAULT_RATE = 1.0
PENALTY = 1e-3
"""Of the squared weights, in the fit."""


def create_stages(candidates):
    """Returns ({stage: candidate -> value}, weights of `nodules.probability`): what candidates are ranked by, in steps.

    Args:
        candidates: of held-out crops, by which both probabilities are fitted.
    """
    weights, judged = fit(candidates), fit(candidates, with_judge=True)
    return {
        "highest probability": lambda c: c["highest"],
        "mean probability": lambda c: c["mean"],
        "probability times volume": lambda c: c["sum"],
        "the judge alone": lambda c: c["judge"],
        "look, shape and judge": lambda c: float(_evidence([c], True)[0] @ judged),
        CHOSEN: lambda c: float(nodules.probability([c], weights)[0]),
    }, weights


def fit(candidates, *, with_judge=False):
    """Returns the weights of `nodules.EVIDENCE`, before them of the judge where it is asked for, and a constant.

    By penalised maximum likelihood. True and false candidates weigh the same in total: how many of either there are
    in a scan is not known from crops.

    Raises:
        InputError: there are no true candidates, or no false ones.
    """
    if len({bool(c["true"]) for c in candidates}) < 2:
        raise InputError(
            f"nodule_study: {len(candidates)} candidates of held-out crops, expected true and false ones; train for longer"
        )
    evidence = _evidence(candidates, with_judge)
    labels = np.array([c["true"] for c in candidates], np.float64)
    weights = np.where(labels > 0, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())

    def loss(values):
        entropy = (weights * np.logaddexp(0.0, (1 - 2 * labels) * (evidence @ values))).sum()
        return entropy + PENALTY * np.square(values[:-1]).sum()

    return scipy.optimize.minimize(loss, np.zeros(evidence.shape[1])).x.tolist()


def _evidence(candidates, with_judge):
    columns = [nodules.evidence(candidates), np.ones((len(candidates), 1))]
    if with_judge:
        columns.insert(0, np.array([[c["judge"]] for c in candidates]))
    return np.concatenate(columns, axis=1)


def match_scan(about, stage):
    """Returns the `froc.Matches` of a scan's candidates, ranked by `stage` (candidate -> value)."""
    rows = [[*c["centre_xyz_mm"], stage(c)] for c in about["candidates"]]
    return froc.match(rows, about["nodules"], about["excluded"])


def stage_table(stages, groups, crops_found, names):
    """Returns for each stage the false ones above each scan's nodule, and the crops' nodules found at the same values.

    Args:
        stages: from `create_stages`.
        groups: {what: scans} by whose false ones the least value is chosen; the first is of those with nodules.
        crops_found: candidates of held-out crops.
        names: of all their nodules.
    """
    table = {}
    for stage, value_of in stages.items():
        matches = {about["scan"]: match_scan(about, value_of) for scans in groups.values() for about in scans}
        best = {}
        for c in crops_found:
            if c["true"]:
                best[c["nodule"]] = max(best.get(c["nodule"], -np.inf), value_of(c))
        values = np.array([best.get(name, -np.inf) for name in names])
        table[stage] = {
            "false_above_the_nodule": {
                name: [None if np.isnan(hit) else int((found.false >= hit).sum()) for hit in found.hits]
                for name, found in matches.items()
            },
            "crops_found_at": {
                what: {
                    f"{rate:g}": _share_above(values, [matches[a["scan"]] for a in scans], rate)
                    for rate in RATES
                }
                for what, scans in groups.items()
            },
        }
    return table


def _share_above(values, matches, rate):
    """Returns the share of values that reach the least one with so many false ones a scan; None where it is unknown."""
    if rate * len(matches) < 1.0:
        return None
    return float((values >= froc.choose_threshold(matches, rate)).mean())


def operating_points(matches):
    """Returns [[false ones a scan, least probability], ...], rising, of `froc.Matches` by scan.

    Rates below one false finding in all scans are left out: they cannot be told apart.
    """
    rates = [rate for rate in RATES if rate * len(matches) >= 1.0]
    return [[rate, min(1.0, froc.choose_threshold(matches.values(), rate))] for rate in rates]


def default_point(matches):
    """Returns for each scan what the default rate gives there, with the least probability chosen on the others."""
    results = {}
    for name, found in matches.items():
        others = [other for key, other in matches.items() if key != name]
        least = froc.choose_threshold(others, DEFAULT_RATE)
        results[name] = {
            "least_probability": least,
            "found": int((found.hits >= least).sum()),
            "nodules": len(found.hits),
            "false": int((found.false >= least).sum()),
        }
    return results


def main(argv):
    """Writes the study's figures as JSON."""
    del argv
    options = flags.FLAGS
    found, held_out = read_crop_candidates(pathlib.Path(options.runs))
    stages, weights = create_stages(found)
    scans = read_scans(pathlib.Path(options.runs))
    judged = [about for about in scans if about["scan"] in nodule_data.FOLD_OF_SCAN]
    matches = {about["scan"]: match_scan(about, stages[CHOSEN]) for about in scans}
    # Two kernels of one scan are one scan.
    apart = {name: match for name, match in matches.items() if name != "Lung_Dx-A0001-B"}
    points = operating_points(apart)
    results = {
        "made_by": made_by(
            "python -m experiments.box.nodule_study --runs=RUNS --output=FILE",
            data=f"{len(held_out)} held-out nodules of LIDC-IDRI and {len(scans)} whole scans "
            f"({', '.join(matches)})",
            seeds=[nodule_data.SPLIT_SEED, nodule_train.Recipe.seed, nodule_judge.Recipe.seed],
        ),
        "weights": dict(zip((*nodules.EVIDENCE, "constant"), weights, strict=True)),
        "crops": {
            "nodules": len(held_out),
            "candidates": len(found),
            "false": sum(not c["true"] for c in found),
            "nodules_with_a_candidate": len({c["nodule"] for c in found if c["true"]}),
        },
        "stages": stage_table(
            stages,
            {
                "two scans read completely": judged,
                "four scans": [about for about in scans if about["scan"] in apart],
            },
            found,
            held_out,
        ),
        "operating_points": points,
        "operating_points_from": f"{len(apart)} scans: {', '.join(apart)}; what is outside the known nodules and "
        "masses counts as false, though in the Lung_Dx scans nobody looked for nodules",
        "default_rate": DEFAULT_RATE,
        "default_point_chosen_on_the_other_scans": default_point(apart),
        "at_the_rates": {
            name: {
                f"{rate:g}": {
                    "found": int((match.hits >= least).sum()),
                    "nodules": len(match.hits),
                    "false": int((match.false >= least).sum()),
                }
                for rate, least in points
            }
            for name, match in matches.items()
        },
        "seconds": {about["scan"]: about["seconds"] for about in scans},
    }
    files.write_json(pathlib.Path(options.output), results)
    print(json.dumps(results, indent=1))


def read_crop_candidates(runs):
    """Returns (candidates of every fold's held-out crops, names of the nodules in them), from `nodule_scans`.

    Without the patients whose scan is judged.
    """
    found, held_out = [], []
    for fold in range(nodule_data.NUM_FOLDS):
        about = files.read_json(runs / f"fold{fold}" / "candidates_crops.json")
        found += about["candidates"]
        held_out += about["nodules"]
    return found, held_out


def read_scans(runs):
    """Returns what `nodule_scans` wrote of every scan, by the networks that judge it."""
    folds = nodule_data.FOLD_OF_SCAN | dict.fromkeys(nodule_data.READ_FOR_MASS, nodule_data.BOX)
    paths = [runs / f"fold{fold}" / f"candidates_{name}.json" for name, fold in folds.items()]
    return [json.loads(path.read_text()) for path in paths]


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_string("output", None, "JSON file to write", required=True)
    command.run(main)
