"""What `config.model` says, checked; no network is imported, so that prediction by a kept program starts without them."""

from __future__ import annotations

import dataclasses

from auxseg.base.classes import NUM_CLASSES
from auxseg.base.errors import InputError, check_choice
from auxseg.models.layers import resolve_lowering

_DTYPES = ("float32", "bfloat16")
_MOST = {"base_width": 4096, "depth": 12, "se_ratio": 4096, "aux_width": 65536}
"""What no network needs more of: a stranger's settings may claim anything."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.model` says, checked; the fields are those of configs/base.py and one more.

    Attributes:
        folded: batch norm is part of the kernels (`inference.py`): a unit holds depthwise, pointwise (or
            ordinary) and shift, and cannot be trained.
    """

    base_width: int
    depth: int
    num_classes: int
    separable: bool
    se: bool
    se_ratio: int
    aux: bool
    aux_width: int
    dtype: str
    bn_momentum: float
    bn_epsilon: float
    lowering: str
    folded: bool = False

    def widths(self):
        """Returns the channels of each encoder level and of the bottleneck, depth + 1 integers."""
        return [self.base_width << level for level in range(self.depth + 1)]


def create_settings(model_config, num_classes=NUM_CLASSES):
    """Returns the `Settings` of a `model` config, with `lowering` resolved for the backend.

    Raises:
        InputError: a setting out of its range.
    """
    check_choice("model.dtype", model_config.dtype, _DTYPES)
    for name, most in _MOST.items():
        value = getattr(model_config, name)
        if not 1 <= value <= most:
            raise InputError(f"model.{name}: got {value}, expected 1 to {most}")
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
