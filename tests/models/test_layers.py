"""The fast lowerings give what the plain ones give, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.models import layers
from auxseg.models.kernels import build

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((2, 6, 8, 5), np.float32)
OPERATORS = {
    "depthwise": (layers.depthwise_conv, (IMAGES, RANDOM.standard_normal((3, 3, 5), np.float32))),
    "depthwise, one channel": (
        layers.depthwise_conv,
        (IMAGES[..., :1], RANDOM.standard_normal((3, 3, 1), np.float32)),
    ),
    "pointwise": (layers.pointwise_conv, (IMAGES, RANDOM.standard_normal((5, 3), np.float32))),
    "upsample": (
        layers.upsample,
        (IMAGES, RANDOM.standard_normal((5, 2, 2, 3), np.float32), RANDOM.standard_normal(3, np.float32)),
    ),
    "max_pool": (layers.max_pool, (IMAGES,)),
    "max_pool, many ties": (layers.max_pool, (np.round(IMAGES),)),
}


def _value_and_gradients(operator, arguments, lowering):
    """Returns the output, and the gradients of a weighted sum of it, compiled as one program."""

    @jax.jit
    def run(*arguments):
        outputs, pull = jax.vjp(lambda *given: operator(*given, lowering=lowering), *arguments)
        weights = jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape).astype(jnp.bfloat16)
        return outputs, pull(weights.astype(outputs.dtype))

    return run(*arguments)


@pytest.mark.parametrize("lowering", ["shifted", "blocked"])
@pytest.mark.parametrize("name", OPERATORS)
def test_fast_forms_equal_the_plain_ones(name, lowering):
    operator, arguments = OPERATORS[name]
    expected, expected_gradients = _value_and_gradients(operator, arguments, "plain")
    found, gradients = _value_and_gradients(operator, arguments, lowering)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_stays_within_its_rounding(name):
    operator, arguments = OPERATORS[name]
    halves = [jnp.asarray(argument, jnp.bfloat16) for argument in arguments]
    exact = [half.astype(jnp.float32) for half in halves]
    expected, expected_gradients = _value_and_gradients(operator, exact, "plain")
    found, gradients = _value_and_gradients(operator, halves, "blocked")
    assert found.dtype == jnp.bfloat16
    for value, reference in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(value.astype(jnp.float32), reference, atol=scale * 2**-6)


def test_depthwise_by_hand():
    """One pixel is spread by the kernel turned round; a border of zeros is assumed."""
    images = jnp.zeros((1, 3, 3, 1)).at[0, 0, 0, 0].set(2.0)
    kernel = jnp.arange(9.0).reshape(3, 3, 1)
    for lowering in ("plain", "shifted", "blocked"):
        found = layers.depthwise_conv(images, kernel, lowering=lowering)[0, :, :, 0]
        np.testing.assert_array_equal(found, [[8.0, 6.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_first_maximum_takes_the_whole_gradient():
    images = jnp.array([[1.0, 3.0], [3.0, 3.0]]).reshape(1, 2, 2, 1)
    for lowering in ("plain", "shifted", "blocked"):
        gradient = jax.grad(lambda images, low=lowering: layers.max_pool(images, lowering=low).sum())(images)
        np.testing.assert_array_equal(gradient.reshape(2, 2), [[0.0, 1.0], [0.0, 0.0]])


def test_upsample_by_hand():
    images = jnp.array([2.0, 3.0]).reshape(1, 1, 2, 1)
    kernel = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 2, 2, 1)
    for lowering in ("plain", "shifted"):
        found = layers.upsample(images, kernel, jnp.ones(1), lowering=lowering)[0, :, :, 0]
        np.testing.assert_array_equal(found, [[3.0, 21.0, 4.0, 31.0], [201.0, 2001.0, 301.0, 3001.0]])


def test_lowering_goes_by_backend(monkeypatch):
    monkeypatch.setattr(build, "load", lambda: None)
    for backend, expected in {"cpu": "kernels", "gpu": "shifted", "tpu": "plain"}.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert layers.resolve_lowering("auto") == expected
    assert layers.resolve_lowering("plain") == "plain"
    with pytest.raises(InputError, match="'kernels' cannot be used here: they are for a CPU, this is a tpu"):
        layers.resolve_lowering("kernels")


def test_without_kernels_the_blocked_form_is_taken_and_said_once(monkeypatch, capsys):
    monkeypatch.setattr(build, "load", lambda: "no compiler, in a test")
    assert [layers.resolve_lowering("auto") for _ in range(2)] == ["blocked", "blocked"]
    assert capsys.readouterr().err.count("no compiler, in a test") == 1
    with pytest.raises(
        InputError, match="'kernels' cannot be used here: no compiler, in a test; take 'auto'"
    ):
        layers.resolve_lowering("kernels")


def test_names_of_lowerings():
    with pytest.raises(InputError, match="model.lowering: got 'fast', expected one of 'auto', 'plain'"):
        layers.resolve_lowering("fast")


def test_bfloat16_has_kernels_where_the_processor_multiplies_it(monkeypatch, capsys):
    monkeypatch.setattr(layers.jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(build, "load", lambda: None)
    layers.build.explain_missing.cache_clear()
    monkeypatch.setattr(build, "find_unit", lambda: "vdpbf16ps")
    assert layers.resolve_lowering("auto", "bfloat16") == "kernels"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(build, "find_unit", lambda: "none")
    assert layers.resolve_lowering("auto", "bfloat16") == "blocked"
    assert "this processor multiplies no bfloat16; take model.dtype=float32" in capsys.readouterr().err
    with pytest.raises(InputError, match="'kernels' cannot be used here: this processor multiplies no"):
        layers.resolve_lowering("kernels", "bfloat16")
