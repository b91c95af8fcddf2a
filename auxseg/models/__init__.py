"""Networks by name: `create_model` builds the one that config.model asks for."""

from __future__ import annotations

import dataclasses

from auxseg.base.classes import NUM_CLASSES
from auxseg.base.errors import InputError, check_choice
from auxseg.models.aux_unet import AuxUNet, Settings
from auxseg.models.aux_unet3d import AuxUNet3D
from auxseg.models.compared.attention_res_unet import GATES, AttentionResUNet, LungFirst
from auxseg.models.compared.attention_unet import AttentionUNet
from auxseg.models.compared.bidirectional_unet import BidirectionalUNet
from auxseg.models.compared.unet3d import UNet3D
from auxseg.models.compared.unet_plus_plus import UNetPlusPlus
from auxseg.models.inference import create_inference, create_predict
from auxseg.models.keras_weights import from_keras_weights, to_keras_weights
from auxseg.models.layers import resolve_lowering
from auxseg.models.unet import UNet

__all__ = [
    "NAMES",
    "create_inference",
    "create_model",
    "create_predict",
    "from_keras_weights",
    "to_keras_weights",
]
NAMES = (
    "aux_unet",
    "unet",
    "unet3d",
    "aux_unet3d",
    "bidirectional_unet",
    "attention_res_unet",
    "attention_unet",
    "unet_plus_plus",
)
"""Valid values of config.model.name: the paper's network, and those that it is compared with."""
IN_3D = ("unet3d", "aux_unet3d")
"""Those whose layers are volumes: they see slabs, and nothing else."""
_SLICES_AS_CHANNELS = ("aux_unet",)
_DTYPES = ("float32", "bfloat16")


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
    if name in ("aux_unet", "aux_unet3d"):
        return {"aux_unet": AuxUNet, "aux_unet3d": AuxUNet3D}[name](settings, axis_name)
    # What only the Auxiliary U-Net has.
    settings = dataclasses.replace(settings, separable=False, se=False, aux=False)
    if name == "attention_res_unet":
        gate = check_choice("model.gate", model_config.gate, GATES)
        network = LungFirst if model_config.lung_first else AttentionResUNet
        return network(settings, axis_name, gate)
    if name == "bidirectional_unet":
        return BidirectionalUNet(settings, axis_name, _dropout(model_config))
    if name == "unet_plus_plus":
        return UNetPlusPlus(settings, axis_name, model_config.deep_supervision)
    return {"unet": UNet, "unet3d": UNet3D, "attention_unet": AttentionUNet}[name](settings, axis_name)


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


def create_settings(model_config, num_classes=NUM_CLASSES):
    """Returns the `Settings` of a `model` config, with `lowering` resolved for the backend.

    Raises:
        InputError: a setting out of its range.
    """
    check_choice("model.dtype", model_config.dtype, _DTYPES)
    for name in ("base_width", "depth", "se_ratio", "aux_width"):
        _check_positive(f"model.{name}", getattr(model_config, name))
    if not 0.0 <= model_config.bn_momentum <= 1.0:
        raise InputError(f"model.bn_momentum: got {model_config.bn_momentum}, expected 0 to 1")
    if not model_config.bn_epsilon > 0.0:
        raise InputError(f"model.bn_epsilon: got {model_config.bn_epsilon}, expected more than 0")
    elsewhere = ("lowering", "folded", "num_classes")
    names = [field.name for field in dataclasses.fields(Settings) if field.name not in elsewhere]
    values = {name: getattr(model_config, name) for name in names}
    return Settings(
        **values,
        num_classes=num_classes,
        lowering=resolve_lowering(model_config.lowering, model_config.dtype),
    )


def _check_positive(name, value):
    if not value >= 1:
        raise InputError(f"{name}: got {value}, expected at least 1")
