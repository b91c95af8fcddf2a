"""Weights of the same network built of Keras layers, to and from ours.

The Keras network is `keras.Sequential`/functional layers in the order of the paper's figure, whose
variables have these paths (layer name / variable name):

    encoder_0_unit_0_conv   depthwise_kernel [3, 3, C, 1], pointwise_kernel [1, 1, C, F], bias [F]
                            (SeparableConv2D), or kernel [3, 3, C, F], bias [F] (Conv2D)
    encoder_0_unit_0_norm   gamma, beta, moving_mean, moving_variance [F] (BatchNormalization)
    encoder_0_se_squeeze    kernel [F, F / 8], bias (Dense)
    encoder_0_se_excite     kernel [F / 8, F], bias (Dense)
    up_3                    kernel [2, 2, F, C], bias [F] (Conv2DTranspose)
    mask                    kernel [1, 1, F, 4], bias [4] (Conv2D)
    aux_hidden, aux         kernel, bias (Dense)

and so on for the other levels, the bottleneck and the decoder, as in `aux_unet.py`.
"""

from __future__ import annotations

import numpy as np

from auxseg.base.errors import InputError


def to_keras_weights(variables):
    """Returns {'layer/variable': float32 array in Keras' layout} for our variables.

    Args:
        variables: {'params': ..., 'batch_stats': ...} of `AuxUNet`.
    """
    return {name: _to_keras(array, layout) for name, (array, layout) in _entries(variables).items()}


def from_keras_weights(weights, variables):
    """Returns variables with the values of Keras weights.

    Args:
        weights: {'layer/variable': array}, such as {v.path: v for v in keras_model.variables}.
        variables: ours, of the network to fill; only structure and shapes are read.

    Raises:
        InputError: a weight is missing, has another shape, or is none of this network's.
    """
    entries = _entries(variables)
    _check_names(set(weights), set(entries))
    filled = {"params": {}, "batch_stats": {}}
    for collection in filled:
        for path, array in flatten(variables[collection]):
            name, layout = _keras_name(collection, path)
            value = _from_keras(name, np.asarray(weights[name], np.float32), layout, array.shape)
            _insert(filled[collection], path, value)
    return filled


_UNIT = {
    "depthwise": ("conv/depthwise_kernel", "depthwise"),
    "pointwise": ("conv/pointwise_kernel", "pointwise"),
    "ordinary": ("conv/kernel", "same"),
    "bias": ("conv/bias", "same"),
    "scale": ("norm/gamma", "same"),
    "offset": ("norm/beta", "same"),
    "mean": ("norm/moving_mean", "same"),
    "variance": ("norm/moving_variance", "same"),
}
_SE = {
    "squeeze": "squeeze/kernel",
    "squeeze_bias": "squeeze/bias",
    "excite": "excite/kernel",
    "excite_bias": "excite/bias",
}
_AUX = {"hidden": "aux_hidden/kernel", "hidden_bias": "aux_hidden/bias"}


def _keras_name(collection, path):
    """Returns the Keras name and the layout ('same', 'depthwise', ...) of one of our arrays."""
    *owners, leaf = path
    if len(owners) == 2 and owners[1] == "se":
        return f"{owners[0]}_se_{_SE[leaf]}", "same"
    if len(owners) == 2:
        name, layout = _UNIT[leaf]
        return f"{owners[0]}_{owners[1]}_{name}", layout
    if owners[0] == "aux":
        return _AUX.get(leaf, f"aux/{leaf}"), "same"
    layouts = {"mask": "pointwise"}
    layout = "same" if leaf == "bias" else layouts.get(owners[0], "upsample")
    return f"{owners[0]}/{leaf}", layout


def _to_keras(array, layout):
    array = np.asarray(array, np.float32)
    if layout == "depthwise":
        return array[..., None]
    if layout == "pointwise":
        return array[None, None]
    return array.transpose(1, 2, 3, 0) if layout == "upsample" else array


def _from_keras(name, array, layout, shape):
    expected = _to_keras(np.empty(shape, np.float32), layout).shape
    if array.shape != expected:
        raise InputError(f"Keras weights, {name}: shape {array.shape}, expected {expected}")
    if layout == "upsample":
        return array.transpose(3, 0, 1, 2)
    return array.reshape(shape)


def flatten(tree, path=()):
    """Yields (path of names, array) of a nested dictionary."""
    for name, value in tree.items():
        if hasattr(value, "items"):
            yield from flatten(value, (*path, name))
        else:
            yield (*path, name), value


def _entries(variables):
    """Returns {Keras name: (our array, layout)}."""
    entries = {}
    for collection in ("params", "batch_stats"):
        for path, array in flatten(variables[collection]):
            name, layout = _keras_name(collection, path)
            entries[name] = (array, layout)
    return entries


def _insert(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _check_names(found, expected):
    if missing := sorted(expected - found):
        raise InputError(f"Keras weights: {len(missing)} are missing, the first is {missing[0]!r}")
    if unknown := sorted(found - expected):
        raise InputError(f"Keras weights: {len(unknown)} are not this network's, the first is {unknown[0]!r}")
