"""The operators of `blocks.py` as compiled kernels, each with its gradient as one more.

What XLA does by several operators, each of which reads and writes whole images, is done here in one pass over
them (`kernels.cc`). Of a convolution only its values and their mean are kept for the gradient, everything
between is computed again. Weights, factors, shifts and moments are float32; values and their gradients are float32
or, where the processor can multiply it, bfloat16.
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
    fitting = all(can_compute(signal.values.dtype) and signal.values.size for signal in signals)
    fitting &= all(array.dtype == jnp.float32 for signal in signals for array in jax.tree.leaves(signal[1:]))
    if not spread:
        fitting &= all(
            signal.shift is None or signal.shift.shape[1] == signal.values.shape[3] for signal in signals
        )
    return fitting and len(signals) <= MAX_SIGNALS


def can_compute(dtype):
    """Returns whether there are kernels for values of a type."""
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and build.find_unit() != "none")


def separable_conv(signals, depthwise, pointwise, *, dtype, with_moments):
    """Returns values [N, H, W, F] and their mean and variance [N, F] each; see `blocks.separable_conv`.

    Args:
        signals: one or two `blocks.Signal`, concatenated.
        depthwise: float32 [3, 3, C].
        pointwise: float32 [C, F].
        dtype: of the values.
        with_moments: else mean and variance are 0.
    """
    raw, arrays = _to_arrays(signals)
    values, *moments = _separable(raw, with_moments, jnp.dtype(dtype), arrays, depthwise, pointwise)
    return values, tuple(moments)


def upsample(signal, kernel, bias):
    """Returns [N, 2H, 2W, F] of the signal's type; see `blocks.upsample`.

    Args:
        signal: `blocks.Signal`.
        kernel: float32 [C, 2, 2, F].
        bias: float32 [F].
    """
    raw, (arrays,) = _to_arrays((signal,))
    return _product(raw, 2, signal.values.dtype, arrays, kernel, bias)


def pointwise_conv(signal, kernel, bias):
    """Returns float32 [N, H, W, F]; see `blocks.pointwise_conv`.

    Args:
        signal: `blocks.Signal`.
        kernel: float32 [C, F].
        bias: float32 [F].
    """
    raw, (arrays,) = _to_arrays((signal,))
    return _product(raw, 1, jnp.dtype(jnp.float32), arrays, kernel, bias)


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


def _call(name, results, *arguments, **attributes):
    run = jax.ffi.ffi_call(build.target(name), results, vmap_method="sequential")
    return run(*arguments, **attributes)


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(arrays):
    return [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in jax.tree.leaves(arrays)]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _separable(raw, with_moments, dtype, arrays, depthwise, pointwise):
    examples, rows, columns, _ = arrays[0][0].shape
    features = pointwise.shape[1]
    values = jax.ShapeDtypeStruct((examples, rows, columns, features), dtype)
    results = [values, _floats(examples, features), _floats(examples, features)]
    options = {"raw": np.int64(raw), "with_moments": bool(with_moments)}
    return tuple(_call("separable_forward", results, *_fill(arrays), depthwise, pointwise, **options))


def _separable_fwd(raw, with_moments, dtype, arrays, depthwise, pointwise):
    outputs = _separable(raw, with_moments, dtype, arrays, depthwise, pointwise)
    return outputs, (arrays, depthwise, pointwise, *outputs[:2])


def _separable_bwd(raw, with_moments, dtype, residuals, gradients):
    """What mean and variance give to a value's gradient is a number and a multiple of the value."""
    arrays, depthwise, pointwise, values, mean = residuals
    gradient, mean_gradient, variance_gradient = gradients
    pixels = values.shape[1] * values.shape[2]
    slope = variance_gradient * (2.0 / pixels) if with_moments else jnp.zeros_like(mean)
    constant = mean_gradient / pixels - slope * mean if with_moments else jnp.zeros_like(mean)
    filled = _fill(arrays)
    *found, depthwise_gradient, pointwise_gradient = _call(
        "separable_backward",
        _like((*filled, depthwise, pointwise)),
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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(raw, halves, dtype, arrays, kernel, bias):
    examples, rows, columns, _ = arrays[0].shape
    result = jax.ShapeDtypeStruct((examples, halves * rows, halves * columns, bias.shape[0]), dtype)
    options = {"raw": np.int64(raw), "halves": np.int64(halves)}
    return _call("product_forward", [result], *arrays, kernel, bias, **options)[0]


def _product_fwd(raw, halves, dtype, arrays, kernel, bias):
    return _product(raw, halves, dtype, arrays, kernel, bias), (arrays, kernel, bias)


def _product_bwd(raw, halves, dtype, residuals, gradient):
    options = {"raw": np.int64(raw), "halves": np.int64(halves)}
    *found, kernel_gradient, bias_gradient = _call(
        "product_backward", _like(residuals), *jax.tree.leaves(residuals), gradient, **options
    )
    return tuple(found), kernel_gradient, bias_gradient


_product.defvjp(_product_fwd, _product_bwd)


def _create_reduction(name, result_of):
    """Returns (raw, three arrays of a signal) -> the result of the kernel `name`, which has weights of no kind."""

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def run(raw, arrays):
        return _call(f"{name}_forward", [result_of(arrays[0])], *arrays, raw=np.int64(raw))[0]

    def run_bwd(raw, arrays, gradient):
        return (tuple(_call(f"{name}_backward", _like(arrays), *arrays, gradient, raw=np.int64(raw))),)

    run.defvjp(lambda raw, arrays: (run(raw, arrays), arrays), run_bwd)
    return run


def _pooled(values):
    examples, rows, columns, channels = values.shape
    return jax.ShapeDtypeStruct((examples, rows // 2, columns // 2, channels), values.dtype)


_mean = _create_reduction("mean", lambda values: _floats(values.shape[0], values.shape[3]))
_pool = _create_reduction("pool", _pooled)
