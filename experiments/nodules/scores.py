"""Scores of the study of nodules: counts by case, pooled thresholds, contrasts between arms."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage, stats

from auxseg.base import files
from auxseg.base.classes import CLASS_NAMES
from auxseg.datasets.resize import resize_image
from auxseg.evaluation import evaluate_run, score_cases
from auxseg.runs import checkpoints, run_folder
from auxseg.scoring import matching, operating_point, statistics
from configs import base
from experiments.studies import runner

NODULE = CLASS_NAMES.index("nodule")
POINTS = ("most likely class", "tuned on val", "tuned on val of all runs")
SHOWN = POINTS[2]
"""Of the operating points, the one that the picture shows."""
MAX_FALSE = 1.0
CASES_FILE = "nodule_cases.json"
COUNTS_FILE = "nodule_counts.json"
CROPS_FILE = "nodule_crops.npz"
PHANTOM_FILE = "nodule_phantom.json"
CROP_PX = 48  # half the side of a crop, in the slice's own pixels
WINDOW_HU = (-1000.0, 400.0)


def count_run(workdir, *, flip=False):
    """Returns {split: operating_point.ChoiceCounts} of val and test of a finished run; kept there.

    Of test they make the curve over all thresholds, which nothing is chosen by.

    Args:
        workdir: pathlib.Path.
        flip: of the mean with the mirrored slices.
    """
    path = kept(workdir, COUNTS_FILE, flip)
    if not path.exists():
        counted = {
            split: score_cases.count_nodules(evaluate_run.open_run(workdir, split, flip=flip)[0], split)
            for split in ("val", "test")
        }
        stored = {
            split: {"slices": each.slices, "sums": each.sums.tolist()} for split, each in counted.items()
        }
        files.write_json(path, stored)
    return {
        split: operating_point.ChoiceCounts(each["slices"], np.array(each["sums"]))
        for split, each in files.read_json(path).items()
    }


def kept(workdir, name, flip):
    """Returns where a file of a run is kept; those of the mean with the mirrored slices have another name."""
    stem, suffix = name.split(".")
    return workdir / f"{stem}{'_flip' * flip}.{suffix}"


def pool_counts(workdir, others, *, flip=False):
    """Returns the operating_point.ChoiceCounts of the validation slices of a run and of others that hold no slice of its test.

    A validation split of 30 slices has about two nodules, too few to choose a threshold by; that of another fold
    is as good where it is the recipe that is chosen for. What a slice of this run's test split has no part in:
    its mask and its prediction are in none of the counts. What it has: the networks of the other folds were
    trained on it, as in any cross-validation, so that how sure they are on *their* validation slices depends on
    it a little. The choice by the run's own validation slices alone is free of that, and stands beside.

    Args:
        workdir: pathlib.Path of a finished run.
        others: workdirs of runs of the same arm and seed, other folds; may hold `workdir`.
        flip: as `count_run`.
    """
    pool = find_pool(workdir, others)
    first = count_run(workdir, flip=flip)["val"]
    return sum((count_run(each, flip=flip)["val"] for each in pool), start=first)


def find_pool(workdir, others):
    """Returns those of other workdirs whose validation splits hold no slice of the test split of `workdir`."""
    test = set(files.read_json(workdir / "splits.json")["test"])
    return [
        each
        for each in others
        if each != workdir and test.isdisjoint(files.read_json(each / "splits.json")["val"])
    ]


def find_runs(folder, arm):
    """Returns {Run: workdir} of the finished runs of an arm of the study in `folder`."""
    paths = sorted((folder / "runs").glob(f"{arm}-f*-s*"))
    return {
        runner.Run(path.name, arm, run_folder.read_config(path)): path
        for path in paths
        if runner.is_finished(path)
    }


def score_run(workdir, pooled, *, flip=False):
    """Returns one mapping a test slice and operating point of a finished run, JSON types; kept in its workdir.

    Args:
        workdir: pathlib.Path.
        pooled: operating_point.ChoiceCounts of `pool_counts`, for the last of `POINTS`.
        flip: as `count_run`.
    """
    nominal_pixel_mm = operating_point.NOMINAL_FIELD_MM / run_folder.read_config(workdir).data.size[1]
    own, of_all = (
        operating_point.choose(counts, max_false=MAX_FALSE, nominal_pixel_mm=nominal_pixel_mm)[0]
        for counts in (count_run(workdir, flip=flip)["val"], pooled)
    )
    points = dict(zip(POINTS, (operating_point.Decision(), own, of_all), strict=True))
    path = kept(workdir, CASES_FILE, flip)
    asked = {name: dataclasses.asdict(point) for name, point in points.items()}
    if path.exists() and (stored := files.read_json(path))["points"] == asked:
        return stored["rows"]
    subject, _, _ = evaluate_run.open_run(workdir, "test", flip=flip)
    rows, crops = [], []
    for index, probabilities in score_cases.predict(subject, subject.members["test"]):
        predictions = _decide_all(subject.dataset, index, probabilities, points)
        rows += _score_case(subject.dataset, index, predictions, points)
        crops += _crop_nodules(subject.dataset, index, predictions[SHOWN])
    np.savez_compressed(kept(workdir, CROPS_FILE, flip), *crops)
    files.write_json(path, {"points": asked, "rows": rows})
    return rows


def score_phantom(workdir, source):
    """Returns what `score_run` does of the test split of the phantom that `source` was trained on, at the most
    likely class; kept in `workdir`.

    Args:
        workdir: pathlib.Path of a run, or of `source` itself.
        source: workdir of a run on the phantom with a network of the same size.
    """
    path = workdir / PHANTOM_FILE
    if path.exists():
        return files.read_json(path)
    subject, _, _ = evaluate_run.open_run(source, "test")
    variables, _ = checkpoints.restore_best(workdir)
    variables = checkpoints.match_variables(variables, subject.variables, where=str(workdir))
    predict_fn = score_cases.create_predict_fn(subject.config, variables, subject.feed.devices)
    subject = dataclasses.replace(subject, variables=variables, predict_fn=predict_fn)
    points = {POINTS[0]: operating_point.Decision()}
    rows = []
    for index, probabilities in score_cases.predict(subject, subject.members["test"]):
        predictions = _decide_all(subject.dataset, index, probabilities, points)
        rows += _score_case(subject.dataset, index, predictions, points)
    files.write_json(path, rows)
    return rows


def _decide_all(dataset, index, probabilities, points):
    """Returns {operating point: mask uint8 [H0, W0]} of a case at the slice's own size."""
    return {
        name: score_cases.decide_native(dataset, index, probabilities, point)
        for name, point in points.items()
    }


