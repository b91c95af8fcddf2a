"""The compiled kernels give what the textbook form gives, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.models import blocks
from auxseg.models.blocks import Signal
from auxseg.models.kernels import build, operators

pytestmark = pytest.mark.skipif(bool(build.load()), reason=f"no compiled kernels: {build.load()}")
RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def draw_signal(examples, rows, columns, channels, *, raw=False, stored=None):
    values = draw(examples, rows, columns, stored or channels)
    return Signal(values) if raw else Signal(values, draw(examples, channels), draw(examples, channels))


def compare(operator, arguments, *, textbook="plain"):
    """Asserts that `operator(*arguments, lowering=...)` and its gradients are the same compiled and by XLA."""
    outputs = jax.eval_shape(lambda *given: operator(*given, lowering=textbook), *arguments)
    weights = jax.tree.map(lambda output: draw(*output.shape), outputs)

    def run(lowering):
        @jax.jit
        def both(arguments, weights):
            found, pull = jax.vjp(lambda *given: operator(*given, lowering=lowering), *arguments)
            return found, pull(weights)

        return both(arguments, weights)

    expected, found = run(textbook), run("kernels")
    for limit, given, reference in zip((1e-5, 1e-4), found, expected, strict=True):
        for value, wanted in zip(jax.tree.leaves(given), jax.tree.leaves(reference), strict=True):
            atol = limit * max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(value, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("size", "channels", "features"),
    [
        ((2, 6, 8), (5,), 3),  # less than one vector
        ((1, 4, 4), (8, 3), 7),
        ((3, 9, 7), (16, 20), 32),  # odd sizes, a part that ends within a vector
        ((1, 20, 20), (64,), 96),  # one image for all threads: strips with borders
        ((2, 5, 5), (512,), 256),  # the matrix larger than the images
    ],
    ids=str,
)
@pytest.mark.parametrize("raw", [False, True])
def test_separable_conv(size, channels, features, raw):
    signals = tuple(draw_signal(*size, each, raw=raw and not i) for i, each in enumerate(channels))
    weights = draw(3, 3, sum(channels)), draw(sum(channels), features) / np.sqrt(np.float32(sum(channels)))
    compare(blocks.separable_conv, (signals, *weights))


def test_separable_conv_of_one_channel_that_the_factor_spreads():
    for channels in (32, 20):
        signals = (draw_signal(2, 12, 10, channels, stored=1),)
        weights = draw(3, 3, channels), draw(channels, 9)
        compare(blocks.separable_conv, (signals, *weights), textbook="shifted")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("channels", "features"), [(5, 3), (48, 24), (320, 160)])
def test_products(channels, features, raw):
    """Upsampling and 1x1 convolution."""
    signal = draw_signal(2, 6, 8, channels, raw=raw)
    compare(blocks.upsample, (signal, draw(channels, 2, 2, features) / 8.0, draw(features)))
    compare(blocks.pointwise_conv, (signal, draw(channels, features) / 8.0, draw(features)))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("channels", [5, 48])
def test_reductions(channels, raw):
    """Pooling, with many equal pixels, and the mean over an image."""
    signal = draw_signal(3, 10, 12, channels, raw=raw)
    compare(blocks.max_pool, (signal._replace(values=np.round(signal.values)),))
    compare(blocks.global_mean, (signal,))


def test_pixels_that_are_no_numbers_are_not_hidden():
    """ReLU, maximum, means and moments pass them on: a loss that is not finite stops training."""
    signal = draw_signal(1, 8, 8, 16)
    signal.values[0, 3, 3, 5] = np.nan
    weights = draw(3, 3, 16), np.eye(16, dtype=np.float32)
    values, (mean, variance) = blocks.separable_conv((signal,), *weights, lowering="kernels")
    assert np.isnan(values[0, 2:5, 2:5, 5]).all()
    assert np.isnan(mean[0, 5]) and np.isnan(variance[0, 5])
    assert np.isnan(blocks.max_pool(signal, lowering="kernels")[0, 1, 1, 5])
    assert np.isnan(blocks.global_mean(signal, lowering="kernels")[0, 5])


def test_variance_of_values_far_from_zero():
    """10,000 +- 1: sums of squares in float32 would have no right digit."""
    signals = (Signal(1e4 + draw(2, 40, 40, 4)),)
    taps = np.zeros((3, 3, 4), np.float32)
    taps[1, 1] = 1.0
    _, (mean, variance) = blocks.separable_conv(
        signals, taps, np.eye(4, dtype=np.float32), lowering="kernels"
    )
    np.testing.assert_allclose(mean, signals[0].values.astype(float).mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, signals[0].values.astype(float).var((1, 2)), rtol=1e-4)


def test_results_repeat_bit_for_bit():
    signals = (draw_signal(1, 40, 40, 64),)
    weights = draw(3, 3, 64), draw(64, 64)

    @jax.jit
    def gradients(signals, depthwise, pointwise):
        def total(*given):
            values, (mean, variance) = blocks.separable_conv(*given, lowering="kernels")
            return jnp.sum(jnp.sin(values)) + jnp.sum(mean * variance)

        return jax.grad(total, argnums=(0, 1, 2))(signals, depthwise, pointwise)

    first = gradients(signals, *weights)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, gradients(signals, *weights), first)


def test_with_64_bits_enabled():
    with jax.enable_x64(True):
        signals = (draw_signal(1, 4, 4, 8, raw=True),)
        compare(blocks.separable_conv, (signals, draw(3, 3, 8), draw(8, 4)))


def test_what_has_no_kernel(monkeypatch):
    """XLA computes it: bfloat16 that nothing multiplies, three arrays side by side, an empty batch."""
    signal = draw_signal(1, 4, 4, 8)
    assert operators.can_run((signal, signal))
    assert not operators.can_run((signal,) * 3)
    half = signal._replace(values=signal.values.astype(jnp.bfloat16))
    for unit, expected in (("none", False), ("vdpbf16ps", True)):
        monkeypatch.setattr(build, "find_unit", lambda unit=unit: unit)
        assert operators.can_run((half,)) == expected
    assert not operators.can_run((signal._replace(values=signal.values.astype(jnp.float16)),))
    assert not operators.can_run((signal._replace(values=signal.values[:0]),))
    assert not operators.can_run((draw_signal(1, 4, 4, 8, stored=1),), spread=False)
