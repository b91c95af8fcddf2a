"""The Auxiliary U-Net in 3D: counts, its own operators against XLA's, the same numbers however it is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_aux_unet import _assert_close, _config, _count, _gradients, _small

from auxseg.base.errors import InputError
from auxseg.models import aux_unet3d, create_inference, create_model, initial, volumes
from auxseg.models.kernels import build
from auxseg.report import macs

SLABS = np.random.default_rng(0).random((2, 8, 16, 5), np.float32)


def _model(**changes):
    return create_model(_small(name="aux_unet3d", **changes))


def test_parameters():
    """Those in 2D, 18 more taps for each of 5,825 channels read, and two transposed kernels twice as large."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 7), jnp.float32)
    shapes = jax.eval_shape(create_model(_config(name="aux_unet3d")).init, jax.random.key(0), images)
    kernels = 4 * (128 * 64 + 256 * 128)
    assert _count(shapes["params"]) == 6_565_441 + 18 * 5_825 + kernels == 6_834_131
    assert _count(shapes["batch_stats"]) == 11_776
    assert shapes["params"]["up_1"]["kernel"].shape == (256, 2, 2, 2, 128)
    assert shapes["params"]["up_2"]["kernel"].shape == (512, 2, 2, 256)


@pytest.mark.parametrize(
    ("slices", "halvings"), [(2, 0), (3, 1), (5, 1), (7, 2), (15, 3), (31, 4), (32, 4), (63, 4)]
)
def test_slices_are_halved_while_two_remain(slices, halvings):
    assert aux_unet3d.count_halvings(slices, 4) == halvings


def test_the_depthwise_convolution_and_its_gradients_are_those_of_xla():
    rng = np.random.default_rng(1)
    values = jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 9, 6)), jnp.float32)

    def run(lowering):
        def total(values, kernel):
            found = volumes.depthwise_conv(values, kernel, lowering=lowering)
            return jnp.sum(jnp.sin(found)), found

        return jax.value_and_grad(total, (0, 1), has_aux=True)(values, kernel)

    for lowering in ("shifted", "blocked"):
        for found, expected in zip(
            jax.tree.leaves(run(lowering)), jax.tree.leaves(run("plain")), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    lone = jnp.zeros((1, 3, 3, 3, 1)).at[0, 1, 1, 1, 0].set(1.0)
    spread = volumes.depthwise_conv(lone, jnp.arange(27.0).reshape(3, 9, 1), lowering="shifted")
    np.testing.assert_array_equal(spread.ravel(), np.arange(26, -1, -1))  # the kernel, turned round


def test_a_transposed_convolution_gives_two_slices():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)  # three slices of 4 x 5
    kernel, bias = rng.normal(size=(6, 2, 2, 2, 7)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    up = aux_unet3d.UpsampleSlices(_model().settings, 7)
    signal = aux_unet3d.Signal(jnp.asarray(values.reshape(2, 12, 5, 6)))
    found = aux_unet3d._interleave(up.apply({"params": {"kernel": kernel, "bias": bias}}, signal).values, 3)
    expected = np.einsum("ndhwc,czyxf->ndzhywxf", values, kernel).reshape(2, 48, 10, 7) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_slices_are_halved_two_by_two():
    slices = np.arange(4.0, dtype=np.float32)[:, None, None, None] * np.array(
        [1.0, -1.0]
    )  # four of one pixel
    found = volumes.halve_slices(jnp.asarray(slices.reshape(1, 4, 1, 2)), 4)
    assert found.reshape(2, 2).tolist() == [[1.0, 0.0], [3.0, -2.0]]


@pytest.mark.parametrize("lowering", ["shifted", "blocked", "kernels"])
@pytest.mark.parametrize("changes", [{}, {"separable": False, "se": False}], ids=str)
def test_the_same_however_it_is_computed(lowering, changes):
    if lowering == "kernels" and build.load():
        pytest.skip(f"no compiled kernels: {build.load()}")
    plain, weights = _model(lowering="plain", **changes), jnp.array([1.0, 0.0])
    variables = jax.jit(plain.init)(jax.random.key(0), SLABS)
    expected = jax.jit(partial(_gradients, plain))(variables, SLABS, weights)
    found = jax.jit(partial(_gradients, _model(lowering=lowering, **changes)))(variables, SLABS, weights)
    _assert_close(found, expected)


def test_all_slices_count_and_the_middle_one_is_marked():
    model = _model()
    variables = jax.jit(model.init)(jax.random.key(0), SLABS)
    apply = jax.jit(model.apply)
    first = apply(variables, SLABS)
    assert first.mask_logits.shape == (2, 8, 16, 4) and first.class_logits.shape == (2, 4)
    for place in range(5):
        changed = SLABS.copy()
        changed[..., place] = 1.0 - changed[..., place]
        assert not np.allclose(apply(variables, changed).mask_logits, first.mask_logits, atol=1e-6)
    stacked, slices, middle = model.bind(variables)._stack(jnp.asarray(SLABS), 2)
    volume = stacked.reshape(2, slices, 8, 16)
    assert (slices, middle) == (8, 3)
    np.testing.assert_array_equal(volume[:, middle], SLABS[..., 2])
    np.testing.assert_array_equal(volume[:, 0], SLABS[..., 0])
    np.testing.assert_array_equal(volume[:, -1], SLABS[..., 4])


def test_folded_it_gives_the_same_masks():
    model, random = _model(), np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + random.uniform(0.1, 0.4, x.shape).astype(np.float32),
        jax.jit(model.init)(jax.random.key(0), SLABS),
    )
    apply_fn, weights = create_inference(model, variables)
    expected = jax.jit(model.apply)(variables, SLABS).mask_logits
    atol = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(jax.jit(apply_fn)(weights, SLABS), expected, rtol=1e-4, atol=atol)


