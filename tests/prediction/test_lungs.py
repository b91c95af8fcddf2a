"""The clean-up of whole lungs, step by step on small volumes with results by hand."""

import dataclasses

import chest
import numpy as np
import pytest

from auxseg.prediction import airway, lungs

LUNG, TISSUE, GAS = -850, 40, -1000
SPACING = (2.5, 2.5, 2.5)


def draw_cells():
    """Returns cells and HU: a left and a right lung, and loose pieces in between and around."""
    cells = np.zeros((10, 20, 40), np.uint8)
    cells[:, 5:15, 25:37] = 1
    cells[:, 5:15, 3:15] = 2
    hu = np.where(cells > 0, LUNG, TISSUE).astype(np.int16)
    return cells, hu


def test_a_patch_of_the_other_lung_changes_sides():
    cells, hu = draw_cells()
    cells[3:5, 8:11, 5:8] = 1
    chosen = lungs.choose_pieces(cells, hu)
    assert (chosen[:, :, :20] != 1).all() and (chosen[3:5, 8:11, 5:8] == 2).all()


def test_a_patch_in_the_only_lung_is_no_lung_of_its_own():
    cells, hu = draw_cells()
    cells[cells == 1] = 0
    cells[3:5, 8:10, 5:8] = 1
    chosen = lungs.choose_pieces(cells, hu)
    assert not (chosen == 1).any() and (chosen[3:5, 8:10, 5:8] == 2).all()


def test_loose_pieces_are_dropped_unless_they_are_large_and_no_gas():
    cells, hu = draw_cells()
    cells[0:2, 0:2, 0:2] = 2
    cells[:, 16:19, 3:15] = 2  # a lobe that a row of tissue parts from its lung: 30 % of it
    hu[:, 16:19, 3:15] = LUNG
    chosen = lungs.choose_pieces(cells, hu)
    assert not chosen[0:2, 0:2, 0:2].any() and (chosen[:, 16:19, 3:15] == 2).all()
    hu[:, 16:19, 3:15] = GAS
    assert not lungs.choose_pieces(cells, hu)[:, 16:19, 3:15].any()


def test_a_patch_that_a_thin_bridge_ties_to_the_wrong_lung_changes_sides():
    cells = np.zeros((12, 24, 40), np.uint8)
    cells[:, 4:20, 21:37] = 1
    cells[:, 4:20, 3:20] = 2
    cells[5:8, 4:7, 12:20] = 1  # in front, in the right lung
    cells[6, 4:6, 20] = 1
    right = np.zeros(cells.shape, bool)
    right[5:8, 4:7, 12:20] = True
    repaired = lungs.repair_sides(cells)
    assert (repaired[right] == 2).all()
    assert (repaired[:, :, 21:] == cells[:, :, 21:]).all() and (repaired[:, :, :12] == cells[:, :, :12]).all()


def draw_body():
    """Returns HU [4, 20, 30]: a wall around air, a gap and a table below it."""
    hu = np.full((4, 20, 30), GAS, np.int16)
    hu[:, 2:13, 4:26] = TISSUE
    hu[:, 5:10, 7:23] = LUNG
    hu[:, 16:19, :] = 200
    return hu


EVERYTHING = (slice(0, 20), slice(0, 30))


def test_inside_is_what_the_body_encloses():
    inside = lungs.find_inside(draw_body(), EVERYTHING, 3)
    assert inside[:, 5:10, 7:23].all()
    assert not inside[:, 14:16].any() and not inside[:, 16:].any() and not inside[:, :2].any()


def test_a_wall_that_the_field_cuts_off_still_encloses():
    hu = draw_body().repeat(2, 1)[:, :, 8:]
    assert lungs.find_inside(hu, (slice(0, 40), slice(0, 22)), 3)[:, 10:20, :15].all()
    beyond = np.pad(hu, ((0, 0), (0, 0), (5, 0)), constant_values=-1024)
    assert lungs.find_inside(beyond, (slice(0, 40), slice(5, 27)), 3)[:, 10:20, 5:20].all()


