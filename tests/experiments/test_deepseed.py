"""DeepSEED: anchors and losses by hand, shapes and parameters, cubes of scans, candidates of a whole scan."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auxseg.ct import geometry
from auxseg.scoring import froc
from experiments.deepseed import anchors, model, study, train, volumes

GRID = anchors.Grid((2, 2, 2), 4, (4.0, 8.0))


def test_places_lie_in_the_middle_of_their_voxels():
    cubes = GRID.cubes()
    assert cubes.shape == (2, 2, 2, 2, 4)
    assert cubes[0, 0, 0].tolist() == [[1.5, 1.5, 1.5, 4.0], [1.5, 1.5, 1.5, 8.0]]
    assert cubes[1, 0, 1, 1].tolist() == [5.5, 1.5, 5.5, 8.0]


def test_overlap_by_hand():
    whole, half, apart = (0, 0, 0, 2), (0, 0, 1, 2), (0, 0, 2, 2)
    inside = (0, 0, 0, 1)
    found = anchors.overlap([whole], [whole, half, apart, inside])[0]
    np.testing.assert_allclose(found, [1.0, 4 / 12, 0.0, 1 / 8], rtol=1e-6)


def test_targets_by_hand_and_back():
    nodule = (2.5, 1.5, 1.5, 4.0)  # one voxel above the first place, as large as its smaller anchor
    kind, targets = anchors.encode(GRID, [nodule])
    assert kind[0, 0, 0, 0] == anchors.POSITIVE  # 3 x 4 x 4 of 80 voxels: 0.6
    np.testing.assert_allclose(targets[0, 0, 0, 0], [0.25, 0.0, 0.0, 0.0])
    assert kind[0, 0, 0, 1] == anchors.IGNORED  # 64 of 512: 0.125
    assert kind[1, 1, 1, 0] == anchors.NEGATIVE and (kind == anchors.POSITIVE).sum() == 1
    decoded = anchors.decode(GRID, targets)
    np.testing.assert_allclose(decoded[0, 0, 0, 0], nodule, rtol=1e-6)


def test_a_nodule_far_from_every_anchor_has_the_best_one():
    nodule = (3.5, 3.5, 3.5, 20.0)
    kind, targets = anchors.encode(GRID, [nodule])
    assert (kind == anchors.POSITIVE).sum() == 1
    (place,) = np.argwhere(kind == anchors.POSITIVE)
    np.testing.assert_allclose(targets[tuple(place)][3], math.log(20 / 8), rtol=1e-6)
    np.testing.assert_allclose(anchors.decode(GRID, targets)[tuple(place)], nodule, rtol=1e-6)


def test_two_small_nodules_beside_one_place_are_both_learned():
    kind, targets = anchors.encode(GRID, [(1.5, 1.5, 1.5, 4.0), (5.5, 5.5, 5.5, 1.0)])
    decoded = anchors.decode(GRID, targets)[kind == anchors.POSITIVE]
    assert {round(float(each[3]), 3) for each in decoded} == {4.0, 1.0}


def test_without_a_nodule_all_anchors_are_negative():
    kind, targets = anchors.encode(GRID, np.zeros((0, 4)))
    assert (kind == anchors.NEGATIVE).all() and not targets.any()


def test_of_overlapping_findings_the_highest_stays():
    cubes = [(0, 0, 0, 2), (0, 0, 0.5, 2), (9, 9, 9, 2), (0, 0, 1.9, 2)]
    # The last one overlaps the first by 0.4 of 15.6, under a tenth, and what overlaps it more is gone.
    assert anchors.suppress(np.array(cubes), [0.5, 0.4, 0.9, 0.3]).tolist() == [2, 0, 3]
    assert anchors.suppress(np.zeros((0, 4)), []).tolist() == []


def test_focal_loss_by_hand():
    kinds = jnp.array([anchors.POSITIVE, anchors.NEGATIVE, anchors.IGNORED], jnp.int8)
    zero = anchors.focal_loss(logits=jnp.zeros(3), kinds=kinds)
    # Each of the two that count: 0.5 * (1 - 0.5)^2 * log 2; one positive.
    assert float(zero) == pytest.approx(2 * 0.5 * 0.25 * math.log(2))
    sure = anchors.focal_loss(logits=jnp.array([9.0, -9.0, 9.0]), kinds=kinds)
    assert float(sure) < 1e-6
    two = anchors.focal_loss(logits=jnp.zeros(2), kinds=jnp.full(2, anchors.POSITIVE, jnp.int8))
    assert float(two) == pytest.approx(0.5 * 0.25 * math.log(2))
    none = anchors.focal_loss(logits=jnp.zeros(4), kinds=jnp.full(4, anchors.NEGATIVE, jnp.int8))
    assert float(none) == pytest.approx(4 * 0.5 * 0.25 * math.log(2))


def test_offset_loss_by_hand():
    kinds = jnp.array([anchors.POSITIVE, anchors.NEGATIVE, anchors.POSITIVE], jnp.int8)
    targets = jnp.zeros((3, 4))
    offsets = jnp.array([[0.5, 0, 0, 2.0], [9.0, 9, 9, 9], [0, 0, 0, 0]])
    # 0.5 * 0.25 + (2 - 0.5) of the first, nothing of the third: their mean.
    assert float(anchors.offset_loss(offsets=offsets, targets=targets, kinds=kinds)) == pytest.approx(
        1.625 / 2
    )
    nothing = jnp.full(3, anchors.NEGATIVE, jnp.int8)
    assert float(anchors.offset_loss(offsets=offsets, targets=targets, kinds=nothing)) == 0.0
    gradient = jax.grad(lambda x: anchors.offset_loss(offsets=x, targets=targets, kinds=nothing))(offsets)
    assert not np.asarray(gradient).any()


def count_by_hand(settings):
    """Returns the parameters: a 3x3x3 convolution has 27CF + F, a norm 2F, a dense layer CF + F."""

    def dense(channels, width):
        return channels * width + width

    def conv(channels, width):
        return 27 * channels * width + width + 2 * width

    def block(channels, width):
        squeezed = max(1, width // 16)
        gate = dense(width, squeezed) + dense(squeezed, width)
        shortcut = dense(channels, width) + 2 * width if channels != width else 0
        return conv(channels, width) + conv(width, width) + gate + shortcut

    def stage(channels, width, count):
        return block(channels, width) + (count - 1) * block(width, width)

    def up(channels):
        return 8 * channels * channels + channels + 2 * channels

    widths = (settings.stem, *settings.stages)
    total = conv(1, settings.stem) + conv(settings.stem, settings.stem)
    total += sum(
        stage(*pair, count) for *pair, count in zip(widths, widths[1:], settings.blocks, strict=False)
    )
    last, before, first = widths[-1], widths[-2], widths[-3]
    total += up(last) + stage(last + before, settings.back[1], settings.back_blocks[1])
    total += up(settings.back[1]) + stage(
        settings.back[1] + first + 3, settings.back[0], settings.back_blocks[0]
    )
    heads = 2 * dense(settings.back[0], settings.head) + dense(settings.head, 3) + dense(settings.head, 12)
    return total + heads


@pytest.mark.parametrize(("settings", "side"), [(model.SMALL, 16), (model.PUBLISHED, 32)])
def test_shapes_and_parameters(settings, side):
    network, places = model.DeepSEED(settings), side // settings.stride
    inputs = (jnp.zeros((2, side, side, side, 1)), jnp.zeros((2, places, places, places, 3)))
    variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    logits, offsets = jax.eval_shape(network.apply, variables, *inputs)
    assert logits.shape == (2, places, places, places, 3) and offsets.shape == (*logits.shape, 4)
    counted = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert counted == count_by_hand(settings)
    assert settings.stride == {16: 2, 32: 4}[side]


def make_volume():
    """Returns a scan of 2 mm voxels, 24 of them to a side, with a bright nodule of 10 mm in its middle."""
    hu = np.full((24, 24, 24), -800, np.int16)
    hu[10:15, 10:15, 10:15] = 40
    where = geometry.Geometry((24, 24, 24), (2.0, 2.0, 2.0), (-10.0, 5.0, 100.0))
    lungs = np.zeros(hu.shape, bool)
    lungs[4:20, 4:20, 4:20] = True
    return volumes.create_volume("a", hu, lungs, where, [(14.0, 29.0, 124.0, 10.0)], 2.0)


def test_a_volume_is_cut_to_its_lungs_and_places_go_back_to_millimetres():
    volume = make_volume()
    assert volume.start_zyx == (0, 0, 0)  # a margin of 10 mm: five voxels around the fourth
    assert volume.values.shape == (24, 24, 24) and volume.lungs[12, 12, 12] and not volume.lungs[0, 0, 0]
    assert volume.nodules.tolist() == [[12.0, 12.0, 12.0, 5.0]]
    np.testing.assert_allclose(volume.to_mm(volume.nodules), [[14.0, 29.0, 124.0, 10.0]])
    assert volume.values[12, 12, 12] == pytest.approx(1240 / 1800, abs=1e-3)
    assert volume.values[0, 0, 0] == pytest.approx(170 / 255, abs=1e-3)


def test_resampling_by_hand():
    line = np.array([0.0, 10.0, 20.0, 30.0]).reshape(4, 1, 1)
    found = volumes.resample(line, (1.0, 1.0, 1.0), 2.0)[:, 0, 0]
    assert found.tolist() == [0.0, 20.0]
    np.testing.assert_allclose(
        volumes.resample(line, (3.0, 1.0, 1.0), 2.0)[:, 0, 0], [0, 20 / 3, 40 / 3, 20, 80 / 3]
    )


def test_cubes_beyond_the_scan_are_filled_and_nodules_count_from_the_corner():
    volume = make_volume()
    cube = volumes.cut(volume, np.array([-4, 8, 8]), 16)
    assert cube.shape == (16, 16, 16) and (cube[:4] == np.float32(volumes.OUTSIDE)).all()
    np.testing.assert_array_equal(cube[4:], volume.values[0:12, 8:24, 8:24].astype(np.float32))
    assert volumes.nodules_in(volume, (-4, 8, 8), 16).size == 0  # 16 from the corner: just beyond it
    assert volumes.nodules_in(volume, (0, 8, 8), 16).tolist() == [[12.0, 4.0, 4.0, 5.0]]
    generator = np.random.default_rng(0)
    for _ in range(20):
        corner = volumes.draw_corner(volume, 16, generator, at_nodule=True)
        assert len(volumes.nodules_in(volume, corner, 16)) == 1


def test_the_cores_of_tiles_cover_a_scan_once():
    seen = np.zeros((13, 9, 8), int)
    for corner in volumes.tile(seen.shape, 8, 2):
        low = corner + 2
        seen[tuple(slice(a, a + 4) for a in low)] += 1
    assert (seen == 1).all()


def test_a_whole_scan_s_candidates_are_where_the_network_puts_them(monkeypatch):
    monkeypatch.setattr(train, "LOOK_SIDE", 16)
    monkeypatch.setattr(train, "LOOK_MARGIN", 4)
    volume, grid = make_volume(), train.create_grid(16)

    def forward(cubes, places):
        """Sees the bright nodule, wherever it lies, and nothing else."""
        bright = np.argwhere((cubes[0, ..., 0] > 0.68) & (cubes[0, ..., 0] < 0.7))
        scores = np.zeros((1, 8, 8, 8, 3), np.float32)
        offsets = np.zeros((1, 8, 8, 8, 3, 4), np.float32)
        if len(bright) == 125:
            centre = bright.mean(axis=0)
            place = tuple(np.floor(centre / 2).astype(int))
            scores[(0, *place, 1)] = 0.9
            offsets[(0, *place, 1)][:3] = (centre - grid.cubes()[(*place, 1)][:3]) / 5.0
        return scores, offsets

    found = train.find(volume, forward)
    np.testing.assert_allclose(found, [[14.0, 29.0, 124.0, 0.9]], rtol=1e-5)


def test_a_few_steps_lower_the_loss_and_weights_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "TRAIN_SIDE", 16)
    recipe = train.Recipe(steps=6, batch=2, learning_rate=1e-2)
    variables, losses = train.train([make_volume()], recipe)
    assert np.isfinite(losses).all() and min(losses[3:]) < losses[0]
    train.write_weights(tmp_path / "a.npz", variables)
    read = train.read_weights(tmp_path / "a.npz")
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_the_tables_have_counts_and_ranks():
    scan = study.Judged(make_volume(), np.array([(14.0, 29.0, 124.0, 10.0)]), np.zeros((0, 4)))
    found = {"a": np.array([(14.0, 29.0, 123.0, 0.4), (0.0, 0.0, 0.0, 0.9), (50.0, 0.0, 0.0, 0.1)])}
    (matched,) = study.match(found, [scan])
    real = study.describe_real(matched)
    assert real == {"nodules": 1, "found": 1, "false": 2, "false_above": 1}
    missed = study.describe_real(froc.Matches(np.array([np.nan]), np.array([0.9])))
    assert missed["false_above"] is None
    phantom = {"detector": "DeepSEED", "seed": 1, **study.describe([matched])}
    rows = [
        {"scan": "b", "trained": study.ALONE, "seed": 1, **real},
        {"scan": "c", "trained": "x", "seed": 2, **missed},
    ]
    table = list(study.format_tables({"phantom": [phantom], "real": rows}))
    assert "| DeepSEED | 1 | 1 | 1 | 0 | 0 | 0 | 1 | 1 | 1 | 1 | 1 | too few |" in table
    assert table[-2:] == [
        "| b | phantom alone | 1 | 1 of 1 | 1 | 2 |",
        "| c | x | 2 | 0 of 1 | not found | 1 |",
    ]
