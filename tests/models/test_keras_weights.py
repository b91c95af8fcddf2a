"""The network of Keras layers with the same weights gives the same logits and statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.errors import InputError
from auxseg.models import create_model, from_keras_weights, to_keras_weights
from configs.base import get_config

pytest.importorskip("keras")


@pytest.fixture(autouse=True)
def _keras_promotes_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield



SWITCHES = (
    {},
    {"se": False, "aux": False},
    {"separable": False},
    {"se_ratio": 2, "aux_width": 12, "num_classes": 3},
    {"depth": 3, "base_width": 4, "lowering": "plain"},
)


def _config(**changes):
    config = get_config().model.copy_and_resolve_references().unlock()
    config.update({"base_width": 8, "depth": 2, **changes})
    return config


def _images():
    return np.random.default_rng(0).random((3, 32, 16, 1), np.float32)


def _scatter(variables):
    """Returns variables moved off their initial zeros and ones, so that every one of them matters."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + random.uniform(0.05, 0.3, x.shape).astype(np.float32), variables)


def _both(config):
    from experiments.peers.keras_unet import create_keras_unet, set_keras_weights

    model = create_model(config)
    variables = _scatter(jax.jit(model.init)(jax.random.key(0), _images()))
    keras_model = create_keras_unet(config, (32, 16))
    set_keras_weights(keras_model, to_keras_weights(variables))
    return model, variables, keras_model


def _train(model, variables):
    """Returns outputs and updated statistics of one call in training."""
    return jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(variables, _images())


def _close(ours, theirs, limit=1e-4):
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=limit * scale, rtol=0)


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_inference_equals_keras(changes):
    from experiments.peers.keras_unet import keras_outputs

    model, variables, keras_model = _both(_config(**changes))
    ours, theirs = jax.jit(model.apply)(variables, _images()), keras_outputs(keras_model, _images())
    _close(ours.mask_logits, theirs.mask_logits)
    if theirs.class_logits is None:
        assert ours.class_logits is None
    else:
        _close(ours.class_logits, theirs.class_logits)


@pytest.mark.parametrize("changes", SWITCHES[:3], ids=str)
def test_training_logits_and_statistics_equal_keras(changes):
    from experiments.peers.keras_unet import get_keras_weights, keras_outputs

    model, variables, keras_model = _both(_config(**changes))
    ours, updates = _train(model, variables)
    theirs = keras_outputs(keras_model, _images(), training=True)
    _close(ours.mask_logits, theirs.mask_logits)
    updated = {"params": variables["params"], **updates}
    expected = get_keras_weights(keras_model)
    for name, value in to_keras_weights(updated).items():
        _close(value, expected[name], 1e-5)


def test_moving_statistics_moved():
    model, variables, _ = _both(_config())
    _, updates = _train(model, variables)
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), variables["batch_stats"], updates["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_there_and_back_is_exact():
    from experiments.peers.keras_unet import get_keras_weights

    _, variables, keras_model = _both(_config())
    back = from_keras_weights(get_keras_weights(keras_model), variables)
    assert jax.tree.structure(back) == jax.tree.structure(jax.tree.map(np.asarray, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize("separable", [True, False])
def test_initial_ranges_are_those_of_keras(separable):
    """Both draw uniformly within the same limits: the largest weights of big kernels come near them."""
    from experiments.peers.keras_unet import create_keras_unet, get_keras_weights

    config = _config(separable=separable, base_width=16)
    ours = to_keras_weights(jax.jit(create_model(config).init)(jax.random.key(3), _images()))
    theirs = get_keras_weights(create_keras_unet(config, (32, 16)))
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        if value.size >= 256:
            np.testing.assert_allclose(np.abs(ours[name]).max(), np.abs(value).max(), rtol=0.06, err_msg=name)
        if value.size < 256 and value.std() == 0:
            np.testing.assert_array_equal(ours[name], value)


def test_wrong_weights_are_refused():
    variables = jax.jit(create_model(_config()).init)(jax.random.key(0), _images())
    weights = to_keras_weights(variables)
    missing = {name: value for name, value in weights.items() if name != "mask/bias"}
    with pytest.raises(InputError, match="missing, the first is 'mask/bias'"):
        from_keras_weights(missing, variables)
    with pytest.raises(InputError, match="not this network's, the first is 'other'"):
        from_keras_weights({**weights, "other": np.zeros(1)}, variables)
    with pytest.raises(InputError, match=r"mask/bias: shape \(5,\), expected \(4,\)"):
        from_keras_weights({**weights, "mask/bias": np.zeros(5)}, variables)
