"""DeepSEED: a 3D encoder-decoder with squeeze-and-excitation that gives a score and a box at every anchor.

Li and Fan, "DeepSEED: 3D squeeze-and-excitation encoder-decoder convolutional neural networks for pulmonary nodule
detection", ISBI 2020 (arXiv:1904.03501), whose published settings are `PUBLISHED`. Two convolutions at full size; then
stages of residual blocks, each after 2x2x2 max-pooling, whose second convolution passes squeeze-and-excitation (ratio 16)
before the sum; twice a transposed convolution, the encoder's features of that size beside it, and residual blocks; where
the cube lies in the lungs as three more channels; dropout; two heads of 1x1x1 convolutions. The last bias of the scores
starts at the logit of 0.01, as focal loss wants it.

`SMALL` is for scans of 2 mm in place of 1 mm: a stage fewer keeps the anchors 4 mm apart, and it is narrower.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

NUM_ANCHORS, NUM_OFFSETS = 3, 4
SE_RATIO = 16
PRIOR = 0.01
"""Probability of a nodule that every anchor starts with."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Widths and depths of the network.

    Attributes:
        stem: channels of the two convolutions at full size.
        stages: channels of each stage of the encoder.
        blocks: residual blocks of each stage.
        back: channels of the two stages of the decoder, the last first.
        back_blocks: residual blocks of each of these two.
        head: hidden channels of the heads.
        dropout: share of the last features that training leaves out, whole channels.
    """

    stem: int
    stages: tuple[int, ...]
    blocks: tuple[int, ...]
    back: tuple[int, int]
    back_blocks: tuple[int, int]
    head: int
    dropout: float = 0.5

    @property
    def stride(self):
        """Voxels from one place of anchors to the next."""
        return 2 ** (len(self.stages) - 2)

    @property
    def step(self):
        """Voxels that the sides of a cube are a multiple of."""
        return 2 ** len(self.stages)


PUBLISHED = Settings(24, (32, 64, 64, 64), (2, 2, 3, 3), (128, 64), (3, 3), 64)
SMALL = Settings(8, (16, 24, 32), (1, 1, 1), (24, 24), (1, 1), 32, dropout=0.1)


class DeepSEED(nn.Module):
    """The whole network."""

    settings: Settings

    @nn.compact
    def __call__(self, volumes, places, *, train=False):
        """Returns (logits float32 [N, d, h, w, anchors], offsets float32 [N, d, h, w, anchors, 4]).

        Args:
            volumes: float32 [N, D, H, W, 1] in [0, 1]; sides are multiples of `Settings.step`.
            places: float32 [N, d, h, w, 3] in [-1, 1], where each place of anchors lies in the lungs; sides are those
                of the volumes over `Settings.stride`.
            train: take the batch's statistics, which needs `mutable=['batch_stats']`, and leave channels out, which
                needs a key 'dropout'.
        """
        settings = self.settings
        values = volumes
        for index in range(2):
            values = nn.relu(
                _norm(_conv(settings.stem, f"stem_{index}")(values), train, f"stem_norm_{index}")
            )
        features = []
        for stage, (width, count) in enumerate(zip(settings.stages, settings.blocks, strict=True)):
            values = nn.max_pool(values, (2, 2, 2), (2, 2, 2))
            values = self._stage(f"forward_{stage}", values, width, count, train)
            features.append(values)
        values = self._join(features[-2], values, (), train, 1)
        values = self._join(features[-3], values, (places,), train, 0)
        values = nn.Dropout(settings.dropout, broadcast_dims=(1, 2, 3), deterministic=not train)(values)
        return self._head("score", values, 1, -math.log((1 - PRIOR) / PRIOR))[..., 0], self._head(
            "offset", values, NUM_OFFSETS, 0.0
        )

    def _stage(self, name, values, width, count, train):
        for index in range(count):
            values = SqueezeBlock(width, name=f"{name}_{index}")(values, train)
        return values

    def _join(self, skip, values, more, train, place):
        """Returns the features of the stage of the decoder that ends at the size of `skip`."""
        up = nn.ConvTranspose(values.shape[-1], (2, 2, 2), (2, 2, 2), name=f"up_{place}")(values)
        up = nn.relu(_norm(up, train, f"up_norm_{place}"))
        joined = jnp.concatenate([up, skip, *more], axis=-1)
        width, count = self.settings.back[place], self.settings.back_blocks[place]
        return self._stage(f"back_{place}", joined, width, count, train)

    def _head(self, name, values, count, bias):
        hidden = nn.relu(nn.Dense(self.settings.head, name=f"{name}_hidden")(values))
        start = nn.initializers.constant(bias)
        found = nn.Dense(NUM_ANCHORS * count, bias_init=start, name=name)(hidden)
        return found.reshape(*found.shape[:-1], NUM_ANCHORS, count)


class SqueezeBlock(nn.Module):
    """A residual block: two convolutions, squeeze-and-excitation, the sum with the input or its projection, ReLU."""

    width: int

    @nn.compact
    def __call__(self, values, train):
        """Returns float [N, D, H, W, width] of [N, D, H, W, C]."""
        shortcut = values
        if values.shape[-1] != self.width:
            shortcut = _norm(nn.Dense(self.width, name="shortcut")(values), train, "shortcut_norm")
        inner = nn.relu(_norm(_conv(self.width, "conv_0")(values), train, "norm_0"))
        inner = _norm(_conv(self.width, "conv_1")(inner), train, "norm_1")
        means = inner.mean(axis=(1, 2, 3))
        hidden = nn.relu(nn.Dense(max(1, self.width // SE_RATIO), name="squeeze")(means))
        scale = jax.nn.sigmoid(nn.Dense(self.width, name="excite")(hidden))
        return nn.relu(inner * scale[:, None, None, None] + shortcut)


def _conv(width, name):
    return nn.Conv(width, (3, 3, 3), name=name)


def _norm(values, train, name):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)(values)
