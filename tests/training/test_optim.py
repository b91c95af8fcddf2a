"""Adam and the callbacks against real Keras."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from auxseg.training import optim
from configs import base


def run_schedule(values, config):
    schedule, rates = optim.Schedule(config.learning_rate), []
    for epoch, value in enumerate(values, start=1):
        schedule = optim.update_schedule(schedule, epoch=epoch, value=value, config=config)
        rates.append(schedule.learning_rate)
        if schedule.stopped:
            break
    return schedule, rates


def run_keras(values, config):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(config.learning_rate), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau(
        factor=config.plateau_factor, patience=config.plateau_patience_epochs, min_lr=config.min_learning_rate
    )
    stop = keras.callbacks.EarlyStopping(patience=config.stop_patience_epochs, restore_best_weights=True)
    model.stop_training = False
    rates = []
    for callback in (plateau, stop):
        callback.set_model(model)
        callback.on_train_begin()
    for epoch, value in enumerate(values):
        for callback in (plateau, stop):
            callback.on_epoch_end(epoch, {"val_loss": value})
        rates.append(float(model.optimizer.learning_rate))
        if model.stop_training:
            break
    return rates, model.stop_training, stop.best_epoch + 1


@pytest.mark.parametrize("seed", range(12))
def test_schedule_is_that_of_keras_on_random_curves(seed):
    generator = np.random.default_rng(seed)
    config = base.get_config().optim
    with config.unlocked():
        config.plateau_patience_epochs = int(generator.integers(1, 6))
        config.stop_patience_epochs = int(generator.integers(2, 12))
        config.min_learning_rate = float(generator.choice([0.0, 2e-4]))
    # Steps about as large as min_delta, so that it decides; the same value again now and then.
    steps = generator.normal(-0.2e-4, 1.5e-4, 60) * generator.choice([0.0, 1.0], 60, p=[0.2, 0.8])
    values = 1.0 + np.cumsum(steps)
    schedule, rates = run_schedule(map(float, values), config)
    expected, stopped, best = run_keras(map(float, values), config)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert (schedule.stopped, schedule.best_epoch) == (stopped, best)


def test_table_3_of_the_paper():
    """Seed 1 was best at epoch 24; its rate fell after 29 and it stopped after 34 (section 4, Table 3)."""
    # Improvements that make the rate fall after epochs 12 and 21, as Table 3 has it.
    best = {*range(1, 8), 16, 24}
    values, value = [], 1.0
    for epoch in range(1, 51):
        value = value - 0.01 if epoch in best else value
        values.append(value if epoch in best else value + 0.005)
    schedule, rates = run_schedule(values, base.get_config().optim)
    assert len(rates) == 34 and schedule.stopped and schedule.best_epoch == 24
    np.testing.assert_allclose(rates[:33], [1e-3] * 11 + [5e-4] * 9 + [2.5e-4] * 8 + [1.25e-4] * 5)


def test_schedule_survives_json():
    schedule, _ = run_schedule([1.0, 0.5, 0.6], base.get_config().optim)
    assert optim.Schedule(**json.loads(json.dumps(dataclasses.asdict(schedule)))) == schedule


def test_adam_is_that_of_keras_also_for_small_gradients():
    keras = pytest.importorskip("keras")
    generator = np.random.default_rng(0)
    start = {"a": generator.normal(size=(3, 4)).astype(np.float32), "b": np.ones(5, np.float32)}
    variables = {k: keras.Variable(v) for k, v in start.items()}
    theirs = keras.optimizers.Adam(1e-3)
    theirs.build(list(variables.values()))
    ours = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=1e-7)
    params = jax.tree.map(jax.numpy.asarray, start)
    opt_state = optim.set_learning_rate(ours.init(params), jax.numpy.float32(1e-3))
    for step in range(20):
        scale = 10.0 ** (step % 9 - 8)  # from where epsilon decides: what was once large is remembered long
        gradients = {k: (scale * generator.normal(size=v.shape)).astype(np.float32) for k, v in start.items()}
        theirs.apply([keras.ops.convert_to_tensor(gradients[k]) for k in variables])
        updates, opt_state = ours.update(gradients, opt_state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    for name, value in params.items():
        np.testing.assert_allclose(value, np.asarray(variables[name].value), atol=2e-7)


def test_epsilon_is_added_to_the_root_of_the_uncorrected_moment():
    """Of a gradient of 1e-7: moments 1e-8 and 1e-17, correction 0.316228, so 3.16228e-9 / (3.16228e-9 + 1e-7)."""
    ours, params = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=1e-7), {"w": jax.numpy.ones(3)}
    opt_state = optim.set_learning_rate(ours.init(params), jax.numpy.float32(1.0))
    updates, _ = ours.update({"w": jax.numpy.full(3, 1e-7)}, opt_state)
    np.testing.assert_allclose(updates["w"], -0.0306534, rtol=1e-3)


def test_learning_rate_scales_the_update():
    ours = optim.create_optimizer(beta1=0.9, beta2=0.999, epsilon=1e-7)
    params = {"w": jax.numpy.ones(3)}
    updates = [
        ours.update(params, optim.set_learning_rate(ours.init(params), jax.numpy.float32(rate)))[0]["w"]
        for rate in (1e-3, 5e-4)
    ]
    np.testing.assert_allclose(updates[0], 2 * updates[1], rtol=1e-6)
    np.testing.assert_allclose(updates[0], -1e-3, rtol=1e-4)


def test_cosine_goes_with_the_plateau():
    config = base.get_config().optim.copy_and_resolve_references().unlock()
    schedule = optim.Schedule(learning_rate=0.5)
    assert optim.epoch_rate(schedule, epoch=7, config=config) == 0.5
    config.cosine_epochs = 4
    rates = [optim.epoch_rate(schedule, epoch=epoch, config=config) for epoch in (1, 2, 3, 4, 5, 9)]
    root = 0.5**0.5
    np.testing.assert_allclose(rates, [0.5, 0.25 * (1 + root), 0.25, 0.25 * (1 - root), 0.0, 0.0], atol=1e-12)


def test_an_improvement_by_just_the_least_one_is_none():
    config = base.get_config().optim
    config.plateau_min_delta = 0.25
    schedule = optim.update_schedule(
        optim.Schedule(1e-3, plateau_best=1.0, stop_best=0.75), epoch=2, value=0.75, config=config
    )
    assert (schedule.plateau_wait, schedule.plateau_best) == (1, 1.0)
    assert (schedule.stop_wait, schedule.best_epoch) == (1, 0)  # an equal value is no lower one


def test_at_the_least_rate_bad_epochs_are_counted_on():
    config = base.get_config().optim
    config.plateau_patience_epochs, config.min_learning_rate = 2, 1e-4
    schedule = optim.update_schedule(
        optim.Schedule(1e-4, plateau_best=0.5, plateau_wait=1), epoch=5, value=0.6, config=config
    )
    assert (schedule.learning_rate, schedule.plateau_wait) == (1e-4, 2)  # as Keras: no other fall begins
