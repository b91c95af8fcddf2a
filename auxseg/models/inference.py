"""The network as prediction and evaluation run it: batch norm folded into the products, no auxiliary head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from auxseg.models import interface
from auxseg.models.kernels import build

FOLDED = ("aux_unet", "unet", "aux_unet3d")
"""Names of the networks whose batch norm is in `aux_unet.Unit`s."""
LEAST_WIDTH = 32
"""Channels of the first level from which prediction is in bfloat16: its tiles have as many."""


def create_predict(model, variables, *, window_hu, mirror=None):
    """Returns (predict, weights): `predict(weights, images)` gives mask probabilities float32 [N, H, W, C].

    `images` are HU [N, H, W], or slabs [N, H, W, slices]. Pure, to be compiled once. What a network of float32 is
    computed in is `choose_dtype`'s.

    Args:
        model: as `create_model` returns it.
        variables: its {'params', 'batch_stats'}.
        window_hu: (low, high).
        mirror: average with those of the mirrored images, turned back by `classes.mirrored`; None: do not.
    """
    from auxseg.models.aux_unet import AuxUNet

    # Of volumes only some operators have kernels: half of the work would be XLA's, which is slow in bfloat16.
    dtype = choose_dtype(model.settings) if type(model) is AuxUNet else None
    apply_fn, weights = create_inference(model, variables, dtype=dtype)

    def predict(weights, images):
        logits = apply_fn(weights, interface.to_input(images, window_hu))
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def predict_both(weights, images):
        return interface.average_with_mirrored(lambda each: predict(weights, each), images, mirror)

    return predict if mirror is None else predict_both, weights


def choose_dtype(settings):
    """Returns what to predict in: bfloat16 where the kernels have AMX for it and the network is wide, else its own.

    Masks stay what they are, but for few pixels (experiments/results/study_speed.md). vdpbf16ps was no faster than
    float32 where it was measured.

    Args:
        settings: `settings.Settings`.
    """
    wide = settings.separable and settings.base_width >= LEAST_WIDTH
    fast = wide and settings.lowering == "kernels" and build.find_unit() == "amx"
    return "bfloat16" if fast else settings.dtype


def create_inference(model, variables, *, dtype=None):
    """Returns (apply_fn, weights) that give a trained network's mask logits with less work.

    Each unit's products come out normalised: the factor of batch norm is multiplied into the pointwise
    (or ordinary) kernel, and its shift is all that is left to add.

    A network that is none of `FOLDED`, or one that changes them, runs as it is.

    Args:
        model: as `create_model` returns it.
        variables: its {'params', 'batch_stats'}.
        dtype: to compute in, or None for the model's.

    Returns:
        apply_fn: (weights, images float [N, H, W, slices]) -> mask logits float32 [N, H, W, classes]; pure, to
            be jitted once.
        weights: tree of float32 arrays on the default device.
    """
    if not is_folded(model):
        return lambda weights, images: model.apply(weights, images).mask_logits, jax.device_put(variables)
    settings = dataclasses.replace(
        model.settings, aux=False, folded=True, dtype=dtype or model.settings.dtype
    )
    folded = type(model)(settings)

    def apply_fn(weights, images):
        return folded.apply({"params": weights}, images).mask_logits

    return apply_fn, jax.device_put(fold_batch_norm(variables, model.settings.bn_epsilon))


def is_folded(model):
    """Returns whether a network is one of `FOLDED`, and not one that changes them."""
    from auxseg.models.aux_unet import AuxUNet  # it is a network already: here they cost no import
    from auxseg.models.aux_unet3d import AuxUNet3D
    from auxseg.models.unet import UNet

    return type(model) in (AuxUNet, UNet, AuxUNet3D)


def fold_batch_norm(variables, epsilon):
    """Returns the parameters of a `folded` network: kernels times factor, and one shift for each unit.

    In NumPy: on a device, each of a hundred small operators would be a program to compile.

    Args:
        variables: {'params', 'batch_stats'} of `AuxUNet`.
        epsilon: of batch norm.
    """
    folded = {}
    for owner, group in variables["params"].items():
        statistics = variables["batch_stats"].get(owner, {})
        folded[owner] = {
            name: _fold_unit(value, statistics[name], epsilon) if name in statistics else value
            for name, value in group.items()
        }
    folded.pop("aux", None)
    return folded


def _fold_unit(unit, statistics, epsilon):
    unit, statistics = jax.tree.map(np.asarray, (unit, statistics))
    factor = unit["scale"] / np.sqrt(statistics["variance"] + np.float32(epsilon))
    kernel = "pointwise" if "pointwise" in unit else "ordinary"
    folded = {kernel: unit[kernel] * factor}
    if kernel == "pointwise":
        folded["depthwise"] = unit["depthwise"]
    return {**folded, "shift": unit["offset"] + (unit["bias"] - statistics["mean"]) * factor}
