"""auxseg and Flax's own layers, as the benchmark runs them."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import optax

from auxseg.base import command
from auxseg.models import create_inference, create_model
from auxseg.training import optim
from experiments.speed.peers import run_epoch
from experiments.speed.peers.task import (
    ADAM_EPSILON,
    AUX_WEIGHT,
    LEARNING_RATE,
    create_config,
    make_batch,
    read_variables,
)


def create(name, task):
    """Returns {'train': batch size -> step, 'infer': batch size -> call, 'limits': () -> measured figures}.

    A step runs one training step to its end and returns the loss before it; a call, one prediction. auxseg also
    has 'epoch' and 'feed': batch size -> an epoch of the paper's 799 images, with the model and without.

    Args:
        name: 'auxseg', 'auxseg_float32', which does not heed the task's dtype, or 'flax'.
        task: `experiments.speed.peers.task.Task`.
    """
    if name == "auxseg_float32":
        name, task = "auxseg", dataclasses.replace(task, dtype="float32")
    if name == "auxseg":
        command.keep_freed_memory()  # as every command of auxseg does
    model, variables, predict, weights = _network(name, task)
    parts = {
        "train": functools.partial(_create_train, model, variables, task),
        "infer": functools.partial(_create_infer, predict, weights, task),
        "limits": functools.partial(_measure_limits, task),
    }
    if name == "auxseg":
        parts["epoch"] = functools.partial(run_epoch.create_train_epoch, variables, task)
        parts["feed"] = functools.partial(run_epoch.create_feed_epoch, task)
    return parts


def _network(name, task):
    """Returns the module, its variables, and the function and weights that predict masks."""
    from experiments.speed.peers.flax_unet import FlaxUNet, flax_variables

    model, variables = create_model(create_config(task)), read_variables(task.weights)
    if name == "auxseg":
        return model, variables, *create_inference(model, variables)
    peer, variables = FlaxUNet(model.settings), flax_variables(variables)
    return peer, variables, lambda weights, images: peer.apply(weights, images).mask_logits, variables


def _loss(outputs, masks, labels):
    """Returns Dice + cross-entropy + weighted auxiliary term, means over the batch."""
    probabilities = jax.nn.softmax(outputs.mask_logits)
    truth = jax.nn.one_hot(masks, outputs.mask_logits.shape[-1])
    overlap = jnp.sum(probabilities * truth, (1, 2))
    dice = (2.0 * overlap + 1.0) / (jnp.sum(probabilities, (1, 2)) + jnp.sum(truth, (1, 2)) + 1.0)
    entropy = optax.softmax_cross_entropy_with_integer_labels(outputs.mask_logits, masks).mean()
    aux = optax.sigmoid_binary_cross_entropy(outputs.class_logits, labels).mean()
    return 1.0 - dice.mean() + entropy + AUX_WEIGHT * aux


def _create_train(model, variables, task, batch_size):
    optimiser = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=ADAM_EPSILON)
    params, statistics = jax.device_put((variables["params"], variables["batch_stats"]))
    moments = optim.set_learning_rate(optimiser.init(params), jnp.float32(LEARNING_RATE))
    state = [params, statistics, moments]
    batch = jax.device_put(make_batch(batch_size, task.size))

    def loss_fn(params, statistics, images, masks, labels):
        variables = {"params": params, "batch_stats": statistics}
        outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return _loss(outputs, masks, labels), updates["batch_stats"]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, statistics, moments, images, masks, labels):
        compute = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, statistics), gradients = compute(params, statistics, images, masks, labels)
        updates, moments = optimiser.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), statistics, moments), loss

    def step():
        state[:], loss = train_step(*state, *batch)
        return float(loss)

    return step


def _create_infer(predict, weights, task, batch_size):
    apply_fn, weights = jax.jit(predict), jax.device_put(weights)
    images = jax.device_put(make_batch(batch_size, task.size)[0])
    return lambda: jax.block_until_ready(apply_fn(weights, images)) is None


def _measure_limits(task):
    """Returns what the device can do: GB/s of a large copy, TFLOP/s of a large matrix product."""
    device = jax.devices()[0]
    size = 1 << (27 if device.platform == "gpu" else 24)
    width = 8192 if device.platform == "gpu" else 1024
    copied, factor = jnp.ones(size, jnp.float32), jnp.ones((width, width), task.dtype)
    copy, product = jax.jit(lambda array: array + 1.0), jax.jit(lambda array: array @ array)

    return {
        "device": device.device_kind,
        "copy_gb_per_s": 8e-9 * size / least_seconds(copy, (copied,), 8),
        "product_tflop_per_s": 2e-12 * width**3 / least_seconds(product, (factor,), 8),
    }


def least_seconds(function, arguments, turns):
    """Returns the least seconds of some calls of a compiled function; a first one, which compiles, is not counted."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
