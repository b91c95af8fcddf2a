"""What readers' votes become while a network trains: one reader, drawn anew each time, or their share.

A mask that trains may hold votes (`datasets.crops.VOTES`): the bits of the readers who mark nodule in a pixel.
"""

import jax
import jax.numpy as jnp

from auxseg.datasets.crops import MOST_VOTERS, VOTES

_STREAM = 2  # of a case's key, so that equal seeds do not give this and augmentation the same numbers


def decide(masks, keys, readers, *, target, nodule, num_classes):
    """Returns (masks uint8 [N, H, W], shares float32 [N, H, W, C] or None) in place of votes; other values stay.

    Args:
        masks: uint8 [N, H, W], values, `UNKNOWN` and votes.
        keys: from `augment.case_keys`, [N].
        readers: uint8 [N, 2], how many readers the case has, and the bits of those who marked it.
        target: 'reader': the mask of one of them; 'share': that of at least half of them, and the shares.
        nodule: value of nodules; a pixel without is 0.
        num_classes: C.
    """
    is_vote = (masks >= VOTES) & (masks < VOTES + 2**MOST_VOTERS)
    votes = (
        jnp.where(is_vote, masks - VOTES, 0)[..., None]
        >> jnp.arange(MOST_VOTERS, dtype=jnp.uint8)[None, None, None]
    )
    votes = votes & 1
    if target == "reader":
        chosen = jax.vmap(_draw)(keys, readers[:, 1])
        marked = jnp.take_along_axis(votes, chosen[:, None, None, None], axis=-1)[..., 0] > 0
        return _replace(masks, is_vote, marked, nodule), None
    share = votes.sum(axis=-1) / jnp.maximum(readers[:, 0], 1).astype(jnp.float32)[:, None, None]
    masks = _replace(masks, is_vote, share >= 0.5, nodule)
    hard = jax.nn.one_hot(masks, num_classes)
    is_nodule = (jnp.arange(num_classes) == nodule)[None, None, None]
    is_rest = (jnp.arange(num_classes) == 0)[None, None, None]
    soft = jnp.where(is_nodule, share[..., None], jnp.where(is_rest, 1.0 - share[..., None], 0.0))
    return masks, jnp.where(is_vote[..., None], soft, hard)


def _draw(key, bits):
    """Returns the number of one of the set bits, int32; 0 where there is none."""
    is_set = (bits >> jnp.arange(MOST_VOTERS, dtype=jnp.uint8)) & 1
    scores = jax.random.uniform(jax.random.fold_in(key, _STREAM), (MOST_VOTERS,), minval=1.0, maxval=2.0)
    return jnp.argmax(jnp.where(is_set > 0, scores, 0.0)).astype(jnp.int32)


def _replace(masks, is_vote, marked, nodule):
    value = jnp.where(marked, nodule, 0).astype(masks.dtype)
    return jnp.where(is_vote, value, masks)
