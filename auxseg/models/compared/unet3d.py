"""The 3D U-Net (Nam et al. 2018; the layers by Cicek et al., MICCAI 2016) on slabs around the slice.

It takes a slab of neighbouring slices as the channels of an image, the one to segment in the middle, and
gives the mask of that one. Each level has two 3x3x3 convolutions with batch norm and ReLU; between levels are
2x2x2 max-pooling and transposed 2x2x2 convolution. A slab is filled up to a multiple of 2^depth slices by
repeating its outermost ones. Nam et al. publish an abstract only: four levels, that is `depth` 3, and widths
doubled at each level are our reading of it.

Parameters and statistics: a unit from C to F channels has 27CF weights, F biases and 4F of batch norm, a
transposed convolution 8 * 2F * F + F, the last layer 4F + 4. With four levels 5,605,444 at base width 32 and
6,704,884 at 35.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from auxseg.base.errors import InputError
from auxseg.models import layers, volumes
from auxseg.models.aux_unet import check_images
from auxseg.models.blocks import Signal
from auxseg.models.compared.parts import ComparedNetwork, Context, Conv

_ZEROS = nn.initializers.zeros


class UNet3D(ComparedNetwork):
    """The whole network."""

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` of the middle slice, without class logits.

        Args:
            images: float [N, H, W, D] in [0, 1]: D slices, an odd number, as channels; H and W divisible by
                2^depth.
            train, weights, momentum: as in `AuxUNet.__call__`.

        Raises:
            InputError: images of another rank or size, or an even number of slices.
        """
        context, depth, widths = (
            Context(train, weights, momentum),
            self.settings.depth,
            self.settings.widths(),
        )
        volume, middle = self._to_volume(images)
        values, skips = volume.astype(self.settings.dtype), []
        for level in range(depth):
            skips.append(self._block(f"encoder_{level}", widths[level], values, context))
            values = max_pool_3d(skips[-1], lowering=self.settings.lowering)
        values = self._block("bottleneck", widths[depth], values, context)
        for level in reversed(range(depth)):
            enlarged = Upsample3D(self.settings, widths[level], name=f"up_{level}")(values)
            joined = jnp.concatenate([enlarged, skips[level]], -1)
            values = self._block(f"decoder_{level}", widths[level], joined, context)
        return self._finish(Signal(values[:, middle]))

    def _to_volume(self, images):
        """Returns the slab, filled up, as float [N, D, H, W, 1], and the place of its middle slice."""
        check_images(images, self.settings.depth, channels=images.shape[-1])
        slices = images.shape[-1]
        if slices % 2 == 0:
            raise InputError(f"model: a slab of {slices} slices, expected an odd number")
        missing = -slices % 2**self.settings.depth
        before = missing // 2
        filled = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (before, missing - before)), mode="edge")
        return jnp.moveaxis(filled, -1, 1)[..., None], before + slices // 2

    def _block(self, name, features, values, context):
        for index in range(2):
            part = f"{name}_conv_{index}"
            conv = Conv(self.settings, features, "3x3x3", axis_name=self.axis_name, name=part)
            values = nn.relu(conv(values, context))
        return values


class Upsample3D(nn.Module):
    """Transposed 2x2x2 convolution of stride 2, with a bias: a product and a reshape."""

    settings: object
    features: int

    @nn.compact
    def __call__(self, values):
        """Returns float [N, 2D, 2H, 2W, features] for float [N, D, H, W, C]."""
        examples, slices, rows, columns, channels = values.shape
        kernel = self.param("kernel", _ZEROS, (channels, 2, 2, 2, self.features)).astype(values.dtype)
        bias = self.param("bias", _ZEROS, (self.features,))
        products = values.reshape(-1, channels) @ kernel.reshape(channels, -1)
        products = products.reshape(examples, slices, rows, columns, 2, 2, 2, self.features)
        products = products.transpose(0, 1, 4, 2, 5, 3, 6, 7)
        enlarged = products.reshape(examples, 2 * slices, 2 * rows, 2 * columns, self.features)
        return (enlarged.astype(jnp.float32) + bias[None, None, None, None]).astype(values.dtype)


def max_pool_3d(values, *, lowering):
    """Returns the maximum of each 2x2x2 block, [N, D / 2, H / 2, W / 2, C]; two equal slices share the gradient.

    Args:
        values: float [N, D, H, W, C], D, H and W even.
        lowering: as in `layers.max_pool`.
    """
    slices = values.shape[1]
    flat = layers.max_pool(volumes.to_images(values), lowering=lowering)
    return volumes.from_images(volumes.halve_slices(flat, slices), slices // 2)
