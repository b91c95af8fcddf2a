"""The network that judges candidates, and the views that it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.prediction import nodule_candidates
from experiments.box import judge_views
from experiments.box.judge_network import CandidateNetwork


def test_one_logit_a_candidate_and_its_parameters():
    network = CandidateNetwork((2, 3, 4))
    views = jnp.zeros((5, 3, 5, 24, 24))
    params = jax.jit(network.init)(jax.random.key(0), views)["params"]
    assert network.apply({"params": params}, views).shape == (5,)
    convolutions = 9 * (5 * 2 + 2 * 3 + 3 * 4) + 2 + 3 + 4
    hidden = 3 * (2 * 4) * 32 + 32
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3 * convolutions + hidden + 32 + 1


def test_every_view_counts():
    network = CandidateNetwork((2, 3, 4))
    views = jax.random.uniform(jax.random.key(1), (1, 3, 5, 24, 24))
    params = jax.jit(network.init)(jax.random.key(0), views)["params"]

    def answer(views):
        return network.apply({"params": params}, views)[0]

    moved = np.abs(jax.jit(jax.grad(answer))(views)).sum(axis=(0, 2, 3, 4))
    assert (moved > 0).all()


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="expected"):
        CandidateNetwork().init(jax.random.key(0), jnp.zeros((1, 2, 5, 24, 24)))


def test_planes_lie_within_the_candidate():
    assert judge_views.choose_planes(3, 11).tolist() == [3, 5, 7, 9, 11]
    assert judge_views.choose_planes(4, 4).tolist() == [4] * 5
    assert judge_views.choose_planes(0, 1).tolist() == [0, 0, 0, 1, 1]


def test_views_have_the_same_middle_and_their_own_width():
    spacing = 0.5
    rows, columns = np.meshgrid(np.arange(200), np.arange(200), indexing="ij")
    ramp = ((columns - 100) * spacing).astype(np.float32)  # value: mm to the right of column 100
    views = judge_views.cut_views(np.stack([ramp] * 5), (90.0, 100.0), (spacing, spacing))
    assert views.shape == (3, 5, 24, 24)
    for view, width in zip(views, judge_views.WIDTHS_MM, strict=True):
        assert view[0, 0, -1] - view[0, 0, 0] == pytest.approx(width * 23 / 24, rel=1e-3)
        assert view.mean() == pytest.approx(0.0, abs=0.3)
    mirrored = judge_views.cut_views(
        np.stack([ramp] * 5), (90.0, 100.0), (spacing, spacing), matrix=np.diag((1, -1))
    )
    np.testing.assert_allclose(mirrored, views[..., ::-1], atol=1e-3)


def test_views_of_a_candidate_at_the_edge():
    volume = np.full((6, 64, 64), -850, np.int16)
    volume[2:5, 0:4, 60:64] = 100
    marked = np.where(volume > 0, 255, 0).astype(np.uint8)
    (candidate,) = nodule_candidates.find_candidates(marked, lambda i: volume[i], (2.0, 0.7, 0.7), above=0.5)
    views = judge_views.candidate_views(lambda i: volume[i], candidate, (2.0, 0.7, 0.7))
    assert views.shape == (3, 5, 24, 24) and views.dtype == np.float32
    np.testing.assert_allclose(views[:2, :, 12, 12], 1100 / 1400, atol=0.01)
    assert views[2, :, :4].max() < 0.2
