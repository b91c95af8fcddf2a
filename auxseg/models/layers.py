"""The arithmetic of the network's layers, each in a plain form and in one that is fast.

Every function takes `lowering`: 'plain' is the textbook form in XLA's own operators, 'shifted' gives
the same numbers (to rounding) many times faster, because XLA lowers depthwise convolutions and their
gradients badly: the depthwise convolution is nine shifted multiply-adds whose gradient is written by
hand, the 1x1 convolution a matrix product, the 2x2 transposed convolution a product and a reshape, and
pooling a reshape and comparisons.

Shapes: images [N, H, W, C], channels last. The weights are laid out as the fast form reads them:

    depthwise   [3, 3, C]        Keras: depthwise_kernel [3, 3, C, 1]
    pointwise   [C, F]           Keras: pointwise_kernel [1, 1, C, F]
    upsample    [C, 2, 2, F]     Keras: Conv2DTranspose kernel [2, 2, F, C]
    ordinary    [3, 3, C, F]     as in Keras
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from auxseg.errors import check_choice

LOWERINGS = ("auto", "plain", "shifted")
"""Valid values of config.model.lowering."""

_NHWC = ("NHWC", "HWIO", "NHWC")


def resolve_lowering(name):
    """Returns 'plain' or 'shifted' for a setting, 'auto' by the default backend.

    The shifted form is taken on CPU and GPU, whose grouped convolutions have slow gradients (jax
    issues 13800 and 23713), the plain one elsewhere.

    Raises:
        InputError: `name` is none of `LOWERINGS`.
    """
    check_choice("model.lowering", name, LOWERINGS)
    if name != "auto":
        return name
    return "shifted" if jax.default_backend() in ("cpu", "gpu", "cuda", "rocm") else "plain"


def depthwise_conv(images, kernel, *, lowering):
    """Returns each channel convolved with its own 3x3 kernel, padded with zeros to the same size.

    Args:
        images: float [N, H, W, C].
        kernel: float [3, 3, C], same dtype.
        lowering: 'plain' or 'shifted'.

    Returns:
        [N, H, W, C], same dtype; sums are in float32.
    """
    if lowering == "plain":
        channels = images.shape[-1]
        return lax.conv_general_dilated(images, kernel[:, :, None, :], (1, 1), "SAME",
                                        dimension_numbers=_NHWC, feature_group_count=channels)
    return _shifted_conv(images, kernel)


def _windows(images):
    """Yields (row, column, images shifted so that this tap of a 3x3 kernel lies on each pixel)."""
    rows, columns = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row in range(3):
        for column in range(3):
            yield row, column, padded[:, row:row + rows, column:column + columns]


def _sum_windows(images, kernel):
    """Returns the nine shifted images times their taps, summed in float32."""
    total = 0.0
    for row, column, window in _windows(images):
        tap = kernel[row, column].astype(jnp.float32)[None, None, None]
        total = total + window.astype(jnp.float32) * tap
    return total.astype(images.dtype)


@jax.custom_vjp
def _shifted_conv(images, kernel):
    return _sum_windows(images, kernel)


def _shifted_conv_fwd(images, kernel):
    return _sum_windows(images, kernel), (images, kernel)


def _shifted_conv_bwd(residuals, gradient):
    """The input's gradient is a convolution with the kernel turned round, the kernel's nine sums."""
    images, kernel = residuals
    gradient32 = gradient.astype(jnp.float32)
    taps = [jnp.sum(window.astype(jnp.float32) * gradient32, (0, 1, 2)) for _, _, window in _windows(images)]
    kernel_gradient = jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)
    return _sum_windows(gradient, kernel[::-1, ::-1]), kernel_gradient


_shifted_conv.defvjp(_shifted_conv_fwd, _shifted_conv_bwd)


def pointwise_conv(images, kernel, bias, *, lowering):
    """Returns a 1x1 convolution, float [N, H, W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [C, F].
        bias: float [F].
        lowering: 'plain' or 'shifted'.
    """
    if lowering == "plain":
        outputs = lax.conv_general_dilated(images, kernel[None, None], (1, 1), "VALID",
                                           dimension_numbers=_NHWC)
    else:
        outputs = jnp.einsum("nhwc,cf->nhwf", images, kernel)
    return outputs + bias[None, None, None]


def ordinary_conv(images, kernel, bias):
    """Returns a dense 3x3 convolution padded with zeros, float [N, H, W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [3, 3, C, F].
        bias: float [F].
    """
    outputs = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)
    return outputs + bias[None, None, None]


def upsample(images, kernel, bias, *, lowering):
    """Returns a transposed 2x2 convolution of stride 2, float [N, 2H, 2W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [C, 2, 2, F].
        bias: float [F].
        lowering: 'plain' or 'shifted'.
    """
    if lowering == "plain":
        outputs = lax.conv_transpose(images, jnp.transpose(kernel[:, ::-1, ::-1], (1, 2, 0, 3)), (2, 2),
                                     "VALID", dimension_numbers=_NHWC)
    else:
        examples, rows, columns, _ = images.shape
        outputs = jnp.einsum("nhwc,cijf->nhiwjf", images, kernel)
        outputs = outputs.reshape(examples, 2 * rows, 2 * columns, kernel.shape[-1])
    return outputs + bias[None, None, None]


def max_pool(images, *, lowering):
    """Returns the maximum of each 2x2 block, [N, H / 2, W / 2, C].

    Among equal pixels the first in reading order (by row, then column) gets the whole gradient, as in
    XLA's own gradient of a pooling window, TensorFlow and PyTorch.

    Args:
        images: float [N, H, W, C], H and W even.
        lowering: 'plain' or 'shifted'.
    """
    if lowering == "plain":
        return lax.reduce_window(images, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return _block_max(images)


def _corners(images):
    """Returns the four pixels of each 2x2 block in reading order, four of [N, H / 2, W / 2, C]."""
    examples, rows, columns, channels = images.shape
    blocks = images.reshape(examples, rows // 2, 2, columns // 2, 2, channels)
    return [blocks[:, :, row, :, column] for row in range(2) for column in range(2)]


@jax.custom_vjp
def _block_max(images):
    first, second, third, fourth = _corners(images)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _block_max_fwd(images):
    return _block_max(images), images


def _block_max_bwd(images, gradient):
    """Gives each block's gradient to its first maximum."""
    examples, rows, columns, channels = images.shape
    blocks = (examples, rows // 2, 1, columns // 2, 1, channels)
    pixels = images.reshape(examples, rows // 2, 2, columns // 2, 2, channels)
    order = jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)
    peak = jnp.max(pixels, axis=(2, 4), keepdims=True)
    first = jnp.min(jnp.where(pixels == peak, order, 4), axis=(2, 4), keepdims=True)
    chosen = jnp.where(order == first, gradient.reshape(blocks), 0)
    return (chosen.reshape(images.shape).astype(gradient.dtype),)


_block_max.defvjp(_block_max_fwd, _block_max_bwd)
