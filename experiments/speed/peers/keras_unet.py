"""The Auxiliary U-Net of Keras' own layers, on whichever backend Keras was started with.

Layers carry the names that `auxseg.models.keras_weights` documents, so that weights pass between this
network and ours. Keras reads $KERAS_BACKEND when it is first imported.
"""

from __future__ import annotations

import keras
from keras import layers

from auxseg.models.interface import Outputs


def create_keras_unet(settings, size):
    """Returns a keras.Model from images [N, H, W, 1] to mask logits, with aux to [mask logits, class logits].

    Args:
        settings: the `model` group of a config, or `auxseg.models.settings.Settings`.
        size: rows and columns.
    """
    images = features = keras.Input((*size, 1))
    widths = [settings.base_width << level for level in range(settings.depth + 1)]
    skips = []
    for level in range(settings.depth):
        skips.append(_conv_block(settings, f"encoder_{level}", widths[level], features))
        features = layers.MaxPooling2D(2)(skips[-1])
    features = _conv_block(settings, "bottleneck", widths[-1], features)
    outputs = [_aux_head(settings, features)] if settings.aux else []
    for level in reversed(range(settings.depth)):
        features = layers.Conv2DTranspose(widths[level], 2, 2, name=f"up_{level}")(features)
        features = layers.Concatenate()([features, skips[level]])
        features = _conv_block(settings, f"decoder_{level}", widths[level], features)
    mask_logits = layers.Conv2D(settings.num_classes, 1, name="mask")(features)
    return keras.Model(images, [mask_logits, *outputs] if outputs else mask_logits)


def keras_outputs(model, images, training=False):
    """Returns the network's `interface.Outputs`."""
    outputs = model(images, training=training)
    return Outputs(*outputs) if len(model.outputs) == 2 else Outputs(outputs, None)


def get_keras_weights(model):
    """Returns {'layer/variable': array} of a Keras model, as `from_keras_weights` takes it."""
    return {variable.path: keras.ops.convert_to_numpy(variable.value) for variable in model.weights}


def set_keras_weights(model, weights):
    """Fills a Keras model with what `to_keras_weights` returned."""
    for variable in model.weights:
        variable.assign(weights[variable.path])


def _conv_block(settings, name, width, features):
    for index in range(2):
        features = _unit(settings, f"{name}_unit_{index}", width, features)
    if not settings.se:
        return features
    squeezed = max(1, width // settings.se_ratio)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(features)
    scale = layers.Dense(squeezed, activation="relu", name=f"{name}_se_squeeze")(scale)
    scale = layers.Dense(width, activation="sigmoid", name=f"{name}_se_excite")(scale)
    return layers.Multiply()([features, scale])


def _unit(settings, name, width, features):
    conv = layers.SeparableConv2D if settings.separable else layers.Conv2D
    features = conv(width, 3, padding="same", name=f"{name}_conv")(features)
    norm = layers.BatchNormalization(
        momentum=settings.bn_momentum, epsilon=settings.bn_epsilon, name=f"{name}_norm"
    )
    return layers.ReLU()(norm(features))


def _aux_head(settings, features):
    means = layers.GlobalAveragePooling2D()(features)
    hidden = layers.Dense(settings.aux_width, activation="relu", name="aux_hidden")(means)
    return layers.Dense(settings.num_classes, name="aux")(hidden)
