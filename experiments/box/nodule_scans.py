"""Candidates of whole scans with everything that is measured of each, by networks that never saw the patient.

    python -m experiments.box.nodule_scans --real=DIR --runs=DIR --lungs=DIR --fold=0 LIDC-IDRI-0001 crops

As `predict` does it: the lungs come first, from the run LUNGS/without_PATIENT, the nodules are looked for inside them, and
a soft scan is sharpened.
Writes RUNS/foldN/candidates_NAME.json; `nodule_study` reads them. The name 'crops' stands for the crops that the fold
holds out.
"""

import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.base.errors import InputError
from auxseg.ct import geometry as ct
from auxseg.ct import scans
from auxseg.datasets import crops as crops_lib
from auxseg.prediction import nodule_candidates, nodule_look, nodules, segment, sharpness
from experiments.box import judge_views, nodule_data, nodule_judge, nodule_train, score

ABOVE = 0.5
"""Probability that every voxel of a candidate exceeds."""
CROPS = "crops"


def segment_lungs(path, runs):
    """Returns the lungs of a scan by the network that does not know its patient, bool [D, H, W].

    Args:
        path: pathlib.Path of the scan.
        runs: folder of the runs without_PATIENT.
    """
    with tempfile.TemporaryDirectory() as scratch:
        scan = scans.open_scan(scans.find_scans(path)[0], scratch)
        network = score.load_judged(runs, path.name)
        found = segment.segment_scan(scan, [network], segment.Options(), pathlib.Path(scratch))
        return np.array(found.masks) > 0


def find(scan, lungs, forward, known):
    """Returns (`Candidate`s of a scan, what is marked in it uint8 [D, H, W]).

    Args:
        scan: `nodule_data.WholeScan`.
        lungs: bool [D, H, W], inside which is looked.
        forward: as `nodule_look.mark` takes it.
        known: `sharpness.Known` of what the network was trained on.
    """
    spacing, read = scan.geometry.spacing_zyx_mm, scan.hu.__getitem__
    marked, _ = nodules.look(read, lungs, spacing, forward, known)
    return nodule_candidates.find_candidates(marked, read, spacing, above=ABOVE), marked


def describe(scan, candidates):
    """Returns candidates of a scan as dicts: centre in mm and in voxels, and measures."""
    return [
        {
            "centre_xyz_mm": ct.index_to_mm(scan.geometry, candidate.centre_zyx[::-1]).tolist(),
            "centre_zyx": candidate.centre_zyx,
            **candidate.measures,
        }
        for candidate in candidates
    ]


def crop_candidates(crops, rows, forward, params, known):
    """Returns dicts of what is found in the shifted stacks of the rows' nodules: measures, `judge`, `nodule`, `true`.

    A candidate is true if its centre lies within the radius of the nodule's, in the plane; one that touches a
    reader's mark otherwise is neither and left out. A nodule without a true candidate has none.
    """
    shifts = crops_lib.draw_shifts(len(crops), most_px=crops_lib.MOST_SHIFT_PX, seed=crops_lib.SHIFT_SEED)
    found, size = [], crops.images.shape[1]
    for name in sorted(set(crops.nodule[rows].tolist())):
        own = rows[crops.nodule[rows] == name]
        own = own[np.argsort(crops.place[own])]
        images = np.stack([crops_lib.cut(crops.image_hu(row), shifts[own[0]], size) for row in own])
        marks = np.stack([crops_lib.cut(crops.readers[row], shifts[own[0]], size) for row in own])
        spacing = (float(crops.gap_mm[own[0]]), *(float(crops.spacing_mm[own[0]]),) * 2)
        read, air = images.__getitem__, nodule_data.find_air(images)
        read_sharp, _ = sharpness.reader(read, air, spacing[1:], known)
        marked = nodule_look.mark(read_sharp, np.ones(images.shape, bool), forward)
        candidates = nodule_candidates.find_candidates(marked, read, spacing, above=ABOVE)
        centre = np.argwhere(crops_lib.share(marks, crops.num_readers[own[0]]) >= 0.5).mean(axis=0)[1:]
        views = [judge_views.candidate_views(read, c, spacing) for c in candidates]
        logits = nodule_judge.answer(params, views)
        for candidate, logit in zip(candidates, logits, strict=True):
            distance = np.linalg.norm((np.array(candidate.centre_zyx[1:]) - centre) * spacing[1])
            true = bool(distance < crops.diameter_mm[own[0]] / 2.0)
            if true or not (marks[candidate.box] > 0).any():
                found.append({"nodule": name, "true": true, "judge": float(logit), **candidate.measures})
    return found


def main(argv):
    """Looks at the named scans with the networks of a fold."""
    del argv
    options = flags.FLAGS
    if not options.scans:
        raise InputError("--scans: not given, expected names of scans, or crops")
    run = pathlib.Path(options.runs) / f"fold{options.fold}"
    forward = nodule_train.create_forward(*nodule_train.read_variables(run))
    params = nodules.read_weights(run / "judge.npz")
    crops = nodule_data.read_crops(options.real)
    folds = nodule_data.assign_folds(crops, nodule_data.read_test_patients())
    known = nodule_data.find_sharpness(crops, nodule_data.training_rows(folds, options.fold))
    for name in options.scans:
        began = time.perf_counter()
        if name == CROPS:
            about = find_in_crops(crops, folds, options.fold, forward, params, known)
        else:
            folder = pathlib.Path(options.real) / "scans"
            scan, lungs = nodule_data.read_scan(folder, name), segment_lungs(folder / name, options.lungs)
            began = time.perf_counter()
            candidates, marked = find(scan, lungs, forward, known)
            spacing = scan.geometry.spacing_zyx_mm
            views = [judge_views.candidate_views(scan.hu.__getitem__, one, spacing) for one in candidates]
            logits = nodule_judge.answer(params, views)
            found = describe(scan, candidates)
            found = [one | {"judge": float(logit)} for one, logit in zip(found, logits, strict=True)]
            about = {"candidates": found, "nodules": scan.nodules, "excluded": scan.excluded}
            np.savez_compressed(run / f"marked_{name}.npz", marked=marked)
        seconds = time.perf_counter() - began
        about |= {"scan": name, "fold": options.fold, "seconds": seconds, "sharpness": known._asdict()}
        files.write_json(run / f"candidates_{name}.json", about)
        print(name, len(about["candidates"]), f"{seconds:.1f} s", flush=True)


def find_in_crops(crops, folds, fold, forward, params, known):
    """Returns the `candidates` in the crops that a fold holds out, and the names of their `nodules`.

    Without the patients whose scan judges: the probability is fitted on these crops.
    """
    rows = np.flatnonzero((folds == fold) & ~np.isin(crops.patient, list(nodule_data.FOLD_OF_SCAN)))
    candidates = crop_candidates(crops, rows, forward, params, known)
    return {"candidates": candidates, "nodules": sorted(set(crops.nodule[rows].tolist()))}


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "folder of the real data: lidc_nodules, luna16_middle, scans", required=True
    )
    flags.DEFINE_string("runs", None, "folder with a folder foldN for each fold", required=True)
    flags.DEFINE_string("lungs", None, "folder of the lungs' runs without_PATIENT", required=True)
    flags.DEFINE_integer("fold", None, "that is held out; -1: the network of the box", required=True)
    flags.DEFINE_list("scans", [], "names of scans, or crops; may be given without --scans=")
    command.run(main, positional=("scans",))
