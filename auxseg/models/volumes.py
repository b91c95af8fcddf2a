"""The arithmetic of volumes: convolutions over slices, rows and columns, and volumes a few slices at a time.

Volumes are [N, D, H, W, C], channels last. `lowering` and the layout of weights are those of `layers`, with

    depthwise   [3, 9, C]           slices, then rows and columns
    ordinary    [3, 3, 3, C, F]
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from auxseg.models import layers

_NDHWC = ("NDHWC", "DHWIO", "NDHWC")


def from_images(images, slices):
    """Returns images [N, slices * H, W, C], slices one below the other, as [N, slices, H, W, C]."""
    examples, rows, columns, channels = images.shape
    return images.reshape(examples, slices, rows // slices, columns, channels)


def to_images(values):
    """Returns what `from_images` was given."""
    examples, slices, rows, columns, channels = values.shape
    return values.reshape(examples, slices * rows, columns, channels)


def depthwise_conv(volumes, kernel, *, lowering, margin=0):
    """Returns each channel convolved with its own 3x3x3 kernel, padded with zeros to the same size.

    XLA lowers a grouped 3D convolution even worse than one in 2D: here it is three sums of nine shifted slices.

    Args:
        volumes: float [N, D, H, W, C].
        kernel: float [3, 9, C], same dtype: slices, then rows and columns.
        lowering: of `layers.LOWERINGS`, not 'auto'.
        margin: 0, or 1: the first and the last slice are only read, and there are two fewer in the result; not 'plain'.

    Returns:
        [N, D, H, W, C], same dtype; sums are in float32.
    """
    channels = volumes.shape[-1]
    taps = kernel.reshape(3, 3, 3, channels)
    if lowering == "plain":
        return lax.conv_general_dilated(
            volumes,
            taps[:, :, :, None],
            (1, 1, 1),
            "SAME",
            dimension_numbers=_NDHWC,
            feature_group_count=channels,
        )
    return _shifted_conv(volumes, taps, lowering in ("blocked", "kernels"), 1 - margin)


def _pad(volumes, slices):
    """Returns the volumes with a border of one zero pixel, and so many zero slices at each end; see `layers.pad`."""
    return lax.optimization_barrier(jnp.pad(volumes, ((0, 0), (slices, slices), (1, 1), (1, 1), (0, 0))))


def _neighbour_slices(padded, step):
    """Returns the slices 0, 1 or 2 before each place of volumes with a slice more at each end, as images [N * D, rows, columns, C]."""
    count = padded.shape[1] - 2
    return padded[:, step : step + count].reshape(-1, *padded.shape[2:])


def _sum_slices(padded, taps):
    """Returns three times nine shifted slices times their taps, [N, D, H, W, C].

    The barriers hold the three passes apart: one of 27 taps takes XLA's code for a CPU twice as long.
    """
    examples, slices, rows, columns, channels = (
        n - 2 * (0 < axis < 4) for axis, n in enumerate(padded.shape)
    )
    total = jnp.zeros((examples * slices, rows, columns, channels), jnp.float32)
    for step in range(3):
        images = _neighbour_slices(padded, step).astype(jnp.float32)
        total = lax.optimization_barrier(total + layers.sum_taps(images, taps[step]))
    return total.astype(padded.dtype).reshape(examples, slices, rows, columns, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_conv(volumes, taps, by_rows, border):
    """`border` zero slices are added at each end: 1, or 0."""
    return _sum_slices(_pad(volumes, border), taps)


def _shifted_conv_fwd(volumes, taps, by_rows, border):
    padded = _pad(volumes, border)
    return _sum_slices(padded, taps), (padded, taps)


def _shifted_conv_bwd(by_rows, border, residuals, gradient):
    """The input's gradient is a convolution with the kernel turned round, the kernel's 27 sums."""
    padded, taps = residuals
    flat = gradient.reshape(-1, *gradient.shape[2:])
    found = [layers.tap_gradients(_neighbour_slices(padded, step), flat, by_rows) for step in range(3)]
    turned = taps[::-1, ::-1, ::-1]
    return _sum_slices(_pad(gradient, 2 - border), turned), jnp.stack(found).astype(taps.dtype)


_shifted_conv.defvjp(_shifted_conv_fwd, _shifted_conv_bwd)


def ordinary_conv(volumes, kernel, *, lowering):
    """Returns the 3x3x3 convolution padded with zeros, without bias, float [N, D, H, W, F].

    XLA's own in three dimensions takes five to ten times as long on a CPU, with its gradients, as one of images whose
    channels are those of three slices.

    Args:
        volumes: float [N, D, H, W, C].
        kernel: float [3, 3, 3, C, F].
        lowering: of `layers.LOWERINGS`, not 'auto'.
    """
    if lowering == "plain":
        return lax.conv_general_dilated(volumes, kernel, (1, 1, 1), "SAME", dimension_numbers=_NDHWC)
    padded = jnp.pad(volumes, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    around = jnp.concatenate([_neighbour_slices(padded, step) for step in range(3)], axis=-1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, -1, kernel.shape[-1])
    return layers.ordinary_conv(around, flat).reshape(*volumes.shape[:-1], -1)


def halve_slices(images, slices):
    """Returns the larger of each two slices, [N, slices / 2 * H, W, C]; two equal ones share the gradient.

    Args:
        images: float [N, slices * H, W, C], slices one below the other.
        slices: an even number.
    """
    examples, rows, columns, channels = images.shape
    pairs = images.reshape(examples, slices // 2, 2, rows // slices, columns, channels)
    return jnp.maximum(pairs[:, :, 0], pairs[:, :, 1]).reshape(examples, rows // 2, columns, channels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def over_slices(operator, size, volumes, shared):
    """Returns `operator` of each `size` slices, [N, D, H, W, F]; only its inputs are kept for the gradient.

    What lies between inputs and values is never there for more than these slices. A slab of 32 x 160 x 160 with 64
    channels holds a fifth of a gigabyte in each array, and a separable convolution with its gradient has a dozen.

    Args:
        operator: (windows, inside, shared) -> values [N, size, H, W, F]. A window has a slice more at each end;
            `inside`, bool [size + 2], is false where the volumes have none: that one is to be taken as zeros.
        size: a divisor of D.
        volumes: tuple of float [N, D, H, W, C].
        shared: tree of float arrays.
    """

    def run(start):
        return operator(_windows(volumes, start, size), _inside(volumes, start, size), shared)

    def step(index, values):
        return lax.dynamic_update_slice_in_dim(values, run(index * size), index * size, 1)

    examples, slices = volumes[0].shape[:2]
    found = jax.eval_shape(lambda: run(0))
    start = _zeros(volumes, 0, (examples, slices, *found.shape[2:]), found.dtype)
    return lax.fori_loop(0, slices // size, step, start)


def _over_slices_fwd(operator, size, volumes, shared):
    return over_slices(operator, size, volumes, shared), (volumes, shared)


def _over_slices_bwd(operator, size, residuals, gradient):
    """Slices at the ends of windows get a part of their gradient from each of the two windows that show them."""
    volumes, shared = residuals

    def step(index, state):
        gradients, total = state
        start = index * size
        inside = _inside(volumes, start, size)
        windows = _windows(volumes, start, size)
        _, pull = jax.vjp(lambda *inputs: operator(inputs[0], inside, inputs[1]), windows, shared)
        found, shared_gradient = pull(lax.dynamic_slice_in_dim(gradient, start, size, 1))
        gradients = tuple(_add_window(*each, start) for each in zip(gradients, found, strict=True))
        return gradients, jax.tree.map(jnp.add, total, shared_gradient)

    gradients = tuple(_zeros(volumes, index, each.shape, each.dtype) for index, each in enumerate(volumes))
    total = jax.tree.map(lambda each: jnp.zeros(each.shape, jnp.float32), shared)
    gradients, total = lax.fori_loop(0, volumes[0].shape[1] // size, step, (gradients, total))
    return gradients, jax.tree.map(lambda sums, each: sums.astype(each.dtype), total, shared)


over_slices.defvjp(_over_slices_fwd, _over_slices_bwd)


def _parts(slices, start, size):
    """Returns (first, count) of the slice before, the slices themselves and the slice after, within the volumes."""
    return (jnp.maximum(start - 1, 0), 1), (start, size), (jnp.minimum(start + size, slices - 1), 1)


def _windows(volumes, start, size):
    return tuple(
        jnp.concatenate(
            [lax.dynamic_slice_in_dim(each, *part, axis=1) for part in _parts(each.shape[1], start, size)],
            axis=1,
        )
        for each in volumes
    )


def _inside(volumes, start, size):
    places = start - 1 + jnp.arange(size + 2)
    return (places >= 0) & (places < volumes[0].shape[1])


def _add_window(total, window, start):
    """Returns the volumes `total` with a window's slices added; those outside are zeros, and change nothing."""
    size, place = window.shape[1] - 2, 0
    for first, count in _parts(total.shape[1], start, size):
        there = lax.dynamic_slice_in_dim(total, first, count, axis=1) + window[:, place : place + count]
        total, place = lax.dynamic_update_slice_in_dim(total, there, first, axis=1), place + count
    return total


def _zeros(volumes, index, shape, dtype):
    """Returns zeros that XLA cannot share among loops: it would copy them, whole, for each (`blocks._each_chunk`)."""
    return jnp.broadcast_to((volumes[-1].ravel()[index] > jnp.inf).astype(dtype), shape)
