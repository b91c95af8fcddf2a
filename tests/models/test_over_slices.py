"""Volumes a few slices at a time: sums by hand, and the same network, with its gradients, as all at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_aux_unet import _assert_close, _gradients, _small

from auxseg.models import blocks, create_model, volumes
from auxseg.models.kernels import build


def _sum_of_three(windows, inside, shared):
    shown = jnp.where(inside[None, :, None, None, None], windows[0], 0)
    return shared * (shown[:, :-2] + shown[:, 1:-1] + shown[:, 2:])


@pytest.mark.parametrize("size", [1, 3])
def test_each_slice_sees_its_neighbours_and_gets_their_gradients(size):
    values = jnp.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1, 1)
    found, pull = jax.vjp(partial(volumes.over_slices, _sum_of_three, size), (values,), jnp.array(2.0))
    assert found.ravel().tolist() == [6.0, 14.0, 12.0]
    (gradient,), shared = pull(jnp.array([1.0, 10.0, 100.0]).reshape(found.shape))
    assert gradient.ravel().tolist() == [22.0, 222.0, 220.0]
    assert shared == 3.0 + 70.0 + 600.0


def test_a_slice_that_is_no_number_stays_where_it_is():
    values = jnp.array([jnp.nan, 2.0, 4.0]).reshape(1, 3, 1, 1, 1)
    found, pull = jax.vjp(partial(volumes.over_slices, _sum_of_three, 1), (values,), jnp.array(1.0))
    np.testing.assert_array_equal(found.ravel(), [np.nan, np.nan, 6.0])
    (gradient,), _ = pull(jnp.ones_like(found))
    assert gradient.ravel().tolist() == [2.0, 3.0, 2.0]


def test_slices_at_the_ends_are_only_read():
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.normal(size=(2, 5, 4, 3, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 9, 2)), jnp.float32)

    def total(values, kernel, margin):
        conv = partial(volumes.depthwise_conv, lowering="blocked", margin=margin)
        found = conv(values, kernel)
        return jnp.sum(jnp.sin(found if margin else found[:, 1:-1]))

    for each, expected in zip(
        jax.grad(total, (0, 1))(values, kernel, 1), jax.grad(total, (0, 1))(values, kernel, 0), strict=True
    ):
        np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lowering", "size"), [("blocked", 1), ("kernels", 2)])
def test_a_few_slices_at_a_time_give_the_same(lowering, size, monkeypatch):
    if lowering == "kernels" and build.load():
        pytest.skip(f"no compiled kernels: {build.load()}")
    slabs = np.random.default_rng(0).random((2, 8, 16, 5), np.float32)
    plain, weights = create_model(_small(name="aux_unet3d", lowering="plain")), jnp.array([1.0, 0.0])
    variables = jax.jit(plain.init)(jax.random.key(0), slabs)
    expected = jax.jit(partial(_gradients, plain))(variables, slabs, weights)
    sizes = []
    over_slices = volumes.over_slices
    monkeypatch.setattr(
        volumes, "over_slices", lambda run, size, *rest: sizes.append(size) or over_slices(run, size, *rest)
    )
    monkeypatch.setattr(
        blocks, "_CHUNK_BYTES", size * 8 * 16 * 4 * 4
    )  # a slice of the first level has four channels
    model = create_model(_small(name="aux_unet3d", lowering=lowering))
    _assert_close(jax.jit(partial(_gradients, model))(variables, slabs, weights), expected)
    assert max(sizes) == size
