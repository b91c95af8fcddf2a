"""UNet++ (Zhou et al., arXiv:1807.10165): nested dense skips, with a mask from each column's end.

Node (i, j) at level i and column j reads all nodes of its level before it and the up-sampled node below:
(i, 0) are the encoder, (i, depth - i) the decoder. With deep supervision each of (0, 1) .. (0, depth) gives
logits; their mean is the network's ('accurate mode'). A 2x2 transposed convolution enlarges.

Parameters and statistics: a node (i, j) of F channels reads (j + 1) F of them (the encoder F / 2, or 1) and
has two units as in the U-Net; each of the ten transposed convolutions has 4 * 2F * F + F, each of the four
heads 4F + 4. Together 9,056,688 at base width 32 and 6,450,208 at 27.
"""

from __future__ import annotations

import flax.linen as nn

from auxseg.models.aux_unet import MaskHead, Upsample
from auxseg.models.compared.parts import ComparedNetwork, Context
from auxseg.models.interface import Outputs


class UNetPlusPlus(ComparedNetwork):
    """The whole network.

    Attributes:
        deep_supervision: average the logits of all columns; else those of the last alone.
    """

    deep_supervision: bool = True

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` without class logits; the arguments are those of `AuxUNet.__call__`."""
        context, depth = Context(train, weights, momentum), self.settings.depth
        nodes = {
            (level, 0): signal for level, signal in enumerate(self._encode(self._start(images), context))
        }
        for column in range(1, depth + 1):
            for level in range(depth + 1 - column):
                below = self._enlarge(level, column, nodes[level + 1, column - 1])
                before = [nodes[level, earlier] for earlier in range(column)]
                block = self._block(self._name("decoder", level, column), self.settings.widths()[level])
                nodes[level, column] = block((below, *before), *context)
        first = 1 if self.deep_supervision else depth
        heads = [self._head(column)(nodes[0, column]) for column in range(first, depth + 1)]
        return Outputs(sum(heads) / len(heads), None)

    def _name(self, kind, level, column):
        """Returns the name of a part: the last of its level as in a U-Net, the others by their place."""
        return (
            f"{kind}_{level}" if level + column == self.settings.depth else f"nested_{kind}_{level}_{column}"
        )

    def _enlarge(self, level, column, signal):
        name = self._name("up", level, column)
        return Upsample(self.settings, self.settings.widths()[level], name=name)(signal)

    def _head(self, column):
        name = "mask" if column == self.settings.depth else f"nested_mask_{column}"
        return MaskHead(self.settings, name=name)
