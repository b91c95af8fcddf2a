"""Cases -> shuffled, padded batches, gathered on the device where the data set fits.

The order of an epoch is a function of (seed, epoch), so that a resumed run needs no state of an
iterator, and a data set on the device gives the same batches as one that streams from disk.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from auxseg.base.errors import InputError, check_choice
from auxseg.devices import parallel
from auxseg.models import interface
from auxseg.training import references
from auxseg.training.facts import CaseFacts

PREFETCH_BATCHES = 3


class RawBatch(NamedTuple):
    """A batch as it is stored; every array may have a leading axis of devices.

    Attributes:
        images: int16 [N, H, W], HU; of slabs [N, H, W, slices].
        masks: uint8 [N, H, W], class indices.
        indices: int32 [N], the case's row in the data set; of a padded row: 0.
        weights: float32 [N], 1.0 for an example, 0.0 for padding.
    """

    images: Any
    masks: Any
    indices: Any
    weights: Any


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where batches come from.

    Attributes:
        placement: 'device' or 'stream'.
        fetch: (indices int32 [B], weights float32 [B]), this process's rows, -> RawBatch on its devices, or a
            future of one.
        devices: the devices, of all processes, that share a batch.
    """

    placement: str
    fetch: Callable[[np.ndarray, np.ndarray], Any]
    devices: tuple


def to_batch(raw, *, window_hu, num_classes, facts=None, shares=None):
    """Returns the Batch that the model takes, from a RawBatch without an axis of devices.

    Args:
        raw: RawBatch.
        window_hu: (low, high).
        num_classes: C.
        facts: facts.CaseFacts of the data set, or None for none.
        shares: as `Batch`.
    """
    images, facts = interface.to_input(raw.images, window_hu), facts or CaseFacts()
    meanings = None
    if facts.meanings is not None:
        meanings = jnp.asarray(facts.meanings)[raw.indices].astype(jnp.float32)
    if facts.aux_labels is None:
        labels = references.label_vectors(raw.masks, num_classes, meanings)
    else:
        labels = jnp.asarray(facts.aux_labels)[raw.indices]
    return Batch(images, raw.masks, labels, raw.weights, meanings, shares)


def epoch_order(indices, *, seed, epoch, has_nodule=None, nodule_fraction=None):
    """Returns `indices` [n] in the order of `epoch`, a function of (seed, epoch) alone.

    With `nodule_fraction` an epoch has as many examples and another choice of them: slices with a nodule
    come back and slices without are left out (or the other way round) until the share is met. Which ones
    changes from epoch to epoch; none comes back before all of its kind had their turn.

    Args:
        indices: rows of the data set, int [n].
        seed: of the order.
        epoch: counted from 1.
        has_nodule: bool [n], whether the case shows a nodule; needed with `nodule_fraction`.
        nodule_fraction: share of the examples that show one, 0 to 1, or None: each case once.

    Raises:
        InputError: a fraction out of its range, or one that the cases cannot give.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    indices = np.asarray(indices)
    if nodule_fraction is None:
        return indices[generator.permutation(len(indices))]
    _check_fraction(nodule_fraction, has_nodule)
    num_with = round(nodule_fraction * len(indices))
    drawn = [
        _draw(indices[has_nodule], num_with, generator),
        _draw(indices[~has_nodule], len(indices) - num_with, generator),
    ]
    return np.concatenate(drawn)[generator.permutation(len(indices))]


def mixed_order(indices, *, seed, epoch, sources, shares):
    """Returns the rows of an epoch of a mixture, batch by batch: of each source its share, in another order each time.

    An epoch has as many batches as all cases would fill. A source that needs more than its cases for them comes back,
    one that needs fewer is seen in part; none comes back before all of its source had their turn. The order is a
    function of (seed, epoch) alone, as in `epoch_order`.

    Args:
        indices: rows of the data set, int [n].
        seed: of the order.
        epoch: counted from 1.
        sources: str [n], the source of each.
        shares: {source: cases of each batch}.

    Raises:
        InputError: a source has no case that trains.
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    indices, steps = np.asarray(indices), num_batches(len(indices), sum(shares.values()))
    columns = []
    for label, share in shares.items():
        own = indices[sources == label]
        if not len(own):
            raise InputError(
                f"data.sources.{label}: none of its cases trains; choose another split, or leave it out"
            )
        columns.append(_draw(own, steps * share, generator).reshape(steps, share))
    return generator.permuted(np.concatenate(columns, axis=1), axis=1).reshape(-1)


