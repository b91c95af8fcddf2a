"""One epoch of auxseg's own pipeline, with and without the model, on images that are made here."""

from __future__ import annotations

import functools
import types

import jax
import numpy as np

from auxseg.devices import parallel
from auxseg.models import create_model
from auxseg.runs.state import TrainState
from auxseg.training import batching, losses, optim, steps
from auxseg.training.settings import StepSettings
from experiments.speed.peers.task import ADAM_EPSILON, AUX_WEIGHT, LEARNING_RATE, create_config, make_batch

NUM_IMAGES = 799
"""Training images of the paper (section 3.3)."""
_WINDOW_HU = (-1000.0, 400.0)


def create_feed_epoch(task, batch_size):
    """Returns a function that gathers the batches of an epoch on the device, and nothing else."""
    devices = parallel.choose_devices(1)
    feed = _create_feed(task, devices)

    def epoch():
        for batch, _ in batching.read_batches(feed, _rows(batch_size)):
            jax.block_until_ready(batch)

    return epoch


def create_train_epoch(variables, task, batch_size):
    """Returns a function that trains an epoch and returns its mean loss, fetched at its end."""
    devices = parallel.choose_devices(1)
    feed, train_fn = _create_feed(task, devices), _create_train_fn(task, devices)
    current = parallel.replicate(_create_state(variables), devices)
    zeros = parallel.replicate(jax.device_get(steps.empty_sums(4)), devices)

    def epoch():
        nonlocal current
        sums = zeros
        for batch, _ in batching.read_batches(feed, _rows(batch_size)):
            current, sums = train_fn(current, sums, batch)
        sums = parallel.fetch_first(sums)
        return float(sums.loss / sums.weight)

    return epoch


def _rows(batch_size):
    order = batching.epoch_order(np.arange(NUM_IMAGES), seed=0, epoch=1)
    return batching.padded_rows(order, batch_size, batch_size)


def _create_feed(task, devices):
    images, masks, _ = make_batch(8, task.size)
    low, high = _WINDOW_HU
    stored = (images[..., 0] * (high - low) + low).astype(np.int16), masks.astype(np.uint8)
    dataset = types.SimpleNamespace(
        size_yx=(task.size, task.size),
        slab=1,
        read_slabs=None,
        read_seen=lambda indices: tuple(array[indices % 8] for array in stored),
    )
    return batching.create_feed(dataset, np.arange(NUM_IMAGES), placement="device", devices=devices)


def _create_state(variables):
    moments = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=ADAM_EPSILON).init(variables["params"])
    moments = optim.set_learning_rate(moments, np.float32(LEARNING_RATE))
    return TrainState(np.int32(0), variables["params"], variables["batch_stats"], moments)


def _segmentation_loss(*, logits, masks, weights=None):
    dice = losses.dice_loss(logits=logits, masks=masks).mean(axis=1)
    return dice + losses.cross_entropy(logits=logits, masks=masks)


def _create_train_fn(task, devices):
    settings = StepSettings(
        model=create_model(create_config(task), axis_name=parallel.AXIS),
        optimizer=optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=ADAM_EPSILON),
        segmentation_loss=_segmentation_loss,
        aux_weight=AUX_WEIGHT,
        num_classes=4,
        window_hu=_WINDOW_HU,
        bn_momentum=0.99,
        bn_warmup=True,
        axis_name=parallel.AXIS,
    )
    step = functools.partial(steps.train_step, settings=settings)
    return parallel.parallelize(step, devices, donate_argnums=(0,))
