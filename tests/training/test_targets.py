"""Readers' votes as targets: one of them, drawn anew, or their share; by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from auxseg.base.classes import UNKNOWN
from auxseg.training import augment, targets

MASKS = jnp.asarray([[[128, 129], [131, UNKNOWN]], [[0, 1], [1, 0]]], jnp.uint8)
"""Votes of readers 0 and 1 of three: none, the first, both, and an unknown pixel; a case without votes."""
READERS = jnp.asarray([[3, 0b011], [0, 0]], jnp.uint8)


def decide(target, step=0):
    keys = augment.case_keys(1, jnp.int32(step), np.arange(2, dtype=np.int32))
    return targets.decide(MASKS, keys, READERS, target=target, nodule=1, num_classes=2)


def test_share_by_hand():
    masks, shares = decide("share")
    # Of three readers one is a third, two are at least half.
    np.testing.assert_array_equal(masks, [[[0, 0], [1, UNKNOWN]], [[0, 1], [1, 0]]])
    np.testing.assert_allclose(shares[0, ..., 1], [[0, 1 / 3], [2 / 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(shares[0, 0, 1], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(shares[1, ..., 1], MASKS[1])


def test_a_reader_is_drawn_anew_each_time_and_only_one_who_marked_the_nodule():
    one = jax.jit(lambda step: decide("reader", step)[0])
    seen = {tuple(np.asarray(one(step))[0].ravel().tolist()) for step in range(20)}
    assert seen == {(0, 1, 1, UNKNOWN), (0, 0, 1, UNKNOWN)}
    np.testing.assert_array_equal(one(3), one(3))
    np.testing.assert_array_equal(one(0)[1], MASKS[1])
