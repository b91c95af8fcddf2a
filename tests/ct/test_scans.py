"""Tests of opening any scan: every format, compressed or not, turned or not, gives the same slices."""

import gzip
import os
import shutil
import struct
import tracemalloc
import zipfile
import zlib

import chest
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import checks, images, inflate, scans, values, voxels
from auxseg.ct.archive import unpack_zip

FORMATS = ("mhd", "mha", "nrrd", "nhdr", "nii", "nii.gz")
TURNS = {
    "plain": ((0, 1, 2), ()),
    "flipped": ((0, 1, 2), (0, 2)),
    "turned": ((2, 0, 1), (1,)),
    "side": ((1, 2, 0), (0,)),
}


def _image(volume, spacing_xyz=(0.7, 0.8, 2.5), origin=(-120.5, -80.25, 33.0)):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    return image


def _turn(image, name):
    """Returns the same voxels at the same places, stored in another order."""
    order, flips = TURNS[name]
    return sitk.Flip(sitk.PermuteAxes(image, order), [axis in flips for axis in range(3)])


def _open(path, scratch):
    scratch.mkdir(exist_ok=True)
    return scans.open_scan(scans.find_scans(path)[0], scratch)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("turn", TURNS)
def test_every_format_and_turn_gives_the_same_slices(tmp_path, suffix, compress, turn):
    volume = chest.draw((7, 20, 24), (20, 14, 14))
    path = tmp_path / f"scan.{suffix}"
    sitk.WriteImage(_turn(_image(volume), turn), str(path), useCompression=compress)
    scan = _open(path, tmp_path / "scratch")
    np.testing.assert_array_equal(scan.read(0, 7), volume)
    np.testing.assert_array_equal(scan.read(2, 5), volume[2:5])
    np.testing.assert_allclose(scan.geometry.spacing_xyz_mm, (0.7, 0.8, 2.5), rtol=1e-6)
    np.testing.assert_allclose(scan.geometry.origin_xyz_mm, (-120.5, -80.25, 33.0), rtol=1e-5)
    assert scan.stored == images.read_header(path).stored


