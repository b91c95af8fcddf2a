"""The network's operators with batch norm, ReLU and channel scale left to whoever reads the result.

A product of matrices is written once, as it is; what follows it - batch norm, ReLU, the scale of
squeeze-and-excitation - is a factor and a shift for each example and channel, applied by the operator
that reads it (`Signal`). Nothing but the products is kept for the backward pass, and the concatenation of
a decoder is never written: its operators run over the parts.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from auxseg.models import layers, volumes
from auxseg.models.kernels import operators

_CHUNK_BYTES = 16 << 20
"""Size of the largest array of one chunk of images with 'blocked': half of a common third-level cache."""


class Signal(NamedTuple):
    """Images relu(values * factor + shift), not computed yet.

    Attributes:
        values: float [N, H, W, C], or [N, H, W, 1], which the factor spreads over the channels.
        factor: float32 [N, C], or None for 1.
        shift: float32 [N, C], or None: the images are the values themselves, without ReLU.
    """

    values: Any
    factor: Any = None
    shift: Any = None


def activate(signal):
    """Returns the images of a `Signal`, float [N, H, W, C]."""
    if signal.shift is None:
        return signal.values
    images = signal.values.astype(jnp.float32)
    if signal.factor is not None:
        images = images * signal.factor[:, None, None]
    return jax.nn.relu(images + signal.shift[:, None, None]).astype(signal.values.dtype)


def separable_conv(
    signals, depthwise, pointwise, *, lowering, dtype="float32", with_moments=True, slices=None
):
    """Returns a depthwise-separable convolution of the concatenated signals, without bias, and its moments.

    Args:
        signals: tuple of `Signal` with C_i channels each.
        depthwise: float32 [3, 3, sum of C_i], or of volumes [3, 9, sum of C_i].
        pointwise: float32 [sum of C_i, F].
        lowering: of `layers.LOWERINGS`, not 'auto'.
        dtype: of the values, and of what is multiplied for them.
        with_moments: whether the moments are read: kernels leave out what is not, XLA sees it by itself.
        slices: of volumes, whose slices lie one below the other in the images, [N, slices * H, W, C_i]; or None.

    Returns:
        values [N, H, W, F], and their `moments`.
    """
    if slices is None and lowering == "kernels" and operators.can_run(signals):
        return operators.separable_conv(signals, depthwise, pointwise, dtype=dtype, with_moments=with_moments)
    depthwise, pointwise = depthwise.astype(dtype), pointwise.astype(dtype)

    def operator(signals, weights):
        if slices is not None and lowering in ("blocked", "kernels"):
            size = _slices_at_once(signals, pointwise.shape[1], slices)
            if size < slices:
                return _convolve_slices(signals, weights, slices, size, dtype)
        images = [activate(signal).astype(dtype) for signal in signals]
        if lowering == "plain":
            images, weights = [jnp.concatenate(images, -1)], [(depthwise, pointwise)]
        products = []
        for image, (taps, matrix) in zip(images, weights, strict=True):
            filtered = depthwise_conv(image, taps, lowering=lowering, slices=slices)
            products.append(layers.pointwise_conv(filtered, matrix, lowering=lowering))
        return sum(products[1:], products[0])

    if lowering == "plain":
        values = operator(signals, None)
        return values, moments(values)
    widths = [num_channels(signal) for signal in signals]
    starts = [sum(widths[:index]) for index in range(len(widths))]
    weights = tuple(
        (depthwise[..., start : start + width], pointwise[start : start + width])
        for start, width in zip(starts, widths, strict=True)
    )
    return _over_images(operator, moments, lowering, signals, weights)


def _convolve_slices(signals, weights, slices, size, dtype):
    """Returns a separable convolution of volumes, [N, slices * H, W, F], so many slices at a time."""

    def operator(windows, inside, shared):
        total, inside = 0.0, inside[None, :, None, None, None]
        for window, (factor, shift, taps, matrix) in zip(windows, shared, strict=True):
            images = activate(Signal(volumes.to_images(window), factor, shift))
            shown = jnp.where(inside, volumes.from_images(images, window.shape[1]), 0).astype(dtype)
            filtered = volumes.depthwise_conv(shown, taps, lowering="blocked", margin=1)
            products = layers.pointwise_conv(volumes.to_images(filtered), matrix, lowering="blocked")
            total = total + volumes.from_images(products, filtered.shape[1])
        return total

    shared = [(signal.factor, signal.shift, *each) for signal, each in zip(signals, weights, strict=True)]
    values = tuple(volumes.from_images(signal.values, slices) for signal in signals)
    return volumes.to_images(volumes.over_slices(operator, size, values, shared))


def _slices_at_once(signals, features, slices):
    """Returns the most slices, a divisor of them all, whose largest array fits `_CHUNK_BYTES`; at least 1."""
    examples, rows, columns, _ = signals[0].values.shape
    widest = max(features, *(num_channels(signal) for signal in signals))
    slice_bytes = examples * (rows // slices) * columns * widest * signals[0].values.dtype.itemsize
    return _most(slices, slice_bytes)


def depthwise_conv(images, kernel, *, lowering, slices=None):
    """Returns `layers.depthwise_conv` of images, or of the volumes that lie in them as in `separable_conv`."""
    if slices is None:
        return layers.depthwise_conv(images, kernel, lowering=lowering)
    found = volumes.depthwise_conv(volumes.from_images(images, slices), kernel, lowering=lowering)
    return volumes.to_images(found)


def single_channel_conv(images, depthwise, *, lowering, slices=None):
    """Returns the depthwise convolution of one channel and its `moments`.

    A pointwise convolution of one channel only multiplies it by a number for each feature: the caller
    does that to the moments and puts it into the factor of the `Signal`.

    Args:
        images: float [N, H, W, 1].
        depthwise: float [3, 3, 1], or of volumes [3, 9, 1].
        lowering: 'shifted' or 'blocked'.
        slices: as in `separable_conv`.
    """
    values = depthwise_conv(images, depthwise, lowering=lowering, slices=slices)
    return values, moments(values)


def moments(values):
    """Returns mean and (biased) variance of each example and channel, float32 [N, C] both."""
    values = values.astype(jnp.float32)
    mean = jnp.mean(values, (1, 2))
    # The variance is least at the mean: its gradient with respect to the mean is 0.
    spread = jnp.square(values - lax.stop_gradient(mean)[:, None, None])
    return mean, jnp.mean(spread, (1, 2))


def upsample(signal, kernel, bias, *, lowering):
    """Returns `layers.upsample` of a `Signal`, float [N, 2H, 2W, F]."""
    if lowering == "kernels" and operators.can_run((signal,)):
        return operators.upsample(signal, kernel, bias)
    kernel = kernel.astype(signal.values.dtype)

    def operator(signal, weights):
        return layers.upsample(activate(signal), *weights, lowering=lowering)

    return _over_images(operator, _nothing, lowering, signal, (kernel, bias))[0]


def pointwise_conv(signal, kernel, bias, *, lowering):
    """Returns the 1x1 convolution of a `Signal` with a bias, float32 [N, H, W, F]."""
    if lowering == "kernels" and operators.can_run((signal,)):
        return operators.pointwise_conv(signal, kernel, bias)
    kernel = kernel.astype(signal.values.dtype)

    def operator(signal, weights):
        kernel, bias = weights
        products = layers.pointwise_conv(activate(signal), kernel, lowering=lowering)
        return products.astype(jnp.float32) + bias[None, None, None]

    return _over_images(operator, _nothing, lowering, signal, (kernel, bias))[0]


def max_pool(signal, *, lowering):
    """Returns `layers.max_pool` of a `Signal`, [N, H / 2, W / 2, C]."""
    even = not any(size % 2 for size in signal.values.shape[1:3])
    if lowering == "kernels" and even and operators.can_run((signal,), spread=False):
        return operators.max_pool(signal)

    def operator(signal, _):
        return layers.max_pool(activate(signal), lowering=lowering)

    return _over_images(operator, _nothing, lowering, signal, ())[0]


def global_mean(signal, *, lowering):
    """Returns the mean over all pixels of a `Signal`, float32 [N, C]."""
    if lowering == "kernels" and operators.can_run((signal,), spread=False):
        return operators.global_mean(signal)

    def operator(signal, _):
        return jnp.mean(activate(signal), (1, 2), dtype=jnp.float32)

    return _over_images(operator, _nothing, lowering, signal, ())[0]


def num_channels(signal):
    """Returns C of a `Signal`."""
    return signal.values.shape[-1] if signal.shift is None else signal.shift.shape[-1]


def _nothing(values):
    return ()


def _over_images(operator, summary, lowering, batched, shared):
    """Returns `operator(batched, shared)` and `summary` of it, keeping no other array for the gradient.

    Args:
        operator: (batched, shared) -> values [N, ...]; examples independent of each other.
        summary: values -> tree of arrays [N, ...].
        lowering: 'plain': as it stands; 'shifted': all examples at once; else a few at a time.
        batched: tree of arrays [N, ...].
        shared: tree of weights.
    """
    if lowering == "plain":
        values = operator(batched, shared)
        return values, summary(values)
    examples = jax.tree.leaves(batched)[0].shape[0]
    size = (
        examples if lowering == "shifted" else _chunk_size(jax.eval_shape(operator, batched, shared), batched)
    )
    return _in_chunks(operator, summary, size, batched, shared)


def _chunk_size(values, batched):
    """Returns the most examples, a divisor of N, whose largest array fits `_CHUNK_BYTES`; at least 1."""
    arrays = jax.tree.leaves((values, batched))
    examples = arrays[0].shape[0]
    largest = max(array.size * array.dtype.itemsize for array in arrays) // examples
    return _most(examples, largest)


def _most(count, size_bytes):
    """Returns the largest divisor of a count of arrays of a size that fit `_CHUNK_BYTES` together; at least 1."""
    fitting = [
        number
        for number in range(1, count + 1)
        if count % number == 0 and number * size_bytes <= _CHUNK_BYTES
    ]
    return max(fitting, default=1)


def _each_chunk(function, carry, inputs, size):
    """Returns (carry, outputs) of `function(carry, chunk) -> (carry, outputs)` over chunks of examples.

    As `lax.scan` over the leading axis, but for the buffers of the outputs: scan begins with zeros, which
    XLA shares between all loops of a program and so has to copy, whole, for each. Here they begin with a
    number of their own, made from the inputs (it may be NaN); every element is written before it is read.

    Args:
        function: as said; every array of chunk and outputs is [size, ...].
        carry: tree of arrays.
        inputs: tree of arrays [N, ...].
        size: divisor of N.
    """
    leaves = jax.tree.leaves(inputs)
    examples = leaves[0].shape[0]

    def take(start):
        return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size), inputs)

    def step(index, state):
        carry, buffers = state
        carry, outputs = function(carry, take(index * size))
        return carry, jax.tree.map(
            lambda buffer, output: _put(buffer, output, index * size), buffers, outputs
        )

    shapes, structure = jax.tree.flatten(jax.eval_shape(lambda: function(carry, take(0)))[1])
    buffers = [_buffer(leaves[-1].ravel()[index], examples, shape) for index, shape in enumerate(shapes)]
    return lax.fori_loop(0, examples // size, step, (carry, jax.tree.unflatten(structure, buffers)))


def _buffer(seed, examples, shape):
    return jnp.broadcast_to((seed * 0).astype(shape.dtype), (examples, *shape.shape[1:]))


def _put(buffer, output, start):
    return lax.dynamic_update_slice_in_dim(buffer, output, start, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _in_chunks(operator, summary, size, batched, shared):
    def chunk(batched):
        values = operator(batched, shared)
        return values, summary(values)

    if size == jax.tree.leaves(batched)[0].shape[0]:
        return chunk(batched)
    return _each_chunk(lambda _, batched: (None, chunk(batched)), None, batched, size)[1]


def _in_chunks_fwd(operator, summary, size, batched, shared):
    outputs = _in_chunks(operator, summary, size, batched, shared)
    return outputs, (batched, shared, outputs[0])


def _in_chunks_bwd(operator, summary, size, residuals, gradients):
    """Computes what lies between inputs and values again, chunk by chunk; the weights' gradients add up."""
    batched, shared, values = residuals

    def chunk(total, inputs):
        batched, values, (gradient, summary_gradient) = inputs
        _, pull_summary = jax.vjp(summary, values)
        gradient = lax.optimization_barrier(gradient + pull_summary(summary_gradient)[0])
        _, pull = jax.vjp(operator, batched, shared)
        batched_gradient, shared_gradient = pull(gradient)
        return jax.tree.map(jnp.add, total, shared_gradient), batched_gradient

    inputs = (batched, values, gradients)
    total = jax.tree.map(lambda weights: jnp.zeros(weights.shape, jnp.float32), shared)
    if size == values.shape[0]:
        total, batched_gradient = chunk(total, inputs)
    else:
        total, batched_gradient = _each_chunk(chunk, total, inputs, size)
    return batched_gradient, jax.tree.map(lambda sums, weights: sums.astype(weights.dtype), total, shared)


_in_chunks.defvjp(_in_chunks_fwd, _in_chunks_bwd)
