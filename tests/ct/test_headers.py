"""Tests of MetaImage and NRRD headers: what is sound is read as SimpleITK reads it, what is not is one line."""

import gzip
import os

import chest
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import checks, find, images, metaimage, nrrd, scans

VOLUME = chest.draw((3, 20, 24), (20.0, 14.0, 14.0))


def _write(path, volume=VOLUME, **kwargs):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.75, 0.5, 2.5)[: image.GetDimension()])
    image.SetOrigin((-12.5, 30.25, -7.0)[: image.GetDimension()])
    sitk.WriteImage(image, str(path), **kwargs)
    return path


def _edit(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def _read(path, scratch):
    scratch.mkdir(exist_ok=True)
    scan = scans.open_scan(scans.find_scans(path)[0], scratch)
    checks.raise_errors(scan.findings, path)
    return scan, scan.read(0, scan.num_slices)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"NDims = 3", b"NDims = -1"),
        (b"NDims = 3", b"NDims = 100"),
        (b"NDims = 3", b"NDims = 3\nDimSize = 1 1 1"),
        (b"BinaryData = True", b"BinaryData = False"),
        (b"DimSize = 24 20 3", b"DimSize = 24 20 -3"),
        (b"DimSize = 24 20 3", b"DimSize = 24 20"),
        (b"ElementSpacing = 0.75", b"ElementSpacing = nan"),
        (b"ElementType = MET_SHORT", b"ElementType = MET_STRING"),
        (b"ElementType = MET_SHORT", b"ElementNumberOfChannels = 2\nElementType = MET_SHORT"),
        (b"ElementType = MET_SHORT", b"ElementToIntensityFunctionSlope = 2\nElementType = MET_SHORT"),
        (b"ElementType = MET_SHORT", b"HeaderSize = 99999999\nElementType = MET_SHORT"),
    ],
)
def test_a_metaimage_header_that_is_not_sound(tmp_path, old, new):
    """Some of them end the process inside ITK."""
    path = _write(tmp_path / "a.mha")
    _edit(path, old, new)
    with pytest.raises(InputError) as caught:
        _read(path, tmp_path / "s")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_long_name_in_a_metaimage_header_says_nothing(tmp_path):
    path = _write(tmp_path / "a.mha")
    _edit(path, b"NDims = 3", b"Name = " + b"x" * 3000 + b"\nNDims = 3")
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("field", ["dimension", "space", "kinds", "type", "encoding", "sizes"])
def test_a_long_value_in_an_nrrd_header(tmp_path, field):
    path = _write(tmp_path / "a.nrrd")
    data = path.read_bytes()
    start = data.index(f"\n{field}: ".encode()) + len(field) + 3
    path.write_bytes(data[:start] + b"9" * 4000 + data[data.index(b"\n", start) :])
    if field == "kinds":  # they say nothing of a scalar image
        np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)
    elif field == "space":
        assert any(one.code == "no-orientation" for one in _read(path, tmp_path / "s")[0].findings)
    else:
        with pytest.raises(InputError) as caught:
            _read(path, tmp_path / "s")
        assert len(str(caught.value)) < 500


def test_a_long_comment_in_a_packed_nrrd(tmp_path):
    path = _write(tmp_path / "a.nrrd", useCompression=True)
    _edit(path, b"\ntype:", b"\n# " + b"c" * 20_000 + b"\ntype:")
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS", "RAS"])
def test_the_spaces_of_nrrd(tmp_path, space):
    path = _write(tmp_path / "a.nrrd")
    _edit(path, b"space: left-posterior-superior", b"space: " + space.encode())
    image, header = sitk.ReadImage(str(path)), images.read_header(path)
    np.testing.assert_allclose(header.stored.origin_xyz_mm, image.GetOrigin())
    np.testing.assert_allclose(header.stored.direction, image.GetDirection())
    np.testing.assert_allclose(header.stored.spacing_xyz_mm, image.GetSpacing())


@pytest.mark.parametrize(
    "lines", [b"spacings: 0.75 0.5 2.5", b"spacings: 0.75 0.5 2.5\naxis mins: 1 2 3", b""]
)
def test_an_nrrd_without_a_space(tmp_path, lines):
    """As SimpleITK reads it, and said; without a spacing there are no millimetres."""
    path = tmp_path / "a.nrrd"
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 24 20 3\nendian: little\nencoding: raw\n"
    path.write_bytes(head + lines + (b"\n\n" if lines else b"\n") + VOLUME.tobytes())
    scan, voxels = _read(path, tmp_path / "s")
    np.testing.assert_array_equal(voxels, VOLUME)
    image = sitk.ReadImage(str(path))
    np.testing.assert_allclose(scan.stored.spacing_xyz_mm, image.GetSpacing())
    np.testing.assert_allclose(scan.stored.origin_xyz_mm, image.GetOrigin())
    assert scan.has_geometry == bool(lines) and "no-orientation" in {one.code for one in scan.findings}


