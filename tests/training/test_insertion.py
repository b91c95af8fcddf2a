"""Inserted nodules: where they lie, what they change, and that nothing but (seed, step, case) decides."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from auxseg.base.errors import InputError
from auxseg.datasets.phantom.contents import DIAMETER_QUANTILES_MM
from auxseg.training import batching, insertion
from configs import base

SIZE = 96


def settings(**changes):
    config = base.get_config().insert
    with config.unlocked():
        config.enabled = True
        config.probability = 1.0
        config.field_mm = 150.0
        config.diameter_mm = (4.0, 20.0)
        config.update(changes)
    return config


@pytest.fixture(scope="module")
def data():
    """Six slices of two lungs with a few vessels; 150 mm wide, since the table's spacing is unknown."""
    made = fakes.two_discs(6, size=SIZE)
    images, masks = (array.copy() for array in made.read(np.arange(6)))
    for row, column in ((40, 25), (55, 70), (48, 28)):
        images[:, row : row + 2, column : column + 2] = 30
    data = fakes.dataset(images, masks)
    data.table.spacing_zyx_mm[:] = np.nan
    return data


@pytest.fixture(scope="module")
def plan(data):
    return insertion.create_plan(settings(), data)


@pytest.fixture(scope="module")
def insert(plan):
    return jax.jit(lambda raw, step: insertion.insert(raw, plan, step))


def batch(data, indices):
    images, masks = data.read(indices)
    return batching.RawBatch(images, masks, indices.astype(np.int32), np.ones(len(indices), np.float32))


def test_nodules_lie_in_lungs_and_nothing_else_changes(data, insert):
    raw = batch(data, np.arange(6))
    added = 0
    for step in range(8):
        out = jax.device_get(insert(raw, np.int32(step)))
        new = out.masks != raw.masks
        assert set(np.unique(out.masks[new])) <= {3} and set(np.unique(raw.masks[new])) <= {1, 2}
        assert out.masks.dtype == np.uint8 and np.isfinite(out.images).all()
        added += sum(ndimage.label(mask == 3)[1] for mask in out.masks)
        # The image changes inside a lung and in the one pixel around it that a pleural nodule fills.
        ring = ndimage.binary_dilation(raw.masks > 0, np.ones((1, 3, 3)))
        np.testing.assert_array_equal(out.images[~ring], raw.images[~ring])
        wall = ring & (raw.masks == 0)
        assert (out.images[wall] >= raw.images[wall]).all()
        # A nodule is brighter than the lung around it.
        assert out.images[new].mean() > raw.images[new].mean() + 100
    assert added > 6 * 8  # two nodules of which two slices in three had one, at most


def test_a_case_looks_the_same_wherever_it_is_in_the_batch(data, insert):
    whole = jax.device_get(insert(batch(data, np.arange(6)), np.int32(5)))
    last = jax.device_get(insert(batch(data, np.array([3, 4, 5, 0, 1, 2])), np.int32(5)))
    for a, b in ((whole.masks, last.masks), (whole.images, last.images)):
        np.testing.assert_allclose(a[3:], b[:3], atol=1e-2)
    assert (jax.device_get(insert(batch(data, np.arange(6)), np.int32(6))).masks != whole.masks).any()


def test_a_nodule_finds_no_room_outside_a_lung_nor_on_another(insert, data):
    raw = batch(data, np.arange(6))
    for value in (0, 3):
        full = raw._replace(masks=np.full_like(raw.masks, value))
        out = jax.device_get(insert(full, np.int32(0)))
        np.testing.assert_array_equal(out.masks, full.masks)
        np.testing.assert_array_equal(out.images, full.images)


def test_probability_of_zero_inserts_nothing(data):
    never = insertion.create_plan(settings(probability=0.0), data)
    raw = batch(data, np.arange(2))
    out = jax.device_get(jax.jit(lambda raw: insertion.insert(raw, never, jnp.int32(0)))(raw))
    np.testing.assert_array_equal(out.masks, raw.masks)
    np.testing.assert_array_equal(out.images, raw.images)


def test_depth_is_the_distance_transform():
    inside = np.random.default_rng(0).random((40, 50)) < 0.97
    inside[8:30, 10:40] = True
    expected = np.minimum(ndimage.distance_transform_edt(inside), 9)
    np.testing.assert_allclose(insertion.depth_inside(jnp.asarray(inside), 9), expected, rtol=1e-6)


