"""The arithmetic of the network's layers, each in a plain form and in one that is fast.

Every function takes `lowering`: 'plain' is the textbook form in XLA's own operators, 'shifted' gives
the same numbers (to rounding) many times faster, because XLA lowers depthwise convolutions and their
gradients badly: the depthwise convolution is nine shifted multiply-adds whose gradient is written by
hand, the 1x1 convolution a matrix product, the 2x2 transposed convolution a product and a reshape, and
pooling a reshape and comparisons. 'blocked' is 'shifted' a few images at a time (`kernels`), so that
what lies between two operators stays in a CPU's cache and needs little memory. 'kernels' is 'blocked', but
for the separable convolutions and the up-sampling, which are compiled kernels of their own (`kernels`).

Shapes: images [N, H, W, C], channels last. The weights are laid out as the fast form reads them:

    depthwise   [3, 3, C]        Keras: depthwise_kernel [3, 3, C, 1]
    pointwise   [C, F]           Keras: pointwise_kernel [1, 1, C, F]
    upsample    [C, 2, 2, F]     Keras: Conv2DTranspose kernel [2, 2, F, C]
    ordinary    [3, 3, C, F]     as in Keras
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from auxseg.base.errors import InputError, check_choice
from auxseg.models.kernels import build

LOWERINGS = ("auto", "plain", "shifted", "blocked", "kernels")
"""Valid values of config.model.lowering."""
_NHWC = ("NHWC", "HWIO", "NHWC")


def resolve_lowering(name, dtype="float32"):
    """Returns a lowering other than 'auto' for a setting; 'auto' goes by the default backend.

    On a CPU 'kernels', or 'blocked' where they cannot be compiled or the processor multiplies no bfloat16; 'shifted' on a GPU, whose grouped
    convolutions have slow gradients too (jax issues 13800 and 23713); 'plain' elsewhere.

    Raises:
        InputError: `name` is none of `LOWERINGS`, or 'kernels' that cannot be compiled here.
    """
    check_choice("model.lowering", name, LOWERINGS)
    backend = jax.default_backend()
    if name == "kernels" or (name, backend) == ("auto", "cpu"):
        if backend != "cpu":
            reason = f"they are for a CPU, this is a {backend}"
        else:
            reason = build.load()
            if not reason and dtype == "bfloat16" and build.find_unit() == "none":
                reason = "this processor multiplies no bfloat16; take model.dtype=float32"
        if name == "kernels" and reason:
            raise InputError(f"model.lowering: 'kernels' cannot be used here: {reason}; take 'auto'")
        if reason:
            build.explain_missing(reason)
        return "blocked" if reason else "kernels"
    return name if name != "auto" else {"gpu": "shifted"}.get(backend, "plain")


def depthwise_conv(images, kernel, *, lowering):
    """Returns each channel convolved with its own 3x3 kernel, padded with zeros to the same size.

    Args:
        images: float [N, H, W, C].
        kernel: float [3, 3, C], same dtype.
        lowering: of `LOWERINGS`, not 'auto'.

    Returns:
        [N, H, W, C], same dtype; sums are in float32.
    """
    if lowering == "plain":
        channels = images.shape[-1]
        return lax.conv_general_dilated(
            images,
            kernel[:, :, None, :],
            (1, 1),
            "SAME",
            dimension_numbers=_NHWC,
            feature_group_count=channels,
        )
    return _shifted_conv(images, kernel, lowering in ("blocked", "kernels"))


def pad(images):
    """Returns the images with a border of one zero pixel, held apart from what reads it.

    The barrier keeps XLA from computing the padding, with its comparisons, anew for each of nine taps.
    """
    return lax.optimization_barrier(jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))))


def sum_taps(padded, kernel):
    """Returns the nine shifted images times their taps, summed in float32."""
    rows, columns = padded.shape[1] - 2, padded.shape[2] - 2
    total = 0.0
    for tap in range(9):
        window = padded[:, tap // 3 : tap // 3 + rows, tap % 3 : tap % 3 + columns]
        weight = kernel[tap // 3, tap % 3].astype(jnp.float32)[None, None, None]
        total = total + window.astype(jnp.float32) * weight
    return total.astype(padded.dtype)


def tap_gradients(padded, gradient, by_rows):
    """Returns the kernel's gradient, float32 [3, 3, C]: nine sums of shifted images times gradient.

    Args:
        padded: float [N, H + 2, W + 2, C].
        gradient: float [N, H, W, C].
        by_rows: add row after row, which keeps the products in a CPU's cache; XLA would write all
            nine of them to memory.
    """
    examples, rows, columns, channels = gradient.shape

    def products(row, height):
        part = lax.dynamic_slice_in_dim(gradient, row, height, 1).astype(jnp.float32)
        for tap in range(9):
            start = (0, row + tap // 3, tap % 3, 0)
            window = lax.dynamic_slice(padded, start, (examples, height, columns, channels))
            yield window.astype(jnp.float32) * part

    def add_row(row, sums):
        return tuple(total + product for total, product in zip(sums, products(row, 1), strict=True))

    if by_rows:
        sums = lax.fori_loop(
            0, rows, add_row, (jnp.zeros((examples, 1, columns, channels), jnp.float32),) * 9
        )
    else:
        sums = products(0, rows)
    return jnp.stack([jnp.sum(total, (0, 1, 2)) for total in sums]).reshape(3, 3, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_conv(images, kernel, by_rows):
    return sum_taps(pad(images), kernel)


def _shifted_conv_fwd(images, kernel, by_rows):
    padded = pad(images)
    return sum_taps(padded, kernel), (padded, kernel)


def _shifted_conv_bwd(by_rows, residuals, gradient):
    """The input's gradient is a convolution with the kernel turned round, the kernel's nine sums."""
    padded, kernel = residuals
    kernel_gradient = tap_gradients(padded, gradient, by_rows).astype(kernel.dtype)
    return sum_taps(pad(gradient), kernel[::-1, ::-1]), kernel_gradient


_shifted_conv.defvjp(_shifted_conv_fwd, _shifted_conv_bwd)


def pointwise_conv(images, kernel, *, lowering):
    """Returns a 1x1 convolution without bias, float [N, H, W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [C, F].
        lowering: of `LOWERINGS`, not 'auto'.
    """
    if lowering == "plain":
        return lax.conv_general_dilated(images, kernel[None, None], (1, 1), "VALID", dimension_numbers=_NHWC)
    # As a product of two matrices: in four dimensions XLA transposes the images for the kernel's gradient.
    products = images.reshape(-1, images.shape[-1]) @ kernel
    return products.reshape(*images.shape[:-1], kernel.shape[-1])


def ordinary_conv(images, kernel):
    """Returns a dense 3x3 convolution padded with zeros, without bias, float [N, H, W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [3, 3, C, F].
    """
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


def upsample(images, kernel, bias, *, lowering):
    """Returns a transposed 2x2 convolution of stride 2, float [N, 2H, 2W, F].

    Args:
        images: float [N, H, W, C].
        kernel: float [C, 2, 2, F].
        bias: float [F].
        lowering: of `LOWERINGS`, not 'auto'.
    """
    if lowering == "plain":
        outputs = lax.conv_transpose(
            images,
            jnp.transpose(kernel[:, ::-1, ::-1], (1, 2, 0, 3)),
            (2, 2),
            "VALID",
            dimension_numbers=_NHWC,
        )
    else:
        examples, rows, columns, _ = images.shape
        features = kernel.shape[-1]
        outputs = images.reshape(-1, images.shape[-1]) @ kernel.reshape(-1, 4 * features)
        outputs = outputs.reshape(examples, rows, columns, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
        outputs = outputs.reshape(examples, 2 * rows, 2 * columns, features)
    # In float32, or the bias' gradient would be a sum of thousands of pixels in bfloat16.
    return (outputs.astype(jnp.float32) + bias.astype(jnp.float32)[None, None, None]).astype(images.dtype)


def max_pool(images, *, lowering):
    """Returns the maximum of each 2x2 block, [N, H / 2, W / 2, C].

    Among equal pixels the first in reading order (by row, then column) gets the whole gradient, as in
    XLA's own gradient of a pooling window, TensorFlow and PyTorch.

    Args:
        images: float [N, H, W, C], H and W even.
        lowering: of `LOWERINGS`, not 'auto'.
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
