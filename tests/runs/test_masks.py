"""Tests of the mask at the slice's own size: borders alone, everywhere, and by scipy give the same."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.errors import InputError
from auxseg.runs import masks as to_mask
from auxseg.scoring import operating_point

FIELDS = {
    "square": to_mask.Field((51, 51), (51, 51), (0, 0)),
    "stretched": to_mask.Field((60, 33), (60, 64), (0, 15)),
    "same size": to_mask.Field((24, 20), (24, 20), (0, 0)),
    "an eighth more": to_mask.Field((27, 23), (27, 23), (0, 0)),
}


def _draw(size=(24, 20), seed=0, count=3):
    """Returns probabilities float32 [N, h, w, 4] with large regions of one class and ragged borders."""
    random = np.random.default_rng(seed)
    logits = ndimage.gaussian_filter(random.normal(size=(count, *size, 4)), (0, 2, 2, 0)) * 40
    odds = np.exp(logits)
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float32)


def _by_scipy(maps, field):
    """Returns float64 [N, H, W, C]: bilinear, edges repeated, by map_coordinates."""
    places = [
        (np.arange(n) + offset + 0.5) * size / padded - 0.5
        for n, offset, size, padded in zip(
            field.size_yx, field.offset_yx, maps.shape[1:3], field.padded_yx, strict=True
        )
    ]
    grid = np.meshgrid(*places, indexing="ij")
    planes = [[ndimage.map_coordinates(one[..., c].astype(float), grid, order=1, mode="nearest")
               for c in range(4)] for one in maps]  # fmt: skip
    return np.moveaxis(np.array(planes), 1, -1)


def _assert_same(masks, probabilities):
    """Asserts that masks hold the most likely class; two classes may swap where they are equally likely."""
    best = np.sort(probabilities, -1)
    sure = best[..., -1] - best[..., -2] > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(masks[sure], np.argmax(probabilities, -1)[sure])


@pytest.mark.parametrize("name", FIELDS)
def test_borders_alone_give_the_mask_of_all_pixels(name):
    field, maps = FIELDS[name], _draw()
    expected = _by_scipy(maps, field)
    fast, nothing = to_mask.create_decide(field, probabilities=False)([jnp.asarray(maps)])()
    full, resized = to_mask.create_decide(field, probabilities=True)([jnp.asarray(maps)])()
    assert nothing is None and fast.dtype == full.dtype == np.uint8 and fast.shape == (3, *field.size_yx)
    np.testing.assert_allclose(resized, expected, atol=2e-6)
    _assert_same(fast, expected)
    _assert_same(full, expected)
    assert len(np.unique(fast)) == 4


def test_a_smaller_slice_than_the_network_averages_all_that_a_pixel_covers():
    """Shrinking is antialiased: no fast way, and stripes of one pixel become grey."""
    field = to_mask.Field((8, 8), (8, 8), (0, 0))
    maps = np.zeros((1, 32, 32, 4), np.float32)
    maps[:, ::2, :, 0], maps[:, 1::2, :, 1] = 0.4, 0.6
    maps[..., 2] = 0.25
    masks, _ = to_mask.create_decide(field, probabilities=False)([jnp.asarray(maps)])()
    np.testing.assert_array_equal(masks, 1)


def test_networks_are_averaged_whatever_their_sizes():
    field = FIELDS["square"]
    maps = [_draw(), _draw(seed=1), _draw((32, 32), seed=2)]
    for chosen in (maps[:2], maps):
        expected = np.mean([_by_scipy(one, field) for one in chosen], axis=0)
        masks, _ = to_mask.create_decide(field, probabilities=False)([jnp.asarray(one) for one in chosen])()
        _assert_same(masks, expected)
    _, mean = to_mask.create_decide(field, probabilities=True)([jnp.asarray(one) for one in maps])()
    np.testing.assert_allclose(mean, expected, atol=2e-6)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_are_refused(probabilities, value):
    maps = _draw()
    maps[1, 3, 4, 2] = value
    finish = to_mask.create_decide(FIELDS["square"], probabilities=probabilities)([jnp.asarray(maps)])
    with pytest.raises(InputError, match="not finite"):
        finish()


def test_a_tie_goes_to_the_lower_class_in_both_ways():
    maps = jnp.full((1, 8, 8, 4), 0.25)
    for probabilities in (False, True):
        masks, _ = to_mask.create_decide(FIELDS["square"], probabilities=probabilities)([maps])()
        np.testing.assert_array_equal(masks, 0)


def test_a_threshold_weighs_the_nodule_and_leaves_the_probabilities_as_they_are():
    maps, field = _draw(), FIELDS["square"]
    expected = _by_scipy(maps, field)
    weighed = expected * [1.0, 1.0, 1.0, (1 - 0.2) / 0.2]
    for probabilities in (False, True):
        decide = to_mask.create_decide(field, nodule_threshold=0.2, probabilities=probabilities)
        masks, mean = decide([jnp.asarray(maps)])()
        _assert_same(masks, weighed)
    np.testing.assert_allclose(mean, expected, atol=2e-6)
    assert (weighed.argmax(-1) != expected.argmax(-1)).mean() > 0.01


def test_a_slice_is_decided_by_weight_and_least_size_in_its_own_pixels():
    """Weighed, the 2 x 2 network pixels are 6 x 6 without the corners here: 6.38 pixels across, or 3.19 mm."""
    probabilities = np.zeros((6, 6, 4), np.float32)
    probabilities[..., 1] = 1.0
    probabilities[2:4, 2:4] = (0.0, 0.6, 0.0, 0.4)
    unknown = (np.nan, np.nan)
    for threshold, min_mm, min_px, spacing, num_pixels in (
        (0.5, 0.0, 0.0, (0.5, 0.5), 0),
        (0.05, 2.0, 0.0, (0.5, 0.5), 32),
        (0.05, 4.0, 0.0, (0.5, 0.5), 0),
        (0.05, 4.0, 0.0, unknown, 32),
        (0.05, 0.0, 3.0, unknown, 32),
        (0.05, 0.0, 4.0, unknown, 0),
    ):
        decision = operating_point.Decision(threshold, min_mm, min_px)
        mask = to_mask.decide_slice(probabilities, (12, 12), decision, spacing_yx_mm=spacing)
        assert mask.dtype == np.uint8 and mask.shape == (12, 12)
        assert (mask == 3).sum() == num_pixels
