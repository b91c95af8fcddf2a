"""The operators of `blocks.py` as compiled kernels, each with its gradient as one more.

What XLA does by several operators, each of which reads and writes whole images, is done here in one pass over
them (`kernels.cc`); float32. Of a convolution only its values and their mean are kept for the gradient, everything
between is computed again.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from auxseg.models.kernels import build

MAX_SIGNALS = 2
"""Arrays that a kernel reads side by side."""


def can_run(signals, *, spread=True):
    """Returns whether there are kernels for these `blocks.Signal`s.

    Args:
        signals: list of them.
        spread: there are for one channel that the factor spreads.
    """
    fitting = all(array.dtype == jnp.float32 for array in jax.tree.leaves(signals))
    fitting &= all(signal.values.size for signal in signals)
    if not spread:
        fitting &= all(
            signal.shift is None or signal.shift.shape[1] == signal.values.shape[3] for signal in signals
        )
    return fitting and len(signals) <= MAX_SIGNALS


def separable_conv(signals, depthwise, pointwise, *, with_moments):
    """Returns values [N, H, W, F] and their mean and variance [N, F] each; see `blocks.separable_conv`.

    Args:
        signals: one or two `blocks.Signal`, concatenated.
        depthwise: float32 [3, 3, C].
        pointwise: float32 [C, F].
        with_moments: else mean and variance are 0.
    """
    raw, arrays = _to_arrays(signals)
    values, *moments = _separable(raw, with_moments, arrays, depthwise, pointwise)
    return values, tuple(moments)


def upsample(signal, kernel, bias):
    """Returns [N, 2H, 2W, F]; see `blocks.upsample`.

    Args:
        signal: `blocks.Signal`.
        kernel: float32 [C, 2, 2, F].
        bias: float32 [F].
    """
    raw, (arrays,) = _to_arrays((signal,))
    return _product(raw, 2, arrays, kernel, bias)


def pointwise_conv(signal, kernel, bias):
    """Returns [N, H, W, F]; see `blocks.pointwise_conv`.

    Args:
        signal: `blocks.Signal`.
        kernel: float32 [C, F].
        bias: float32 [F].
    """
    raw, (arrays,) = _to_arrays((signal,))
    return _product(raw, 1, arrays, kernel, bias)


def max_pool(signal):
    """Returns [N, H / 2, W / 2, C]; see `blocks.max_pool`."""
    raw, (arrays,) = _to_arrays((signal,))
    return _pool(raw, arrays)


def global_mean(signal):
    """Returns [N, C]; see `blocks.global_mean`."""
    raw, (arrays,) = _to_arrays((signal,))
    return _mean(raw, arrays)


def _to_arrays(signals):
    """Returns which signals are their values themselves, as bits, and three arrays of each, empty where not there."""
    raw, arrays = 0, []
    for index, signal in enumerate(signals):
        examples = signal.values.shape[0]
        factor, shift = signal.factor, signal.shift
        if shift is None:
            raw |= 1 << index
            factor = shift = jnp.zeros((examples, 0), jnp.float32)
        elif factor is None:
            factor = jnp.ones_like(shift)
        arrays.append((signal.values, factor, shift))
    return raw, tuple(arrays)


def _fill(arrays):
    """Returns six arrays for a kernel: those of the first signal, and of the second or of none."""
    examples, rows, columns, _ = arrays[0][0].shape
    nothing = [
        jnp.zeros(shape, jnp.float32)
        for shape in ((examples, rows, columns, 0), (examples, 0), (examples, 0))
    ]
    return [array for signal in (*arrays, nothing)[:MAX_SIGNALS] for array in signal]


def _call(name, shapes, *arguments, **attributes):
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    run = jax.ffi.ffi_call(build.target(name), results, vmap_method="sequential")
    return run(*arguments, **attributes)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _separable(raw, with_moments, arrays, depthwise, pointwise):
    examples, rows, columns, _ = arrays[0][0].shape
    features = pointwise.shape[1]
    shapes = [(examples, rows, columns, features), (examples, features), (examples, features)]
    options = {"raw": np.int64(raw), "with_moments": bool(with_moments)}
    return tuple(_call("separable_forward", shapes, *_fill(arrays), depthwise, pointwise, **options))


def _separable_fwd(raw, with_moments, arrays, depthwise, pointwise):
    outputs = _separable(raw, with_moments, arrays, depthwise, pointwise)
    return outputs, (arrays, depthwise, pointwise, *outputs[:2])


def _separable_bwd(raw, with_moments, residuals, gradients):
    """What mean and variance give to a value's gradient is a number and a multiple of the value."""
    arrays, depthwise, pointwise, values, mean = residuals
    gradient, mean_gradient, variance_gradient = gradients
    pixels = values.shape[1] * values.shape[2]
    slope = variance_gradient * (2.0 / pixels) if with_moments else jnp.zeros_like(mean)
    constant = mean_gradient / pixels - slope * mean if with_moments else jnp.zeros_like(mean)
    filled = _fill(arrays)
    shapes = [array.shape for array in (*filled, depthwise, pointwise)]
    *found, depthwise_gradient, pointwise_gradient = _call(
        "separable_backward",
        shapes,
        *filled,
        depthwise,
        pointwise,
        values,
        gradient,
        constant,
        slope,
        raw=np.int64(raw),
    )
    found = (tuple(found[:3]), tuple(found[3:]))[: len(arrays)]
    return found, depthwise_gradient, pointwise_gradient


_separable.defvjp(_separable_fwd, _separable_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(raw, halves, arrays, kernel, bias):
    examples, rows, columns, _ = arrays[0].shape
    shape = (examples, halves * rows, halves * columns, bias.shape[0])
    options = {"raw": np.int64(raw), "halves": np.int64(halves)}
    return _call("product_forward", [shape], *arrays, kernel, bias, **options)[0]


def _product_fwd(raw, halves, arrays, kernel, bias):
    return _product(raw, halves, arrays, kernel, bias), (arrays, kernel, bias)


def _product_bwd(raw, halves, residuals, gradient):
    shapes = [array.shape for array in jax.tree.leaves(residuals)]
    options = {"raw": np.int64(raw), "halves": np.int64(halves)}
    *found, kernel_gradient, bias_gradient = _call(
        "product_backward", shapes, *jax.tree.leaves(residuals), gradient, **options
    )
    return tuple(found), kernel_gradient, bias_gradient


_product.defvjp(_product_fwd, _product_bwd)


def _create_reduction(name, result_shape):
    """Returns (raw, three arrays of a signal) -> the result of the kernel `name`, which has weights of no kind."""

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(raw, arrays):
        return _call(f"{name}_forward", [result_shape(arrays[0].shape)], *arrays, raw=np.int64(raw))[0]

    def run_bwd(raw, arrays, gradient):
        shapes = [array.shape for array in arrays]
        return (tuple(_call(f"{name}_backward", shapes, *arrays, gradient, raw=np.int64(raw))),)

    run.defvjp(lambda raw, arrays: (run(raw, arrays), arrays), run_bwd)
    return run


_mean = _create_reduction("mean", lambda shape: (shape[0], shape[3]))
_pool = _create_reduction("pool", lambda shape: (shape[0], shape[1] // 2, shape[2] // 2, shape[3]))
