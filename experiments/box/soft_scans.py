"""What a soft kernel and thick slices do to the nodules that are found, with and without the sharpening of soft scans.

    python -m experiments.box.soft_scans --real=DIR --runs=DIR --lungs=DIR --study=FILE --output=FILE

Each scan is seen by networks that never saw its patient, as in `nodule_scans`. The two that were read completely are also made
soft (a blur of a millimetre in the slice), thick (means of slices, 5 mm) and both. Probabilities and the
operating point are the study's (`box_nodules.json`); the look is run once on the scan as it is, and once sharpened.
"""

import dataclasses
import pathlib

import numpy as np
import scipy.ndimage
from absl import flags

from auxseg.base import command, files
from auxseg.ct import geometry as ct
from auxseg.prediction import nodules, sharpness
from experiments.box import nodule_data, nodule_scans, nodule_study, nodule_train
from experiments.made_by import made_by

BLUR_MM, THICK_MM = 1.0, 5.0
FORMS = ("as it is", "soft", "thick", "soft and thick")


def reshape(scan, lungs, form):
    """Returns (scan, lungs) in one of `FORMS`.

    Args:
        scan: `nodule_data.WholeScan`.
        lungs: bool [D, H, W].
    """
    if "thick" in form:
        scan, lungs = _thicken(scan, lungs)
    if "soft" in form:
        sigma = [BLUR_MM / mm for mm in scan.geometry.spacing_zyx_mm[1:]]
        planes = [scipy.ndimage.gaussian_filter(plane.astype(np.float32), sigma) for plane in scan.hu]
        scan = dataclasses.replace(scan, hu=np.round(planes).astype(np.int16))
    return scan, lungs


def _thicken(scan, lungs):
    """Returns a scan of means of neighbouring slices, and the lungs in the middle one of them."""
    geometry = scan.geometry
    step = geometry.spacing_zyx_mm[0]
    count = max(1, round(THICK_MM / step))
    depth = len(scan.hu) // count
    hu = scan.hu[: depth * count].reshape(depth, count, *scan.hu.shape[1:]).mean(axis=1, dtype=np.float32)
    first = ct.index_to_mm(geometry, (0.0, 0.0, (count - 1) / 2.0))
    geometry = dataclasses.replace(
        geometry,
        size_xyz=(*geometry.size_xyz[:2], depth),
        spacing_xyz_mm=(*geometry.spacing_xyz_mm[:2], step * count),
        origin_xyz_mm=tuple(float(mm) for mm in first),
    )
    scan = dataclasses.replace(scan, geometry=geometry, hu=np.round(hu).astype(np.int16))
    return scan, lungs[count // 2 :: count][:depth]


def score_form(scan, lungs, networks, value_of, least):
    """Returns the scores of a scan, JSON types: without and with sharpening.

    Args:
        scan: `nodule_data.WholeScan`.
        lungs: bool [D, H, W].
        networks: (forward, params of the judge, sharpness in HU) of a fold.
        value_of: dict of a candidate's measures -> probability.
        least: probability of what is kept.
    """
    forward, params, sharpness_hu = networks
    detail = sharpness.measure(scan.hu.__getitem__, lungs, scan.geometry.spacing_zyx_mm[1:])
    scores = {"sharpness_hu": detail.sharpness_hu(), "gain": detail.find_gain(sharpness_hu)}
    for name, wanted in (("plain", 0.0), ("sharpened", sharpness_hu)):
        candidates, _ = nodule_scans.find(scan, lungs, forward, params, wanted)
        about = {"candidates": candidates, "nodules": scan.nodules, "excluded": scan.excluded}
        match = nodule_study.match_scan(about, value_of)
        scores[name] = {
            "found": int((match.hits >= least).sum()),
            "nodules": len(match.hits),
            "false": int((match.false >= least).sum()),
        }
    return scores


def main(argv):
    """Writes the scores of all forms of all scans."""
    del argv
    options = flags.FLAGS
    study, folder = files.read_json(pathlib.Path(options.study)), pathlib.Path(options.real) / "scans"
    weights = list(study["weights"].values())
    least = dict(study["operating_points"])[study["default_rate"]]
    crops = nodule_data.read_crops(options.real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    rows = []
    for fold in (*range(nodule_data.NUM_FOLDS), nodule_data.BOX):
        run = pathlib.Path(options.runs) / f"fold{fold}"
        networks = (
            nodule_train.create_forward(*nodule_train.read_variables(run)),
            nodules.read_weights(run / "judge.npz"),
            nodule_data.find_sharpness(crops, nodule_data.training_rows(folds, fold)),
        )
        own = [name for name, its in nodule_data.FOLD_OF_SCAN.items() if its == fold]
        for name in (*own, *nodule_data.READ_FOR_MASS):
            read = nodule_data.read_scan(folder, name)
            lungs = nodule_scans.segment_lungs(folder / name, options.lungs)
            for form in FORMS if name in own else FORMS[:1]:
                scores = score_form(
                    *reshape(read, lungs, form),
                    networks,
                    lambda c: float(nodules.probability([c], weights)[0]),
                    least,
                )
                rows.append({"scan": name, "form": form, "held_out_fold": fold, **scores})
                print(rows[-1], flush=True)
    line = "python -m experiments.box.soft_scans --real=FOLDER --runs=RUNS --lungs=RUNS --study=FILE --output=FILE"
    origin = made_by(
        line, data=", ".join(dict.fromkeys(row["scan"] for row in rows)), seeds=[nodule_train.Recipe.seed]
    )
    files.write_json(
        pathlib.Path(options.output), {"made_by": origin, "least_probability": least, "rows": rows}
    )


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "folder of the real data: lidc_nodules, scans", required=True)
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_string("lungs", None, "folder of the lungs' runs without_PATIENT", required=True)
    flags.DEFINE_string("study", None, "what nodule_study wrote", required=True)
    flags.DEFINE_string("output", None, "JSON file to write", required=True)
    command.run(main)
