"""Geometry, orientation and reading of scan files, against SimpleITK's own transforms and by hand."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import images
from auxseg.ct.geometry import (
    IDENTITY,
    Geometry,
    Orientation,
    find_orientation,
    from_canonical,
    geometry_difference,
    index_to_mm,
    mm_to_index,
    to_canonical,
    to_canonical_geometry,
)

LPS = Geometry((4, 3, 5), (0.5, 0.75, 2.0), (-10.0, 20.0, -300.0))
DIRECTIONS = [IDENTITY, (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 0, 0, 0, -1, 1, 0, 0)]


def signed_permutations():
    """Returns the 48 direction matrices whose axes are those of the patient."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[order, range(3)] = signs
            yield tuple(matrix.ravel())


def image_of(geometry, volume):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(geometry.spacing_xyz_mm)
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction)
    return image


def random_volume(geometry, seed=0):
    return np.random.default_rng(seed).integers(-1024, 1500, geometry.shape_zyx, dtype=np.int16)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_index_and_mm_agree_with_simpleitk(direction):
    geometry = Geometry((4, 3, 5), (0.5, 0.75, 2.0), (-10.0, 20.0, -300.0), direction)
    image = image_of(geometry, random_volume(geometry))
    points = index_to_mm(geometry, [[0, 0, 0], [3, 2, 4], [1.5, 0.25, 2.0]])
    indices = [(0, 0, 0), (3, 2, 4), (1.5, 0.25, 2)]
    expected = [image.TransformContinuousIndexToPhysicalPoint(index) for index in indices]
    np.testing.assert_allclose(points, expected, atol=1e-9)
    np.testing.assert_allclose(mm_to_index(geometry, points[2]), [1.5, 0.25, 2.0], atol=1e-9)


def test_every_orientation_becomes_lps_and_goes_back():
    directions = list(signed_permutations())
    assert len(directions) == 48
    for direction in directions:
        geometry = Geometry((4, 3, 5), (0.5, 0.75, 2.0), (-10.0, 20.0, -300.0), direction)
        orientation = find_orientation(geometry)
        canonical = to_canonical_geometry(geometry, orientation)
        assert canonical.direction == IDENTITY
        volume = random_volume(geometry)
        turned = to_canonical(volume, orientation)
        assert turned.shape == canonical.shape_zyx
        reference = sitk.DICOMOrient(image_of(geometry, volume), "LPS")
        np.testing.assert_array_equal(turned, sitk.GetArrayFromImage(reference))
        np.testing.assert_allclose(canonical.origin_xyz_mm, reference.GetOrigin(), atol=1e-9)
        np.testing.assert_allclose(canonical.spacing_xyz_mm, reference.GetSpacing())
        np.testing.assert_array_equal(from_canonical(turned, orientation), volume)


def test_tilted_scan_keeps_its_tilt():
    angle = np.deg2rad(12)
    tilted = (1, 0, 0, 0, np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle))
    geometry = Geometry((4, 3, 5), (0.5, 0.75, 2.0), (0.0, 0.0, 0.0), tilted)
    orientation = find_orientation(geometry)
    assert orientation == Orientation((0, 1, 2), (False, False, False))
    assert to_canonical_geometry(geometry, orientation).direction == pytest.approx(tilted)


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("compress", [False, True])
def test_written_volume_is_read_slice_by_slice(tmp_path, suffix, direction, compress):
    geometry = Geometry((4, 3, 5), (0.5, 0.75, 2.0), (-10.0, 20.0, -300.0), direction)
    volume = random_volume(geometry)
    path = tmp_path / f"scan{suffix}"
    images.write_volume(path, volume, geometry, compress=compress)
    header = images.read_header(path)
    assert geometry_difference(header.stored, geometry) == ""
    expected = to_canonical(volume, find_orientation(geometry))
    np.testing.assert_array_equal(images.read_volume(path), expected)
    for index_z in range(header.geometry.size_xyz[2]):
        np.testing.assert_array_equal(images.read_slice(path, index_z), expected[index_z])
    np.testing.assert_array_equal(images.read_slices(path, [2, 0]), expected[[2, 0]])
    assert not list(tmp_path.glob(".writing*"))


