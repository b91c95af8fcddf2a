"""The step: untransformed and on devices, uneven batches, statistics, the ramp of their momentum."""

import dataclasses
import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg import models
from auxseg.base.errors import InputError
from auxseg.devices import parallel
from auxseg.models import interface
from auxseg.runs.state import count_values
from auxseg.training import batching, facts, insertion, loop, optim, setup, steps
from auxseg.training.settings import create_step_settings
from configs import base

SIZE = (16, 16)


def small_config(**changes):
    config = base.get_config()
    with config.unlocked():
        config.data.size = SIZE
        config.model.base_width = 4
        config.model.depth = 1
        config.model.lowering = "plain"
        for name, value in changes.items():
            group, field = name.split("__")
            config[group][field] = value
    return config


@pytest.fixture(scope="module")
def data():
    return fakes.two_discs(22)


@functools.cache
def start(seed=1):
    return jax.device_get(setup.create_initial_state(small_config()))


def run_on(num_devices, data, config, num_steps=4, batch_size=6, plan=None):
    """Returns (state, sums) after some steps; the last batch has 22 - 3 * 6 = 4 examples."""
    devices = parallel.choose_devices(num_devices)
    feed = batching.create_feed(data, np.arange(len(data)), placement="device", devices=devices)
    order = batching.epoch_order(np.arange(len(data)), seed=1, epoch=1)
    rows = batching.padded_rows(order, batch_size, parallel.round_up(batch_size, devices))
    train_fn = setup.create_train_fn(config, devices, insertion_plan=plan)
    current = loop.set_learning_rate(parallel.replicate(start(), devices), 1e-3, devices)
    sums = parallel.replicate(jax.device_get(steps.empty_sums(4)), devices)
    for _, (batch, _) in zip(range(num_steps), batching.read_batches(feed, rows), strict=False):
        current, sums = train_fn(current, sums, batch)
    return jax.device_get(current), parallel.fetch_first(current), parallel.fetch_first(sums)