def test_only_the_slices_asked_for_are_read(tmp_path):
    """Compressed or not: what is held grows with the slices, not with the scan."""
    volume = np.zeros((256, 64, 64), np.int16)
    for name in ("a.mhd", "a.nii.gz", "a.nrrd"):
        sitk.WriteImage(_image(volume), str(tmp_path / name), useCompression=True)
        scan = _open(tmp_path / name, tmp_path / f"{name}.d")
        tracemalloc.start()
        scan.read(3, 5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < volume.nbytes / 8, name


@pytest.mark.parametrize("suffix", ["mha", "nrrd", "nii"])
def test_floating_point_values_are_rounded_to_hu(tmp_path, suffix):
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    sitk.WriteImage(_image(volume.astype(np.float32) + 0.3), str(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(_open(tmp_path / f"a.{suffix}", tmp_path / "s").read(0, 3), volume)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii", "nii.gz", "npz"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_air_and_said(tmp_path, suffix, value):
    """ITK reads it as 0 HU in NIfTI, tissue, without a word."""
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    stored = volume.astype(np.float32)
    stored[2, :3] = value
    volume[2, :3] = -1024
    if suffix == "npz":
        np.savez(tmp_path / "a.npz", image=stored)
    else:
        sitk.WriteImage(_image(stored), str(tmp_path / f"a.{suffix}"))
    scan = _open(tmp_path / f"a.{suffix}", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(0, 3), volume)
    (finding,) = [one for one in scan.findings if one.code == "not-finite"]
    assert finding.severity == "warning" and "72 values that are not finite" in finding.text


@pytest.mark.parametrize("suffix", ["nii", "mha", "nrrd", "nii.gz", "npz"])
def test_a_download_that_did_not_finish(tmp_path, suffix):
    """Its file is as long as it should be, and zero from somewhere on."""
    volume = chest.draw((12, 20, 24), (20, 14, 14))
    volume[7:] = 0
    if suffix == "npz":
        np.savez(tmp_path / "a.npz", image=volume)
    else:
        sitk.WriteImage(_image(volume), str(tmp_path / f"a.{suffix}"))
    (finding,) = [
        one
        for one in _open(tmp_path / f"a.{suffix}", tmp_path / "s").findings
        if one.code == "constant-slices"
    ]
    assert finding.severity == "error" and "5 of 12 slices" in finding.text and "from 7 to 11" in finding.text


@pytest.mark.parametrize(
    ("value", "first", "severity"), [(-1024, 6, "warning"), (0, 49, "warning"), (0, 30, "error")]
)
def test_slices_of_one_value(value, first, severity):
    images = np.tile(chest.draw((5, 20, 24), (20, 14, 14)), (10, 1, 1))
    images[first:] = value
    found = [one for one in values.check_values(images, images.dtype, "x") if one.code == "constant-slices"]
    assert [one.severity for one in found] == [severity]
    sampled = checks.check_scan(images, spacing_yx_mm=(14.0, 14.0))
    assert [one.severity for one in sampled if one.code == "constant-slices"] == [severity]


@pytest.mark.parametrize(("count", "severity"), [(5, "warning"), (200, "error")])
def test_values_beyond_int16_are_cut_off_and_said(tmp_path, count, severity):
    volume = chest.draw((3, 20, 24), (20, 14, 14)).astype(np.int32)
    volume.flat[:count] = 100_000
    sitk.WriteImage(_image(volume), str(tmp_path / "a.nrrd"))
    scan = _open(tmp_path / "a.nrrd", tmp_path / "s")
    assert (scan.read(0, 1).flat[:count] == 32767).all()
    assert [one.severity for one in scan.findings if one.code == "range"] == [severity]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_a_truncated_file_is_refused(tmp_path, suffix, compress):
    volume = chest.draw((5, 20, 24), (20, 14, 14))
    path = tmp_path / f"scan.{suffix}"
    sitk.WriteImage(_image(volume), str(path), useCompression=compress)
    data = next(
        (file for file in tmp_path.iterdir() if file.suffix in (".raw", ".zraw", ".gz") and file != path),
        path,
    )
    whole = data.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, len(whole) // 10, 0):
        data.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            scratch = tmp_path / f"temporary{size}"
            _open(path, scratch).read(0, 5)
        assert "\n" not in str(caught.value) and "temporary" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["nrrd", "nii", "nii.gz", "mha"])
def test_a_header_of_a_smaller_scan_is_refused(tmp_path, suffix):
    """Half of the voxels would make a wrong picture without any error in reading."""
    volume = chest.draw((8, 20, 24), (20, 14, 14))
    sitk.WriteImage(_image(np.tile(volume, (30, 1, 1))), str(tmp_path / "a.nii"))
    sitk.WriteImage(_image(volume), str(tmp_path / f"a.{suffix}"), useCompression=suffix == "nii.gz")
    if suffix in ("nrrd", "mha"):
        data = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(data.replace(b"24 20 8", b"24 20 4"))
    else:
        sitk.WriteImage(_image(np.tile(volume, (30, 1, 1))), str(tmp_path / "b.nii"))
        data = bytearray((tmp_path / "b.nii").read_bytes())
        struct.pack_into("<h", data, 46, 8)
        (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    with pytest.raises(InputError, match="header"):
        scan = _open(tmp_path / f"a.{suffix}", tmp_path / "s")
        checks.raise_errors(scan.findings, scan.path)


@pytest.mark.parametrize("extra", [1, 60_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_nifti_file_with_too_many_bytes(tmp_path, packed, extra):
    sitk.WriteImage(_image(chest.draw((3, 20, 24), (20.0, 14.0, 14.0))), str(tmp_path / "a.nii"))
    data = (tmp_path / "a.nii").read_bytes() + bytes(extra)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(data) if packed else data)
    (finding,) = [one for one in _open(path, tmp_path / "s").findings if one.code == "length"]
    assert finding.severity == "error" and f"is {extra} bytes longer than its header says" in finding.text


def test_npz_with_and_without_a_spacing(tmp_path):
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    np.savez(tmp_path / "one.npz", image=volume[0], mask=volume[0])
    np.savez(tmp_path / "all.npz", image=volume, spacing_zyx_mm=[2.0, 0.5, 0.6])
    one, many = _open(tmp_path / "one.npz", tmp_path / "s"), _open(tmp_path / "all.npz", tmp_path / "t")
    np.testing.assert_array_equal(one.read(0, 1), volume[:1])
    np.testing.assert_array_equal(many.read(1, 3), volume[1:])
    assert not one.has_geometry and any(finding.code == "no-spacing" for finding in one.findings)
    assert many.has_geometry and many.stored.spacing_xyz_mm == (0.6, 0.5, 2.0)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"first": np.zeros((4, 4)), "second": np.zeros((4, 4))}, "expected 'image'"),
        ({"image": np.zeros((4,))}, "expected numbers"),
        ({"image": np.array([["a"]])}, "expected numbers"),
        ({"image": np.array([[None]], dtype=object)}, "no NPZ of plain arrays"),
        ({"image": np.random.default_rng(0).random((8, 8))}, "scaled to 1"),
        ({"image": np.zeros((4, 4)), "spacing_zyx_mm": np.array([1.0, 0.0, 1.0])}, "three numbers above 0"),
    ],
)
def test_an_npz_that_is_no_scan(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=match):
        _open(tmp_path / "a.npz", tmp_path / "s")


