"""What labels say: unknown pixels cost no loss, by hand and for every loss; merged classes are told in the same way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.base.classes import UNKNOWN
from auxseg.training import losses, references
from configs import base

HALF = np.array([[[0, 1], [UNKNOWN, UNKNOWN]]], np.uint8)
"""Two known pixels, of classes 0 and 1, above two unknown ones."""


def config_of(name, **changes):
    config = base.get_config().loss
    with config.unlocked():
        config.name = name
        config.class_weights = (1.0, 2.0, 3.0, 4.0)
        config.update(changes)
    return config


def random_logits(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0.0, 2.0, shape), jnp.float32)


def test_losses_of_a_half_known_case_by_hand():
    uniform = jnp.zeros((1, 2, 2, 4))
    # Each probability is 1/4 in two pixels: predicted 1/2 a class, overlap 1/4 where the reference has one.
    got = losses.dice_loss(logits=uniform, masks=HALF, smooth=1.0)
    expected = [1 - 1.5 / 2.5, 1 - 1.5 / 2.5, 1 - 1 / 1.5, 1 - 1 / 1.5]
    np.testing.assert_allclose(got, [expected], rtol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(logits=uniform, masks=HALF), [np.log(4)], rtol=1e-6)
    # The harder half of two known pixels is one: of weight 2.
    hard = losses.cross_entropy(
        logits=uniform, masks=HALF, class_weights=(1.0, 2.0, 0.0, 0.0), hard_fraction=0.5
    )
    np.testing.assert_allclose(hard, [2 * np.log(4)], rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("hard_fraction", [1.0, 0.5])
def test_every_loss_is_that_of_the_known_pixels_alone(name, hard_fraction):
    loss = losses.create_segmentation_loss(config_of(name, hard_fraction=hard_fraction))
    logits = random_logits((1, 4, 4, 4))
    masks = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) % 4
    cut = masks.copy()
    cut[:, 2:] = UNKNOWN
    value, gradient = jax.value_and_grad(lambda x: loss(logits=x, masks=cut).sum())(logits)
    np.testing.assert_allclose(value, loss(logits=logits[:, :2], masks=masks[:, :2])[0], rtol=1e-5)
    assert not gradient[:, 2:].any() and gradient[:, :2].any()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_case_of_which_nothing_is_known_costs_nothing(name):
    loss = losses.create_segmentation_loss(config_of(name))
    masks = np.full((1, 4, 4), UNKNOWN, np.uint8)
    value, gradient = jax.value_and_grad(lambda x: loss(logits=x, masks=masks).sum())(
        random_logits((1, 4, 4, 4))
    )
    assert float(value) == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_labels_of_a_half_known_case_are_known_only_where_the_class_is_seen():
    known = np.array([[[0, 1], [0, 0]]], np.uint8)
    masks = np.concatenate([HALF, known])
    np.testing.assert_array_equal(references.label_vectors(masks, 4), [[1, 1, -1, -1], [1, 1, 0, 0]])


def test_unknown_labels_carry_no_auxiliary_loss():
    labels = jnp.array([[1.0, -1.0, 0.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    logits = jnp.zeros((2, 4))

    def loss(x):
        return losses.auxiliary_loss(class_logits=x, labels=labels)

    np.testing.assert_allclose(loss(logits), [np.log(2), 0.0], rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x).sum())(logits)
    np.testing.assert_allclose(gradient, [[-0.25, 0.0, 0.25, 0.0], [0.0] * 4], rtol=1e-6)