@pytest.mark.parametrize(("skip", "junk"), [("-1", 100), ("100", 100)])
def test_the_byte_skip_of_nrrd(tmp_path, skip, junk):
    path = _write(tmp_path / "a.nhdr")
    (tmp_path / "a.raw").write_bytes(bytes(junk) + VOLUME.tobytes())
    _edit(path, b"encoding: raw", b"encoding: raw\nbyte skip: " + skip.encode())
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("suffix", ["mha", "nrrd", "nii.gz"])
def test_a_single_slice_and_a_fourth_axis_of_one_entry(tmp_path, suffix):
    _write(tmp_path / f"flat.{suffix}", VOLUME[1])
    np.testing.assert_array_equal(_read(tmp_path / f"flat.{suffix}", tmp_path / "s")[1], VOLUME[1:2])
    if suffix == "mha":
        _write(tmp_path / "four.mha", VOLUME)
        _edit(tmp_path / "four.mha", b"NDims = 3", b"NDims = 4")
        for old, new in (
            (b"DimSize = 24 20 3", b"DimSize = 24 20 3 1"),
            (b"ElementSpacing = 0.75 0.5 2.5", b"ElementSpacing = 0.75 0.5 2.5 1"),
            (b"Offset = -12.5 30.25 -7", b"Offset = -12.5 30.25 -7 0"),
            (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"),
        ):
            _edit(tmp_path / "four.mha", old, new)
        scan, voxels = _read(tmp_path / "four.mha", tmp_path / "t")
        np.testing.assert_array_equal(voxels, VOLUME)
        assert scan.stored.spacing_xyz_mm == (0.75, 0.5, 2.5)


def test_nifti_2(tmp_path):
    image = nibabel.Nifti2Image(np.ascontiguousarray(VOLUME.T), np.diag([-0.7, -0.8, 2.5, 1.0]))
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(_read(tmp_path / "a.nii", tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("name", ["Müller.mhd", "100%.mhd", "a b.nhdr", "50%d.nhdr", "ほ.mha"])
def test_names_of_files(tmp_path, name):
    _write(tmp_path / ("plain." + name.rpartition(".")[2]))
    for path in list(tmp_path.glob("plain.*")):
        stem = name.rpartition(".")[0]
        data = path.read_bytes().replace(b"plain.raw", f"{stem}.raw".encode())
        (tmp_path / f"{stem}{path.suffix}").write_bytes(data)
        path.unlink()
    found = find.survey(tmp_path)
    assert len(found.sources) == 1 and not found.skipped
    np.testing.assert_array_equal(_read(tmp_path / name, tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("on_disk", ["latin-1", "utf-8"])
@pytest.mark.parametrize("in_header", ["latin-1", "utf-8"])
@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_names_of_voxel_files_in_either_encoding(tmp_path, suffix, in_header, on_disk):
    path = _write(tmp_path / f"a.{suffix}")
    _edit(path, b"a.raw", "ü.raw".encode(in_header))
    try:
        (tmp_path / "a.raw").rename(tmp_path / os.fsdecode("ü.raw".encode(on_disk)))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    found = find.survey(tmp_path)
    assert len(found.sources) == 1 and not found.skipped
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_every_type_and_byte_order(tmp_path, suffix, kind):
    volume = (VOLUME.astype(int) % 100).astype(kind)
    path = _write(tmp_path / f"a.{suffix}", volume)
    read = metaimage.read_voxels if suffix == "mha" else nrrd.read_voxels
    assert read(path).dtype == np.dtype(kind)
    data = path.read_bytes()
    if np.dtype(kind).itemsize > 1:
        data = data[: -volume.nbytes] + volume.byteswap().tobytes()
        data = data.replace(b"MSB = False", b"MSB = True").replace(b"endian: little", b"endian: big")
        path.write_bytes(data)
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], volume)


def test_a_packed_nrrd_beside_its_header(tmp_path):
    path = _write(tmp_path / "a.nhdr")
    (tmp_path / "a.raw").write_bytes(gzip.compress(VOLUME.tobytes()))
    _edit(path, b"encoding: raw", b"encoding: gzip")
    np.testing.assert_array_equal(_read(path, tmp_path / "s")[1], VOLUME)
