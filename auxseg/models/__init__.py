"""Networks by name: `create_model` builds the one that config.model asks for."""

from __future__ import annotations

import dataclasses

from auxseg.errors import InputError, check_choice
from auxseg.models.aux_unet import AuxUNet, Settings
from auxseg.models.inference import create_inference
from auxseg.models.keras_weights import from_keras_weights, to_keras_weights
from auxseg.models.layers import resolve_lowering

__all__ = ["create_inference", "create_model", "from_keras_weights", "to_keras_weights"]

_DTYPES = ("float32", "bfloat16")


def create_model(model_config, *, axis_name=None):
    """Returns the network of a config as a linen module.

    Args:
        model_config: the `model` group of a config (configs/base.py), a ConfigDict or any object
            with its fields.
        axis_name: name of the mapped axis (pmap, shard_map) over whose devices batch statistics are
            taken together, or None for each device alone.

    Returns:
        Module; `apply(variables, images)` gives `structs.Outputs`. Variables: 'params', 'batch_stats'.

    Raises:
        InputError: a setting that is no network's.
    """
    check_choice("model.name", model_config.name, ("aux_unet",))
    return AuxUNet(create_settings(model_config), axis_name)


def create_settings(model_config):
    """Returns the `Settings` of a `model` config, with `lowering` resolved for the backend.

    Raises:
        InputError: a setting out of its range.
    """
    check_choice("model.dtype", model_config.dtype, _DTYPES)
    for name in ("base_width", "depth", "num_classes", "se_ratio", "aux_width"):
        _check_positive(f"model.{name}", getattr(model_config, name))
    if not 0.0 <= model_config.bn_momentum <= 1.0:
        raise InputError(f"model.bn_momentum: got {model_config.bn_momentum}, expected 0 to 1")
    if not model_config.bn_epsilon > 0.0:
        raise InputError(f"model.bn_epsilon: got {model_config.bn_epsilon}, expected more than 0")
    names = [field.name for field in dataclasses.fields(Settings) if field.name not in ("lowering", "folded")]
    values = {name: getattr(model_config, name) for name in names}
    return Settings(**values, lowering=resolve_lowering(model_config.lowering))


def _check_positive(name, value):
    if not value >= 1:
        raise InputError(f"{name}: got {value}, expected at least 1")
