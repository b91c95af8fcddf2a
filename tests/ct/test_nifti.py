"""NIfTI: which of the two forms places a scan, what is said of them, and that masks carry both as they were."""

import itertools

import nibabel
import numpy as np
import pytest

from auxseg.base.errors import InputError
from auxseg.ct import images, nifti, scans, writers

FORMS = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
         "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")  # fmt: skip
VOXELS = np.arange(5 * 4 * 3, dtype=np.int16).reshape(5, 4, 3)
"""[x, y, z], as nibabel has arrays."""
AFFINE = np.array([[-0.75, 0, 0, 30.0], [0, -0.8, 0, 40.0], [0, 0, 2.5, -900.0], [0, 0, 0, 1]])
"""The axes run to the left, the back and the head."""


def write(
    path, *, sform=AFFINE, sform_code=1, qform=AFFINE, qform_code=1, voxels=VOXELS, kind=nibabel.Nifti1Image
):
    image = kind(voxels, None)
    image.header.set_zooms((0.75, 0.8, 2.5)[: voxels.ndim] + (1.0,) * (voxels.ndim - 3))
    image.header.set_sform(sform, sform_code)
    image.header.set_qform(qform, qform_code)
    nibabel.save(image, path)
    return path


def open_scan(path, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return scans.open_scan(scans.find_scans(path)[0], scratch)


def codes(scan):
    return [finding.code for finding in scan.findings]


def write_mask(scan, path, start=0, stop=None):
    stop = scan.num_slices if stop is None else stop
    writers.write_mask(
        path, np.ones((stop - start, *scan.geometry.shape_zyx[1:]), np.uint8), scan, start, stop
    )
    return nibabel.load(path).header


def assert_same_forms(header, path):
    other = nibabel.load(path).header
    for name in FORMS:
        np.testing.assert_array_equal(header[name], other[name], err_msg=name)
    np.testing.assert_array_equal(header["pixdim"][:4], other["pixdim"][:4])


def moved(affine, x_mm):
    there = affine.copy()
    there[0, 3] += x_mm
    return there


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_qform_elsewhere_is_said_and_the_mask_carries_both(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", sform_code=2, qform=moved(AFFINE, 50.0))
    scan = open_scan(path, tmp_path)
    assert scan.stored.origin_xyz_mm == (-30.0, -40.0, -900.0)  # the sform's, in LPS
    assert codes(scan) == ["two-places"] and "50 mm apart" in scan.findings[0].text
    assert writers.check_format("nii.gz", scan) == "nii.gz"
    header = write_mask(scan, tmp_path / "m.nii.gz")
    assert_same_forms(header, path)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 1)
    assert header.get_data_dtype() == np.uint8 and header.get_data_shape() == (5, 4, 3)


def test_without_codes_nothing_is_claimed_by_the_mask_either(tmp_path):
    path = write(tmp_path / "a.nii", sform_code=0, qform_code=0)
    scan = open_scan(path, tmp_path)
    assert codes(scan) == ["no-orientation"]
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("L", "A", "S")
    np.testing.assert_array_equal(scan.read(0, 3), VOXELS.T[:, ::-1])  # rows from the front to the back
    header = write_mask(scan, tmp_path / "m.nii")
    assert_same_forms(header, path)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "m.nii").affine, nibabel.load(path).affine)


def test_a_small_shear_is_computed_without_and_written_back(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.002 * 0.8
    path = write(tmp_path / "a.nii.gz", sform=sheared, qform_code=0)
    scan = open_scan(path, tmp_path)
    assert codes(scan) == ["sheared"] and "cosine 0.002" in scan.findings[0].text
    matrix = np.reshape(scan.stored.direction, (3, 3))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix, np.diag([1.0, 1.0, 1.0]), atol=0.0011)  # half the shear to either axis
    np.testing.assert_array_equal(scan.read(0, 3), VOXELS.T)
    assert_same_forms(write_mask(scan, tmp_path / "m.nii"), path)


def test_a_tilted_stack_keeps_its_axes(tmp_path):
    tilted = AFFINE.copy()
    tilted[1, 2] = 2.5 * np.tan(np.radians(15))
    path = write(tmp_path / "a.nii", sform=tilted, qform_code=0)
    scan = open_scan(path, tmp_path)
    assert "sheared" in codes(scan)
    matrix = np.reshape(scan.stored.direction, (3, 3)) * scan.stored.spacing_xyz_mm
    assert abs(np.linalg.det(matrix)) == pytest.approx(0.75 * 0.8 * 2.5)  # mm3 of a voxel
    assert writers.check_format("nii", scan) == "nii"
    assert_same_forms(write_mask(scan, tmp_path / "m.nii"), path)


