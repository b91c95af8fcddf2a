"""DeepSEED beside the box: candidates of whole scans by LUNA16's rule, on phantoms and on real scans.

    python -m experiments.deepseed.study --workdir=DIR --real=DIR [--out=experiments/results/deepseed.json]
        [--seeds=1,2,3] [--steps=300] [--num_scans=16] [--num_test=6]

The detector is trained on the phantom's scans but the last `--num_test`, which judge, as do the two real scans whose every
nodule was marked. For each of these it is then trained on for a third of the steps with the other one among the scans, a
cube in two from there. Candidates are written as LUNA16's CSV. The box's are judged by the same rule: on the phantom those
of `predict`; on the real scans box_nodules.json has those of networks that never saw the patient. A study that was
stopped goes on with the same command.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from absl import flags

from auxseg.base import command, files
from auxseg.ct import images
from auxseg.datasets.labels import LUNA16_LEFT, LUNA16_RIGHT
from auxseg.datasets.luna16 import layout
from auxseg.datasets.phantom import drawing
from auxseg.prediction import segment
from auxseg.scoring import froc
from configs import phantom
from experiments import made_by
from experiments.box import nodule_data
from experiments.deepseed import train, volumes
from experiments.studies import runner

MODULE = "experiments.deepseed.study"
MATRIX, NUM_SLICES = 192, 120
ALONE, WITH_OTHER = "phantom alone", "and the other real scan"
BOX = "the box"


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a scan is judged by.

    Attributes:
        volume: `volumes.Volume`.
        nodules, excluded: float64 [n, 4], x, y, z in mm (LPS) and diameter.
    """

    volume: volumes.Volume
    nodules: np.ndarray
    excluded: np.ndarray


def read_phantom(root, num_scans):
    """Returns ([`Judged`], [path]) of the phantom, which is drawn below `root` where it is not."""
    config = phantom.get_config().data.phantom
    with config.unlocked():
        config.num_scans, config.num_slices, config.matrix = num_scans, NUM_SLICES, MATRIX
    folder = layout.list_folder(drawing.ensure(root / "scans", config))
    annotations, none = froc.read_annotations(folder.annotations), np.zeros((0, 4))
    found = []
    for scan in folder.scans:
        header = images.read_header(scan.path)
        mask = images.read_volume(scan.mask_path)
        lungs = (mask == LUNA16_LEFT) | (mask == LUNA16_RIGHT)
        nodules = annotations.get(scan.uid, none)
        about = (
            images.read_volume(scan.path, header=header),
            lungs,
            header.geometry,
            nodules,
            train.VOXEL_MM,
        )
        found.append(Judged(volumes.create_volume(scan.uid, *about), nodules, none))
    return found, [scan.path for scan in folder.scans]


def read_real(real):
    """Returns {name: `Judged`} of the scans that were read completely."""
    found = {}
    for name in nodule_data.READ_COMPLETELY:
        scan = nodule_data.read_scan(pathlib.Path(real) / "scans", name)
        lungs = (scan.lungs == 1) | (scan.lungs == 2)
        about = (scan.hu, lungs, scan.geometry, scan.nodules, train.VOXEL_MM)
        found[name] = Judged(volumes.create_volume(name, *about), scan.nodules, scan.excluded)
    return found


def train_once(path, scans, recipe, start=None):
    """Returns the variables in the file `path`, training them first where it is not there."""
    if not path.is_file():
        variables, losses = train.train(scans, recipe, start)
        files.write_json(path.with_suffix(".json"), {"losses": losses})
        train.write_weights(path, variables)
    return train.read_weights(path)


def find_once(path, judged, variables):
    """Returns {scan: candidates} in the CSV `path`, of LUNA16's form, looking for them first where it is not there."""
    if not path.is_file():
        forward = train.create_forward(variables)
        found = {each.volume.uid: train.find(each.volume, forward) for each in judged}
        froc.write_candidates(path, found)
    return froc.read_candidates(path)


def find_box(path, judged, paths):
    """Returns the same of the networks in the box."""
    if not path.is_file():
        found = {}
        for each, file in zip(judged, paths, strict=True):
            result = segment.segment(file, options=segment.Options(force=True))
            rows = result.found.candidates if result.found else []
            centres = [_centre_mm(result, row["centre_zyx"]) for row in rows]
            found[each.volume.uid] = [
                (*at, row["probability"]) for at, row in zip(centres, rows, strict=True)
            ]
        froc.write_candidates(path, found)
    return froc.read_candidates(path)


def _centre_mm(result, centre_zyx):
    from auxseg.ct import geometry

    z, y, x = np.add(centre_zyx, (0, *result.box.start_yx))
    return geometry.index_to_mm(result.scan.geometry, (x, y, z)).tolist()


def match(found, judged):
    """Returns the `froc.Matches` of each scan."""
    none = np.zeros((0, 4))
    return [froc.match(found.get(each.volume.uid, none), each.nodules, each.excluded) for each in judged]


def describe(matches):
    """Returns `froc.summarise` with the curve of it, JSON types."""
    false, sensitivity = froc.curve(matches)
    curve = {"false_per_scan": false.tolist(), "sensitivity": sensitivity.tolist()}
    return froc.summarise(matches) | {"curve": curve}