def _crop_nodules(dataset, index, prediction):
    """Yields float32 [3, 2 CROP_PX, 2 CROP_PX] about each nodule: image in HU as the network sees it, reference
    and prediction (1.0 where nodule), at the slice's own size."""
    reference = dataset.read_native_mask(index) == NODULE
    labels, count = ndimage.label(reference, np.ones((3, 3)))
    images, _ = dataset.read(np.array([index]))
    image = resize_image(images[0], reference.shape)
    planes = np.stack([image, reference, prediction == NODULE]).astype(np.float32)
    padded = np.pad(planes, ((0, 0), (CROP_PX, CROP_PX), (CROP_PX, CROP_PX)), mode="edge")
    for y, x in ndimage.center_of_mass(reference, labels, range(1, count + 1)):
        yield padded[:, round(y) : round(y) + 2 * CROP_PX, round(x) : round(x) + 2 * CROP_PX]


def _score_case(dataset, index, predictions, points):
    """Yields the scores of a case at the slice's own size, for each operating point."""
    table, reference = dataset.table, dataset.read_native_mask(index)
    spacing = np.asarray(table.spacing_zyx_mm[index, 1:], float)
    for name, point in points.items():
        prediction = predictions[name]
        objects = matching.match_objects(
            prediction=prediction == NODULE, reference=reference == NODULE, spacing_yx_mm=spacing
        )
        yield {
            "case_id": str(table.case_id[index]),
            "patient": str(table.patient[index]),
            "point": name,
            "threshold": point.threshold,
            "min_mm": point.min_mm,
            **{f"{each}_dice": _dice(prediction, reference, each) for each in CLASS_NAMES[1:]},
            "false": sum(item["kind"] == "false" for item in objects),
            "nodules": [
                {
                    "diameter_mm": _or_none(item["diameter_mm"]),
                    "stratum": item["stratum"],
                    "found": item["kind"] == "found",
                    "dice": 2 * item["iou"] / (1 + item["iou"]),
                }
                for item in objects
                if item["kind"] != "false"
            ],
        }


def _dice(prediction, reference, name):
    """Returns the Dice of a class, None where the reference lacks it."""
    given, true = prediction == CLASS_NAMES.index(name), reference == CLASS_NAMES.index(name)
    return float(2 * np.sum(given & true) / (given.sum() + true.sum())) if true.any() else None


