"""Bi-directional U-Net with Mish (Bhattacharyya et al. 2023), which appears to be U-Det (arXiv:2003.09293).

A U-Net with Mish and without batch norm, dropout at the fourth level, and in place of the skips a
bi-directional feature pyramid over the five encoder outputs: each passes a 1x1 convolution to as many channels
as the first level has (64 at the published width); then a way down to the finest level and a way up again,
of eight nodes. A node adds its inputs (enlarged by repetition, or reduced by maximum) and is a depthwise 3x3
convolution, batch norm and ReLU. The decoder begins at the bottleneck itself; the fused features of the four
finer levels are its skips, so that the eighth node, the coarsest of the way up, has no reader: it belongs
to the pyramid, and to the counts, but takes no part in the mask and is not trained.

Parameters and statistics: a convolution from C to F channels 9CF + F, the transposed ones as in the U-Net but
for skips of B channels; a lateral from C channels CB + 4B, a node 9B + 4B, the last layer 4F + 4. With B = F,
28,585,220 at base width 64 and 6,710,543 at 31.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from auxseg.models import blocks
from auxseg.models.blocks import Signal
from auxseg.models.compared.parts import ComparedNetwork, Context, Conv


class BidirectionalUNet(ComparedNetwork):
    """The whole network.

    Attributes:
        dropout: share of the fourth level's features that training leaves out.
    """

    dropout: float = 0.5

    DROPS = True
    """Training gives `keys` (`steps.train_step`)."""

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None, keys=None):
        """Returns `Outputs` without class logits; the arguments are those of `AuxUNet.__call__` and one more.

        Args:
            images, train, weights, momentum: as there.
            keys: with `train`, one random key an example [N], for dropout; None leaves nothing out.
        """
        context, depth = Context(train, weights, momentum), self.settings.depth
        values, outputs = self._start(images).values, []
        for level, width in enumerate(self.settings.widths()):
            name = "bottleneck" if level == depth else f"encoder_{level}"
            values = self._mish_block(name, width, values, context)
            if level == min(3, depth - 1) and train and keys is not None:
                values = drop(values, keys, self.dropout)
            outputs.append(values)
            if level < depth:
                values = blocks.max_pool(Signal(values), lowering=self.settings.lowering)
        skips = self._pyramid(outputs, context)
        for level in reversed(range(depth)):
            enlarged = self._upsample(level, Signal(values)).values
            joined = jnp.concatenate([enlarged, skips[level]], -1)
            values = self._mish_block(f"decoder_{level}", self.settings.widths()[level], joined, context)
        return self._finish(Signal(values))

    def _mish_block(self, name, features, values, context):
        for index in range(2):
            conv = Conv(self.settings, features, norm=False, name=f"{name}_conv_{index}")
            values = mish(conv(values, context))
        return values

    def _pyramid(self, outputs, context):
        """Returns the fused features of each level, float [N, h, w, base_width], the finest first."""
        lateral = [self._relu_conv(f"lateral_{level}", "1x1", o, context) for level, o in enumerate(outputs)]
        top = len(lateral) - 1
        down = {top: lateral[top]}
        for level in reversed(range(top)):
            down[level] = self._node(f"down_{level}", lateral[level] + enlarge(down[level + 1]), context)
        fused = [down[0]]
        for level in range(1, top + 1):
            reduced = blocks.max_pool(Signal(fused[-1]), lowering=self.settings.lowering)
            between = down[level] if level < top else 0.0
            fused.append(self._node(f"fuse_{level}", lateral[level] + between + reduced, context))
        return fused

    def _node(self, name, values, context):
        return self._relu_conv(name, "depthwise", values, context)

    def _relu_conv(self, name, kind, values, context):
        width = self.settings.base_width
        conv = Conv(self.settings, width, kind, biased=False, axis_name=self.axis_name, name=name)
        return nn.relu(conv(values, context))


def mish(values):
    """Returns x tanh(softplus(x)) (Misra, arXiv:1908.08681), same shape and dtype; computed in float32."""
    wide = values.astype(jnp.float32)
    return (wide * jnp.tanh(nn.softplus(wide))).astype(values.dtype)


def enlarge(values):
    """Returns each pixel four times, [N, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(values, 2, 1), 2, 2)


def drop(values, keys, share):
    """Returns values with a share of them 0, by each example's own key, and the others divided by 1 - share.

    Args:
        values: float [N, ...].
        keys: random keys [N].
        share: from 0 to under 1.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - share, values.shape[1:]))(keys)
    return jnp.where(kept, values / (1.0 - share), 0.0).astype(values.dtype)
