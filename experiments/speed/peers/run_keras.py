"""Keras' own layers, on TensorFlow or JAX; the backend is fixed before Keras is imported."""

from __future__ import annotations

import functools
import os

from experiments.speed.peers.task import (
    ADAM_EPSILON,
    AUX_WEIGHT,
    LEARNING_RATE,
    create_config,
    make_batch,
    read_variables,
)


def create(name, task):
    """Returns {'train': ..., 'infer': ...} as `run_jax.create`; name 'keras_jax' or 'keras_tensorflow'."""
    os.environ["KERAS_BACKEND"] = name.removeprefix("keras_")
    if name == "keras_tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(len(os.sched_getaffinity(0)))
    from auxseg.models import to_keras_weights
    from experiments.speed.peers.keras_unet import create_keras_unet, set_keras_weights

    model = create_keras_unet(create_config(task), (task.size, task.size))
    restore = functools.partial(set_keras_weights, model, to_keras_weights(read_variables(task.weights)))
    restore()
    return {
        "train": functools.partial(_create_train, model, restore, task),
        "infer": functools.partial(_create_infer, model, task),
    }


def _mask_loss(truth, logits):
    """Returns Dice + cross-entropy of `run_jax`; truth one-hot [N, H, W, C]."""
    from keras import ops

    probabilities = ops.softmax(logits)
    overlap = ops.sum(probabilities * truth, (1, 2))
    dice = (2.0 * overlap + 1.0) / (ops.sum(probabilities, (1, 2)) + ops.sum(truth, (1, 2)) + 1.0)
    return 1.0 - ops.mean(dice) + ops.mean(ops.categorical_crossentropy(truth, logits, from_logits=True))


def _create_train(model, restore, task, batch_size):
    import keras
    import numpy as np

    restore()  # a smaller batch may have trained it
    images, masks, labels = make_batch(batch_size, task.size)
    truth = np.eye(model.outputs[0].shape[-1], dtype=np.float32)[masks]
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, epsilon=ADAM_EPSILON),
        loss=[_mask_loss, keras.losses.BinaryCrossentropy(from_logits=True)],
        loss_weights=[1.0, AUX_WEIGHT],
    )

    def step():
        model.reset_metrics()
        return float(model.train_on_batch(images, [truth, labels], return_dict=True)["loss"])

    return step


def _create_infer(model, task, batch_size):
    images = make_batch(batch_size, task.size)[0]
    return lambda: model.predict_on_batch(images) is None
