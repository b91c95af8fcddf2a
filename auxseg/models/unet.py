"""The U-Net (Ronneberger et al., MICCAI 2015) with batch norm: two 3x3 convolutions a level, plain skips.

It is the Auxiliary U-Net's graph with ordinary convolutions and without squeeze-and-excitation and
auxiliary head; kernels are drawn as in its paper, normal with variance 2 / (values that one output sums).
Convolutions are padded, so that the mask has the image's size.

Parameters and statistics: a unit from C to F channels has 9CF weights, F biases and 4F of batch norm; with
the levels F, 2F, .. 16F, the transposed convolutions of 4 * 2F * F + F, and 4F + 4 of the last layer,
31,054,340 at base width 64 and 6,383,890 at 29.
"""

from __future__ import annotations

import jax

from auxseg.models.aux_unet import AuxUNet
from auxseg.models.initial import draw_variables


class UNet(AuxUNet):
    """The whole network; `settings` say separable, se and aux False (`auxseg.models.create_model`)."""

    def init(self, key, images):
        """Returns {'params', 'batch_stats'} with He's initial values; see `AuxUNet.init`."""
        shapes = jax.eval_shape(super(AuxUNet, self).init, key, images)
        return draw_variables(key, shapes, "he_normal")
