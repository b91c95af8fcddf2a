"""The Auxiliary U-Net in three dimensions: 3x3x3 depthwise-separable units on a slab around the slice.

Section 5 of the paper names this extension and does not describe it; this is our reading. Blocks, squeeze-and-excitation
(its means are over the whole slab), auxiliary head and widths are those of `aux_unet`, and so are the settings. A slab
comes as the channels of an image, and the mask and the classes of its middle slice go out, as with `unet3d`.

A CT has fewer slices than rows: slices are halved together with rows and columns only while two or more remain, that is
at the first `halvings` levels (7 slices, filled up to 8 by repeating the outermost: 8, 4, 2, 2, 2), and below that
pooling and transposed convolution are within slices.

Weights are named as in `aux_unet`, with these shapes of their own:

    depthwise    [3, 9, C]           slices, then rows and columns
    ordinary     [3, 3, 3, C, F]     where `separable` is off
    up_N         kernel [C, 2, 2, 2, F] at the first `halvings` levels, [C, 2, 2, F] below

Slices lie one below the other in all arrays, [N, D * H, W, C]: what works pixel by pixel, in blocks of 2x2 or over all
pixels is then that of `aux_unet`.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from auxseg.base.errors import InputError
from auxseg.models import blocks, volumes
from auxseg.models.aux_unet import AuxHead, MaskHead, NetworkBase, Upsample, check_images
from auxseg.models.blocks import Signal
from auxseg.models.interface import Outputs
from auxseg.models.settings import Settings

_ZEROS = nn.initializers.zeros


class AuxUNet3D(NetworkBase):
    """The whole network; `auxseg.models.create_model` builds it from a config."""

    @nn.compact
    def __call__(self, images, *, train=False, weights=None, momentum=None):
        """Returns `Outputs` of the middle slice.

        Args:
            images: float [N, H, W, D] in [0, 1]: D slices as channels, of an even number the later of the two in
                the middle is segmented; H and W divisible by 2^depth.
            train, weights, momentum: as in `AuxUNet.__call__`.

        Raises:
            InputError: images of another rank or size, or a slice alone.
        """
        lowering, depth, widths = self.settings.lowering, self.settings.depth, self.settings.widths()
        context = (train, weights, momentum)
        halvings = count_halvings(images.shape[-1], depth)
        values, slices, middle = self._stack(images, halvings)
        signal, skips = Signal(values.astype(self.settings.dtype)), []
        for level in range(depth):
            block = self._block(f"encoder_{level}", widths[level], slices >> min(level, halvings))
            skips.append(block((signal,), *context))
            pooled = blocks.max_pool(skips[-1], lowering=lowering)
            signal = Signal(volumes.halve_slices(pooled, slices >> level) if level < halvings else pooled)
        signal = self._block("bottleneck", widths[depth], slices >> halvings)((signal,), *context)
        class_logits = AuxHead(self.settings, name="aux")(signal) if self.settings.aux else None
        for level in reversed(range(depth)):
            left = slices >> min(level, halvings)
            enlarge = Upsample if level >= halvings else UpsampleSlices
            signal = enlarge(self.settings, widths[level], name=f"up_{level}")(signal)
            if level < halvings:
                signal = Signal(_interleave(signal.values, left // 2))
            signal = self._block(f"decoder_{level}", widths[level], left)((signal, skips[level]), *context)
        return Outputs(
            MaskHead(self.settings, name="mask")(_take_slice(signal, slices, middle)), class_logits
        )

    def _stack(self, images, halvings):
        """Returns the slab, filled up, as [N, D * H, W, 1], D, and the place of its middle slice."""
        check_images(images, self.settings.depth, channels=images.shape[-1])
        examples, rows, columns, slices = images.shape
        if slices < 2:
            raise InputError("model: a slice alone, expected a slab of 3 or more (data.slab)")
        missing = -slices % 2**halvings
        before = missing // 2
        filled = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (before, missing - before)), mode="edge")
        stacked = jnp.moveaxis(filled, -1, 1).reshape(examples, (slices + missing) * rows, columns, 1)
        return stacked, slices + missing, before + slices // 2


def count_halvings(slices, depth):
    """Returns at how many levels slices are halved: two or more remain, and at most `depth`."""
    return min(depth, ((slices + 1) // 2).bit_length() - 1)


class UpsampleSlices(nn.Module):
    """Transposed 2x2x2 convolution of stride 2, the two slices still side by side in the channels."""

    settings: Settings
    features: int

    @nn.compact
    def __call__(self, signal):
        """Returns a `Signal` of twice the rows and columns and of 2 * `features` channels; see `_interleave`."""
        channels = blocks.num_channels(signal)
        kernel = self.param("kernel", _ZEROS, (channels, 2, 2, 2, self.features))
        bias = self.param("bias", _ZEROS, (self.features,))
        flat = jnp.moveaxis(kernel, 1, 3).reshape(channels, 2, 2, 2 * self.features)
        return Signal(blocks.upsample(signal, flat, jnp.tile(bias, 2), lowering=self.settings.lowering))


def _interleave(images, slices):
    """Returns [N, 2 * slices * H, W, F] of images [N, slices * H, W, 2F]: each slice gives two."""
    examples, rows, columns, channels = images.shape
    parted = images.reshape(examples, slices, rows // slices, columns, 2, channels // 2)
    return parted.transpose(0, 1, 4, 2, 3, 5).reshape(examples, 2 * rows, columns, channels // 2)


def _take_slice(signal, slices, index):
    """Returns the `Signal` of one slice, [N, H, W, C]."""
    return signal._replace(values=volumes.from_images(signal.values, slices)[:, index])