def _draw(indices, num, generator):
    """Returns `num` of `indices`, in shuffled rounds of all of them."""
    rounds = [generator.permutation(indices) for _ in range(-(-num // max(len(indices), 1)))]
    return np.concatenate([indices[:0], *rounds])[:num]


def _check_fraction(fraction, has_nodule):
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"train.nodule_fraction: got {fraction}, expected 0 to 1")
    for share, kind, some in ((fraction, "with", has_nodule), (1.0 - fraction, "without", ~has_nodule)):
        if share > 0 and not some.any():
            raise InputError(
                f"train.nodule_fraction: got {fraction}, but no training slice is {kind} a nodule; leave it out"
            )


def num_batches(num_examples, batch_size):
    """Returns the number of batches, the last one filled up with padding."""
    return -(-num_examples // batch_size)


def padded_rows(order, batch_size, padded_size):
    """Yields (indices int32 [padded_size], weights float32 [padded_size]) for each batch of `order`.

    Args:
        order: the cases' rows in the data set, int [n].
        batch_size: examples in a batch.
        padded_size: rows in a batch, not fewer; those without an example have weight 0.
    """
    for start in range(0, len(order), batch_size):
        rows = np.asarray(order[start : start + batch_size], np.int32)
        padding = padded_size - len(rows)
        weights = np.pad(np.ones(len(rows), np.float32), (0, padding))
        yield np.pad(rows, (0, padding)), weights


def create_feed(dataset, indices, *, placement, devices):
    """Returns a Feed of the cases `indices` of `dataset`.

    Args:
        dataset: a `Dataset`.
        indices: int [n], the cases that will be asked for.
        placement: 'device' (int16 and uint8, one copy on each device), 'stream' (read when wanted), or
            'auto': on the device if it takes at most a quarter of its memory and of the host's.
        devices: from `parallel.choose_devices`.

    Raises:
        InputError: an unknown placement.
    """
    check_choice("data.placement", placement, ("auto", "device", "stream"))
    fits = len(indices) * (2 * dataset.slab + 1) * dataset.size_yx[0] * dataset.size_yx[
        1
    ] <= _memory_budget_bytes(parallel.local(devices)[0])
    if placement == "device" or (placement == "auto" and fits):
        return _resident_feed(dataset, np.unique(indices), devices)
    return _streaming_feed(dataset, devices)


def read_batches(feed, rows) -> Iterator[tuple[RawBatch, float]]:
    """Yields (RawBatch on the devices, seconds waited for it), reading a few batches ahead.

    Args:
        feed: a Feed.
        rows: an iterable of (indices, weights) as `padded_rows` yields them; each process takes its share.
    """
    ahead = collections.deque()
    for indices, weights in rows:
        ahead.append(feed.fetch(*parallel.local_rows((indices, weights), feed.devices)))
        if len(ahead) > PREFETCH_BATCHES:
            yield _wait(ahead.popleft())
    while ahead:
        yield _wait(ahead.popleft())


def _wait(batch):
    if not isinstance(batch, concurrent.futures.Future):
        return batch, 0.0
    start = time.perf_counter()
    return batch.result(), time.perf_counter() - start


def _resident_feed(dataset, kept, devices):
    data = parallel.replicate(dataset.read_seen(kept), devices)
    gather = parallel.parallelize(_gather, parallel.local(devices))

    def fetch(indices, weights):
        places = np.searchsorted(kept, indices).astype(np.int32)
        rows = parallel.shard((np.where(weights > 0, places, 0), indices, weights), devices)
        return gather(data, *rows)

    return Feed("device", fetch, devices)


def _gather(data, places, indices, weights):
    return RawBatch(*parallel.take_rows(data, places), indices, weights)


def _streaming_feed(dataset, devices):
    pool = concurrent.futures.ThreadPoolExecutor(PREFETCH_BATCHES, thread_name_prefix="auxseg-read")
    return Feed("stream", functools.partial(pool.submit, _read_rows, dataset, devices), devices)


def _read_rows(dataset, devices, indices, weights):
    real = weights > 0
    masks = np.zeros((len(indices), *dataset.size_yx), np.uint8)
    images = np.zeros(masks.shape if dataset.read_slabs is None else (*masks.shape, dataset.slab), np.int16)
    if real.any():
        images[real], masks[real] = dataset.read_seen(indices[real])
    if real.any() and not real.all():
        first = np.flatnonzero(real)[0]
        images[~real], masks[~real] = images[first], masks[first]
    return parallel.shard(RawBatch(images, masks, indices, weights), devices)


def _memory_budget_bytes(device):
    """Returns a quarter of the device's memory, or of the host's where that is less: data come by way of it."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = parallel.device_memory_bytes(device)
    if limit is None or device.platform == "cpu":
        limit = host
    return min(limit, host) // 4


class Batch(NamedTuple):
    """One batch as the step takes it.

    Attributes:
        images: float32 [N, H, W, 1], HU mapped from the window to [0, 1]; of slabs [N, H, W, slices].
        masks: uint8 or int32 [N, H, W], class indices and `UNKNOWN`.
        labels: float32 [N, C], 1.0 where the class has a pixel in the slice, -1.0 where that is not known, else 0.0.
        weights: float32 [N], 1.0 for an example, 0.0 for padding.
        meanings: float32 [N, C, C], as `references` takes them, or None.
        shares: float32 [N, H, W, C], likewise.
    """

    images: Any
    masks: Any
    labels: Any
    weights: Any
    meanings: Any = None
    shares: Any = None

    @property
    def partial(self):
        """Where the labels say less than one class of each pixel, what the losses are told of it."""
        said = {"meanings": self.meanings, "shares": self.shares}
        return {name: value for name, value in said.items() if value is not None}
