"""The Attention U-Net (Oktay et al., arXiv:1804.03999): a U-Net whose skips pass additive gates.

The gate reads the up-sampled image beside the skip; see `parts.Gate` ('additive'). Parameters and statistics:
those of the U-Net and, for a level of F channels, a gate of two 1x1 convolutions from F to F / 2 and one from
F / 2 to 1, each with bias and batch norm, F^2 + 11F / 2 + 5: 353,460 for 64 .. 512 channels. Together
31,407,800 at base width 64 and 6,457,753 at 29 (where F / 2 is rounded down).
"""

from __future__ import annotations

import flax.linen as nn

from auxseg.models import blocks
from auxseg.models.blocks import Signal
from auxseg.models.compared.parts import ComparedNetwork, Context, Gate


class AttentionUNet(ComparedNetwork):
    """The whole network; attributes and calls are those of `parts.ComparedNetwork` and `AuxUNet`."""

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` without class logits; the arguments are those of `AuxUNet.__call__`."""
        context = Context(train, weights, momentum)
        *skips, signal = self._encode(self._start(images), context)
        for level in reversed(range(self.settings.depth)):
            width = self.settings.widths()[level]
            signal = self._upsample(level, signal)
            gate = Gate(self.settings, width, axis_name=self.axis_name, name=f"gate_{level}")
            gated = Signal(gate(blocks.activate(skips[level]), signal.values, context))
            signal = self._block(f"decoder_{level}", width)((signal, gated), *context)
        return self._finish(signal)
