"""Attention Res-UNet (Zafaranchi et al. 2024, scitepress 2024/130146): residual blocks and gated skips.

A block is 3x3 convolution, batch norm, ReLU, 3x3 convolution, batch norm, plus a 1x1 convolution of its input
with batch norm, and ReLU. Its paper states neither widths nor the gate in full: the default, 'additive', is
the Attention U-Net's, and gives the counts below; 'grid' is the gate with a strided convolution of the skip
(`parts.Gate`), which costs more.

'Lung region first' is `lung_first`: two such networks, one after the other and trained together. The first
divides the slice into background and the lungs; the second sees the image where that says lung, widened by
`REGION_PIXELS` so that nodules on the pleura stay in it, and says where a nodule is. The
mask's probabilities are p2(nodule) and (1 - p2(nodule)) p1(class).

Parameters and statistics of one network: the U-Net's, 5F for the bias and batch norm and CF for the weights of
each shortcut from C to F channels, and the Attention U-Net's gates: 32,815,224 at base width 64, 6,750,392 at 29.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from auxseg.base.classes import CLASS_NAMES
from auxseg.models import blocks
from auxseg.models.aux_unet import Unit
from auxseg.models.blocks import Signal
from auxseg.models.compared.parts import ComparedNetwork, Context, Conv, Gate
from auxseg.models.interface import Outputs

GATES = ("additive", "grid")
"""Valid values of config.model.gate."""
REGION_PIXELS = 7
"""How far the lung region is widened, in pixels of the network's size."""
_NODULE = CLASS_NAMES.index("nodule")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a 1x1 convolution of their input, then ReLU.

    Attributes:
        settings: of the network.
        features: channels that it gives.
        axis_name: of the devices, or None.
    """

    settings: object
    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, context):
        """Returns float [N, H, W, features] for images float [N, H, W, C]."""
        unit = Unit(self.settings, self.features, self.axis_name, name="unit")
        inner = blocks.activate(unit((Signal(images),), *context))
        outer = Conv(self.settings, self.features, axis_name=self.axis_name, name="conv")(inner, context)
        shortcut = Conv(self.settings, self.features, "1x1", axis_name=self.axis_name, name="shortcut")
        return nn.relu(outer + shortcut(images, context))


class AttentionResUNet(ComparedNetwork):
    """The whole network, one stage.

    Attributes:
        gate: of `GATES`.
    """

    gate: str = "additive"

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` without class logits; the arguments are those of `AuxUNet.__call__`."""
        context, widths = Context(train, weights, momentum), self.settings.widths()
        values, skips = self._start(images).values, []
        for level in range(self.settings.depth):
            skips.append(self._residual(f"encoder_{level}", widths[level])(values, context))
            values = blocks.max_pool(Signal(skips[-1]), lowering=self.settings.lowering)
        values = self._residual("bottleneck", widths[-1])(values, context)
        for level in reversed(range(self.settings.depth)):
            enlarged = self._upsample(level, Signal(values)).values
            gate = Gate(self.settings, widths[level], self.gate, self.axis_name, name=f"gate_{level}")
            gated = gate(skips[level], values if self.gate == "grid" else enlarged, context)
            values = jnp.concatenate([enlarged, gated], -1)
            values = self._residual(f"decoder_{level}", widths[level])(values, context)
        return self._finish(Signal(values))

    def _residual(self, name, features):
        return ResidualBlock(self.settings, features, self.axis_name, name=name)


class LungFirst(ComparedNetwork):
    """Two stages: the lungs, then the nodules in them; see the head of this file.

    Attributes:
        gate: of `GATES`.
    """

    gate: str = "additive"

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` without class logits; the arguments are those of `AuxUNet.__call__`."""
        context = {"train": train, "weights": weights, "momentum": momentum}
        lungs = nn.log_softmax(self._stage("lungs", _NODULE)(images, **context).mask_logits)
        region = lung_region(1.0 - jnp.exp(lungs[..., :1]))
        nodule = self._stage("nodules", 1)(images * lax.stop_gradient(region), **context).mask_logits
        return Outputs(jnp.concatenate([lungs - nn.softplus(nodule), -nn.softplus(-nodule)], -1), None)

    def _stage(self, name, num_classes):
        settings = dataclasses.replace(self.settings, num_classes=num_classes)
        return AttentionResUNet(settings, self.axis_name, self.gate, name=name)


def lung_region(probabilities):
    """Returns the largest value within `REGION_PIXELS` rows and columns, same shape.

    Args:
        probabilities: float32 [N, H, W, 1], of lung.
    """
    reach = 2 * REGION_PIXELS + 1
    return lax.reduce_window(probabilities, -jnp.inf, lax.max, (1, reach, reach, 1), (1, 1, 1, 1), "SAME")
