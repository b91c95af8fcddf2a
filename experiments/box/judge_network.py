"""Is a candidate a nodule? Three views of it, small to wide, each through a network of its own, then joined.

After Dou et al., "Multilevel contextual 3-D CNNs for false positive reduction in pulmonary nodule detection"
(IEEE TBME 2017, doi:10.1109/TBME.2016.2613502): one network a size of surrounding, their answers weighed. Here all
views have as many pixels and another width in mm, and their features are joined before the last layer. The planes of
a view run from the candidate's first slice to its last, so each has a meaning of its own: they are channels, and the
convolutions are of two dimensions, at a tenth of the cost of three.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from auxseg.base.errors import InputError

NUM_VIEWS = 3
WIDTHS = (24, 48, 64)
"""Channels of the three convolutions."""


class View(nn.Module):
    """The features of one size of surrounding.

    Attributes:
        widths: channels of the three convolutions.
    """

    widths: tuple[int, ...] = WIDTHS

    @nn.compact
    def __call__(self, images):
        """Returns features float32 [N, 2 x last width] of images float32 [N, H, W, planes]."""
        signal = images
        for level, width in enumerate(self.widths):
            signal = nn.Conv(width, (3, 3), kernel_init=nn.initializers.he_normal(), name=f"conv_{level}")(
                signal
            )
            signal = nn.relu(signal)
            if level + 1 < len(self.widths):
                signal = nn.max_pool(signal, (2, 2), (2, 2))
        # The middle is the candidate; the mean is what surrounds it.
        rows, columns = (slice(n // 2 - 1, n // 2 + 1) for n in signal.shape[1:3])
        return jnp.concatenate([signal[:, rows, columns].max(axis=(1, 2)), signal.mean(axis=(1, 2))], axis=-1)


class CandidateNetwork(nn.Module):
    """One logit a candidate, from `NUM_VIEWS` views.

    Attributes:
        widths: of every `View`.
    """

    widths: tuple[int, ...] = WIDTHS

    @nn.compact
    def __call__(self, views):
        """Returns logits float32 [N] of views float32 [N, views, planes, H, W] in [0, 1].

        Raises:
            InputError: views of another rank or number.
        """
        if views.ndim != 5 or views.shape[1] != NUM_VIEWS:
            raise InputError(
                f"candidates: views of shape {views.shape}, expected [N, {NUM_VIEWS}, planes, H, W]"
            )
        images = jnp.moveaxis(views, 2, -1)
        features = [View(self.widths, name=f"view_{i}")(images[:, i]) for i in range(NUM_VIEWS)]
        hidden = nn.relu(nn.Dense(32, name="hidden")(jnp.concatenate(features, axis=-1)))
        return nn.Dense(1, name="answer")(hidden)[:, 0]
