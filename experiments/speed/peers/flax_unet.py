"""The Auxiliary U-Net of Flax's own layers (`nn.Conv`, `nn.BatchNorm`, ...), with our weights."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from auxseg.models.interface import Outputs
from auxseg.models.keras_weights import flatten


class FlaxUNet(nn.Module):
    """The separable network of `settings` (`auxseg.models.settings.Settings`)."""

    settings: Any

    @nn.compact
    def __call__(self, images, *, train=False):
        """Returns `Outputs`; with `train`, 'batch_stats' must be mutable."""
        settings, skips = self.settings, []
        widths = [settings.base_width << level for level in range(settings.depth + 1)]
        features = images.astype(settings.dtype)
        for level in range(settings.depth):
            skips.append(self._block(f"encoder_{level}", widths[level], features, train))
            features = nn.max_pool(skips[-1], (2, 2), (2, 2))
        features = self._block("bottleneck", widths[-1], features, train)
        class_logits = None
        if settings.aux:
            hidden = nn.relu(nn.Dense(settings.aux_width, name="aux_hidden")(self._means(features)))
            class_logits = nn.Dense(settings.num_classes, name="aux")(hidden)
        for level in reversed(range(settings.depth)):
            up = nn.ConvTranspose(widths[level], (2, 2), (2, 2), dtype=settings.dtype, name=f"up_{level}")
            features = jnp.concatenate([up(features), skips[level]], -1)
            features = self._block(f"decoder_{level}", widths[level], features, train)
        logits = nn.Conv(settings.num_classes, (1, 1), name="mask")(features)
        return Outputs(logits.astype(jnp.float32), class_logits)

    def _means(self, features):
        return jnp.mean(features, (1, 2), dtype=jnp.float32)

    def _block(self, name, width, features, train):
        settings = self.settings
        for unit in (f"{name}_unit_0", f"{name}_unit_1"):
            channels, dtype = features.shape[-1], settings.dtype
            depthwise = nn.Conv(
                channels,
                (3, 3),
                feature_group_count=channels,
                use_bias=False,
                dtype=dtype,
                name=f"{unit}_depthwise",
            )
            features = nn.Conv(width, (1, 1), dtype=dtype, name=f"{unit}_pointwise")(depthwise(features))
            norm = nn.BatchNorm(
                not train,
                momentum=settings.bn_momentum,
                epsilon=settings.bn_epsilon,
                dtype=dtype,
                name=f"{unit}_norm",
            )
            features = nn.relu(norm(features))
        if not settings.se:
            return features
        squeezed = nn.Dense(max(1, width // settings.se_ratio), name=f"{name}_se_squeeze")(
            self._means(features)
        )
        scale = nn.sigmoid(nn.Dense(width, name=f"{name}_se_excite")(nn.relu(squeezed)))
        return features * scale.astype(features.dtype)[:, None, None]


def flax_variables(variables):
    """Returns our variables under the names and in the layouts of `FlaxUNet`."""
    converted = {"params": {}, "batch_stats": {}}
    for (collection, *owners, leaf), value in flatten(variables):
        layer, name, layout = _flax_name(owners, leaf)
        converted[collection].setdefault(layer, {})[name] = layout(np.asarray(value))
    return converted


def _same(value):
    return value


_UNIT = {
    "depthwise": ("depthwise", "kernel", lambda value: value[:, :, None]),
    "pointwise": ("pointwise", "kernel", lambda value: value[None, None]),
    "bias": ("pointwise", "bias", _same),
    "scale": ("norm", "scale", _same),
    "offset": ("norm", "bias", _same),
    "mean": ("norm", "mean", _same),
    "variance": ("norm", "var", _same),
}


def _flax_name(owners, leaf):
    """Returns (layer, variable, function to Flax's layout) of one of our arrays."""
    if owners[-1] == "se":
        layer = leaf.removesuffix("_bias")
        return f"{owners[0]}_se_{layer}", "bias" if leaf.endswith("_bias") else "kernel", _same
    if len(owners) == 2:
        part, name, layout = _UNIT[leaf]
        return f"{owners[0]}_{owners[1]}_{part}", name, layout
    if owners[0] == "aux" and leaf.startswith("hidden"):
        return "aux_hidden", "bias" if leaf.endswith("_bias") else "kernel", _same
    if leaf == "kernel" and owners[0] == "mask":
        return "mask", leaf, lambda value: value[None, None]
    if leaf == "kernel" and owners[0].startswith("up_"):
        # Flax slides the kernel over the stretched image: its taps lie the other way round.
        return owners[0], leaf, lambda value: value.transpose(1, 2, 0, 3)[::-1, ::-1]
    return owners[0], leaf, _same