def test_a_folder_of_many_scans(tmp_path):
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    for name in ("b/scan.mhd", "a/scan.nii.gz", "c.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("npz"):
            np.savez(tmp_path / name, image=volume)
        else:
            sitk.WriteImage(_image(volume), str(tmp_path / name))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden.nii").write_text("")
    found = scans.find_scans(tmp_path)
    assert [(source.name, source.kind) for source in found] == [
        ("a-scan", "file"),
        ("b-scan", "file"),
        ("c", "npz"),
    ]


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        scans.find_scans(tmp_path / "no")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="none of its 1 files"):
        scans.find_scans(tmp_path)
    with pytest.raises(InputError, match="it is none"):
        scans.find_scans(tmp_path / "notes.txt")


def test_a_zip_with_one_scan(tmp_path):
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    sitk.WriteImage(_image(volume), str(tmp_path / "a.mhd"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a.mhd", "a.raw"):
            archive.write(tmp_path / name, f"deep/{name}")
    np.testing.assert_array_equal(_open(tmp_path / "x.zip", tmp_path / "s").read(0, 3), volume)
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.write(tmp_path / "a.mhd", "other/b.mhd")
    with pytest.raises(InputError, match="holds 2 scans"):
        _open(tmp_path / "x.zip", tmp_path / "t")


@pytest.mark.parametrize(
    "name", ["../evil.nii", "/abs/evil.nii", "a/../../evil.nii", "..\\evil.nii", "C:\\evil.nii"]
)
def test_a_zip_that_leads_out_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match="leads out"):
        _open(tmp_path / "x.zip", tmp_path / "s")
    assert not list(tmp_path.rglob("evil*"))


def test_a_zip_with_a_link_is_refused(tmp_path):
    entry = zipfile.ZipInfo("link.nii")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="a link"):
        _open(tmp_path / "x.zip", tmp_path / "s")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", bytes(5_000_000))
    (tmp_path / "s").mkdir()
    with pytest.raises(InputError, match="holds more than"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "s", max_bytes=1_000_000)
    assert sum(file.stat().st_size for file in (tmp_path / "s").iterdir()) <= 1_000_000


def test_a_damaged_zip_is_refused(tmp_path):
    volume = chest.draw((3, 20, 24), (20, 14, 14))
    np.savez_compressed(tmp_path / "a.npz", image=volume)
    shutil.copy(tmp_path / "a.npz", tmp_path / "x.zip")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        _open(tmp_path / "x.zip", tmp_path / "s")


