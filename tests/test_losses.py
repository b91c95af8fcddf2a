"""Losses against values by hand, and on masks that lack a class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg import losses
from auxseg.errors import InputError
from configs import base

MASK = np.array([[[0, 1], [1, 3]]])
"""One 2x2 case: two pixels of class 1, one each of 0 and 3, none of 2."""


def logits_of(probabilities):
    return jnp.log(jnp.asarray(probabilities, jnp.float32))


@pytest.fixture
def uniform():
    return jnp.zeros((1, 2, 2, 4))


@pytest.fixture
def perfect():
    return 100.0 * jax.nn.one_hot(MASK, 4)


def test_dice_by_hand(uniform):
    # Each probability is 1/4: predicted = 1 pixel a class, overlap = reference / 4.
    got = losses.dice_loss(logits=uniform, masks=MASK, smooth=1.0)
    expected = [1 - (2 * 0.25 + 1) / (1 + 1 + 1), 1 - (2 * 0.5 + 1) / (1 + 2 + 1), 1 - 1 / 2, 1 - 1.5 / 3]
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_iou_by_hand(uniform):
    got = losses.iou_loss(logits=uniform, masks=MASK, smooth=1.0)
    expected = [1 - 1.25 / 2.75, 1 - 1.5 / 3.5, 1 - 1 / 2, 1 - 1.25 / 2.75]
    np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_tversky_by_hand(uniform):
    got = losses.tversky_loss(logits=uniform, masks=MASK, alpha=0.3, beta=0.7, smooth=1.0)
    # Class 1: overlap 0.5, false positives 0.5, false negatives 1.5.
    assert got[0, 1] == pytest.approx(1 - 1.5 / (0.5 + 0.3 * 0.5 + 0.7 * 1.5 + 1), rel=1e-6)


def test_tversky_with_equal_weights_is_dice(uniform):
    tversky = losses.tversky_loss(logits=uniform, masks=MASK, alpha=0.5, beta=0.5, smooth=0.5)
    np.testing.assert_allclose(tversky, losses.dice_loss(logits=uniform, masks=MASK, smooth=1.0), rtol=1e-6)


def test_focal_tversky_is_a_power(uniform):
    tversky = losses.tversky_loss(logits=uniform, masks=MASK)
    focal = losses.focal_tversky_loss(logits=uniform, masks=MASK, gamma=0.5)
    np.testing.assert_allclose(focal, np.sqrt(tversky), rtol=1e-6)


def test_cross_entropy_by_hand():
    probabilities = np.full((1, 2, 2, 4), 0.1)
    np.put_along_axis(probabilities, MASK[..., None], 0.7, axis=-1)
    got = losses.cross_entropy(logits=logits_of(probabilities), masks=MASK)
    np.testing.assert_allclose(got, [-np.log(0.7)], rtol=1e-6)
    weighted = losses.cross_entropy(
        logits=logits_of(probabilities), masks=MASK, class_weights=(1.0, 2.0, 5.0, 9.0)
    )
    np.testing.assert_allclose(weighted, [-np.log(0.7) * (1 + 2 + 2 + 9) / 4], rtol=1e-6)


def test_focal_cross_entropy_by_hand(uniform):
    got = losses.focal_cross_entropy(logits=uniform, masks=MASK, gamma=2.0)
    np.testing.assert_allclose(got, [0.75**2 * np.log(4)], rtol=1e-6)


def test_auxiliary_loss_by_hand():
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [100.0, 100.0, -100.0, 0.0]])
    labels = jnp.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    got = losses.auxiliary_loss(class_logits=logits, labels=labels)
    np.testing.assert_allclose(got, [np.log(2), np.log(2) / 4], rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize(
    "mask", [np.zeros((1, 4, 4)), np.full((1, 4, 4), 3), np.arange(16).reshape(1, 4, 4) % 3]
)
def test_every_loss_is_finite_with_a_finite_gradient_whatever_the_mask_lacks(name, mask):
    config = base.get_config().loss
    with config.unlocked():
        config.name = name
    loss = losses.create_segmentation_loss(config)
    for logits in (jnp.zeros((1, 4, 4, 4)), 50.0 * jax.nn.one_hot(mask.astype(int), 4)):
        value, gradient = jax.value_and_grad(lambda x: loss(logits=x, masks=mask.astype(np.uint8)).sum())(
            logits
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_falls_when_the_prediction_improves(name, uniform, perfect):
    config = base.get_config().loss
    with config.unlocked():
        config.name = name
    loss = losses.create_segmentation_loss(config)
    values = [float(loss(logits=s * perfect, masks=MASK)[0]) for s in (0.0, 0.01, 0.05, 1.0)]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]
    assert values[-1] < 1e-4


def test_dice_ce_is_the_sum(uniform):
    loss = losses.create_segmentation_loss(base.get_config().loss)(logits=uniform, masks=MASK)
    dice = losses.dice_loss(logits=uniform, masks=MASK).mean(axis=1)
    np.testing.assert_allclose(loss, dice + np.log(4), rtol=1e-6)


def test_class_weights_enter_the_cross_entropy_of_dice_ce(uniform):
    config = base.get_config().loss
    with config.unlocked():
        config.class_weights = (1.0, 1.0, 1.0, 101.0)
    got = losses.create_segmentation_loss(config)(logits=uniform, masks=MASK)
    dice = losses.dice_loss(logits=uniform, masks=MASK).mean(axis=1)
    np.testing.assert_allclose(got, dice + np.log(4) * (3 + 101) / 4, rtol=1e-6)


def test_absent_and_unpredicted_class_costs_nothing(perfect):
    assert float(losses.dice_loss(logits=perfect, masks=MASK)[0, 2]) == pytest.approx(0.0, abs=1e-6)


def test_unknown_loss_lists_the_names():
    config = base.get_config().loss
    with config.unlocked():
        config.name = "dise"
    with pytest.raises(InputError, match="loss.name: got 'dise', expected one of 'dice_ce'"):
        losses.create_segmentation_loss(config)
