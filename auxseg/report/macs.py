"""Multiply-accumulates of a network's forward pass, from the shapes of its weights or from its program."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp


def count_macs(shapes, *, size_yx, depth):
    """Returns the multiply-accumulates for one image, or None where a weight's place is not known.

    A kernel is applied once a pixel of its level (`encoder_2` works at a quarter of the size); the dense
    layers of squeeze-and-excitation and of the auxiliary head once an image. Biases, norms and activations
    are not counted.

    Args:
        shapes: {'encoder_0/unit_0/depthwise': (3, 3, 1), ...} of the parameters, as `models.aux_unet` names
            them.
        size_yx: rows and columns of the image.
        depth: poolings.
    """
    counts = [_count(name, shape, size_yx, depth) for name, shape in shapes.items()]
    return None if None in counts else sum(counts)


def _count(name, shape, size_yx, depth):
    part, leaf = name.split("/")[0], name.split("/")[-1]
    if len(shape) < 2:
        return 0
    if leaf == "depthwise" and shape[1] != 3:
        return None  # of volumes, whose slices are not known here
    if leaf in ("squeeze", "excite") or part == "aux":
        return math.prod(shape)
    level = _level(part, depth)
    if level is None:
        return None
    return math.prod(shape) * (size_yx[0] >> level) * (size_yx[1] >> level)


def _level(part, depth):
    """Returns how often the input of a part was halved; a transposed convolution reads the level below."""
    if part in ("bottleneck", "mask"):
        return depth if part == "bottleneck" else 0
    match = re.fullmatch(r"(encoder|decoder|up)_(\d+)", part)
    return int(match[2]) + (match[1] == "up") if match else None


def trace_macs(model, *, size_yx, slices=1):
    """Returns {part: multiply-accumulates for one image} of any network, counted in its program.

    Convolutions and products of matrices are counted, in the textbook form (`lowering` 'plain'), whatever the
    network's own: per output value the taps times the channels that it reads. Nothing is computed.

    Args:
        model: from `models.create_model`.
        size_yx: rows and columns of the image.
        slices: of the slab of a 3D network, else 1.

    Returns:
        dict by part, such as 'encoder_0/unit_0' or 'encoder_0/se', in the order of the program.
    """
    model = model.clone(settings=dataclasses.replace(model.settings, lowering="plain"))
    images = jax.ShapeDtypeStruct((1, *size_yx, slices), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    counts = collections.Counter()
    _add_macs(jax.make_jaxpr(model.apply)(variables, images).jaxpr, "", counts)
    return dict(counts)


def _add_macs(jaxpr, outer, counts):
    for equation in jaxpr.eqns:
        scope = outer or str(equation.source_info.name_stack)
        count = _equation_macs(equation)
        if count:
            counts[_part(scope)] += count
        for inner in _inner_jaxprs(equation.params):
            _add_macs(inner, scope, counts)


def _inner_jaxprs(params):
    """Returns the programs that an equation calls, open or closed."""
    values = [each for value in params.values() for each in (value if isinstance(value, tuple) else (value,))]
    found = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in found if hasattr(value, "eqns")]


def _part(scope):
    """Returns the modules' names of a scope 'AuxUNet/encoder_0/unit_0/unit_0._convolve': 'encoder_0/unit_0'."""
    names = [name for name in scope.split("/")[1:] if "." not in name and "(" not in name]
    return "/".join(names)


def _equation_macs(equation):
    kind = equation.primitive.name
    if kind == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if kind == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        # A transposed convolution multiplies only what lies between the zeros.
        taps = math.prod(kernel) // features // math.prod(equation.params["lhs_dilation"])
        return math.prod(equation.outvars[0].aval.shape) * taps
    return 0
