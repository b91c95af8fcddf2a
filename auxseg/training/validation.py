"""Scores of a split while a network trains: counts of pixels and losses, batch by batch."""

import functools

import jax
import numpy as np

from auxseg.base import progress
from auxseg.devices import parallel, processes
from auxseg.scoring import pixel_counts
from auxseg.training import batching, steps
from auxseg.training.settings import create_step_settings


def create_eval_fn(config, devices, facts=None):
    """Returns eval_step compiled for `devices`: (variables, RawBatch) -> CaseResults; `facts`: facts.CaseFacts."""
    step = functools.partial(steps.eval_step, settings=create_step_settings(config, facts=facts))
    return parallel.parallelize(step, devices)


def evaluate_cases(eval_fn, variables, feed, indices, *, batch_size, label=None):
    """Returns the CaseResults of the cases `indices` int [n], NumPy, in their order, in every process.

    Args:
        eval_fn: from `create_eval_fn`.
        variables: the model's, replicated.
        feed: batching.Feed that has the cases.
        indices: rows of the data set.
        batch_size: over all devices; a last batch is filled up and the filling dropped.
        label: of the progress bar; None shows none.
    """
    size = parallel.round_up(batch_size, feed.devices)
    rows = list(batching.padded_rows(indices, size, size))
    batches = (batch for batch, _ in batching.read_batches(feed, rows))
    if label:
        batches = progress.track(batches, total=len(rows), label=label, unit="batch")
    results = [parallel.fetch_rows(eval_fn(variables, batch)) for batch in batches]
    kept = np.concatenate([weights for _, weights in rows]) > 0
    return jax.tree.map(lambda x: x[kept], processes.gather_batches(results, feed.devices))


def summarise(results, classes):
    """Returns the scores of CaseResults, JSON types; NaN becomes None.

    'pooled_dsc' is the paper's score, over the pixels of all classes with background. 'dice' is per class
    over the 'dice_cases' whose reference has it; cases that have it in the prediction alone are
    'false_positive_cases'.
    """
    dice, cases = pixel_counts.mean_dice(results.counts)
    false_positives = pixel_counts.false_positive_cases(results.counts)
    return {
        "cases": len(results.loss),
        "loss": _number(np.mean(results.loss, dtype=np.float64)),
        "segmentation_loss": _number(np.mean(results.segmentation, dtype=np.float64)),
        "auxiliary_loss": _number(np.mean(results.auxiliary, dtype=np.float64)),
        "accuracy": pixel_counts.pooled_accuracy(results.counts),
        "pooled_dsc": pixel_counts.pooled_dsc(results.counts),
        "dice": by_class(map(_number, dice), classes),
        "dice_cases": by_class(map(int, cases), classes),
        "false_positive_cases": by_class(map(int, false_positives), classes),
    }


def by_source(results, dataset, indices):
    """Returns {'sources': {label: scores as `summarise`}} of CaseResults of a mixture's cases; {} of one source's.

    Args:
        results: CaseResults of the cases `indices`.
        dataset: Dataset.
        indices: rows of the data set, int [n].
    """
    if dataset.table.source is None:
        return {}
    sources = dataset.table.source[indices]
    return {
        "sources": {
            label: summarise(jax.tree.map(lambda x, rows=sources == label: x[rows], results), dataset.classes)
            for label in np.unique(sources).tolist()
        }
    }


def by_class(values, classes):
    """Returns {class name: value} for values in the order of the classes."""
    return dict(zip(classes, values, strict=True))


def _number(value):
    return float(value) if np.isfinite(value) else None
