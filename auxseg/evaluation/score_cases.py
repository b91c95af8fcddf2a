"""Judges a run: scores a split at both resolutions, looks again at chosen cases, writes the report.

One pass over the split keeps one row a case; a second pass reads the few cases that the page shows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from auxseg import models
from auxseg.base import progress
from auxseg.base.classes import NO_CLASS, classes_of, mirrored, value_of
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import scale
from auxseg.devices import parallel
from auxseg.evaluation import among_readers, explain
from auxseg.report import Report, macs, viewer, write_report
from auxseg.runs import masks, run_folder
from auxseg.scoring import case_scores, operating_point
from auxseg.training import batching


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained network and the cases that it is judged by.

    Attributes:
        config: the run's settings.
        dataset: Dataset.
        members: {split: indices}.
        feed: batching.Feed that has the cases.
        variables: the best weights, on the host.
        predict_fn: from `create_predict_fn`, with these weights.
        decision: operating_point.Decision; the most likely class unless another was asked for.
        flip: whether `predict_fn` averages with the mirrored slices.
    """

    config: Any
    dataset: Any
    members: dict
    feed: batching.Feed
    variables: Any
    predict_fn: Any
    decision: operating_point.Decision = operating_point.Decision()
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The scores of a split.

    Attributes:
        split: its name.
        evaluation: case_scores.Evaluation at the size that the network sees.
        native: case_scores.Evaluation at the size of the scan, or None where that is the same in all cases.
        seconds: of prediction and scoring.
    """

    split: str
    evaluation: case_scores.Evaluation
    native: case_scores.Evaluation | None
    seconds: float


def create_predict_fn(config, variables, devices, *, flip=False):
    """Returns RawBatch -> probabilities [devices, n, H, W, C] by the network that prediction runs.

    Args:
        config: the run's settings.
        variables: the best weights, on the host.
        devices: as `parallel.choose_devices`.
        flip: average with the mirrored slices.
    """
    model = models.create_model(config.model, num_classes=len(classes_of(config.data)))
    predict_hu, weights = models.create_predict(
        model,
        variables,
        window_hu=tuple(config.data.window_hu),
        mirror=mirrored(classes_of(config.data)) if flip else None,
    )
    step = parallel.parallelize(lambda weights, raw: predict_hu(weights, raw.images), devices)
    return functools.partial(step, parallel.replicate(weights, devices))


def judge_split(subject, split, *, native=True):
    """Returns the Judgement of a split; memory grows by a row a case.

    Args:
        subject: Subject.
        split: its name.
        native: score at the scan's own pixels too, where they are others: it takes most of the time.
    """
    start = time.monotonic()
    table, indices = subject.dataset.table, subject.members[split]
    seen = np.array([subject.dataset.filled_size(index) for index in indices]).reshape(-1, 2)
    native = native and bool((table.native_size_yx[indices] != seen).any())
    score = functools.partial(_score_both, subject, split, native)
    predicted = predict(subject, indices, label=f"scoring {split}")
    both = _in_order(indices, case_scores.stream(score, predicted, num_threads=2))
    if not both:
        raise InputError(f"split {split!r}: got no case, expected at least one; choose another with --split")
    evaluations = [case_scores.collect(each) for each in zip(*both, strict=True) if each[0] is not None]
    return Judgement(split, evaluations[0], evaluations[1] if native else None, time.monotonic() - start)


def predict(subject, indices, *, label=None):
    """Yields (index, probabilities float32 [H, W, C]) for each of `indices`, of what the case fills.

    They come in their order; at a fixed scale smaller ones first, since each is shown as prediction shows it: with no more
    around it than the network's depth needs.

    Args:
        subject: Subject.
        indices: rows of its data set.
        label: of the progress bar; None shows none.
    """
    devices = subject.feed.devices
    size = parallel.round_up(subject.config.eval.batch_size, devices)
    shown = dict(zip(np.asarray(indices).tolist(), _shown_sizes(subject, indices), strict=True))
    order = sorted(shown, key=shown.get) if subject.dataset.scale is not None else indices
    rows = list(batching.padded_rows(order, size, size))
    batches = (batch for batch, _ in batching.read_batches(subject.feed, rows))
    if label:
        batches = progress.track(batches, total=len(rows), label=label, unit="batch")
    for (members, weights), batch in zip(rows, batches, strict=True):
        members = [int(i) for i, weight in zip(members, weights, strict=True) if weight > 0]
        for height, width in sorted({shown[index] for index in members}):
            whole = subject.dataset.scale is None
            part = batch if whole else batch._replace(images=batch.images[:, :, :height, :width])
            found = parallel.fetch_rows(subject.predict_fn(part))
            yield from (
                (index, subject.dataset.crop(each, index))
                for index, each in zip(members, found, strict=False)
                if shown[index] == (height, width)
            )


def _shown_sizes(subject, indices):
    """Returns the rows and columns at which the network is shown each case, a list of pairs."""
    dataset = subject.dataset
    if dataset.scale is None:
        return [tuple(dataset.size_yx)] * len(indices)
    step = scale.step_of(subject.config.data.size)
    return [scale.round_up(dataset.filled_size(int(index)), step) for index in indices]


def _in_order(indices, results):
    """Returns what is found of cases, (index, result), as a list of the results in the order of `indices`."""
    found = dict(results)
    return [found[int(index)] for index in indices]


def choose_decision(subject, *, max_false):
    """Returns (Decision, what it found) chosen on a run's validation split, see `operating_point.choose`.

    Args:
        subject: Subject.
        max_false: false nodules a slice that are allowed.

    Raises:
        InputError: no case of the split has a nodule.
    """
    chosen, found = operating_point.choose(
        count_nodules(subject, "val"),
        max_false=max_false,
        nominal_pixel_mm=nominal_pixel_mm(subject.dataset),
    )
    return chosen, {"split": "val", **found}


def count_nodules(subject, split):
    """Returns the operating_point.ChoiceCounts of a split at the network's size.

    Args:
        subject: Subject whose feed has the split.
        split: its name.
    """
    dataset, nodule = subject.dataset, value_of("nodule", subject.dataset.classes)
    if nodule == NO_CLASS:
        raise InputError(
            f"--tune: the classes are {dataset.classes}; there is no nodule to choose a threshold for"
        )
    indices = subject.members[split]
    indices = indices[dataset.table.knows[indices, nodule]]
    cases = (
        (probabilities, dataset.read_case(index)[1], resized_spacing(dataset, index))
        for index, probabilities in predict(subject, indices, label=f"counting on {split}")
    )
    return operating_point.count(cases, nominal_pixel_mm=nominal_pixel_mm(dataset), nodule=nodule)


def nominal_pixel_mm(dataset):
    """Returns the mm between pixels of the network's image that stand for those of a slice whose spacing is not
    known."""
    return operating_point.NOMINAL_FIELD_MM / dataset.size_yx[1]


def resized_spacing(dataset, index):
    """Returns float64 [2], mm between pixels of a case as the network sees it; NaN where unknown."""
    table = dataset.table
    return case_scores.resized_spacing(
        table.spacing_zyx_mm[index, 1:],
        native_size_yx=table.native_size_yx[index],
        size_yx=dataset.filled_size(index),
    )


def _score_both(subject, split, native, predicted):
    """Returns (index, the CaseScores at the network's size and at the scan's, or None for the latter)."""
    index, probabilities = predicted
    dataset, table = subject.dataset, subject.dataset.table
    spacing, nodule = table.spacing_zyx_mm[index, 1:], value_of("nodule", dataset.classes)
    identity = {
        "case_id": str(table.case_id[index]),
        "patient": str(table.patient[index]),
        "series_uid": str(table.series_uid[index]),
        "split": split,
        "slice_index": int(table.slice_index[index]),
    }
    _, reference = dataset.read_case(index)
    resized = resized_spacing(dataset, index)
    meaning = table.meanings[index] if table.meanings is not None else None
    first = case_scores.score_case(
        prediction=operating_point.decide(
            probabilities, subject.decision, spacing_yx_mm=resized, nodule=nodule
        ),
        reference=reference,
        spacing_yx_mm=resized,
        probabilities=probabilities,
        identity=identity,
        classes=dataset.classes,
        meaning=meaning,
    )
    if not native:
        return index, (first, None)
    second = case_scores.score_case(
        prediction=decide_native(dataset, index, probabilities, subject.decision),
        reference=dataset.read_native_mask(index),
        spacing_yx_mm=spacing,
        identity=identity,
        classes=dataset.classes,
        meaning=meaning,
    )
    return index, (first, second)


def decide_native(dataset, index, probabilities, decision):
    """Returns the mask of a case at the scan's size, uint8 [H0, W0]: what prediction hands over of the slice.

    Args:
        dataset: Dataset.
        index: of the case.
        probabilities: float32 [H, W, C], as `predict`.
        decision: operating_point.Decision.
    """
    size_yx, spacing = dataset.table.native_size_yx[index].tolist(), dataset.table.spacing_zyx_mm[index, 1:]
    return masks.decide_slice(
        probabilities,
        tuple(size_yx),
        decision,
        spacing_yx_mm=spacing,
        nodule=value_of("nodule", dataset.classes),
    )


def read_cases(subject, judgement):
    """Returns the viewer.CaseImage of the cases that the page shows, predicted a second time."""
    chosen = viewer.choose_cases(judgement.evaluation)
    rows = {row["case_id"]: row for row in judgement.evaluation.rows}
    places = {str(name): i for i, name in enumerate(subject.dataset.table.case_id)}
    indices = np.array([places[case_id] for case_id in chosen])
    window = tuple(subject.config.data.window_hu)
    cases = []
    found = _in_order(indices, ((index, (index, each)) for index, each in predict(subject, indices)))
    for (case_id, reasons), (index, probabilities) in zip(chosen.items(), found, strict=True):
        image, reference = subject.dataset.read_case(index)
        spacing = resized_spacing(subject.dataset, index)
        prediction = operating_point.decide(
            probabilities,
            subject.decision,
            spacing_yx_mm=spacing,
            nodule=value_of("nodule", subject.dataset.classes),
        )
        if subject.dataset.table.meanings is not None:
            meaning = subject.dataset.table.meanings[index]
            prediction = case_scores.relabel(prediction, reference, meaning)
        cases.append(
            viewer.CaseImage(
                case_id,
                reasons,
                image,
                reference,
                prediction,
                window,
                rows[case_id],
                subject.dataset.classes,
            )
        )
    return tuple(cases)


def explain_cases(subject, cases, wanted=()):
    """Returns the explain.Explanation of (case id, class) pairs; () for a network that cannot be explained.

    Args:
        subject: Subject.
        cases: viewer.CaseImage of the page.
        wanted: pairs, or () for the worst and the best nodule of `cases`.

    Raises:
        InputError: the data set has no such case, or there is no such class.
    """
    if not explain.can_explain(subject.config.model.name):
        return ()
    pairs = wanted or _default_explanations(cases, subject.dataset.classes)
    places = find_cases(subject.dataset, pairs)
    explain_fn = explain.create_explain_fn(_create_model(subject))
    found = []
    for case_id, class_name in pairs:
        images, references = subject.dataset.read_seen(np.array([places[case_id]]))
        window = tuple(subject.config.data.window_hu)
        found.append(
            explain.explain(
                explain_fn,
                subject.variables,
                image=images[0],
                reference=references[0],
                window_hu=window,
                class_name=class_name,
                case_id=case_id,
                classes=subject.dataset.classes,
            )
        )
    return tuple(found)


def find_cases(dataset, pairs):
    """Returns {case id: index} of the data set that holds all of the (case id, class) `pairs`.

    Raises:
        InputError: it lacks one.
    """
    places = {str(name): i for i, name in enumerate(dataset.table.case_id)}
    for case_id, class_name in pairs:
        check_choice("--explain: class", class_name, dataset.classes)
        if case_id not in places:
            first = next(iter(places), "none")
            raise InputError(
                f"--explain: got the case {case_id!r}, expected one of {dataset.name}, such as {first!r}"
            )
    return places


def _create_model(subject):
    return models.create_model(subject.config.model, num_classes=len(subject.dataset.classes))


def _default_explanations(cases, classes):
    name = "nodule" if "nodule" in classes else classes[-1]
    wanted = (f"{name}: worst", f"{name}: best")
    pairs = [(case.case_id, name) for reason in wanted for case in cases if reason in case.reasons]
    return list(dict.fromkeys(pairs)) or [(case.case_id, classes[1]) for case in cases[:1]]


def write_judgement(workdir, subject, judgement, *, explained=None, folder=None, records=None, notes=()):
    """Writes the report of a judged split into `workdir/report`; returns the page's path.

    Args:
        workdir: pathlib.Path of the run.
        subject: Subject.
        judgement: Judgement of one of its splits.
        explained: as `wanted` of `explain_cases`, or None for no explanation.
        folder: where to write instead of `workdir/report`, or None.
        records: run_folder.Records to show instead of the run's own, or None.
        notes: what is to be said of the cases.
    """
    workdir = pathlib.Path(workdir)
    folder = workdir / "report" if folder is None else folder
    cases = read_cases(subject, judgement)
    records = run_folder.read_records(workdir) if records is None else records
    report = Report(
        run=records,
        split=judgement.split,
        resolution=_describe_resolution(subject.dataset),
        evaluation=judgement.evaluation,
        native=judgement.native,
        cases=cases,
        explanations=() if explained is None else explain_cases(subject, cases, explained),
        facts=list_facts(subject, judgement, records)
        | judge_among_readers(folder, subject, judgement.split)
        | ({"Cases": "; ".join(notes)} if notes else {}),
        data=subject.dataset.name,
    )
    return write_report(folder, report)


def _describe_resolution(dataset):
    rows, columns = dataset.size_yx
    seen = f"{rows} x {columns} pixels" if dataset.scale is None else scale.describe(dataset.scale)
    return f"{seen}, as the network sees"


def judge_among_readers(folder, subject, split):
    """Returns {fact: text} on the readers' spread, after writing their scores and page; {} where none are known."""
    if subject.dataset.read_outline is None:
        return {}
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    scores = among_readers.write(
        pathlib.Path(folder),
        subject.dataset,
        decide_cases(subject, subject.members[split]),
        split=split,
        window_hu=tuple(subject.config.data.window_hu),
    )
    return {"Among readers": among_readers.describe(scores)}