@pytest.mark.parametrize("blur", [0.0, 0.6])
def test_noise_is_measured_and_made_again(blur):
    noise = np.random.default_rng(0).normal(0, 1, (256, 256))
    noise = ndimage.gaussian_filter(noise, blur)
    noise *= 40 / noise.std()
    image = jnp.asarray(30 + noise, jnp.float32)
    strength, correlation = insertion.estimate_noise(image)
    neighbours = np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]
    assert strength == pytest.approx(40, rel=0.05) and correlation == pytest.approx(neighbours, abs=0.05)
    drawn = np.asarray(insertion._draw_noise(jax.random.key(0), image))[8:-8, 8:-8]
    assert drawn.std() == pytest.approx(40, rel=0.06)
    assert np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1] == pytest.approx(
        neighbours, abs=0.08
    )


def test_diameters_follow_the_annotations():
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = np.asarray(jax.vmap(lambda k: insertion._draw_diameter(k, (3.25, 32.27)))(keys))
    expected = np.interp([0.25, 0.5, 0.75], np.linspace(0, 1, 41), DIAMETER_QUANTILES_MM)
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), expected, rtol=0.08)
    some = np.asarray(jax.vmap(lambda k: insertion._draw_diameter(k, (6.0, 10.0)))(keys))
    assert some.min() >= 6.0 and some.max() <= 10.0


def test_pixel_sizes_come_from_the_spacing_where_it_is_known(data):
    np.testing.assert_allclose(insertion.pixel_sizes_mm(data, 350.0), 350.0 / SIZE, rtol=1e-6)
    known = fakes.two_discs(2, size=SIZE)
    np.testing.assert_allclose(insertion.pixel_sizes_mm(known, 350.0), 0.7, rtol=1e-6)


def test_larger_nodules_have_more_pixels(data):
    plan = insertion.create_plan(settings(max_nodules=1), data)
    plan = plan._replace(pixel_mm=np.full(16, 150.0 / SIZE, np.float32))
    raw = batch(data, np.array([1, 2, 4, 5] * 4))._replace(indices=np.arange(16, dtype=np.int32))

    @jax.jit
    def area_mm2(diameter_mm):
        exact = plan._replace(diameter_mm=(diameter_mm, diameter_mm + 0.1))
        masks = insertion.insert(raw, exact, jnp.int32(3)).masks
        return (masks == 3).sum() / 16 * (150.0 / SIZE) ** 2

    small, large = float(area_mm2(5.0)), float(area_mm2(9.0))
    assert small == pytest.approx(np.pi / 4 * 25, rel=0.6)
    assert 2.0 < large / small < 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": "round"}, "insert.shapes: got 'round', expected one of 'drawn', 'lidc'"),
        ({"shapes": "lidc"}, "insert.shapes='lidc' needs data.lidc"),
        ({"diameter_mm": (1.0, 20.0)}, "insert.diameter_mm: got .* within 3.25 to 32.27 mm"),
        ({"kinds": (0.0, 0.0, 0.0)}, "insert.kinds: got .* expected shares of solid"),
        ({"sites": (0.5, 0.5)}, "insert.sites: got .* expected shares of parenchyma"),
        ({"probability": 1.5}, "insert.probability: got 1.5, expected 0 to 1"),
        ({"max_nodules": 0}, "insert.max_nodules: got 0, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(data, change, message):
    with pytest.raises(InputError, match=message):
        insertion.create_plan(settings(**change), data)


def test_off_is_no_plan(data):
    assert insertion.create_plan(base.get_config().insert, data) is None


def test_real_slices_receive_nodules_like_the_real_ones(real_data):
    from auxseg.datasets import npz

    slices = npz.read_npz(real_data / "luna16_middle", size_yx=(256, 256))
    rows = np.arange(0, 120, 10)
    raw = batch(slices, rows)
    plan = insertion.create_plan(settings(field_mm=350.0, max_nodules=1), slices)
    out = jax.device_get(jax.jit(lambda raw: insertion.insert(raw, plan, jnp.int32(0)))(raw))
    new = (out.masks == 3) & (raw.masks != 3)
    assert new.any(axis=(1, 2)).mean() > 0.8
    areas = new.sum(axis=(1, 2))
    assert 5 < np.median(areas) < 80  # the real ones: 11 to 81 pixels at this size
    assert -600 < out.images[new].mean() < 0