def test_edges_move_to_tissue_and_not_through_a_wall():
    image = np.full((9, 20), TISSUE, np.int16)
    image[2:7, 3:10] = LUNG
    image[2:7, 12:18] = GAS  # bowel behind a wall of two pixels
    mask = np.zeros((9, 20), np.uint8)
    mask[3:6, 4:9] = 1
    free = np.zeros(mask.shape, bool)
    added, removed = lungs.move_edges(mask, image, free, (1.0, 1.0))
    assert added > 0 and removed == 0
    assert (mask[3:6, 4:9] == 1).all() and not mask[:, 10:].any()
    assert mask[4, 3] == 1 and not mask[4, :2].any()


def test_edges_leave_tissue_that_a_coarse_mask_took():
    image = np.full((12, 12), TISSUE, np.int16)
    image[:, :6] = LUNG
    mask = np.full((12, 12), 0, np.uint8)
    mask[2:10, 1:8] = 2
    _, removed = lungs.move_edges(mask, image, np.zeros(mask.shape, bool), (1.0, 1.0))
    assert removed > 0 and not mask[:, 7:].any() and (mask[3:9, 1:5] == 2).all()


def test_pixels_larger_than_the_step_leave_edges_as_they_are():
    mask = np.zeros((6, 6), np.uint8)
    mask[2:4, 2:4] = 1
    before = mask.copy()
    image = np.full((6, 6), LUNG, np.int16)
    assert lungs.move_edges(mask, image, np.zeros(mask.shape, bool), (3.0, 3.0)) == (0, 0)
    np.testing.assert_array_equal(mask, before)


def test_small_holes_are_filled_and_domes_and_airways_are_not():
    mask = np.zeros((40, 60), np.uint8)
    mask[2:38, 2:58] = 1
    mask[5:7, 5:7] = 0  # 4 mm2: a vessel
    mask[12:36, 20:50] = 0  # 720 mm2: a dome
    mask[5:7, 12:14] = 0
    free = np.zeros(mask.shape, bool)
    free[5:7, 12:14] = True
    assert lungs.fill_holes(mask, free, (1.0, 1.0)) == 4
    assert (mask[5:7, 5:7] == 1).all() and not mask[12:36, 20:50].any() and not mask[5:7, 12:14].any()


def test_a_grid_knows_its_cells():
    grid = lungs.create_grid((5, 8, 8), (2.5, 1.25, 0.5))
    assert grid.steps_zyx == (1, 2, 5)
    volume = np.arange(5 * 8 * 8).reshape(5, 8, 8)
    cells = grid.sample(volume)
    assert cells.shape == (5, 4, 2) and cells[0, 0].tolist() == [8 + 2, 8 + 7]
    spread = grid.spread(cells, 0)
    assert spread.shape == (8, 8) and (spread[0:2, 0:5] == cells[0, 0, 0]).all()
    assert (spread[6:8, 5:8] == cells[0, 3, 1]).all()
    assert lungs.create_grid((1, 4, 4), (0.1, 0.1, 0.1)).steps_zyx == (
        1,
        4,
        4,
    )  # no cell larger than the scan


@pytest.fixture(scope="module")
def scan():
    """Returns HU and the mask of a chest of 2 mm voxels as it was drawn, the nodule marked."""
    hu = chest.draw((72, 144, 168), (2.0, 2.0, 2.0))
    columns = np.arange(168)[None, None]
    mask = np.where((hu < -700) & (hu > -920), np.where(columns > 84, 1, 2), 0).astype(np.uint8)
    z, y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 2.0 for n in hu.shape], indexing="ij")
    mask[(x - 70) ** 2 + (y - 20) ** 2 + (z + 12) ** 2 < 14**2] = 3
    return hu, mask