def decide_cases(subject, indices):
    """Yields (index, mask uint8 [H, W]) of cases, at the size that the network sees."""
    nodule = value_of("nodule", subject.dataset.classes)
    for index, probabilities in predict(subject, indices, label="among readers"):
        spacing = resized_spacing(subject.dataset, index)
        yield (
            index,
            operating_point.decide(probabilities, subject.decision, spacing_yx_mm=spacing, nodule=nodule),
        )


def describe_masks(subject):
    """Returns in words how the masks of a Subject are made of its probabilities."""
    chosen = subject.decision
    rule = (
        "the most likely class"
        if chosen == operating_point.Decision()
        else f"nodules from a share of {chosen.threshold:g} and {chosen.min_mm:g} mm on, chosen on validation"
    )
    return rule + (", of the mean with the mirrored slice" if subject.flip else "")


def list_facts(subject, judgement, run):
    """Returns name -> text: size of the network, time, hardware."""
    leaves = jax.tree_util.tree_leaves_with_path(subject.variables["params"])
    shapes = {"/".join(str(key.key) for key in path): np.shape(leaf) for path, leaf in leaves}
    trainable = sum(math.prod(shape) for shape in shapes.values())
    fixed = sum(np.size(leaf) for leaf in jax.tree.leaves(subject.variables.get("batch_stats", {})))
    count = macs.count_macs(shapes, size_yx=subject.dataset.size_yx, depth=subject.config.model.depth)
    if count is None:
        model = _create_model(subject)
        count = sum(
            macs.trace_macs(model, size_yx=subject.dataset.size_yx, slices=subject.dataset.slab).values()
        )
    cases = len(judgement.evaluation.rows)
    facts = {
        "Network": f"{subject.config.model.name}: {trainable:,} trainable parameters, {fixed:,} statistics",
        "Multiply-accumulates an image": "n/a" if count is None else f"{count / 1e9:.3f} G",
        "Hardware": f"{len(subject.feed.devices)} x {subject.feed.devices[0].device_kind}",
        "Prediction and scoring": f"{judgement.seconds:.1f} s for {cases} cases, compilation included",
        "Masks": describe_masks(subject),
    }
    if run.summary:
        facts |= {
            "Training": f"{run.summary['seconds']:.0f} s, {run.summary['epochs']} epochs, ended by "
            f"{run.summary.get('ended', 'n/a')}",
            "Weights": f"of epoch {run.summary['best_epoch']}, the lowest validation loss",
        }
    waited = [row["waited_for_data"] for row in run.epochs if "waited_for_data" in row]
    if waited:
        facts["Waiting for data"] = f"{np.mean(waited):.1%} of the time of the training steps"
    return facts