@pytest.mark.parametrize("num_devices", [2, 8])
def test_devices_do_not_change_what_is_computed(data, num_devices):
    """22 cases in batches of 6: on 8 devices some have no example at all, and the last batch is uneven."""
    config = small_config()
    _, one, one_sums = run_on(1, data, config)
    copies, many, many_sums = run_on(num_devices, data, config)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    for a, b in zip(one_sums, many_sums, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for leaf in jax.tree.leaves(copies):
        assert (leaf == leaf[:1]).all()  # every device holds the same
    assert one_sums.weight == 22


def test_inserted_nodules_and_the_batch_dice_do_not_depend_on_the_devices(data):
    config = small_config(loss__name="batch_dice_ce", loss__hard_fraction=0.2, insert__enabled=True)
    plan = insertion.create_plan(config.insert, data)._replace(pixel_mm=np.full(len(data), 2.0, np.float32))
    (_, one, one_sums), (_, many, many_sums) = (run_on(n, data, config, plan=plan) for n in (1, 3))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    for a, b in zip(one_sums, many_sums, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert one_sums.dice_cases[3] > (data.table.num_nodules > 0).sum()  # more slices have one than before


def jitted_step(config):
    return jax.jit(functools.partial(steps.train_step, settings=create_step_settings(config)))


@pytest.fixture(scope="module")
def step():
    return jitted_step(small_config())


def start_with_rate():
    current = start()
    return current._replace(opt_state=optim.set_learning_rate(current.opt_state, jnp.float32(1e-3)))


def batch_of(data, weights, padding=None):
    images, masks = data.read(np.arange(len(weights)))
    if padding is not None:
        images = np.where(np.asarray(weights)[:, None, None] > 0, images, padding).astype(np.int16)
    return batching.RawBatch(images, masks, np.arange(len(weights), dtype=np.int32), np.float32(weights))


def test_step_changes_all_that_it_should(data, step):
    before = start_with_rate()
    after, sums = step(before, steps.empty_sums(4), batch_of(data, [1, 1, 1, 1]))
    assert after.step == 1 and sums.weight == 4 and np.isfinite(sums.loss)
    for name in ("params", "batch_stats"):
        for path, old in jax.tree_util.tree_leaves_with_path(getattr(before, name)):
            new = functools.reduce(lambda t, k: t[k.key], path, getattr(after, name))
            # The biases before batch norm have no gradient but rounding.
            if "'bias'" not in jax.tree_util.keystr(path):
                assert not np.array_equal(old, new), jax.tree_util.keystr(path)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_statistics_are_the_mean_over_batches_at_the_same_weights(data, num_devices):
    devices = parallel.choose_devices(num_devices)
    feed = batching.create_feed(data, np.arange(12), placement="device", devices=devices)
    rows = list(batching.padded_rows(np.arange(12), 4, 4))
    statistics_fn = setup.create_statistics_fn(small_config(), devices)
    current = parallel.replicate(start(), devices)
    for index, (batch, _) in enumerate(batching.read_batches(feed, rows)):
        current = statistics_fn(current, batch, parallel.replicate(np.int32(index), devices))
    result = parallel.fetch_first(current)
    jax.tree.map(np.testing.assert_array_equal, result.params, start().params)
    assert result.step == 0

    model = models.create_model(small_config().model)

    @jax.jit
    def of_batch(images):
        images = interface.normalise_hu(images, (-1000.0, 400.0))[..., None]
        return model.apply(start().variables, images, train=True, momentum=0.0, mutable=["batch_stats"])[1]

    each = [of_batch(data.read(indices)[0])["batch_stats"] for indices, _ in rows]
    mean = jax.tree.map(lambda *batches: np.mean(batches, axis=0), *each)
    for a, b in zip(jax.tree.leaves(result.batch_stats), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_frozen_parts_keep_their_weights_and_the_others_do_not(data):
    step = jitted_step(small_config(train__freeze=("encoder_0", "mask")))
    before = start_with_rate()
    for _ in range(2):
        after, _ = step(before, steps.empty_sums(4), batch_of(data, [1, 1, 1, 1]))
    same = {
        name: all(
            (a == b).all()
            for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(after.params[name]), strict=True)
        )
        for name, part in before.params.items()
    }
    assert {name for name, value in same.items() if value} == {"encoder_0", "mask"}


def test_padding_changes_nothing(data, step):
    weights = [1, 1, 1, 0]
    results = [
        step(start_with_rate(), steps.empty_sums(4), batch_of(data, weights, padding))
        for padding in (-900, 3000)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)


def test_not_finite_loss_is_remembered_by_its_first_step(data, step):
    batch = batch_of(data, [1, 1, 1, 1])
    current, sums = step(start_with_rate(), steps.empty_sums(4), batch)
    assert sums.bad_step == np.iinfo(np.int32).max
    broken = jax.tree.map(lambda x: x * np.nan, current.params)
    current, sums = step(current._replace(params=broken), sums, batch)
    current, sums = step(current, sums, batch)
    assert sums.bad_step == 1


def test_untransformed_loss_is_the_sum_of_its_parts(data):
    config = small_config(loss__aux_weight=0.5)
    images, masks = data.read(np.arange(4))
    raw = batching.RawBatch(images, masks, np.arange(4), np.ones(4, np.float32))
    got = steps.eval_step(start().variables, raw, settings=create_step_settings(config))
    np.testing.assert_allclose(got.loss, got.segmentation + 0.5 * got.auxiliary, rtol=1e-6)
    assert got.counts.reference.sum() == 4 * 16 * 16
    assert got.label_probabilities.shape == (4, 4)


def test_settings_come_from_the_config_and_stay():
    config = small_config(
        loss__aux_weight=0.25, augment__seed=7, train__accumulate_steps=2, model__bn_momentum=0.9
    )
    settings = create_step_settings(config, axis_name="devices", facts="facts")
    assert (settings.aux_weight, settings.augment_seed, settings.accumulate_steps) == (0.25, 7, 2)
    assert (settings.bn_momentum, settings.num_classes, settings.window_hu) == (0.9, 4, (-1000.0, 400.0))
    assert (settings.axis_name, settings.model.axis_name, settings.facts) == (
        "devices",
        "devices",
        "facts",
    )
    assert settings.augmentation is None
    enabled = create_step_settings(small_config(augment__enabled=True, augment__rotate_degrees=3.0))
    assert enabled.augmentation.rotate_degrees == 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.aux_weight = 1.0


def test_momentum_ramp():
    ramp = [
        float(steps.statistics_momentum(jnp.int32(t), bn_momentum=0.99, warmup=True))
        for t in (0, 8, 90, 10**4)
    ]
    np.testing.assert_allclose(ramp, [0.1, 0.5, 0.91, 0.99], rtol=1e-6)
    assert float(steps.statistics_momentum(jnp.int32(0), bn_momentum=0.99, warmup=False)) == pytest.approx(
        0.99
    )


def test_augmentation_is_part_of_the_step(data, step):
    batch = batch_of(data, [1, 1, 1, 1])
    augmented = jitted_step(small_config(augment__enabled=True))
    values = [float(s(start_with_rate(), steps.empty_sums(4), batch)[1].loss) for s in (step, augmented)]
    assert np.isfinite(values).all() and values[0] != values[1]


def test_state_counts():
    assert count_values({"a": np.zeros((2, 3)), "b": np.zeros(())}) == 7


def _step_with(data, **changes):
    """Returns (TrainState, EpochSums) after one step on all 22 cases and two rows of padding."""
    batch = batching.RawBatch(
        *(np.concatenate([array, array[:2]]) for array in data.read(np.arange(22))),
        np.arange(24, dtype=np.int32) % 22,
        np.float32(np.arange(24) < 22),
    )
    step = jitted_step(small_config(**changes))
    rate = optim.set_learning_rate(start().opt_state, np.float32(1e-3))
    return jax.device_get(step(start()._replace(opt_state=rate), steps.empty_sums(4), batch))


def test_accumulated_gradients_are_those_of_the_batch(data, monkeypatch):
    """With batch norm that takes no statistics of the batch, all else being equal, they are the same."""

    def fixed(moments, weights, axis_name):
        mean, variance = (jnp.zeros(m.shape[1]) + value for m, value in zip(moments, (0.0, 1.0), strict=True))
        return mean, variance, jnp.ones(())

    monkeypatch.setattr("auxseg.models.norm.batch_statistics", fixed)
    whole, whole_sums = _step_with(data)
    parts, part_sums = _step_with(data, train__accumulate_steps=4)
    moments = [state.opt_state.inner_state[0] for state in (whole, parts)]
    scale = np.abs(moments[0].mu).max()
    np.testing.assert_allclose(moments[1].mu, moments[0].mu, atol=1e-5 * scale)
    for found, expected in zip(part_sums, whole_sums, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        parts.batch_stats,
        whole.batch_stats,
    )


def test_accumulation_with_batch_norm_counts_each_case_once(data):
    state_after, sums = _step_with(data, train__accumulate_steps=12)
    assert sums.weight == 22
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_after))