def test_a_whole_chest_keeps_its_lungs_and_its_nodule(scan):
    hu, mask = scan
    cleaned = mask.copy()
    report = lungs.clean(cleaned, hu, (2.0, 2.0, 2.0))
    for value in (1, 2, 3):
        both = 2 * ((cleaned == value) & (mask == value)).sum()
        assert both / ((cleaned == value).sum() + (mask == value).sum()) > 0.97
    assert report.outside_ml == report.moved_ml == report.nodules_ml == 0.0


def test_what_is_wrong_with_a_whole_chest_is_repaired_and_said(scan):
    hu, mask = scan
    wrong = mask.copy()
    wrong[:, 2:8, 60:100] = 2  # air above the body
    wrong[20:24, 60:80, 30:40] = 1  # a patch of the right lung
    wrong[60:64, 60:64, 118:122] = 3  # a nodule in the wall
    assert lungs.measure_outside(wrong, hu, (2.0, 2.0, 2.0)) == pytest.approx(72 * 6 * 40 * 0.008, rel=0.01)
    assert wrong[:, 2:8, 60:100].all()
    report = lungs.clean(wrong, hu, (2.0, 2.0, 2.0))
    assert not wrong[:, 2:8, 60:100].any() and not (wrong[:, :, :80] == 1).any()
    assert report.outside_ml == pytest.approx(72 * 6 * 40 * 0.008, rel=0.01)
    assert report.moved_ml == pytest.approx((wrong[20:24, 60:80, 30:40] == 2).sum() * 0.008, rel=0.3)
    line = lungs.describe(report)
    assert line.startswith("lungs cleaned in 3D: 138 mL outside the body left out") and "other lung" in line


def test_nodules_outside_the_lungs_are_dropped(scan):
    hu, mask = scan
    wrong = mask.copy()
    wrong[30:34, 70:74, 80:84] = 3  # between the lungs
    report = lungs.clean(wrong, hu, (2.0, 2.0, 2.0))
    assert not (wrong[30:34, 70:74, 80:84]).any() and (wrong == 3).any()
    assert report.nodules_ml == pytest.approx(64 * 0.008, abs=0.01)


def test_nothing_to_do_is_said():
    report = lungs.Changes(*[0.0] * len(dataclasses.fields(lungs.Changes)))
    assert lungs.describe(report) == "lungs cleaned in 3D: nothing to do"


def draw_airway():
    """Returns HU and mask of 1.5 mm cells: two lungs and a trachea between them that divides and enters both."""
    hu = np.full((80, 60, 100), TISSUE, np.int16)
    hu[5:70, 10:50, 5:40] = LUNG
    hu[5:70, 10:50, 60:95] = LUNG
    hu[40:80, 26:34, 46:54] = GAS
    hu[36:42, 28:32, 36:64] = GAS
    mask = np.zeros(hu.shape, np.uint8)
    mask[5:70, 10:50, 60:95], mask[5:70, 10:50, 5:40] = 1, 2
    return hu, mask


def test_the_airway_is_followed_from_the_trachea_and_does_not_leak():
    hu, mask = draw_airway()
    tree = airway.find_airway(hu, mask, (1.5, 1.5, 1.5))
    assert tree.cells[45, 30, 50] and tree.cells[38, 30, 42] and tree.cells[38, 30, 63]
    assert not tree.cells[20].any() and not tree.cells[38, 15, 20]
    assert 5 < tree.volume_ml < 20


def test_the_airway_that_was_marked_is_left_out():
    hu, mask = draw_airway()
    mask[40:80, 26:34, 46:54] = 1
    report = lungs.clean(mask, hu, (1.5, 1.5, 1.5))
    assert not mask[45:70, 27:33, 47:53].any() and report.airway_ml > 8


def test_a_scan_without_a_trachea_has_no_airway():
    hu, mask = draw_airway()
    hu[:, :, 40:60] = TISSUE
    tree = airway.find_airway(hu, mask, (1.5, 1.5, 1.5))
    assert not tree.cells.any() and tree.volume_ml == 0 and not tree.read(0).any()