def describe_real(match):
    """Returns of one scan whether its nodules are found, and how many false ones rank above the lowest one found."""
    hits = match.hits[~np.isnan(match.hits)]
    above = int((match.false >= hits.min()).sum()) if len(hits) else None
    return {"nodules": len(match.hits), "found": len(hits), "false": len(match.false), "false_above": above}


def run(given):
    """Returns what `--out` holds, JSON types; written anew after each seed."""
    root, seeds = pathlib.Path(given.workdir), runner.whole_numbers("--seeds", given.seeds)
    train.prepare(root)
    scans, paths = read_phantom(root, given.num_scans)
    learned, test = scans[: -given.num_test], scans[-given.num_test :]
    real, result = read_real(given.real), {"phantom": [], "real": []}
    box = match(find_box(root / "box.csv", test, paths[-given.num_test :]), test)
    result["phantom"].append({"detector": BOX, "seed": None, **describe(box)})
    for seed in seeds:
        recipe = train.Recipe(steps=given.steps, seed=seed)
        variables = train_once(root / f"seed{seed}.npz", [each.volume for each in learned], recipe)
        found = find_once(root / f"phantom_{seed}.csv", test, variables)
        result["phantom"].append({"detector": "DeepSEED", "seed": seed, **describe(match(found, test))})
        result["real"] += look_at_real(root, real, learned, variables, recipe)
        write(given, result)
    return result


def look_at_real(root, real, learned, variables, recipe):
    """Returns rows of the real scans: by the detector as it is, and after it saw the other scan."""
    rows, seed = [], recipe.seed
    found = find_once(root / f"real_{seed}.csv", real.values(), variables)
    for name, judged in real.items():
        (matched,) = match(found, [judged])
        rows.append({"scan": name, "trained": ALONE, "seed": seed, **describe_real(matched)})
        (other,) = [each.volume for each in real.values() if each is not judged]
        mixed = [each.volume for each in learned] + [other] * len(learned)
        short = dataclasses.replace(
            recipe, steps=max(1, recipe.steps // 3), learning_rate=recipe.learning_rate / 4
        )
        tuned = train_once(root / f"seed{seed}_without_{name}.npz", mixed, short, variables)
        (matched,) = match(find_once(root / f"real_{seed}_{name}.csv", [judged], tuned), [judged])
        rows.append({"scan": name, "trained": WITH_OTHER, "seed": seed, **describe_real(matched)})
    return rows


def write(given, result):
    """Writes the result file, and the tables beside it as Markdown."""
    out = pathlib.Path(given.out)
    data = f"phantom, {given.num_scans} scans of {NUM_SLICES} slices of {MATRIX} x {MATRIX}, {given.num_test} of them to judge; {', '.join(nodule_data.READ_COMPLETELY)}"
    seeds = [row["seed"] for row in result["phantom"] if row["seed"]]
    origin = made_by.made_by(f"python -m {MODULE} --workdir=FOLDER --real=FOLDER", data=data, seeds=seeds)
    files.write_json(out, {"made_by": origin, "steps": given.steps, **result})
    files.write_text(out.with_suffix(".md"), "\n".join(format_tables(result)) + "\n")


def format_tables(result):
    """Yields the lines of a Markdown page: the phantom's curve, and the real scans."""
    yield "# DeepSEED beside the box\n"
    yield f"By `python -m {MODULE}`. Nodules found at so many false ones a scan.\n"
    rates = [f"{rate:g}" for rate in froc.FALSE_PER_SCAN]
    yield f"| phantom | seed | scans | nodules | {' | '.join(rates)} | at any | CPM |"
    yield "|" + " --- |" * (len(rates) + 6)
    for row in result["phantom"]:
        cells = [row["detector"], str(row["seed"] or ""), str(row["num_scans"]), str(row["num_nodules"])]
        cells += [str(row["found_at"][rate]) for rate in rates] + [str(row["num_found"])]
        cells.append("too few" if row["cpm"] is None else f"{row['cpm']:.3f}")
        yield f"| {' | '.join(cells)} |"
    yield "\n| real scan | trained on | seed | found | false candidates above the nodule | false candidates |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in result["real"]:
        above = "not found" if row["false_above"] is None else str(row["false_above"])
        yield f"| {row['scan']} | {row['trained']} | {row['seed']} | {row['found']} of {row['nodules']} | {above} | {row['false']} |"


def main(argv):
    """Runs the command."""
    del argv
    run(flags.FLAGS)


if __name__ == "__main__":
    flags.DEFINE_string(
        "workdir", None, "Folder of the phantom, the weights and the candidates.", required=True
    )
    flags.DEFINE_string("real", None, "Folder of the real data, with scans.", required=True)
    flags.DEFINE_string("out", "experiments/results/deepseed.json", "File to write.")
    flags.DEFINE_list("seeds", ["1", "2", "3"], "Of the trainings.")
    flags.DEFINE_integer("steps", 300, "Of each.", lower_bound=1)
    flags.DEFINE_integer("num_scans", 16, "Of the phantom.", lower_bound=3)
    flags.DEFINE_integer("num_test", 6, "Of them, that judge.", lower_bound=1)
    command.run(main)
