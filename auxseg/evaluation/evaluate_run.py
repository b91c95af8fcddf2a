"""Evaluates a run from its folder: scores a split, tunes the nodule threshold, ends a training with its report."""

import dataclasses

import numpy as np

from auxseg.base import files
from auxseg.base.errors import check_choice
from auxseg.datasets import load
from auxseg.devices import parallel
from auxseg.runs import checkpoints, decisions, networks, run_folder, splits, state
from auxseg.scoring import operating_point, pixel_counts
from auxseg.training import batching, events, facts, validation


def tune(workdir, *, flip=False):
    """Returns what the nodule threshold and least size found on validation, after storing them with the run.

    Args:
        workdir: pathlib.Path of a run.
        flip: of probabilities that are averaged with the mirrored slices'.

    Raises:
        InputError: as `evaluate`; the validation split has no nodule.
    """
    from auxseg.evaluation import score_cases

    subject, _, _ = open_run(workdir, "val", flip=flip)
    chosen, found = score_cases.choose_decision(subject, max_false=subject.config.eval.max_false_per_slice)
    decisions.write_decision(workdir, chosen, found, flip=flip)
    return found


def describe_decision(found):
    """Returns one line of text on what `tune` chose."""
    best, few = found["chosen"], operating_point.describe_few(found["nodules"])
    return (
        f"nodules from a probability of {best['threshold']:g} and {best['min_mm']:g} mm on: {best['found']} of "
        f"{found['nodules']} found, {best['false_per_slice']:.2f} false a slice on {found['slices']} validation "
        f"slices (stored in {decisions.FILE})" + (f"; {few}" if few else "")
    )


def report_run(workdir, *, split=None, explained=(), tuned=False, flip=False):
    """Returns (summary, page) of a run's best weights on a split, after writing `workdir/report`.

    Args:
        workdir: pathlib.Path of a run.
        split: as `evaluate`.
        tuned: take the run's stored threshold and least size of nodules instead of the most likely class.
        explained: (case id, class) pairs for Grad-CAM, () for a choice, None for none.
        flip: average the probabilities with the mirrored slices'; losses stay those of the slices alone.

    Raises:
        InputError: as `evaluate`; a case to explain that is not there; a threshold for the other `flip`.
    """
    from auxseg.evaluation import score_cases

    subject, split, found = open_run(workdir, split, flip=flip)
    score_cases.find_cases(subject.dataset, explained or ())
    if tuned:
        subject = dataclasses.replace(subject, decision=decisions.read_decision(workdir, flip=flip))
    results = evaluate_split(subject, split)
    judgement = score_cases.judge_split(subject, split)
    notes = splits.describe_changes(workdir, subject.dataset)
    page = score_cases.write_judgement(workdir, subject, judgement, explained=explained, notes=notes)
    return {
        "split": split,
        "epoch": found["epoch"],
        **summarise_decided(subject, split, results, judgement, tuned or flip),
    }, page


def summarise_decided(subject, split, results, judgement, otherwise):
    """Returns the scores of CaseResults; those of masks are the judgement's, where it decided otherwise.

    At a fixed scale too, where the losses are of cases with as much around them as the largest has.
    """
    if otherwise or subject.dataset.scale is not None:
        results = results._replace(counts=_count_decided(subject, split, judgement))
    return _summarise(subject, split, results)


def _count_decided(subject, split, judgement):
    rows, classes = judgement.evaluation.rows, judgement.evaluation.classes
    confusion = np.array([
        [[row[f"pixels_{true}_as_{given}"] for given in classes] for true in classes] for row in rows
    ])  # fmt: skip
    return pixel_counts.Counts(
        overlap=np.diagonal(confusion, axis1=1, axis2=2),
        predicted=confusion.sum(axis=1),
        reference=confusion.sum(axis=2),
        known=subject.dataset.table.knows[subject.members[split]],
    )


def _summarise(subject, split, results):
    """Returns the scores of CaseResults of a split, in all and by source."""
    scores = validation.summarise(results, subject.dataset.classes)
    return scores | validation.by_source(results, subject.dataset, subject.members[split])


def evaluate(workdir, *, split=None):
    """Returns the summary of a run's best weights on a split, from its workdir alone.

    Args:
        workdir: pathlib.Path of a run.
        split: 'train', 'val' or 'test'; None: the test split, or val where the run has no test split.

    Raises:
        InputError: no run there, no such split, or other data than it was trained on.
    """
    subject, split, found = open_run(workdir, split)
    scores = _summarise(subject, split, evaluate_split(subject, split))
    return {"split": split, "epoch": found["epoch"], **scores}


