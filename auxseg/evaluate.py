"""One evaluation, used after every epoch, at the end of a run, and as a command that writes the report.

python -m auxseg.evaluate --workdir=runs/phantom [--split=test] [--explain=CASE:CLASS,...] [--tune | --tuned] \
    [--flip]

Nodules of whole scans are judged by LUNA16's rule, from the folder that `predict` wrote and tables in LUNA16's form:

python -m auxseg.evaluate --prediction=DIR --annotations=annotations.csv [--excluded=annotations_excluded.csv] \
    [--reference=MASKS] [--output=DIR]
"""

import json
import pathlib

from absl import flags

from auxseg.base import command
from auxseg.base.errors import InputError


def main(argv):
    """Runs the command: prints the summary as JSON and the report's page on the last line."""
    del argv
    if flags.FLAGS.annotations:
        return judge_nodules(flags.FLAGS)
    if not flags.FLAGS.workdir:
        raise InputError(
            "--workdir: not given, expected a run's folder; or give --prediction and --annotations"
        )
    from auxseg.evaluation import evaluate_run  # here, for --help to be answered at once

    workdir = pathlib.Path(flags.FLAGS.workdir)
    explained = parse_explain(flags.FLAGS.explain)
    flip = flags.FLAGS.flip
    if flags.FLAGS.tune:
        print(evaluate_run.describe_decision(evaluate_run.tune(workdir, flip=flip)))
    tuned = flags.FLAGS.tuned or flags.FLAGS.tune
    summary, page = evaluate_run.report_run(
        workdir, split=flags.FLAGS.split, explained=explained, tuned=tuned, flip=flip
    )
    print(json.dumps(summary, indent=2))
    print(f"report: {page}")


def judge_nodules(given):
    """Judges predicted nodules by a table of annotations; prints what was found and, last, the report's page."""
    from auxseg.evaluation import detection
    from auxseg.report import froc_page

    if not given.prediction:
        raise InputError("--prediction: not given, expected the folder that predict wrote")
    output = given.output or pathlib.Path(given.prediction) / "evaluation"
    scores, page = detection.judge(
        given.prediction, given.annotations, output, excluded=given.excluded, reference=given.reference
    )
    print("\n".join(froc_page.describe(scores)))
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
    flags.DEFINE_string("prediction", None, "folder that predict wrote, of one scan or many")
    flags.DEFINE_string("annotations", None, "CSV of nodules: seriesuid,coordX,coordY,coordZ,diameter_mm")
    flags.DEFINE_string("excluded", None, "CSV of findings that are neither nodule nor not, in the same form")
    flags.DEFINE_string("reference", None, "folder of masks, named as the scans, whose nodules are compared")
    flags.DEFINE_string(
        "output", None, "folder of the report; default: evaluation, in that of the predictions"
    )
    command.run(main)
