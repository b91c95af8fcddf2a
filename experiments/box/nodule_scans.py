"""Candidates of whole scans with everything that is measured of each, by networks that never saw the patient.

    python -m experiments.box.nodule_scans --real=DIR --runs=DIR --fold=0 LIDC-IDRI-0001

Writes RUNS/foldN/candidates_NAME.json; `nodule_study` reads them.
"""

import argparse
import json
import pathlib
import time

import numpy as np

from auxseg.ct import geometry as ct
from auxseg.prediction import nodule_candidates, nodule_look, nodule_views, nodules
from experiments.box import nodule_data, nodule_judge, nodule_train

ABOVE = (0.3, 0.5)


def find(scan, forward, params, above):
    """Returns the candidates of a `WholeScan` as dicts: centre in mm, measures, the judge's logit."""
    spacing = scan.geometry.spacing_zyx_mm
    region = nodule_look.find_region((scan.lungs == 1) | (scan.lungs == 2), spacing[1:])
    marked = nodule_look.mark(lambda index: scan.hu[index], region, forward)
    found = {}
    for threshold in above:
        candidates = nodule_candidates.find_candidates(
            marked, lambda index: scan.hu[index], spacing, above=threshold
        )
        logits = judge(scan, candidates, params)
        found[str(threshold)] = [
            {
                "centre_xyz_mm": ct.index_to_mm(scan.geometry, candidate.centre_zyx[::-1]).tolist(),
                "centre_zyx": candidate.centre_zyx,
                "judge": float(logit),
                **candidate.measures,
            }
            for candidate, logit in zip(candidates, logits, strict=True)
        ]
    return found, marked


def judge(scan, candidates, params):
    """Returns the judge's logit of each candidate, float32 [n]; NaN without a judge."""
    if params is None or not candidates:
        return np.full(len(candidates), np.nan)
    spacing = scan.geometry.spacing_zyx_mm
    views = [nodule_views.candidate_views(lambda i: scan.hu[i], c, spacing) for c in candidates]
    return nodule_judge.answer(params, views)


def main():
    """Looks at the named scans with the networks of a fold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("scans", nargs="+")
    options = parser.parse_args()
    run = pathlib.Path(options.runs) / f"fold{options.fold}"
    forward = nodule_train.create_forward(*nodule_train.read_variables(run))
    params = nodules.read_weights(run / "judge.npz") if (run / "judge.npz").exists() else None
    for name in options.scans:
        scan = nodule_data.read_scan(pathlib.Path(options.real) / "scans", name)
        began = time.perf_counter()
        found, marked = find(scan, forward, params, ABOVE)
        about = {
            "scan": name,
            "fold": options.fold,
            "seconds": time.perf_counter() - began,
            "candidates": found,
        }
        about |= {"nodules": scan.nodules.tolist(), "excluded": scan.excluded.tolist()}
        (run / f"candidates_{name}.json").write_text(json.dumps(about) + "\n")
        np.savez_compressed(run / f"marked_{name}.npz", marked=marked)
        print(
            name, {key: len(value) for key, value in found.items()}, f"{about['seconds']:.1f} s", flush=True
        )


if __name__ == "__main__":
    main()
