"""The kernels in bfloat16 give what float32 makes of the same rounded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.models import blocks
from auxseg.models.blocks import Signal
from auxseg.models.kernels import build, operators

BEST = build.UNITS.index(build.find_unit())
pytestmark = pytest.mark.skipif(BEST == 0, reason="this processor multiplies no bfloat16")
RANDOM = np.random.default_rng(0)
HALF_STEP = 2.0**-8
"""The most that rounding to bfloat16 moves a number, as a share of it."""


@pytest.fixture(params=build.UNITS[1 : BEST + 1], autouse=True)
def unit(request):
    """Runs each test with every unit that this processor has."""
    assert build.choose_unit(request.param) == request.param
    yield request.param
    build.choose_unit()


def draw(*shape):
    return RANDOM.standard_normal(shape, np.float32)


def rounded(array):
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float32)


def draw_signal(examples, rows, columns, channels, *, raw=False, stored=None):
    """Returns a signal in bfloat16, or in float32 where one channel is spread, and the same numbers in float32."""
    values = rounded(draw(examples, rows, columns, stored or channels))
    rest = () if raw else (draw(examples, channels), draw(examples, channels))
    given = values if stored else jnp.asarray(values, jnp.bfloat16)
    return Signal(given, *rest), Signal(values, *rest)


def compare(operator, arguments, references, *, limit, dtype=jnp.bfloat16):
    """Asserts that values and gradients are those of `operator` in float32, within `limit` of the largest.

    The gradient that goes back is rounded, as the kernels get it.
    """

    def run(lowering, given, weights):
        found, pull = jax.vjp(lambda *args: operator(*args, lowering=lowering), *given)
        return found, pull(jax.tree.map(lambda one, like: jnp.asarray(one, like.dtype), weights, found))

    shapes = jax.eval_shape(lambda *given: operator(*given, lowering="shifted"), *references)
    weights = jax.tree.map(lambda output: rounded(draw(*output.shape)), shapes)
    expected = jax.jit(lambda *given: run("shifted", *given))(references, weights)
    found = jax.jit(lambda *given: run("kernels", *given))(arguments, weights)
    assert jax.tree.leaves(found[0])[0].dtype == dtype
    for value, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        wanted = np.asarray(wanted, np.float32)
        atol = limit * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(np.asarray(value, np.float32), wanted, rtol=0, atol=atol)


def separable(dtype):
    def operator(signals, depthwise, pointwise, *, lowering):
        kind = dtype if lowering == "kernels" else jnp.float32
        return blocks.separable_conv(signals, depthwise, pointwise, lowering=lowering, dtype=kind)

    return operator


SIZES = [
    ((1, 4, 4), (8, 3), 7),  # less than one vector
    ((3, 9, 7), (16, 20), 33),  # odd sizes, a part that ends within a vector, a column more than a panel
    ((1, 19, 21), (64,), 96),  # one image for all threads: strips with borders
    ((2, 5, 5), (513,), 250),  # the matrix larger than the images, in an odd number of pairs
]


@pytest.mark.parametrize(("size", "channels", "features"), SIZES, ids=str)
def test_separable_conv(size, channels, features):
    """Of two signals the second is its values themselves."""
    signals = [draw_signal(*size, each, raw=i == 1) for i, each in enumerate(channels)]
    width = sum(channels)
    weights = draw(3, 3, width), rounded(draw(width, features) / np.sqrt(np.float32(width)))
    given, exact = (tuple(signal[index] for signal in signals) for index in range(2))
    compare(separable(jnp.bfloat16), (given, *weights), (exact, *weights), limit=4 * HALF_STEP)


def test_one_channel_that_the_factor_spreads():
    given, exact = draw_signal(2, 12, 10, 20, stored=1)
    weights = draw(3, 3, 20), rounded(draw(20, 9))
    compare(separable(jnp.bfloat16), ((given,), *weights), ((exact,), *weights), limit=4 * HALF_STEP)


@pytest.mark.parametrize(("channels", "features"), [(5, 3), (320, 161)])
def test_products(channels, features):
    """Upsampling, and the 1x1 convolution, which stays in float32."""
    given, exact = draw_signal(2, 6, 7, channels)
    kernel = rounded(draw(channels, 2, 2, features) / 8.0), draw(features)
    compare(blocks.upsample, (given, *kernel), (exact, *kernel), limit=4 * HALF_STEP)
    kernel = draw(channels, features) / 8.0, draw(features)
    # Only the gradient of the values is rounded.
    compare(blocks.pointwise_conv, (given, *kernel), (exact, *kernel), limit=HALF_STEP, dtype=jnp.float32)


def test_reductions():
    given, exact = draw_signal(3, 10, 12, 37)
    compare(blocks.max_pool, (given,), (exact,), limit=2 * HALF_STEP)
    compare(blocks.global_mean, (given,), (exact,), limit=HALF_STEP, dtype=jnp.float32)


def test_what_is_multiplied_is_rounded_and_the_sum_is_not():
    """1 + 2^-9 is 1 in bfloat16; 300 products of 1 are 300, which bfloat16 sums would not reach (256 + 1 is 256)."""
    taps = np.zeros((3, 3, 300), np.float32)
    taps[1, 1] = 1.0
    signal = Signal(
        jnp.ones((1, 4, 4, 300), jnp.bfloat16), jnp.full((1, 300), 1.0 + 2.0**-9), jnp.zeros((1, 300))
    )
    values, (mean, _) = operators.separable_conv(
        (signal,), jnp.asarray(taps), jnp.ones((300, 2)), dtype="bfloat16", with_moments=True
    )
    assert (values.astype(jnp.float32) == 300.0).all() and (mean == 300.0).all()


def test_each_product_by_hand():
    """[1 2] [[3 4], [5 6]] = [13 16], one pixel."""
    signal = Signal(jnp.asarray([1.0, 2.0], jnp.bfloat16).reshape(1, 1, 1, 2))
    taps = jnp.zeros((3, 3, 2)).at[1, 1].set(1.0)
    values, _ = operators.separable_conv(
        (signal,), taps, jnp.asarray([[3.0, 4.0], [5.0, 6.0]]), dtype="bfloat16", with_moments=False
    )
    np.testing.assert_array_equal(values.astype(jnp.float32).ravel(), [13.0, 16.0])


def test_pixels_that_are_no_numbers_are_not_hidden():
    signal = draw_signal(1, 8, 8, 16)[0]
    signal = signal._replace(values=signal.values.at[0, 3, 3, 5].set(jnp.nan))
    values, (mean, variance) = blocks.separable_conv(
        (signal,), draw(3, 3, 16), np.eye(16, dtype=np.float32), lowering="kernels", dtype=jnp.bfloat16
    )
    assert np.isnan(values[0, 2:5, 2:5, 5]).all()
    assert np.isnan(mean[0, 5]) and np.isnan(variance[0, 5])
    assert np.isnan(blocks.max_pool(signal, lowering="kernels")[0, 1, 1, 5])


def test_results_repeat_bit_for_bit():
    signals = (draw_signal(1, 40, 40, 64)[0],)
    weights = draw(3, 3, 64), draw(64, 64)

    @jax.jit
    def gradients(signals, depthwise, pointwise):
        def total(*given):
            values, (mean, variance) = blocks.separable_conv(*given, lowering="kernels", dtype=jnp.bfloat16)
            return jnp.sum(jnp.sin(values.astype(jnp.float32))) + jnp.sum(mean * variance)

        return jax.grad(total, argnums=(0, 1, 2))(signals, depthwise, pointwise)

    first = gradients(signals, *weights)
    for _ in range(5):
        jax.tree.map(np.testing.assert_array_equal, gradients(signals, *weights), first)