def summarise(rows, baseline):
    """Returns the scores of an arm at an operating point over all folds and seeds, JSON types.

    Each is {'estimate', 'low', 'high', 'num_cases', 'num_patients'}, intervals by bootstrap over patients: the
    seeds of a case stay together. Sensitivities have the exact interval beside ('exact_low', 'exact_high').
    'nodule Dice' is of all nodule pixels of a slice, false ones too; 'Dice of a found nodule' is of the object and
    its partner alone, as two readers of one nodule are compared.

    Args:
        rows: of `score_run`, with 'seed'.
        baseline: {(case_id, seed): row} of the paper's recipe at the most likely class, for paired differences.
    """
    patients = [row["patient"] for row in rows]
    nodules = [(row["patient"], nodule) for row in rows for nodule in row["nodules"]]
    hits = [[n["found"] for n in row["nodules"]] for row in rows]
    found_dice = [row["nodule_dice"] if any(each) else np.nan for row, each in zip(rows, hits, strict=True)]
    num_seeds = len({row["seed"] for row in rows})
    table = {
        "slices": len(rows),
        "nodules": len(nodules),
        "found": int(sum(nodule["found"] for _, nodule in nodules)),
        "sensitivity": _interval(nodules, matching.STRATA, num_seeds),
        **{f"sensitivity, {name}": _interval(nodules, (name,), num_seeds) for name in matching.STRATA[:3]},
        "sensitivity, 6 mm and more": _interval(nodules, matching.STRATA[1:3], num_seeds),
        "false per slice": _mean([row["false"] for row in rows], patients),
        "nodule Dice": _mean([_or_nan(row["nodule_dice"]) for row in rows], patients),
        "nodule Dice where found": _mean(found_dice, patients),
        "Dice of a found nodule": _mean(
            [nodule["dice"] if nodule["found"] else np.nan for _, nodule in nodules], [p for p, _ in nodules]
        ),
    }
    for name in ("left_lung", "right_lung"):
        table[f"{name} Dice"] = _mean([_or_nan(row[f"{name}_dice"]) for row in rows], patients)
        differences = [
            _or_nan(row[f"{name}_dice"]) - _or_nan(baseline[row["case_id"], row["seed"]][f"{name}_dice"])
            if (row["case_id"], row["seed"]) in baseline
            else np.nan
            for row in rows
        ]
        table[f"{name} Dice - baseline"] = _mean(differences, patients)
    return table


def _or_none(value):
    return float(value) if np.isfinite(value) else None


def _or_nan(value):
    return np.nan if value is None else value


def _mean(values, patients):
    return _json(statistics.bootstrap_mean(values, patients))


def _interval(nodules, strata, num_seeds):
    chosen = [(p, n["found"]) for p, n in nodules if n["stratum"] in strata]
    found = [hit for _, hit in chosen]
    interval = statistics.bootstrap_ratio(found, np.ones(len(chosen)), [patient for patient, _ in chosen])
    low, high = exact_interval(sum(found) / num_seeds, len(chosen) / num_seeds)
    return _json(interval) | {"exact_low": low, "exact_high": high}


def exact_interval(found, nodules):
    """Returns the ends of the exact interval of a share (Clopper and Pearson 1934); None of what is no count.

    The bootstrap of a handful that were all missed, or all found, has no width: this one has. It is of counts: a mean
    over seeds that is no whole number, such as 5.5 of 8, has none, since seeds add no nodules.

    Args:
        found: nodules found, the mean over the seeds.
        nodules: in one seed.
    """
    if not nodules or found != int(found) or nodules != int(nodules):
        return None, None
    interval = stats.binomtest(int(found), int(nodules)).proportion_ci(statistics.LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def _json(interval):
    fields = dataclasses.asdict(interval)
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in fields.items()}


def collect(workdirs, phantom=None, phantom_arms=(), *, flip=False):
    """Returns what the finished runs {Run: workdir} found, JSON types: scores by arm, and every nodule.

    Args:
        workdirs: {Run: pathlib.Path}.
        phantom: workdir of a run on the phantom by whose test split runs are scored too, or None.
        phantom_arms: the arms that are.
        flip: as `count_run`.
    """
    rows = [
        {"arm": run.arm, "seed": run.config.seed, "fold": run.config.data.fold, **row}
        for run, workdir in workdirs.items()
        for row in score_run(
            workdir, pool_counts(workdir, find_siblings(run, workdirs), flip=flip), flip=flip
        )
    ]
    baseline = {
        (row["case_id"], row["seed"]): row
        for row in rows
        if (row["arm"], row["point"]) == ("paper", POINTS[0])
    }
    arms = {arm: [] for arm in dict.fromkeys(run.arm for run in workdirs)}
    for run, workdir in workdirs.items():
        arms[run.arm].append(workdir)
    result = {
        "arms": {
            arm: {
                "runs": len(paths),
                "seconds a run": float(np.mean([_summary(path)["seconds"] for path in paths])),
                "epochs": [_summary(path)["epochs"] for path in paths],
                "best epochs": [_summary(path)["best_epoch"] for path in paths],
                **{
                    point: summarise([r for r in rows if (r["arm"], r["point"]) == (arm, point)], baseline)
                    for point in POINTS
                },
                "curve": count_curve(paths, flip=flip),
            }
            for arm, paths in arms.items()
        },
        "contrasts": contrast(rows, POINTS[0]),
        "nodules": [row for row in rows if row["nodules"]],
        "changed": {arm: _changed(workdirs, arm) for arm in arms},
    }
    if phantom is not None:
        shown = {run: workdir for run, workdir in workdirs.items() if run.arm in phantom_arms}
        result["phantom"] = score_phantoms(shown, phantom)
    return result


