"""Spheres as pixels: areas, thick slices, small nodules, bad annotations."""

import math

import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct.geometry import Geometry, find_orientation, index_to_mm, to_canonical_geometry
from auxseg.datasets import nodules


def grid(spacing_mm=(0.7, 0.7, 2.5), num_slices=20):
    return Geometry((128, 128, num_slices), spacing_mm, (-44.0, -44.0, -25.0))


def test_areas_are_those_of_the_cuts():
    sphere = nodules.Sphere((3.3, -2.1, 1.0), 14.0)
    geometry = grid()
    patches = nodules.sphere_patches(geometry, sphere)
    for patch in patches:
        distance_mm = abs(-25.0 + 2.5 * patch.index_z - 1.0)
        expected_mm2 = math.pi * (7.0**2 - distance_mm**2)
        assert patch.inside.sum() * 0.49 == pytest.approx(expected_mm2, rel=0.05, abs=2.0)
    assert [patch.index_z for patch in patches] == [8, 9, 10, 11, 12, 13]


def test_pixel_is_in_when_half_of_it_is():
    geometry = Geometry((5, 5, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    (patch,) = nodules.sphere_patches(geometry, nodules.Sphere((2.0, 2.0, 0.0), 3.0))
    mask = nodules.paint(np.zeros((5, 5), np.uint8), [patch])
    # the circle of radius 1.5 covers 58 % of each corner pixel, and all of the others
    assert mask[1:4, 1:4].tolist() == [[3, 3, 3]] * 3 and mask.sum() == 27
    (patch,) = nodules.sphere_patches(geometry, nodules.Sphere((2.0, 2.0, 0.0), 2.4))
    mask = nodules.paint(np.zeros((5, 5), np.uint8), [patch])
    assert mask[1:4, 1:4].tolist() == [[0, 3, 0], [3, 3, 3], [0, 3, 0]]  # corners 21 %, edges 68 %


def test_centre_between_pixels_moves_the_disc():
    geometry = Geometry((10, 10, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    (patch,) = nodules.sphere_patches(geometry, nodules.Sphere((4.5, 4.5, 0.0), 4.0))
    rows, columns = np.nonzero(nodules.paint(np.zeros((10, 10), np.uint8), [patch]))
    assert (rows.mean(), columns.mean()) == (4.5, 4.5)
    assert len(rows) == 12


@pytest.mark.parametrize("z_mm", [0.0, 0.3, 1.25, 2.4, 2.5, 4.0])
@pytest.mark.parametrize("thickness_mm", [0.6, 2.5, 5.0, 8.0])
def test_a_nodule_of_3_mm_is_on_a_slice_wherever_it_lies(z_mm, thickness_mm):
    geometry = grid((0.7, 0.7, thickness_mm), num_slices=60)
    patches = nodules.sphere_patches(geometry, nodules.Sphere((0.1, 0.2, z_mm), 3.0))
    assert patches and all(patch.inside.any() for patch in patches)


def test_between_thick_slices_the_nearer_one_shows_the_volume():
    geometry = grid((0.4, 0.4, 12.0))
    ball = nodules.Sphere((0.1, 0.2, -25.0 + 12 * 2 + 5.2), 10.0)
    (patch,) = nodules.sphere_patches(geometry, ball)
    assert patch.index_z == 2
    assert patch.inside.sum() * 0.16 == pytest.approx(4 / 3 * math.pi * 5**3 / 12, rel=0.05)


def test_touching_a_plane_is_no_crossing():
    geometry = Geometry((64, 64, 9), (1.0, 1.0, 2.0), (-32.0, -32.0, 0.0))
    patches = nodules.sphere_patches(geometry, nodules.Sphere((0.0, 0.0, 8.0), 4.0))
    assert [patch.index_z for patch in patches] == [4]


def test_nodule_at_the_edge_is_cut_and_outside_is_refused():
    geometry = grid()
    patches = nodules.sphere_patches(geometry, nodules.Sphere((-44.0, -44.0, 0.0), 10.0))
    assert all(patch.row == 0 and patch.column == 0 for patch in patches)
    for place in ((-46.0, 0.0, 0.0), (0.0, 60.0, 0.0), (0.0, 0.0, 40.0)):
        with pytest.raises(InputError, match=r"a nodule at \(.*\) mm lies outside the scan"):
            nodules.sphere_patches(geometry, nodules.Sphere(place, 10.0))


def test_mirrored_scan_has_the_nodule_at_the_same_place():
    sphere = nodules.Sphere((10.0, 5.0, 0.0), 8.0)
    stored = Geometry((128, 128, 20), (0.7, 0.7, 2.5), (45.0, 45.0, -25.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    canonical = to_canonical_geometry(stored, find_orientation(stored))
    patch = nodules.sphere_patches(canonical, sphere)[1]
    rows, columns = np.nonzero(patch.inside)
    centre = [columns.mean() + patch.column, rows.mean() + patch.row, patch.index_z]
    np.testing.assert_allclose(index_to_mm(canonical, centre)[:2], (10.0, 5.0), atol=0.35)


def test_painting_leaves_the_mask_and_counts_by_slice():
    geometry = grid()
    near = [nodules.sphere_patches(geometry, nodules.Sphere((x, 0.0, 0.0), 6.0)) for x in (-20.0, 20.0)]
    slices = nodules.by_slice(near)
    assert {index: len(patches) for index, patches in slices.items()} == {9: 2, 10: 2, 11: 2}
    mask = np.ones((128, 128), np.uint8)
    painted = nodules.paint(mask, slices[10])
    assert (mask == 1).all() and (painted == 3).sum() == sum(p.inside.sum() for p in slices[10])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seriesuid,coordX,coordY,coordZ\n", "has no column diameter_mm"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3,\n", "line 2: expected a position"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3,4\na,1,2,x,4\n", "line 3: expected a position"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,2,3,0\n", "a diameter above 0"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\na,nan,2,3,4\n", "expected finite numbers"),
    ],
)
def test_bad_annotations_are_named_by_line(tmp_path, text, message):
    (tmp_path / "annotations.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        nodules.read_annotations(tmp_path / "annotations.csv")


def test_real_annotations(real_data):
    spheres = nodules.read_annotations(real_data / "csv" / "annotations.csv")
    diameters = [sphere.diameter_mm for several in spheres.values() for sphere in several]
    assert (len(spheres), len(diameters)) == (601, 1186)
    assert sum(3 <= diameter < 10 for diameter in diameters) == 905


def test_a_doubled_row_counts_once_and_a_space_is_no_part_of_a_name(tmp_path):
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm", "1.2,1,2,3,4", "1.2 ,1.0,2,3,4.0", " 1.2,1,2,3,5"]
    (tmp_path / "annotations.csv").write_text("\n".join(lines) + "\n")
    found = nodules.read_annotations(tmp_path / "annotations.csv")
    assert found == {"1.2": (nodules.Sphere((1.0, 2.0, 3.0), 4.0), nodules.Sphere((1.0, 2.0, 3.0), 5.0))}
