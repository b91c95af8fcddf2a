"""Networks by name: `create_model` builds the one that config.model asks for, and imports no other."""

from __future__ import annotations

import dataclasses
import importlib

from auxseg.base.classes import NUM_CLASSES
from auxseg.base.errors import InputError, check_choice
from auxseg.models.inference import create_inference, create_predict
from auxseg.models.keras_weights import from_keras_weights, to_keras_weights
from auxseg.models.settings import create_settings

__all__ = [
    "NAMES",
    "create_inference",
    "create_model",
    "create_predict",
    "create_settings",
    "from_keras_weights",
    "to_keras_weights",
]
_NETWORKS = {
    "aux_unet": "aux_unet.AuxUNet",
    "unet": "unet.UNet",
    "unet3d": "compared.unet3d.UNet3D",
    "aux_unet3d": "aux_unet3d.AuxUNet3D",
    "bidirectional_unet": "compared.bidirectional_unet.BidirectionalUNet",
    "attention_res_unet": "compared.attention_res_unet.AttentionResUNet",
    "attention_unet": "compared.attention_unet.AttentionUNet",
    "unet_plus_plus": "compared.unet_plus_plus.UNetPlusPlus",
}
NAMES = tuple(_NETWORKS)
"""Valid values of config.model.name: the paper's network, and those that it is compared with."""
IN_3D = ("unet3d", "aux_unet3d")
"""Those whose layers are volumes: they see slabs, and nothing else."""
_SLICES_AS_CHANNELS = ("aux_unet",)
_OURS = ("aux_unet", "aux_unet3d")


def create_model(model_config, *, num_classes=NUM_CLASSES, axis_name=None):
    """Returns the network of a config as a linen module.

    Args:
        model_config: the `model` group of a config (configs/base.py), a ConfigDict or any object
            with its fields.
        num_classes: of the masks, with background.
        axis_name: name of the mapped axis (pmap, or shard_map with check_vma=False) over whose devices
            batch statistics are taken together, or None for each device alone.

    Returns:
        Module; `apply(variables, images)` gives `interface.Outputs`. Variables: 'params', 'batch_stats'.

    Raises:
        InputError: a setting that is no network's.
    """
    name = check_choice("model.name", model_config.name, NAMES)
    settings = create_settings(model_config, num_classes)
    network = _find_class(name)
    if name in _OURS:
        return network(settings, axis_name)
    # What only the Auxiliary U-Net has.
    settings = dataclasses.replace(settings, separable=False, se=False, aux=False)
    if name == "attention_res_unet":
        return _create_attention_res_unet(model_config, settings, axis_name)
    if name == "bidirectional_unet":
        return network(settings, axis_name, _dropout(model_config))
    if name == "unet_plus_plus":
        return network(settings, axis_name, model_config.deep_supervision)
    return network(settings, axis_name)


def _find_class(name):
    module, _, last = _NETWORKS[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), last)


def _create_attention_res_unet(model_config, settings, axis_name):
    from auxseg.models.compared.attention_res_unet import GATES, AttentionResUNet, LungFirst

    gate = check_choice("model.gate", model_config.gate, GATES)
    return (LungFirst if model_config.lung_first else AttentionResUNet)(settings, axis_name, gate)


def check_slab(name, num_slices):
    """Raises an InputError unless a network can take `data.slab` slices together.

    Args:
        name: of `NAMES`.
        num_slices: of a slab; 1: slices alone.
    """
    if (name in IN_3D and num_slices == 1) or (num_slices > 1 and name not in (*IN_3D, *_SLICES_AS_CHANNELS)):
        needed, possible = ", ".join(IN_3D), ", ".join(_SLICES_AS_CHANNELS)
        raise InputError(
            f"data.slab: got {num_slices} with model.name={name!r}; {needed}: slabs of 3 or more slices; {possible}: "
            "either; the others: slices alone"
        )


def _dropout(model_config):
    share = model_config.dropout
    if not 0.0 <= share < 1.0:
        raise InputError(f"model.dropout: got {share}, expected 0 to under 1")
    return share
