"""What a training step changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class TrainState(NamedTuple):
    """Parameters and all that training adds to them; a tree of arrays.

    Attributes:
        step: int32 scalar, updates so far.
        params: float32, by layer.
        batch_stats: float32, moving means and variances.
        opt_state: Adam's moments and the learning rate.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self):
        """The collections that the model's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(*, model, optimizer, seed, size_yx, slab=1):
    """Returns the TrainState before the first step.

    Args:
        model: a linen module from `auxseg.models.create_model`.
        optimizer: from `optim.create_optimizer`.
        seed: of the initialisation.
        size_yx: rows and columns of the images.
        slab: slices that the network sees together.
    """
    images = jnp.zeros((1, *size_yx, slab), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def replace_variables(state, variables):
    """Returns `state` with other weights and statistics, for fine-tuning."""
    as_arrays = jax.tree.map(jnp.asarray, variables)
    return state._replace(params=as_arrays["params"], batch_stats=as_arrays["batch_stats"])


def count_values(tree):
    """Returns how many numbers a tree of arrays holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
