"""The network of Keras layers with the same weights gives the same logits and statistics."""

import functools

import jax
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.models import create_model, from_keras_weights, to_keras_weights
from configs.base import get_config

pytest.importorskip("keras")
IMAGES = np.random.default_rng(0).random((3, 16, 32, 1), np.float32)
SWITCHES = (
    {"depth": 2},
    {"se": False, "aux": False},
    {"separable": False, "num_classes": 3},
    {"se_ratio": 2, "aux_width": 12, "lowering": "plain"},
)


@pytest.fixture(autouse=True)
def _keras_promotes_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


def _config(**changes):
    config = get_config().model.copy_and_resolve_references().unlock()
    config.update(
        {"base_width": 8, "depth": 1, "num_classes": 4, **changes}
    )  # the peer reads num_classes there
    return config


def _scatter(variables):
    """Returns variables moved off their initial zeros and ones, so that every one of them matters."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + random.uniform(0.05, 0.3, x.shape).astype(np.float32), variables)


@functools.cache
def _networks(index):
    """Returns our model and variables, the Keras model with the same weights, and its first draw."""
    import keras

    from experiments.speed.peers.keras_unet import create_keras_unet, get_keras_weights, set_keras_weights

    keras.utils.set_random_seed(4)
    config = _config(**SWITCHES[index])
    model = create_model(config, num_classes=config.num_classes)
    variables = _scatter(jax.jit(model.init)(jax.random.key(0), IMAGES))
    keras_model = create_keras_unet(config, IMAGES.shape[1:3])
    drawn = get_keras_weights(keras_model)
    set_keras_weights(keras_model, to_keras_weights(variables))
    return model, variables, keras_model, drawn


def _keras_call(keras_model, training):
    """Returns the Keras network's outputs as a tuple, and {path: weight} after the call, compiled."""

    @jax.jit
    def call(trainable, other, images):
        return keras_model.stateless_call(trainable, other, images, training=training)

    trainable = [variable.value for variable in keras_model.trainable_variables]
    other = [variable.value for variable in keras_model.non_trainable_variables]
    outputs, updated = call(trainable, other, IMAGES)
    paths = [variable.path for variable in keras_model.non_trainable_variables]
    return tuple(jax.tree.leaves(outputs)), dict(zip(paths, updated, strict=True))


def _close(ours, theirs, limit=1e-4):
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=limit * scale, rtol=0)


def _compare(ours, theirs):
    assert len(theirs) == 1 + (ours.class_logits is not None)
    for our_logits, their_logits in zip(ours, theirs, strict=False):
        _close(our_logits, their_logits)


@pytest.mark.parametrize("index", range(len(SWITCHES)))
def test_inference_equals_keras(index):
    model, variables, keras_model, _ = _networks(index)
    _compare(jax.jit(model.apply)(variables, IMAGES), _keras_call(keras_model, False)[0])


@pytest.mark.parametrize("index", range(len(SWITCHES)))
def test_training_logits_and_statistics_equal_keras(index):
    model, variables, keras_model, _ = _networks(index)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    ours, updates = train(variables, IMAGES)
    theirs, statistics = _keras_call(keras_model, True)
    _compare(ours, theirs)
    before = to_keras_weights(variables)
    after = to_keras_weights({"params": variables["params"], **updates})
    moving = [name for name in after if "/moving_" in name]
    assert sorted(moving) == sorted(name for name in statistics if "/moving_" in name)
    for name in moving:
        assert np.any(before[name] != after[name])
        _close(after[name], statistics[name], 1e-5)


def test_there_and_back_is_exact():
    from experiments.speed.peers.keras_unet import get_keras_weights

    _, variables, keras_model, _ = _networks(0)
    back = from_keras_weights(get_keras_weights(keras_model), variables)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize("index", [0, 2])
def test_initial_values_are_drawn_as_by_keras(index):
    """Uniform within the same limits: the largest of many draws comes near them; the rest is 0 or 1.

    Both draws are seeded. The standard deviation of n uniform draws is off by 0.45 / sqrt(n) of itself.
    """
    model, _, _, theirs = _networks(index)
    ours = to_keras_weights(jax.jit(model.init)(jax.random.key(3), IMAGES))
    compared = 0
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        if value.std() == 0:
            np.testing.assert_array_equal(ours[name], value)
        elif value.size >= 128:
            np.testing.assert_allclose(np.abs(ours[name]).max(), np.abs(value).max(), rtol=0.12, err_msg=name)
            np.testing.assert_allclose(
                ours[name].std(), value.std(), rtol=3.2 / value.size**0.5, err_msg=name
            )
            compared += 1
    assert compared >= 6


def test_wrong_weights_are_refused():
    _, variables, _, _ = _networks(0)
    weights = to_keras_weights(variables)
    missing = {name: value for name, value in weights.items() if name != "mask/bias"}
    with pytest.raises(InputError, match="missing, the first is 'mask/bias'"):
        from_keras_weights(missing, variables)
    with pytest.raises(InputError, match="not this network's, the first is 'other'"):
        from_keras_weights({**weights, "other": np.zeros(1)}, variables)
    with pytest.raises(InputError, match=r"mask/bias: shape \(5,\), expected \(4,\)"):
        from_keras_weights({**weights, "mask/bias": np.zeros(5)}, variables)
