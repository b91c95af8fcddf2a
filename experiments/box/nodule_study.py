"""What each stage of the nodule looks gains on held-out crops and scans; the probability and operating points of the box.

    python -m experiments.box.nodule_study --runs=DIR --output=FILE

Held-out crops give true and false candidates of many patients, from which the weights of the probability are fitted
(a logistic model; without the patients whose scan is judged). Whole scans that were read completely, each seen by the
networks of the fold that never saw its patient, give the false ones a scan. Lung_Dx scans were read for their mass
alone: what is found outside its boxes is counted apart, and is not known to be false.
"""

import argparse
import json
import pathlib

import numpy as np
import scipy.optimize

from auxseg.base import files
from auxseg.prediction import nodules
from auxseg.scoring import froc
from experiments.box import nodule_data, nodule_judge, nodule_train
from experiments.made_by import made_by

SHIPPED = -1
"""The training whose networks are in the box: on the patients of all folds."""
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DEFAULT_RATE = 1.0
STAGES = {
    "highest probability": lambda c, w: c["highest"],
    "mean probability": lambda c, w: c["mean"],
    "probability times volume": lambda c, w: c["sum"],
    "the judge alone": lambda c, w: c["judge"],
    "both looks": lambda c, w: float(nodules.probability([c["judge"]], [c], w)[0]),
}
PENALTY = 1e-3
"""Of the squared weights, in the fit."""


def fit(candidates):
    """Returns the weights of `nodules.EVIDENCE` and a constant, by penalised maximum likelihood.

    True and false candidates weigh the same in total: how many of either there are in a scan is not known from crops.
    """
    labels = np.array([c["true"] for c in candidates], np.float64)
    weights = np.where(labels > 0, 0.5 / labels.sum(), 0.5 / (1 - labels).sum())
    logits = [c["judge"] for c in candidates]

    def loss(values):
        p = np.clip(nodules.probability(logits, candidates, values), 1e-9, 1 - 1e-9)
        entropy = -(weights * (labels * np.log(p) + (1 - labels) * np.log(1 - p))).sum()
        return entropy + PENALTY * np.square(values[:-1]).sum()

    return scipy.optimize.minimize(loss, np.array([0.5, 0.5, 0.1, 0.0])).x.tolist()


def match_scan(about, stage, weights):
    """Returns the `froc.Matches` of a scan's candidates at one stage."""
    candidates = about["candidates"]
    values = [STAGES[stage](c, weights) for c in candidates]
    rows = [[*c["centre_xyz_mm"], value] for c, value in zip(candidates, values, strict=True)]
    return froc.match(rows, about["nodules"], about["excluded"])


def stage_table(scans, crops_found, nodules, weights):
    """Returns for each stage the false ones above each scan's nodule, and the crops' nodules found at the same value."""
    table = {}
    for stage in STAGES:
        matches = {about["scan"]: match_scan(about, stage, weights) for about in scans}
        table[stage] = {
            "false_above_the_nodule": {
                name: [None if np.isnan(hit) else int((found.false >= hit).sum()) for hit in found.hits]
                for name, found in matches.items()
            },
            "crops_found_at": {},
        }
        best = {}
        for c in crops_found:
            if c["true"]:
                best[c["nodule"]] = max(best.get(c["nodule"], -np.inf), STAGES[stage](c, weights))
        values = np.array([best.get(name, -np.inf) for name in nodules])
        for rate in froc.FALSE_PER_SCAN:
            least = froc.choose_threshold(matches.values(), rate)
            table[stage]["crops_found_at"][f"{rate:g}"] = float((values >= least).mean())
    return table


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


def main():
    """Writes the study's figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    found, held_out = read_crop_candidates(pathlib.Path(options.runs))
    weights = fit(found)
    scans = read_scans(pathlib.Path(options.runs))
    judged = [about for about in scans if about["scan"] in nodule_data.FOLD_OF_SCAN]
    matches = {about["scan"]: match_scan(about, "both looks", weights) for about in scans}
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
        "stages": stage_table(judged, found, held_out, weights),
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
    folds = nodule_data.FOLD_OF_SCAN | dict.fromkeys(nodule_data.READ_FOR_MASS, SHIPPED)
    paths = [runs / f"fold{fold}" / f"candidates_{name}.json" for name, fold in folds.items()]
    return [json.loads(path.read_text()) for path in paths]


if __name__ == "__main__":
    main()