def _bomb(folder, suffix):
    """Writes a scan whose compressed voxels are a hundred times what its header says."""
    path, zeros = folder / f"a.{suffix}", bytes(2_000_000)
    plain = folder / ("b.nii" if suffix == "nii.gz" else f"b.{suffix}")
    sitk.WriteImage(_image(chest.draw((3, 20, 24), (20.0, 14.0, 14.0))), str(plain))
    whole = plain.read_bytes()
    if suffix == "nii.gz":
        path.write_bytes(gzip.compress(whole + zeros))
    elif suffix == "nrrd":
        end = whole.index(b"\n\n") + 2
        head = whole[:end].replace(b"encoding: raw", b"encoding: gzip")
        path.write_bytes(head + gzip.compress(zeros))
    else:
        end = whole.index(b"LOCAL\n") + 6
        head = whole[:end].replace(b"CompressedData = False", b"CompressedData = True")
        path.write_bytes(head + zlib.compress(zeros))
    return path


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
def test_no_more_is_inflated_than_the_header_says(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(inflate, "_BLOCK", 4096)
    monkeypatch.setattr(voxels, "_BLOCK", 4096)
    path, scratch = _bomb(tmp_path, suffix), tmp_path / "s"
    with pytest.raises(InputError, match=f"a.{suffix} is longer than its header says"):
        _open(path, scratch)
    assert sum(file.stat().st_size for file in scratch.iterdir()) < 200_000


def test_an_npz_that_holds_less_or_more_than_its_header_says(tmp_path):
    np.save(tmp_path / "image.npy", chest.draw((3, 20, 24), (20.0, 14.0, 14.0)))
    whole = (tmp_path / "image.npy").read_bytes()
    for number, data in enumerate((whole[:-100], whole + bytes(3_000_000), whole.replace(b"3, 2", b"9**"))):
        with zipfile.ZipFile(tmp_path / f"{number}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("image.npy", data)
        with pytest.raises(InputError) as caught:
            _open(tmp_path / f"{number}.npz", tmp_path / f"s{number}")
        assert "\n" not in str(caught.value)
        held = sum(file.stat().st_size for file in (tmp_path / f"s{number}").iterdir())
        assert held < 100_000


def test_an_npz_stays_on_disk(tmp_path):
    """Only the slices asked for are read, rounded to HU, also of floating point numbers in Fortran's order."""
    volume = chest.draw((4, 20, 24), (20.0, 14.0, 14.0))
    np.savez(tmp_path / "a.npz", image=np.asfortranarray(volume.astype(np.float32) + 0.25))
    scan = _open(tmp_path / "a.npz", tmp_path / "s")
    np.testing.assert_array_equal(scan.read(1, 3), volume[1:3])
    assert scan.read(0, 1).dtype == np.int16 and scan.dtype == "float32"


def test_an_npz_with_the_slices_last_is_refused(tmp_path):
    volume = chest.draw((12, 48, 48), (12.0, 7.0, 7.0))
    np.savez(tmp_path / "a.npz", image=np.moveaxis(volume, 0, 2))
    finding = _open(tmp_path / "a.npz", tmp_path / "s").findings[1]
    assert (finding.severity, finding.code) == ("error", "axes") and "48x48x12" in finding.text
    np.savez(tmp_path / "b.npz", image=volume)
    assert "axes" not in {one.code for one in _open(tmp_path / "b.npz", tmp_path / "t").findings}


@pytest.mark.parametrize("packed", [False, True])
def test_slope_and_intercept_of_a_nifti_file_are_applied(tmp_path, packed):
    volume = chest.draw((3, 20, 24), (20.0, 14.0, 14.0)) // 2 * 2
    sitk.WriteImage(_image(((volume + 1024) // 2).astype(np.int16)), str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", data, 112, 2.0, -1024.0)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(data) if packed else data)
    np.testing.assert_array_equal(_open(path, tmp_path / "s").read(0, 3), volume)


def test_a_nifti_offset_that_is_no_number(tmp_path):
    sitk.WriteImage(_image(chest.draw((3, 20, 24), (20.0, 14.0, 14.0))), str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for number, value in enumerate((np.nan, np.inf, 8.0)):
        struct.pack_into("<f", data, 108, value)
        (tmp_path / "a.nii").write_bytes(data)
        with pytest.raises(InputError):
            _open(tmp_path / "a.nii", tmp_path / f"s{number}")


@pytest.mark.parametrize("name", ["LIST\na.raw", "%s%n%s.raw 1 3 1", "../a.raw", "/etc/hostname"])
def test_a_header_that_names_other_files(tmp_path, name):
    """ITK takes a pattern for C's printf and dies of it; a list of missing files it reads all the same."""
    sitk.WriteImage(_image(chest.draw((3, 20, 24), (20.0, 14.0, 14.0))), str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text(encoding="latin-1")
    (tmp_path / "a.mhd").write_text(text.replace("a.raw", name), encoding="latin-1")
    with pytest.raises(InputError, match="several files|not beside it"):
        _open(tmp_path / "a.mhd", tmp_path / "s")


def test_a_pipe_is_passed_over_and_a_link_to_nothing_is_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    np.savez(folder / "a.npz", image=chest.draw((3, 20, 24), (20.0, 14.0, 14.0)))
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.mha")
    os.symlink("nowhere.mha", folder / "b.mha")
    os.symlink(folder, folder / "loop")
    found = scans.find_scans(folder)
    assert [(one.name, one.kind) for one in found] == [("a", "npz"), ("b", "broken")]
    with pytest.raises(InputError, match="b.mha is a link to nothing"):
        scans.open_scan(found[1], tmp_path)


@pytest.mark.parametrize("content", [(), ("text.txt",), ("a.mha",)])
def test_what_is_wrong_in_a_zip_is_said_of_the_zip(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in content:
            archive.writestr(name, "no scan")
    with pytest.raises(InputError, match="x.zip") as caught:
        _open(tmp_path / "x.zip", tmp_path / "scratch")
    assert "scratch" not in str(caught.value)