def test_both_forms_move_with_the_first_slice_of_a_part(tmp_path):
    path = write(tmp_path / "a.nii", sform_code=2, qform=moved(AFFINE, 50.0))
    header = write_mask(open_scan(path, tmp_path), tmp_path / "m.nii", 1, 3)
    assert header.get_sform()[:3, 3].tolist() == [30.0, 40.0, -897.5]
    assert header.get_qform()[:3, 3].tolist() == [80.0, 40.0, -897.5]
    assert header.get_data_shape() == (5, 4, 2)
    upside_down = AFFINE.copy()
    upside_down[2, 2:] = -2.5, -900.0
    path = write(tmp_path / "b.nii", sform=upside_down, qform=upside_down)
    header = write_mask(
        open_scan(path, tmp_path), tmp_path / "m.nii", 1, 3
    )  # of 3, from below: the file's first two
    assert header.get_sform()[:3, 3].tolist() == [30.0, 40.0, -900.0]


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_any_order_of_axes_is_read_as_nibabel_places_it(tmp_path, form):
    for order, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    ):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[list(order)] * np.multiply(signs, (0.75, 0.8, 2.5))
        affine[:3, 3] = (-3.0, 5.0, 7.0)
        path = write(
            tmp_path / "a.nii", **{form: affine, "qform_code" if form == "sform" else "sform_code": 0}
        )
        header = images.read_header(path)
        ends = images.to_canonical_geometry(header.stored, header.orientation)
        assert ends.origin_xyz_mm == pytest.approx(_lowest_corner(affine), abs=1e-5)
        canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()[::-1, ::-1]  # RAS to LPS
        np.testing.assert_array_equal(images.read_volume(path), canonical.T)
        np.testing.assert_array_equal(images.read_slice(path, 1), canonical.T[1])


def _lowest_corner(affine):
    """Returns the LPS place of the voxel that is furthest right, in front and below."""
    corners = (
        np.array(list(itertools.product(*[(0, n - 1) for n in VOXELS.shape]))) @ affine[:3, :3].T
        + affine[:3, 3]
    )
    return (corners * [-1, -1, 1]).min(axis=0)


@pytest.mark.parametrize(
    ("voxels", "kind"),
    [
        (VOXELS, nibabel.Nifti2Image),
        (VOXELS[..., None], nibabel.Nifti1Image),
        (VOXELS.astype(">i2"), nibabel.Nifti1Image),
        (VOXELS.astype(np.float64), nibabel.Nifti2Image),
    ],
)
def test_other_kinds_of_nifti(tmp_path, voxels, kind):
    path = write(tmp_path / "a.nii.gz", voxels=voxels, kind=kind)
    scan = open_scan(path, tmp_path)
    assert scan.stored.size_xyz == (5, 4, 3)
    np.testing.assert_array_equal(scan.read(0, 3), VOXELS.T)
    assert write_mask(scan, tmp_path / "m.nii").get_data_shape() == (5, 4, 3)


def test_a_plane_is_one_slice(tmp_path):
    path = write(tmp_path / "a.nii", voxels=VOXELS[:, :, 0])
    np.testing.assert_array_equal(open_scan(path, tmp_path).read(0, 1)[0], VOXELS[:, :, 0].T)


def test_metres_become_millimetres(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, np.diag([-1, -1, 1, 1]) @ AFFINE / 1000)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    geometry = nifti.read_geometry(tmp_path / "a.nii")
    np.testing.assert_allclose(geometry.spacing_xyz_mm, (0.75, 0.8, 2.5), rtol=1e-6)
    np.testing.assert_allclose(geometry.origin_xyz_mm, (30, 40, -900), rtol=1e-6)


def change(path, **values):
    with open(path, "rb") as file:
        header = nibabel.Nifti1Header.from_fileobj(file, check=False)
    for name, value in values.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:] + bytes(1000))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sform_code": 0, "quatern_b": 1.5}, "qform that is no rotation"),
        ({"datatype": 32, "bitpix": 64}, "one number a voxel"),
        ({"datatype": 999}, "cannot be read as NIfTI"),
        ({"dim": [4, 5, 4, 3, 2, 1, 1, 1]}, "4 dimensions of \\[5, 4, 3, 2\\] voxels"),
        ({"magic": b"ni1"}, "keeps its voxels elsewhere"),
        ({"dim": [0, 5, 4, 3, 1, 1, 1, 1]}, "0 dimensions"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "expected finite numbers"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "spacing above 0"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_in_one_line(tmp_path, values, words):
    path = write(tmp_path / "a.nii")
    change(path, **values)
    with pytest.raises(InputError, match=words) as caught:
        images.read_header(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_values_without_a_scale_are_taken_as_stored(tmp_path, slope):
    """A slope of 0 says so by the standard; one that is no number is said."""
    path = write(tmp_path / "a.nii")
    change(path, scl_slope=slope, scl_inter=slope)
    header = images.read_header(path)
    np.testing.assert_array_equal(images.read_volume(path, header=header).shape, header.geometry.shape_zyx)
    assert images.read_volume(path).max() > 0
    codes = [finding.code for finding in nifti.list_findings(header.stored)]
    assert ("scale" in codes) == (slope != 0.0)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"no header" * 100)
    with pytest.raises(InputError, match="cannot be read as NIfTI"):
        images.read_header(tmp_path / "a.nii")