def test_left_of_a_prone_scan_is_at_the_right_of_the_image(tmp_path):
    prone = Geometry((6, 4, 2), (1.0, 1.0, 1.0), (50.0, 40.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    volume = np.zeros(prone.shape_zyx, np.int16)
    marked = np.round(mm_to_index(prone, [49.0, 38.0, 0.0])).astype(int)
    volume[marked[2], marked[1], marked[0]] = 700
    images.write_volume(tmp_path / "prone.mhd", volume, prone)
    image = images.read_slice(tmp_path / "prone.mhd", 0)
    canonical = images.read_geometry(tmp_path / "prone.mhd")
    index = np.round(mm_to_index(canonical, [49.0, 38.0, 0.0])).astype(int)
    assert image[index[1], index[0]] == 700
    assert index[0] == 4  # of 6 columns: +x, the patient's left, lies right in the image


def test_float_values_are_rounded_and_others_refused(tmp_path):
    geometry = Geometry((2, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    images.write_volume(tmp_path / "float.nii", np.array([[[-1000.4, 40.6]]], np.float32), geometry)
    np.testing.assert_array_equal(images.read_volume(tmp_path / "float.nii"), [[[-1000, 41]]])
    for name, value in (("nan.mha", np.nan), ("huge.mha", 1e6)):
        images.write_volume(tmp_path / name, np.array([[[0.0, value]]], np.float32), geometry)
        with pytest.raises(InputError, match=f"{name} has values from .* expected HU"):
            images.read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("change", "matter"), [(-7, "truncated"), (5, "longer than its header says")])
def test_wrong_length_is_seen_before_reading(tmp_path, name, compress, change, matter):
    images.write_volume(tmp_path / name, random_volume(LPS), LPS, compress=compress)
    data = next(path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw", ".mha"))
    content = data.read_bytes()
    data.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(InputError, match=f"{data.name} is {matter}: .* bytes, expected .* download it again"):
        images.read_header(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nii", "scan.nii.gz"])
def test_truncated_other_formats_are_one_line_errors(tmp_path, name):
    geometry = Geometry((64, 64, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    images.write_volume(tmp_path / name, random_volume(geometry), geometry)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{name} ") as caught:
        images.read_volume(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_line_errors(tmp_path):
    (tmp_path / "scan.mhd").write_text("ObjectType = Image\nNDims = 3\n")
    gone = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = x.raw\n"
    (tmp_path / "gone.mhd").write_text(gone)
    (tmp_path / "noise.nii").write_bytes(bytes(range(256)) * 4)
    expected = {
        "scan.mhd": "names no ElementDataFile",
        "gone.mhd": "names the voxel file x.raw, which is not beside it",
        "noise.nii": "cannot be read",
        "absent.mhd": "does not exist",
        "scan.png": "expected a name that ends in .mhd",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message) as caught:
            images.read_header(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_slice_outside_the_scan_is_refused(tmp_path):
    images.write_volume(tmp_path / "scan.mha", random_volume(LPS), LPS)
    for index_z in (-1, 5):
        with pytest.raises(InputError, match=f"got {index_z}, expected 0 to 4"):
            images.read_slice(tmp_path / "scan.mha", index_z)


def test_geometry_difference_names_what_differs():
    def changed(**values):
        return geometry_difference(LPS, dataclasses.replace(LPS, **values))

    assert changed() == ""
    assert changed(origin_xyz_mm=(-10.0001, 20.0, -300.0)) == ""
    assert "size 4x3x5 and 4x3x6" in changed(size_xyz=(4, 3, 6))
    assert "origin_xyz_mm (-10, 20, -300) and (-10, 20, -298)" in changed(origin_xyz_mm=(-10.0, 20.0, -298.0))
    assert "spacing_xyz_mm" in changed(spacing_xyz_mm=(0.5, 0.75, 2.5))
    assert "direction" in changed(direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))


def test_one_slice_is_read_without_the_volume(tmp_path):
    geometry = Geometry((512, 512, 60), (0.7, 0.7, 2.5), (0.0, 0.0, 0.0))
    images.write_volume(tmp_path / "scan.mhd", random_volume(geometry), geometry, compress=False)
    header = images.read_header(tmp_path / "scan.mhd")

    def seconds(function, repeats):
        started = time.perf_counter()
        for index in range(repeats):
            function(index)
        return (time.perf_counter() - started) / repeats

    volume_s = seconds(lambda _: images.read_volume(header.path), 3)
    slice_s = seconds(lambda k: images.read_slice(header.path, k, header=header), 20)
    assert slice_s < volume_s / 4


def test_real_label_map_and_scan_are_read(real_data):
    volume = images.read_volume(real_data / "cip" / "ct-64.nrrd")
    labels = images.read_volume(real_data / "cip" / "lm-64.nrrd")
    assert volume.shape == labels.shape == (79, 64, 64)
    difference = geometry_difference(
        images.read_geometry(real_data / "cip" / "ct-64.nrrd"),
        images.read_geometry(real_data / "cip" / "lm-64.nrrd"),
    )
    assert difference == ""
    assert volume[labels > 0].mean() < -700  # lung, in HU
