"""Tests of the writers, against SimpleITK as the reader."""

import io
import itertools
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from auxseg.base import classes, files
from auxseg.ct import nifti, writers
from auxseg.ct.geometry import Geometry
from auxseg.prediction import overlay


def _geometry(matrix, size_xyz=(5, 4, 3)):
    return Geometry(size_xyz, (0.71, 0.83, 2.5), (-12.34, 56.78, -910.1), tuple(np.ravel(matrix)))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("form", ["nii", "nii.gz", "nrrd", "mha"])
def test_a_volume_in_any_direction_is_read_back(tmp_path, form, dtype):
    """The 48 ways to store axes, left-handed ones too, and ten oblique ones."""
    random = np.random.default_rng(0)
    matrices = [np.eye(3)[list(order)] * signs for order in itertools.permutations(range(3))
                for signs in itertools.product((1.0, -1.0), repeat=3)]  # fmt: skip
    matrices += list(Rotation.random(10, rng=random).as_matrix())
    for matrix in matrices:
        array = (random.random((3, 4, 5)) * 200).astype(dtype)
        geometry = _geometry(matrix)
        writers.write_volume(tmp_path / f"a.{form}", iter(array), geometry, dtype)
        image = sitk.ReadImage(str(tmp_path / f"a.{form}"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        np.testing.assert_allclose(image.GetDirection(), geometry.direction, atol=2e-6)
        np.testing.assert_allclose(image.GetSpacing(), geometry.spacing_xyz_mm, rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), geometry.origin_xyz_mm, rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{form}"]


def test_both_forms_of_a_nifti_say_the_same():
    """Readers take either the q-form or the s-form."""
    for matrix in Rotation.random(20, rng=np.random.default_rng(1)).as_matrix():
        for sign in (1.0, -1.0):
            head = nifti.create_header(_geometry(matrix * [1, 1, sign]), "uint8")
            qfac, *spacing = struct.unpack_from("<4f", head, 76)
            b, c, d = struct.unpack_from("<3f", head, 256)
            rotation = Rotation.from_quat([b, c, d, np.sqrt(max(0.0, 1 - b * b - c * c - d * d))]).as_matrix()
            affine = np.reshape(struct.unpack_from("<12f", head, 280), (3, 4))
            np.testing.assert_allclose(rotation * [1, 1, qfac] * spacing, affine[:, :3], atol=2e-6)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a.nrrd").write_text("old")

    def slices():
        yield np.zeros((4, 5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writers.write_volume(tmp_path / "a.nrrd", slices(), _geometry(np.eye(3)), "uint8")
    assert (tmp_path / "a.nrrd").read_text(encoding="utf-8") == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_tables_leave_out_what_is_not_known(tmp_path):
    rows = [
        {"a": "x, y", "b": float("nan"), "c": None},
        {"a": 1, "b": 0.123456789, "c": np.inf},
        {"a": 0.0, "b": 2183741.6, "c": -1e-9},
    ]
    files.write_csv(tmp_path / "t.csv", rows, digits=6)
    assert (tmp_path / "t.csv").read_text(
        encoding="utf-8"
    ) == 'a,b,c\n"x, y",,\n1,0.123457,\n0,2183740,-0.000000001\n'


def _open(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_masks_are_pictures_of_class_indices():
    mask = np.zeros((8, 12), np.uint8)
    mask[2, 3], mask[4, 5], mask[6, 7] = 1, 2, 3
    rgb = np.asarray(Image.open(io.BytesIO(overlay.encode_mask(mask))).convert("RGB"))
    np.testing.assert_array_equal(rgb, np.repeat(mask[..., None], 3, axis=-1))


def test_a_colour_by_hand():
    assert classes.to_rgb("#0a10ff") == (10, 16, 255)


def test_grey_levels_keep_the_hu_of_every_window():
    """Flat slices, which JPEG keeps: within half a step of the levels, 7 HU in lung, 2 in soft tissue, 13 in bone."""
    assert np.all(np.diff(overlay.LEVELS_HU) > 0)
    for hu, reach in (
        (-2000, -1350),
        (-900, 7),
        (-400, 7),
        (-100, 2),
        (40, 2),
        (200, 2),
        (700, 13),
        (3000, 1650),
    ):
        level = _open(overlay.encode_picture(np.full((16, 16), hu, np.int16)))
        found = overlay.LEVELS_HU[level[8, 8]]
        assert found == reach if abs(reach) > 100 else abs(found - hu) <= reach


def test_the_coronal_plane_goes_through_the_nodule_and_stands_upright():
    volume, masks = np.full((9, 20, 30), -1000, np.int16), np.zeros((9, 20, 30), np.uint8)
    masks[:, 5, 3:25] = 1
    masks[7, 12, 4], volume[:, 12, 4] = 3, 200
    pictures = [overlay.encode_picture(one) for one in volume]
    assert overlay.choose_coronal(masks) == 12 and overlay.choose_coronal(masks[:7]) == 5
    (_, lung), (picture, codes) = overlay.cut_coronals(pictures, masks, [5, 12])
    np.testing.assert_array_equal(_open(lung), masks[::-1, 5])
    np.testing.assert_array_equal(_open(codes), masks[::-1, 12])
    assert _open(codes)[1, 4] == 3  # slice 7 of 0 to 8, superior at the top
    levels = _open(picture)
    assert levels.shape == (9, 30) and levels[4, 4] > levels[4, 20] + 100


def test_pictures_are_no_larger_than_needed():
    picture = Image.open(io.BytesIO(overlay.encode_picture(np.zeros((1024, 700), np.int16))))
    assert picture.size == (350, 512)
    assert Image.open(io.BytesIO(overlay.encode_mask(np.zeros((1024, 700), np.uint8)))).size == (350, 512)


def test_the_overview_keeps_proportions():
    pictures = [overlay.encode_picture(np.full((40, 20), -1000, np.int16))] * 5
    masks = [np.ones((40, 20), np.uint8)] * 5
    canvas = overlay.draw_overview(pictures, masks, ["one"] * 5, (1.0, 4.0))
    assert canvas.size == (4 * (360 + 6) + 6, 2 * (180 + 26) + 28)
    red = np.asarray(canvas)[30, 30].astype(int)
    assert red[0] > red[1] + 30 and red[0] > red[2] + 30
