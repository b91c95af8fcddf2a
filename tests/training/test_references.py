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


CROP = np.array([[[1, 1, 1, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]]], np.float32)
"""A crop's value 0 may be background, left or right lung; 3 is nodule; 1 and 2 are not there."""
LUNGS_ONLY = np.array([[[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0] * 4]], np.float32)
"""Nodules are not told from the lung that they lie in."""


def logits_of(*pixels):
    """Returns logits [1, 1, W, 4] of these probabilities."""
    return jnp.log(jnp.asarray([[pixels]], jnp.float32))


def test_merged_losses_of_a_crop_by_hand():
    logits = logits_of((0.4, 0.2, 0.2, 0.2), (0.1, 0.1, 0.2, 0.6))
    masks = np.array([[[0, 3]]], np.uint8)
    entropy = losses.cross_entropy(logits=logits, masks=masks, meanings=CROP)
    np.testing.assert_allclose(entropy, [-(np.log(0.8) + np.log(0.6)) / 2], rtol=1e-5)
    # The rest: overlap 0.8, predicted 0.8 + 0.4; the nodule: overlap 0.6, predicted 0.2 + 0.6.
    dice = losses.dice_loss(logits=logits, masks=masks, meanings=CROP, smooth=1.0)
    np.testing.assert_allclose(dice[0, [0, 3]], [1 - 2.6 / 3.2, 1 - 2.2 / 2.8], rtol=1e-5)
    both = losses.create_segmentation_loss(config_of("dice"))(logits=logits, masks=masks, meanings=CROP)
    np.testing.assert_allclose(both, [(1 - 2.6 / 3.2 + 1 - 2.2 / 2.8) / 2], rtol=1e-5)


def test_a_nodule_in_a_lung_agrees_with_lung_and_one_in_the_background_does_not():
    masks = np.array([[[1, 2, 0]]], np.uint8)
    sure = (0.0001, 0.0001, 0.0001, 0.9997)
    good = logits_of(sure, sure, (0.9997, 0.0001, 0.0001, 0.0001))
    bad = logits_of(sure, sure, sure)
    for name in losses.LOSSES:
        loss = losses.create_segmentation_loss(config_of(name))
        values = [float(loss(logits=each, masks=masks, meanings=LUNGS_ONLY)[0]) for each in (good, bad)]
        assert values[0] < 0.01 and values[1] > 0.1, name


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_crop_teaches_nothing_of_how_the_rest_is_shared_out(name):
    """No loss changes, and so no gradient is there, along any split of the rest among background and lungs."""
    loss = losses.create_segmentation_loss(config_of(name))
    logits = random_logits((1, 4, 4, 4))
    masks = np.where(np.arange(16).reshape(1, 4, 4) % 3, 0, 3).astype(np.uint8)

    def crop_loss(x):
        return loss(logits=x, masks=masks, meanings=CROP).sum()

    value, gradient = jax.value_and_grad(crop_loss)(logits)
    rest = jax.nn.softmax(logits[..., :3])
    # Of logits with a fixed sum of exponentials only a gradient in proportion to the shares has no effect.
    np.testing.assert_allclose(gradient[..., :3], rest * gradient[..., :3].sum(-1, keepdims=True), atol=2e-6)
    total = jax.nn.logsumexp(logits[..., :3], axis=-1, keepdims=True)
    other = jax.nn.log_softmax(random_logits((1, 4, 4, 3), seed=1)) + total
    np.testing.assert_allclose(
        crop_loss(jnp.concatenate([other, logits[..., 3:]], axis=-1)), value, rtol=1e-5
    )
    assert np.abs(gradient[..., 3]).max() > 1e-4


def test_meanings_of_one_class_each_change_no_loss():
    masks = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) % 4
    masks[0, 0, 0] = UNKNOWN
    logits, own = random_logits((1, 4, 4, 4)), np.eye(4, dtype=np.float32)[None]
    for name in losses.LOSSES:
        loss = losses.create_segmentation_loss(config_of(name))
        np.testing.assert_allclose(
            loss(logits=logits, masks=masks, meanings=own), loss(logits=logits, masks=masks), rtol=1e-5
        )


def test_labels_of_merged_classes_are_not_known():
    masks = np.array([[[0, 3]], [[0, 0]]], np.uint8)
    crop = references.label_vectors(masks, 4, np.repeat(CROP, 2, axis=0))
    np.testing.assert_array_equal(crop, [[-1, -1, -1, 1], [-1, -1, -1, 0]])
    lungs = np.array([[[0, 1]], [[1, 1]]], np.uint8)
    told = references.label_vectors(lungs, 4, np.repeat(LUNGS_ONLY, 2, axis=0))
    np.testing.assert_array_equal(told, [[1, -1, 0, -1], [0, -1, 0, -1]])


def test_shares_by_hand():
    logits = logits_of((0.8, 0.05, 0.05, 0.1), (0.25, 0.0001, 0.0001, 0.7498))
    shares = jnp.asarray([[[[1.0, 0, 0, 0], [0.25, 0, 0, 0.75]]]])
    masks = np.array([[[0, 3]]], np.uint8)
    got = losses.cross_entropy(logits=logits, masks=masks, shares=shares)
    expected = -(np.log(0.8) + 0.25 * np.log(0.25) + 0.75 * np.log(0.7498)) / 2
    np.testing.assert_allclose(got, [expected], rtol=1e-4)
    overlap, predicted, reference = references.overlaps(logits, masks, shares=shares)
    np.testing.assert_allclose(overlap[0, [0, 3]], [0.8 + 0.25 * 0.25, 0.75 * 0.7498], rtol=1e-4)
    np.testing.assert_allclose(reference[0], [1.25, 0, 0, 0.75])
    np.testing.assert_allclose(predicted[0, 3], 0.8498, rtol=1e-4)