OUTCOMES = {
    "found": lambda row: np.mean([n["found"] for n in row["nodules"]]) if row["nodules"] else np.nan,
    "false per slice": lambda row: row["false"],
    "nodule Dice": lambda row: _or_nan(row["nodule_dice"]),
    "left_lung Dice": lambda row: _or_nan(row["left_lung_dice"]),
    "right_lung Dice": lambda row: _or_nan(row["right_lung_dice"]),
}
"""What the arms are compared by: {name: of a row of `score_run`}, of a slice, NaN where it has none."""


def contrast(rows, point, reference="recommended"):
    """Returns {arm: {outcome: difference}} of each arm less the reference, paired by slice and seed, JSON types.

    Each difference is an interval by bootstrap over patients, with 'seeds', those that both have, and 'p', of the
    sign-flip test over patients, by Holm's method for all arms and outcomes of the table. Both are over slices at
    the initial weights at hand: what another initialisation, or another pre-training, would give they leave out.

    Args:
        rows: of `collect`, with 'arm' and 'seed'.
        point: of `POINTS`.
        reference: the arm that the others are compared with.
    """
    by_arm = {}
    for row in rows:
        if row["point"] == point:
            by_arm.setdefault(row["arm"], {})[row["case_id"], row["seed"]] = row
    tests = {}
    for arm, ours in by_arm.items():
        shared = sorted(ours.keys() & by_arm.get(reference, {}).keys())
        if arm == reference or not shared:
            continue
        for outcome, value in OUTCOMES.items():
            test = statistics.paired_test(
                [value(by_arm[reference][key]) for key in shared],
                [value(ours[key]) for key in shared],
                [ours[key]["patient"] for key in shared],
            )
            tests[arm, outcome] = test, len({seed for _, seed in shared})
    corrected = statistics.holm([test.p_value for test, _ in tests.values()])
    table = {}
    for ((arm, outcome), (test, seeds)), p in zip(tests.items(), corrected, strict=True):
        p = None if np.isnan(p) else float(p)
        table.setdefault(arm, {})[outcome] = _json(test.difference) | {"seeds": seeds, "p": p}
    return table


def find_siblings(run, workdirs):
    """Returns the workdirs of a run's arm and seed."""
    return [
        path
        for other, path in workdirs.items()
        if (other.arm, other.config.seed) == (run.arm, run.config.seed)
    ]


def score_phantoms(workdirs, phantom):
    """Returns {arm: `summarise`} of the phantom's test split: what fine-tuning on real slices leaves of the start.

    Of each arm that started from `phantom` the runs of the first seed, and that run itself as 'start'.

    Args:
        workdirs: {Run: pathlib.Path}.
        phantom: workdir of the run on the phantom.
    """
    arms = {"start": [phantom]}
    first = min(run.config.seed for run in workdirs)
    for run, path in workdirs.items():
        if run.config.train.init_from == str(phantom) and run.config.seed == first:
            arms.setdefault(run.arm, []).append(path)
    return {
        arm: summarise(
            [
                {"seed": number, **row}
                for number, path in enumerate(paths)
                for row in score_phantom(path, phantom)
            ],
            {},
        )
        for arm, paths in arms.items()
    }


def count_curve(paths, *, flip=False):
    """Returns what each threshold finds on the test slices of some runs, no nodule left out by size: JSON types.

    For looking at: nothing is chosen by it.

    Args:
        paths: of finished runs, whose test splits are counted together.
        flip: as `count_run`.
    """
    first, *others = (count_run(path, flip=flip)["test"] for path in paths)
    counts = sum(others, start=first)
    found, missed, false = counts.sums[:: len(operating_point.SIZES_MM), :3].T
    return [
        {"threshold": threshold, "found": int(f), "nodules": int(f + m), "false per slice": n / counts.slices}
        for threshold, f, m, n in zip(operating_point.THRESHOLDS, found, missed, false.tolist(), strict=True)
    ]


def _summary(workdir):
    return files.read_json(workdir / "summary.json")


def _changed(workdirs, arm):
    """Returns what an arm changes in configs/base.py, without where its data lie."""
    config = next(run.config for run in workdirs if run.arm == arm)
    found = run_folder.list_differences(
        run_folder.config_to_dict(base.get_config()), run_folder.config_to_dict(config)
    )
    return [line for line in found if not line.startswith(("train.init_from", "data.dir"))]