def open_run(workdir, split, *, flip=False):
    """Returns (Subject, split, what is stored with the weights) of a run; see `evaluate` and `report_run`."""
    from auxseg.evaluation import score_cases

    config, variables, found = networks.read_best(workdir)
    dataset = load(config.data)
    members = splits.read_splits(workdir, dataset)
    for change in splits.describe_changes(workdir, dataset):
        print(f"note: {change}", flush=True)
    split = check_choice("split", split or splits.default_split(members), tuple(members))
    devices = parallel.choose_devices(config.train.num_devices)
    feed = batching.create_feed(dataset, members[split], placement=config.data.placement, devices=devices)
    predict_fn = score_cases.create_predict_fn(config, variables, devices, flip=flip)
    subject = score_cases.Subject(config, dataset, members, feed, variables, predict_fn, flip=flip)
    return subject, split, found


def evaluate_split(subject, split):
    """Returns the CaseResults of a split of a Subject."""
    return validation.evaluate_cases(
        validation.create_eval_fn(
            subject.config,
            subject.feed.devices,
            facts.read_facts(subject.config, subject.dataset, subject.members),
        ),
        parallel.replicate(subject.variables, subject.feed.devices),
        subject.feed,
        subject.members[split],
        batch_size=subject.config.eval.batch_size,
        label=f"evaluating {split}",
    )


def finish(workdir, *, config, dataset, members, feed, ended):
    """Returns the summary of a run that has ended, after writing `summary.json`, `cases.csv` and the report.

    Process 0 does it with its own devices; the others wait for it in `processes.leave`.

    The report is on the test split, else val; with eval.num_panels = 0 there is none.

    Args:
        workdir: pathlib.Path of the run.
        config: its settings.
        dataset: Dataset.
        members: {split: indices}.
        feed: batching.Feed with the cases of all splits.
        ended: why training ended.
    """
    from auxseg.evaluation import score_cases

    feed = dataclasses.replace(feed, devices=parallel.local(feed.devices))
    variables, found = checkpoints.restore_best(workdir)
    predict_fn = score_cases.create_predict_fn(config, variables, feed.devices)
    subject = score_cases.Subject(config, dataset, members, feed, variables, predict_fn)
    tuned = config.eval.tune_nodules
    if tuned:
        chosen, on_val = score_cases.choose_decision(subject, max_false=config.eval.max_false_per_slice)
        decisions.write_decision(workdir, chosen, on_val)
        print(describe_decision(on_val), flush=True)
        subject = dataclasses.replace(subject, decision=chosen)
    names = [split for split in ("val", "test") if split in members]
    results = {split: evaluate_split(subject, split) for split in names}
    shown = splits.default_split(members) if config.eval.num_panels else None
    judgements = {split: score_cases.judge_split(subject, split, native=split == shown) for split in names}
    rows = [row for split in names for row in case_rows(judgements[split], results[split])]
    files.write_csv(workdir / "cases.csv", rows)
    epochs = run_folder.read_epochs(workdir / "metrics.jsonl")
    summary = {
        "ended": ended,
        "epochs": len(epochs),
        "steps": epochs[-1].get("step", 0) if epochs else 0,
        "best_epoch": found["epoch"],
        "seconds": sum(row["seconds"] for row in epochs),
        "dataset": dataset.name,
        "notes": list(dataset.notes),
        "parameters": state.count_values(variables),
        "scores": {
            split: summarise_decided(subject, split, results[split], judgements[split], tuned)
            for split in names
        },
    }
    files.write_json(workdir / "summary.json", summary)
    events.write_scores(workdir, config, summary["scores"])
    if not config.eval.num_panels:
        return summary
    return summary | {
        "report": str(
            score_cases.write_judgement(workdir, subject, judgements[splits.default_split(members)])
        )
    }


def case_rows(judgement, results):
    """Returns the rows of `cases.csv` of a split: scores at the network's size, and the losses."""
    pairs = zip(judgement.evaluation.rows, results.loss, strict=True)
    return [row | {"loss": float(loss)} for row, loss in pairs]


def describe(summary):
    """Returns the summary of a run as a few lines of text."""
    lines = [f"ended by {summary['ended']} after {summary['epochs']} epochs, {summary['seconds']:.0f} s"]
    if summary["ended"] == "all epochs":
        lines[0] += " (to go on: the same command with a larger --config.train.num_epochs)"
    for split, scores in summary["scores"].items():
        dice = ", ".join(
            f"{name.replace('_', ' ')} {_three(scores['dice'][name])} ({scores['dice_cases'][name]} cases)"
            for name in list(scores["dice"])[1:]
        )
        lines.append(
            f"{split}, {scores['cases']} cases, weights of epoch {summary['best_epoch']}: mean Dice {dice}; "
            f"pooled DSC (the paper's measure) {_three(scores['pooled_dsc'])}"
        )
    if summary["steps"] < run_folder.FEW_STEPS:
        lines.append(f"a trial of {summary['steps']} steps: its scores mean nothing")
    if "report" in summary:
        lines.append(f"to look at: {summary['report']}")
    return "\n".join(lines)


def _three(value):
    return "-" if value is None else f"{value:.3f}"
