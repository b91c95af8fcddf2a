"""What the options of prediction do to the scores: clean-up, test-time augmentation, ensembling.

    python -m experiments.checks.cleanup RUN [RUN ...] [--slices=lung] [--out=experiments/results/cleanup.json]

The cases are those of the runs' test split, at the network's size; with `--slices=lung` every slice with lung
of the test patients, so that the pieces of a class hang together through the slices of a scan as they do in
`auxseg.predict`. With several runs (of one split, by different seeds) every option is measured with each
run and averaged by case; the ensemble is measured once. Each line is compared with the plain prediction
on the same cases (nodules of a case whose pixel size is not known all stay): mean difference, 95 % interval (bootstrap by patient), p by sign flips, Holm's correction
over all lines.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np
from absl import flags

from auxseg import datasets
from auxseg.base import command, errors, files
from auxseg.evaluation import score_cases
from auxseg.runs import run_folder
from auxseg.runs.masks import predict_probabilities
from auxseg.runs.networks import load_network
from auxseg.runs.splits import default_split, read_splits
from auxseg.scoring import case_scores, components, statistics

PLAIN = "plain"
CLEANED = {
    "largest_components": components.CleanUp(largest_components=True),
    "fill_holes": components.CleanUp(fill_holes=True),
    "min_nodule_mm=3": components.CleanUp(min_nodule_mm=3.0),
    "min_nodule_mm=5": components.CleanUp(min_nodule_mm=5.0),
    "all three, 3 mm": components.CleanUp(largest_components=True, fill_holes=True, min_nodule_mm=3.0),
}
SCORED = tuple(f"{name}_dice" for name in case_scores.FOREGROUND) + tuple(
    f"{name}_hd95_mm" for name in case_scores.LUNGS
)


def main(argv):
    """Runs the command."""
    del argv
    given = flags.FLAGS
    if not given.runs:
        raise errors.InputError("--runs: not given, expected the workdirs of runs")
    result = measure([pathlib.Path(one) for one in given.runs], slices=given.slices)
    files.write_json(given.out, result)
    print(describe(result))


def measure(workdirs, *, slices=None):
    """Returns {'data', 'runs', 'cases', 'patients', 'rows': one dict an option}, JSON types.

    Args:
        workdirs: pathlib.Path of runs, at least one.
        slices: another value of `data.slices`, for data sets that have it, or None.

    Raises:
        errors.InputError: the runs have other test cases or sizes than the first one.
    """
    networks = [load_network(one) for one in workdirs]
    dataset, stacks = _read_stacks(workdirs, slices)
    tables = {}
    for indices, references, maps in _read_predicted(dataset, stacks, networks):
        spacing = score_cases.resized_spacing(dataset, indices[0])
        for name, number, masks in _decide_all(maps, spacing):
            rows = tables.setdefault((name, number), [])
            rows += [_score(*each, spacing) for each in zip(masks, references, strict=True)]
    patients = np.concatenate([dataset.table.patient[indices] for indices in stacks])
    by_option = {}
    for (name, _), rows in tables.items():
        by_option.setdefault(name, []).append(rows)
    return {
        "data": dataset.name,
        "runs": [one.name for one in networks],
        "cases": len(patients),
        "patients": len(set(patients.tolist())),
        "stacks": len(stacks),
        "rows": _compare(by_option, patients),
    }


def _read_stacks(workdirs, slices):
    """Returns (Dataset, list of indices int [D] of the slices of a scan, in order)."""
    config = run_folder.read_config(workdirs[0])
    dataset = datasets.load(config.data)
    members = read_splits(workdirs[0], dataset)
    cases = members[default_split(members)]
    for other in workdirs[1:]:
        theirs = read_splits(other, dataset)
        if set(theirs[default_split(theirs)].tolist()) != set(cases.tolist()):
            raise errors.InputError(f"runs: {other} was split in another way than {workdirs[0]}")
        if tuple(run_folder.read_config(other).data.size) != tuple(config.data.size):
            raise errors.InputError(f"runs: {other} has another data.size than {workdirs[0]}")
    if slices is not None:
        patients = set(dataset.table.patient[cases].tolist())
        with config.unlocked():
            config.data.slices = slices
        dataset = datasets.load(config.data)
        cases = np.flatnonzero([one in patients for one in dataset.table.patient.tolist()])
    return dataset, _group(dataset.table, cases)


def _group(table, cases):
    """Returns the cases in stacks of slices that follow one another in one scan."""
    order = sorted(cases.tolist(), key=lambda i: (table.series_uid[i], table.slice_index[i]))
    stacks, last = [], None
    for index in order:
        place = table.series_uid[index], table.slice_index[index] - 1
        if last is not None and place == last and table.slice_index[index] > 0:
            stacks[-1].append(index)
        else:
            stacks.append([index])
        last = table.series_uid[index], table.slice_index[index]
    return [np.array(one) for one in stacks]


def _read_predicted(dataset, stacks, networks, slices_at_once=64):
    """Yields (indices, references, {flip: probabilities float32 [D, H, W, C] of each run}) of each stack.

    Short stacks are predicted together: a batch holds more than one slice.
    """
    groups = [[]]
    for stack in stacks:
        if sum(map(len, groups[-1])) >= slices_at_once:
            groups.append([])
        groups[-1].append(stack)
    for group in groups:
        images, references = dataset.read(np.concatenate(group))
        maps = {flip: [_predict(one, images, flip) for one in networks] for flip in (False, True)}
        start = 0
        for stack in group:
            part = slice(start, start + len(stack))
            yield stack, references[part], {flip: [one[part] for one in maps[flip]] for flip in maps}
            start = part.stop


def _decide_all(maps, spacing_yx_mm):
    """Yields (option, number of the run, masks uint8 [D, H, W]) of one stack."""
    pixel_mm2 = float(np.prod(spacing_yx_mm))
    for number, one in enumerate(maps[False]):
        masks = _decide(one)
        yield PLAIN, number, masks
        for name, options in CLEANED.items():
            if not math.isfinite(pixel_mm2):
                options = dataclasses.replace(options, min_nodule_mm=0.0)
            cleaned = masks.copy()
            components.clean(cleaned, options, pixel_mm2=pixel_mm2)
            yield name, number, cleaned
        yield "flip", number, _decide(maps[True][number])
    if len(maps[False]) > 1:
        yield "ensemble", 0, _decide(sum(maps[False]))
        yield "ensemble, flip", 0, _decide(sum(maps[True]))


def _predict(network, images, flip, batch_size=8):
    """Returns float32 [D, H, W, C]; a last batch is filled up, so that one program serves all."""
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
        found = predict_probabilities(network, filled, flip=flip)
        parts.append(np.asarray(found)[: len(part)])
    return np.concatenate(parts)


def _decide(probabilities):
    return probabilities.argmax(-1).astype(np.uint8)


def _score(prediction, reference, spacing_yx_mm):
    return case_scores.score_case(prediction=prediction, reference=reference, spacing_yx_mm=spacing_yx_mm).row


def _compare(by_option, patients):
    """Returns one dict an option: means, differences to the plain prediction and what they support."""
    plain = {key: _mean_of_runs(by_option[PLAIN], key) for key in SCORED}
    rows, tests = [], []
    for name, runs_of_option in by_option.items():
        row = {"option": name}
        for key in SCORED:
            values = _mean_of_runs(runs_of_option, key)
            test = statistics.paired_test(plain[key], values, patients)
            row[key] = _number(np.nanmean(values)) if np.isfinite(values).any() else None
            row[f"{key}_cases"] = int(np.isfinite(values).sum())
            if name != PLAIN:
                row[f"{key}_change"] = [
                    _number(v) for v in (test.difference.estimate, test.difference.low, test.difference.high)
                ]
                tests.append((row, key, test.p_value))
        for kind in ("found", "false"):
            total = np.mean([sum(one[f"nodules_{kind}"] for one in each) for each in runs_of_option])
            row[f"nodules_{kind}"] = _number(total)
        rows.append(row)
    for (row, key, _), p_value in zip(tests, statistics.holm([p for _, _, p in tests]), strict=True):
        row[f"{key}_p"] = _number(p_value)
    return rows


def _mean_of_runs(tables, key):
    return np.mean([[row[key] for row in rows] for rows in tables], axis=0)


def _number(value):
    return round(float(value), 5) if np.isfinite(value) else None


def describe(result):
    """Returns the result as a Markdown table; * marks what holds after the correction."""
    titles = [f"{key.replace('_', ' ')} (n = {result['rows'][0][f'{key}_cases']})" for key in SCORED]
    lines = [
        f"{result['data']}: {result['cases']} slices of {result['patients']} patients, "
        f"{len(result['runs'])} runs",
        "",
        f"| option | {' | '.join(titles)} | nodules found | false |",
        "| --- |" + " --- |" * (len(titles) + 2),
    ]
    for row in result["rows"]:
        cells = [_cell(row, key) for key in SCORED]
        lines.append(
            f"| {row['option']} | {' | '.join(cells)} | {row['nodules_found']:g} | {row['nodules_false']:g} |"
        )
    return "\n".join(lines)


def _cell(row, key):
    if row[key] is None:
        return "-"
    if f"{key}_change" not in row:
        return f"{row[key]:.4g}"
    change, low, high = row[f"{key}_change"]
    p_value = row[f"{key}_p"]
    star = "*" if p_value is not None and p_value < 0.05 else ""
    return f"{row[key]:.4g} ({change:+.3g} [{low:+.3g}, {high:+.3g}]{star})"


if __name__ == "__main__":
    flags.DEFINE_list("runs", [], "folders of runs with the same split; may be given without --runs=")
    flags.DEFINE_string("slices", None, "which slices of the test patients; default: those of the runs")
    flags.DEFINE_string("out", "experiments/results/cleanup.json", "JSON file to write")
    command.run(main, positional=("runs",))