def test_a_batch_that_cannot_be_divided_is_refused(data):
    with pytest.raises(InputError, match="train.accumulate_steps: got 5, expected a divisor of 24"):
        _step_with(data, train__accumulate_steps=5)


def test_votes_of_crops_in_four_classes_go_through_a_step():
    """One crop of two readers beside one case whose labels tell all: the nodule alone is known of the crop."""
    crop = np.array([[1, 1, 1, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]], np.uint8)
    masks = np.full((2, *SIZE), 128, np.uint8)  # of no reader
    masks[0, 4:8, 4:8], masks[0, 4:8, 8:12], masks[1] = 131, 129, 1
    raw = batching.RawBatch(
        np.zeros((2, *SIZE), np.int16), masks, np.arange(2, dtype=np.int32), np.ones(2, np.float32)
    )
    config = small_config(augment__enabled=True, augment__hu_scale_fraction=0.2, augment__scale_fraction=0.0)
    config.augment.update({"flip_probability": 0.0, "shift_fraction": 0.0, "rotate_degrees": 0.0})
    config.data.target = "share"
    settings = create_step_settings(
        config,
        facts=facts.CaseFacts(
            meanings=np.stack([crop, np.eye(4, dtype=np.uint8)]),
            is_cut=np.array([True, False]),
            readers=np.array([[2, 3], [0, 0]], np.uint8),
        ),
    )
    step = jax.jit(functools.partial(steps.train_step, settings=settings))
    state, sums = jax.device_get(step(start(), steps.empty_sums(4), raw))
    assert np.isfinite(sums.loss) and int(state.step) == 1
    # Half of two readers is a half: their consensus is nodule. The rest of the crop is not scored.
    np.testing.assert_array_equal(sums.dice_cases, [0, 1, 0, 1])