def test_initial_values_have_27_taps():
    assert initial.kernel_limit((3, 9, 4)) == pytest.approx(np.sqrt(6 / (27 * 5)))
    assert initial.normal_deviation((3, 9, 4)) == pytest.approx(np.sqrt(2 / 27))


def test_operations_are_counted_in_its_program():
    """Of one level on four slices (three, filled up) of 8 x 8: units and heads by hand, channels times taps."""
    model = _model(base_width=2, se=False, aux=False)
    found = macs.trace_macs(model, size_yx=(8, 8), slices=3)
    assert found["encoder_0/unit_0"] == 4 * 64 * (27 * 1 + 1 * 2)
    assert found["up_0"] == 2 * 16 * 4 * 8 * 2
    assert found["mask"] == 64 * 2 * 4
    shapes = {"encoder_0/unit_0/depthwise": (3, 9, 1)}
    assert macs.count_macs(shapes, size_yx=(8, 8), depth=1) is None


def test_a_slice_alone_is_refused():
    with pytest.raises(InputError, match="a slice alone, expected a slab"):
        jax.eval_shape(_model().init, jax.random.key(0), jnp.zeros((1, 8, 16, 1)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 6, 4), (1, 1, 4, 4, 1)])
def test_an_ordinary_convolution_is_the_same_by_every_lowering(shape):
    generator = np.random.default_rng(5)
    values = generator.normal(size=shape).astype(np.float32)
    kernel = generator.normal(size=(3, 3, 3, shape[-1], 7)).astype(np.float32)
    wanted = generator.normal(size=(*shape[:-1], 7)).astype(np.float32)

    def run(lowering):
        def loss(values, kernel):
            found = volumes.ordinary_conv(values, kernel, lowering=lowering)
            return (found * wanted).sum(), found

        (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(values, kernel)
        return found, *gradients

    for found, expected in zip(run("blocked"), run("plain"), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
