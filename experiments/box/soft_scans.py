"""What a soft kernel and thick slices do to the nodules that are found, and what the sharpening of soft scans brings and costs.

    python -m experiments.box.soft_scans --real=DIR --runs=DIR --lungs=DIR --study=FILE --output=FILE

Each scan is seen by networks that never saw its patient, as in `nodule_scans`. A scan of LIDC-IDRI is seen by its fold's, a scan of
Lung_Dx by both folds' and by the box's. The two that were read completely are also made soft (a blur of a millimetre in the slice), thick
(means of slices, 5 mm) and both. Crops of soft scans that a fold holds out say what it costs. Of a fold's networks the probability
and the operating points are the study's (`box_nodules.json`), and the box has its own. Everything is looked at plain, and sharpened
where it is soft.
"""

import dataclasses
import pathlib

import numpy as np
import scipy.ndimage
from absl import flags

from auxseg.base import command, files
from auxseg.ct import geometry as ct
from auxseg.prediction import box, nodules, sharpness
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


@dataclasses.dataclass(frozen=True)
class Judged:
    """What sees scans, and by which probability.

    Attributes:
        name: of the networks.
        forward: of the look.
        known: `sharpness.Known` of what it was trained on.
        weights: of `nodules.EVIDENCE`, and a constant.
        points: (false ones a scan, least probability of what is kept) of each operating point.
    """

    name: str
    forward: object
    known: sharpness.Known
    weights: list
    points: list

    def value_of(self, candidate):
        """Returns the probability of a candidate's measures."""
        return float(nodules.probability([candidate], self.weights)[0])


def score_form(scan, lungs, judged):
    """Returns the scores of a scan (`nodule_data.WholeScan`), JSON types: plain, and sharpened."""
    detail = sharpness.measure(scan.hu.__getitem__, lungs, scan.geometry.spacing_zyx_mm[1:])
    scores = {"sharpness_hu": detail.sharpness_hu(), "gain": detail.find_gain(judged.known)}
    for name, known in (("plain", sharpness.NEVER), ("sharpened", judged.known)):
        candidates, _ = nodule_scans.find(scan, lungs, judged.forward, known)
        about = {
            "candidates": nodule_scans.describe(scan, candidates),
            "nodules": scan.nodules,
            "excluded": scan.excluded,
        }
        match = nodule_study.match_scan(about, judged.value_of)
        scores[name] = {
            f"{rate:g}": {
                "found": int((match.hits >= least).sum()),
                "nodules": len(match.hits),
                "false": int((match.false >= least).sum()),
            }
            for rate, least in judged.points
        }
    return scores


def score_soft_crops(crops, rows, judged, params):
    """Returns how many nodules of soft crops are found, and false ones beside them, JSON types: plain, and sharpened.

    Args:
        crops: `Crops`.
        rows: int [n], slices that the fold holds out.
        judged: `Judged`.
        params: of the fold's judge, which `nodule_scans.crop_candidates` asks too.
    """
    names = [
        name
        for name in sorted(set(crops.nodule[rows].tolist()))
        if nodule_data.measure_sharpness(crops, rows[crops.nodule[rows] == name]) < judged.known.soft_hu
    ]
    rows = rows[np.isin(crops.nodule[rows], names)]
    scores = {"nodules": len(names)}
    for name, known in (("plain", sharpness.NEVER), ("sharpened", judged.known)):
        found = nodule_scans.crop_candidates(crops, rows, judged.forward, params, known)
        values = [judged.value_of(one) for one in found]
        scores[name] = {}
        for rate, least in judged.points:
            kept = [one for one, value in zip(found, values, strict=True) if value >= least]
            scores[name][f"{rate:g}"] = {
                "found": len({one["nodule"] for one in kept if one["true"]}),
                "false": sum(not one["true"] for one in kept),
            }
    return scores


def add(rows):
    """Returns the sums of scores, JSON types; operating points that not all have are left out."""
    rates = set.intersection(*(set(row["plain"]) for row in rows))
    return {
        name: {
            rate: {what: sum(row[name][rate][what] for row in rows) for what in ("found", "false")}
            for rate in sorted(rates, key=float)
        }
        for name in ("plain", "sharpened")
    } | {"rows": len(rows)}


def main(argv):
    """Writes the scores of all forms of all scans, and of soft crops."""
    del argv
    options = flags.FLAGS
    study, folder = files.read_json(pathlib.Path(options.study)), pathlib.Path(options.real) / "scans"
    weights = list(study["weights"].values())
    crops = nodule_data.read_crops(options.real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    lungs = {
        name: nodule_scans.segment_lungs(folder / name, options.lungs)
        for name in (*nodule_data.READ_COMPLETELY, *nodule_data.READ_FOR_MASS)
    }
    rows, soft_crops, networks = [], [], {}
    for fold in (*range(nodule_data.NUM_FOLDS), nodule_data.BOX):
        own = [name for name, its in nodule_data.FOLD_OF_SCAN.items() if its == fold]
        if fold == nodule_data.BOX:
            inside = box.load_box().nodules
            points = inside.operating_points.tolist()
            judged = Judged("box", inside.forward, inside.known, inside.weights, points)
        else:
            run = pathlib.Path(options.runs) / f"fold{fold}"
            forward = nodule_train.create_forward(*nodule_train.read_variables(run))
            known = nodule_data.find_sharpness(crops, nodule_data.training_rows(folds, fold))
            judged = Judged(f"fold {fold}", forward, known, weights, study["operating_points"])
            params = nodules.read_weights(run / "judge.npz")
            held_out = np.flatnonzero(folds == fold)
            soft_crops.append({"networks": judged.name, **score_soft_crops(crops, held_out, judged, params)})
            print(soft_crops[-1], flush=True)
        networks[judged.name] = {"sharpness": judged.known._asdict(), "operating_points": judged.points}
        for name in (*own, *nodule_data.READ_FOR_MASS):
            scan = nodule_data.read_scan(folder, name)
            for form in FORMS if name in own else FORMS[:1]:
                scores = score_form(*reshape(scan, lungs[name], form), judged)
                rows.append({"what": f"{name} {form}, {judged.name}", **scores})
                print(rows[-1], flush=True)
    line = "python -m experiments.box.soft_scans --real=FOLDER --runs=RUNS --lungs=RUNS --study=FILE --output=FILE"
    origin = made_by(line, data=", ".join(lungs), seeds=[nodule_train.Recipe.seed])
    files.write_json(
        pathlib.Path(options.output),
        {
            "made_by": origin,
            "networks": networks,
            "scans": rows,
            "soft_crops": soft_crops,
            "all_soft_scans": add([row for row in rows if row["gain"]]),
            "all_soft_crops": add(soft_crops),
        },
    )


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "folder of the real data: lidc_nodules, scans", required=True)
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_string("lungs", None, "folder of the lungs' runs without_PATIENT", required=True)
    flags.DEFINE_string("study", None, "what nodule_study wrote", required=True)
    flags.DEFINE_string("output", None, "JSON file to write", required=True)
    command.run(main)
