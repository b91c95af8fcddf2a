"""Losses against values by hand, and on masks that lack a class."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.devices import parallel
from auxseg.training import losses
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
    loss = losses.create_segmentation_loss(config_of(name))
    for logits in (jnp.zeros((1, 4, 4, 4)), 50.0 * jax.nn.one_hot(mask.astype(int), 4)):
        value, gradient = jax.value_and_grad(lambda x: loss(logits=x, masks=mask.astype(np.uint8)).sum())(
            logits
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_falls_when_the_prediction_improves(name, uniform, perfect):
    loss = losses.create_segmentation_loss(config_of(name))
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


TWO = np.array([[[0, 1], [1, 3]], [[0, 0], [0, 0]]])
"""The case above, and one that has no class but background."""


def test_batch_dice_by_hand_leaves_out_what_the_batch_lacks():
    logits = jnp.zeros((2, 2, 2, 4))
    got = losses.batch_dice_loss(logits=logits, masks=TWO, weights=jnp.ones(2), smooth=1.0)
    # Each class is predicted with 8 / 4 = 2 pixels; the reference has 5, 2, 0 and 1, a quarter of it overlaps.
    by_class = [1 - (2 * r / 4 + 1) / (2 + r + 1) for r in (5, 2, 1)]
    np.testing.assert_allclose(got, np.mean(by_class), rtol=1e-6)
    weighted = losses.batch_dice_loss(
        logits=logits, masks=TWO, weights=jnp.ones(2), smooth=1.0, class_weights=(1.0, 1.0, 9.0, 4.0)
    )
    np.testing.assert_allclose(weighted, np.dot(by_class, [1, 1, 4]) / 6, rtol=1e-6)


def test_batch_dice_does_not_see_padding():
    rows = [losses.batch_dice_loss(logits=x, masks=TWO, weights=jnp.array([1.0, 0.0])) for x in (
        jnp.zeros((2, 2, 2, 4)), jnp.zeros((2, 2, 2, 4)).at[1].set(7.0).at[1, ..., 3].set(-5.0)
    )]  # fmt: skip
    np.testing.assert_array_equal(*rows)
    alone = losses.present_dice_loss(logits=jnp.zeros((1, 2, 2, 4)), masks=TWO[:1])
    np.testing.assert_allclose(rows[0], alone[0], rtol=1e-6)


def test_batch_dice_is_the_same_on_any_number_of_devices():
    logits = jax.random.normal(jax.random.key(0), (4, 2, 2, 4))
    masks, weights = np.concatenate([TWO, TWO[::-1]]), jnp.array([1.0, 1.0, 1.0, 0.0])

    def value(x, m, w, axis_name=None):
        loss = losses.batch_dice_loss(logits=x, masks=m, weights=w, axis_name=axis_name)
        total = parallel.sum_over_devices(w.sum(), axis_name)
        return (jnp.broadcast_to(loss, w.shape) * w).sum() / total

    one = jax.value_and_grad(value)(logits, masks, weights)
    shares = [x.reshape(2, 2, *x.shape[1:]) for x in (logits, masks, weights)]
    many = jax.pmap(jax.value_and_grad(functools.partial(value, axis_name="d")), axis_name="d")(*shares)
    np.testing.assert_allclose(many[0].sum(), one[0], rtol=1e-6)
    np.testing.assert_allclose(many[1].reshape(logits.shape), one[1], atol=1e-7)


def test_weights_of_the_batch_matter_to_the_batch_dice_alone(uniform):
    for name in losses.LOSSES:
        loss = losses.create_segmentation_loss(config_of(name))
        with_weights = loss(logits=uniform, masks=MASK, weights=jnp.ones(1))
        np.testing.assert_allclose(with_weights, loss(logits=uniform, masks=MASK), rtol=1e-6, err_msg=name)
        assert with_weights.shape == (1,)


def test_hard_pixels_by_hand():
    probabilities = np.full((1, 2, 2, 4), 0.1)
    np.put_along_axis(probabilities, MASK[..., None], [[[[0.7], [0.2]], [[0.5], [0.7]]]], axis=-1)
    logits = logits_of(probabilities / probabilities.sum(-1, keepdims=True))
    each = -np.log(np.array([0.7, 0.2 / 0.5, 0.5 / 0.8, 0.7]))
    for fraction, expected in ((1.0, each.mean()), (0.5, np.sort(each)[2:].mean()), (0.01, each.max())):
        got = losses.cross_entropy(logits=logits, masks=MASK, hard_fraction=fraction)
        np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_hard_pixels_are_those_that_sorting_gives(uniform):
    logits = 3.0 * jax.random.normal(jax.random.key(0), (2, 16, 16, 4))
    masks = np.random.default_rng(0).integers(0, 4, (2, 16, 16))

    def by_bisection(logits):
        return losses.cross_entropy(logits=logits, masks=masks, hard_fraction=0.1).mean()

    each_pixel = jax.vmap(
        jax.vmap(lambda x, m: losses.cross_entropy(logits=x[:, None, None], masks=m[:, None, None]))
    )
    values = np.sort(np.asarray(each_pixel(logits, masks)).reshape(2, -1), axis=1)[:, -26:]
    value, gradient = jax.value_and_grad(by_bisection)(logits)
    assert value == pytest.approx(values.mean(), rel=1e-5)
    assert (np.abs(gradient).sum(-1) > 0).sum() == 2 * 26
    # Where all pixels are equally hard, all are learnt from.
    gradient = jax.grad(lambda x: losses.cross_entropy(logits=x, masks=MASK, hard_fraction=0.5).sum())(
        uniform
    )
    assert (np.abs(gradient).sum(-1) > 0).all()


def test_tversky_by_class(uniform):
    alpha, beta = (0.5, 0.1, 0.5, 0.3), (0.5, 0.9, 0.5, 0.7)
    got = losses.tversky_loss(logits=uniform, masks=MASK, alpha=alpha, beta=beta)
    for c in range(4):
        each = losses.tversky_loss(logits=uniform, masks=MASK, alpha=alpha[c], beta=beta[c])
        np.testing.assert_allclose(got[0, c], each[0, c], rtol=1e-6)


def test_overlap_weights_enter_the_mean(uniform):
    dice = losses.dice_loss(logits=uniform, masks=MASK)[0]
    loss = losses.create_segmentation_loss(changed(name="dice", overlap_weights=(1.0, 1.0, 1.0, 5.0)))
    np.testing.assert_allclose(loss(logits=uniform, masks=MASK), [np.dot(dice, [1, 1, 1, 5]) / 8], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hard_fraction": 0.0}, "loss.hard_fraction: got 0.0, expected above 0"),
        ({"overlap_weights": (1.0, 1.0)}, "loss.overlap_weights: got .* expected one number, or 4"),
        ({"tversky_alpha": (0.3, 0.3, -0.3, 0.3)}, "loss.tversky_alpha: .* none below 0"),
        ({"overlap_weights": (0.0,) * 4}, "loss.overlap_weights: all are 0"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        losses.create_segmentation_loss(changed(**change))


def test_weighted_cross_entropy_needs_weights():
    with pytest.raises(InputError, match="all are the same, so that 'weighted_ce' would be 'ce'"):
        losses.create_segmentation_loss(changed(name="weighted_ce"))


def test_one_number_is_that_of_all_classes(uniform):
    # Of two classes with even probabilities the cross-entropy is log 2; every pixel weighs 3.
    config = changed(name="ce", class_weights=(3.0,))
    loss = losses.create_segmentation_loss(config, 2)
    got = loss(logits=jnp.zeros((1, 2, 2, 2)), masks=np.array([[[0, 1], [1, 1]]]))
    np.testing.assert_allclose(got, [3 * np.log(2)], rtol=1e-6)
    by_class = losses.create_segmentation_loss(changed(name="ce", class_weights=(1.0, 5.0)), 2)
    got = by_class(logits=jnp.zeros((1, 2, 2, 2)), masks=np.array([[[0, 1], [1, 1]]]))
    np.testing.assert_allclose(got, [(1 + 3 * 5) / 4 * np.log(2)], rtol=1e-6)


def config_of(name):
    """Returns the settings of a loss; weights where it is nothing without them."""
    return changed(name=name, **({"class_weights": (1.0, 1.0, 1.0, 9.0)} if name == "weighted_ce" else {}))


def changed(**changes):
    config = base.get_config().loss
    with config.unlocked():
        config.update(changes)
    return config


def test_unknown_loss_lists_the_names():
    config = base.get_config().loss
    with config.unlocked():
        config.name = "dise"
    with pytest.raises(InputError, match="loss.name: got 'dise', expected one of 'dice_ce'"):
        losses.create_segmentation_loss(config)
