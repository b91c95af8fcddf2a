"""What labels say of each pixel, and what a network's logits are beside it: the sums that all losses are made of.

A pixel of value `UNKNOWN` says nothing: it is in no sum. A case whose source does not tell all classes apart says of
its values what they may mean (`meanings`): the probabilities of the classes that a value may mean are added up before
they are compared with it, so that nothing is learned of how they are shared out (the marginal loss: Shi et al. 2021,
arXiv:2007.03868). A pixel's values may also be shares (`shares`), as of readers who do not agree.

Letters: N examples, H rows, W columns, C classes and as many values.
"""

import jax
import jax.numpy as jnp
import optax

from auxseg.base.classes import UNKNOWN

_OUTSIDE = -1e9
"""A logit of a class that a value does not mean: finite, so that gradients are."""


def overlaps(logits, masks, meanings=None, shares=None):
    """Returns (overlap, predicted, reference) by value, float32 [N, C] each: soft sums over the known pixels.

    Args:
        logits: float32 [N, H, W, C].
        masks: integers [N, H, W], values and `UNKNOWN`.
        meanings: float32 [N, C, C], 1 where the value (second axis) may mean the class (third); None: each means
            its own class.
        shares: float32 [N, H, W, C], of each value in a pixel; None: all of it is the mask's.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    hard = jax.nn.one_hot(masks, logits.shape[-1], dtype=probabilities.dtype)
    if meanings is not None:
        probabilities = merge(probabilities, hard, meanings)
    known = (masks != UNKNOWN)[..., None]
    references = hard if shares is None else jnp.where(known, shares, 0.0)
    probabilities = jnp.where(known, probabilities, 0.0)
    overlap = (probabilities * references).sum(axis=(1, 2))
    return overlap, probabilities.sum(axis=(1, 2)), references.sum(axis=(1, 2))


def merge(probabilities, hard, meanings):
    """Returns the probabilities of values in place of classes, float32 [N, H, W, C].

    A pixel's own value takes all classes that it may mean; another value takes those of its classes that are left.
    So a nodule within a lung agrees with "lung or nodule", whichever lung it is.

    Args:
        probabilities: float32 [N, H, W, C], of classes.
        hard: float32 [N, H, W, C], 1 at the pixel's value.
        meanings: as `overlaps`.
    """
    exact = jax.lax.Precision.HIGHEST
    possible = jnp.einsum("nhwv,nvc->nhwc", hard, meanings, precision=exact)
    own = (probabilities * possible).sum(axis=-1, keepdims=True)
    others = jnp.einsum("nhwc,nvc->nhwv", probabilities * (1.0 - possible), meanings, precision=exact)
    return others + hard * own


def pixel_losses(logits, masks, meanings=None, shares=None, change=None):
    """Returns the cross-entropy of each pixel, float32 [N, H, W], 0 where unknown; arguments as `overlaps`.

    Args:
        change: function of the cross-entropy with a value, such as focal weighting; None: none.
    """
    change = change or (lambda losses: losses)
    known = masks != UNKNOWN
    if meanings is None and shares is None:
        labels = jnp.where(known, masks, 0).astype(jnp.int32)
        losses = change(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    else:
        by_value = jax.nn.logsumexp(logits, axis=-1, keepdims=True) - _value_logits(logits, meanings)
        hard = jax.nn.one_hot(masks, logits.shape[-1], dtype=logits.dtype)
        losses = (change(by_value) * (hard if shares is None else shares)).sum(axis=-1)
    return jnp.where(known, losses, 0.0)


def _value_logits(logits, meanings):
    """Returns by value the logarithm of the sum of the exponentials of its classes' logits, [N, H, W, C]."""
    if meanings is None:
        return logits
    inside = jnp.where(meanings[:, None, None] > 0, logits[..., None, :], _OUTSIDE)
    return jax.nn.logsumexp(inside, axis=-1)


def label_vectors(masks, num_classes, meanings=None):
    """Returns float32 [N, C]: 1.0 where the class has a pixel in the mask, 0.0 where it has none (section 3.2).

    It is -1.0 where that is not known: the mask has unknown pixels, or values that may mean the class or another.

    Args:
        masks: integers [N, H, W], values and `UNKNOWN`.
        num_classes: C.
        meanings: as `overlaps`.
    """
    present = jnp.stack([(masks == c).any(axis=(1, 2)) for c in range(num_classes)], axis=1)
    possible = (masks == UNKNOWN).any(axis=(1, 2))[:, None]
    if meanings is not None:
        alone = meanings.sum(axis=2, keepdims=True) == 1
        means = present[..., None] & (meanings > 0)
        possible = possible | means.any(axis=1)
        present = (means & alone).any(axis=1)
    return jnp.where(present, 1.0, jnp.where(possible, -1.0, 0.0))
