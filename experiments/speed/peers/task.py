"""What every implementation is given: the same weights, images, masks, loss and optimiser."""

from __future__ import annotations

import dataclasses
import types

import numpy as np

AUX_WEIGHT = 0.1
LEARNING_RATE = 1e-3
ADAM_EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark's settings, as they pass to the worker processes in JSON.

    Attributes:
        size: rows and columns of an image.
        base_width: of the network; 64 is the paper's.
        dtype: of the computation; Keras and ONNX Runtime have float32 alone.
        weights: path of the .npz that `write_variables` made.
    """

    size: int
    base_width: int
    dtype: str
    weights: str


PAPER = {
    "name": "aux_unet",
    "depth": 4,
    "num_classes": 4,
    "separable": True,
    "se": True,
    "se_ratio": 8,
    "aux": True,
    "aux_width": 128,
    "bn_momentum": 0.99,
    "bn_epsilon": 1e-3,
    "lowering": "auto",
}
"""The paper's network, as configs/base.py has it (a test compares them), for machines without ml_collections."""


def create_config(task):
    """Returns an object with the fields of `config.model` that `create_model` reads."""
    return types.SimpleNamespace(**PAPER, base_width=task.base_width, dtype=task.dtype)


def make_batch(batch_size, size):
    """Returns images float32 [N, H, W, 1], masks int32 [N, H, W] and labels float32 [N, 4], seeded.

    Masks follow from the images, so that there is something to learn.
    """
    random = np.random.default_rng(0)
    coarse = random.random((batch_size, size // 8, size // 8), np.float32)
    images = np.kron(coarse, np.ones((1, 8, 8), np.float32))
    masks = np.digitize(images, (0.4, 0.7, 0.95)).astype(np.int32)
    images = images + 0.1 * random.standard_normal(images.shape, np.float32)
    labels = np.stack([(masks == index).any((1, 2)) for index in range(4)], -1)
    return images[..., None], masks, labels.astype(np.float32)


def write_variables(path, variables):
    """Writes {'params', 'batch_stats'} as .npz, names joined by '/'."""
    from auxseg.models.keras_weights import flatten

    np.savez(path, **{"/".join(name): np.asarray(value) for name, value in flatten(variables)})


def draw_variables(task):
    """Draws the network's initial weights, seeded, and writes them to `task.weights`."""
    import jax

    from auxseg.models import create_model

    images = np.zeros((1, task.size, task.size, 1), np.float32)
    write_variables(task.weights, jax.jit(create_model(create_config(task)).init)(jax.random.key(0), images))


def read_variables(path):
    """Returns what `write_variables` wrote."""
    variables = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            *owners, leaf = name.split("/")
            group = variables
            for owner in owners:
                group = group.setdefault(owner, {})
            group[leaf] = archive[name]
    return variables
