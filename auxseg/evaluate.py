"""One evaluation, used after every epoch, at the end of a run, and as a command that writes the report.

python -m auxseg.evaluate --workdir=runs/phantom [--split=test] [--explain=CASE:CLASS,...] [--tune | --tuned] \
    [--flip]

A run is judged on another data set by naming that: all its cases are scored but those of patients that the run learned from.
The report has a folder of its own, RUN/external/NAME:

python -m auxseg.evaluate --workdir=RUN --config.data.dir=OTHER [--config.data.name=folder] [--config.data.label_map=lungmask]

Masks of whole scans, of whichever tool, are judged against reference masks; several tools stand on one page:

python -m auxseg.evaluate --reference=DIR --prediction=DIR [--prediction=DIR] [--reference_label_map=lungmask] \
    [--prediction_label_map=totalsegmentator] [--output=DIR]

Nodules of whole scans are judged by LUNA16's rule, from the folder that `predict` wrote and tables in LUNA16's form:

python -m auxseg.evaluate --prediction=DIR --annotations=annotations.csv [--excluded=annotations_excluded.csv] \
    [--reference=MASKS] [--output=DIR]
"""

import json
import pathlib

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError
from auxseg.runs import config_files


def main(argv):
    """Runs the command: prints the summary as JSON and the report's page on the last line."""
    del argv
    if flags.FLAGS.annotations:
        return judge_nodules(flags.FLAGS)
    if flags.FLAGS.prediction or flags.FLAGS.reference:
        return judge_masks(flags.FLAGS)
    if not flags.FLAGS.workdir:
        raise InputError(
            "--workdir: not given, expected a run's folder; or give --prediction, with --reference or --annotations"
        )
    from auxseg.evaluation import evaluate_run, external  # here, for --help to be answered at once

    workdir = pathlib.Path(flags.FLAGS.workdir)
    explained = parse_explain(flags.FLAGS.explain)
    flip = flags.FLAGS.flip
    changed = config_files.list_changes()
    if changed and flags.FLAGS.split:
        raise InputError("--split: given with another data set, of which all cases are scored; leave it out")
    if flags.FLAGS.tune:
        print(evaluate_run.describe_decision(evaluate_run.tune(workdir, flip=flip)))
    tuned = flags.FLAGS.tuned or flags.FLAGS.tune
    if changed:
        data = external.check_changes(changed, flags.FLAGS.config).data
        summary, page = external.report(
            workdir, data, output=flags.FLAGS.output, explained=explained, tuned=tuned, flip=flip
        )
    else:
        summary, page = evaluate_run.report_run(
            workdir, split=flags.FLAGS.split, explained=explained, tuned=tuned, flip=flip
        )
    print(json.dumps(summary, indent=2))
    print(f"report: {page}")


def judge_nodules(given):
    """Judges predicted nodules by a table of annotations; prints what was found and, last, the report's page."""
    from auxseg.evaluation import detection
    from auxseg.report import froc_page

    if len(given.prediction) != 1:
        raise InputError(
            f"--prediction: got {len(given.prediction)} folders, expected one, that predict wrote, with --annotations"
        )
    folder = given.prediction[0]
    output = given.output or pathlib.Path(folder) / "evaluation"
    scores, page = detection.judge(
        folder, given.annotations, output, excluded=given.excluded, reference=given.reference
    )
    print("\n".join(froc_page.describe(scores)))
    print(f"report: {page}")


def judge_masks(given):
    """Judges masks against reference masks; prints means by class and, last, the report's page."""
    from auxseg.evaluation import scan_masks
    from auxseg.report import masks_page

    if not given.prediction or not given.reference:
        raise InputError("--prediction, --reference: expected a folder of masks for each")
    scores, page = scan_masks.judge(
        given.reference,
        given.prediction,
        given.output or pathlib.Path(given.prediction[0]) / "evaluation",
        reference_map=given.reference_label_map,
        prediction_maps=given.prediction_label_map,
    )
    print("\n".join(masks_page.describe(scores)))
    print(f"report: {page}")


def parse_explain(text):
    """Returns (case id, class) pairs of 'CASE:CLASS,...'; () for '': the report chooses; None for 'none'.

    Raises:
        InputError: a part that is no pair.
    """
    if text == "none":
        return None
    pairs = [tuple(part.rsplit(":", 1)) for part in text.split(",") if part]
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(
                f"--explain: got {':'.join(pair)!r}, expected CASE:CLASS, such as ID_0001:nodule"
            )
    return tuple(pairs)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("split", None, "train, val or test; default: test, else val")
    flags.DEFINE_string(
        "explain", "", "Grad-CAM of these: CASE:CLASS,...; 'none'; default: the worst and the best nodule"
    )
    flags.DEFINE_bool(
        "tune", False, "first choose the nodule threshold and least size on val, and store them"
    )
    flags.DEFINE_bool("tuned", False, "take the stored nodule threshold and least size")
    flags.DEFINE_bool("flip", False, "average with the mirrored slices, as `predict --flip` does")
    flags.DEFINE_multi_string(
        "prediction", [], "folder of masks, such as predict writes; again for another tool"
    )
    flags.DEFINE_string("annotations", None, "CSV of nodules: seriesuid,coordX,coordY,coordZ,diameter_mm")
    flags.DEFINE_string("excluded", None, "CSV of findings that are neither nodule nor not, in the same form")
    flags.DEFINE_string("reference", None, "folder of masks, named as the scans, to compare with")
    flags.DEFINE_string("reference_label_map", None, "what their values mean, as data.label_map says it")
    flags.DEFINE_multi_string("prediction_label_map", [], "the same of each --prediction, in their order")
    flags.DEFINE_string(
        "output",
        None,
        "folder of the report; default: evaluation, in that of the predictions, or external/NAME in that of the run",
    )
    config_files.define("settings of the run; only --config.data.* may be given, for another data set")
    command.run(main, complete=config_files.with_settings_of_workdir)
