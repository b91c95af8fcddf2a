"""Adam as Keras computes it, and what Keras' callbacks do at the end of an epoch."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class KerasAdamState(NamedTuple):
    """Adam's moments, float32 [number of parameters], and the number of updates, int32.

    The moments of all parameters are one array each: one compiled loop in place of one a parameter.
    """

    count: jax.Array
    mu: jax.Array
    nu: jax.Array


def scale_by_keras_adam(beta1, beta2, epsilon):
    """Returns the optax transformation of Adam (Kingma & Ba 2015, the form at the end of its section 2).

    Keras adds epsilon to the root of the uncorrected second moment, optax to that of the corrected
    one; with small gradients the two part.
    """

    def init_fn(params):
        flat = _join(params)
        # Two arrays: a step donates both.
        return KerasAdamState(jnp.zeros((), jnp.int32), jnp.zeros_like(flat), jnp.zeros_like(flat))

    def update_fn(updates, state, params=None):
        del params
        gradients, count = _join(updates), state.count + 1
        mu = state.mu + (gradients - state.mu) * (1.0 - beta1)
        nu = state.nu + (gradients * gradients - state.nu) * (1.0 - beta2)
        t = count.astype(jnp.float32)
        correction = jnp.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
        scaled = correction * mu / (jnp.sqrt(nu) + epsilon)
        return _split(scaled, updates), KerasAdamState(count, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def _join(tree):
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def _split(flat, tree):
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([x.size for x in leaves])
    parts = (flat[end - x.size : end].reshape(x.shape) for x, end in zip(leaves, ends, strict=True))
    return jax.tree.unflatten(structure, parts)


def create_optimizer(*, beta1, beta2, epsilon):
    """Returns Adam whose learning rate is a leaf of its state: set it with `set_learning_rate`."""

    def adam(learning_rate):
        return optax.chain(
            scale_by_keras_adam(beta1, beta2, epsilon), optax.scale_by_learning_rate(learning_rate)
        )

    return optax.inject_hyperparams(adam)(learning_rate=0.0)


def set_learning_rate(opt_state, learning_rate):
    """Returns `opt_state` with another learning rate: a float32 array of the shape of the old one."""
    return opt_state._replace(hyperparams={**opt_state.hyperparams, "learning_rate": learning_rate})


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Where ReduceLROnPlateau and EarlyStopping stand after some epochs; JSON by `dataclasses.asdict`.

    Attributes:
        learning_rate: for the next epoch.
        plateau_best: the value that an improvement for the plateau must pass by min_delta.
        plateau_wait: epochs since then.
        stop_best: the lowest value so far: that of the weights to keep.
        stop_wait: epochs since then.
        best_epoch: the epoch of `stop_best`, 1-based; 0 before the first.
        stopped: whether early stopping ended the run.
    """

    learning_rate: float
    plateau_best: float = math.inf
    plateau_wait: int = 0
    stop_best: float = math.inf
    stop_wait: int = 0
    best_epoch: int = 0
    stopped: bool = False


def epoch_rate(schedule, *, epoch, config):
    """Returns the learning rate of an epoch (1-based): the plateau's, along a half cosine where it is set.

    The half cosine (Loshchilov & Hutter 2017, arXiv:1608.03983) falls from 1 to 0 over `cosine_epochs`.
    """
    if not config.cosine_epochs:
        return schedule.learning_rate
    done = min(1.0, (epoch - 1) / config.cosine_epochs)
    return schedule.learning_rate * (1.0 + math.cos(math.pi * done)) / 2.0


def update_schedule(schedule, *, epoch, value, config):
    """Returns the Schedule after the epoch (1-based) whose validation loss is `value`.

    As Keras 3 does: for the plateau an improvement is more than `plateau_min_delta` (absolute), and the
    drop comes at the patience-th epoch without one; for early stopping any lower value counts.

    Args:
        schedule: the Schedule before.
        epoch: 1-based.
        value: a finite float, lower is better.
        config: `config.optim`.
    """
    return _update_stop(_update_plateau(schedule, value, config), epoch, value, config)


def _update_plateau(schedule, value, config):
    if value + config.plateau_min_delta < schedule.plateau_best:
        return dataclasses.replace(schedule, plateau_best=value, plateau_wait=0)
    wait, rate = schedule.plateau_wait + 1, schedule.learning_rate
    if wait >= config.plateau_patience_epochs and rate > config.min_learning_rate:
        rate, wait = max(rate * config.plateau_factor, config.min_learning_rate), 0
    return dataclasses.replace(schedule, learning_rate=rate, plateau_wait=wait)


def _update_stop(schedule, epoch, value, config):
    if value < schedule.stop_best:
        return dataclasses.replace(schedule, stop_best=value, stop_wait=0, best_epoch=epoch)
    wait = schedule.stop_wait + 1  # not in the first epoch, whose value is lower than none
    return dataclasses.replace(schedule, stop_wait=wait, stopped=wait >= config.stop_patience_epochs)
