"""The network as prediction runs it: batch norm folded into the products, no auxiliary head."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax

from auxseg.models.aux_unet import AuxUNet


def create_inference(model, variables):
    """Returns (apply_fn, weights) that give a trained network's mask logits with less work.

    Each unit's products come out normalised: the factor of batch norm is multiplied into the pointwise
    (or ordinary) kernel, and its shift is all that is left to add.

    Args:
        model: `AuxUNet`, as `create_model` returns it.
        variables: its {'params', 'batch_stats'}.

    Returns:
        apply_fn: (weights, images float [N, H, W, 1]) -> mask logits float32 [N, H, W, classes]; pure, to
            be jitted once.
        weights: tree of float32 arrays, to be placed on the device once.
    """
    settings = dataclasses.replace(model.settings, aux=False, folded=True)
    folded = AuxUNet(settings)

    def apply_fn(weights, images):
        return folded.apply({"params": weights}, images).mask_logits

    return apply_fn, fold_batch_norm(variables, model.settings.bn_epsilon)


def fold_batch_norm(variables, epsilon):
    """Returns the parameters of a `folded` network: kernels times factor, and one shift for each unit.

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
    factor = unit["scale"] * lax.rsqrt(statistics["variance"] + epsilon)
    kernel = "pointwise" if "pointwise" in unit else "ordinary"
    rows = (1,) * (jnp.ndim(unit[kernel]) - 1) + (-1,)
    folded = {kernel: unit[kernel] * factor.reshape(rows)}
    if kernel == "pointwise":
        folded["depthwise"] = unit["depthwise"]
    return {**folded, "shift": unit["offset"] + (unit["bias"] - statistics["mean"]) * factor}
