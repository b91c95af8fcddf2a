"""Damaged scans: no crash, no wrong mask, always one clear line.

Headers are changed at random, files cut at random places. Either the scan is refused by an InputError of one
line, or it is read as SimpleITK, independently, reads it. Seeds are fixed: a failure repeats itself.
"""

import gzip
import shutil
import zipfile

import chest
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.errors import InputError
from auxseg.ct import checks, geometry, scans

ROUNDS = 60
FORMATS = ("mhd", "mha", "nrrd", "nii", "nii.gz")


def _write(folder, suffix, compress):
    """Writes a small chest; returns (the file with the header, bytes of the header)."""
    image = sitk.GetImageFromArray(chest.draw((6, 20, 24), (20.0, 14.0, 14.0)))
    image.SetSpacing((14.0, 14.0, 20.0))
    path = folder / f"scan.{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compress)
    data = path.read_bytes()
    if suffix.startswith("nii"):
        return path, 348
    end = data.find(b"\n\n") + 2 if suffix == "nrrd" else data.find(b"ElementDataFile") + 25
    return path, end


def _open_and_read(path, scratch):
    """Returns (scan, voxels), or (None, message) for a refusal; anything else fails the test."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        found = scans.find_scans(path)
        source = max(found, key=lambda one: sum(len(series.frames) for series in one.series))
        scan = scans.open_scan(source, scratch)
        checks.raise_errors(scan.findings, path)
        return scan, scan.read(0, scan.num_slices)
    except InputError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1500
        return None, message


def _mutate(random, data, end):
    """Returns data with one to three bytes of the header changed: to digits, to neighbours or to anything."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(0, min(end, len(data))))
        kind = random.integers(3)
        if kind == 0:
            data[place] = int(random.integers(48, 58))
        elif kind == 1:
            data[place] ^= 1 << int(random.integers(8))
        else:
            data[place] = int(random.integers(256))
    return bytes(data)


def _place(path, image):
    """Returns (origin, spacing) by SimpleITK; of a NIfTI by nibabel, which prefers the sform whatever its code."""
    if ".nii" not in path.name:
        return image.GetOrigin(), image.GetSpacing()
    affine = nibabel.load(path).affine
    return affine[:3, 3] * [-1, -1, 1], np.linalg.norm(affine[:3, :3], axis=0)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_changed_headers(tmp_path, suffix, compress):
    path, end = _write(tmp_path, suffix, compress)
    original = path.read_bytes()
    random = np.random.default_rng(FORMATS.index(suffix) + 10 * compress)
    refused = 0
    for _ in range(ROUNDS):
        if suffix == "nii.gz":  # inside, where the checksum still fits
            path.write_bytes(gzip.compress(_mutate(random, gzip.decompress(original), end)))
        else:
            path.write_bytes(_mutate(random, original, end))
        scan, voxels = _open_and_read(path, tmp_path / "scratch")
        if scan is None:
            refused += 1
            continue
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:  # such as a wrong size of the compressed voxels, which are whole
            np.testing.assert_array_equal(voxels, chest.draw((6, 20, 24), (20.0, 14.0, 14.0)))
            continue
        assert scan.stored.size_xyz == image.GetSize()
        origin, spacing = _place(path, image)
        np.testing.assert_allclose(scan.stored.origin_xyz_mm, origin)
        np.testing.assert_allclose(scan.stored.spacing_xyz_mm, spacing, rtol=1e-6)
        expected = geometry.to_canonical(sitk.GetArrayFromImage(image), scan.orientation)
        if not np.array_equal(voxels, np.rint(expected)):  # ITK reads on past damaged compression, we do not
            np.testing.assert_array_equal(voxels, chest.draw((6, 20, 24), (20.0, 14.0, 14.0)))
        assert voxels.size == 6 * 20 * 24
    assert 0 < refused


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_cut_files(tmp_path, suffix, compress):
    path, _ = _write(tmp_path, suffix, compress)
    files = [path, *(file for file in tmp_path.iterdir() if file.suffix in (".raw", ".zraw"))]
    random = np.random.default_rng(5)
    for file in files:
        whole = file.read_bytes()
        for size in random.integers(0, len(whole), 25):
            if file.suffix == ".mhd" and whole[size:].strip() == b"":
                continue  # only the last line feed is gone
            file.write_bytes(whole[:size])
            scan, _ = _open_and_read(path, tmp_path / "scratch")
            assert scan is None, f"{file.name} cut at {size} of {len(whole)}"
        file.write_bytes(whole)


def test_changed_bytes_of_compressed_voxels(tmp_path):
    """Checksums of the compression are looked at: a flipped bit is never segmented."""
    for suffix in ("mha", "nrrd", "nii.gz"):
        path, end = _write(tmp_path, suffix, True)
        whole = path.read_bytes()
        random = np.random.default_rng(7)
        start = 30 if suffix == "nii.gz" else end + 60
        for place in random.integers(start, len(whole) - 1, 40):
            data = bytearray(whole)
            data[place] ^= 1 << int(random.integers(8))
            path.write_bytes(data)
            scan, _ = _open_and_read(path, tmp_path / "scratch")
            assert scan is None, f"{suffix} at {place}"


@pytest.mark.parametrize("part", ["header", "cut", "any"])
def test_damaged_dicom(tmp_path, part):
    pytest.importorskip("pydicom", reason="the dicom extra is not installed")
    import dicom_files

    volume = chest.draw((6, 20, 24), (20.0, 14.0, 14.0))
    paths = dicom_files.write_series(tmp_path / "in", volume, spacing_zyx=(20, 14, 14))
    whole = paths[2].read_bytes()
    end = whole.rfind(b"\xe0\x7f\x10\x00")  # the tag of the pixels
    random = np.random.default_rng(("header", "cut", "any").index(part))
    outcomes = set()
    for _ in range(ROUNDS):
        if part == "cut":
            paths[2].write_bytes(whole[: int(random.integers(0, len(whole)))])
        else:
            paths[2].write_bytes(_mutate(random, whole, end if part == "header" else len(whole)))
        scan, voxels = _open_and_read(tmp_path / "in", tmp_path / "scratch")
        outcomes.add(scan is None)
        if scan is not None:
            assert part != "cut"
            places = [k for k, frame in zip(scan.volume.places, scan.volume.frames) if frame.path != paths[2]]
            np.testing.assert_array_equal(voxels[places], np.delete(volume, 2, 0))
    assert True in outcomes


def test_damaged_npz_and_zip(tmp_path):
    volume = chest.draw((3, 20, 24), (20.0, 14.0, 14.0))
    np.savez_compressed(tmp_path / "a.npz", image=volume, spacing_zyx_mm=[20.0, 14.0, 14.0])
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.npz", "a.npz")
    for name in ("a.npz", "b.zip"):
        whole = (tmp_path / name).read_bytes()
        random = np.random.default_rng(9)
        for round_ in range(ROUNDS):
            if round_ % 3 == 0:
                (tmp_path / name).write_bytes(whole[: int(random.integers(0, len(whole)))])
            else:
                (tmp_path / name).write_bytes(_mutate(random, whole, len(whole)))
            scan, voxels = _open_and_read(tmp_path / name, tmp_path / "scratch")
            if scan is not None:
                np.testing.assert_array_equal(voxels, volume)
        (tmp_path / name).write_bytes(whole)
